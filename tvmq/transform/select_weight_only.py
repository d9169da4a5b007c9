"""Products of floats with constant weights on a low-bit alphabet keep those weights as codes.

Before::

    conv1 = R.nn.conv2d(x, weight)        # x: floats; weight: a float constant, few multiples of a unit

After::

    conv1 = tvmq.weight_only_conv2d(x, weight_codes, scale)

The network that GPFQ leaves behind when activations stay float: ternary weights, or equispaced ones of up to 4 bits.
The new operator fixes the order of additions and multiplies by the scale once, so its last bits are its own; this pass
runs while the network's meaning is being defined.

A product stays float where packing gains nothing or has no kernel: grouped convolutions, whose windows are short and
whose lanes would have nothing to share; weights of a learned basis, or of more than 4 bits; and tiny weights.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import BitPlanes
from tvmq.dialect import constant_value, encoding_of, is_call
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["FEWEST_WEIGHTS", "MOST_PLANES", "SelectWeightOnly", "low_bit_weight"]

MOST_PLANES = 4
FEWEST_WEIGHTS = 256
"""A kilobyte in float: with fewer weights there is nothing to gain."""


def low_bit_weight(array: np.ndarray) -> BitPlanes | None:
    """Codes of a weight that lies on an alphabet of integers of at most 4 planes.

    Parameters
    ----------
    array : float32 of shape (O, ...)

    Returns
    -------
    BitPlanes or None
    """
    # One look at the first channel spares most float weights the search.
    if not array.size or len(np.unique(array[0])) > 2**MOST_PLANES:
        return None
    planes = BitPlanes.of_values(array)
    return planes if planes is not None and planes.encoding.planes <= MOST_PLANES else None


class _Selector(BindingRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.found: dict[tuple[relax.Expr, bool], BitPlanes | None] = {}

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "relax.nn.conv2d", "relax.matmul"):
            data = self.substitute(value.args[0])
            planes = self.weight(value) if self.has_kernel(value, data) else None
            if planes is not None:
                return self.product(variable.name, value, data, planes)
        return super().bind(variable, value)

    def has_kernel(self, call: Call, data: relax.Expr) -> bool:
        """Whether it is a product of floats, dense in its channels, of a window or vector of known size."""
        if is_call(self.definition(data), "tvmq.dequantize") or {str(call.ty.dtype), str(data.ty.dtype)} != {"float32"}:
            return False
        shape = list(data.ty.shape)
        if is_call(call, "relax.matmul"):
            return len(shape) > 1 and len(call.args[1].ty.shape) == 2 and not dialect.is_symbolic(shape[-1])
        layouts = [str(call.attrs[name]) for name in ("data_layout", "kernel_layout", "out_layout")]
        sizes_known = not any(dialect.is_symbolic(extent) for extent in shape[1:])
        return sizes_known and int(call.attrs["groups"]) == 1 and layouts == ["NCHW", "OIHW", "NCHW"]

    def weight(self, call: Call) -> BitPlanes | None:
        """The weight's codes, channels first."""
        is_matmul = is_call(call, "relax.matmul")
        definition = self.definition(self.substitute(call.args[1]))
        transposed = is_call(definition, "relax.permute_dims")
        if transposed:
            definition = self.definition(definition.args[0])
        if transposed and not is_matmul:
            return None
        key = (definition, is_matmul and not transposed)
        if key not in self.found:  # recurrent layers use a weight many times
            self.found[key] = self.planes(*key)
        return self.found[key]

    def planes(self, definition: relax.Expr, inputs_first: bool) -> BitPlanes | None:
        """The codes of a constant, or of one that the network itself has as codes."""
        if is_call(definition, "tvmq.dequantize"):
            return None if inputs_first else self.dequantized_weight(definition)
        array = constant_value(definition)
        if array is None or array.dtype != np.float32 or array.size < FEWEST_WEIGHTS:
            return None
        return low_bit_weight(np.ascontiguousarray(array.T) if inputs_first else array)

    @staticmethod
    def dequantized_weight(call: Call) -> BitPlanes | None:
        codes, encoding = constant_value(call.args[0]), encoding_of(call)
        if codes is None or codes.size < FEWEST_WEIGHTS or encoding.offset.ndim:
            return None
        small = encoding.is_integer and encoding.planes <= MOST_PLANES
        return BitPlanes(codes, encoding) if small and encoding.coefficients.ndim == 1 else None

    def product(self, name: str, call: Call, data: relax.Expr, planes: BitPlanes) -> relax.Var:
        codes, scale = dialect.constant(planes.codes), dialect.constant(planes.encoding.scale)
        if is_call(call, "relax.nn.conv2d"):
            geometry = (call.attrs["strides"], call.attrs["padding"], call.attrs["dilation"])
            return self.emit(dialect.weight_only_conv2d(data, codes, scale, planes.encoding, *geometry), name)
        *front, length = data.ty.shape
        if len(front) == 1:
            return self.emit(dialect.weight_only_dense(data, codes, scale, planes.encoding), name)
        # Vectors of a sequence are samples.
        samples = functools.reduce(operator.mul, front)
        rows = self.emit(relax.op.reshape(data, [samples, length]), f"{name}_rows")
        product = self.emit(dialect.weight_only_dense(rows, codes, scale, planes.encoding), name)
        return self.emit(relax.op.reshape(product, list(call.ty.shape)), f"{name}_shaped")


@tvm.transform.module_pass(opt_level=0, name="tvmq.SelectWeightOnly")
class SelectWeightOnly:
    """Float products with low-bit constant weights become ``tvmq.weight_only_conv2d`` or ``tvmq.weight_only_dense``."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Selector(module).run()
