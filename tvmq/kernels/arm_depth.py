"""Instructions of NEON for vectors along the depth; see :mod:`tvmq.kernels.depth`.

arm.depth.{xor,and}.V               the whole reduction of one register tile in steps of V bytes, and eight output
                                    channels: a loop of assembly (64-bit ARM)
arm.depth.{xor,and}.V.in-order      the same for a core that issues in order
arm.depth.{xor,and}.4.armv7         the same of 32-bit ARM
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import tvm
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.aarch64_assembly import Aarch64Reduction
from tvmq.kernels.arm_assembly import WALK_ATTRIBUTE, Loop, Reduction, llvm_module
from tvmq.kernels.armv7_assembly import STEP, Armv7Reduction
from tvmq.kernels.workload import DEPTH_LANES

__all__ = ["DEPTHS", "Tile", "register_tile"]

DEPTHS = (
    *(
        f"arm.depth.{combine}.{step}{order}"
        for combine in ("xor", "and")
        for step in (2, 4, 8, 16)
        for order in ("", ".in-order")
    ),
    *(f"arm.depth.{combine}.{STEP}.armv7" for combine in ("xor", "and")),
)


@dataclass(frozen=True)
class Tile:
    """The reduction of a register tile.

    Attributes
    ----------
    rows, columns : int
        Output pixels.
    kernel, strides, dilation : (int, int)
        Of the convolution.
    pixel_steps, stride : int
        Steps of one plane of a pixel, and bytes of the image from one to the next.
    activation_planes, weight_planes : int
        Planes, of which the reduction takes one of each.
    pitch : int
        Bytes of a row of the image; any number where there is one row.
    unrolled : int
        Steps in the body of the innermost loop: a divisor of those that follow each other in memory.
    """

    rows: int
    columns: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    pixel_steps: int
    stride: int
    activation_planes: int
    weight_planes: int
    pitch: int
    unrolled: int

    def reduction(self, combine: str, step: int, form: str | None) -> Reduction:
        """The same as pointers and loops; `form` is what ends the name of the instruction."""
        pixel = self.activation_planes * self.pixel_steps * self.stride
        tap = self.weight_planes * self.pixel_steps * step * DEPTH_LANES
        pixels = tuple(
            row * self.strides[0] * self.pitch + column * self.strides[1] * pixel
            for row in range(self.rows)
            for column in range(self.columns)
        )
        loops = [Loop(self.pixel_steps, self.stride, step * DEPTH_LANES)]
        for loop in (
            Loop(self.kernel[1], self.dilation[1] * pixel, tap),
            Loop(self.kernel[0], self.dilation[0] * self.pitch, self.kernel[1] * tap),
        ):
            inner = loops[-1]
            if (loop.pixel, loop.weight) == (inner.count * inner.pixel, inner.count * inner.weight) or loop.count == 1:
                loops[-1] = Loop(inner.count * loop.count, inner.pixel, inner.weight)
            else:
                loops.append(loop)
        innermost, *others = loops
        body = Loop(innermost.count // self.unrolled, innermost.pixel * self.unrolled, innermost.weight * self.unrolled)
        walk = (combine, step, pixels, self.unrolled, (body, *others))
        return Armv7Reduction(*walk) if form == "armv7" else Aarch64Reduction(*walk, in_order=form == "in-order")

    def spans(self, step: int) -> tuple[int, int, int, int]:
        """Shape of the part of the image that is read."""
        rows, columns = (
            (count - 1) * stride + (size - 1) * dilation + 1
            for count, stride, size, dilation in zip(
                (self.rows, self.columns), self.strides, self.kernel, self.dilation, strict=True
            )
        )
        return rows, columns, 1, (self.pixel_steps - 1) * self.stride + step


@cache
def register_tile(name: str, tile: Tile) -> str:
    """Make TVM know the reduction of a register tile; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    name : str
        One of `DEPTHS`.
    tile : Tile
        What it computes.

    Returns
    -------
    name : str
        Of an instruction from uint8 pixels [rows, columns, 1, bytes] of the image and weights [KH, KW, 1, steps, 8, V]
        to uint16 sums [rows, columns, 1, 1, 1, 1, 8], without loops over one.
    """
    _, _, combine, step, *form = name.split(".")
    reduction = tile.reduction(combine, int(step), form[0] if form else None)
    sizes = (tile.rows, tile.columns, *tile.kernel, *tile.strides, *tile.dilation)
    memory = (tile.pixel_steps, tile.stride, tile.activation_planes, tile.weight_planes, tile.pitch, tile.unrolled)
    full = ".".join([name, *map(str, (*sizes, *memory))])
    function = "tvmq_" + full.replace(".", "_").replace("-", "_")
    description = _description(tile, combine, int(step))
    implementation = _implementation(tile, int(step), function, reduction)
    TensorIntrin.register(full, description, implementation, override=True)
    return full


def _header(tile: Tile, step: int) -> str:
    """Buffers and regions of a tile."""
    spans, weights = tile.spans(step), (*tile.kernel, 1, tile.pixel_steps, DEPTH_LANES, step)
    totals = (tile.rows, tile.columns, 1, 1, 1, 1, DEPTH_LANES)
    return f"""
def function(activation: T.handle, weight: T.handle, total: T.handle) -> None:
    a, b, c = T.int64(), T.int64(), T.int64()
    d, e, f, g, h = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
    i, j, k, l, m, n = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
    pixels = T.match_buffer(activation, {spans}, "uint8", offset_factor=1, strides=[a, b, c, 1])
    weights = T.match_buffer(weight, {weights}, "uint8", offset_factor=1, strides=[d, e, f, g, h, 1])
    totals = T.match_buffer(
        total, {totals}, "uint16", offset_factor=1, strides=[i, j, k, l, m, n, 1]
    )
    with T.sblock("root"):
        T.reads({_region("totals", totals)}, {_region("pixels", spans)}, {_region("weights", weights)})
        T.writes({_region("totals", totals)})
"""


def _region(buffer: str, shape: tuple[int, ...]) -> str:
    return f"{buffer}[{', '.join(f'0:{extent}' for extent in shape)}]"


def _description(tile: Tile, combine: str, step: int) -> Any:
    """The sums as plain arithmetic; TVM has no loops over one pixel or one step in it."""
    names = ("y", "x", "lane", "kh", "kw", "t", "byte")
    extents = (tile.rows, tile.columns, DEPTH_LANES, *tile.kernel, tile.pixel_steps, step)
    loops = {name: extent for name, extent in zip(names, extents, strict=True) if extent > 1}
    kinds = "".join("S" if name in names[:3] else "R" for name in loops)
    y, x, _, kh, kw, t, _ = (name if name in loops else "0" for name in names)
    own = ", ".join(f"{name}_" for name in loops)
    sums = f"totals[{y}, {x}, 0, 0, 0, 0, lane]"
    row, column = (
        f"{pixel} * {stride} + {tap} * {dilation}"
        for pixel, stride, tap, dilation in zip((y, x), tile.strides, (kh, kw), tile.dilation, strict=True)
    )
    meet = "^" if combine == "xor" else "&"
    text = f"""
@T.prim_func(s_tir=True){_header(tile, step)}
        for {own} in T.grid({", ".join(map(str, loops.values()))}):
            with T.sblock("accumulate"):
                {", ".join(loops)} = T.axis.remap("{kinds}", [{own}])
                {sums} = {sums} + T.Cast(
                    "uint16",
                    T.popcount(
                        pixels[{row}, {column}, 0, {t} * {tile.stride} + byte]
                        {meet} weights[{kh}, {kw}, 0, {t}, lane, byte]
                    ),
                )
"""
    return tvm.script.from_source(text, {"T": T})


def _implementation(tile: Tile, step: int, function: str, reduction: Reduction) -> Any:
    """A call of the loop."""
    sums = (
        f"T.address_of(totals[{row}, {column}, 0, 0, 0, 0, 0])"
        for row in range(tile.rows)
        for column in range(tile.columns)
    )
    text = f"""
@T.prim_func(s_tir=True){_header(tile, step)}
        with T.attr(0, "pragma_import_llvm", MODULE):
            with T.attr(0, "{WALK_ATTRIBUTE}", WALK):
                T.evaluate(
                    T.call_extern(
                        "void", "{function}", T.address_of(pixels[0, 0, 0, 0]), T.address_of(weights[0, 0, 0, 0, 0, 0]),
                        {", ".join(sums)}
                    )
                )
"""
    module, walk = llvm_module(function, reduction), reduction.walk.to_json()
    return tvm.script.from_source(text, {"T": T, "MODULE": module, "WALK": walk})
