"""What is particular to ARM: bits become bytes through a horizontal sum of their weights.

NEON has no instruction that collects signs; masks AND (1, 2, 4, ... 128) summed over eight lanes give a byte: one
`addv` per byte on aarch64, three `vpadd` per vector on 32 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.words import mask_octets

__all__ = ["IN_ORDER_CORES", "PACKS", "pack", "register", "vector_registers"]

PACKS = ("arm.addv.8x16", "arm.vpadd.8x16")
"""Names of the instructions, as word bits x lanes."""
_LANES = 16
IN_ORDER_CORES = ("cortex-a53", "cortex-a55", "cortex-a510")
"""Cores that issue in order; spilled registers cost them most."""


def vector_registers(arch: str, mcpu: str) -> int:
    """Vector registers of 128 bits that a register tile may use.

    Parameters
    ----------
    arch : str
        "aarch64" or a 32-bit architecture.
    mcpu : str
        LLVM's name of the core.

    Returns
    -------
    count : int
        32 or 16; fewer for an in-order core of 64 bits, where LLVM unrolls the loop and hoists its loads.
    """
    if arch != "aarch64":
        return 16
    return 18 if mcpu in IN_ORDER_CORES else 32


def pack(word_bits: int, lanes: int, arch: str) -> str:
    """Name the instruction that packs the bits of one channel group.

    Parameters
    ----------
    word_bits : {8, 32}
        Bits of a word.
    lanes : int
        Output channels of a vector.
    arch : str
        "aarch64" or a 32-bit architecture.

    Returns
    -------
    name : str
        One of `PACKS`, or "scalar" if there is none for this pair.
    """
    name = f"arm.{'addv' if arch == 'aarch64' else 'vpadd'}.{word_bits}x{lanes}"
    return name if name in PACKS else "scalar"


@cache
def register(name: str) -> None:
    """Make TVM know an instruction; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    name : str
        One of `PACKS`.
    """
    implementation = _sum_of_lanes() if "addv" in name else _sums_of_pairs()
    TensorIntrin.register(name, mask_octets(_LANES), implementation, override=True)


def _sum_of_lanes() -> Any:
    """One vector of masks into two words of 8 bits, each the sum of half a vector."""

    @T.prim_func(s_tir=True)
    def implementation(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (16,), "int8", offset_factor=1, scope="local")
        words = T.match_buffer(word, (2,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(words[0:2], masks[0:16])
            T.writes(words[0:2])
            for w in T.unroll(2):
                words[w] = words[w] + T.Cast(
                    "uint8",
                    T.call_llvm_pure_intrin(
                        "int8",
                        "llvm.vector.reduce.add.v8i8",
                        T.bitwise_and(
                            masks.vload([w * 8], "int8x8"),
                            T.shift_left(T.Broadcast(T.int8(1), 8), T.Cast("int8x8", T.Ramp(0, 1, 8))),
                        ),
                    ),
                )

    return implementation


def _sums_of_pairs() -> Any:
    """The same by adding neighbours three times, both halves at once."""

    @T.prim_func(s_tir=True)
    def implementation(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (16,), "int8", offset_factor=1, scope="local")
        words = T.match_buffer(word, (2,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(words[0:2], masks[0:16])
            T.writes(words[0:2])
            weights = T.shift_left(T.Broadcast(T.int8(1), 8), T.Cast("int8x8", T.Ramp(0, 1, 8)))
            eighths = T.call_llvm_pure_intrin(
                "int8x8",
                "llvm.arm.neon.vpadd.v8i8",
                T.bitwise_and(masks.vload([0], "int8x8"), weights),
                T.bitwise_and(masks.vload([8], "int8x8"), weights),
            )
            quarters = T.call_llvm_pure_intrin("int8x8", "llvm.arm.neon.vpadd.v8i8", eighths, eighths)
            octets = T.call_llvm_pure_intrin("int8x8", "llvm.arm.neon.vpadd.v8i8", quarters, quarters)
            pair = T.Cast("uint32", T.reinterpret("uint64", octets) & T.uint64(65535))
            words[0] = words[0] + T.Cast("uint8", pair & T.uint32(255))
            words[1] = words[1] + T.Cast("uint8", pair >> T.uint32(8))

    return implementation
