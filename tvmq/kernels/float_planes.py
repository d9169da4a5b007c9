"""Convolutions of float32 images whose lanes are pixels of a row: grouped and depthwise, or of few channels.

What is computed is defined in :mod:`tvmq.kernels.float_products`.  There lanes are output channels, which must be many
and share their inputs.  Here a vector holds neighbouring pixels of one output channel, and is multiplied with one
weight; images stay as they are, channels first, so nothing is gathered and nothing scattered.

A register tile is a few output channels of one group, a few rows, and vectors of pixels of a row.  Rows of a pointwise
convolution run into each other.  Rows that are not whole vectors are computed longer than they are, and copied.

The function is described as tensor expressions, its blocks are

* ``decoded``: weights, of codes, as float32; their scales are left to the results;
* ``pad``: the image with zeros around it, wide enough for whole vectors;
* ``phase``: where columns are strided, every so-manieth column of it, so that what a vector needs is contiguous; where
  the stride divides the image's width, both are one block, ``pad_phase``;
* ``accumulate``: the sums;
* ``scaled``: results, but for the shortcut and what follows it, where rows are longer than the output's;
* ``output``: results.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.ir import Range, TensorLoad, TensorRegion

from tvmq.kernels.code_fields import field_value
from tvmq.kernels.conv2d import WORKLOAD_ATTRIBUTE, as_kernel
from tvmq.kernels.float_epilogue import FloatEpilogue
from tvmq.kernels.float_workload import Extent, FloatWorkload, divisor
from tvmq.kernels.rounding import fuse_products

__all__ = ["float_planes", "schedule_float_planes"]

_CHAINS = 8
"""Sums that must be under way to hide the latency of a fused multiply-add: four cycles, two per cycle."""
_MOST_CHANNELS = 16
_MOST_ROWS = 8
_CACHED = 16384
"""Bytes of padded rows that stay in the first-level cache."""
_MOST_BYTES = 1024
"""Bytes of sums that TVM puts on the heap, which takes longer than few products; many are worth it."""
_MOST_PIECES = 14
"""Vectors of a row in one tile at most."""
_MOST_PRODUCTS = 256
"""Products in the body of a loop."""
_MOST_NARROW_PRODUCTS = 144
"""The same for vectors of four numbers, whose loads are more: LLVM begins so many that longer bodies spill."""
_NARROW = 4
"""Numbers of a vector of NEON."""
_MOST_STEPS = 4
"""Successive channels that the body of a loop multiplies at most."""
_PADDED = ("pad", "pad_phase")
"""Blocks with zeros around an image."""
_PARALLEL_MACS = 500_000
"""Multiply-accumulates below which waking other threads costs more than it saves."""


@dataclass(frozen=True)
class _Tile:
    """Output channels, rows and vectors of a row whose sums are in registers, and pixels of a vector."""

    channels: int
    rows: int
    pieces: int
    lanes: int


def _divisors(number: int, most: int) -> list[int]:
    return [size for size in range(1, min(number, most) + 1) if number % size == 0]


def _lanes(workload: FloatWorkload) -> int:
    """Pixels of a vector: fewer than the core has where rows are that short."""
    columns = workload.out_width
    return min(workload.lanes, 1 << (columns - 1).bit_length())


def _columns(workload: FloatWorkload) -> int:
    """Columns that are computed: whole vectors."""
    lanes = _lanes(workload)
    return -(-workload.out_width // lanes) * lanes


@lru_cache(maxsize=256)
def _tile(workload: FloatWorkload) -> _Tile:
    """The tile of the lowest estimated cost per output.

    A tap takes a multiply-add for every sum (no fewer than hide its latency); a load for every vector of pixels, half
    as much again where it is not aligned, and one for every channel's weight, of which there are as many per cycle.
    """
    lanes = _lanes(workload)
    aligned = workload.kernel == (1, 1)

    def registers(tile: _Tile) -> int:
        vectors = tile.rows * tile.pieces
        return tile.channels * vectors + min(vectors, tile.channels) + 2

    def cost(tile: _Tile) -> float:
        vectors = tile.rows * tile.pieces
        loads = (1.0 if aligned else 1.5) * vectors + tile.channels
        return (max(tile.channels * vectors, _CHAINS) + 0.5 * loads) / (tile.channels * vectors)

    tiles = [
        _Tile(channels, height, pieces, lanes)
        for channels in _divisors(workload.out_channels // workload.groups, _MOST_CHANNELS)
        for height in _divisors(workload.out_height, _MOST_ROWS)
        for pieces in _divisors(_columns(workload) // lanes, _MOST_PIECES)
    ]
    fitting = [
        tile
        for tile in tiles
        if registers(tile) <= workload.registers
        and (tile.channels > 1 or 4 * tile.rows * tile.pieces * lanes < _MOST_BYTES or tile.rows * tile.pieces == 1)
    ]
    return min(fitting, key=lambda tile: (round(cost(tile), 2), -tile.channels * tile.rows * tile.pieces))


def float_planes(workload: FloatWorkload, batch: Extent) -> tirx.PrimFunc:
    """The unscheduled function of one layer.

    Parameters
    ----------
    workload : FloatWorkload
        Whose lanes are pixels.
    batch : int or tirx.Var
        Number of samples.

    Returns
    -------
    function : tirx.PrimFunc
        Parameters: ``data`` [N, C, H, W]; ``weight`` [O, C / groups, KH, KW], or words of codes [O, words]; as the
        workload has it ``scale``, ``bias``, ``multiplier`` and ``offset`` [O], and ``shortcut`` [N, O, OH, OW];
        ``output`` [N, O, OH, OW]; all float32 but for words, which are uint16 or uint32.
    """
    data = te.placeholder((batch, workload.in_channels, workload.height, workload.width), "float32", "data")
    weight = te.placeholder(workload.weight_shape(), workload.word_dtype, "weight")
    epilogue = FloatEpilogue(workload, batch)
    sums = _sums(workload, batch, data, weight)

    scaled = None
    if not _is_whole(workload):
        scaled = te.compute(sums.shape, lambda *index: epilogue.of_sum(sums[index], index[1]), name="scaled")

    def result(*index: Any) -> Any:
        return epilogue.of_place(
            scaled[index] if scaled is not None else epilogue.of_sum(sums[index], index[1]), *index
        )

    output = te.compute((batch, workload.out_channels, *workload.out_size), result, name="output")
    function = fuse_products(te.create_prim_func([data, weight, *epilogue.inputs, output]))
    return as_kernel(function, "float_planes").with_attr(WORKLOAD_ATTRIBUTE, workload.to_json())


def _is_whole(workload: FloatWorkload) -> bool:
    """Whether the rows of the output are whole vectors."""
    return _columns(workload) == workload.out_width


def _sums(workload: FloatWorkload, batch: Extent, data: te.Tensor, weight: te.Tensor) -> te.Tensor:
    rows, columns = workload.out_height, _columns(workload)
    inputs = workload.in_channels // workload.groups
    outputs = workload.out_channels // workload.groups
    factor = _weights(workload, weight)
    channel = te.reduce_axis((0, inputs), "channel")
    ky, kx = (te.reduce_axis((0, size), name) for size, name in zip(workload.kernel, ("ky", "kx"), strict=True))
    pixel = _pixels(workload, batch, data, columns)

    def total(n: Any, o: Any, y: Any, x: Any) -> Any:
        return te.sum(
            pixel(n, o // outputs * inputs + channel, y, x, ky, kx) * factor(o, channel, ky, kx), [channel, ky, kx]
        )

    return te.compute((batch, workload.out_channels, rows, columns), total, name="accumulate")


def _weights(workload: FloatWorkload, weight: te.Tensor) -> Any:
    """The number that an input is multiplied with, by output channel, channel of the group, row and column."""
    if not workload.is_packed:
        return lambda *index: weight[index]
    steps, (height, width) = workload.codes_per_word, workload.kernel
    decoded = te.compute(
        (workload.out_channels, workload.words, steps),
        lambda o, word, step: field_value(workload, weight[o, word].astype("uint32"), step),
        name="decoded",
    )

    def factor(o: Any, channel: Any, ky: Any, kx: Any) -> Any:
        place = (channel * height + ky) * width + kx
        return decoded[o, place // steps, place % steps]

    return factor


def _pixels(workload: FloatWorkload, batch: Extent, data: te.Tensor, columns: int) -> Any:
    """The number that an output, of so many columns, sees through a tap, by their positions."""
    strides, dilation, (top, left, _, _) = workload.strides, workload.dilation, workload.padding
    reach = [dilation[axis] * (workload.kernel[axis] - 1) for axis in (0, 1)]
    length = columns + reach[1] // strides[1]
    height, width = (workload.out_height - 1) * strides[0] + reach[0] + 1, (length - 1) * strides[1] + 1
    phases = min(strides[1], reach[1] + 1)
    width += phases - 1
    if strides[1] > 1 and phases == strides[1] and workload.width % strides[1] == 0:
        return _padded_phases(workload, batch, data, (height, length))
    image = data
    if (top, left) != (0, 0) or height > workload.height or width > workload.width:

        def number(n: Any, c: Any, y: Any, x: Any) -> Any:
            inside = tirx.all(y >= top, y < top + workload.height, x >= left, x < left + workload.width)
            return tirx.if_then_else(inside, data[n, c, y - top, x - left], tirx.const(0, "float32"))

        image = te.compute((batch, workload.in_channels, height, width), number, name="pad")
    if strides[1] == 1:
        return lambda n, c, y, x, ky, kx: image[n, c, y * strides[0] + ky * dilation[0], x + kx * dilation[1]]
    phase = te.compute(
        (batch, workload.in_channels, height, phases, length),
        lambda n, c, y, p, x: image[n, c, y, x * strides[1] + p],
        name="phase",
    )

    def strided(n: Any, c: Any, y: Any, x: Any, ky: Any, kx: Any) -> Any:
        row, column = y * strides[0] + ky * dilation[0], kx * dilation[1]
        return phase[n, c, row, column % strides[1], x + column // strides[1]]

    return strided


def _padded_phases(workload: FloatWorkload, batch: Extent, data: te.Tensor, size: tuple[int, int]) -> Any:
    """The same for strided columns, without a padded image: the padding on the left is rounded up to whole strides.

    Then what is inside the image is the same range of positions in every phase.
    """
    (row_stride, stride), (top, left, _, _) = workload.strides, workload.padding
    lead = -(-left // stride)
    shift = lead * stride - left
    height, length = size[0], size[1] + (workload.dilation[1] * (workload.kernel[1] - 1) % stride + shift) // stride

    def number(n: Any, c: Any, y: Any, p: Any, x: Any) -> Any:
        inside = tirx.all(y >= top, y < top + workload.height, x >= lead, x < lead + workload.width // stride)
        return tirx.if_then_else(inside, data[n, c, y - top, (x - lead) * stride + p], tirx.const(0, "float32"))

    phase = te.compute((batch, workload.in_channels, height, stride, length), number, name="pad_phase")

    def strided(n: Any, c: Any, y: Any, x: Any, ky: Any, kx: Any) -> Any:
        column = kx * workload.dilation[1] + shift
        return phase[n, c, y * row_stride + ky * workload.dilation[0], column % stride, x + column // stride]

    return strided


def schedule_float_planes(function: tirx.PrimFunc, target: Any) -> tirx.PrimFunc:
    """Give the function its loops.

    Parameters
    ----------
    function : tirx.PrimFunc
        From :func:`float_planes`.
    target : TargetLike
        The core.

    Returns
    -------
    scheduled : tirx.PrimFunc
    """
    workload = FloatWorkload.from_json(str(function.attrs[WORKLOAD_ATTRIBUTE]))
    batch = function.params[0].shape[0]
    is_flat = workload.is_pointwise and workload.height > 1
    if is_flat:
        workload = dataclasses.replace(workload, height=1, width=workload.height * workload.width)
    known = int(batch) if isinstance(batch, tirx.IntImm) else batch
    sch = s_tir.Schedule(float_planes(workload, known).without_attr("global_symbol"))
    cores = getattr(target, "cores", 1) if workload.macs >= _PARALLEL_MACS else 1
    _Scheduler(sch, workload, target.arch != "armv7l", cores > 1).run()
    return _with_rows(sch.mod["main"], function) if is_flat else sch.mod["main"]


def _with_rows(flat: tirx.PrimFunc, function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A function of images whose rows run into each other, on the parameters of the function of the images."""
    images = {
        flattened: parameter
        for flattened, parameter in zip(flat.params, function.params, strict=True)
        if not tvm_ffi.structural_equal(flattened.shape, parameter.shape)
    }

    def place(image: Any, indices: Any) -> list[Any]:
        n, c, _, x = indices
        width = image.shape[3]
        return [n, c, x // width, x % width]

    def load(node: TensorLoad) -> Any:
        image = images.get(node.source)
        return node if image is None else tirx.BufferLoad(image, place(image, node.indices))

    def store(node: tirx.BufferStore) -> Any:
        image = images.get(node.buffer)
        return node if image is None else tirx.BufferStore(image, node.value, place(image, node.indices))

    def region(node: TensorRegion) -> Any:
        image = images.get(node.source)
        if image is None:
            return node
        return tirx.BufferRegion(image, [*node.region[:2], *(Range(0, extent) for extent in image.shape[2:])])

    body = tvm_ffi.structural_map(flat.body, [(TensorLoad, load), (tirx.BufferStore, store), (TensorRegion, region)])
    params = [images.get(parameter, parameter) for parameter in flat.params]
    return tirx.PrimFunc(params, body, flat.ret_type, function.attrs)


class _Scheduler:
    """The loops of one function."""

    def __init__(self, sch: s_tir.Schedule, workload: FloatWorkload, vector: bool, parallel: bool) -> None:
        self.sch, self.workload, self.vector, self.parallel = sch, workload, vector, parallel
        self.tile = _tile(workload)
        root = sch.get_sblock("root")
        self.blocks = {str(sch.get(block).name_hint): block for block in sch.get_child_blocks(root)}

    def run(self) -> None:
        sch, blocks, workload, tile = self.sch, self.blocks, self.workload, self.tile
        is_whole = _is_whole(workload)
        n, o, y, x = sch.get_loops(blocks["output"])
        per_group = workload.out_channels // workload.groups // tile.channels
        together = divisor(workload.groups, _CACHED // self.plane_bytes())
        chunk, group, outer, channel = sch.split(o, [None, together, per_group, tile.channels])
        row_tile, row = sch.split(y, [None, tile.rows])
        sch.reorder(n, chunk, group, row_tile, outer, channel, row, x)
        own = [channel, row, x]
        if not is_whole:
            if self.vector and workload.out_width <= _MOST_PIECES * tile.lanes:
                sch.vectorize(x)
            sch.compute_at(blocks["scaled"], outer, preserve_unit_loops=True)
            own = sch.get_loops(blocks["scaled"])[-3:]
        column_tile, piece, lane = sch.split(own[-1], [None, tile.pieces, tile.lanes])
        inside = outer if is_whole else column_tile
        if is_whole:
            sch.reorder(column_tile, outer, *own[:2], piece, lane)
        else:
            sch.reorder(column_tile, *own[:2], piece, lane)
        if self.parallel:
            sch.parallel(chunk if workload.groups > 1 else row_tile)
        sch.compute_at(blocks["accumulate"], inside, preserve_unit_loops=True)
        # What no other group reads is copied when it is needed: few rows, or the rows of several small groups.
        by_rows = workload.groups > 1 and self.plane_bytes() > _CACHED
        place = row_tile if by_rows else chunk
        for name in ("phase", *_PADDED):
            if name in blocks:
                sch.compute_at(blocks[name], place, preserve_unit_loops=True)
        if "decoded" in blocks and self.vector:
            sch.vectorize(sch.get_loops(blocks["decoded"])[-1])
        self.tiled([*own[:2], piece, lane])
        self.sums()
        self.decompose_padding(4 if by_rows else 2)
        for name in ("phase", "pad_phase"):
            if name in blocks:
                *_, phase, column = sch.get_loops(blocks[name])
                sch.reorder(column, phase)  # so that LLVM loads vectors, and takes them apart
                sch.unroll(phase)

    def tiled(self, loops: list[Any]) -> None:
        *others, lane = loops
        for loop in others:
            self.sch.unroll(loop)
        if self.vector:
            self.sch.vectorize(lane)
        else:
            self.sch.unroll(lane)

    def sums(self) -> None:
        """The reduction outside the register tile, which is unrolled, as are its taps if they are few."""
        sch, block, tile = self.sch, self.blocks["accumulate"], self.tile
        outputs, row, column, channel, ky, kx = sch.get_loops(block)[-6:]
        piece, lane = sch.split(column, [None, tile.lanes])
        vectors = tile.rows * tile.pieces
        # What there is less of stays in registers while the others take turns.
        own = [outputs, row, piece, lane] if vectors <= tile.channels else [row, piece, outputs, lane]
        sch.reorder(channel, ky, kx, *own)
        self.tiled(own)
        sch.set_scope(block, 0, "local")
        products = tile.channels * vectors
        # Successive kernel rows share rows of the image: unrolled, LLVM would keep them all, and spill.
        most = _MOST_PRODUCTS if self.workload.lanes > _NARROW else _MOST_NARROW_PRODUCTS
        for loop in (kx, ky) if tile.rows == 1 else (kx,):
            extent = int(sch.get(loop).extent)
            if products * extent > most:
                break
            sch.unroll(loop)
            products *= extent
        else:
            extent = int(sch.get(channel).extent)
            steps = divisor(extent, min(_MOST_STEPS, most // products))
            channel, step = sch.split(channel, [None, steps])
            sch.unroll(step)
        sch.decompose_reduction(block, channel)

    def plane_bytes(self) -> int:
        """Of the padded channels that a group reads."""
        padded = self.padded()
        if padded is None:
            return _CACHED
        _, channels, *plane = self.sch.get(padded).writes[0].source.shape
        return 4 * int(channels) // self.workload.groups * math.prod(int(extent) for extent in plane)

    def padded(self) -> Any:
        """The block that copies the image and puts zeros around it, if there is one."""
        return next((self.blocks[name] for name in _PADDED if name in self.blocks), None)

    def decompose_padding(self, outer: int) -> None:
        """Zeros, then the image; of the loops around it the outer ones are shared with other blocks."""
        padded = self.padded()
        if padded is None:
            return
        first = self.sch.get_loops(padded)[outer]
        if self.sch.can_decompose_padding(padded, first):
            self.sch.decompose_padding(padded, first)
