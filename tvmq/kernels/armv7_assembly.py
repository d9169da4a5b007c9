"""How 32-bit ARM writes a loop that counts bits along the depth; see :mod:`tvmq.kernels.arm_assembly`.

Steps are four bytes: a load copies those of a pixel to all of a vector, which meets four channels at a time.  There is
no sum of neighbours in two whole vectors, so that popcounts are added to two sums for every channel, the one of bytes 0
and 1 of every step, the other of bytes 2 and 3; they are added to each other in the end.  A step of four pixels is

    24 operations, 4 loads of pixels, 2 loads of weights for 8 vectors of bits: 3.75 instructions per vector.

Loads of vectors know no constants next to their pointer, but they move it: every pixel has a pointer of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tvmq.kernels.arm_assembly import LANES, Reduction
from tvmq.kernels.pipelining import ARM32, Instruction, InstructionSet

__all__ = ["MOST_PIXELS", "STEP", "Armv7Reduction"]

STEP = 4
"""Bytes of a step."""
_WEIGHTS = "r0"
_PIXELS = ("r1", "r2", "r3", "r4")
"""What an ABI may reserve is left alone: r6, r7, r9, r11."""
MOST_PIXELS = len(_PIXELS)
"""Pixels of a tile."""
_MEET = {"xor": "veor", "and": "vand"}
_CONSTANT_BITS = 8
"""Neighbouring bits of the constant of an instruction, which begin at an even place."""


@dataclass(frozen=True)
class Armv7Reduction(Reduction):
    """Steps of four bytes."""

    instruction_set: ClassVar[InstructionSet] = ARM32
    counters: ClassVar[tuple[str, ...]] = ("r5", "r8", "r10")
    back: ClassVar[str] = "bne"

    def __post_init__(self) -> None:
        """Check that there are enough registers."""
        if self.step != STEP:
            raise ValueError(f"steps along the depth take {STEP} bytes on 32-bit ARM, not {self.step}")
        if len(self.pixels) > MOST_PIXELS:
            raise ValueError(f"at most {MOST_PIXELS} pixels have a pointer, not {len(self.pixels)}")
        super().__post_init__()

    @property
    def _sums(self) -> list[tuple[int, int]]:
        """The registers of four channels, and of the other four, by pixel."""
        sums = self.body.sums
        return list(zip(sums[::2], sums[1::2], strict=True))

    @property
    def results(self) -> list[str]:
        """The first ones of every pixel."""
        return [f"q{register}" for register, _ in self._sums]

    @property
    def lost(self) -> list[str]:
        """All vectors, and the pointers to pixels."""
        vectors = [f"q{register}" for register in range(ARM32.registers)]
        return [*(vector for vector in vectors if vector not in self.results), *self.pixel_pointers[1:]]

    @property
    def pixel_pointers(self) -> tuple[str, ...]:
        """One for every pixel."""
        return _PIXELS[: len(self.pixels)]

    @property
    def weight_pointers(self) -> tuple[str, ...]:
        """One."""
        return (_WEIGHTS,)

    @property
    def moved(self) -> tuple[int, int]:
        """All that is loaded."""
        return STEP * self.steps, STEP * LANES * self.steps

    def start(self) -> Iterator[str]:
        """Pointers to all pixels, and zero."""
        for (pointer, offset), (other, place) in itertools.pairwise(zip(_PIXELS, self.pixels, strict=False)):
            yield from self.added(other, pointer, place - offset)
        for register in self.body.sums:
            yield f"vmov.i32 q{register}, #0"

    def text(self, instruction: Instruction) -> Iterator[str]:
        """One instruction."""
        to = instruction.registers[0]
        vectors = ", ".join(f"q{register}" for register in instruction.registers)
        match instruction.name:
            case "meet":
                yield f"{_MEET[self.combine]} {vectors}"
            case "cnt":
                yield f"vcnt.8 {vectors}"
            case "uadalp":
                yield f"vpadal.u8 {vectors}"
            case "weights":
                yield f"vld1.8 {{ d{2 * to}, d{2 * to + 1} }}, [{_WEIGHTS}]!"
            case _:
                pointer = _PIXELS[instruction.place]
                yield f"vld1.32 {{ d{2 * to}[], d{2 * to + 1}[] }}, [{pointer}]!"

    def added(self, result: str, pointer: str, number: int) -> Iterator[str]:
        """A pointer and some bytes, eight bits of them at a time."""
        name, rest = ("add", number) if number >= 0 else ("sub", -number)
        while rest or result != pointer:
            place = max((rest & -rest).bit_length() - 1, 0) // 2 * 2
            part = rest & (2**_CONSTANT_BITS - 1) << place
            yield f"{name} {result}, {pointer}, #{part}"
            rest, pointer = rest - part, result

    def end(self) -> Iterator[str]:
        """The two sums of every channel."""
        for one, other in self._sums:
            yield f"vpadd.i16 d{2 * one}, d{2 * one}, d{2 * one + 1}"
            yield f"vpadd.i16 d{2 * one + 1}, d{2 * other}, d{2 * other + 1}"
