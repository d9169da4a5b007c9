"""Lookups of the sums of five activations, in tables of 32 entries; see :mod:`tvmq.kernels.tables` for those of four.

``tbl`` of 64-bit ARM looks up a vector of 16 bytes in two registers as fast as in one (on the cores where it is worth
having).  So a table has the 32 sums of five successive channels,

    T[i] = sum_{b < 5} bit_b(i) x_b,         i = 0 .. 31,

and an index of five bits says for every output channel which of them its weights select.  A byte holds one index, so
that a loaded vector of weights needs neither a shift nor a mask; one-bit weights then take 1.6 bits of memory.

For a vector of 16 output channels, one pixel and five input channels there is a lookup and an addition of bytes: 80
products in two operations.  Activations of a bits make entries of at most ``5 (2^a - 1)``, so a byte holds the sums of

    255 / (5 (2^a - 1)) = 51, 17, 7, 3 indices for a = 1 .. 4

("partial") before two operations, one for each half, add it to sums of 16 bits ("accumulate").  Whoever makes a
workload sees to it that those are enough (`Table.bound`).  The indices of a tap may be a few more than its channels
need, so that they divide into equal chunks (`table_indices`); those bits and activations are zero.

Tables are made 15 channels, three tables, at a time: from 16 bytes x and the sums of neighbours s_i = x_i + x_{i+1},
two lookups give all entries of the first two and the next two channels, whose sum is the lower half of a table.  The
fifth channel is added to all of it for the upper half.
"""

from __future__ import annotations

from typing import Any

from tvm import te

from tvmq.kernels.tables import QUINTET_ENTRIES, chosen_entry, entry_sum
from tvmq.kernels.workload import Conv2dWorkload

__all__ = ["QUINTET", "accumulated_quintets", "make_quintet_tables", "table_strides"]

QUINTET = 5
"""Channels of a table."""


def table_strides(workload: Conv2dWorkload) -> tuple[int, int]:
    """Rows and columns of tables from one output pixel to the next; none are made for pixels in between.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.

    Returns
    -------
    (int, int)
    """
    return (1, 1) if workload.kernel == (1, 1) else workload.strides


def make_quintet_tables(workload: Conv2dWorkload, image: te.Tensor, height: int, width: Any) -> te.Tensor:
    """Tables of every five channels; the block is called "table".

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    image : te.Tensor of uint8 [N, at least H, at least W, 1, 5 * tables]
        Activations.
    height : int
        Rows of the output.
    width : int or PrimExpr
        Its columns.  Only those pixels have tables that its windows reach: where there are more, TVM finds out and
        shortens the rows.

    Returns
    -------
    tables : te.Tensor of uint8 [N, H, W, 32 * tables]
    """
    batch, *_, length = image.shape
    strides = table_strides(workload)
    apart = tuple(stride // own for stride, own in zip(workload.strides, strides, strict=True))
    rows, columns = (
        (count - 1) * stride + (size - 1) * reach + 1
        for count, stride, size, reach in zip((height, width), strides, workload.kernel, workload.dilation, strict=True)
    )

    def entry(n: Any, y: Any, x: Any, position: Any) -> Any:
        first = position // QUINTET_ENTRIES * QUINTET
        five = [image[n, y * apart[0], x * apart[1], 0, first + bit] for bit in range(QUINTET)]
        return entry_sum(five, position)

    shape = (batch, rows, columns, int(length) // QUINTET * QUINTET_ENTRIES)
    return te.compute(shape, entry, name="table")


def accumulated_quintets(workload: Conv2dWorkload, tables: te.Tensor, weight: te.Tensor, shape: tuple) -> te.Tensor:
    """Selected sums; the block is "accumulate".

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    tables : te.Tensor of uint8 [N, H, W, 32 * indices]
        From :func:`make_quintet_tables`.
    weight : te.Tensor of uint8 [Ob, KH, KW, 1, indices, L]
        Indices.
    shape : tuple
        Of the result: [N, OH, columns, groups, vectors, 1, L].

    Returns
    -------
    sums : te.Tensor of uint16
    """
    vectors, strides, reach = shape[-3], table_strides(workload), workload.dilation
    extents = {"kh": workload.kernel[0], "kw": workload.kernel[1], "index": workload.weight_words}
    kh, kw, index = (te.reduce_axis((0, size), name) for name, size in extents.items())

    def total(n: Any, y: Any, x: Any, group: Any, vector: Any, _klass: Any, lane: Any) -> Any:
        row, column = y * strides[0] + kh * reach[0], x * strides[1] + kw * reach[1]
        bits = weight[group * vectors + vector, kh, kw, 0, index, lane]
        first = index * QUINTET_ENTRIES
        number = chosen_entry(lambda entry: tables[n, row, column, first + entry], bits, QUINTET_ENTRIES)
        return te.sum(number.astype("uint16"), axis=[kh, kw, index])

    return te.compute(shape, total, name="accumulate")
