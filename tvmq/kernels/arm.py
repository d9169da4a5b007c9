"""What is particular to ARM: bits become bytes through a horizontal sum of their weights.

NEON has no instruction that collects signs; masks AND (1, 2, 4, ... 128) summed over eight lanes give a byte: one
`addv` per byte on aarch64, three `vpadd` per vector on 32 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.words import mask_octet, mask_octets
from tvmq.kernels.workload import Conv2dWorkload

__all__ = ["IN_ORDER_CORES", "PACKS", "depth", "pack", "pack_scope", "register", "vector_registers"]

PACKS = ("arm.addv.8x16", "arm.addv.8x8", "arm.vpadd.8x16", "arm.vpadd.8x8")
"""Names of the instructions, as word bits x lanes."""
_LANES = 16
IN_ORDER_CORES = ("cortex-a53", "cortex-a55", "cortex-a510")
"""Cores that issue in order; spilled registers cost them most."""


def vector_registers(arch: str, mcpu: str, depth: bool = False) -> int:
    """Vector registers of 128 bits that a register tile may use.

    Parameters
    ----------
    arch : str
        "aarch64" or a 32-bit architecture.
    mcpu : str
        LLVM's name of the core.
    depth : bool
        Whether vectors lie along the depth.

    Returns
    -------
    count : int
        32 or 16; fewer for an in-order core of 64 bits where lanes are output channels: LLVM hides latencies there by
        starting many operations before it ends the first, unrolls the loop, and hoists its loads.
    """
    if arch != "aarch64":
        return 16
    return 18 if mcpu in IN_ORDER_CORES and not depth else 32


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


def depth(workload: Conv2dWorkload, arch: str, mcpu: str) -> str:
    """Name the instruction for vectors along the depth.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    arch : str
        Name of the architecture.
    mcpu : str
        LLVM's name of the core.

    Returns
    -------
    name : str
        One of `tvmq.kernels.arm_depth.DEPTHS`, or "scalar".
    """
    if workload.depth is None or arch == "x86_64":
        return "scalar"
    name = f"arm.depth.{workload.combine}.{workload.depth.step}"
    if arch != "aarch64":
        return f"{name}.armv7"
    return f"{name}.in-order" if mcpu in IN_ORDER_CORES else name


@cache
def register(name: str) -> None:
    """Make TVM know an instruction; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    name : str
        One of `PACKS`.
    """
    make, scope = _sum_of_lanes if "addv" in name else _sums_of_pairs, pack_scope(name)
    if name.endswith("8x8"):
        TensorIntrin.register(name, mask_octet(scope), make(1, scope), override=True)
        return
    TensorIntrin.register(name, mask_octets(_LANES), make(2, scope), override=True)


def pack_scope(name: str) -> str:
    """Where the masks and words are that an instruction packs.

    TVM has what is "local" on the heap, where LLVM has to store it, and few "global" bytes on the stack, from where
    LLVM lifts them into registers.

    Parameters
    ----------
    name : str
        The instruction.

    Returns
    -------
    scope : {"global", "local"}
    """
    return "global" if name == "arm.addv.8x8" else "local"


def _sum_of_lanes(count: int, scope: str) -> Any:
    """A vector of masks into words of 8 bits, each the sum of eight lanes."""

    @T.prim_func(s_tir=True)
    def implementation(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (8 * count,), "int8", offset_factor=1, scope=scope)
        words = T.match_buffer(word, (count,), "uint8", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(words[0:count], masks[0 : 8 * count])
            T.writes(words[0:count])
            for w in T.unroll(count):
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


def _sums_of_pairs(count: int, scope: str) -> Any:
    """The same by adding neighbours three times, both halves of two words at once."""
    last, ones = 8 * (count - 1), 2 ** (8 * count) - 1

    @T.prim_func(s_tir=True)
    def implementation(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (8 * count,), "int8", offset_factor=1, scope=scope)
        words = T.match_buffer(word, (count,), "uint8", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(words[0:count], masks[0 : 8 * count])
            T.writes(words[0:count])
            weights = T.shift_left(T.Broadcast(T.int8(1), 8), T.Cast("int8x8", T.Ramp(0, 1, 8)))
            eighths = T.call_llvm_pure_intrin(
                "int8x8",
                "llvm.arm.neon.vpadd.v8i8",
                T.bitwise_and(masks.vload([0], "int8x8"), weights),
                T.bitwise_and(masks.vload([last], "int8x8"), weights),
            )
            quarters = T.call_llvm_pure_intrin("int8x8", "llvm.arm.neon.vpadd.v8i8", eighths, eighths)
            octets = T.call_llvm_pure_intrin("int8x8", "llvm.arm.neon.vpadd.v8i8", quarters, quarters)
            several = T.Cast("uint32", T.reinterpret("uint64", octets) & T.uint64(ones))
            for w in T.unroll(count):
                words[w] = words[w] + T.Cast("uint8", T.shift_right(several, T.Cast("uint32", 8 * w)) & T.uint32(255))

    return implementation
