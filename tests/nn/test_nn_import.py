from __future__ import annotations

import subprocess
import sys


def test_without_torch_the_error_names_what_to_install():
    # None in sys.modules makes Python behave as if the package were not installed.
    code = """
import sys
sys.modules["torch"] = None
from tvmq.errors import ToolchainError
try:
    import tvmq.nn
except ToolchainError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "tvmq.nn needs PyTorch, which is not installed: pip install 'tvmq[torch]'"
