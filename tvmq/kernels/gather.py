"""Copies of windows: the bytes of a window of few channels, row by row, as one run.

The taps of a row of the filter are neighbours in memory where pixels have no padding channels, so a row is copied as
one vector of the next power of two.  What it takes beyond the row, less than once more the row, lies in the window's
next row in the image, and is overwritten by that one's copy in the run.  The last row has no next one: it is copied in
shorter vectors, the last of which overlaps the one before rather than to exceed the row.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.workload import padded_bytes

__all__ = ["register_gather"]

_WIDEST = 64
"""Bytes of one copy."""


@cache
def register_gather(rows: int, columns: int, channels: int, dilation: int) -> str:
    """Make TVM know the copy of one window.

    Parameters
    ----------
    rows, columns, channels : int
        Size of the window.
    dilation : int
        Rows of the image from one row of the window to the next; columns follow each other.

    Returns
    -------
    name : str
        From a uint8 image [rows, columns, 1, channels] to a run of bytes.
    """
    name = f"gather.{rows}x{columns}x{channels}.{dilation}"
    TensorIntrin.register(
        name, _description(rows, columns, channels, dilation), _implementation(rows, columns, channels, dilation)
    )
    return name


def _description(rows: int, columns: int, channels: int, dilation: int) -> Any:
    row = columns * channels
    used = rows * row
    length, reach = padded_bytes(used), dilation * (rows - 1) + 1

    @T.prim_func(s_tir=True)
    def description(image: T.handle, window: T.handle) -> None:
        first, second, third = T.int64(), T.int64(), T.int64()
        pixels = T.match_buffer(
            image, (reach, columns, 1, channels), "uint8", offset_factor=1, strides=[first, second, third, 1]
        )
        run = T.match_buffer(window, (length,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(pixels[0:reach, 0:columns, 0:1, 0:channels])
            T.writes(run[0:length])
            for k in range(length):
                with T.sblock("gather"):
                    v = T.axis.remap("S", [k])
                    run[v] = pixels[
                        T.min(v, used - 1) // row * dilation,
                        T.min(v, used - 1) % row // channels,
                        0,
                        T.min(v, used - 1) % channels,
                    ]

    return description


def _implementation(rows: int, columns: int, channels: int, dilation: int) -> Any:
    row = columns * channels
    used = rows * row
    length, reach = padded_bytes(used), dilation * (rows - 1) + 1
    width = min(_WIDEST, 1 << (row.bit_length() - 1))
    pieces = -(-row // width)
    wide = min(_WIDEST, 1 << (row - 1).bit_length())
    copies = -(-row // wide)
    vector, wider = f"uint8x{width}", f"uint8x{wide}"

    @T.prim_func(s_tir=True)
    def implementation(image: T.handle, window: T.handle) -> None:
        first, second, third = T.int64(), T.int64(), T.int64()
        pixels = T.match_buffer(
            image, (reach, columns, 1, channels), "uint8", offset_factor=1, strides=[first, second, third, 1]
        )
        run = T.match_buffer(window, (length,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(pixels[0:reach, 0:columns, 0:1, 0:channels])
            T.writes(run[0:length])
            for y in T.unroll(rows - 1):
                for piece in T.unroll(copies):
                    run[T.Ramp(y * row + piece * wide, 1, wide)] = pixels.vload(
                        [y * dilation, 0, 0, piece * wide], wider
                    )
            for piece in T.unroll(pieces):
                run[T.Ramp((rows - 1) * row + T.min(piece * width, row - width), 1, width)] = pixels.vload(
                    [reach - 1, 0, 0, T.min(piece * width, row - width)], vector
                )
            for rest in T.unroll(length - used):
                run[used + rest] = pixels[reach - 1, columns - 1, 0, channels - 1]

    return implementation
