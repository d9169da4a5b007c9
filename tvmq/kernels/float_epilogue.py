"""What a float kernel makes of its sums: scale, bias, multiply-add, shortcut and bounds, each rounded by itself."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tvmq.kernels.conv2d import fused_multiply_add
from tvmq.kernels.float_workload import Extent, FloatWorkload
from tvmq.kernels.rounding import FENCE

__all__ = ["FloatEpilogue"]


class FloatEpilogue:
    """The operands that a workload asks for, and what is done with them.

    Parameters
    ----------
    workload : FloatWorkload
    batch : int or TVM expression

    Attributes
    ----------
    inputs : list of te.Tensor
        Scale, bias, multiplier and offset, and shortcut, as far as there are such.
    """

    def __init__(self, workload: FloatWorkload, batch: Extent) -> None:
        self.workload = workload
        channels = (workload.stored_channels,)
        size = () if workload.dense else workload.out_size
        shape = (batch, workload.out_channels, *size)
        self.scale = te.placeholder(channels, "float32", "scale") if workload.is_packed else None
        self.bias = te.placeholder(channels, "float32", "bias") if workload.bias else None
        self.multiplier = te.placeholder(channels, "float32", "multiplier") if workload.affine else None
        self.offset = te.placeholder(channels, "float32", "offset") if workload.affine else None
        self.shortcut = te.placeholder(shape, "float32", "shortcut") if workload.shortcut else None
        operands = (self.scale, self.bias, self.multiplier, self.offset, self.shortcut)
        self.inputs = [tensor for tensor in operands if tensor is not None]

    def of_sum(self, total: Any, channel: Any) -> Any:
        """A sum times scale plus bias, times multiplier plus offset; within the bounds if there is no shortcut."""
        if self.scale is not None:
            total = total * self.scale[channel]
            if self.bias is not None or self.shortcut is not None:
                total = tirx.call_llvm_pure_intrin("float32", FENCE, total)  # two roundings, not one
        if self.bias is not None:
            total = total + self.bias[channel]
        if self.multiplier is not None and self.offset is not None:
            total = fused_multiply_add(total, self.multiplier[channel], self.offset[channel])
        return total if self.shortcut is not None else self._bounded(total)

    def of_place(self, number: Any, *index: Any) -> Any:
        """What is left to do at a place of the output: the shortcut, and then the bounds."""
        return number if self.shortcut is None else self._bounded(number + self.shortcut[index])

    def _bounded(self, number: Any) -> Any:
        workload = self.workload
        if workload.high is not None:
            number = tirx.min(number, tirx.const(workload.high, "float32"))
        return number if workload.low is None else tirx.max(number, tirx.const(workload.low, "float32"))
