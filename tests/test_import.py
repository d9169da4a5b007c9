from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tvmq

ROOT = Path(tvmq.__file__).parents[1]
HEAVY = ("tvm", "torch", "numpy", "onnx", "rich", "typer")


def fresh_python(code: str) -> str:
    """Standard output of ``code`` in a new interpreter, in which nothing is loaded yet."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_cheap():
    code = (
        "import sys, time; start = time.perf_counter(); import tvmq; took = time.perf_counter() - start\n"
        f"print(took, *[name for name in {HEAVY} if name in sys.modules])"
    )
    seconds, *loaded = fresh_python(code).split()
    assert loaded == []
    assert float(seconds) < 1


def test_listing_targets_loads_no_compiler():
    code = "import sys, tvmq; print(len(tvmq.targets()) > 3, 'tvm' in sys.modules, 'numpy' in sys.modules)"
    assert fresh_python(code) == "True False False"


@pytest.mark.parametrize("name", tvmq.__all__)
def test_every_public_name_loads(name):
    assert getattr(tvmq, name) is not None


def test_dir_shows_the_public_names_before_they_are_loaded():
    assert fresh_python("import tvmq; print('compile' in dir(tvmq), 'Bundle' in dir(tvmq))") == "True True"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = tvmq.quantise


def test_a_name_is_looked_up_once():
    assert tvmq.get_target is tvmq.get_target
    assert "get_target" in vars(tvmq)


def test_version_is_the_one_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{tvmq.__version__}"' in text
