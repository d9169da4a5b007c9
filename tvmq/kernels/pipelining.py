"""The order of instructions in a loop that counts bits along the depth, and the registers they use.

A unit is one step of one pixel: some vectors of bits meet as many vectors of weights, are counted, and are summed pair
by pair until one vector is left, which is added to the sums of that pixel.  For 8 vectors those are

    8 exclusive ors, 8 popcounts, 4 + 2 + 1 sums of neighbours, 1 addition to the sums: 24 operations.

Where there is no sum of neighbours in two vectors, every vector is added to sums of its own: as many operations.

Each waits for the one before it, so that a core that issues in order would mostly wait.  But units do not depend on
each other until they add to the same sums.  So they start one interval apart, which is as many operations as a unit
has, while a unit itself takes twice as long: every operation gets a time that is at least a latency after what it waits
for, and that no other has modulo the interval.  This is modulo scheduling (B. R. Rau, MICRO-27, 1994) for a core that
issues one vector operation at a time.  A core that issues out of order does not mind.

The body of the loop has a unit for every pixel and for some steps.  It is a ring: what its last units have not finished
when it ends is done in its next round, or after the last one.  Loads are never left over like that, so that none reads
behind the end.

A value is in a register from the instruction that makes it to the last that reads it, which is an arc of the ring.
Two values may share a register if their arcs do not meet.  Those that cross the end of the body get theirs first, the
others in the order in which they start, each the first that is free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

__all__ = ["ARM32", "ARM64", "Instruction", "InstructionSet", "Ring", "ring"]

_PIXEL_LEAD, _WEIGHT_LEAD = 5, 7
"""Operations between a load and what reads it."""
_WEIGHT_SETS = (2, 3)
"""Steps whose weights may be in registers at once, where they are few: the next ones are loaded before the last use."""

_Value = tuple[str, int, int]
"""("count", unit, vector), ("pixel", step, pixel), ("weight", set, vector) or ("sum", pixel, vector)."""


@dataclass(frozen=True)
class InstructionSet:
    """What vector instructions there are.

    Attributes
    ----------
    registers : int
        Vector registers.
    group : int
        Vectors of weights that one instruction loads at most, to neighbouring registers.
    most_weights : int
        Registers for weights of several steps.
    latencies : tuple of int
        Operations from every one to what reads its result: the first for which there are enough registers.
    joins : bool
        Whether there are sums of neighbours in two vectors, and loads of two vectors of a pixel.
    """

    registers: int
    group: int
    most_weights: int
    latencies: tuple[int, ...]
    joins: bool


ARM64 = InstructionSet(registers=32, group=4, most_weights=12, latencies=(6,), joins=True)
"""Every vector operation takes 6 cycles in LLVM's model of the Cortex-A53; elsewhere fewer."""
ARM32 = InstructionSet(registers=16, group=1, most_weights=0, latencies=(5, 4), joins=False)
"""Eight sums leave no registers for longer latencies.  A load of two vectors of weights would come when both are free,
and the next operation would wait for it."""


@dataclass(frozen=True)
class Instruction:
    """An instruction of the body.

    Attributes
    ----------
    time : float
        When it issues, in operations; loads issue between two of them.
    name : str
        "meet", "cnt", "addp" (sums of neighbours in two vectors), "uadalp" (such sums of one, added to the pixel's); or
        the loads "pixel", "pixels" (of two steps) and "weights".
    registers : tuple of int
        What it writes, then what it reads; of weights only the first of neighbours.
    step, place : int
        The step within the body, and the pixel or the first vector of weights.
    is_left : bool
        Whether it ends what the round before has begun.
    """

    time: float
    name: str
    registers: tuple[int, ...]
    step: int
    place: int
    is_left: bool


@dataclass(frozen=True)
class Ring:
    """The body of the loop.

    Attributes
    ----------
    instructions : tuple of Instruction
        In their order.
    sums : tuple of int
        The register of every pixel's sums, or those of its vectors.
    """

    instructions: tuple[Instruction, ...]
    sums: tuple[int, ...]


@dataclass(frozen=True)
class _Tile:
    """What a round computes; the first `paired` pixels load two steps at once."""

    instruction_set: InstructionSet
    latency: int
    vectors: int
    pixels: int
    steps: int
    paired: int

    @property
    def interval(self) -> int:
        """Operations of a unit."""
        return 3 * self.vectors

    @property
    def joined(self) -> int:
        """Vectors that are summed before they are added to sums."""
        return self.vectors if self.instruction_set.joins else 1

    @property
    def group(self) -> int:
        """Vectors of weights that a load takes."""
        return min(self.instruction_set.group, self.vectors)

    @property
    def weight_sets(self) -> int:
        """Steps whose weights have registers of their own."""
        most = self.instruction_set.most_weights // self.vectors
        return next((sets for sets in _WEIGHT_SETS if self.steps % sets == 0 and sets <= most), 1)

    @property
    def sums(self) -> list[_Value]:
        """Of all pixels."""
        firsts = range(0, self.vectors, self.joined)
        return [("sum", pixel, first) for pixel, first in itertools.product(range(self.pixels), firsts)]


@dataclass(frozen=True)
class _Event:
    """An instruction before values have registers; `time` counts from the first unit on."""

    time: float
    name: str
    values: tuple[_Value, ...]
    step: int
    place: int


@cache
def ring(instruction_set: InstructionSet, vectors: int, pixels: int, steps: int, once: bool = False) -> Ring | None:
    """The body of a loop.

    Parameters
    ----------
    instruction_set : InstructionSet
    vectors : {1, 2, 4, 8}
        Of one step.
    pixels, steps : int
        Of the body.
    once : bool
        Whether the body runs once: then nothing is left for another round.

    Returns
    -------
    body : Ring or None
        None if there are too few registers.
    """
    # One load takes two steps of a pixel, but the second waits in a register; the last pixels can do without.
    most = pixels if instruction_set.joins and steps > 1 else 0
    choices = itertools.product(instruction_set.latencies, range(most, -1, -1))
    tiles = (_Tile(instruction_set, latency, vectors, pixels, steps, paired) for latency, paired in choices)
    bodies = (_ring(tile, once) for tile in tiles)
    return next((body for body in bodies if body is not None), None)


def _ring(tile: _Tile, once: bool) -> Ring | None:
    times = _unit(tile)
    events = sorted(_events(tile, times), key=lambda event: event.time)
    start, length = events[0].time, tile.interval * tile.pixels * tile.steps
    if once or length <= max(times.values()) - start:
        length = int(events[-1].time - start) + 1  # too short to begin another round before this one has ended
    registers = _registers(tile, events, length)
    if registers is None:
        return None
    instructions = [
        Instruction(
            (event.time - start) % length,
            event.name,
            tuple(registers[value] for value in event.values),
            event.step,
            event.place,
            event.time - start >= length,
        )
        for event in events
    ]
    instructions.sort(key=lambda each: each.time)
    return Ring(tuple(instructions), tuple(registers[value] for value in tile.sums))


def _unit(tile: _Tile) -> dict[tuple[str, int, int], int]:
    """The time of every operation of a unit, by its name, its first vector and the number of vectors behind it."""
    taken: set[int] = set()
    times: dict[tuple[str, int, int], int] = {}

    def place(name: str, first: int, count: int, earliest: int) -> int:
        time = next(time for time in itertools.count(earliest) if time % tile.interval not in taken)
        taken.add(time % tile.interval)
        times[name, first, count] = time
        return time

    def tree(first: int, count: int) -> int:
        if count == 1:
            # One in three operations, no sooner: what is made early takes registers.
            return place("cnt", first, 1, place("meet", first, 1, 3 * first) + tile.latency)
        half = count // 2
        ready = max(tree(first, half), tree(first + half, half))
        return place("addp", first, count, ready + tile.latency)

    for first in range(0, tile.vectors, tile.joined):
        place("uadalp", first, tile.joined, tree(first, tile.joined) + tile.latency)
    return times


def _events(tile: _Tile, times: dict[tuple[str, int, int], int]) -> Iterator[_Event]:
    """All instructions of one round."""
    sets, lead = tile.weight_sets, _weight_lead(tile, times)
    for step, pixel in itertools.product(range(tile.steps), range(tile.pixels)):
        unit = step * tile.pixels + pixel
        base = tile.interval * unit
        bits: _Value = ("pixel", step, pixel)
        load = base + times["meet", 0, 1] - _PIXEL_LEAD - 0.5
        if pixel >= tile.paired or (step == tile.steps - 1 and step % 2 == 0):
            yield _Event(load, "pixel", (bits,), step, pixel)
        elif step % 2 == 0:
            yield _Event(load, "pixels", (bits, ("pixel", step + 1, pixel)), step, pixel)
        for first in range(0, tile.vectors if pixel == 0 else 0, tile.group):
            time = base + times["meet", first, 1] - lead - 0.5
            yield _Event(time, "weights", (("weight", step % sets, first),), step, first)
        for (name, vector, count), time in times.items():
            value: _Value = ("count", unit, vector)
            values: dict[str, tuple[_Value, ...]] = {
                "meet": (value, bits, ("weight", step % sets, vector)),
                "cnt": (value, value),
                "addp": (value, value, ("count", unit, vector + count // 2)),
                "uadalp": (("sum", pixel, vector), value),
            }
            yield _Event(base + time, name, values[name], step, pixel)


def _weight_lead(tile: _Tile, times: dict[tuple[str, int, int], int]) -> int:
    """Operations from the load of some weights to their first use, if they may overwrite those of an earlier step."""
    uses = times["meet", tile.group - 1, 1] - times["meet", 0, 1]
    return min(_WEIGHT_LEAD, tile.interval * ((tile.weight_sets - 1) * tile.pixels + 1) - uses - 1)


def _registers(tile: _Tile, events: list[_Event], length: int) -> dict[_Value, int] | None:
    """The register of every value, or None if there are too few."""
    most = tile.instruction_set.registers
    kept = [*tile.sums]
    kept += [("weight", each, vector) for each in range(tile.weight_sets) for vector in range(tile.vectors)]
    if len(kept) > most:
        return None
    registers: dict[_Value, int] = {value: place for place, value in enumerate(kept)}
    arcs: dict[_Value, tuple[float, float]] = {}
    for event in events:
        for value in event.values:
            if value not in registers:
                arcs[value] = (arcs[value][0] if value in arcs else event.time, event.time)
    start = events[0].time
    order = sorted(arcs, key=lambda value: (arcs[value][1] - start <= length, arcs[value][0]))
    held: list[list[tuple[float, float]]] = [[] for _ in range(most - len(kept))]
    for value in order:
        place = next((place for place, others in enumerate(held) if _is_free(arcs[value], others, length)), None)
        if place is None:
            return None
        held[place].append(arcs[value])
        registers[value] = len(kept) + place
    return registers


def _is_free(arc: tuple[float, float], others: list[tuple[float, float]], length: int) -> bool:
    """Whether an arc of a ring meets none of others."""
    return all(arc[1] <= start + turn or end + turn <= arc[0] for start, end in others for turn in (-length, 0, length))
