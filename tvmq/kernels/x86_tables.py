"""Instructions of x86 for lookups in tables; see :mod:`tvmq.kernels.tables`.

Of AVX2 with vectors of 32 bytes, or of AVX-512 BW with vectors of 64:

x86.table.8, 32         the tables of 8 or 32 activations: each is the sum of two lookups among activations and the sums
                        of their pairs
x86.lookup.8x32, x64    the nibbles of a vector looked up in one table (vpshufb), added to sums of bytes
x86.pairs.32, 64        sums of bytes added to sums of 16 bits, even and odd lanes apart
x86.interleave.32, 64   even and odd lanes put together

Of AVX-512 VBMI and VNNI:

x86.lookup.32x1, x2     the nibbles of one or two vectors of words, each byte in its own table (vpermb), and their sum
                        added to sums of 32 bits (vpdpbusd)
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.tables import (
    NIBBLE_BITS,
    TABLE_ENTRIES,
    chosen_entry,
    entry_sum,
    first_channel,
    selected_sum,
    tables_of_word,
    word_number,
)

__all__ = ["register"]

_NIBBLES = 0x0F0F0F0F
_TABLES = 0x30201000
"""What turns the nibbles of a word's bytes into places in four tables."""


@functools.cache
def register(kind: str, size: int) -> str:
    """Make TVM know an instruction; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    kind : {"table", "lookup", "pairs", "interleave", "words"}
        See above; "words" are lookups by words of 32 bits.
    size : int
        Bits of a word of weights for "table", words for "words", bytes of a vector for the others.

    Returns
    -------
    name : str
        What TVM calls it.
    """
    makers: dict[str, tuple[str, Callable[[int], tuple[Any, Any]]]] = {
        "table": ("x86.table.", _tables),
        "lookup": ("x86.lookup.8x", _lookup),
        "pairs": ("x86.pairs.", _pairs),
        "interleave": ("x86.interleave.", _interleave),
        "words": ("x86.lookup.32x", _lookup_words),
    }
    prefix, make = makers[kind]
    name = f"{prefix}{size}"
    TensorIntrin.register(name, *make(size), override=True)
    return name


def _table_description(word_bits: int) -> Any:
    size = tables_of_word(word_bits)

    def four(activations: Any, first: Any) -> list[Any]:
        return [activations[first + bit] for bit in range(NIBBLE_BITS)]

    @T.prim_func(s_tir=True)
    def description(activation: T.handle, table: T.handle) -> None:
        activations = T.match_buffer(activation, (word_bits,), "uint8", offset_factor=1)
        tables = T.match_buffer(table, (size,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(activations[0:word_bits])
            T.writes(tables[0:size])
            for i in range(size):
                with T.sblock("table"):
                    place = T.axis.remap("S", [i])
                    tables[place] = entry_sum(four(activations, first_channel(place, word_bits)), place)

    return description


def _tables(word_bits: int) -> tuple[Any, Any]:
    octets, size = word_bits // 8, tables_of_word(word_bits)
    width = min(size, 64)  # bytes of a vector
    doubled = f"uint8x{width}"

    def twice(activations: Any) -> Any:
        """In every 16 bytes eight activations twice, so that no shuffle has to cross them."""
        places = [8 * (group % octets) + place for group in range(width // 16) for _ in range(2) for place in range(8)]
        return T.Shuffle([activations] * (width // word_bits), places)

    def factors() -> Any:
        """For pairs of bytes: one in the first eight of 16 bytes, 257 in the others."""
        lanes = width // 4
        numbers = [tirx.Broadcast(tirx.const(number, "uint16"), lanes) for number in (1, 257)]
        return T.Shuffle(numbers, [lanes * (pair // 4 % 2) for pair in range(2 * lanes)])

    def places(vector: int, pair: int) -> list[int]:
        """What entries select of a pair of activations: none, either, or their sum, the second of the products."""
        indices = []
        for group in range(width // 16):
            half = (vector * (width // 16) + group) // octets
            first = 16 * group + 4 * half + 2 * pair
            choices = (width, first, first + 1, 8 + first + 1)
            indices += [choices[entry >> 2 * pair & 3] for entry in range(TABLE_ENTRIES)]
        return indices

    def sums(both: Any) -> Any:
        zeros = tirx.Broadcast(tirx.const(0, "uint8"), width)
        vectors = [
            T.Shuffle([both, zeros], places(vector, 0)) + T.Shuffle([both, zeros], places(vector, 1))
            for vector in range(size // width)
        ]
        return vectors[0] if len(vectors) == 1 else T.Shuffle(vectors, [*range(size)])

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, table: T.handle) -> None:
        activations = T.match_buffer(activation, (word_bits,), "uint8", offset_factor=1)
        tables = T.match_buffer(table, (size,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(activations[0:word_bits])
            T.writes(tables[0:size])
            # A pair of bytes is a + 256 b, and times 257, without what overflows, a + 256 (a + b).
            tables[T.Ramp(0, 1, size)] = sums(
                T.reinterpret(
                    doubled,
                    T.reinterpret(f"uint16x{width // 2}", twice(activations.vload([0], f"uint8x{word_bits}")))
                    * factors(),
                )
            )

    return _table_description(word_bits), implementation


def _lookup(lanes: int) -> tuple[Any, Any]:
    vector = f"uint8x{lanes}"
    instruction = "llvm.x86.avx2.pshuf.b" if lanes == 32 else "llvm.x86.avx512.pshuf.b.512"

    def copies(table: Any) -> Any:
        return T.Shuffle([table] * (lanes // TABLE_ENTRIES), [*range(lanes)])

    @T.prim_func(s_tir=True)
    def description(table: T.handle, nibble: T.handle, total: T.handle) -> None:
        tables = T.match_buffer(table, (16,), "uint8", offset_factor=1)
        nibbles = T.match_buffer(nibble, (lanes,), "uint8", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (lanes,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:lanes], nibbles[0:lanes], tables[0:16])
            T.writes(totals[0:lanes])
            for i in range(lanes):
                with T.sblock("partial"):
                    lane = T.axis.remap("S", [i])
                    totals[lane] = totals[lane] + chosen_entry(lambda entry: tables[entry], nibbles[lane])

    @T.prim_func(s_tir=True)
    def implementation(table: T.handle, nibble: T.handle, total: T.handle) -> None:
        tables = T.match_buffer(table, (16,), "uint8", offset_factor=1)
        nibbles = T.match_buffer(nibble, (lanes,), "uint8", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (lanes,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:lanes], nibbles[0:lanes], tables[0:16])
            T.writes(totals[0:lanes])
            totals[T.Ramp(0, 1, lanes)] = totals.vload([0], vector) + T.call_llvm_pure_intrin(
                vector,
                instruction,
                copies(tables.vload([0], "uint8x16")),
                nibbles.vload([0], vector),
            )

    return description, implementation


def _pairs(lanes: int) -> tuple[Any, Any]:
    half = lanes // 2
    instruction = "llvm.x86.avx2.pmadd.ub.sw" if lanes == 32 else "llvm.x86.avx512.pmaddubs.w.512"

    def of_parity(octets: Any, parity: int) -> Any:
        """Every second byte: pairs of bytes times one and zero, or zero and one, and added."""
        factors = tirx.Broadcast(tirx.const(256**parity, "uint16"), half)
        operands = (octets.vload([0], f"uint8x{lanes}"), tirx.reinterpret(f"uint8x{lanes}", factors))
        return tirx.call_llvm_pure_intrin(f"uint16x{half}", instruction, *operands)

    @T.prim_func(s_tir=True)
    def description(octet: T.handle, pair: T.handle) -> None:
        octets = T.match_buffer(octet, (lanes,), "uint8", offset_factor=1, scope="local")
        pairs = T.match_buffer(pair, (2, half), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:half], octets[0:lanes])
            T.writes(pairs[0:2, 0:half])
            for p, i in T.grid(2, half):
                with T.sblock("pairs"):
                    parity, lane = T.axis.remap("SS", [p, i])
                    pairs[parity, lane] = pairs[parity, lane] + T.Cast("uint16", octets[lane * 2 + parity])

    @T.prim_func(s_tir=True)
    def implementation(octet: T.handle, pair: T.handle) -> None:
        octets = T.match_buffer(octet, (lanes,), "uint8", offset_factor=1, scope="local")
        pairs = T.match_buffer(pair, (2, half), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:half], octets[0:lanes])
            T.writes(pairs[0:2, 0:half])
            pairs[0, T.Ramp(0, 1, half)] = pairs.vload([0, 0], f"uint16x{half}") + of_parity(octets, 0)
            pairs[1, T.Ramp(0, 1, half)] = pairs.vload([1, 0], f"uint16x{half}") + of_parity(octets, 1)

    return description, implementation


def _interleave(lanes: int) -> tuple[Any, Any]:
    half = lanes // 2
    order = [half * parity + lane for lane in range(half) for parity in range(2)]

    @T.prim_func(s_tir=True)
    def description(pair: T.handle, total: T.handle) -> None:
        pairs = T.match_buffer(pair, (2, half), "uint16", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (lanes,), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:half])
            T.writes(totals[0:lanes])
            for i in range(lanes):
                with T.sblock("accumulate"):
                    lane = T.axis.remap("S", [i])
                    totals[lane] = pairs[lane % 2, lane // 2]

    @T.prim_func(s_tir=True)
    def implementation(pair: T.handle, total: T.handle) -> None:
        pairs = T.match_buffer(pair, (2, half), "uint16", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (lanes,), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:half])
            T.writes(totals[0:lanes])
            totals[T.Ramp(0, 1, lanes)] = T.Shuffle(
                [pairs.vload([0, 0], f"uint16x{half}"), pairs.vload([1, 0], f"uint16x{half}")], order
            )

    return description, implementation


def _lookup_words(words: int) -> tuple[Any, Any]:
    def splat(number: int) -> Any:
        return tirx.Broadcast(tirx.const(number, "uint32"), 16)

    def looked_up(tables: Any, weights: Any, word: int, half: int) -> Any:
        """The sums that one half of the bytes of a vector of words selects."""
        bits = tirx.shift_right(weights.vload([word, 0], "uint32x16"), splat(4 * half))
        places = tirx.bitwise_or(tirx.bitwise_and(bits, splat(_NIBBLES)), splat(_TABLES))
        operands = (tables.vload([128 * word + 64 * half], "uint8x64"), tirx.reinterpret("uint8x64", places))
        return tirx.call_llvm_pure_intrin("uint8x64", "llvm.x86.avx512.permvar.qi.512", *operands)

    def sums(tables: Any, weights: Any) -> Any:
        terms = [looked_up(tables, weights, word, half) for word in range(words) for half in range(2)]
        return functools.reduce(operator.add, terms)

    @T.prim_func(s_tir=True)
    def description(table: T.handle, weight: T.handle, total: T.handle) -> None:
        tables = T.match_buffer(table, (128 * words,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (words, 16), "uint32", offset_factor=1)
        totals = T.match_buffer(total, (16,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:16], weights[0:words, 0:16], tables[0 : 128 * words])
            T.writes(totals[0:16])
            for i, h, o in T.grid(16, 2 * words, 4):
                with T.sblock("accumulate"):
                    lane, half, octet = T.axis.remap("SRR", [i, h, o])
                    totals[lane] = totals[lane] + selected_sum(
                        weights[word_number(half, words), lane], lambda place: tables[place], words, half, octet
                    )

    @T.prim_func(s_tir=True)
    def implementation(table: T.handle, weight: T.handle, total: T.handle) -> None:
        tables = T.match_buffer(table, (128 * words,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (words, 16), "uint32", offset_factor=1)
        totals = T.match_buffer(total, (16,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:16], weights[0:words, 0:16], tables[0 : 128 * words])
            T.writes(totals[0:16])
            totals[T.Ramp(0, 1, 16)] = T.call_llvm_pure_intrin(
                "int32x16",
                "llvm.x86.avx512.vpdpbusd.512",
                totals.vload([0], "int32x16"),
                sums(tables, weights),
                T.Broadcast(T.int8(1), 64),
            )

    return description, implementation
