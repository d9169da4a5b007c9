"""Cycles of straight-line code in llvm-mca's models of cores.

Code is repeated a hundred times, as if it were a loop: the steady state.  A single pass would measure latencies that
the next pass hides, and the bound by resources alone forgets dependences.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence

from tvmq.errors import ToolchainError

__all__ = ["ITERATIONS", "find_llvm_mca", "steady_cycles"]

ITERATIONS = 100
_NAMES = ("llvm-mca-19", "llvm-mca-20", "llvm-mca-21", "llvm-mca")
"""Of the models of ARM cores, those of LLVM 19 were looked at."""
_PACKAGE = "llvm-19"


def find_llvm_mca() -> str:
    """Its path.

    Returns
    -------
    str

    Raises
    ------
    ToolchainError
        If it is not installed; the message names the Debian package.
    """
    for name in _NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    raise ToolchainError(
        f"llvm-mca is not installed; install it with `apt-get install {_PACKAGE}`, or "
        "`scripts/install-cross-tools.sh simulate`"
    )


def steady_cycles(blocks: Sequence[Sequence[str]], triple: str, core: str) -> list[float | None]:
    """Cycles of one pass through each block, in a loop of nothing else.

    Parameters
    ----------
    blocks : sequence of sequences of str
        Lines of assembly without labels.
    triple, core : str
        LLVM's names of the platform and of the model.

    Returns
    -------
    list of float or None
        None for a block of nothing that the model knows.

    Raises
    ------
    ToolchainError
        If llvm-mca is not installed, or takes neither the model nor the code.
    """
    if not blocks:
        return []
    regions = ["\n".join([f"# LLVM-MCA-BEGIN {index}", *lines, "# LLVM-MCA-END"]) for index, lines in enumerate(blocks)]
    options = [f"-mtriple={triple}", f"-mcpu={core}", f"-iterations={ITERATIONS}", "-json"]
    # What is called has its own blocks; 100 cycles would be added for it.
    options += ["-call-latency=1", "-skip-unsupported-instructions=any"]
    command = [find_llvm_mca(), *options]
    result = subprocess.run(command, input="\n".join(regions) + "\n", capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
        raise ToolchainError(f"llvm-mca, core {core}: {errors[0].strip()}")
    found = {
        int(region["Name"]): region["SummaryView"]["TotalCycles"] / ITERATIONS
        for region in json.loads(result.stdout)["CodeRegions"]
        if "SummaryView" in region
    }
    return [found.get(index) for index in range(len(blocks))]
