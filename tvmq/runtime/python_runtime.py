"""TVM's Python runtime on a board: what has to be installed there, and which files of tvmq travel along.

On the board TVM lives in ``~/tvmq-python``, a virtual environment, as Debian keeps its own Python to itself.  tvmq is
not installed there: the few files of it that run a network, or serve kernels that are tuned, are sent each time.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from tvmq.errors import BoardError
from tvmq.runtime.facts import Facts

__all__ = [
    "PYTHON",
    "mismatches",
    "needed_versions",
    "package_files",
    "pip_command",
    "require_python_runtime",
    "run_script",
]

PYTHON = "~/tvmq-python/bin/python"
_PACKAGE = Path(__file__).resolve().parents[1]
# What `program.py` imports, and nothing that imports a compiler.
_FILES = (
    "__init__.py",
    "errors.py",
    "runtime/__init__.py",
    "runtime/executor.py",
    "runtime/timing.py",
    "runtime/program.py",
)
_NEEDED = ("apache-tvm", "apache-tvm-ffi")
_RUN = """\
#!/bin/sh
# Runs the network: ~/tvmq/{name}/run.sh --input x.npy --output-prefix y [--repeat N]
here=$(dirname "$0")
exec env TVM_USE_RUNTIME_LIB=1 PYTHONPATH="$here/python" TVM_NUM_THREADS="${{TVM_NUM_THREADS:-{threads}}}" \\
    "$HOME/tvmq-python/bin/python" -m tvmq.runtime.program "$here/network.so" "$@"
"""


def needed_versions() -> dict[str, str]:
    """The versions that a board must have: those of this machine.

    Returns
    -------
    dict of str to str
        By name of the package.
    """
    return {name: importlib.metadata.version(name) for name in _NEEDED}


def mismatches(packages: Mapping[str, str] | None) -> list[str]:
    """What a board lacks to run networks from Python.

    Parameters
    ----------
    packages : mapping of str to str, or None
        :attr:`Facts.packages`.

    Returns
    -------
    list of str
        Such as ``"apache-tvm 0.26.0 instead of 0.27.0"``; empty when all is well.
    """
    if packages is None:
        return ["there is no ~/tvmq-python"]
    found = {name: packages.get(name) for name in needed_versions()}
    return [
        f"{name} is missing" if found[name] is None else f"{name} {found[name]} instead of {version}"
        for name, version in needed_versions().items()
        if found[name] != version
    ]


def pip_command(packages: Mapping[str, str] | None) -> str:
    """What to run on the board to install them.

    Parameters
    ----------
    packages : mapping of str to str, or None
        :attr:`Facts.packages`.

    Returns
    -------
    str
    """
    wanted = " ".join(f"{name}=={version}" for name, version in needed_versions().items())
    make = "python3 -m venv ~/tvmq-python && " if packages is None else ""
    return f"{make}~/tvmq-python/bin/pip install {wanted}"


def require_python_runtime(facts: Facts, place: str) -> None:
    """Check that a board can run networks from Python.

    Parameters
    ----------
    facts : Facts
        Of the board.
    place : str
        The board, for the message.

    Raises
    ------
    BoardError
        If it cannot; the message says what to run there.
    """
    if facts.machine.arch == "armv7l":
        raise BoardError(
            f"{place}: TVM has no Python runtime for 32-bit systems; use --runtime cpp, or install a 64-bit system"
        )
    problems = mismatches(facts.packages)
    if problems:
        command = pip_command(facts.packages)
        raise BoardError(f"{place}: the Python runtime is not ready ({', '.join(problems)}); run there: {command}")


def package_files() -> dict[str, bytes]:
    """The files of tvmq that run on the board.

    Returns
    -------
    dict of str to bytes
        By their path below the installation.
    """
    return {f"python/tvmq/{name}": (_PACKAGE / name).read_bytes() for name in _FILES}


def run_script(name: str, threads: int) -> str:
    """The ``run.sh`` of an installation.

    Parameters
    ----------
    name : str
        Of the installation.
    threads : int
        Unless the user says otherwise.

    Returns
    -------
    str
    """
    return _RUN.format(name=name, threads=threads)
