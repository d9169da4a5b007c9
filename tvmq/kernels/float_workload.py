"""One convolution or dense layer of float32 numbers: what it computes, its register tile, and its packed weights."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tvmq.bitplanes import BitPlanes, Encoding

__all__ = [
    "DYNAMIC_ROWS",
    "WORD_BITS",
    "Extent",
    "FloatWorkload",
    "Tile",
    "best_tile",
    "divisor",
    "pack_codes",
    "pack_floats",
    "pixel_tile",
    "samples_tile",
    "stored_planes",
    "unpack_codes",
    "unpack_weights",
    "vector_unit",
]

WORD_BITS = 32
_DECODED_BYTES = 1 << 18
"""Of decoded weights that stay in the second-level cache beside images."""
Extent = Any
"""An int, or a TVM expression over a symbolic batch."""

_MOST_COLUMNS = 16
"""Pixels of a row in one tile at most."""
_MOST_ROWS = 4
_MOST_PACKED_PIXELS = 14
_MOST_PACKED_PRODUCTS = 256
"""With codes for weights, products in the body of a loop: a fifth of the time is lost where it is longer.  TVM also
allocates over a kilobyte of sums on the heap, from where LLVM lifts them into registers only if loops are short."""
_MOST_CODES = 16
"""Codes of a word at most: the body of a loop multiplies them all."""
DYNAMIC_ROWS = 4
"""Samples of a tile where their number is not known; the last tile is filled up."""
_CHAINS = 8
"""Sums that must be under way to hide the latency of a fused multiply-add: four cycles, two per cycle."""
_GROUP = 4
"""Vectors of output channels that are neighbours in memory, where there are many."""


def divisor(number: int, most: int) -> int:
    """The largest divisor up to `most`."""
    return max(size for size in range(1, min(number, max(most, 1)) + 1) if number % size == 0)


@dataclass(frozen=True)
class FloatWorkload:
    """One convolution or dense layer of float32 numbers.

    Attributes
    ----------
    height, width, in_channels, out_channels : int
        Size of the image; 1, 1 and the length of a vector for dense layers.
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    dense : bool
        Whether the data are vectors (N, K) and not images (N, C, H, W).
    coefficients : tuple of int
        One per bit of a code; none where weights are float32.
    offset : int
        Value of code 0.
    lanes, registers : int
        Floats of a vector register, and vector registers of the core.
    bias, affine, shortcut : bool
        Whether a bias per channel is added; then the result multiplied by a number and another added, per channel and
        rounded once (batch normalization); then a tensor of the output's shape added.
    low, high : float, optional
        Bounds of the result.
    groups : int
        Of channels; a window has ``in_channels / groups`` of them.
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
    bias: bool = False
    affine: bool = False
    shortcut: bool = False
    low: float | None = None
    high: float | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        """Normalise sequences to tuples of int."""
        for name in ("kernel", "strides", "padding", "dilation", "coefficients"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        if len(self.coefficients) > 4:
            raise ValueError(f"weights have 1 to 4 bits, got {self.bits}")

    @property
    def is_packed(self) -> bool:
        """Whether weights are codes, with a scale per channel, and not float32."""
        return bool(self.coefficients)

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return len(self.coefficients) or WORD_BITS

    @property
    def codes_per_word(self) -> int:
        """Successive weights of a channel in one word."""
        return min(WORD_BITS // self.bits, _MOST_CODES)

    @property
    def word_dtype(self) -> str:
        """Type of a word."""
        if not self.is_packed:
            return "float32"
        return "uint16" if self.codes_per_word * self.bits <= 16 else "uint32"

    @property
    def length(self) -> int:
        """Products of one output."""
        return self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

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
    def stored_channels(self) -> int:
        """Output channels as stored, those that fill vectors up included."""
        return self.out_channels if self.pixel_lanes else self.vectors * self.lanes

    @property
    def pixel_lanes(self) -> bool:
        """Whether lanes are pixels of a row, and not output channels: what wastes fewer of them.

        Lanes of pixels need no copies of tiles; on measured cores that is worth a fifth.  Codes are decoded beforehand
        then, so that what they stand for must stay in a cache.
        """
        if self.groups > 1 or self.dense:
            return self.groups > 1
        if self.is_packed and 4 * self.out_channels * self.length > _DECODED_BYTES:
            return False
        columns = self.out_height * self.out_width if self.is_pointwise else self.out_width
        by_pixel = columns / (-(-columns // self.lanes) * self.lanes)
        return by_pixel >= 0.8 * self.out_channels / (self.vectors * self.lanes)

    @property
    def is_pointwise(self) -> bool:
        """Whether a pixel of the output depends on the same pixel of the input: rows then run into each other."""
        return not self.dense and self.kernel == (1, 1) == self.strides and not any(self.padding)

    @property
    def group(self) -> int:
        """Vectors that are neighbours in memory: those of a tile, or some where tiles differ with the samples."""
        if not self.dense:
            return pixel_tile(self).vectors
        return self.vectors if self.vectors < 2 * _GROUP else _GROUP

    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights."""
        if self.pixel_lanes and self.is_packed:
            return self.out_channels, self.words
        if self.pixel_lanes:
            return self.out_channels, self.in_channels // self.groups, *self.kernel
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
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.out_height, self.out_width

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
    def from_json(text: str) -> FloatWorkload:
        """The workload that :meth:`to_json` wrote."""
        return FloatWorkload(**json.loads(text))


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


def pack_codes(codes: np.ndarray, workload: FloatWorkload) -> np.ndarray:
    """Words of codes: bits ``j * bits`` and up of word w belong to number ``w * codes_per_word + j`` of a channel.

    Parameters
    ----------
    codes : uint8 of shape (O, K)
    workload : FloatWorkload

    Returns
    -------
    uint16 or uint32 of shape (groups, words, vectors of a group, lanes), or (O, words) where lanes are pixels
    """
    steps = workload.codes_per_word
    padded = np.zeros((workload.stored_channels, workload.words * steps), np.uint32)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    shifts = (np.arange(steps) * workload.bits).astype(np.uint32)
    words = np.bitwise_or.reduce(padded.reshape(-1, workload.words, steps) << shifts, axis=-1)
    words = words.astype(workload.word_dtype)
    if workload.pixel_lanes:
        return words
    rows = words.reshape(-1, workload.group, workload.lanes, workload.words)
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))


def pack_floats(weights: np.ndarray, workload: FloatWorkload) -> np.ndarray:
    """Float weights as the kernel reads them, zeros in surplus channels.

    Parameters
    ----------
    weights : float32 of shape (O, K)
    workload : FloatWorkload

    Returns
    -------
    float32 of shape (groups, K, vectors of a group, lanes), or as they are where lanes are pixels
    """
    if workload.pixel_lanes:
        return np.ascontiguousarray(weights.reshape(workload.weight_shape()))
    padded = np.zeros((workload.vectors * workload.lanes, workload.length), np.float32)
    padded[: len(weights)] = weights
    rows = padded.reshape(-1, workload.group, workload.lanes, workload.length)
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))


def unpack_weights(packed: np.ndarray, workload: FloatWorkload) -> np.ndarray:
    """Weights of shape (O, K), in units of the scale if there is one, from :func:`pack_floats` or `pack_codes`."""
    if workload.is_packed:
        return workload.encoding.units(unpack_codes(packed, workload))
    if workload.pixel_lanes:
        return packed.reshape(workload.out_channels, -1)
    rows = packed.transpose(0, 2, 3, 1).reshape(workload.vectors * workload.lanes, -1)
    return rows[: workload.out_channels]


def unpack_codes(words: np.ndarray, workload: FloatWorkload) -> np.ndarray:
    """The inverse of :func:`pack_codes`: uint8 of shape (O, K)."""
    shifts = (np.arange(workload.codes_per_word) * workload.bits).astype(np.uint32)
    by_channel = words if workload.pixel_lanes else words.transpose(0, 2, 3, 1)
    fields = (by_channel[..., None].astype(np.uint32) >> shifts) & np.uint32(2**workload.bits - 1)
    rows = fields.reshape(workload.stored_channels, -1)
    return rows[: workload.out_channels, : workload.length].astype(np.uint8)


@dataclass(frozen=True)
class Tile:
    """Rows and columns of pixels (samples are rows) and vectors of channels whose sums are in registers."""

    rows: int
    columns: int
    vectors: int

    @property
    def pixels(self) -> int:
        """Rows times columns."""
        return self.rows * self.columns


def best_tile(workload: FloatWorkload, rows: int, columns: int, most_rows: int) -> Tile:
    """The tile of the lowest estimated cost per output of an image of that size.

    A step takes a fused multiply-add for every sum (no fewer than hide its latency), a broadcast for every pixel (but
    AVX-512 multiplies by a number in memory), some three operations for every decoded vector or one load of floats, and
    copies of the pixels that all channels share; operations other than the first cost half.
    """
    # Words, decoded vectors and what is under way, besides the sums; LLVM spills where it is any tighter.
    per_vector, others, operations = (2, 3, 1.5) if workload.is_packed else (1, 2, 0.5)

    def is_possible(vectors: int) -> bool:
        if workload.vectors % vectors or not workload.dense:
            return workload.vectors % vectors == 0
        return workload.group % vectors == 0 or vectors % workload.group == 0

    def cost(tile: Tile) -> float:
        sums = tile.pixels * tile.vectors
        pieces = tile.columns // workload.lanes + (tile.columns % workload.lanes).bit_count()
        copies = 2 * tile.rows * pieces / (tile.pixels * workload.vectors)
        waste = math.ceil(rows / tile.rows) * tile.rows * math.ceil(columns / tile.columns) * tile.columns
        broadcast = 0.0 if workload.lanes == 16 and tile.vectors == 1 else 0.5
        step = max(sums, _CHAINS) + broadcast * tile.pixels + operations * tile.vectors
        return (step / sums + copies) * waste / (rows * columns)

    def is_short(tile: Tile) -> bool:
        """Whether the loop's body, shifts in which are constants, is short enough."""
        if not workload.is_packed:
            return True
        return (
            tile.pixels <= _MOST_PACKED_PIXELS
            and tile.pixels * tile.vectors * workload.codes_per_word <= _MOST_PACKED_PRODUCTS
        )

    tiles = [
        tile
        for height in range(1, min(rows, most_rows) + 1)
        for width in range(1, min(columns, _MOST_COLUMNS) + 1)
        for vectors in range(1, workload.vectors + 1)
        if is_possible(vectors)
        and (height * width + per_vector) * vectors + others <= workload.registers
        and is_short(tile := Tile(height, width, vectors))
    ]
    return min(tiles, key=lambda tile: (round(cost(tile), 3), -tile.vectors, -tile.columns))


@lru_cache(maxsize=256)
def pixel_tile(workload: FloatWorkload) -> Tile:
    """The tile of a convolution."""
    return best_tile(workload, workload.out_height, workload.out_width, _MOST_ROWS)


def samples_tile(workload: FloatWorkload, batch: int) -> tuple[int, int]:
    """Samples and vectors of channels of one tile of a dense layer; tiles are about equally large."""
    best = best_tile(workload, batch, 1, batch)
    return -(-batch // -(-batch // best.rows)), best.vectors
