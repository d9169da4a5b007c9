"""How vectors along the depth are scheduled: the reduction of one register tile.

A tile has one sum for every pixel, plane of the activations and of the weights, and vector of output channels.  On ARM
each pair of planes and vector is one instruction to the schedule, with all pixels of the tile and all steps; other
processors, which have none, go by single steps of a pixel.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir

from tvmq.kernels.arm_depth import Tile, register_tile
from tvmq.kernels.depth import image_stride
from tvmq.kernels.workload import Conv2dWorkload

__all__ = ["place_depths", "schedule_spread"]

_AXES = ("n", "y", "x", "group", "vector", "j", "i", "lane", "kh", "kw", "step", "byte")
"""Of the block "accumulate"."""
_REDUCED = ("kh", "kw", "step", "byte")
_IMAGE = 0
"""Place of the image among what the block reads."""


def place_depths(
    sch: s_tir.Schedule, accumulate: Any, workload: Conv2dWorkload, unrolled: int, instruction: str
) -> None:
    """The reduction of one register tile.

    Parameters
    ----------
    sch : s_tir.Schedule
        In which the block "accumulate" is at its place.
    accumulate : SBlockRV
        The block.
    workload : Conv2dWorkload
        With vectors along the depth.
    unrolled : int
        Steps in the body of the innermost loop of an instruction, one of `tvmq.kernels.depth.unrolls`.
    instruction : str
        One of `tvmq.kernels.arm_depth.DEPTHS`, or "scalar".
    """
    if instruction != "scalar":
        _place_tile(sch, accumulate, workload, unrolled, instruction)
    else:
        _place_steps(sch, accumulate, workload)


def _place_tile(
    sch: s_tir.Schedule, accumulate: Any, workload: Conv2dWorkload, unrolled: int, instruction: str
) -> None:
    """All of it as one instruction, for every pair of planes and every vector of output channels."""
    loops = dict(zip(_AXES, sch.get_loops(accumulate)[-len(_AXES) :], strict=True))
    extents = {axis: int(sch.get(loop).extent) for axis, loop in loops.items()}
    inside = [axis for axis in ("y", "x", "lane", "kh", "kw", "step", "byte") if extents[axis] > 1]
    outside = [axis for axis in _AXES if axis not in inside]
    outside.sort(key=_REDUCED.__contains__)
    sch.reorder(*(loops[axis] for axis in (*outside, *inside)))
    for axis in outside:
        sch.unroll(loops[axis])
    image = sch.get(accumulate).reads[_IMAGE].source
    pitch = 0 if extents["kh"] == extents["y"] == 1 else math.prod(int(extent) for extent in image.shape[2:])
    # The sums are not "local": TVM puts what is on the heap, where LLVM has to store them.
    own = [axis for axis in (*outside, *inside) if axis in (*inside, *_REDUCED)]
    start = sch.decompose_reduction(accumulate, loops[own[0]])
    *pixels, lane = sch.get_loops(start)[-sum(axis not in _REDUCED for axis in inside) :]
    for loop in pixels:
        sch.unroll(loop)
    sch.vectorize(lane)
    assert workload.depth is not None
    tile = Tile(
        rows=extents["y"],
        columns=extents["x"],
        kernel=workload.kernel,
        strides=workload.strides,
        dilation=workload.dilation,
        pixel_steps=extents["step"],
        stride=image_stride(workload.depth),
        activation_planes=workload.activation_planes,
        weight_planes=workload.weight_planes,
        pitch=pitch,
        unrolled=unrolled,
    )
    sch.tensorize(loops[inside[0]], register_tile(instruction, tile))


def _place_steps(sch: s_tir.Schedule, accumulate: Any, workload: Conv2dWorkload) -> None:
    """One step of all pixels at a time: LLVM takes minutes for bodies of many steps of many planes."""
    n, y, x, group, vector, j, i, lane, kh, kw, step, byte = sch.get_loops(accumulate)[-len(_AXES) :]
    # Vectors of weights outside the pixels that meet them.
    spatial = (group, vector, n, y, x, i)
    sch.reorder(j, kh, kw, step, *spatial, lane, byte)
    for loop in (j, *spatial):
        sch.unroll(loop)
    if (workload.activation_planes, workload.weight_planes, workload.dilation[1]) == (1, 1, 1):
        # Neighbouring columns of the window are neighbours in memory: one loop is entered less often.
        sch.fuse(kw, step)
    sch.set_scope(accumulate, 0, "local")
    start = sch.decompose_reduction(accumulate, kh)
    sch.vectorize(sch.get_loops(start)[-1])


def schedule_spread(sch: s_tir.Schedule, spread: Any, workload: Conv2dWorkload) -> None:
    """Copies of one step of a pixel at a time, from a register.

    Parameters
    ----------
    sch : s_tir.Schedule
        The schedule.
    spread : SBlockRV
        The block.
    workload : Conv2dWorkload
        With vectors along the depth.
    """
    assert workload.depth is not None
    *_, place = sch.get_loops(spread)
    _, copies, byte = sch.split(place, [None, 16 // workload.depth.step, workload.depth.step])
    sch.unroll(copies)
    sch.vectorize(byte)
