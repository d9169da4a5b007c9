"""Costs of kernels without a board."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from tvmq.errors import TargetError, ToolchainError
from tvmq.records import Key, Record, read_records, write_records
from tvmq.target import get_target
from tvmq.tuning import llvm_mca, tune_kernels
from tvmq.tuning.accesses import touched_lines
from tvmq.tuning.caches import Misses
from tvmq.tuning.executed import execute
from tvmq.tuning.journal import Journal
from tvmq.tuning.places import host_of
from tvmq.tuning.search import Search
from tvmq.tuning.simulate import Candidate, KernelCosts, SimulatedHost, chosen


def test_all_lines_of_what_is_read_and_written_are_touched(task, target):
    kernel = task(size=4, channels=64)
    function = kernel.kind.apply(kernel.function, target, kernel.kind.default(kernel.function, target))
    lines = np.unique(touched_lines(function, 64))
    data, weight, output = (function.params[place] for place in (0, 1, -1))
    sizes = [math.prod(map(int, item.shape)) * target.word_bits // 8 for item in (data, weight, output)]
    assert len(lines) >= sum(-(-size // 64) for size in sizes)


@pytest.mark.parametrize("board", ["raspberry-pi-4", "raspberry-pi-3-32"])
def test_a_loop_of_assembly_reads_all_weights_for_every_tile_of_pixels(task, board):
    core = get_target(board)
    kernel = task(size=4, channels=64, target=core, form="depth")
    default = kernel.kind.default(kernel.function, core)
    lines = touched_lines(_scheduled(kernel, core), 64)
    weight = math.prod(map(int, kernel.function.params[1].shape)) // 64
    tiles = 16 // (default["pixel_tile"] * default["pixel_rows"])
    noted, times = np.unique(lines, return_counts=True)
    assert sum(times >= tiles) >= weight and len(noted) > weight


def test_executed_vector_instructions_follow_from_the_products(task, target):
    small, large = (execute(_scheduled(task(size=size), target), target) for size in (4, 8))
    assert small.vector_instructions < small.instructions
    assert 3 < large.vector_instructions / small.vector_instructions < 5  # four times the pixels


@pytest.mark.parametrize("board", ["raspberry-pi-4", "raspberry-pi-3-32"])
def test_executed_instructions_under_emulation(task, board):
    core = get_target(board)
    small, large = (execute(_scheduled(task(size=size, target=core), core), core) for size in (4, 8))
    assert 0 < small.vector_loads < small.vector_instructions < small.instructions
    assert 3 < large.vector_instructions / small.vector_instructions < 5


@pytest.mark.parametrize("board", ["raspberry-pi-4", "raspberry-pi-3-32"])
def test_executed_instructions_of_a_loop_of_assembly(task, board):
    core = get_target(board)
    counted = execute(_scheduled(task(size=8, target=core, form="depth"), core), core)
    vectors = (8 * 8 * 9 * 64 * 64) // 128
    assert 3 * vectors < counted.vector_instructions < 6 * vectors  # bits meet, are counted and added


@pytest.mark.parametrize("board", ["raspberry-pi-4", "raspberry-pi-5"])
def test_executed_instructions_of_bytes(task, board):
    core = get_target(board)
    counted = execute(_scheduled(task(target=core, form="bytes"), core), core)
    products = {"smull": 16 / 3, "sdot": 16}[core.dot]  # of an instruction
    assert counted.vector_instructions > 4 * 4 * 9 * 64 * 64 / products


def _scheduled(kernel, target):
    return kernel.kind.apply(kernel.function, target, kernel.kind.default(kernel.function, target))


REFERENCE = KernelCosts(1000.0, 2000, 1600, 400, 0, Misses(100, 10))


@pytest.mark.parametrize(
    ("pipeline", "cost"), [("in-order", 1000 + 400 + 100), ("out-of-order", math.hypot(1000, 500))]
)
def test_cost_of_the_reference(target, pipeline, cost):
    caches = {**target.caches, "level1_miss_cycles": 4.0, "level2_miss_cycles": 10.0}
    core = dataclasses.replace(target, pipeline=pipeline, caches=caches)
    assert REFERENCE.cost(REFERENCE, core) == pytest.approx(cost)


def test_measures_of_computing_have_equal_weights(target):
    still = dataclasses.replace(REFERENCE, misses=Misses(0, 0))
    for name in ("cycles", "instructions", "vector_instructions"):
        twice = dataclasses.replace(still, **{name: 2 * getattr(still, name)})
        assert twice.cost(still, target) == pytest.approx(4000 / 3)


@pytest.mark.parametrize(("stack", "spills"), [(200, False), (201, True)])
def test_spilling(stack, spills):
    assert dataclasses.replace(REFERENCE, stack_instructions=stack).spills == spills


def test_what_costs_cannot_tell_apart_is_chosen_by_lines_loads_and_tile():
    def candidate(cost, lines, loads, tile, rows=1):
        costs = dataclasses.replace(REFERENCE, misses=Misses(lines, 0), vector_loads=loads)
        return Candidate({"pixel_tile": tile, "row_tile": rows}, cost, costs)

    cheapest, dear = candidate(100.0, 50, 50, 4), candidate(106.0, 1, 1, 1)
    fewer_lines, fewer_loads = candidate(104.0, 40, 60, 8), candidate(104.0, 50, 40, 8)
    smaller, larger = candidate(103.0, 40, 60, 2, rows=14), candidate(100.0, 40, 60, 4, rows=1)
    assert chosen([dear, cheapest]) == cheapest
    assert chosen([cheapest, fewer_lines, dear]) == fewer_lines
    assert chosen([cheapest, fewer_loads]) == fewer_loads
    assert chosen([larger, smaller]) == smaller


def test_a_target_without_a_model(target):
    with pytest.raises(TargetError, match="target 'host' cannot be simulated; give mca_core and caches in its file"):
        host_of("simulate", dataclasses.replace(target, mca_core=None))


def test_llvm_mca_is_missing(target, monkeypatch):
    monkeypatch.setattr(llvm_mca.shutil, "which", lambda name: None)
    with pytest.raises(ToolchainError, match="llvm-mca is not installed; install it with `apt-get install llvm-19`"):
        host_of("simulate", target)


def test_steady_cycles():
    one, two, unknown = llvm_mca.steady_cycles(
        [["add x0, x0, x1"], ["add x0, x0, x1"] * 2, ["what is this"]], "aarch64-linux-gnu", "cortex-a72"
    )
    assert one == pytest.approx(1, abs=0.1) and two == pytest.approx(2, abs=0.1) and unknown is None
    with pytest.raises(ToolchainError, match="llvm-mca, core cortex-a0"):
        llvm_mca.steady_cycles([["nop"]], "aarch64-linux-gnu", "cortex-a0")


def test_records_of_a_simulation(task, target, tmp_path):
    host = SimulatedHost(target)
    result = tune_kernels([task()], target, trials=2, host=host, output=tmp_path)
    (record,) = read_records(tmp_path / target.board / "conv2d.json")
    assert record.is_simulated and 1 <= len(record.candidates) <= 5
    assert record.microseconds > 0 and record.spread == 0
    assert "they rank schedules and are no times of a board" in str(result)
    assert len(host._known) == 2  # nothing is simulated twice


def test_schedules_that_leave_threads_idle_are_not_simulated(task):
    core = get_target("raspberry-pi-4")
    kernel = task(size=28, channels=128, target=core)
    search = Search(kernel, SimulatedHost(core), Journal(Path("nowhere"), "key", {}))
    space = kernel.kind.space(kernel.function, core)
    assert search.points[0] == space[0] and len(search.points) < len(space)
    assert all(point["row_tile"] <= max(point["pixel_rows"], space[0]["row_tile"]) for point in search.points)


def test_what_was_simulated_is_measured_first(task, target, tmp_path, fake_host):
    kernel = task()
    points = kernel.kind.space(kernel.function, target)
    simulated = _record(kernel, points, {"costs": "simulated"}, microseconds=1.0, candidates=points[-2:])
    write_records(tmp_path, target, [simulated])
    host = fake_host(kernel, lambda knobs: 0.5 if knobs == points[-1] else 1.0)
    tune_kernels([kernel], target, trials=4, host=host, output=tmp_path)
    first = list(itertools.dropwhile(lambda point: point == points[0], host.measured))
    assert all(point in first[:2] for point in points[-2:])
    (record,) = read_records(tmp_path / target.board / "conv2d.json")
    assert not record.is_simulated and record.knobs == points[-1] and record.candidates == ()


def test_what_was_measured_stays(task, target, tmp_path):
    kernel = task()
    points = kernel.kind.space(kernel.function, target)
    measured = _record(kernel, points, {}, microseconds=9.0)
    simulated = _record(kernel, points, {"costs": "simulated"}, microseconds=1.0, candidates=points[1:3])
    for order in ((measured, simulated), (simulated, measured)):
        write_records(tmp_path, target, order)
        assert read_records(tmp_path / target.board / "conv2d.json") == [measured]


def _record(kernel, points, about, microseconds, candidates=()) -> Record:
    return Record(
        Key(kernel.key.kernel, dict(kernel.key.shape), dict(kernel.key.traits), dict(kernel.key.details)),
        points[1],
        points[0],
        microseconds,
        10.0,
        0.0,
        3,
        about,
        tuple(candidates),
    )
