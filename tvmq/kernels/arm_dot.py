"""Products of signed bytes on ARM: a tile of pixels times 16 output channels, four bytes of each at a time.

Four bytes of a pixel, the same for all channels, times four bytes of each channel:

    sdot                        exact, one instruction for four channels (cores with the dot product extension)
    smull, smlal2, sadalp       products and their sums in pairs in 16 bits, which are added in pairs to 32 bits
    smull, sadalp, twice        the same where the sum of two products might not fit in 16 bits

A step of ``sdot`` reads the four bytes of four channels as one vector, and a pixel's as a lane of another.  ``smull``
multiplies the lower halves of two vectors and ``smlal2`` the upper ones, lane by lane, and ``sadalp`` adds neighbouring
lanes.  So that it leaves one sum per channel, a step's weights are ordered ``c0k0 c0k1 c1k0 c1k1 c2k0 c2k1 c3k0 c3k1``
and the same of k2 and k3, and a pixel's bytes are spread to ``k0 k1`` four times and ``k2 k3`` four times.  A lane of
16 bits then sums two products, of k0 and k2 or of k1 and k3.  Activations are at most 128 in magnitude, so the two fit
where the weights' magnitudes add up to at most 255: always, unless both weights are -128 and the sum ``2 * 128 * 128``
exceeds 2^15 - 1 by one.  Activations of a < 8 bits are at most 2^a - 1.

One instruction here is a whole tile, since the order of its parts decides what must be in registers: of a load of 16
bytes per pixel the steps follow each other, so that weights are read one vector after the other and used at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.workload import BYTES_PER_STEP

__all__ = ["DOTS", "LANES", "dot", "most_columns", "register"]

DOTS = ("arm.sdot", "arm.smull.1", "arm.smull.2", "arm.vmull.1", "arm.vmull.2")
"""Names of the dot products; with the products whose sum takes 16 bits, and "vmull" on 32 bits."""
LANES = 16
"""Output channels of a tile: four vectors of four."""
_LARGEST_SUM = 2**15 - 1


def dot(instruction: str, pair_bound: int, arch: str) -> str:
    """Name the dot product that is exact for some operands.

    Parameters
    ----------
    instruction : {"sdot", "smull"}
        What the core has.
    pair_bound : int
        Largest magnitude of the sum of two products in 16 bits.
    arch : str
        "aarch64" or a 32-bit architecture.

    Returns
    -------
    name : str
        One of `DOTS`.
    """
    if instruction == "sdot":
        return "arm.sdot"
    products = 2 if pair_bound <= _LARGEST_SUM else 1
    return f"arm.{'smull' if arch == 'aarch64' else 'vmull'}.{products}"


def most_columns(form: str, registers: int) -> int:
    """Pixels of a tile whose sums and operands stay in registers.

    Parameters
    ----------
    form : {"signed", "pairs"}
        See :class:`tvmq.kernels.workload.Dot`.
    registers : {16, 32}
        Vector registers of 128 bits.

    Returns
    -------
    columns : int
        A pixel takes four registers for its sums and one for its bytes.  Beside them there are one vector of weights
        or two; with ``smull`` also four orders of bytes, the spread bytes, and products.  LLVM begins so many products
        at once that 16 registers hold no second pixel.
    """
    if registers == 16:
        return 1
    return 6 if form == "signed" else 4


@cache
def register(name: str, columns: int, stride: int, steps: int) -> str:
    """Make TVM know the product of one tile; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    name : str
        One of `DOTS`.
    columns, stride : int
        Pixels, and from one to the next in the image.
    steps : {1, 4}
        Of four bytes each.

    Returns
    -------
    name : str
        From uint8 pixels [span, 1, 4 steps] and int8 weights to int32 sums [columns, 1, 1, 1, 16].
    """
    full = f"{name}.{columns}.{stride}.{steps}"
    paired = name != "arm.sdot"
    implementation = _paired(name, columns, stride, steps) if paired else _quads(columns, stride, steps)
    TensorIntrin.register(full, _description(columns, stride, steps, paired), implementation, override=True)
    return full


def _description(columns: int, stride: int, steps: int, paired: bool) -> Any:
    """The sums as plain arithmetic; TVM has no loops over one pixel or one step in it."""
    extents = {"pixel": columns, "lane": LANES, "step": steps, "byte": BYTES_PER_STEP}
    loops = {axis: extent for axis, extent in extents.items() if extent > 1}
    kinds = "".join("S" if axis in ("pixel", "lane") else "R" for axis in loops)
    p, t = (axis if extents[axis] > 1 else "0" for axis in ("pixel", "step"))
    sums = f"totals[{p}, 0, 0, 0, lane]"
    weight = f"{t}, lane // 4, byte // 2, lane % 4, byte % 2" if paired else f"{t}, lane, byte"
    text = f"""
@T.prim_func(s_tir=True)
def description(activation: T.handle, weight: T.handle, total: T.handle) -> None:
    first, second = T.int64(), T.int64()
    one, two, three, four = T.int64(), T.int64(), T.int64(), T.int64()
    pixels = T.match_buffer(
        activation, {_pixels(columns, stride, steps)}, "uint8", offset_factor=1, strides=[first, second, 1]
    )
    weights = T.match_buffer(weight, {_weights(steps, paired)}, "int8", offset_factor=1)
    totals = T.match_buffer(
        total, ({columns}, 1, 1, 1, {LANES}), "int32", offset_factor=1, strides=[one, two, three, four, 1]
    )
    with T.sblock("root"):
        T.reads({_region("totals", (columns, 1, 1, 1, LANES))}, {_region("pixels", _pixels(columns, stride, steps))},
                {_region("weights", _weights(steps, paired))})
        T.writes({_region("totals", (columns, 1, 1, 1, LANES))})
        for {", ".join(f"{axis}_" for axis in loops)} in T.grid({", ".join(map(str, loops.values()))}):
            with T.sblock("accumulate"):
                {", ".join(loops)} = T.axis.remap("{kinds}", [{", ".join(f"{axis}_" for axis in loops)}])
                {sums} = {sums} + T.Cast(
                    "int32", T.reinterpret("int8", pixels[{p} * {stride}, 0, {t} * 4 + byte])
                ) * T.Cast("int32", weights[{weight}])
"""
    return tvm.script.from_source(text, {"T": T})


def _pixels(columns: int, stride: int, steps: int) -> tuple[int, ...]:
    return ((columns - 1) * stride + 1, 1, BYTES_PER_STEP * steps)


def _weights(steps: int, paired: bool) -> tuple[int, ...]:
    return (steps, LANES // 4, 2, 4, 2) if paired else (steps, LANES, BYTES_PER_STEP)


def _region(buffer: str, shape: tuple[int, ...]) -> str:
    return f"{buffer}[{', '.join(f'0:{extent}' for extent in shape)}]"


def _call(name: str, dtype: str, *operands: Any) -> Any:
    return tirx.call_llvm_pure_intrin(dtype, name, *operands)


def _quads(columns: int, stride: int, steps: int) -> Any:
    """Lane t of a pixel's vector are its bytes of step t."""
    span, length = _pixels(columns, stride, steps)[::2]
    octets = f"uint8x{length}"

    def product(total: Any, activations: Any, weights: Any, step: Any) -> Any:
        if steps == 1:
            spread = T.Broadcast(T.reinterpret("int32", activations), 4)
        else:
            spread = T.Shuffle([T.reinterpret(f"int32x{steps}", activations)], [step] * 4)
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        return _call(name, "int32x4", total, weights, T.reinterpret("int8x16", spread))

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        first, second = T.int64(), T.int64()
        one, two, three, four = T.int64(), T.int64(), T.int64(), T.int64()
        pixels = T.match_buffer(activation, (span, 1, length), "uint8", offset_factor=1, strides=[first, second, 1])
        weights = T.match_buffer(weight, (steps, 16, 4), "int8", offset_factor=1)
        totals = T.match_buffer(
            total,
            (columns, 1, 1, 1, 16),
            "int32",
            offset_factor=1,
            strides=[one, two, three, four, 1],
        )
        with T.sblock("root"):
            T.reads(totals[0:columns, 0:1, 0:1, 0:1, 0:16], pixels[0:span, 0:1, 0:length], weights[0:steps, 0:16, 0:4])
            T.writes(totals[0:columns, 0:1, 0:1, 0:1, 0:16])
            for t in T.unroll(steps):
                for q in T.unroll(4):
                    for p in T.unroll(columns):
                        totals[p, 0, 0, 0, T.Ramp(4 * q, 1, 4)] = product(
                            totals.vload([p, 0, 0, 0, 4 * q], "int32x4"),
                            pixels.vload([p * stride, 0, 0], octets),
                            weights.vload([t, 4 * q, 0], "int8x16"),
                            t,
                        )

    return implementation


def _paired(name: str, columns: int, stride: int, steps: int) -> Any:
    """Products of pairs of bytes, for all channels of a pixel after each other."""
    span, length = _pixels(columns, stride, steps)[::2]
    octets = f"uint8x{length}"
    product = _sum_of_products(name, steps)

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        first, second = T.int64(), T.int64()
        one, two, three, four = T.int64(), T.int64(), T.int64(), T.int64()
        pixels = T.match_buffer(activation, (span, 1, length), "uint8", offset_factor=1, strides=[first, second, 1])
        weights = T.match_buffer(weight, (steps, 4, 2, 4, 2), "int8", offset_factor=1)
        totals = T.match_buffer(
            total,
            (columns, 1, 1, 1, 16),
            "int32",
            offset_factor=1,
            strides=[one, two, three, four, 1],
        )
        with T.sblock("root"):
            T.reads(
                totals[0:columns, 0:1, 0:1, 0:1, 0:16],
                pixels[0:span, 0:1, 0:length],
                weights[0:steps, 0:4, 0:2, 0:4, 0:2],
            )
            T.writes(totals[0:columns, 0:1, 0:1, 0:1, 0:16])
            for t in T.unroll(steps):
                for p in T.unroll(columns):
                    for q in T.unroll(4):
                        totals[p, 0, 0, 0, T.Ramp(4 * q, 1, 4)] = product(
                            totals.vload([p, 0, 0, 0, 4 * q], "int32x4"),
                            pixels.vload([p * stride, 0, 0], octets),
                            weights.vload([t, q, 0, 0, 0], "int8x16"),
                            t,
                        )

    return implementation


def _sum_of_products(name: str, steps: int) -> Callable[..., Any]:
    """One step of four channels: its products, in pairs or alone, added to 32 bits."""
    narrow = name.startswith("arm.vmull")
    multiply = "llvm.arm.neon.vmulls.v8i16" if narrow else "llvm.aarch64.neon.smull.v8i16"

    def halves(octets: Any) -> list[Any]:
        return [T.Shuffle([octets], list(range(start, start + 8))) for start in (0, 8)]

    def spread(activations: Any, step: Any) -> list[Any]:
        """Bytes k0 and k1 four times, k2 and k3 four times."""
        pairs = T.reinterpret(f"int16x{2 * steps}", activations)
        if narrow:
            copies = [pairs] * max(1, 4 // (2 * steps))
            return [T.reinterpret("int8x8", T.Shuffle(copies, [2 * step + half] * 4)) for half in (0, 1)]
        places = [2 * step] * 4 + [2 * step + 1] * 4
        return halves(T.reinterpret("int8x16", T.Shuffle([pairs] * max(1, 8 // (2 * steps)), places)))

    def added(total: Any, products: Any) -> Any:
        if narrow:
            return _call("llvm.arm.neon.vpadals.v4i32.v8i16", "int32x4", total, products)
        return total + _call("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", products)

    def product(total: Any, activations: Any, weights: Any, step: Any) -> Any:
        pairs = zip(spread(activations, step), halves(weights), strict=True)
        low, high = (_call(multiply, "int16x8", *pair) for pair in pairs)
        return added(total, low + high) if name.endswith("2") else added(added(total, low), high)

    return product
