"""Products of floats with constant weights get an order of additions, and keep low-bit weights as codes.

Before::

    conv1 = R.nn.conv2d(x, weight)        # x: floats; weight: a float constant, few multiples of a unit
    conv2 = R.nn.conv2d(y, other)         # any float constant

After::

    conv1 = tvmq.weight_only_conv2d(x, weight_codes, scale)
    conv2 = tvmq.float_conv2d(y, other)

Low-bit weights are what GPFQ leaves behind when activations stay float: ternary weights, or equispaced ones of up to 4
bits.  The new operators fix the order of additions, and multiply by the scale once, so their last bits are their own;
this pass runs while the network's meaning is being defined.

Weights stay float where packing gains nothing or has no kernel: those of grouped convolutions, whose windows are short
and whose lanes would have nothing to share; of a learned basis, or of more than 4 bits; and tiny ones.  Products stay
TVM's own where the weight is not a constant, or the size of an image or vector not known.
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

__all__ = ["FEWEST_WEIGHTS", "MOST_PLANES", "SelectFloatProducts", "low_bit_weight"]

MOST_PLANES = 4
FEWEST_WEIGHTS = 256
"""A kilobyte in float: with fewer weights there is nothing to gain from packing."""


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


class _Weight:
    """A constant weight, channels first: its floats, and its codes if there are few levels.

    Recurrent layers use a weight many times: what is computed once is one constant in the network, too.
    """

    def __init__(self, floats: np.ndarray, planes: BitPlanes | None) -> None:
        self._floats, self.planes = floats, planes

    @functools.cached_property
    def floats(self) -> relax.Expr:
        return dialect.constant(self._floats)

    @functools.cached_property
    def codes(self) -> tuple[relax.Expr, relax.Expr]:
        """Codes and scale."""
        assert self.planes is not None
        return dialect.constant(self.planes.codes), dialect.constant(self.planes.encoding.scale)


class _Selector(BindingRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.found: dict[tuple[relax.Expr, bool], _Weight | None] = {}

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "relax.nn.conv2d", "relax.matmul"):
            data = self.substitute(value.args[0])
            weight = self.weight(value) if self.has_kernel(value, data) else None
            if weight is not None:
                return self.product(variable.name, value, data, weight)
        return super().bind(variable, value)

    @staticmethod
    def has_kernel(call: Call, data: relax.Expr) -> bool:
        """Whether it is a product of floats, of a window or vector of known size."""
        if {str(call.ty.dtype), str(data.ty.dtype), str(call.args[1].ty.dtype)} != {"float32"}:
            return False
        shape = list(data.ty.shape)
        if is_call(call, "relax.matmul"):
            return len(call.args[1].ty.shape) == 2 and not dialect.is_symbolic(shape[-1])
        layouts = [str(call.attrs[name]) for name in ("data_layout", "kernel_layout", "out_layout")]
        return not any(map(dialect.is_symbolic, shape[1:])) and layouts == ["NCHW", "OIHW", "NCHW"]

    def weight(self, call: Call) -> _Weight | None:
        """The weight of a layer if it is a constant."""
        is_matmul = is_call(call, "relax.matmul")
        definition = self.definition(self.substitute(call.args[1]))
        transposed = is_call(definition, "relax.permute_dims")
        if transposed:
            definition = self.definition(definition.args[0])
        if transposed and not is_matmul:
            return None
        key = (definition, is_matmul and not transposed)
        if key not in self.found:
            self.found[key] = self.constant_weight(*key)
        return self.found[key]

    def constant_weight(self, definition: relax.Expr, inputs_first: bool) -> _Weight | None:
        """A constant, or a weight that the network itself has as codes."""
        if is_call(definition, "tvmq.dequantize"):
            return self.dequantized_weight(definition, inputs_first)
        array = constant_value(definition)
        if array is None:
            return None
        floats = np.ascontiguousarray(array.T) if inputs_first else array
        return _Weight(floats, low_bit_weight(floats))

    @staticmethod
    def dequantized_weight(call: Call, inputs_first: bool) -> _Weight | None:
        codes = constant_value(call.args[0])
        if codes is None:
            return None
        encoding = encoding_of(call)
        values = encoding.values(codes)
        if inputs_first:
            return _Weight(np.ascontiguousarray(values.T), None)
        small = encoding.is_integer and encoding.planes <= MOST_PLANES and not encoding.offset.ndim
        return _Weight(values, BitPlanes(codes, encoding) if small and encoding.coefficients.ndim == 1 else None)

    def is_packed(self, call: Call, data: relax.Expr, weight: _Weight) -> bool:
        """Whether the kernel takes the weight's codes."""
        if weight.planes is None or weight.planes.codes.size < FEWEST_WEIGHTS:
            return False
        if is_call(call, "relax.nn.conv2d") and int(call.attrs["groups"]) != 1:
            return False
        return not is_call(self.definition(data), "tvmq.dequantize")

    def product(self, name: str, call: Call, data: relax.Expr, weight: _Weight) -> relax.Var:
        planes = weight.planes if self.is_packed(call, data, weight) else None
        if is_call(call, "relax.nn.conv2d"):
            geometry = (call.attrs["strides"], call.attrs["padding"], call.attrs["dilation"])
            if planes is not None:
                return self.emit(dialect.weight_only_conv2d(data, *weight.codes, planes.encoding, *geometry), name)
            return self.emit(dialect.float_conv2d(data, weight.floats, *geometry, int(call.attrs["groups"])), name)

        def dense(rows: relax.Expr) -> Call:
            if planes is not None:
                return dialect.weight_only_dense(rows, *weight.codes, planes.encoding)
            return dialect.float_dense(rows, weight.floats)

        *front, length = data.ty.shape
        if len(front) == 1:
            return self.emit(dense(data), name)
        # Vectors of a sequence are samples; so is a single vector.
        samples = functools.reduce(operator.mul, front, 1)
        rows = self.emit(relax.op.reshape(data, [samples, length]), f"{name}_rows")
        return self.emit(relax.op.reshape(self.emit(dense(rows), name), list(call.ty.shape)), f"{name}_shaped")


@tvm.transform.module_pass(opt_level=0, name="tvmq.SelectFloatProducts")
class SelectFloatProducts:
    """Float products with constant weights become ``tvmq.weight_only_*`` or ``tvmq.float_*``."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Selector(module).run()
