"""``python -m tvmq.runtime.program``: runs a compiled network on a board that has TVM's Python runtime.

It takes the same words as ``tvmq-run``, prints the same line of JSON on standard output, and fails with one line on
standard error, so that an installation works the same with either.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from tvmq.errors import InputError, TvmqError
from tvmq.runtime.executor import Executor
from tvmq.runtime.timing import run_seconds

__all__ = ["main"]


def main(words: list[str] | None = None) -> int:
    """Run a network as the command line says.

    Parameters
    ----------
    words : list of str, optional
        The command line; by default this process's.

    Returns
    -------
    int
        Exit status.
    """
    parser = argparse.ArgumentParser("tvmq.runtime.program", description="Run a compiled network.")
    parser.add_argument("library", type=Path)
    parser.add_argument("--input", type=Path, action="append", default=[], help="an .npy file, one per input")
    parser.add_argument("--output-prefix", required=True, help="outputs are PREFIX0.npy, PREFIX1.npy, ...")
    parser.add_argument("--repeat", type=int, default=1, help="number of timed runs")
    arguments = parser.parse_args(words)
    try:
        print(json.dumps(_run(arguments.library, arguments.input, arguments.output_prefix, arguments.repeat)))
    except (TvmqError, OSError) as error:
        print(f"tvmq-run: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _run(library: Path, inputs: list[Path], prefix: str, repeat: int) -> dict[str, list[float] | list[str]]:
    executor = Executor(library)
    arrays = [_array(path) for path in inputs]
    outputs = executor.run(*arrays)
    names = [f"{prefix}{number}.npy" for number in range(len(outputs))]
    for name, array in zip(names, outputs, strict=True):
        np.save(name, array)
    return {"seconds": run_seconds(executor.bound(*arrays), repeat), "outputs": names}


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except ValueError:
        raise InputError(f"input file '{path}' is not an .npy file of plain numbers") from None


if __name__ == "__main__":
    sys.exit(main())
