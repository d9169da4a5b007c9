"""Constant weights whose values are levels of an alphabet become codes, where the other operand is quantized.

Before::

    b = tvmq.dequantize(q, ...)
    conv1 = R.nn.conv2d(b, weight)        # weight: a float constant, multiples of a unit per output channel

After::

    b = tvmq.dequantize(q, ...)
    w = tvmq.dequantize(weight_codes, coefficients, offset, scale)
    conv1 = R.nn.conv2d(b, w)

Integers, learned bases and any other sets of at most 16 levels count as alphabets, one for the tensor or one per output
channel; the fewest bit planes win (see :mod:`tvmq.bitplanes`).  A product with a float operand, or one that has no
packed kernel, stays as it is: there is nothing exact to gain from its weights' alphabet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import BitPlanes
from tvmq.dialect import constant_value, encoding_of, is_call
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["EncodeWeights"]


def _is_packable(call: Call) -> bool:
    """Whether a convolution is dense in its channels, or a matrix product takes one vector per sample."""
    if is_call(call, "relax.matmul"):
        return len(call.args[0].ty.shape) == 2
    layouts = (call.attrs["data_layout"], call.attrs["kernel_layout"])
    return int(call.attrs["groups"]) == 1 and layouts == ("NCHW", "OIHW")


class _Encoder(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "relax.nn.conv2d", "relax.matmul"):
            return self.linear(variable, value)
        return super().bind(variable, value)

    def linear(self, variable: relax.Var, call: Call) -> relax.Var:
        data, weight = (self.substitute(argument) for argument in call.args)
        codes = self.definition(data)
        if is_call(codes, "tvmq.dequantize") and encoding_of(codes).coefficients.ndim == 1 and _is_packable(call):
            weight = self.encoded_weight(call, weight, f"{variable.name}_weight")
        return self.emit(Call(call.op, [data, weight], call.attrs, call.ty_args), variable.name)

    def encoded_weight(self, call: Call, weight: relax.Expr, name: str) -> relax.Expr:
        """A dequantize of constant codes where the weight lies on an alphabet of :class:`BitPlanes`."""
        definition = self.definition(weight)
        transposed = is_call(definition, "relax.permute_dims")
        array = constant_value(self.definition(definition.args[0]) if transposed else definition)
        if array is None or array.dtype != np.float32:
            return weight
        is_matmul = is_call(call, "relax.matmul")
        if is_matmul and array.ndim != 2:
            return weight
        if is_matmul and not transposed:
            array = np.ascontiguousarray(array.T)
        planes = BitPlanes.of_weights(array)
        if planes is None:
            return weight
        dequantized = self.emit(
            dialect.dequantize(dialect.constant(planes.codes), *dialect.encoding_constants(planes.encoding)), name
        )
        return self.emit(relax.op.permute_dims(dequantized, [1, 0]), f"{name}_transposed") if is_matmul else dequantized


@tvm.transform.module_pass(opt_level=0, name="tvmq.EncodeWeights")
class EncodeWeights:
    """Constant weights on an alphabet, of quantized products, become ``tvmq.dequantize`` of constant codes."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Encoder(module).run()
