"""Instructions of NEON for vectors along the depth; see :mod:`tvmq.kernels.depth`.

arm.depth.{xor,and}.V      V bytes of a pixel, as copies that fill a vector, with V bytes of eight output channels:
                           popcounts added to eight sums (64-bit ARM)
arm.narrow.{xor,and}.2     the same of two bytes, which are copied by their load (32-bit ARM)
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.workload import DEPTH_LANES

__all__ = ["DEPTHS", "register_depth"]

DEPTHS = (
    *(f"arm.depth.{combine}.{step}" for combine in ("xor", "and") for step in (2, 4, 8, 16)),
    *(f"arm.narrow.{combine}.2" for combine in ("xor", "and")),
)
_BYTES = 16
"""Of a vector."""


@cache
def register_depth(name: str) -> str:
    """Make TVM know an instruction; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    name : str
        One of `DEPTHS`.

    Returns
    -------
    name : str
        The same.
    """
    _, kind, combine, step = name.split(".")
    implementation = _narrow(combine) if kind == "narrow" else _tree(combine, int(step))
    TensorIntrin.register(name, _description(combine, int(step)), implementation, override=True)
    return name


def _meet(combine: str, one: Any, other: Any) -> Any:
    return one ^ other if combine == "xor" else one & other


def _description(combine: str, step: int) -> Any:
    @T.prim_func(s_tir=True)
    def description(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        activations = T.match_buffer(activation, (step,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (DEPTH_LANES, step), "uint8", offset_factor=1)
        totals = T.match_buffer(total, (DEPTH_LANES,), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:DEPTH_LANES], activations[0:step], weights[0:DEPTH_LANES, 0:step])
            T.writes(totals[0:DEPTH_LANES])
            for i, k in T.grid(DEPTH_LANES, step):
                with T.sblock("accumulate"):
                    lane, byte = T.axis.remap("SR", [i, k])
                    totals[lane] = totals[lane] + T.Cast(
                        "uint16", T.popcount(_meet(combine, activations[byte], weights[lane, byte]))
                    )

    return description


def _tree(combine: str, step: int) -> Any:
    """Sums of neighbours.  The copies of a short step fill a vector, though the step itself is no longer than V."""
    per_vector = _BYTES // step

    def counts(weights: Any, pixel: Any, vector: int) -> Any:
        return T.popcount(_meet(combine, pixel, weights.vload([vector * per_vector, 0], "uint8x16")))

    def neighbours(weights: Any, pixel: Any, first: int, count: int) -> Any:
        """Popcounts of some vectors, neighbours summed until one vector is left."""
        if count == 1:
            return counts(weights, pixel, first)
        half = count // 2
        left, right = (neighbours(weights, pixel, start, half) for start in (first, first + half))
        return T.call_llvm_pure_intrin("uint8x16", "llvm.aarch64.neon.addp", left, right)

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        activations = T.match_buffer(activation, (step,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (DEPTH_LANES, step), "uint8", offset_factor=1)
        totals = T.match_buffer(total, (DEPTH_LANES,), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:DEPTH_LANES], activations[0:step], weights[0:DEPTH_LANES, 0:step])
            T.writes(totals[0:DEPTH_LANES])
            pixel: T.let[T.uint8x16] = activations.vload([0], "uint8x16")
            totals[T.Ramp(0, 1, 8)] = totals.vload([0], "uint16x8") + T.call_llvm_pure_intrin(
                "uint16x8", "llvm.aarch64.neon.uaddlp", neighbours(weights, pixel, 0, step // 2)
            )

    return implementation


def _narrow(combine: str) -> Any:
    """A vector with two bytes of every channel."""

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        activations = T.match_buffer(activation, (2,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (DEPTH_LANES, 2), "uint8", offset_factor=1)
        totals = T.match_buffer(total, (DEPTH_LANES,), "uint16", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:DEPTH_LANES], activations[0:2], weights[0:DEPTH_LANES, 0:2])
            T.writes(totals[0:DEPTH_LANES])
            pixel: T.let[T.uint8x16] = T.reinterpret(
                "uint8x16", T.Broadcast(T.reinterpret("uint16", activations.vload([0], "uint8x2")), 8)
            )
            totals[T.Ramp(0, 1, 8)] = T.call_llvm_pure_intrin(
                "uint16x8",
                "llvm.arm.neon.vpadalu",
                totals.vload([0], "uint16x8"),
                T.popcount(_meet(combine, pixel, weights.vload([0, 0], "uint8x16"))),
            )

    return implementation
