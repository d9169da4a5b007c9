"""A loop of lookups in tables of 32 entries, as assembly of 64-bit ARM inside a function of LLVM.

LLVM adds what successive lookups give before it adds that to a sum of bytes, and then has too few registers.  Inside of
inline assembly it leaves instructions as they are; the function is inlined where it is called, so that the sums, which
it gets through pointers, stay in the registers that the assembly asks for.

A register tile has for each of its pixels and vectors of 16 output channels one register of sums of bytes and two of
sums of 16 bits.  Indices that follow each other in memory, with their tables, are summed in chunks of as many as a byte
can hold, all of one size but for the last one::

    mov  counters
    2:  1:  for every index of a chunk
                ldr  the indices of every vector
                for every pixel
                    ldp  its table
                    tbl  every vector; the first of the chunk are the sums of bytes, the others wait in registers
                    add  them to the sums of bytes
            uaddw, uaddw2 the sums of bytes to those of 16 bits
            pointers, counter
            b.ne 1b
        the last chunk, if it is shorter
        pointers to the next row of the window, counter
        b.ne 2b
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvmq.kernels.aarch64_assembly import pointer_sum

__all__ = ["MOST_SUMS", "Lookups", "Run", "lookup_module"]

MOST_SUMS = 8
"""Pixels times vectors of a register tile: three registers each, beside a table, indices and what is looked up."""
_REGISTERS = 32
_VECTOR, _TABLE = 16, 32
"""Bytes."""
_MOST_CHUNK = 31
"""Indices of a chunk whose tables a load reaches from one pointer."""
_FEWEST_FOUND = 2
"""Registers of what is looked up."""
_COUNTERS = ("x12", "x13", "x14")


@dataclass(frozen=True)
class Run:
    """A loop around what follows each other in memory.

    Attributes
    ----------
    count : int
    table, index : int
        Bytes from one round to the next, in the tables and in the indices.
    """

    count: int
    table: int
    index: int


@dataclass(frozen=True)
class Lookups:
    """The sums of some pixels and vectors of 16 output channels.

    Attributes
    ----------
    pixels : tuple of int
        Where the tables of each begin, in bytes.
    vectors : tuple of int
        Where the indices of each begin.
    indices : int
        That follow each other in memory.
    most : int
        Of them whose sums a byte can hold.
    runs : tuple of Run
        Around them, the innermost first.
    """

    pixels: tuple[int, ...]
    vectors: tuple[int, ...]
    indices: int
    most: int
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        """Check that there are enough registers."""
        if not 1 <= self.sums <= MOST_SUMS:
            raise ValueError(f"lookups have 1 to {MOST_SUMS} sums, not {self.sums}")
        if len(self.runs) >= len(_COUNTERS):
            raise ValueError(f"lookups have at most {len(_COUNTERS) - 1} loops around chunks, not {len(self.runs)}")

    @property
    def sums(self) -> int:
        """Vectors of sums."""
        return len(self.pixels) * len(self.vectors)

    @property
    def chunks(self) -> tuple[int, int]:
        """How many chunks there are, and the indices of all but the last one."""
        count = -(-self.indices // min(self.most, _MOST_CHUNK))
        return count, -(-self.indices // count)

    @property
    def tables(self) -> tuple[str, ...]:
        """Pointers to the tables of all pixels."""
        return tuple(f"x{place}" for place in range(len(self.pixels)))

    @property
    def weights(self) -> tuple[str, ...]:
        """Pointers to the indices of all vectors."""
        return tuple(f"x{len(self.pixels) + place}" for place in range(len(self.vectors)))


def lookup_module(name: str, lookups: Lookups) -> str:
    """The function as a module of LLVM.

    Parameters
    ----------
    name : str
        Of the function.
    lookups : Lookups
        What it does.

    Returns
    -------
    text : str
        A function of pointers to the first table, to the first index, and to 16 sums of 16 bits for every pixel and
        vector, those of a pixel after each other.
    """
    halves = range(2 * lookups.sums)
    kind, own = "<8 x i16>", (lookups.tables[0], lookups.weights[0])
    results = ",".join([*(f"={{v{half}}}" for half in halves), *(f"={{{pointer}}}" for pointer in own)])
    tied = ",".join(str(place) for place in range(len(halves) + 2))
    lost = [f"v{register}" for register in range(len(halves), _REGISTERS)]
    # Without "memory", instructions that store what it reads could come after it.
    lost += [*lookups.tables[1:], *lookups.weights[1:], *_COUNTERS, "cc", "memory"]
    constraints = f"{results},{tied},{','.join(f'~{{{register}}}' for register in lost)}"
    kinds = ", ".join([*([kind] * len(halves)), "ptr", "ptr"])
    values = ", ".join([*(f"{kind} %old{half}" for half in halves), "ptr %tables", "ptr %weights"])
    parameters = ", ".join(["ptr %tables", "ptr %weights", *(f"ptr %sums{place}" for place in range(lookups.sums))])
    places = [(f"%half{half}", f"%sums{half // 2}", _VECTOR * (half % 2)) for half in halves]
    text = "\\0A".join(assembly(lookups))
    lines = [
        f"define linkonce_odr void @{name}({parameters}) alwaysinline nounwind {{",
        *(f"  {place} = getelementptr i8, ptr {sums}, i64 {offset}" for place, sums, offset in places),
        *(f"  %old{half} = load {kind}, ptr %half{half}, align 16" for half in halves),
        f'  %all = call {{ {kinds} }} asm "{text}", "{constraints}"({values}) nounwind memory(read)',
        *(f"  %new{half} = extractvalue {{ {kinds} }} %all, {half}" for half in halves),
        *(f"  store {kind} %new{half}, ptr %half{half}, align 16" for half in halves),
        "  ret void",
        "}",
    ]
    return "\n".join(lines) + "\n"


def assembly(lookups: Lookups) -> list[str]:
    """All instructions, from the first pointer to the last sum."""
    lines: list[str] = []
    for pointers, offsets in ((lookups.tables, lookups.pixels), (lookups.weights, lookups.vectors)):
        for pointer, offset in zip(pointers[1:], offsets[1:], strict=True):
            lines += pointer_sum(pointer, pointers[0], offset - offsets[0])
    runs = [(counter, run) for counter, run in zip(_COUNTERS[1:], lookups.runs, strict=False) if run.count > 1]
    lines += [f"mov {counter}, #{run.count}" for counter, run in runs]
    # Label 1 is of chunks, 2 of all runs: an outer one begins where an inner one does.
    lines += [*(["2:"] if runs else []), *_chunks(lookups)]
    done = (lookups.indices * _TABLE, lookups.indices * _VECTOR)
    ended: list[str] = []
    for counter, run in runs:
        lines += _moved(lookups, run.table - done[0], run.index - done[1])
        lines += [*ended, f"subs {counter}, {counter}, #1", "b.ne 2b"]
        done = run.table * run.count, run.index * run.count
        ended.append(f"mov {counter}, #{run.count}")
    return lines


def _chunks(lookups: Lookups) -> Iterator[str]:
    count, size = lookups.chunks
    last = lookups.indices - (count - 1) * size
    alike = count if last == size else count - 1
    step = _TABLE * size, _VECTOR * size
    if alike > 1:
        yield f"mov {_COUNTERS[0]}, #{alike}"
        yield "1:"
    yield from _chunk(lookups, size)
    yield from _moved(lookups, *step)
    if alike > 1:
        yield f"subs {_COUNTERS[0]}, {_COUNTERS[0]}, #1"
        yield "b.ne 1b"
    if last != size:
        yield from _chunk(lookups, last)
        yield from _moved(lookups, _TABLE * last, _VECTOR * last)


def _moved(lookups: Lookups, table: int, index: int) -> Iterator[str]:
    """All pointers moved by some bytes."""
    for pointer in lookups.tables:
        yield from pointer_sum(pointer, pointer, table)
    for pointer in lookups.weights:
        yield from pointer_sum(pointer, pointer, index)


def _chunk(lookups: Lookups, size: int) -> Iterator[str]:
    """Some indices, and their sums of bytes added to those of 16 bits."""
    vectors = len(lookups.vectors)
    free = list(range(3 * lookups.sums, _REGISTERS))
    table, free = free[:2], free[2:]
    held = min(vectors, len(free) - _FEWEST_FOUND)  # fewer than vectors only where one pixel uses each once
    index, found = free[:held], free[held:]
    listed = f"{{ v{table[0]}.16b, v{table[1]}.16b }}"
    for step in range(size):
        for pixel, pointer in enumerate(lookups.tables):
            waiting: list[str] = []
            for vector, weights in enumerate(lookups.weights):
                choice, place = index[vector % held], pixel * vectors + vector
                if pixel == 0:
                    yield f"ldr q{choice}, [{weights}, #{_VECTOR * step}]"
                if vector == 0:
                    yield f"ldp q{table[0]}, q{table[1]}, [{pointer}, #{_TABLE * step}]"
                sums = f"v{2 * lookups.sums + place}.16b"
                if step == 0:
                    yield f"tbl {sums}, {listed}, v{choice}.16b"
                    continue
                number = f"v{found[place % len(found)]}.16b"
                yield f"tbl {number}, {listed}, v{choice}.16b"
                waiting.append(f"add {sums}, {sums}, {number}")
                if len(waiting) == _FEWEST_FOUND:
                    yield from waiting
                    waiting = []
            yield from waiting
    for place in range(lookups.sums):
        low, high, octets = 2 * place, 2 * place + 1, 2 * lookups.sums + place
        yield f"uaddw v{low}.8h, v{low}.8h, v{octets}.8b"
        yield f"uaddw2 v{high}.8h, v{high}.8h, v{octets}.16b"
