"""Codes as bytes: to and from images of one code per element, and to and from bit planes.

The codes of a pixel are neighbours, [N, H, W, 1, length]; bytes beyond the last channel are zero.  A byte is a code
with some bits complemented (see :mod:`tvmq.bitplanes`), which is undone on the way back.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tvmq.kernels.conv2d import as_kernel
from tvmq.kernels.packing import PACKING_LANES
from tvmq.kernels.words import pack_masks
from tvmq.kernels.workload import padded_bytes

__all__ = ["bits_to_bytes", "bytepack", "bytes_to_bits", "byteunpack"]

Extent = Any


def bytepack(batch: Extent, channels: int, height: int, width: int, length: int, flip: int) -> tirx.PrimFunc:
    """Function that puts the codes of a pixel side by side.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    channels, height, width : int
        Shape of an image.
    length : int
        Bytes of a pixel, at least `channels`.
    flip : int
        Bits of a code that are complemented.

    Returns
    -------
    function : tirx.PrimFunc
        ``codes`` uint8 [N, C, H, W] to ``store`` uint8 [N, H, W, 1, length].
    """
    codes = te.placeholder((batch, channels, height, width), "uint8", "codes")

    def byte(n: Any, y: Any, x: Any, _plane: Any, c: Any) -> Any:
        if length == channels:
            return codes[n, c, y, x] ^ tirx.const(flip, "uint8")
        value = codes[n, tirx.min(c, channels - 1), y, x] ^ tirx.const(flip, "uint8")
        return tirx.Select(c < channels, value, tirx.const(0, "uint8"))

    output = te.compute((batch, height, width, 1, length), byte, name="store")
    return as_kernel(te.create_prim_func([codes, output]), "bytepack")


def byteunpack(batch: Extent, channels: int, height: int, width: int, length: int, flip: int) -> tirx.PrimFunc:
    """Function that undoes :func:`bytepack`.

    Parameters
    ----------
    batch, channels, height, width, length, flip
        As for :func:`bytepack`.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` uint8 [N, H, W, 1, length] to ``codes`` uint8 [N, C, H, W].
    """
    data = te.placeholder((batch, height, width, 1, length), "uint8", "data")
    output = te.compute(
        (batch, channels, height, width),
        lambda n, c, y, x: data[n, y, x, 0, c] ^ tirx.const(flip, "uint8"),
        name="codes",
    )
    return as_kernel(te.create_prim_func([data, output]), "byteunpack")


def bits_to_bytes(
    batch: Extent, channels: int, height: Extent, width: Extent, planes: int, word_bits: int, flip: int
) -> tirx.PrimFunc:
    """Function that turns bit planes into bytes.

    Parameters
    ----------
    batch, height, width : int or tirx.Var
        Number of images, and their size.
    channels : int
        Channels of a pixel.
    planes : int
        Bit planes of a code.
    word_bits : {8, 32}
        Bits of a word.
    flip : int
        Bits of a code that are complemented.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` words [N, H, W, P, Cw] to ``store`` uint8 [N, H, W, 1, 4 ceil(C / 4)].
    """
    dtype = f"uint{word_bits}"
    data = te.placeholder((batch, height, width, planes, -(-channels // word_bits)), dtype, "data")
    length = padded_bytes(channels)

    def byte(n: Any, y: Any, x: Any, _plane: Any, c: Any) -> Any:
        result = tirx.const(0, "uint8")
        for plane in range(planes):
            word = data[n, y, x, plane, c // word_bits]
            bit = tirx.bitwise_and(tirx.shift_right(word, (c % word_bits).astype(dtype)), tirx.const(1, dtype))
            result = result + tirx.shift_left(bit.astype("uint8"), tirx.const(plane, "uint8"))
        result = result ^ tirx.const(flip, "uint8")
        return result if length == channels else tirx.Select(c < channels, result, tirx.const(0, "uint8"))

    output = te.compute((batch, height, width, 1, length), byte, name="store")
    return as_kernel(te.create_prim_func([data, output]), "bits_to_bytes")


def bytes_to_bits(
    batch: Extent, channels: int, height: Extent, width: Extent, planes: int, word_bits: int, flip: int
) -> tirx.PrimFunc:
    """Function that turns bytes into bit planes.

    Parameters
    ----------
    batch, channels, height, width, planes, word_bits, flip
        As for :func:`bits_to_bytes`.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` uint8 [N, H, W, 1, 4 ceil(C / 4)] to ``store`` words [N, H, W, P, Cw].
    """
    length = padded_bytes(channels)
    lanes, vectors = PACKING_LANES, max(1, word_bits // PACKING_LANES)
    groups = -(-channels // (vectors * lanes))
    data = te.placeholder((batch, height, width, 1, length), "uint8", "data")

    def mask(n: Any, y: Any, x: Any, plane: Any, group: Any, vector: Any, lane: Any) -> Any:
        c = (group * vectors + vector) * lanes + lane
        code = data[n, y, x, 0, tirx.min(c, length - 1)] ^ tirx.const(flip, "uint8")
        bit = tirx.bitwise_and(tirx.shift_right(code, plane.astype("uint8")), tirx.const(1, "uint8"))
        there = tirx.all(bit != tirx.const(0, "uint8"), c < channels)
        return tirx.Select(there, tirx.const(-1, "int8"), tirx.const(0, "int8"))

    masks = te.compute((batch, height, width, planes, groups, vectors, lanes), mask, name="mask")
    packed = pack_masks(masks, word_bits)
    per_group = vectors * lanes // word_bits
    output = te.compute(
        (batch, height, width, planes, -(-channels // word_bits)),
        lambda n, y, x, plane, word: packed[n, y, x, plane, word // per_group, word % per_group],
        name="store",
    )
    return as_kernel(te.create_prim_func([data, output]), "bytes_to_bits")
