"""Sums of activations that bits of weights select, looked up in tables of partial sums.

With weights of one bit, ``sum_k w_ok x_k`` over four successive channels has 16 values, whatever the output channel:
one for every nibble of four weights.  A table holds them,

    T[i] = sum_{b < 4} bit_b(i) x_b,         i = 0 .. 15,

and one instruction looks up the nibbles of a whole vector of output channels in it.  Tables are made once for each
pixel and read by every output channel and every tap.  Weights are packed as for popcounts: a byte is the bits of eight
channels, so two nibbles.  Nibbles of absent channels are zero, and so is the first entry of every table.

Codes of a bits make sums of at most ``8 (2^a - 1)`` for every byte of weights, so a byte holds the sums of 31, 10, 4 or
2 bytes of weights for a = 1 .. 4 (``partial``).  They are added to sums of 16 bits, those of even lanes apart from
those of odd ones, since that needs no movement between lanes (``pairs``); in the end both are put together
(``accumulate``).  Whoever makes a workload sees to it that 16 bits are enough (`Table.bound`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tvmq.kernels.workload import Conv2dWorkload

__all__ = [
    "NIBBLE_BITS",
    "TABLE_ENTRIES",
    "accumulated_lookups",
    "chosen_entry",
    "lookup_chunks",
    "make_tables",
    "table_bytes",
]

NIBBLE_BITS = 4
TABLE_ENTRIES = 2**NIBBLE_BITS
_OCTET = 8
"""Channels of a byte of weights."""
_LARGEST_BYTE = 255


def table_bytes(channels: int) -> int:
    """Bytes of the tables of one pixel.

    Parameters
    ----------
    channels : int
        Input channels.

    Returns
    -------
    size : int
    """
    return -(-channels // _OCTET) * 2 * TABLE_ENTRIES


def make_tables(image: te.Tensor) -> te.Tensor:
    """Tables of every four channels; the block is called "table".

    Parameters
    ----------
    image : te.Tensor of uint8 [N, H, W, 1, 8 * octets]
        Activations.

    Returns
    -------
    tables : te.Tensor of uint8 [N, H, W, 32 * octets]
    """
    batch, height, width, _, length = image.shape

    def entry(n: Any, y: Any, x: Any, position: Any) -> Any:
        first = position // TABLE_ENTRIES * NIBBLE_BITS
        terms = [
            tirx.Select(position // 2**bit % 2 != 0, image[n, y, x, 0, first + bit], tirx.const(0, "uint8"))
            for bit in range(NIBBLE_BITS)
        ]
        return functools.reduce(operator.add, terms)

    return te.compute((batch, height, width, int(length) // NIBBLE_BITS * TABLE_ENTRIES), entry, name="table")


def chosen_entry(entry: Callable[[int], Any], nibble: Any) -> Any:
    """The entry of a table that a nibble chooses, as a tree of choices.

    An index that is read from memory would say as much, but TVM could not compare such expressions.

    Parameters
    ----------
    entry : callable
        From a number to that entry of the table.
    nibble : PrimExpr of uint8
        In [0, 15].

    Returns
    -------
    value : PrimExpr
    """

    def among(first: int, count: int) -> Any:
        if count == 1:
            return entry(first)
        half = count // 2
        is_upper = tirx.bitwise_and(nibble, tirx.const(half, "uint8")) != tirx.const(0, "uint8")
        return tirx.Select(is_upper, among(first + half, half), among(first, half))

    return among(0, TABLE_ENTRIES)


def lookup_chunks(workload: Conv2dWorkload) -> tuple[list[str], int]:
    """What one sum of bytes covers.

    Parameters
    ----------
    workload : Conv2dWorkload
        With a table.

    Returns
    -------
    (list of str, int)
        The axes of the window that it covers wholly, of "kh" and "kw", and bytes of a tap's weights, a divisor of all.
    """
    assert workload.table is not None
    most = _LARGEST_BYTE // (_OCTET * (2**workload.table.activation_bits - 1))
    words, (kernel_h, kernel_w) = workload.weight_words, workload.kernel
    chunk = max(size for size in range(1, min(words, most) + 1) if words % size == 0)
    if chunk < words or kernel_w * words > most:
        return [], chunk
    return (["kw"] if kernel_h * kernel_w * words > most else ["kh", "kw"]), chunk


def accumulated_lookups(
    workload: Conv2dWorkload,
    tables: te.Tensor,
    weight: te.Tensor,
    shape: tuple,
    window: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
) -> te.Tensor:
    """The sums of selected activations of every output; the blocks are "nibble", "partial", "pairs", "accumulate".

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    tables : te.Tensor of uint8 [N, H, W, 32 * octets]
        From :func:`make_tables`.
    weight : te.Tensor of uint8 [Ob, KH, KW, 1, octets, L]
        Packed weights.
    shape : tuple
        Of the result: [N, OH, columns, groups, vectors, 1, L].
    window : callable
        From row and column of an output pixel and of a tap to the row and column of the image.

    Returns
    -------
    sums : te.Tensor of uint16
    """
    *front, lanes = shape
    vectors = front[-2]
    blocks, kernel_h, kernel_w, _, octets, _ = (int(size) for size in weight.shape)

    def nibble(block: Any, kh: Any, kw: Any, octet: Any, half: Any, lane: Any) -> Any:
        word, shift = weight[block, kh, kw, 0, octet, lane], (half * NIBBLE_BITS).astype("uint8")
        return tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const(TABLE_ENTRIES - 1, "uint8"))

    nibbles = te.compute((blocks, kernel_h, kernel_w, octets, 2, lanes), nibble, name="nibble")
    covered, chunk = lookup_chunks(workload)
    extents = {"kh": kernel_h, "kw": kernel_w, "co": octets // chunk}
    outer = [name for name in extents if name not in covered]
    inner = {name: te.reduce_axis((0, extents[name]), name) for name in covered}
    step, half = te.reduce_axis((0, chunk), "ci"), te.reduce_axis((0, 2), "half")

    def partial(n: Any, y: Any, x: Any, group: Any, vector: Any, _klass: Any, *rest: Any) -> Any:
        *position, lane = rest
        taps = {**dict(zip(outer, position, strict=True)), **inner}
        row, column = window(y, x, taps["kh"], taps["kw"])
        octet = taps["co"] * chunk + step
        index = nibbles[group * vectors + vector, taps["kh"], taps["kw"], octet, half, lane]
        first = (octet * 2 + half) * TABLE_ENTRIES
        number = chosen_entry(lambda entry: tables[n, row, column, first + entry], index)
        return te.sum(number, axis=[*inner.values(), step, half])

    sums = te.compute((*front, *(extents[name] for name in outer), lanes), partial, name="partial")
    axes = [te.reduce_axis((0, extents[name]), name) for name in outer]

    def pair(*indices: Any) -> Any:
        *index, parity, lane = indices
        return te.sum(sums(*index, *axes, lane * 2 + parity).astype("uint16"), axis=axes)

    pairs = te.compute((*front, 2, lanes // 2), pair, name="pairs")
    return te.compute(
        shape, lambda *indices: pairs(*indices[:-1], indices[-1] % 2, indices[-1] // 2), name="accumulate"
    )
