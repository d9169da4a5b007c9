"""How 64-bit ARM writes a loop that counts bits along the depth; see :mod:`tvmq.kernels.arm_assembly`.

All pixels are at constants from one pointer.  A core that issues out of order takes the weights from a pointer that
every load moves.  One that issues in order would wait for such a pointer; there every load of the body has its own, and
all of them move at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tvmq.kernels.arm_assembly import LANES, VECTOR, Reduction
from tvmq.kernels.pipelining import ARM64, Instruction, InstructionSet

__all__ = ["Aarch64Reduction", "pointer_sum"]

_PAIR_REACH = 1008
"""Bytes behind a pointer that a load of two registers reaches."""
_REACH = 65520
"""The same of one register."""
_PIXELS = "x0"
_WEIGHTS = tuple(f"x{number}" for number in range(1, 13))
_FAR = "x16"
"""A pointer to pixels that are out of reach."""
_MEET = {"xor": "eor", "and": "and"}
_PART = 4096
"""Bytes that one addition of a constant cannot add."""


def pointer_sum(result: str, pointer: str, number: int) -> Iterator[str]:
    """Instructions that put a pointer and some bytes in a register, 12 bits of them at a time.

    Parameters
    ----------
    result, pointer : str
        Registers, which may be the same one.
    number : int
        Of bytes; may be negative.

    Yields
    ------
    str

    Raises
    ------
    ValueError
        If two additions are not enough.
    """
    name, rest = ("add", number) if number >= 0 else ("sub", -number)
    low, high = rest % _PART, rest // _PART
    if high >= _PART:
        raise ValueError(f"{number} bytes from one step to another are too many")
    if high:
        yield f"{name} {result}, {pointer}, #{high}, lsl #12"
        pointer = result
    if low or result != pointer:
        yield f"{name} {result}, {pointer}, #{low}"


@dataclass(frozen=True)
class Aarch64Reduction(Reduction):
    """Steps of 2, 4, 8 or 16 bytes; a step of a pixel is a vector of 16.

    Attributes
    ----------
    in_order : bool
        Whether the core issues in order.
    """

    in_order: bool

    instruction_set: ClassVar[InstructionSet] = ARM64
    counters: ClassVar[tuple[str, ...]] = ("x13", "x14", "x15")
    back: ClassVar[str] = "b.ne"

    @property
    def loads(self) -> int:
        """Loads of weights in the body."""
        return sum(each.name == "weights" for each in self.body.instructions)

    @property
    def results(self) -> list[str]:
        """The sums of the body."""
        return [f"v{register}" for register in self.body.sums]

    @property
    def lost(self) -> list[str]:
        """All vectors, and pointers."""
        others = [register for register in range(ARM64.registers) if register not in self.body.sums]
        return [*(f"v{register}" for register in others), *self.weight_pointers[1:], _FAR]

    @property
    def pixel_pointers(self) -> tuple[str, ...]:
        """One."""
        return (_PIXELS,)

    @property
    def weight_pointers(self) -> tuple[str, ...]:
        """One, or as many as there are loads."""
        spread = self.in_order and self.loads <= len(_WEIGHTS)
        return _WEIGHTS[: self.loads] if spread else _WEIGHTS[:1]

    @property
    def moved(self) -> tuple[int, int]:
        """Weights, if there is one pointer."""
        return 0, self.step * LANES * self.steps if len(self.weight_pointers) == 1 else 0

    def start(self) -> Iterator[str]:
        """Pointers to all weights of the body, and zero."""
        count = VECTOR * min(ARM64.group, self.vectors)
        for place, pointer in enumerate(self.weight_pointers[1:], 1):
            yield from self.added(pointer, _WEIGHTS[0], count * place)
        for register in self.body.sums:
            yield f"movi v{register}.2d, #0"

    def text(self, instruction: Instruction) -> Iterator[str]:
        """An instruction; a load may take another one."""
        registers = instruction.registers
        vectors = [f"v{register}.16b" for register in registers]
        match instruction.name:
            case "meet":
                yield f"{_MEET[self.combine]} {', '.join(vectors)}"
            case "cnt":
                yield f"cnt {', '.join(vectors)}"
            case "addp":
                yield f"addp {', '.join(vectors)}"
            case "uadalp":
                yield f"uadalp v{registers[0]}.8h, {vectors[1]}"
            case "weights":
                yield self._weights(instruction)
            case _:
                offset = self.pixels[instruction.place] + VECTOR * instruction.step
                yield from self._pixels(registers, offset)

    def _weights(self, load: Instruction) -> str:
        """Some neighbouring registers."""
        count = min(ARM64.group, self.vectors)
        names = ", ".join(f"v{load.registers[0] + place}.16b" for place in range(count))
        if len(self.weight_pointers) > 1:
            pointer = self.weight_pointers[(load.step * self.vectors + load.place) // count]
            return f"ld1 {{ {names} }}, [{pointer}]"
        return f"ld1 {{ {names} }}, [{_WEIGHTS[0]}], #{VECTOR * count}"

    def _pixels(self, registers: tuple[int, ...], offset: int) -> Iterator[str]:
        """One step of a pixel, or two."""
        if len(registers) == 2 and offset > _PAIR_REACH:
            for place, register in enumerate(registers):
                yield from self._pixels((register,), offset + VECTOR * place)
            return
        pointer = _PIXELS
        if offset > _REACH:
            yield from self.added(_FAR, _PIXELS, offset)
            pointer, offset = _FAR, 0
        names = ", ".join(f"q{register}" for register in registers)
        yield f"{'ldp' if len(registers) == 2 else 'ldr'} {names}, [{pointer}, #{offset}]"

    def added(self, result: str, pointer: str, number: int) -> Iterator[str]:
        """A pointer and some bytes."""
        return pointer_sum(result, pointer, number)

    def end(self) -> Iterator[str]:
        """The sums are those of channels already."""
        yield from ()
