"""What is particular to x86: moving the signs of vector lanes into a general register.

LLVM turns ``pmovmskb`` of a comparison into the shortest sequence of the core: ``vpcmpd`` into a mask register and
``kmov`` with AVX-512, ``vpcmpgtd``, two packs and ``vpmovmskb`` with AVX2.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.words import mask_octets, mask_words

__all__ = ["PACKS", "pack", "register"]

PACKS = ("x86.movemask.32x16", "x86.movemask.8x16", "x86.movemask.8x32", "x86.movemask.8x64")
"""Names of the instructions, as word bits x lanes."""


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
        One of `PACKS`.
    """
    word_bits, lanes = (int(number) for number in name.rsplit(".", 1)[1].split("x"))
    if word_bits == 32:
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
