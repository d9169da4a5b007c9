"""A loop that counts bits along the depth, as assembly inside a function of LLVM.

LLVM orders instructions anew for every core, and for one that issues in order it begins so many that it runs out of
registers.  Inside of inline assembly it leaves them as they are.  The function is inlined where it is called, so that
the sums, which it adds to through pointers, stay in the registers that the assembly asks for.

The body (:mod:`tvmq.kernels.pipelining`) is entered behind the instructions that end an earlier round:

        pointers, counters, sums of zero
        what the first instructions of the body begin
        b    2f
    1:  the first instructions of the body, which end the round before
    2:  the others
        pointers, counters
        b.ne 1b
        what the last round has left

How instructions are written, and what points where, is in :mod:`tvmq.kernels.aarch64_assembly` and
:mod:`tvmq.kernels.armv7_assembly`.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from tvmq.kernels.pipelining import Instruction, InstructionSet, Ring, ring

__all__ = ["LANES", "VECTOR", "WALK_ATTRIBUTE", "Loop", "Reduction", "Walk", "assembly", "llvm_module"]

VECTOR = 16
"""Bytes of a vector."""
LANES = 8
"""Output channels of a vector of sums."""
WALK_ATTRIBUTE = "tvmq.walk"
"""What says around the call of a loop how it goes through memory: the text of a :class:`Walk`."""


@dataclass(frozen=True)
class Loop:
    """A loop around all pixels of a tile.

    Attributes
    ----------
    count : int
    pixel, weight : int
        Bytes from one round to the next, in the image and in the weights.
    """

    count: int
    pixel: int
    weight: int


@dataclass(frozen=True)
class Walk:
    """How a loop goes through memory.

    Attributes
    ----------
    pixels : tuple of int
        Where each begins in the image, in bytes.
    pixel_bytes, weight_bytes : int
        What the body reads of each pixel, and of the weights.
    loops : tuple of Loop
        The innermost one first.
    """

    pixels: tuple[int, ...]
    pixel_bytes: int
    weight_bytes: int
    loops: tuple[Loop, ...]

    def to_json(self) -> str:
        """The walk as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Walk:
        """The walk of a text."""
        values = json.loads(text)
        return cls(**{**values, "loops": tuple(Loop(**loop) for loop in values["loops"])})


@dataclass(frozen=True)
class Reduction(ABC):
    """The sums of some pixels and eight output channels.

    Attributes
    ----------
    combine : {"xor", "and"}
        How bits meet.
    step : int
        Bytes of a step.
    pixels : tuple of int
        Where each begins in the image, in bytes.
    steps : int
        In the body of the innermost loop.
    loops : tuple of Loop
        The innermost one, over bodies, first.
    """

    combine: str
    step: int
    pixels: tuple[int, ...]
    steps: int
    loops: tuple[Loop, ...]

    instruction_set: ClassVar[InstructionSet]
    counters: ClassVar[tuple[str, ...]]
    """Registers for the rounds of the loops."""
    back: ClassVar[str]
    """The branch to another round."""

    def __post_init__(self) -> None:
        """Check that there are enough registers."""
        if not self.loops or len(self.loops) > len(self.counters):
            raise ValueError(f"a reduction has 1 to {len(self.counters)} loops, not {len(self.loops)}")
        if self._ring is None:
            raise ValueError(
                f"too few registers for {len(self.pixels)} pixels and {self.steps} steps of {self.step} bytes"
            )

    @property
    def vectors(self) -> int:
        """Of a step."""
        return self.step * LANES // VECTOR

    @property
    def walk(self) -> Walk:
        """Through memory; the bytes of a body lie next to each other."""
        innermost, *_ = self.loops
        return Walk(self.pixels, innermost.pixel, innermost.weight, self.loops)

    @property
    def body(self) -> Ring:
        """The instructions of the innermost loop."""
        assert self._ring is not None
        return self._ring

    @property
    def _ring(self) -> Ring | None:
        once = all(loop.count == 1 for loop in self.loops)
        return ring(self.instruction_set, self.vectors, len(self.pixels), self.steps, once)

    @property
    @abstractmethod
    def results(self) -> list[str]:
        """The vector register of every pixel's sums."""

    @property
    @abstractmethod
    def lost(self) -> list[str]:
        """All other registers that are written, but the first pointers and the counters."""

    @property
    @abstractmethod
    def pixel_pointers(self) -> tuple[str, ...]:
        """Registers that point to pixels; the first one to the first pixel."""

    @property
    @abstractmethod
    def weight_pointers(self) -> tuple[str, ...]:
        """Registers that point to weights; the first one to the first weights."""

    @property
    @abstractmethod
    def moved(self) -> tuple[int, int]:
        """By how many bytes the loads of the body move pointers to pixels, and to weights."""

    @abstractmethod
    def start(self) -> Iterator[str]:
        """All pointers, and sums of zero."""

    @abstractmethod
    def text(self, instruction: Instruction) -> Iterator[str]:
        """An instruction of the body; a load may take another one."""

    @abstractmethod
    def added(self, result: str, pointer: str, number: int) -> Iterator[str]:
        """A pointer and some bytes."""

    @abstractmethod
    def end(self) -> Iterator[str]:
        """From what the body has summed to the results."""


def llvm_module(name: str, reduction: Reduction) -> str:
    """The function as a module of LLVM.

    Parameters
    ----------
    name : str
        Of the function.
    reduction : Reduction
        What it does.

    Returns
    -------
    text : str
        A function of pointers to the first pixel, to the weights, and to eight sums of 16 bits for every pixel.
    """
    sums = range(len(reduction.pixels))
    vector, pointers = "<8 x i16>", (reduction.pixel_pointers[0], reduction.weight_pointers[0])
    tied = (str(len(sums) + place) for place in range(len(pointers)))
    # Without "memory", instructions that store what it reads could come after it.
    lost = [*reduction.lost, *reduction.counters[: len(reduction.loops)], "cc", "memory"]
    taken = (f"={{{register}}}" for register in (*reduction.results, *pointers))
    constraints = ",".join([*taken, *tied, *(f"~{{{register}}}" for register in lost)])
    kinds = ", ".join([*([vector] * len(sums)), "ptr", "ptr"])
    parameters = ", ".join(["ptr %pixels", "ptr %weights", *(f"ptr %sums{place}" for place in sums)])
    text = "\\0A".join(assembly(reduction))
    lines = [
        f"define linkonce_odr void @{name}({parameters}) alwaysinline nounwind {{",
        f'  %all = call {{ {kinds} }} asm "{text}", "{constraints}"(ptr %pixels, ptr %weights) nounwind memory(read)',
        *(f"  %more{place} = extractvalue {{ {kinds} }} %all, {place}" for place in sums),
        *(f"  %old{place} = load {vector}, ptr %sums{place}, align 16" for place in sums),
        *(f"  %new{place} = add {vector} %old{place}, %more{place}" for place in sums),
        *(f"  store {vector} %new{place}, ptr %sums{place}, align 16" for place in sums),
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def assembly(reduction: Reduction) -> list[str]:
    """All instructions, from the first load to the last sum."""
    instructions = reduction.body.instructions
    shared = max((place + 1 for place, each in enumerate(instructions) if each.is_left), default=0)
    begun = _texts(reduction, (each for each in instructions[:shared] if not each.is_left))
    first, others = _texts(reduction, instructions[:shared]), _texts(reduction, instructions[shared:])
    left = _texts(reduction, (each for each in instructions[:shared] if each.is_left))
    start, end = [*reduction.start(), *_counters(reduction)], [*reduction.end()]
    if all(loop.count == 1 for loop in reduction.loops):
        return [*start, *others, *end]
    if shared == 0:
        return [*start, "1:", *others, *_next(reduction), *end]
    return [*start, *begun, "b 2f", "1:", *first, "2:", *others, *_next(reduction), *left, *end]


def _texts(reduction: Reduction, instructions: Iterable[Instruction]) -> list[str]:
    return [line for each in instructions for line in reduction.text(each)]


def _counters(reduction: Reduction) -> list[str]:
    counters = zip(reduction.counters, reduction.loops, strict=False)
    return [f"mov {counter}, #{loop.count}" for counter, loop in counters if loop.count > 1]


def _next(reduction: Reduction) -> Iterator[str]:
    """To the next round: a loop moves the pointers on from where the loop in it has left them, and counts."""
    done = reduction.moved
    ended: list[str] = []
    for counter, loop in zip(reduction.counters, reduction.loops, strict=False):
        if loop.count == 1:
            continue
        for pointer in reduction.pixel_pointers:
            yield from reduction.added(pointer, pointer, loop.pixel - done[0])
        for pointer in reduction.weight_pointers:
            yield from reduction.added(pointer, pointer, loop.weight - done[1])
        yield from ended
        yield f"subs {counter}, {counter}, #1"
        yield f"{reduction.back} 1b"
        done = loop.pixel * loop.count, loop.weight * loop.count
        ended.append(f"mov {counter}, #{loop.count}")
