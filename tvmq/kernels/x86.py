"""What is particular to x86: moving the signs of vector lanes into a general register, and products of bytes.

LLVM turns ``pmovmskb`` of a comparison into the shortest sequence of the core: ``vpcmpd`` into a mask register and
``kmov`` with AVX-512, ``vpcmpgtd``, two packs and ``vpmovmskb`` with AVX2.

Four unsigned bytes, the same for all lanes, times four signed bytes of each lane:

    vpdpbusd                                    exact, one instruction
    vpmaddubsw, vpmaddwd by ones, vpaddd        saturates where two neighbouring products exceed 16 bits
    two vpmaddwd of 16-bit halves, two vpaddd   exact; the halves of the weights are shared by the pixels of a tile
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.words import dot_product, mask_octet, mask_octets, mask_words

__all__ = ["DOTS", "PACKS", "dot", "pack", "register"]

PACKS = ("x86.movemask.32x16", "x86.movemask.8x8", "x86.movemask.8x16", "x86.movemask.8x32", "x86.movemask.8x64")
"""Names of the instructions, as word bits x lanes."""

DOTS = ("x86.vpdpbusd.16", "x86.vpmaddubsw.16", "x86.vpmaddubsw.8", "x86.vpmaddwd.16", "x86.vpmaddwd.8")
"""Names of the dot products, with the lanes of 32 bits."""
_LARGEST_PAIR = 2**15 - 1
"""Sums of two products up to this do not saturate."""


def dot(instruction: str, lanes: int, pair_bound: int) -> str:
    """Name the dot product that is exact for some operands.

    Parameters
    ----------
    instruction : {"vpdpbusd", "vpmaddubsw"}
        What the core has.
    lanes : {8, 16}
        Lanes of a vector.
    pair_bound : int
        Largest magnitude of the sum of two neighbouring products.

    Returns
    -------
    name : str
        One of `DOTS`.
    """
    if instruction == "vpmaddubsw" and pair_bound > _LARGEST_PAIR:
        instruction = "vpmaddwd"
    return f"x86.{instruction}.{lanes}"


def pack(word_bits: int, lanes: int) -> str:
    """Name the instruction that packs the bits of one channel group.

    Parameters
    ----------
    word_bits : {8, 32}
        Bits of a word.
    lanes : int
        Output channels of a vector.

    Returns
    -------
    name : str
        One of `PACKS`, or "scalar" if there is none for this pair.
    """
    name = f"x86.movemask.{word_bits}x{lanes}"
    return name if name in PACKS else "scalar"


@cache
def register(name: str) -> None:
    """Make TVM know an instruction; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    name : str
        One of `PACKS` or `DOTS`.
    """
    if name in DOTS:
        lanes = int(name.rsplit(".", 1)[1])
        kind = {"vpdpbusd": _vpdpbusd, "vpmaddubsw": _vpmaddubsw, "vpmaddwd": _vpmaddwd}[name.split(".")[1]]
        TensorIntrin.register(name, dot_product(lanes), kind(lanes), override=True)
        return
    word_bits, lanes = (int(number) for number in name.rsplit(".", 1)[1].split("x"))
    if lanes == 8:
        TensorIntrin.register(name, mask_octet(), _octet(), override=True)
    elif word_bits == 32:
        TensorIntrin.register(name, mask_words(lanes), _words(lanes), override=True)
    else:
        TensorIntrin.register(name, mask_octets(lanes), _octets(lanes), override=True)


def _words(lanes: int) -> Any:
    """Two vectors of 16 masks into one word of 32 bits."""

    @T.prim_func(s_tir=True)
    def implementation(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (2, lanes), "int8", offset_factor=1, scope="local")
        words = T.match_buffer(word, (1,), "uint32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(words[0:1], masks[0:2, 0:lanes])
            T.writes(words[0:1])
            words[0] = words[0] + T.Cast(
                "uint32",
                T.call_llvm_pure_intrin("int32", "llvm.x86.sse2.pmovmskb.128", masks.vload([0, 0], "int8x16"))
                | (
                    T.call_llvm_pure_intrin("int32", "llvm.x86.sse2.pmovmskb.128", masks.vload([1, 0], "int8x16")) << 16
                ),
            )

    return implementation


def _octets(lanes: int) -> Any:
    """One vector of masks into words of 8 bits, in pieces of 16 or 32 lanes."""
    piece = min(lanes, 32)
    name = "llvm.x86.avx2.pmovmskb" if piece == 32 else "llvm.x86.sse2.pmovmskb.128"
    octets = piece // 8
    pieces = lanes // piece
    vector = f"int8x{piece}"

    @T.prim_func(s_tir=True)
    def implementation(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (lanes,), "int8", offset_factor=1, scope="local")
        words = T.match_buffer(word, (lanes // 8,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(words[0 : lanes // 8], masks[0:lanes])
            T.writes(words[0 : lanes // 8])
            for p, w in T.grid(pieces, octets):
                words[p * octets + w] = words[p * octets + w] + T.Cast(
                    "uint8",
                    T.call_llvm_pure_intrin("int32", name, masks.vload([p * piece], vector)) >> (w * 8) & 255,
                )

    return implementation


def _octet() -> Any:
    """Eight masks into one word."""

    @T.prim_func(s_tir=True)
    def implementation(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (8,), "int8", offset_factor=1, scope="local")
        words = T.match_buffer(word, (1,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(words[0:1], masks[0:8])
            T.writes(words[0:1])
            twice = T.Shuffle([masks.vload([0], "int8x8"), masks.vload([0], "int8x8")], list(range(16)))
            words[0] = words[0] + T.Cast(
                "uint8", T.call_llvm_pure_intrin("int32", "llvm.x86.sse2.pmovmskb.128", twice) & 255
            )

    return implementation


def _vpdpbusd(lanes: int) -> Any:
    vector, octets = f"int32x{lanes}", f"int8x{4 * lanes}"
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        activations = T.match_buffer(activation, (4,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (lanes, 4), "int8", offset_factor=1)
        totals = T.match_buffer(total, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:lanes], activations[0:4], weights[0:lanes, 0:4])
            T.writes(totals[0:lanes])
            totals[T.Ramp(0, 1, lanes)] = T.call_llvm_pure_intrin(
                vector,
                name,
                totals.vload([0], vector),
                T.reinterpret(octets, T.Broadcast(T.reinterpret("int32", activations.vload([0], "uint8x4")), lanes)),
                weights.vload([0, 0], octets),
            )

    return implementation


def _vpmaddubsw(lanes: int) -> Any:
    vector, pairs, octets = f"int32x{lanes}", f"int16x{2 * lanes}", f"int8x{4 * lanes}"
    multiply = "llvm.x86.avx512.pmaddubs.w.512" if lanes == 16 else "llvm.x86.avx2.pmadd.ub.sw"
    widen = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        activations = T.match_buffer(activation, (4,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (lanes, 4), "int8", offset_factor=1)
        totals = T.match_buffer(total, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:lanes], activations[0:4], weights[0:lanes, 0:4])
            T.writes(totals[0:lanes])
            totals[T.Ramp(0, 1, lanes)] = totals.vload([0], vector) + T.call_llvm_pure_intrin(
                vector,
                widen,
                T.call_llvm_pure_intrin(
                    pairs,
                    multiply,
                    T.reinterpret(
                        octets, T.Broadcast(T.reinterpret("int32", activations.vload([0], "uint8x4")), lanes)
                    ),
                    weights.vload([0, 0], octets),
                ),
                T.Broadcast(T.int16(1), 2 * lanes),
            )

    return implementation


def _vpmaddwd(lanes: int) -> Any:
    vector, halves = f"int32x{lanes}", 2 * lanes
    pairs, unsigned, octets = f"int16x{halves}", f"uint16x{halves}", f"int8x{4 * lanes}"
    multiply = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        activations = T.match_buffer(activation, (4,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (lanes, 4), "int8", offset_factor=1)
        totals = T.match_buffer(total, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:lanes], activations[0:4], weights[0:lanes, 0:4])
            T.writes(totals[0:lanes])
            totals[T.Ramp(0, 1, lanes)] = (
                totals.vload([0], vector)
                + T.call_llvm_pure_intrin(
                    vector,
                    multiply,
                    T.reinterpret(
                        pairs,
                        T.bitwise_and(
                            T.reinterpret(
                                unsigned,
                                T.Broadcast(T.reinterpret("int32", activations.vload([0], "uint8x4")), lanes),
                            ),
                            T.Broadcast(T.uint16(255), halves),
                        ),
                    ),
                    T.shift_right(
                        T.shift_left(
                            T.reinterpret(pairs, weights.vload([0, 0], octets)), T.Broadcast(T.int16(8), halves)
                        ),
                        T.Broadcast(T.int16(8), halves),
                    ),
                )
                + T.call_llvm_pure_intrin(
                    vector,
                    multiply,
                    T.reinterpret(
                        pairs,
                        T.shift_right(
                            T.reinterpret(
                                unsigned,
                                T.Broadcast(T.reinterpret("int32", activations.vload([0], "uint8x4")), lanes),
                            ),
                            T.Broadcast(T.uint16(8), halves),
                        ),
                    ),
                    T.shift_right(T.reinterpret(pairs, weights.vload([0, 0], octets)), T.Broadcast(T.int16(8), halves)),
                )
            )

    return implementation
