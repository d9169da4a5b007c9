"""A loop that counts bits along the depth, as assembly of 64-bit ARM inside a function of LLVM.

LLVM orders instructions anew for every core, and for one that issues in order it begins so many that it runs out of
registers.  Inside of inline assembly it leaves them as they are.  The function is inlined where it is called, so that
the sums, which it gets through pointers, stay in the registers that the assembly asks for.

The body (:mod:`tvmq.kernels.pipelining`) is entered behind the instructions that end an earlier round:

        what the first instructions of the body begin
        b    2f
    1:  the first instructions of the body, which end the round before
    2:  the others
        pointers, counters
        b.ne 1b
        what the last round has left

A core that issues out of order takes the weights from a pointer that every load moves.  One that issues in order would
wait for such a pointer; there every load of the body has its own, and all of them move at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvmq.kernels.pipelining import GROUP, REGISTERS, Instruction, Ring, ring

__all__ = ["Loop", "Reduction", "llvm_module"]

VECTOR = 16
"""Bytes of a vector."""
LANES = 8
"""Output channels of a vector of sums."""
_PAIR_REACH = 1008
"""Bytes behind a pointer that a load of two registers reaches."""
_REACH = 65520
"""The same of one register."""
_POINTERS = tuple(f"x{number}" for number in range(1, 13))
"""Of weights; x0 is the one of pixels."""
_COUNTERS = ("x13", "x14", "x15")
_FAR = "x16"
"""A pointer to pixels that are out of reach."""
_MEET = {"xor": "eor", "and": "and"}
_PART = 4096
"""Bytes that one addition of a constant cannot add."""


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
class Reduction:
    """The sums of some pixels and eight output channels.

    Attributes
    ----------
    combine : {"xor", "and"}
        How bits meet.
    step : {2, 4, 8, 16}
        Bytes of a step.
    pixels : tuple of int
        Where each begins in the image, in bytes; a step of it is a vector of 16 bytes.
    steps : int
        In the body of the innermost loop.
    loops : tuple of Loop
        The innermost one, over bodies, first.
    in_order : bool
        Whether the core issues in order.
    """

    combine: str
    step: int
    pixels: tuple[int, ...]
    steps: int
    loops: tuple[Loop, ...]
    in_order: bool

    def __post_init__(self) -> None:
        """Check that there are enough registers."""
        if not self.loops or len(self.loops) > len(_COUNTERS):
            raise ValueError(f"a reduction has 1 to {len(_COUNTERS)} loops, not {len(self.loops)}")
        if self._ring is None:
            raise ValueError(
                f"too few registers for {len(self.pixels)} pixels and {self.steps} steps of {self.step} bytes"
            )

    @property
    def vectors(self) -> int:
        """Of a step."""
        return self.step * LANES // VECTOR

    @property
    def body(self) -> Ring:
        """The instructions of the innermost loop."""
        assert self._ring is not None
        return self._ring

    @property
    def _ring(self) -> Ring | None:
        once = all(loop.count == 1 for loop in self.loops)
        return ring(self.vectors, len(self.pixels), self.steps, once)

    @property
    def loads(self) -> int:
        """Loads of weights in the body."""
        return sum(each.name == "weights" for each in self.body.instructions)

    @property
    def pointers(self) -> tuple[str, ...]:
        """Registers that point to weights."""
        spread = self.in_order and self.loads <= len(_POINTERS)
        return _POINTERS[: self.loads] if spread else _POINTERS[:1]


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
    vector, results = "<8 x i16>", [f"={{v{register}}}" for register in reduction.body.sums]
    tied = [str(place) for place in range(len(sums) + 2)]
    taken = {*reduction.body.sums}
    lost = [f"v{register}" for register in range(REGISTERS) if register not in taken]
    # Without "memory", instructions that store what it reads could come after it.
    lost += [*reduction.pointers[1:], *_COUNTERS[: len(reduction.loops)], _FAR, "cc", "memory"]
    constraints = ",".join([*results, "={x0}", "={x1}", *tied, *(f"~{{{register}}}" for register in lost)])
    kinds = ", ".join([*([vector] * len(sums)), "ptr", "ptr"])
    values = ", ".join([*(f"{vector} %old{place}" for place in sums), "ptr %pixels", "ptr %weights"])
    parameters = ", ".join(["ptr %pixels", "ptr %weights", *(f"ptr %sums{place}" for place in sums)])
    text = "\\0A".join(assembly(reduction))
    lines = [
        f"define linkonce_odr void @{name}({parameters}) alwaysinline nounwind {{",
        *(f"  %old{place} = load {vector}, ptr %sums{place}, align 16" for place in sums),
        f'  %all = call {{ {kinds} }} asm "{text}", "{constraints}"({values}) nounwind memory(read)',
        *(f"  %new{place} = extractvalue {{ {kinds} }} %all, {place}" for place in sums),
        *(f"  store {vector} %new{place}, ptr %sums{place}, align 16" for place in sums),
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def assembly(reduction: Reduction) -> list[str]:
    """All instructions, from the first load to the last sum."""
    instructions = reduction.body.instructions
    shared = max((place + 1 for place, each in enumerate(instructions) if each.is_left), default=0)
    begun = _texts(reduction, [each for each in instructions[:shared] if not each.is_left])
    first, others = _texts(reduction, instructions[:shared]), _texts(reduction, instructions[shared:])
    left = _texts(reduction, [each for each in instructions[:shared] if each.is_left])
    start = [*_pointers(reduction), *_counters(reduction.loops)]
    if all(loop.count == 1 for loop in reduction.loops):
        return [*start, *others]
    if shared == 0:
        return [*start, "1:", *others, *_next(reduction)]
    return [*start, *begun, "b 2f", "1:", *first, "2:", *others, *_next(reduction), *left]


def _texts(reduction: Reduction, instructions: tuple[Instruction, ...] | list[Instruction]) -> list[str]:
    return [line for each in instructions for line in _text(reduction, each)]


def _text(reduction: Reduction, instruction: Instruction) -> Iterator[str]:
    """An instruction; a load may take another one."""
    registers = instruction.registers
    vectors = [f"v{register}.16b" for register in registers]
    match instruction.name:
        case "meet":
            yield f"{_MEET[reduction.combine]} {', '.join(vectors)}"
        case "cnt":
            yield f"cnt {', '.join(vectors)}"
        case "addp":
            yield f"addp {', '.join(vectors)}"
        case "uadalp":
            yield f"uadalp v{registers[0]}.8h, {vectors[1]}"
        case "weights":
            yield _weights(reduction, instruction)
        case _:
            offset = reduction.pixels[instruction.place] + VECTOR * instruction.step
            yield from _pixels(registers, offset)


def _weights(reduction: Reduction, load: Instruction) -> str:
    """Some neighbouring registers."""
    count = min(GROUP, reduction.vectors)
    names = ", ".join(f"v{load.registers[0] + place}.16b" for place in range(count))
    if len(reduction.pointers) > 1:
        pointer = reduction.pointers[(load.step * reduction.vectors + load.place) // count]
        return f"ld1 {{ {names} }}, [{pointer}]"
    return f"ld1 {{ {names} }}, [x1], #{VECTOR * count}"


def _pixels(registers: tuple[int, ...], offset: int) -> Iterator[str]:
    """One step of a pixel, or two."""
    if len(registers) == 2 and offset > _PAIR_REACH:
        for place, register in enumerate(registers):
            yield from _pixels((register,), offset + VECTOR * place)
        return
    pointer = "x0"
    if offset > _REACH:
        yield from _added(_FAR, "x0", offset)
        pointer, offset = _FAR, 0
    names = ", ".join(f"q{register}" for register in registers)
    yield f"{'ldp' if len(registers) == 2 else 'ldr'} {names}, [{pointer}, #{offset}]"


def _pointers(reduction: Reduction) -> Iterator[str]:
    """Pointers to all weights of the body."""
    count = VECTOR * min(GROUP, reduction.vectors)
    for place, pointer in enumerate(reduction.pointers[1:], 1):
        yield from _added(pointer, "x1", count * place)


def _counters(loops: tuple[Loop, ...]) -> list[str]:
    return [f"mov {_COUNTERS[level]}, #{loop.count}" for level, loop in enumerate(loops) if loop.count > 1]


def _next(reduction: Reduction) -> Iterator[str]:
    """To the next round: a loop moves the pointers on from where the loop in it has left them, and counts."""
    moved = reduction.step * LANES * reduction.steps if len(reduction.pointers) == 1 else 0  # by loads
    done = (0, moved)
    ended: list[str] = []
    for counter, loop in zip(_COUNTERS, reduction.loops, strict=False):
        if loop.count == 1:
            continue
        yield from _added("x0", "x0", loop.pixel - done[0])
        for pointer in reduction.pointers:
            yield from _added(pointer, pointer, loop.weight - done[1])
        yield from ended
        yield f"subs {counter}, {counter}, #1"
        yield "b.ne 1b"
        done = loop.pixel * loop.count, loop.weight * loop.count
        ended.append(f"mov {counter}, #{loop.count}")


def _added(result: str, pointer: str, number: int) -> Iterator[str]:
    """A pointer and some bytes."""
    name, rest = ("add", number) if number >= 0 else ("sub", -number)
    low, high = rest % _PART, rest // _PART
    if high >= _PART:
        raise ValueError(f"{number} bytes from one step to another of a reduction are too many")
    if high:
        yield f"{name} {result}, {pointer}, #{high}, lsl #12"
        pointer = result
    if low:
        yield f"{name} {result}, {pointer}, #{low}"
