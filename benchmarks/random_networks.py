"""Random low-bit networks, compiled and compared with the golden executor bit for bit.

    python benchmarks/random_networks.py --output benchmarks/results/random_networks.json

Network i is a function of the seed and i alone, so that any failure can be run again: ``--first I --count 1``.  The
result is written after every batch and after Ctrl-C; a batch that fails is run again one network at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import tvm

import tvmq
from tvmq.target import get_target

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from networks.checks import Tally, check
from networks.generator import Seeded, grow

LONGEST_MESSAGE = 4000


def failure(index: int, error: BaseException, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is written about a network that failed."""
    return {
        "network": index,
        "error": f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE],
        "command": f"python {sys.argv[0]} --seed {arguments.seed} --first {index} --count 1 "
        f"--target {arguments.target}",
    }


def run_batch(indices: range, tally: Tally, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Check some networks as one module; if that fails, one at a time."""
    networks = [grow(Seeded([arguments.seed, index])) for index in indices]
    try:
        check(networks, tally, get_target(arguments.target), arguments.lowered)
        return []
    except Exception as error:  # whatever it is, it is a failure to report
        if len(networks) == 1:
            return [failure(indices[0], error, arguments)]
    failures = [row for index in indices for row in run_batch(range(index, index + 1), tally, arguments)]
    if not failures:
        # Each alone is right, all together are not: that is a failure too.
        failures = [{"network": list(indices), "error": "fails only as one module", "command": " ".join(sys.argv)}]
    return failures


def write(path: Path | None, result: dict[str, Any]) -> None:
    """To a temporary name, then renamed."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def progress(done: int, count: int, failures: int, start: float) -> None:
    """One line on standard error, with the time left."""
    seconds = time.perf_counter() - start
    left = seconds / done * (count - done)
    print(f"\r{done} of {count} networks, {failures} failed, {left / 60:.0f} min left ", end="", file=sys.stderr)


def parse() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    parser.add_argument("--count", type=int, default=5000, help="how many networks")
    parser.add_argument("--batch", type=int, default=5, help="networks compiled as one module")
    parser.add_argument("--target", default="host", help="compiled for, and run on this machine")
    parser.add_argument(
        "--lowered", nargs="*", default=["raspberry-pi-4"], help="targets whose kernels run as numpy references"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.batch < 1:
        parser.error("--count and --batch must be positive")
    return arguments


def main() -> int:
    """Run; 0 if no network failed."""
    arguments = parse()
    warnings.filterwarnings("ignore", category=UserWarning)  # "fewer bits would be faster", thousands of times
    tally, failures = Tally(), []
    start, end, done = time.perf_counter(), arguments.first + arguments.count, 0

    def result() -> dict[str, Any]:
        return {
            "command": "python " + " ".join(sys.argv),
            "seed": arguments.seed,
            "first": arguments.first,
            "complete": done == arguments.count,
            "count": done,
            "passed_and_different": tally.networks,
            "failures": len(failures),
            "layers": tally.layers,
            "packed_layers": tally.packed,
            "undecided_against_float64": tally.undecided,
            "target": arguments.target,
            "lowered": arguments.lowered,
            "seconds": round(time.perf_counter() - start),
            "versions": {"tvmq": tvmq.__version__, "tvm": tvm.__version__},
            "failed": failures,
        }

    with contextlib.suppress(KeyboardInterrupt):
        for first in range(arguments.first, end, arguments.batch):
            failures += run_batch(range(first, min(first + arguments.batch, end)), tally, arguments)
            done = min(first + arguments.batch, end) - arguments.first
            write(arguments.output, result())
            progress(done, arguments.count, len(failures), start)
    print(file=sys.stderr)
    final = result()
    write(arguments.output, final)
    print(json.dumps(final, indent=2))
    return 1 if failures or not final["complete"] else 0


if __name__ == "__main__":
    sys.exit(main())
