"""Packing of bit planes and bytes: references in numpy, and the kernels at the borders of the packed part of a network.

Bit ``c % word_bits`` of word ``c // word_bits`` is channel ``c``; the bits beyond the last channel are zero.  So are
the bytes beyond the last channel where codes are packed as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from tvmq.kernels.conv2d import as_kernel
from tvmq.kernels.uniform_quantizer import UniformQuantizer
from tvmq.kernels.words import pack_masks
from tvmq.kernels.workload import BYTES_PER_STEP, DEPTH_LANES, Depth, padded_bytes

__all__ = [
    "bitpack",
    "bitunpack",
    "im2col_bitpack",
    "pack_activations",
    "pack_bytes",
    "pack_depth_weights",
    "pack_weight_bytes",
    "pack_weight_indices",
    "pack_weights",
    "quantize",
    "unpack_activations",
]

Extent = Any
MAX_COMPARES = 15
"""Up to this many thresholds, comparing with each is faster than a search."""
PACKING_LANES = 16
"""Masks of one vector when codes are packed; every family has an instruction for it."""
LEAST_PIXELS = 4
"""Pixels, an even part of a row, from which vectors of pixels are packed, and not vectors of channels."""


def _word_dtype(word_bits: int) -> np.dtype:
    if word_bits not in (8, 32):
        raise ValueError(f"word_bits must be 8 or 32, got {word_bits}")
    return np.dtype(f"<u{word_bits // 8}")


def _pack_last_axis(bits: npt.NDArray[Any], word_bits: int) -> npt.NDArray[Any]:
    words = -(-bits.shape[-1] // word_bits)
    tail = [(0, 0)] * (bits.ndim - 1) + [(0, words * word_bits - bits.shape[-1])]
    padded = np.pad(np.asarray(bits, dtype=bool), tail)
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(_word_dtype(word_bits))


def pack_weights(planes: npt.NDArray[Any], word_bits: int, lanes: int) -> npt.NDArray[Any]:
    """Pack weight planes in the order in which a convolution reads them.

    Parameters
    ----------
    planes : ndarray of bool [Pw, O, KH, KW, C]
        Bit planes.
    word_bits : {8, 32}
        Bits of a word.
    lanes : int
        Output channels of a vector.

    Returns
    -------
    packed : ndarray of uint8 or uint32 [Ob, KH, KW, Pw, Cw, L]
        The channels beyond O are zero.

    Raises
    ------
    ValueError
        If `planes` has not five axes or `word_bits` is unknown.
    """
    words = _pack_last_axis(_whole_vectors(planes, int(np.lcm(lanes, word_bits))), word_bits)
    return _lanes_last(words, lanes)


def pack_weight_indices(planes: npt.NDArray[Any], indices: int, lanes: int) -> npt.NDArray[np.uint8]:
    """Pack weight planes as indices of tables of 32 entries: the bits of five channels in a byte.

    Parameters
    ----------
    planes : ndarray of bool [Pw, O, KH, KW, C]
        Bit planes.
    indices : int
        Of a tap, at least C / 5; the channels beyond C are zero.
    lanes : int
        Output channels of a vector, a multiple of 8.

    Returns
    -------
    packed : ndarray of uint8 [Ob, KH, KW, Pw, indices, L]
        The channels beyond O are zero.

    Raises
    ------
    ValueError
        If `planes` has not five axes.
    """
    padded = _whole_vectors(planes, lanes)
    padded = np.pad(padded, ((0, 0),) * 4 + ((0, 5 * indices - planes.shape[4]),))
    quintets = padded.reshape(*padded.shape[:4], indices, 5)
    return _lanes_last(np.packbits(quintets, axis=-1, bitorder="little")[..., 0], lanes)


def _whole_vectors(planes: npt.NDArray[Any], multiple: int) -> npt.NDArray[np.bool_]:
    """Weight planes with a multiple of output channels, those beyond the last of zeros."""
    if planes.ndim != 5:
        raise ValueError(f"weight planes have the axes [Pw, O, KH, KW, C], got shape {planes.shape}")
    surplus = -planes.shape[1] % multiple
    return np.pad(np.asarray(planes, dtype=bool), ((0, 0), (0, surplus), (0, 0), (0, 0), (0, 0)))


def _lanes_last(words: npt.NDArray[Any], lanes: int) -> npt.NDArray[Any]:
    """[Pw, O, KH, KW, Cw] in the order of the kernels, [Ob, KH, KW, Pw, Cw, L]."""
    count, channels, kernel_h, kernel_w, in_words = words.shape
    blocks = words.reshape(count, channels // lanes, lanes, kernel_h, kernel_w, in_words)
    return np.ascontiguousarray(blocks.transpose(1, 3, 4, 0, 5, 2))


def pack_depth_weights(planes: npt.NDArray[Any], depth: Depth) -> npt.NDArray[np.uint8]:
    """Pack weight planes in the order in which a convolution with vectors along the depth reads them.

    Parameters
    ----------
    planes : ndarray of bool [Pw, O, KH, KW, C]
        Bit planes.
    depth : Depth
        Bytes of a step, and of a pixel.

    Returns
    -------
    packed : ndarray of uint8 [Ob, KH, KW, Pw, steps, 8, step]
        The channels beyond O and the bytes beyond C are zero.

    Raises
    ------
    ValueError
        If `planes` has not five axes, or more channels than the bytes of a pixel hold.
    """
    if planes.ndim != 5:
        raise ValueError(f"weight planes have the axes [Pw, O, KH, KW, C], got shape {planes.shape}")
    words = _pack_last_axis(planes, 8)
    if words.shape[-1] > depth.words:
        raise ValueError(f"{depth.words} bytes of depth do not hold {planes.shape[-1]} channels")
    surplus = (-words.shape[1] % DEPTH_LANES, depth.words - words.shape[-1])
    padded = np.pad(words, ((0, 0), (0, surplus[0]), (0, 0), (0, 0), (0, surplus[1])))
    count, channels, kernel_h, kernel_w, _ = padded.shape
    blocks = padded.reshape(count, channels // DEPTH_LANES, DEPTH_LANES, kernel_h, kernel_w, -1, depth.step)
    return np.ascontiguousarray(blocks.transpose(1, 3, 4, 0, 5, 2, 6))


def pack_activations(planes: npt.NDArray[Any], word_bits: int) -> npt.NDArray[Any]:
    """Pack activation planes.

    Parameters
    ----------
    planes : ndarray of bool [P, N, C, H, W]
        Bit planes.
    word_bits : {8, 32}
        Bits of a word.

    Returns
    -------
    packed : ndarray of uint8 or uint32 [N, H, W, P, Cw]
        Packed channels.

    Raises
    ------
    ValueError
        If `planes` has not five axes or `word_bits` is unknown.
    """
    if planes.ndim != 5:
        raise ValueError(f"activation planes have the axes [P, N, C, H, W], got shape {planes.shape}")
    return _pack_last_axis(np.asarray(planes).transpose(1, 3, 4, 0, 2), word_bits)


def pack_weight_bytes(
    units: npt.NDArray[Any], lanes: int, padded: int, gathered: bool, form: str = "mixed"
) -> npt.NDArray[np.int8]:
    """Pack weights in the order in which a convolution of bytes reads them.

    Parameters
    ----------
    units : ndarray of integers from -128 to 127 [O, KH, KW, C]
        Weights.
    lanes : int
        Output channels of a vector.
    padded : int
        Output channels that the kernel computes: at least O, whole vectors.
    gathered : bool
        Whether the taps of a window are one run of bytes.
    form : {"mixed", "signed", "pairs"}
        See :class:`tvmq.kernels.workload.Dot`.

    Returns
    -------
    packed : ndarray of int8 [Ob, KH, KW, 1, steps, L, 4], or [Ob, KH, KW, 1, steps, L / 4, 2, 4, 2] for "pairs"
        The channels beyond O and the bytes beyond C are zero; one row and one column if gathered.

    Raises
    ------
    ValueError
        If `units` has not four axes.
    """
    if units.ndim != 4:
        raise ValueError(f"weights have the axes [O, KH, KW, C], got shape {units.shape}")
    if gathered:
        units = units.reshape(len(units), 1, 1, -1)
    channels, height, width, length = units.shape
    surplus = ((0, padded - channels), (0, 0), (0, 0), (0, padded_bytes(length) - length))
    octets = np.pad(units, surplus).astype(np.int8)
    blocks = octets.reshape(-1, lanes, height, width, 1, padded_bytes(length) // BYTES_PER_STEP, BYTES_PER_STEP)
    packed = np.ascontiguousarray(blocks.transpose(0, 2, 3, 4, 5, 1, 6))
    if form != "pairs":
        return packed
    return np.ascontiguousarray(packed.reshape(*packed.shape[:5], lanes // 4, 4, 2, 2).swapaxes(-3, -2))


def pack_bytes(codes: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.uint8]:
    """Pack codes as bytes.

    Parameters
    ----------
    codes : ndarray of uint8 [N, C, H, W]
        Codes.
    length : int
        Bytes of a pixel, at least C.

    Returns
    -------
    packed : ndarray of uint8 [N, H, W, 1, length]
        Zero beyond C.
    """
    tail = [(0, 0)] * 3 + [(0, length - codes.shape[1])]
    return np.ascontiguousarray(np.pad(codes.transpose(0, 2, 3, 1), tail)[:, :, :, None])


def unpack_activations(packed: npt.NDArray[Any], channels: int) -> npt.NDArray[np.bool_]:
    """Inverse of :func:`pack_activations`.

    Parameters
    ----------
    packed : ndarray of uint8 or uint32 [N, H, W, P, Cw]
        Packed channels.
    channels : int
        Channels before packing.

    Returns
    -------
    planes : ndarray of bool [P, N, C, H, W]
        Bit planes.
    """
    octets = np.ascontiguousarray(packed).view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little", count=channels)
    return np.ascontiguousarray(bits.transpose(3, 0, 4, 1, 2)).astype(bool)


def bitpack(batch: Extent, channels: int, height: int, width: int, planes: int, word_bits: int) -> tirx.PrimFunc:
    """Function that packs codes.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    channels, height, width : int
        Shape of an image.
    planes : int
        Bit planes of a code.
    word_bits : {8, 32}
        Bits of a word.

    Returns
    -------
    function : tirx.PrimFunc
        ``codes`` uint8 [N, C, H, W] to ``store`` words [N, H, W, P, Cw].

    Raises
    ------
    ValueError
        If `planes` or `word_bits` is out of range.
    """
    if max(size for size in range(1, PACKING_LANES + 1) if width % size == 0) < LEAST_PIXELS:
        return im2col_bitpack(batch, channels, height, width, planes, word_bits, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    _check_code(planes, word_bits)
    words = -(-channels // word_bits)
    dtype = str(_word_dtype(word_bits))
    codes = te.placeholder((batch, channels, height, width), "uint8", "codes")
    bit = te.reduce_axis((0, word_bits), "bit")

    def shifted(n: Any, y: Any, x: Any, plane: Any, word: Any) -> Any:
        """One bit at its place; lanes are pixels, which are neighbours where channels come first."""
        channel = word * word_bits + bit
        value = tirx.bitwise_and(
            tirx.shift_right(codes[n, channel, y, x], plane.astype("uint8")), tirx.const(1, "uint8")
        )
        if channels % word_bits:
            value = tirx.if_then_else(channel < channels, value, tirx.const(0, "uint8"))
        return te.sum(tirx.shift_left(value.astype(dtype), bit.astype(dtype)), axis=bit)

    packed = te.compute((batch, height, width, planes, words), shifted, name="word")
    output = te.compute(packed.shape, lambda *index: packed[index], name="store")
    return as_kernel(te.create_prim_func([codes, output]), "bitpack_pixels")


def im2col_bitpack(
    batch: Extent,
    channels: int,
    height: int,
    width: int,
    planes: int,
    word_bits: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> tirx.PrimFunc:
    """Function that packs the windows of a convolution, for first layers with few channels.

    The convolution that follows is 1x1 over KH * KW * C channels.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    channels, height, width : int
        Shape of an image.
    planes : int
        Bit planes of a code.
    word_bits : {8, 32}
        Bits of a word.
    kernel, strides, padding, dilation : tuple of int
        The convolution; padding is (top, left, bottom, right) and inserts code 0.

    Returns
    -------
    function : tirx.PrimFunc
        ``codes`` uint8 [N, C, H, W] to ``store`` words [N, OH, OW, P, ceil(KH * KW * C / word_bits)]; the bits are
        in the order (kh, kw, c).

    Raises
    ------
    ValueError
        If `planes` or `word_bits` is out of range.
    """
    _check_code(planes, word_bits)
    (kernel_h, kernel_w), (top, left, bottom, right) = kernel, padding
    rows, columns = height + top + bottom, width + left + right
    out_height = (rows - dilation[0] * (kernel_h - 1) - 1) // strides[0] + 1
    out_width = (columns - dilation[1] * (kernel_w - 1) - 1) // strides[1] + 1
    bits = kernel_h * kernel_w * channels
    words = -(-bits // word_bits)
    lanes = PACKING_LANES
    vectors = max(1, word_bits // lanes)
    groups = -(-bits // (vectors * lanes))
    codes = te.placeholder((batch, channels, height, width), "uint8", "codes")

    def channel_last(n: Any, y: Any, x: Any, c: Any) -> Any:
        if not any(padding):
            return codes[n, c, y, x]
        inside = tirx.all(y >= top, y < top + height, x >= left, x < left + width)
        return tirx.if_then_else(inside, codes[n, c, y - top, x - left], tirx.const(0, "uint8"))

    image = te.compute((batch, rows, columns, channels), channel_last, name="image")

    def patch(n: Any, y: Any, x: Any, k: Any) -> Any:
        tap, c = k // channels, k % channels
        row = y * strides[0] + tap // kernel_w * dilation[0]
        column = x * strides[1] + tap % kernel_w * dilation[1]
        value = image[n, row, column, c]
        if bits == groups * vectors * lanes:
            return value
        return tirx.if_then_else(k < bits, value, tirx.const(0, "uint8"))

    patches = te.compute((batch, out_height, out_width, groups * vectors * lanes), patch, name="patch")

    def mask(n: Any, y: Any, x: Any, plane: Any, group: Any, vector: Any, lane: Any) -> Any:
        code = patches[n, y, x, (group * vectors + vector) * lanes + lane]
        bit = tirx.bitwise_and(tirx.shift_right(code, plane.astype("uint8")), tirx.const(1, "uint8"))
        return tirx.Select(bit != tirx.const(0, "uint8"), tirx.const(-1, "int8"), tirx.const(0, "int8"))

    masks = te.compute((batch, out_height, out_width, planes, groups, vectors, lanes), mask, name="mask")
    packed = pack_masks(masks, word_bits)
    per_group = vectors * lanes // word_bits
    output = te.compute(
        (batch, out_height, out_width, planes, words),
        lambda n, y, x, plane, word: packed[n, y, x, plane, word // per_group, word % per_group],
        name="store",
    )
    return as_kernel(te.create_prim_func([codes, output]), "bitpack")


def bitunpack(batch: Extent, channels: int, height: int, width: int, planes: int, word_bits: int) -> tirx.PrimFunc:
    """Function that unpacks words into codes.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    channels, height, width : int
        Shape of an image.
    planes : int
        Bit planes of a code.
    word_bits : {8, 32}
        Bits of a word.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` words [N, H, W, P, Cw] to ``codes`` uint8 [N, C, H, W].

    Raises
    ------
    ValueError
        If `planes` or `word_bits` is out of range.
    """
    _check_code(planes, word_bits)
    dtype = f"uint{word_bits}"
    data = te.placeholder((batch, height, width, planes, -(-channels // word_bits)), dtype, "data")

    def code(n: Any, c: Any, y: Any, x: Any) -> Any:
        result = tirx.const(0, "uint8")
        for plane in range(planes):
            word = data[n, y, x, plane, c // word_bits]
            bit = tirx.bitwise_and(tirx.shift_right(word, (c % word_bits).astype(dtype)), tirx.const(1, dtype))
            result = result + tirx.shift_left(bit.astype("uint8"), tirx.const(plane, "uint8"))
        return result

    output = te.compute((batch, channels, height, width), code, name="codes")
    return as_kernel(te.create_prim_func([data, output]), "bitunpack")


def quantize(
    shape: Sequence[Extent], count: int, codes: Sequence[int], uniform: UniformQuantizer | None = None
) -> tirx.PrimFunc:
    """Function that turns floats into codes by sorted thresholds.

    Parameters
    ----------
    shape : sequence of int or tirx.Var
        Shape of the tensor.
    count : int
        Number of thresholds T.
    codes : sequence of int
        T + 1 codes; an element gets ``codes[#{k: x >= thresholds[k]}]``, and NaN gets ``codes[0]``.
    uniform : UniformQuantizer, optional
        How to count the thresholds by rounding; the function then does not look at them.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` float32 [shape] and ``thresholds`` float32 [T], ascending, to ``codes`` uint8 [shape].

    Raises
    ------
    ValueError
        If the number of codes is not T + 1 or a code does not fit in a byte.
    """
    if count < 1 or len(codes) != count + 1:
        raise ValueError(f"{count} thresholds need {count + 1} codes, got {len(codes)}")
    if any(not 0 <= code < 256 for code in codes):
        raise ValueError(f"codes must fit in a byte, got {tuple(codes)}")
    data = te.placeholder(tuple(shape), "float32", "data")
    thresholds = te.placeholder((count,), "float32", "thresholds")
    if uniform is not None:
        indices = _round(data, count, uniform)
    else:
        indices = _compare_all(data, thresholds) if count <= MAX_COMPARES else _search(data, thresholds)

    def code(*position: Any) -> Any:
        index = indices[position]
        if tuple(codes) == tuple(range(count + 1)):
            return index.astype("uint8")
        result = tirx.const(codes[0], "uint8")
        for place in range(1, count + 1):
            if codes[place] != codes[place - 1]:
                result = tirx.Select(index >= place, tirx.const(codes[place], "uint8"), result)
        return result

    output = te.compute(tuple(shape), code, name="codes")
    return as_kernel(te.create_prim_func([data, thresholds, output]), "quantize")


def _round(data: te.Tensor, count: int, uniform: UniformQuantizer) -> te.Tensor:
    """Number of thresholds that an element reaches, by rounding; comparisons with NaN are false."""
    factor, shift = tirx.const(uniform.factor, "float32"), tirx.const(uniform.shift, "float32")
    most, zero = tirx.const(count, "float32"), tirx.const(0, "float32")

    def index(*position: Any) -> Any:
        x = data[position]
        level = tirx.nearbyint(x / factor if uniform.divides else x * factor) + shift
        return tirx.Select(level >= zero, tirx.Select(level < most, level, most), zero).astype("int32")

    return te.compute(data.shape, index, name="index")


def _compare_all(data: te.Tensor, thresholds: te.Tensor) -> te.Tensor:
    """Number of thresholds that an element reaches, by comparing with each."""

    def index(*position: Any) -> Any:
        result = tirx.const(0, "int32")
        for place in range(int(thresholds.shape[0])):
            reached = data[position] >= thresholds[place]
            result = result + tirx.Select(reached, tirx.const(1, "int32"), tirx.const(0, "int32"))
        return result

    return te.compute(data.shape, index, name="index")


def _search(data: te.Tensor, thresholds: te.Tensor) -> te.Tensor:
    """The same by binary search without branches; ``data >= thresholds[index - 1]`` holds after every step."""
    count = int(thresholds.shape[0])
    indices = te.compute(data.shape, lambda *position: tirx.const(0, "int32"), name="index")
    for bit in reversed(range(count.bit_length())):
        indices = _search_step(data, thresholds, indices, 1 << bit)
    return indices


def _search_step(data: te.Tensor, thresholds: te.Tensor, indices: te.Tensor, step: int) -> te.Tensor:
    count = int(thresholds.shape[0])

    def index(*position: Any) -> Any:
        candidate = indices[position] + step
        reached = data[position] >= thresholds[tirx.min(candidate, count) - 1]
        # A candidate beyond the last threshold is never reached.
        inside = tirx.Select(candidate <= count, candidate, indices[position])
        return tirx.Select(reached, inside, indices[position])

    return te.compute(data.shape, index, name="index")


def _check_code(planes: int, word_bits: int) -> None:
    _word_dtype(word_bits)
    if not 1 <= planes <= 8:
        raise ValueError(f"codes have 1 to 8 bit planes, got {planes}")
