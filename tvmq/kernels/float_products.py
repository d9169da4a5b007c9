"""Products of float32 activations with constant weights: float32, or low-bit codes that stay packed until registers.

**What is computed.**  ``acc_o`` starts at 0 and takes ``acc_o = fma(x_k, u_ok, acc_o)`` for k in ascending order.  A
window's numbers are in the order channel, kernel row, kernel column, as the weights of a network are.  The u_ok are the
weights, or small integers, which are exact in float32; those are multiplied by a scale, ``scale_o * acc_o``.  With
order and rounding fixed every target computes the same bits.  Then may follow, each rounded by itself, what a network
does next: a bias per channel, a multiply-add per channel (batch normalization, rounded once), a shortcut, and bounds
(ReLU has a lower one, ReLU6 both).

**Zeros.**  ``fma(0, u, acc) = acc`` for finite u, unless acc is -0.  A sum of products with integers is never -0,
because it starts at +0 and is -0 only if both terms are: so a length is rounded up to whole words with zeros in x.
A product of floats may underflow to -0, so with float weights exactly the given terms are added.  The zeros of the
padding are always among them.

**How.**  Lanes are output channels.  A word of 32 bits holds the codes of one channel for ``32 // bits`` successive k,
or one of 16 bits those of 16 where they have 1 bit.  So one load serves that many steps, and a step decodes a whole
vector of channels with a shift and

* a permutation of registers, where the vector unit looks codes up in a vector of values (x86): it ignores the higher
  bits of its index, so the field need not be cut out, and any alphabet of up to 3 bits (AVX2) or 4 bits (AVX-512) will
  do;
* integer arithmetic and a conversion anywhere else.

A float32 weight is a word of its own, and needs no decoding.

The vectors of weights are multiplied with a tile of pixels or samples, which is copied beforehand so that the numbers
of one k are neighbours: decoding and copying are shared by the tile and by all channels.

The function is described as tensor expressions, its blocks are

* ``pad``: the image with zeros around it, wide enough for whole tiles;
* ``tile``: the numbers of a tile in the order of k;
* ``table``: the values of all codes, for the permutation;
* ``unit``: one vector of decoded weights;
* ``accumulate``: the sums;
* ``scaled``: whole tiles of results, but for the shortcut and what follows it;
* ``output``: results without padded channels and pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.ir import Var

from tvmq.kernels.code_fields import field_value
from tvmq.kernels.conv2d import WORKLOAD_ATTRIBUTE, as_kernel
from tvmq.kernels.float_epilogue import FloatEpilogue
from tvmq.kernels.float_workload import (
    DYNAMIC_ROWS,
    Extent,
    FloatWorkload,
    Tile,
    best_tile,
    divisor,
    pixel_tile,
    samples_tile,
)
from tvmq.kernels.rounding import fuse_products

__all__ = ["float_product", "schedule_float_product"]

_PARALLEL_MACS = 500_000
"""Multiply-accumulates below which waking other threads costs more than it saves."""
_MOST_STEPS = 8
"""Successive float weights of a channel that the body of a loop multiplies at most."""


def float_product(workload: FloatWorkload, batch: Extent, permute: bool = False) -> tirx.PrimFunc:
    """The unscheduled function of one layer.

    Parameters
    ----------
    workload : FloatWorkload
        What to compute.
    batch : int or tirx.Var
        Number of samples.
    permute : bool
        Whether codes are looked up by a permutation of registers; such a function must be scheduled before it runs.

    Returns
    -------
    function : tirx.PrimFunc
        Parameters: ``data`` [N, C, H, W] or [N, K] float32, ``weight`` [groups, words, vectors, lanes] words or
        float32; as the workload has it ``scale``, ``bias``, ``multiplier`` and ``offset`` [channels], and ``shortcut``
        of the output's shape, float32; ``output`` [N, O, OH, OW] or [N, O] float32.
    """
    builder = _Builder(workload, batch, permute)
    output = builder.dense() if workload.dense else builder.convolution()
    function = fuse_products(te.create_prim_func([*builder.inputs, output]))
    return as_kernel(function, "float_product").with_attr(WORKLOAD_ATTRIBUTE, workload.to_json())


class _Builder:
    """Tensor expressions of one workload; methods make the stages they are named after."""

    def __init__(self, workload: FloatWorkload, batch: Extent, permute: bool) -> None:
        self.workload, self.batch = workload, batch
        size = () if workload.dense else (workload.height, workload.width)
        self.data = te.placeholder((batch, workload.in_channels, *size), "float32", "data")
        self.weight = te.placeholder(workload.weight_shape(), workload.word_dtype, "weight")
        self.epilogue = FloatEpilogue(workload, batch)
        self.inputs = [self.data, self.weight, *self.epilogue.inputs]
        self.permute = permute
        self.padded_length = workload.words * workload.codes_per_word

    # --- weights ---

    def table_value(self, lane: Any) -> Any:
        code = lane.astype("int32")
        terms = [(code >> bit & 1) * factor for bit, factor in enumerate(self.workload.coefficients)]
        return (sum(terms[1:], terms[0]) + self.workload.offset).astype("float32")

    def unit(self, vectors: int, suffix: str) -> Callable[..., Any]:
        """Weights by channel tile of `vectors` vectors, word, step, vector and lane."""
        workload = self.workload
        if not workload.is_packed:

            def stored(tile: Any, word: Any, _step: Any, vector: Any, lane: Any) -> Any:
                index = tile * vectors + vector
                return self.weight[index // workload.group, word, index % workload.group, lane]

            return stored
        shape = (
            workload.vectors // vectors,
            workload.words,
            workload.codes_per_word,
            vectors,
            workload.lanes,
        )
        table = te.compute((workload.lanes,), self.table_value, name=f"table{suffix}") if self.permute else None

        def value(tile: Any, word: Any, step: Any, vector: Any, lane: Any) -> Any:
            index = tile * vectors + vector
            packed = self.weight[index // workload.group, word, index % workload.group, lane].astype("uint32")
            if table is None:
                return field_value(workload, packed, step)
            # It has a meaning only as a whole vector: a lane's value is the table's at the place that its code names.
            name = "llvm.x86.avx512.permvar.sf.512" if workload.lanes == 16 else "llvm.x86.avx2.permps"
            index = tirx.reinterpret("int32", packed >> (step * workload.bits).astype("uint32"))
            return tirx.call_llvm_pure_intrin("float32", name, table[lane], index)

        return te.compute(shape, value, name=f"unit{suffix}")

    def reduction(self) -> tuple[Any, Any, Any]:
        """Axes over words and the codes of one, and their place in the order of k."""
        word = te.reduce_axis((0, self.workload.words), "word")
        step = te.reduce_axis((0, self.workload.codes_per_word), "step")
        return word, step, word * self.workload.codes_per_word + step

    def channel(self, tile: Any, vector: Any, lane: Any, vectors: int) -> Any:
        return (tile * vectors + vector) * self.workload.lanes + lane

    def within_length(self, k: Any, value: Any) -> Any:
        if self.padded_length == self.workload.length:
            return value
        return tirx.if_then_else(k < self.workload.length, value, tirx.const(0, "float32"))

    # --- convolution ---

    def convolution(self) -> te.Tensor:
        workload = self.workload
        shape = pixel_tile(workload)
        grid = (-(-workload.out_height // shape.rows), -(-workload.out_width // shape.columns))
        image = self.pad(grid[0] * shape.rows, grid[1] * shape.columns)
        taps, width = workload.kernel[0] * workload.kernel[1], workload.kernel[1]
        strides, dilation = workload.strides, workload.dilation

        def number(n: Any, ty: Any, tx: Any, k: Any, r: Any, c: Any) -> Any:
            row = (ty * shape.rows + r) * strides[0] + k % taps // width * dilation[0]
            column = (tx * shape.columns + c) * strides[1] + k % width * dilation[1]
            return self.within_length(k, image[n, k // taps, row, column])

        pixels = (shape.rows, shape.columns)
        tile = te.compute((self.batch, *grid, self.padded_length, *pixels), number, name="tile")
        units = self.unit(shape.vectors, "")
        word, step, k = self.reduction()
        tiles = (self.batch, *grid, workload.vectors // shape.vectors, *pixels, shape.vectors, workload.lanes)

        def total(n: Any, ty: Any, tx: Any, g: Any, r: Any, c: Any, v: Any, lane: Any) -> Any:
            return te.sum(tile[n, ty, tx, k, r, c] * units(g, word, step, v, lane), axis=[word, step])

        sums = te.compute(tiles, total, name="accumulate")

        def product(*indices: Any) -> Any:
            *_, g, _r, _c, v, lane = indices
            return self.epilogue.of_sum(sums[indices], self.channel(g, v, lane, shape.vectors))

        scaled = te.compute(tiles, product, name="scaled")
        lanes, group = workload.lanes, workload.lanes * shape.vectors

        def result(n: Any, o: Any, y: Any, x: Any) -> Any:
            place = (y // shape.rows, x // shape.columns, o // group, y % shape.rows, x % shape.columns)
            return self.epilogue.of_place(scaled(n, *place, o // lanes % shape.vectors, o % lanes), n, o, y, x)

        return te.compute((self.batch, workload.out_channels, *workload.out_size), result, name="output")

    def pad(self, rows: int, columns: int) -> te.Tensor:
        """Zeros around the image, and behind it if there are fewer pixels than tiles take."""
        workload = self.workload
        top, left, _, _ = workload.padding
        height, width = (
            (count - 1) * stride + dilation * (kernel - 1) + 1
            for count, stride, dilation, kernel in zip(
                (rows, columns), workload.strides, workload.dilation, workload.kernel, strict=True
            )
        )
        if (top, left) == (0, 0) and height <= workload.height and width <= workload.width:
            return self.data

        def number(n: Any, c: Any, y: Any, x: Any) -> Any:
            inside = tirx.all(y >= top, y < top + workload.height, x >= left, x < left + workload.width)
            return tirx.if_then_else(inside, self.data[n, c, y - top, x - left], tirx.const(0, "float32"))

        return te.compute((self.batch, workload.in_channels, height, width), number, name="pad")

    # --- dense ---

    def dense(self) -> te.Tensor:
        parts = [self.part(*part, str(index)) for index, part in enumerate(self.parts())]
        lanes = self.workload.lanes

        def result(n: Any, o: Any) -> Any:
            values = [
                scaled[n - start, o // (lanes * shape.vectors), o // lanes % shape.vectors, o % lanes]
                for scaled, start, shape in parts
            ]
            number = values[0] if len(values) == 1 else tirx.if_then_else(n < parts[1][1], *values)
            return self.epilogue.of_place(number, n, o)

        return te.compute((self.batch, self.workload.out_channels), result, name="output")

    def parts(self) -> list[tuple[int, Extent, Tile]]:
        """(first sample, samples, tile): whole tiles, then what is left; an unknown number is rounded up."""
        if not isinstance(self.batch, int):
            whole = best_tile(self.workload, DYNAMIC_ROWS, 1, DYNAMIC_ROWS)
            return [(0, (self.batch + whole.rows - 1) // whole.rows * whole.rows, whole)]
        rows, vectors = samples_tile(self.workload, self.batch)
        whole, rest = Tile(rows, 1, vectors), self.batch % rows
        parts: list[tuple[int, Extent, Tile]] = [(0, self.batch - rest, whole)]
        return [*parts, (self.batch - rest, rest, Tile(rest, 1, vectors))] if rest else parts

    def part(self, start: int, count: Extent, shape: Tile, suffix: str) -> tuple[te.Tensor, int, Tile]:
        """Results [samples, channel tiles, vectors, lanes] of some samples."""
        workload = self.workload

        def number(t: Any, k: Any, r: Any) -> Any:
            row = start + t * shape.rows + r
            if not isinstance(self.batch, int):
                row = tirx.min(row, self.batch - 1)  # surplus samples are not stored
            return self.within_length(k, self.data[row, k])

        tile = te.compute((count // shape.rows, self.padded_length, shape.rows), number, name=f"tile{suffix}")
        units = self.unit(shape.vectors, suffix)
        word, step, k = self.reduction()
        size = (count, workload.vectors // shape.vectors, shape.vectors, workload.lanes)

        def total(n: Any, g: Any, v: Any, lane: Any) -> Any:
            return te.sum(tile[n // shape.rows, k, n % shape.rows] * units(g, word, step, v, lane), axis=[word, step])

        sums = te.compute(size, total, name=f"accumulate{suffix}")

        def product(n: Any, g: Any, v: Any, lane: Any) -> Any:
            return self.epilogue.of_sum(sums[n, g, v, lane], self.channel(g, v, lane, shape.vectors))

        return te.compute(size, product, name=f"scaled{suffix}"), start, shape


def schedule_float_product(function: tirx.PrimFunc, target: Any) -> tirx.PrimFunc:
    """Give the function its loops.

    Parameters
    ----------
    function : tirx.PrimFunc
        From :func:`float_product`.
    target : TargetLike
        The core.

    Returns
    -------
    scheduled : tirx.PrimFunc
    """
    workload = FloatWorkload.from_json(str(function.attrs[WORKLOAD_ATTRIBUTE]))
    batch = function.params[0].shape[0]
    if isinstance(batch, int | tirx.IntImm):
        return _scheduled(workload, int(batch), target)
    scheduled = _scheduled(workload, batch, target)
    return _with_single_sample(scheduled, _scheduled(workload, 1, target)) if workload.dense else scheduled


def _scheduled(workload: FloatWorkload, batch: Extent, target: Any) -> tirx.PrimFunc:
    permute = target.arch == "x86_64" and workload.is_packed and 2**workload.bits <= workload.lanes
    sch = s_tir.Schedule(float_product(workload, batch, permute).without_attr("global_symbol"))
    cores = getattr(target, "cores", 1) if workload.macs >= _PARALLEL_MACS else 1
    scheduler = _Scheduler(sch, workload, target.arch != "armv7l", cores > 1)
    if workload.dense:
        scheduler.dense()
    else:
        scheduler.convolution()
    return sch.mod["main"]


def _with_single_sample(many: tirx.PrimFunc, single: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function of any number of samples that runs another one for a single sample.

    One sample is what a network on a device mostly gets, and a tile of samples would compute most of its sums in vain.
    """
    parameters = dict(zip(single.params, many.params, strict=True))
    body = tvm_ffi.structural_map(single.body, (Var, lambda variable: parameters.get(variable, variable)))
    choice = tirx.IfThenElse(many.params[0].shape[0] == 1, body, many.body)
    root = s_tir.SBlock([], [], [], "root", choice)
    return tirx.PrimFunc(many.params, s_tir.SBlockRealize([], True, root), many.ret_type, many.attrs)


class _Scheduler:
    """The loops of one function."""

    def __init__(self, sch: s_tir.Schedule, workload: FloatWorkload, vector: bool, parallel: bool) -> None:
        self.sch, self.workload, self.vector, self.parallel = sch, workload, vector, parallel
        root = sch.get_sblock("root")
        self.blocks = {str(sch.get(block).name_hint): block for block in sch.get_child_blocks(root)}

    def convolution(self) -> None:
        sch, blocks = self.sch, self.blocks
        n, ty, tx, group, *own = sch.get_loops(blocks["scaled"])
        tile_loop = tx
        if self.parallel:
            tasks = [n, ty, tx] if isinstance(sch.get(n).extent, tirx.IntImm) else [ty, tx]
            tile_loop = sch.fuse(*tasks)
            sch.parallel(tile_loop)
        sch.compute_at(blocks["accumulate"], group, preserve_unit_loops=True)
        sch.reverse_compute_at(blocks["output"], tile_loop, preserve_unit_loops=True)
        sch.compute_at(blocks["tile"], tile_loop, preserve_unit_loops=True)
        self.results("scaled", own)
        self.sums("", 8)
        self.gather()
        self.scatter()
        self.decompose_padding()

    def dense(self) -> None:
        sch, blocks = self.sch, self.blocks
        suffixes = [name.removeprefix("scaled") for name in blocks if name.startswith("scaled")]
        for suffix in suffixes:
            samples, group, *own = sch.get_loops(blocks[f"scaled{suffix}"])
            rows = sch.get(sch.get_loops(blocks[f"tile{suffix}"])[-1]).extent
            tile, row = sch.split(samples, [None, rows])
            sch.reorder(group, tile, row, *own)
            if self.parallel:
                sch.parallel(group)
            sch.compute_at(blocks[f"accumulate{suffix}"], tile, preserve_unit_loops=True)
            self.results(f"scaled{suffix}", [row, *own])
            self.sums(suffix, 4)
            sch.vectorize(sch.get_loops(blocks[f"tile{suffix}"])[-1])

    def results(self, name: str, own: list[Any]) -> None:
        """Sums times scale."""
        for loop in own[:-1]:
            self.sch.unroll(loop)
        self.lanes(own[-1])

    def lanes(self, loop: Any) -> None:
        if self.vector:
            self.sch.vectorize(loop)
        else:
            self.sch.unroll(loop)

    def sums(self, suffix: str, spatial: int) -> None:
        """The reduction outside the register tile, which is unrolled; weights are decoded once for it."""
        sch, blocks = self.sch, self.blocks
        block = blocks[f"accumulate{suffix}"]
        *pixels, word, step = sch.get_loops(block)[-spatial - 2 :]  # those of a tile, and outer ones of extent 1
        sch.reorder(word, step, *pixels)
        for loop in pixels[:-1]:
            sch.unroll(loop)
        self.lanes(pixels[-1])
        sch.set_scope(block, 0, "local")
        outermost = word
        if self.workload.is_packed:
            unit = blocks[f"unit{suffix}"]
            sch.compute_at(unit, step, preserve_unit_loops=True)
            sch.set_scope(unit, 0, "local")
            vector, lane = sch.get_loops(unit)[-2:]
            sch.unroll(vector)
            sch.vectorize(lane)
        else:
            outermost, step = sch.split(word, [None, divisor(self.workload.words, _MOST_STEPS)])
        sch.unroll(step)
        sch.decompose_reduction(block, outermost)
        if f"table{suffix}" in blocks:
            # Beside the sums, and stored as one vector, it stays in a register: LLVM keeps others in memory.
            sch.compute_at(blocks[f"table{suffix}"], outermost, preserve_unit_loops=True)
            sch.set_scope(blocks[f"table{suffix}"], 0, "local")
            sch.vectorize(sch.get_loops(blocks[f"table{suffix}"])[-1])

    def gather(self) -> None:
        """The copy of a tile, one k after the other, in vectors of a row of pixels."""
        sch, tile = self.sch, self.blocks["tile"]
        k, row, column = sch.get_loops(tile)[-3:]
        if self.workload.kernel != (1, 1):
            sch.split(k, [None, *self.workload.kernel])  # so that no step has to divide k into its position
        sch.unroll(row)
        if self.workload.strides[1] == 1:
            sch.vectorize(column)
        else:
            sch.unroll(column)

    def scatter(self) -> None:
        """Results to the output, whose pixels are neighbours where those of the sums are channels."""
        sch, output = self.sch, self.blocks["output"]
        row, column = sch.get_loops(output)[-2:]
        sch.unroll(row)
        sch.vectorize(column)

    def decompose_padding(self) -> None:
        if "pad" not in self.blocks:
            return
        outermost = self.sch.get_loops(self.blocks["pad"])[0]
        if self.sch.can_decompose_padding(self.blocks["pad"], outermost):
            self.sch.decompose_padding(self.blocks["pad"], outermost)
