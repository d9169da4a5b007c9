"""Products with low-bit weights get their packed weights, laid out for the target's vectors.

Before::

    conv1 = tvmq.weight_only_conv2d(x, weight_codes, scale)

After::

    conv1 = tvmq.packed_weight_only(x, packed_weight, scale)       # attributes: the workload, the layer's name

Packing follows the vector unit: a word has the codes of one output channel, a vector of words those of as many channels
as a register has floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.dialect import constant_array, is_call, pair, sides
from tvmq.kernels.weight_only import WeightOnlyWorkload, pack_codes, stored_planes, vector_unit
from tvmq.target import Target
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["LowerWeightOnly"]


class _Lowerer(BindingRewriter):
    def __init__(self, module: tvm.IRModule, target: Target) -> None:
        super().__init__(module)
        self.lanes, self.registers = vector_unit(target)

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "tvmq.weight_only_conv2d", "tvmq.weight_only_dense"):
            return self.emit(self.packed(variable.name, value), variable.name)
        return super().bind(variable, value)

    def packed(self, layer: str, call: Call) -> Call:
        codes, scale = (constant_array(argument) for argument in call.args[1:])
        planes = stored_planes(codes, dialect.weight_encoding(call))
        dense = is_call(call, "tvmq.weight_only_dense")
        outputs, inputs, *kernel = codes.shape
        attrs = call.attrs
        workload = WeightOnlyWorkload(
            *((1, 1) if dense else pair(list(call.args[0].ty.shape)[2:])),
            in_channels=inputs,
            out_channels=outputs,
            kernel=(1, 1) if dense else pair(kernel),
            strides=(1, 1) if dense else pair(attrs["strides"]),
            padding=(0, 0, 0, 0) if dense else sides(attrs["padding"]),
            dilation=(1, 1) if dense else pair(attrs["dilation"]),
            dense=dense,
            coefficients=tuple(planes.encoding.coefficients.tolist()),
            offset=int(planes.encoding.offset),
            lanes=self.lanes,
            registers=self.registers,
        )
        words = pack_codes(planes.codes.reshape(outputs, -1), workload)
        padded = np.zeros(workload.vectors * workload.lanes, np.float32)
        padded[:outputs] = scale
        operands = (self.substitute(call.args[0]), dialect.constant(words), dialect.constant(padded))
        return dialect.packed_weight_only(*operands, workload, layer)


@tvm.transform.module_pass(opt_level=0, name="tvmq.LowerWeightOnly")
class LowerWeightOnly:
    """``tvmq.weight_only_conv2d`` and ``tvmq.weight_only_dense`` become ``tvmq.packed_weight_only``.

    Parameters
    ----------
    target : Target
        Decides the lanes of the packed layout.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Lowerer(module, self.target).run()
