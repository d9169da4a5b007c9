"""Instructions of AVX2 for lookups in tables; see :mod:`tvmq.kernels.tables`.

x86.table         the two tables of eight activations: four shuffles of their bytes and three sums
x86.lookup        32 nibbles looked up in one table (vpshufb), added to sums of bytes
x86.pairs         sums of bytes added to sums of 16 bits, even and odd lanes apart
x86.interleave    even and odd lanes put together
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.tables import chosen_entry

__all__ = ["register"]

_ABSENT = 32
"""Index, in a shuffle of 32 bytes and 32 zeros, of a zero."""


@cache
def register(name: str) -> str:
    """Make TVM know an instruction; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    name : {"x86.table", "x86.lookup", "x86.pairs", "x86.interleave"}
        See above.

    Returns
    -------
    name : str
        The same.
    """
    make: dict[str, Callable[[], tuple[Any, Any]]] = {
        "x86.table": _table,
        "x86.lookup": _lookup,
        "x86.pairs": _pairs,
        "x86.interleave": _interleave,
    }
    TensorIntrin.register(name, *make[name](), override=True)
    return name


def _places(bit: int) -> list[int]:
    """Bytes of a shuffle within halves of 16: activation `bit` of each table, where an entry selects it."""
    return [16 * half + 4 * half + bit if entry >> bit & 1 else _ABSENT for half in range(2) for entry in range(16)]


def _table() -> tuple[Any, Any]:
    first, second, third, fourth = (_places(bit) for bit in range(4))

    @T.prim_func(s_tir=True)
    def description(activation: T.handle, table: T.handle) -> None:
        activations = T.match_buffer(activation, (8,), "uint8", offset_factor=1)
        tables = T.match_buffer(table, (32,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(activations[0:8])
            T.writes(tables[0:32])
            for i in range(32):
                with T.sblock("table"):
                    entry = T.axis.remap("S", [i])
                    tables[entry] = (
                        T.Select(entry % 2 != 0, activations[entry // 16 * 4], T.uint8(0))
                        + T.Select(entry // 2 % 2 != 0, activations[entry // 16 * 4 + 1], T.uint8(0))
                        + T.Select(entry // 4 % 2 != 0, activations[entry // 16 * 4 + 2], T.uint8(0))
                        + T.Select(entry // 8 % 2 != 0, activations[entry // 16 * 4 + 3], T.uint8(0))
                    )

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, table: T.handle) -> None:
        activations = T.match_buffer(activation, (8,), "uint8", offset_factor=1)
        tables = T.match_buffer(table, (32,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(activations[0:8])
            T.writes(tables[0:32])
            octets: T.let[T.uint8x32] = T.reinterpret(
                "uint8x32", T.Broadcast(T.reinterpret("int64", activations.vload([0], "uint8x8")), 4)
            )
            zeros: T.let[T.uint8x32] = T.Broadcast(T.uint8(0), 32)
            tables[T.Ramp(0, 1, 32)] = (T.Shuffle([octets, zeros], first) + T.Shuffle([octets, zeros], second)) + (
                T.Shuffle([octets, zeros], third) + T.Shuffle([octets, zeros], fourth)
            )

    return description, implementation


def _lookup() -> tuple[Any, Any]:
    twice = [*range(16), *range(16)]

    @T.prim_func(s_tir=True)
    def description(table: T.handle, nibble: T.handle, total: T.handle) -> None:
        tables = T.match_buffer(table, (16,), "uint8", offset_factor=1)
        nibbles = T.match_buffer(nibble, (32,), "uint8", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (32,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:32], nibbles[0:32], tables[0:16])
            T.writes(totals[0:32])
            for i in range(32):
                with T.sblock("partial"):
                    lane = T.axis.remap("S", [i])
                    totals[lane] = totals[lane] + chosen_entry(lambda entry: tables[entry], nibbles[lane])

    @T.prim_func(s_tir=True)
    def implementation(table: T.handle, nibble: T.handle, total: T.handle) -> None:
        tables = T.match_buffer(table, (16,), "uint8", offset_factor=1)
        nibbles = T.match_buffer(nibble, (32,), "uint8", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (32,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:32], nibbles[0:32], tables[0:16])
            T.writes(totals[0:32])
            totals[T.Ramp(0, 1, 32)] = totals.vload([0], "uint8x32") + T.call_llvm_pure_intrin(
                "uint8x32",
                "llvm.x86.avx2.pshuf.b",
                T.Shuffle([tables.vload([0], "uint8x16"), tables.vload([0], "uint8x16")], twice),
                nibbles.vload([0], "uint8x32"),
            )

    return description, implementation


def _pairs() -> tuple[Any, Any]:
    @T.prim_func(s_tir=True)
    def description(octet: T.handle, pair: T.handle) -> None:
        octets = T.match_buffer(octet, (32,), "uint8", offset_factor=1, scope="local")
        pairs = T.match_buffer(pair, (2, 16), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:16], octets[0:32])
            T.writes(pairs[0:2, 0:16])
            for p, i in T.grid(2, 16):
                with T.sblock("pairs"):
                    parity, lane = T.axis.remap("SS", [p, i])
                    pairs[parity, lane] = pairs[parity, lane] + T.Cast("uint16", octets[lane * 2 + parity])

    @T.prim_func(s_tir=True)
    def implementation(octet: T.handle, pair: T.handle) -> None:
        octets = T.match_buffer(octet, (32,), "uint8", offset_factor=1, scope="local")
        pairs = T.match_buffer(pair, (2, 16), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:16], octets[0:32])
            T.writes(pairs[0:2, 0:16])
            pairs[0, T.Ramp(0, 1, 16)] = pairs.vload([0, 0], "uint16x16") + T.call_llvm_pure_intrin(
                "uint16x16",
                "llvm.x86.avx2.pmadd.ub.sw",
                octets.vload([0], "uint8x32"),
                T.reinterpret("uint8x32", T.Broadcast(T.uint16(1), 16)),
            )
            pairs[1, T.Ramp(0, 1, 16)] = pairs.vload([1, 0], "uint16x16") + T.call_llvm_pure_intrin(
                "uint16x16",
                "llvm.x86.avx2.pmadd.ub.sw",
                octets.vload([0], "uint8x32"),
                T.reinterpret("uint8x32", T.Broadcast(T.uint16(256), 16)),
            )

    return description, implementation


def _interleave() -> tuple[Any, Any]:
    order = [16 * parity + lane for lane in range(16) for parity in range(2)]

    @T.prim_func(s_tir=True)
    def description(pair: T.handle, total: T.handle) -> None:
        pairs = T.match_buffer(pair, (2, 16), "uint16", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (32,), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:16])
            T.writes(totals[0:32])
            for i in range(32):
                with T.sblock("accumulate"):
                    lane = T.axis.remap("S", [i])
                    totals[lane] = pairs[lane % 2, lane // 2]

    @T.prim_func(s_tir=True)
    def implementation(pair: T.handle, total: T.handle) -> None:
        pairs = T.match_buffer(pair, (2, 16), "uint16", offset_factor=1, scope="local")
        totals = T.match_buffer(total, (32,), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(pairs[0:2, 0:16])
            T.writes(totals[0:32])
            totals[T.Ramp(0, 1, 32)] = T.Shuffle(
                [pairs.vload([0, 0], "uint16x16"), pairs.vload([1, 0], "uint16x16")], order
            )

    return description, implementation
