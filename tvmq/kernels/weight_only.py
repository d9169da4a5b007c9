"""Products of float32 activations with weights on a low-bit alphabet: weights stay packed until they are in registers.

**What is computed.**  ``y_o = scale_o * acc_o``, one rounded product, where ``acc_o`` starts at 0 and takes
``acc_o = fma(x_k, u_ok, acc_o)`` for k in ascending order.  A window's numbers are in the order channel, kernel row,
kernel column, as the weights of a network are.  The u_ok are small integers, so they are exact in float32, and with
order and rounding fixed every target computes the same bits.

**Zeros.**  ``fma(0, u, acc) = acc`` for finite u: acc is never -0, because it starts at +0 and a sum is -0 only if both
terms are.  So zero padding may be computed or left out, and a length is rounded up to whole words with zeros in x.

**How.**  Lanes are output channels.  A word of 32 bits holds the codes of one channel for ``32 // bits`` successive k,
so one load serves that many steps, and a step decodes a whole vector of channels with a shift and

* a permutation of registers, where the vector unit looks codes up in a vector of values (x86): it ignores the higher
  bits of its index, so the field need not be cut out, and any alphabet of up to 3 bits (AVX2) or 4 bits (AVX-512) will
  do;
* integer arithmetic and a conversion anywhere else.

The decoded vectors are multiplied with a tile of pixels or samples, which is copied beforehand so that the numbers of
one k are neighbours: decoding and copying are shared by the tile and by all channels.

The function is described as tensor expressions, its blocks are

* ``pad``: the image with zeros around it, wide enough for whole tiles;
* ``tile``: the numbers of a tile in the order of k;
* ``table``: the values of all codes, for the permutation;
* ``unit``: one vector of decoded weights;
* ``accumulate``: the sums;
* ``scaled``: whole tiles of results;
* ``output``: results without padded channels and pixels.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tvm_ffi
from tvm import s_tir, te, tirx
from tvm.ir import TensorLoad, Var

from tvmq.bitplanes import BitPlanes, Encoding
from tvmq.kernels.conv2d import WORKLOAD_ATTRIBUTE, as_kernel, fused_multiply_add

__all__ = [
    "WeightOnlyWorkload",
    "pack_codes",
    "schedule_weight_only",
    "stored_planes",
    "unpack_codes",
    "vector_unit",
    "weight_only",
]

WORD_BITS = 32
Extent = Any
"""An int, or a TVM expression over a symbolic batch."""

_MOST_COLUMNS = 16
"""Pixels of a row in one tile at most."""
_MOST_ROWS = 4
_DYNAMIC_ROWS = 4
"""Samples of a tile where their number is not known; the last tile is filled up."""
_CHAINS = 8
"""Sums that must be under way to hide the latency of a fused multiply-add: four cycles, two per cycle."""
_GROUP = 4
"""Vectors of output channels that are neighbours in memory, where there are many."""
_PARALLEL_MACS = 500_000
"""Multiply-accumulates below which waking other threads costs more than it saves."""
_MOST_PRODUCTS = 352
"""Products in the body of a loop.  TVM allocates more than a kilobyte of sums on the heap, from where LLVM lifts them
into registers only if the loop has few accesses."""


def _divisor(number: int, most: int) -> int:
    return max(size for size in range(1, min(number, max(most, 1)) + 1) if number % size == 0)


@dataclass(frozen=True)
class WeightOnlyWorkload:
    """One convolution or dense layer of float32 numbers with packed weights.

    Attributes
    ----------
    height, width, in_channels, out_channels : int
        Size of the image; 1, 1 and the length of a vector for dense layers.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    dense : bool
        Whether the data are vectors (N, K) and not images (N, C, H, W).
    coefficients : tuple of int
        One per bit of a code.
    offset : int
        Value of code 0.
    lanes, registers : int
        Floats of a vector register, and vector registers of the core.
    """

    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    dense: bool
    coefficients: tuple[int, ...]
    offset: int
    lanes: int
    registers: int

    def __post_init__(self) -> None:
        """Normalise sequences to tuples of int."""
        for name in ("kernel", "strides", "padding", "dilation", "coefficients"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        if not 1 <= self.bits <= 4:
            raise ValueError(f"weights have 1 to 4 bits, got {self.bits}")

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return len(self.coefficients)

    @property
    def codes_per_word(self) -> int:
        """Successive codes of a channel in one word."""
        return WORD_BITS // self.bits

    @property
    def word_dtype(self) -> str:
        """Type of a word: the smallest that holds eight codes; ten where there is room for them."""
        return "uint32"

    @property
    def length(self) -> int:
        """Products of one output."""
        return self.in_channels * self.kernel[0] * self.kernel[1]

    @property
    def words(self) -> int:
        """Words of one output channel."""
        return -(-self.length // self.codes_per_word)

    @property
    def vectors(self) -> int:
        """Vectors of output channels as stored; the surplus weights are those of code 0."""
        vectors = -(-self.out_channels // self.lanes)
        return vectors if vectors < 2 * _GROUP else -(-vectors // _GROUP) * _GROUP

    @property
    def group(self) -> int:
        """Vectors that are neighbours in memory: those of a tile, or some where tiles differ with the samples."""
        if not self.dense:
            return _pixel_tile(self).vectors
        return self.vectors if self.vectors < 2 * _GROUP else _GROUP

    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the packed weights."""
        return self.vectors // self.group, self.words, self.group, self.lanes

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        room = self.height + self.padding[0] + self.padding[2]
        return (room - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        room = self.width + self.padding[1] + self.padding[3]
        return (room - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.strides[1] + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.out_height * self.out_width * self.out_channels * self.length

    @property
    def encoding(self) -> Encoding:
        """What a code stands for, in units of the scale."""
        return Encoding(np.array(self.coefficients), np.array(self.offset))

    def to_json(self) -> str:
        """The workload as text that is stable over runs: sorted keys, no white space."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> WeightOnlyWorkload:
        """The workload that :meth:`to_json` wrote."""
        return WeightOnlyWorkload(**json.loads(text))


def vector_unit(target: Any) -> tuple[int, int]:
    """Floats of a vector register, and how many registers there are.

    Parameters
    ----------
    target : TargetLike

    Returns
    -------
    (int, int)
        Of the 16 registers of 32-bit ARM the scalar unit sees half, and float32 is scalar there, because vectors flush
        denormal numbers to zero; three more count, since words and their decoding can use the other half.
    """
    if target.arch == "x86_64":
        return (16, 32) if target.popcount == "vpopcntdq" or target.lanes == 64 else (8, 16)
    return (4, 11) if target.arch == "armv7l" else (4, 32)


def stored_planes(codes: np.ndarray, encoding: Encoding) -> BitPlanes:
    """Codes in the alphabet that the kernel decodes best.

    Parameters
    ----------
    codes : uint8 array
    encoding : Encoding
        Of integers.

    Returns
    -------
    BitPlanes
        Ternary numbers as two's complement, whose sign a shift extends; anything else as it is.
    """
    if tuple(encoding.coefficients.tolist()) != (1, -1) or encoding.offset != 0:
        return BitPlanes(codes, Encoding(encoding.coefficients, encoding.offset))
    return BitPlanes((encoding.units(codes) & 3).astype(np.uint8), Encoding.twos_complement(2))


def pack_codes(codes: np.ndarray, workload: WeightOnlyWorkload) -> np.ndarray:
    """Words of codes: bits ``j * bits`` and up of word w belong to number ``w * codes_per_word + j`` of a channel.

    Parameters
    ----------
    codes : uint8 of shape (O, K)
    workload : WeightOnlyWorkload

    Returns
    -------
    uint8, uint16 or uint32 of shape (groups, words, vectors of a group, lanes)
    """
    steps = workload.codes_per_word
    padded = np.zeros((workload.vectors * workload.lanes, workload.words * steps), np.uint32)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    fields = padded.reshape(-1, workload.group, workload.lanes, workload.words, steps)
    shifts = (np.arange(steps) * workload.bits).astype(np.uint32)
    words = np.bitwise_or.reduce(fields << shifts, axis=-1).astype(workload.word_dtype)
    return np.ascontiguousarray(words.transpose(0, 3, 1, 2))


def unpack_codes(words: np.ndarray, workload: WeightOnlyWorkload) -> np.ndarray:
    """The inverse of :func:`pack_codes`: uint8 of shape (O, K)."""
    shifts = (np.arange(workload.codes_per_word) * workload.bits).astype(np.uint32)
    fields = (words.astype(np.uint32).transpose(0, 2, 3, 1)[..., None] >> shifts) & np.uint32(2**workload.bits - 1)
    rows = fields.reshape(workload.vectors * workload.lanes, -1)
    return rows[: workload.out_channels, : workload.length].astype(np.uint8)


@dataclass(frozen=True)
class _Tile:
    """Rows and columns of pixels (samples are rows) and vectors of channels whose sums are in registers."""

    rows: int
    columns: int
    vectors: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


def _tile(workload: WeightOnlyWorkload, rows: int, columns: int, most_rows: int) -> _Tile:
    """The tile of the lowest estimated cost per output of an image of that size.

    A step takes a fused multiply-add for every sum (no fewer than hide its latency), a broadcast for every pixel (but
    AVX-512 multiplies by a number in memory), some three operations for every decoded vector, and copies of the pixels
    that all channels share; operations other than the first cost half.
    """

    def is_possible(vectors: int) -> bool:
        if workload.vectors % vectors or not workload.dense:
            return workload.vectors % vectors == 0
        return workload.group % vectors == 0 or vectors % workload.group == 0

    def cost(tile: _Tile) -> float:
        sums = tile.pixels * tile.vectors
        pieces = tile.columns // workload.lanes + (tile.columns % workload.lanes).bit_count()
        copies = 2 * tile.rows * pieces / (tile.pixels * workload.vectors)
        waste = math.ceil(rows / tile.rows) * tile.rows * math.ceil(columns / tile.columns) * tile.columns
        broadcast = 0.0 if workload.lanes == 16 and tile.vectors == 1 else 0.5
        step = max(sums, _CHAINS) + broadcast * tile.pixels + 1.5 * tile.vectors
        return (step / sums + copies) * waste / (rows * columns)

    tiles = [
        _Tile(height, width, vectors)
        for height in range(1, min(rows, most_rows) + 1)
        for width in range(1, min(columns, _MOST_COLUMNS) + 1)
        for vectors in range(1, workload.vectors + 1)
        # Sums, words, decoded vectors, and what is under way; LLVM spills where it is any tighter.
        if is_possible(vectors) and (height * width + 2) * vectors + 3 <= workload.registers
    ]
    return min(tiles, key=lambda tile: (round(cost(tile), 3), -tile.vectors, -tile.columns))


@lru_cache(maxsize=256)
def _pixel_tile(workload: WeightOnlyWorkload) -> _Tile:
    """The tile of a convolution."""
    return _tile(workload, workload.out_height, workload.out_width, _MOST_ROWS)


def _samples_tile(workload: WeightOnlyWorkload, batch: int) -> tuple[int, int]:
    """Samples and vectors of channels of one tile of a dense layer; tiles are about equally large."""
    best = _tile(workload, batch, 1, batch)
    return -(-batch // -(-batch // best.rows)), best.vectors


def weight_only(workload: WeightOnlyWorkload, batch: Extent, permute: bool = False) -> tirx.PrimFunc:
    """The unscheduled function of one layer.

    Parameters
    ----------
    workload : WeightOnlyWorkload
        What to compute.
    batch : int or tirx.Var
        Number of samples.
    permute : bool
        Whether codes are looked up by a permutation of registers; such a function must be scheduled before it runs.

    Returns
    -------
    function : tirx.PrimFunc
        Parameters: ``data`` [N, C, H, W] or [N, K] float32, ``weight`` [groups, words, vectors, lanes] words,
        ``scale`` [channels] float32, ``output`` [N, O, OH, OW] or [N, O] float32.
    """
    builder = _Builder(workload, batch, permute)
    output = builder.dense() if workload.dense else builder.convolution()
    function = _fuse_products(te.create_prim_func([builder.data, builder.weight, builder.scale, output]))
    return as_kernel(function, "weight_only").with_attr(WORKLOAD_ATTRIBUTE, workload.to_json())


def _fuse_products(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Make ``sum + x * u`` one operation, which tensor expressions have no reduction for."""

    def fused(block: Any) -> Any:
        if not str(block.name_hint).startswith("accumulate"):
            return block
        return tvm_ffi.structural_map(block, (tirx.Add, fused_sum))

    def fused_sum(total: tirx.Add) -> Any:
        if isinstance(total.a, TensorLoad) and isinstance(total.b, tirx.Mul) and _is_float(total.b):
            return fused_multiply_add(total.b.a, total.b.b, total.a)
        return total

    return tvm_ffi.structural_map(function, (s_tir.SBlock, fused))


def _is_float(value: Any) -> bool:
    return str(value.ty.dtype) == "float32"


class _Builder:
    """Tensor expressions of one workload; methods make the stages they are named after."""

    def __init__(self, workload: WeightOnlyWorkload, batch: Extent, permute: bool) -> None:
        self.workload, self.batch = workload, batch
        channels = (workload.vectors * workload.lanes,)
        size = () if workload.dense else (workload.height, workload.width)
        self.data = te.placeholder((batch, workload.in_channels, *size), "float32", "data")
        self.weight = te.placeholder(workload.weight_shape(), workload.word_dtype, "weight")
        self.scale = te.placeholder(channels, "float32", "scale")
        self.permute = permute
        self.table = te.compute((workload.lanes,), self.table_value, name="table") if permute else None
        self.padded_length = workload.words * workload.codes_per_word

    # --- weights ---

    def table_value(self, lane: Any) -> Any:
        code = lane.astype("int32")
        terms = [(code >> bit & 1) * factor for bit, factor in enumerate(self.workload.coefficients)]
        return (sum(terms[1:], terms[0]) + self.workload.offset).astype("float32")

    def unit(self, vectors: int, suffix: str) -> te.Tensor:
        """Decoded weights in the channel tiles of `vectors` vectors."""
        workload = self.workload
        shape = (
            workload.vectors // vectors,
            workload.words,
            workload.codes_per_word,
            vectors,
            workload.lanes,
        )

        def value(tile: Any, word: Any, step: Any, vector: Any, lane: Any) -> Any:
            index = tile * vectors + vector
            packed = self.weight[index // workload.group, word, index % workload.group, lane].astype("uint32")
            if self.table is None:
                return self.arithmetic(packed, step)
            # It has a meaning only as a whole vector: a lane's value is the table's at the place that its code names.
            name = "llvm.x86.avx512.permvar.sf.512" if workload.lanes == 16 else "llvm.x86.avx2.permps"
            index = tirx.reinterpret("int32", packed >> (step * workload.bits).astype("uint32"))
            return tirx.call_llvm_pure_intrin("float32", name, self.table[lane], index)

        return te.compute(shape, value, name=f"unit{suffix}")

    def arithmetic(self, packed: Any, step: Any) -> Any:
        """The value of a field of a word: shift, cut out, convert; at most one multiply-add of small integers more."""
        workload, bits = self.workload, self.workload.bits
        factors, offset = workload.coefficients, workload.offset
        unit = abs(factors[0])
        magnitudes = tuple(unit << bit for bit in range(bits))
        if bits > 1 and factors == (*magnitudes[:-1], -magnitudes[-1]):
            signed = tirx.reinterpret("int32", packed) << (WORD_BITS - bits - step * bits)
            code = signed >> (WORD_BITS - bits)
        elif factors == magnitudes:
            code = ((packed >> (step * bits).astype("uint32")) & tirx.const(2**bits - 1, "uint32")).astype("int32")
        else:
            planes = [
                ((packed >> (step * bits + bit).astype("uint32")) & tirx.const(1, "uint32")) for bit in range(bits)
            ]
            terms = [plane.astype("int32") * factor for plane, factor in zip(planes, factors, strict=True)]
            return (sum(terms[1:], terms[0]) + offset).astype("float32")
        number = code.astype("float32")
        if (unit, offset) == (1, 0):
            return number
        return fused_multiply_add(number, tirx.const(unit, "float32"), tirx.const(offset, "float32"))

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
        shape = _pixel_tile(workload)
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
            return te.sum(tile[n, ty, tx, k, r, c] * units[g, word, step, v, lane], axis=[word, step])

        sums = te.compute(tiles, total, name="accumulate")

        def product(*indices: Any) -> Any:
            *_, g, _r, _c, v, lane = indices
            return sums[indices] * self.scale[self.channel(g, v, lane, shape.vectors)]

        scaled = te.compute(tiles, product, name="scaled")
        lanes, group = workload.lanes, workload.lanes * shape.vectors

        def result(n: Any, o: Any, y: Any, x: Any) -> Any:
            place = (y // shape.rows, x // shape.columns, o // group, y % shape.rows, x % shape.columns)
            return scaled(n, *place, o // lanes % shape.vectors, o % lanes)

        size = (workload.out_height, workload.out_width)
        return te.compute((self.batch, workload.out_channels, *size), result, name="output")

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
            return values[0] if len(values) == 1 else tirx.if_then_else(n < parts[1][1], *values)

        return te.compute((self.batch, self.workload.out_channels), result, name="output")

    def parts(self) -> list[tuple[int, Extent, _Tile]]:
        """(first sample, samples, tile): whole tiles, then what is left; an unknown number is rounded up."""
        if not isinstance(self.batch, int):
            whole = _tile(self.workload, _DYNAMIC_ROWS, 1, _DYNAMIC_ROWS)
            return [(0, (self.batch + whole.rows - 1) // whole.rows * whole.rows, whole)]
        rows, vectors = _samples_tile(self.workload, self.batch)
        whole, rest = _Tile(rows, 1, vectors), self.batch % rows
        parts: list[tuple[int, Extent, _Tile]] = [(0, self.batch - rest, whole)]
        return [*parts, (self.batch - rest, rest, _Tile(rest, 1, vectors))] if rest else parts

    def part(self, start: int, count: Extent, shape: _Tile, suffix: str) -> tuple[te.Tensor, int, _Tile]:
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
            return te.sum(tile[n // shape.rows, k, n % shape.rows] * units[g, word, step, v, lane], axis=[word, step])

        sums = te.compute(size, total, name=f"accumulate{suffix}")

        def product(n: Any, g: Any, v: Any, lane: Any) -> Any:
            return sums[n, g, v, lane] * self.scale[self.channel(g, v, lane, shape.vectors)]

        return te.compute(size, product, name=f"scaled{suffix}"), start, shape


def schedule_weight_only(function: tirx.PrimFunc, target: Any) -> tirx.PrimFunc:
    """Give the function its loops.

    Parameters
    ----------
    function : tirx.PrimFunc
        From :func:`weight_only`.
    target : TargetLike
        The core.

    Returns
    -------
    scheduled : tirx.PrimFunc
    """
    workload = WeightOnlyWorkload.from_json(str(function.attrs[WORKLOAD_ATTRIBUTE]))
    batch = function.params[0].shape[0]
    if isinstance(batch, int | tirx.IntImm):
        return _scheduled(workload, int(batch), target)
    scheduled = _scheduled(workload, batch, target)
    return _with_single_sample(scheduled, _scheduled(workload, 1, target)) if workload.dense else scheduled


def _scheduled(workload: WeightOnlyWorkload, batch: Extent, target: Any) -> tirx.PrimFunc:
    permute = target.arch == "x86_64" and 2**workload.bits <= workload.lanes
    sch = s_tir.Schedule(weight_only(workload, batch, permute).without_attr("global_symbol"))
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

    def __init__(self, sch: s_tir.Schedule, workload: WeightOnlyWorkload, vector: bool, parallel: bool) -> None:
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
        self.sums("accumulate", "unit", 8)
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
            self.sums(f"accumulate{suffix}", f"unit{suffix}", 4)
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

    def sums(self, name: str, unit: str, spatial: int) -> None:
        """The reduction outside the register tile, which is unrolled; weights are decoded once for it."""
        sch, blocks = self.sch, self.blocks
        block = blocks[name]
        *pixels, word, step = sch.get_loops(block)[-spatial - 2 :]  # those of a tile, and outer ones of extent 1
        sch.reorder(word, step, *pixels)
        for loop in pixels[:-1]:
            sch.unroll(loop)
        sums = math.prod(int(sch.get(loop).extent) for loop in pixels[:-1])
        self.lanes(pixels[-1])
        sch.set_scope(block, 0, "local")
        sch.compute_at(blocks[unit], step, preserve_unit_loops=True)
        sch.set_scope(blocks[unit], 0, "local")
        vector, lane = sch.get_loops(blocks[unit])[-2:]
        sch.unroll(vector)
        sch.vectorize(lane)
        sch.unroll(sch.split(step, [None, _divisor(self.workload.codes_per_word, _MOST_PRODUCTS // sums)])[1])
        sch.decompose_reduction(block, word)

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
