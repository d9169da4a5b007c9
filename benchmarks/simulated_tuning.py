"""The costs of ``tvmq tune --on simulate`` against times, on the machine at hand.

    python benchmarks/simulated_tuning.py --shapes 14x14x256 --candidates 240
    python benchmarks/simulated_tuning.py --output benchmarks/results/simulated_tuning.json

A pool of random schedules per shape is simulated and timed.  The regret of the schedule with the lowest cost is its
time over that of the fastest of the pool; among schedules within 5 % of the lowest cost the analytic one is preferred,
as in tuning.  There is no board here: this shows how far the costs can be trusted on another processor than those that
they are meant for.  Close other programs; times are medians of rounds in which all schedules take their turn.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import argparse
import dataclasses
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import tvm

from tvmq.target import Target, get_target
from tvmq.tuning.measure import arguments_of, random_array
from tvmq.tuning.simulate import SMALLEST_GAIN, KernelCosts, SimulatedHost, kernel_costs
from tvmq.tuning.tasks import Task

SHAPES = ("14x14x256", "56x56x64", "dense-64x1024", "dense-64x4096")
SEED = 0
BLOCK_SECONDS = 1.5e-3
TOP = 5
WORST, MEAN = 1.10, 1.03
"""What the regret should be at most."""


def main() -> None:
    """Simulate and time every shape, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--candidates", type=int, default=240, help="of each shape, or as many as it has")
    parser.add_argument("--target", default="host", help="one that this machine can run")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2, help="for simulating; times are taken by one alone")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    core = dataclasses.replace(get_target(options.target), cores=1)
    SimulatedHost(core)  # says what is missing
    rows = [compared(shape, core, options) for shape in options.shapes]
    regrets = [row["regret"] for row in rows]
    print(f"worst regret {max(regrets):.3f} (at most {WORST}), mean {np.mean(regrets):.3f} (at most {MEAN})")
    if options.output is not None:
        write(options.output, {"command": "python " + " ".join(sys.argv), "target": core.board, "shapes": rows})


def compared(shape: str, core: Target, options: argparse.Namespace) -> dict:
    """One shape."""
    task = task_of(shape, core)
    space = task.kind.space(task.function, core)
    chosen = np.random.default_rng(SEED).permutation(len(space) - 1)[: options.candidates - 1] + 1
    pool = [space[0], *[space[index] for index in sorted(chosen)]]
    started = time.monotonic()
    with ProcessPoolExecutor(options.processes) as workers:
        costs = list(workers.map(costs_of, [shape] * len(pool), [core] * len(pool), pool))
    seconds = (time.monotonic() - started) / len(pool)
    known = [(point, item) for point, item in zip(pool, costs, strict=True) if isinstance(item, KernelCosts)]
    times = timed([task.kind.apply(task.function, core, point) for point, _ in known], core, options.rounds)
    reference = known[0][1]
    # The analytic schedule is never rejected.
    cost = [
        item.cost(reference, core) if index == 0 or not item.spills else np.inf for index, (_, item) in enumerate(known)
    ]
    order = np.argsort(cost, kind="stable")
    first = 0 if cost[0] <= (1 + SMALLEST_GAIN) * min(cost) else int(order[0])
    kept = np.isfinite(cost)
    row = {
        "shape": shape,
        "schedules": len(space),
        "candidates": len(pool),
        "failed": len(pool) - len(known),
        "rejected": int(np.sum(~kept)),
        "regret": round(float(times[first] / min(times)), 4),
        "regret_of_lowest_cost": round(float(times[order[0]] / min(times)), 4),
        f"regret_of_best_of_{TOP}": round(float(min(times[order[:TOP]]) / min(times)), 4),
        "regret_of_default": round(float(times[0] / min(times)), 4),
        "expected_regret_of_any": round(float(np.mean(times) / min(times)), 4),
        "rank_correlation": round(rank_correlation(np.array(cost)[kept], times[kept]), 3),
        "seconds_per_candidate": round(seconds, 2),
    }
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def task_of(shape: str, core: Target) -> Task:
    """The kernel of a shape, binary."""
    from tune_shapes import dense, task

    name, _, sizes = shape.rpartition("-")
    numbers = [int(size) for size in sizes.split("x")]
    if name == "dense":
        samples, channels = numbers
        return dense(core, samples, channels, channels, 1)
    return task(core, numbers[0], numbers[2], numbers[2], 1, "codes")


def costs_of(shape: str, core: Target, point: dict[str, int]) -> KernelCosts | str:
    """What a schedule costs, or why that is not known."""
    task = task_of(shape, core)
    try:
        return kernel_costs(task.kind.apply(task.function, core, point), core)
    except Exception as error:  # LLVM rejects some schedules
        return str(error)


def timed(functions: list, core: Target, rounds: int) -> np.ndarray:
    """Seconds of kernels: medians over rounds, in each of which all take their turn."""
    runs = []
    for index, function in enumerate(functions):
        name = f"candidate{index}"
        module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
        library = tvm.compile(module, target=core.tvm_target()).mod
        arrays = [tvm.runtime.tensor(random_array(*argument)) for argument in arguments_of(function)]
        once = library.time_evaluator(name, tvm.cpu(), number=1, repeat=3)(*arrays).min
        calls = max(1, round(BLOCK_SECONDS / max(once, 1e-9)))
        runs.append((library.time_evaluator(name, tvm.cpu(), number=calls, repeat=1), arrays))
    random = np.random.default_rng(SEED)
    seconds = np.empty((rounds, len(runs)))
    for row in seconds:
        for index in random.permutation(len(runs)):
            evaluator, arrays = runs[index]
            row[index] = evaluator(*arrays).results[0]
    return np.median(seconds, axis=0)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, without regard to ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def write(path: Path, result: dict) -> None:
    """The result as JSON, completely or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
