"""Costs of kernels on a core that is not at hand.

A cost is made of executed instructions and of lines of memory that move::

    computing = reference · mean(cycles / reference cycles, instructions / theirs, vector instructions / theirs)
    memory    = a · lines missing the first-level cache + b · lines missing the second-level one
    cost      = √(computing² + memory²)    out of order: whichever is longer hides most of the other
                computing + memory         in order

Cycles are llvm-mca's, by basic block, times how often each block runs.  The reference is the analytic schedule of the
same kernel, by which the three measures of computing are brought to one scale.  Each alone can be fooled: a schedule
with the fewest instructions may be the one that reads all weights again for every pixel, and llvm-mca takes a value
that is spilled to the stack and read back for free.  So schedules that spill are rejected, as their times depend on
where the stack happens to lie.

Costs rank schedules.  They are no times, and differences of a few percent mean nothing.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.runner import PyRunner, RunnerResult

from tvmq.errors import TargetError, ToolchainError
from tvmq.runtime.emulator import emulator_command
from tvmq.runtime.toolchain import find_compiler
from tvmq.target import Target
from tvmq.tuning.accesses import touched_lines
from tvmq.tuning.assembly import dialect_of
from tvmq.tuning.caches import Misses, simulate
from tvmq.tuning.executed import Executed, execute, runs_here
from tvmq.tuning.hosts import Finalist, Host
from tvmq.tuning.in_process import Alive, Builder, Done, reason_of
from tvmq.tuning.llvm_mca import find_llvm_mca, steady_cycles

__all__ = ["Candidate", "KernelCosts", "SimulatedHost", "chosen", "kernel_costs"]

MOST_STACK = 0.1
"""Share of executed instructions that may reach the stack."""
SMALLEST_GAIN = 0.05
"""Differences of costs below this say nothing about times."""
LEAST_SHARE = 5e-4
"""Blocks with a smaller share of all instructions count like the average."""
HERTZ = 1e9
"""Cycles are given as seconds of this clock."""


@dataclass(frozen=True)
class KernelCosts:
    """What one run of a kernel costs.

    Attributes
    ----------
    cycles : float
        By llvm-mca, all in registers and the first-level cache.
    instructions, vector_instructions, vector_loads, stack_instructions : int
        Executed.
    misses : Misses
        Lines that move.
    """

    cycles: float
    instructions: int
    vector_instructions: int
    vector_loads: int
    stack_instructions: int
    misses: Misses

    @property
    def spills(self) -> bool:
        """Whether too many instructions reach the stack."""
        return self.stack_instructions > MOST_STACK * self.instructions

    def cost(self, reference: KernelCosts, target: Target) -> float:
        """Cycles, all in all.

        Parameters
        ----------
        reference : KernelCosts
            Of a kernel with the same result.
        target : Target

        Returns
        -------
        float
        """
        measures = ("cycles", "instructions", "vector_instructions")
        ratios = [getattr(self, name) / max(1, getattr(reference, name)) for name in measures]
        computing = reference.cycles * sum(ratios) / len(ratios)
        memory = (
            target.caches["level1_miss_cycles"] * self.misses.level1
            + target.caches["level2_miss_cycles"] * self.misses.level2
        )
        return computing + memory if target.pipeline == "in-order" else math.hypot(computing, memory)


@dataclass(frozen=True)
class Candidate:
    """A schedule and what it costs.

    Attributes
    ----------
    knobs : mapping of str to int
        The point of the space of schedules.
    cost : float
        As :meth:`KernelCosts.cost` has it.
    costs : KernelCosts
    """

    knobs: Mapping[str, int]
    cost: float
    costs: KernelCosts


def chosen(candidates: Sequence[Candidate]) -> Candidate:
    """The best of some schedules, as far as costs can tell.

    Differences of a few percent say nothing: among those that cost nearly as little as the cheapest one, it is the one
    that moves the fewest lines, reads the fewest vectors, and has the smallest tile.

    Parameters
    ----------
    candidates : sequence of Candidate
        At least one.

    Returns
    -------
    Candidate
    """
    least = min(candidate.cost for candidate in candidates)

    def prior(candidate: Candidate) -> tuple[int, ...]:
        knobs = candidate.knobs
        tile = math.prod(value for name, value in knobs.items() if name != "row_tile")
        return candidate.costs.misses.level1, candidate.costs.vector_loads, tile

    near = [candidate for candidate in candidates if candidate.cost * (1 - SMALLEST_GAIN) <= least]
    return min(near, key=prior)


def kernel_costs(function: tirx.PrimFunc, target: Target) -> KernelCosts:
    """Count and simulate a kernel.

    Parameters
    ----------
    function : tirx.PrimFunc
        Scheduled.
    target : Target
        With a model of llvm-mca and its caches.

    Returns
    -------
    KernelCosts

    Raises
    ------
    TargetError, ToolchainError
        See :class:`SimulatedHost`; or if the kernel cannot be built or run.
    """
    executed = execute(function, target)
    lines = touched_lines(function, int(target.caches["line_bytes"]))
    return KernelCosts(
        _cycles(executed, target),
        executed.instructions,
        executed.vector_instructions,
        executed.vector_loads,
        executed.stack_instructions,
        simulate(lines, target.caches),
    )


def _cycles(executed: Executed, target: Target) -> float:
    """Of all blocks; those that hardly run count like the average."""
    least = LEAST_SHARE * executed.instructions
    hot = [
        (block, count)
        for block, count in zip(executed.blocks, executed.counts, strict=True)
        if count * len(block) >= least
    ]
    each = steady_cycles([block.lines for block, _ in hot], target.triple, str(target.mca_core))
    known = [(block, count, value) for (block, count), value in zip(hot, each, strict=True) if value is not None]
    covered = sum(count * len(block) for block, count, _ in known)
    if not covered:
        raise ToolchainError(f"llvm-mca knows nothing of what the kernel runs on {target.mca_core}")
    return sum(count * value for _, count, value in known) * executed.instructions / covered


class SimulatedHost(Host):
    """A model of the core.

    Parameters
    ----------
    target : Target

    Raises
    ------
    TargetError
        If the target has no model, or its assembly is not known here.
    ToolchainError
        If llvm-mca, the cross compiler or the emulator is not installed.
    """

    name = "simulate"
    smallest_gain = SMALLEST_GAIN
    simulates = True

    def __init__(self, target: Target) -> None:
        dialect_of(target.arch)
        if target.mca_core is None or not target.caches:
            raise TargetError(
                f"target '{target.name}' cannot be simulated; give mca_core and caches in its file, or measure on "
                "a board"
            )
        find_llvm_mca()
        find_compiler(target)
        if not runs_here(target):
            emulator_command(target)
        self.target = target
        self._known: dict[str, KernelCosts] = {}

    @property
    def description(self) -> str:
        """That there is no machine, and what the numbers are."""
        return "none; cycles as if at 1 GHz, of llvm-mca and simulated caches"

    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """See :class:`tvmq.tuning.hosts.Host`; what is "built" are the two costs."""

        @functools.cache
        def reference() -> KernelCosts:
            return self._costs(default)

        def build(candidate: tirx.PrimFunc) -> str:
            costs = self._costs(candidate)
            if costs.spills and costs != reference():
                share = costs.stack_instructions / costs.instructions
                raise ToolchainError(f"{share:.0%} of the instructions reach the stack")
            pair = [item.cost(reference(), self.target) for item in (costs, reference())]
            return json.dumps(pair)

        return Builder(build, alive)

    def runner(self, rounds: int, alive: Alive) -> Any:
        """See :class:`tvmq.tuning.hosts.Host`; costs do not scatter."""
        return _Runner(rounds, alive)

    def best(self, found: Sequence[Finalist]) -> Finalist:
        """See :class:`tvmq.tuning.hosts.Host` and :func:`chosen`."""
        candidates = [Candidate(item.knobs, item.times.ratio, self._costs(item.function)) for item in found]
        return found[candidates.index(chosen(candidates))]

    def _costs(self, function: tirx.PrimFunc) -> KernelCosts:
        """Costs of a kernel, found once."""
        text = function.without_attr("global_symbol").script()
        if text not in self._known:
            self._known[text] = kernel_costs(function, self.target)
        return self._known[text]


@derived_object
class _Runner(PyRunner):
    """Hands out costs as if they were times."""

    def __init__(self, rounds: int, alive: Alive) -> None:
        super().__init__()
        self.rounds, self.alive = rounds, alive

    def run(self, runner_inputs: Any) -> Any:
        return [Done(self.one(item)) for item in runner_inputs]

    def one(self, item: Any) -> Any:
        if not self.alive():
            return RunnerResult(None, "interrupted")
        try:
            costs = [cost / HERTZ for cost in json.loads(str(item.artifact_path))]
        except ValueError as error:
            return RunnerResult(None, reason_of(error))
        return RunnerResult(costs * self.rounds, None)
