"""How vectors along the depth are scheduled: the reduction of one register tile, a pass for each plane of the weights.

A pass has one sum for every pixel, plane of the activations and vector of output channels, so many that nearly all
registers hold sums: the vectors of weights that a step loads then meet as many pixels as can be.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir

from tvmq.kernels.arm_depth import register_depth
from tvmq.kernels.workload import Conv2dWorkload

__all__ = ["place_depths", "schedule_spread"]


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
        Steps in the body of the innermost loop, one of `tvmq.kernels.depth.unrolls`.
    instruction : str
        One of `tvmq.kernels.arm_depth.DEPTHS`, or "scalar".
    """
    n, y, x, group, vector, j, i, lane, kh, kw, step, byte = sch.get_loops(accumulate)[-12:]
    steps = int(sch.get(step).extent)
    outer, inner = sch.split(step, [None, min(unrolled, steps)])
    # Vectors of weights outside the pixels that meet them.
    spatial = (group, vector, n, y, x, i)
    sch.reorder(j, kh, kw, outer, inner, *spatial, lane, byte)
    for loop in (j, inner, *spatial, *((kw,) if unrolled > steps else ())):
        sch.unroll(loop)
    if unrolled < steps and (workload.activation_planes, workload.weight_planes, workload.dilation[1]) == (1, 1, 1):
        # Neighbouring columns of the window are neighbours in memory: one loop is entered less often.
        sch.fuse(kw, outer)
    sch.set_scope(accumulate, 0, "local")
    start = sch.decompose_reduction(accumulate, kh)
    sch.vectorize(sch.get_loops(start)[-1])
    if instruction == "scalar":
        return
    sch.tensorize(lane, register_depth(instruction))


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
