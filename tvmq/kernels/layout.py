"""Back from the kernels' channels-last numbers to the channels-first ones of the network around them."""

from __future__ import annotations

from typing import Any

from tvm import s_tir, te, tirx

from tvmq.kernels.conv2d import as_kernel

__all__ = ["channels_first", "schedule_channels_first"]

CHANNEL_TILE = 16
PIXEL_TILE = 4


def channels_first(batch: Any, height: int, width: int, channels: int, dtype: str) -> tirx.PrimFunc:
    """Function that moves the channels of an image before its rows and columns.

    Parameters
    ----------
    batch : int or tirx.Var
        Number of images.
    height, width, channels : int
        Size of an image.
    dtype : str
        Type of the elements.

    Returns
    -------
    function : tirx.PrimFunc
        ``data`` [N, H, W, C] to ``output`` [N, C, H, W].
    """
    data = te.placeholder((batch, height, width, channels), dtype, "data")
    output = te.compute((batch, channels, height, width), lambda n, c, y, x: data[n, y, x, c], name="output")
    return as_kernel(te.create_prim_func([data, output]), "channels_first")


def schedule_channels_first(sch: s_tir.Schedule) -> None:
    """Small blocks of channels and pixels: reads take whole cache lines, and a line that is written is soon full.

    Parameters
    ----------
    sch : s_tir.Schedule
        Of a function from :func:`channels_first`.
    """
    n, channel, row, column = sch.get_loops(sch.get_sblock("output"))
    pixel = sch.fuse(row, column)
    channel_outer, channel_inner = sch.split(channel, [None, _divisor(sch, channel, CHANNEL_TILE)])
    pixel_outer, pixel_inner = sch.split(pixel, [None, _divisor(sch, pixel, PIXEL_TILE)])
    sch.reorder(n, channel_outer, pixel_outer, pixel_inner, channel_inner)
    sch.unroll(pixel_inner)
    sch.vectorize(channel_inner)


def _divisor(sch: s_tir.Schedule, loop: Any, most: int) -> int:
    extent = int(sch.get(loop).extent)
    return max(size for size in range(1, min(extent, most) + 1) if extent % size == 0)
