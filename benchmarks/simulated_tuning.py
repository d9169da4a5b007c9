"""The costs of ``tvmq tune --on simulate`` against times, on the machine at hand.

    python benchmarks/simulated_tuning.py --pools build/pools --simulate
    python benchmarks/simulated_tuning.py --pools build/pools --time
    python benchmarks/simulated_tuning.py --pools build/pools --output benchmarks/results/simulated_tuning.json

Each shape has a pool of random schedules.  The first form builds and simulates them, which takes minutes; the second
one times them, each shape for less than a minute, and wants no other programs; the third one compares.  The regret of
a schedule is its time over that of the fastest of the pool.  There is no board here: this shows how far the costs can
be trusted on another processor than those that they are meant for.  Times are medians of rounds in which all schedules
take their turn.
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
from tvmq.tuning.caches import Misses
from tvmq.tuning.measure import CANDIDATE, arguments_of, random_array
from tvmq.tuning.simulate import SMALLEST_GAIN, Candidate, KernelCosts, SimulatedHost, chosen, kernel_costs
from tvmq.tuning.tasks import Task

SHAPES = ("28x28x128", "16x16x256", "8x8x512", "32x32x128", "dense-64x1024", "dense-64x4096")
SEED = 0
BLOCK_SECONDS = 1e-3
TOP = 5
WORST, MEAN = 1.10, 1.03
"""What the regret should be at most."""


def main() -> None:
    """Simulate, time or compare every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=Path, required=True, help="folder for libraries, costs and times")
    parser.add_argument("--simulate", action="store_true", help="build and simulate what is not in the folder yet")
    parser.add_argument("--time", action="store_true", help="time what is there")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--candidates", type=int, default=240, help="of each shape, or as many as it has")
    parser.add_argument("--target", default="host", help="one that this machine can run")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2, help="for simulating; times are taken by one alone")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    core = dataclasses.replace(get_target(options.target), cores=1)
    SimulatedHost(core)  # says what is missing
    pools = [Pool(shape, core, options.pools / core.name, options.candidates) for shape in options.shapes]
    for pool in pools:
        if options.simulate:
            pool.simulate(options.processes)
        elif options.time:
            pool.time(options.rounds)
    if options.simulate or options.time:
        return
    rows = [compared(pool) for pool in pools]
    regrets = [row["regret"] for row in rows]
    print(f"worst regret {max(regrets):.3f} (at most {WORST}), mean {np.mean(regrets):.3f} (at most {MEAN})")
    if options.output is not None:
        write(options.output, {"command": "python " + " ".join(sys.argv), "target": core.board, "shapes": rows})


class Pool:
    """Random schedules of one shape, the analytic one first."""

    def __init__(self, shape: str, core: Target, folder: Path, candidates: int) -> None:
        self.shape, self.core, self.folder = shape, core, folder / shape
        self.folder.mkdir(parents=True, exist_ok=True)
        self.task = task_of(shape, core)
        self.space = self.task.kind.space(self.task.function, core)
        others = np.random.default_rng(SEED).permutation(len(self.space) - 1)[: candidates - 1] + 1
        self.points = [self.space[0], *[self.space[index] for index in sorted(others)]]

    def path(self, index: int, suffix: str) -> Path:
        """The library or the costs of a schedule."""
        name = "-".join(str(value) for value in self.points[index].values())
        return self.folder / f"{name}.{suffix}"

    def simulate(self, processes: int) -> None:
        """Libraries and costs of all."""
        left = [index for index in range(len(self.points)) if not self.path(index, "json").exists()]
        started = time.monotonic()
        with ProcessPoolExecutor(processes) as workers:
            list(workers.map(self.simulate_one, left))
        print(f"{self.shape}: {len(left)} schedules in {time.monotonic() - started:.0f} s", flush=True)

    def simulate_one(self, index: int) -> None:
        """Library and costs of one, or why there are none."""
        function = self.task.kind.apply(self.task.function, self.core, self.points[index])
        started = time.monotonic()
        try:
            result = dataclasses.asdict(kernel_costs(function, self.core))
            seconds = time.monotonic() - started
            module = tvm.IRModule({CANDIDATE: function.with_attr("global_symbol", CANDIDATE)})
            tvm.compile(module, target=self.core.tvm_target()).export_library(str(self.path(index, "so")))
        except Exception as error:  # LLVM rejects some schedules
            result, seconds = {"error": str(error)}, time.monotonic() - started
        write(self.path(index, "json"), {"seconds": seconds, **result})

    def costs(self) -> dict[int, KernelCosts]:
        """What was simulated, by the place in the pool."""
        found = {}
        for index in range(len(self.points)):
            if not self.path(index, "json").exists():
                sys.exit(f"{self.path(index, 'json')}: not there yet; run with --simulate")
            content = json.loads(self.path(index, "json").read_text(encoding="utf-8"))
            del content["seconds"]
            if "error" not in content:
                found[index] = KernelCosts(**{**content, "misses": Misses(**content["misses"])})
        return found

    def seconds(self) -> float:
        """Of simulating one schedule: the median, as other programs may run."""
        files = [self.path(index, "json") for index in range(len(self.points))]
        return float(np.median([json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in files]))

    def time(self, rounds: int) -> None:
        """Times of all that could be built: medians over rounds, in each of which all take their turn."""
        arrays = [tvm.runtime.tensor(random_array(*argument)) for argument in arguments_of(self.task.function)]
        runs = {}
        for index in self.costs():
            library = tvm.runtime.load_module(str(self.path(index, "so")))
            once = library.time_evaluator(CANDIDATE, tvm.cpu(), number=1, repeat=3)(*arrays).min
            calls = max(1, round(BLOCK_SECONDS / max(once, 1e-9)))
            runs[index] = library.time_evaluator(CANDIDATE, tvm.cpu(), number=calls, repeat=1)
        random = np.random.default_rng(SEED)
        seconds = {index: [] for index in runs}
        started = time.monotonic()
        for _ in range(rounds):
            for index in random.permutation(list(runs)):
                seconds[int(index)].append(runs[int(index)](*arrays).results[0])
        write(self.folder / "times.json", {index: float(np.median(times)) for index, times in seconds.items()})
        print(f"{self.shape}: timed for {time.monotonic() - started:.0f} s", flush=True)

    def times(self) -> dict[int, float]:
        """Seconds, by the place in the pool."""
        content = json.loads((self.folder / "times.json").read_text(encoding="utf-8"))
        return {int(index): seconds for index, seconds in content.items()}


def compared(pool: Pool) -> dict:
    """One shape."""
    known, seconds = pool.costs(), pool.times()
    places = sorted(known)
    times = np.array([seconds[index] for index in places])
    reference = known[0]
    # The analytic schedule is never rejected.
    costs = [
        known[index].cost(reference, pool.core) if index == 0 or not known[index].spills else np.inf for index in places
    ]
    candidates = [
        Candidate(pool.points[index], cost, known[index])
        for index, cost in zip(places, costs, strict=True)
        if np.isfinite(cost)
    ]
    # As in tuning, nothing takes the place of the analytic schedule unless it costs less for certain.
    is_better = min(costs) + SMALLEST_GAIN * costs[0] < costs[0]
    first = places.index(pool.points.index(chosen(candidates).knobs)) if is_better else 0
    order = np.argsort(costs, kind="stable")
    kept = np.isfinite(costs)
    row = {
        "shape": pool.shape,
        "schedules": len(pool.space),
        "candidates": len(pool.points),
        "failed": len(pool.points) - len(known),
        "rejected": int(np.sum(~kept)),
        "regret": round(float(times[first] / min(times)), 4),
        "regret_of_lowest_cost": round(float(times[order[0]] / min(times)), 4),
        f"regret_of_best_of_{TOP}": round(float(min(times[order[:TOP]]) / min(times)), 4),
        "regret_of_default": round(float(times[0] / min(times)), 4),
        "expected_regret_of_any": round(float(np.mean(times) / min(times)), 4),
        "rank_correlation": round(rank_correlation(np.array(costs)[kept], times[kept]), 3),
        "seconds_per_candidate": round(pool.seconds(), 2),
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
