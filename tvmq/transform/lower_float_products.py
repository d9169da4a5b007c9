"""Products of floats with constant weights get those weights laid out for the target's vectors, and what follows them.

Before::

    conv1 = tvmq.weight_only_conv2d(x, weight_codes, scale)
    lv1 = R.add(conv1, bias)
    bn1 = tvmq.affine(lv1, multiplier, offset)
    lv2 = R.add(bn1, shortcut)
    lv3 = R.nn.relu(lv2)

After::

    # attributes: the workload, "conv1"
    lv3 = tvmq.packed_float_product(x, packed_weight, scale, bias, multiplier, offset, shortcut)

Packing follows the vector unit: lanes are output channels, and the weights of a step lie together.  Of codes, a word
has those of one output channel for several steps.

The kernel takes over what follows a product, in this order and as far as nothing else reads what lies between: a bias
per channel, a batch normalization (one multiply-add), a shortcut, and ReLU or another range.  Each is rounded as it
was, so no bit changes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.dialect import constant_array, constant_value, is_call, pair, sides
from tvmq.kernels.float_workload import FloatWorkload, pack_codes, pack_floats, stored_planes, vector_unit
from tvmq.target import Target
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["LowerFloatProducts"]

DENSE = ("tvmq.float_dense", "tvmq.weight_only_dense")
PRODUCTS = ("tvmq.float_conv2d", "tvmq.weight_only_conv2d", *DENSE)


@dataclass(frozen=True, eq=False)
class _Chain:
    """A product and what follows it; variables are those of the old function.

    Attributes
    ----------
    layer : str
        Name of the product.
    call : tvm.ir.Call
        The product.
    last : relax.Var
        What the end of the chain is bound to.
    bias : float32 of shape (O,), optional
    affine : two of them, optional
        Multiplier and offset.
    shortcut : relax.Expr, optional
    bounds : (float or None, float or None)
    """

    layer: str
    call: Call
    last: relax.Var
    bias: np.ndarray | None = None
    affine: tuple[np.ndarray, np.ndarray] | None = None
    shortcut: relax.Expr | None = None
    bounds: tuple[float | None, float | None] = (None, None)

    def followed_by(self, variable: relax.Var, value: relax.Expr) -> _Chain | None:
        """The chain with one more step, or nothing if the kernel cannot take it over."""
        if self.bounds != (None, None):
            return None
        if is_call(value, "relax.nn.relu"):
            return dataclasses.replace(self, last=variable, bounds=(0.0, None))
        if is_call(value, "relax.clip"):
            low, high = (float(bound.value) for bound in value.args[1:])
            return dataclasses.replace(self, last=variable, bounds=(low, high))
        if self.shortcut is not None:
            return None
        if is_call(value, "tvmq.affine"):
            multiplier, offset = (constant_value(operand) for operand in value.args[1:])
            if multiplier is None or offset is None or self.affine is not None:
                return None
            return dataclasses.replace(self, last=variable, affine=(multiplier, offset))
        if not is_call(value, "relax.add"):
            return None
        others = [operand for operand in value.args if not operand.same_as(self.last)]
        if len(others) != 1 or not _same_shape(value, self.last):
            return None
        array = constant_value(others[0])
        if array is None:
            return dataclasses.replace(self, last=variable, shortcut=others[0]) if _same_shape(*value.args) else None
        bias = self.per_channel(array)
        if bias is None or self.bias is not None or self.affine is not None:
            return None
        return dataclasses.replace(self, last=variable, bias=bias)

    def per_channel(self, array: np.ndarray) -> np.ndarray | None:
        """An addend of every channel if it broadcasts that way."""
        channels, ones = len(constant_array(self.call.args[1])), 0 if is_call(self.call, *DENSE) else 2
        if array.size == 1:
            return np.full(channels, array.reshape(()), np.float32)
        shape = (channels,) + (1,) * ones
        fits = array.size == channels and array.shape[-len(shape) :] == shape
        return array.reshape(-1) if fits else None


def _same_shape(one: relax.Expr, other: relax.Expr) -> bool:
    return bool(tvm_ffi.structural_equal(one.ty.shape, other.ty.shape))


class _Lowerer(BindingRewriter):
    def __init__(self, module: tvm.IRModule, target: Target) -> None:
        super().__init__(module)
        self.lanes, self.registers = vector_unit(target)
        self.outputs = set(relax.analysis.free_vars(module["main"].body.body))
        self.chains: dict[relax.Var, _Chain] = {}
        self.inner: set[relax.Var] = set()
        self.packed: dict[tuple[relax.Expr, FloatWorkload], relax.Expr] = {}

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, *PRODUCTS):
            self.find_chain(variable, value)
        if variable in self.inner:
            return None
        if variable in self.chains:
            return self.emit(self.kernel(self.chains[variable]), variable.name)
        return super().bind(variable, value)

    def find_chain(self, variable: relax.Var, value: Call) -> None:
        """Follow a product to the end of what its kernel computes; the kernel stands there."""
        chain: _Chain | None = _Chain(variable.name, value, variable)
        while chain is not None:
            end = chain
            chain = None
            if end.last not in self.outputs and len(self.users[end.last]) == 1:
                chain = end.followed_by(*self.users[end.last][0])
            if chain is not None and (chain.last in self.chains or chain.last in self.inner):
                chain = None  # a sum of two products belongs to the first
            if chain is not None:
                self.inner.add(end.last)
        self.chains[end.last] = end

    def kernel(self, chain: _Chain) -> Call:
        call, is_packed = chain.call, is_call(chain.call, "tvmq.weight_only_conv2d", "tvmq.weight_only_dense")
        workload = self.workload(chain)
        constants = [self.padded(constant_array(call.args[2]), workload)] if is_packed else []
        if chain.bias is not None:
            constants.append(self.padded(chain.bias, workload))
        if chain.affine is not None:
            constants += [self.padded(values, workload) for values in chain.affine]
        if chain.shortcut is not None:
            constants.append(self.substitute(chain.shortcut))
        data = self.substitute(call.args[0])
        return dialect.packed_float_product(data, self.weight(call, workload), constants, workload, chain.layer)

    @staticmethod
    def padded(values: np.ndarray, workload: FloatWorkload) -> relax.Expr:
        """A number per output channel, zeros in surplus ones."""
        array = np.zeros(workload.stored_channels, np.float32)
        array[: workload.out_channels] = values
        return dialect.constant(array)

    def weight(self, call: Call, workload: FloatWorkload) -> relax.Expr:
        """The packed weight; layers that share a weight share it still."""
        key = (call.args[1], workload)
        if key not in self.packed:
            array = constant_array(call.args[1])
            rows = array.reshape(len(array), -1)
            if workload.is_packed:
                codes = stored_planes(rows, dialect.weight_encoding(call)).codes
                self.packed[key] = dialect.constant(pack_codes(codes, workload))
            else:
                self.packed[key] = dialect.constant(pack_floats(rows, workload))
        return self.packed[key]

    def workload(self, chain: _Chain) -> FloatWorkload:
        call, attrs = chain.call, chain.call.attrs
        dense = is_call(call, *DENSE)
        outputs, inputs, *kernel = (int(size) for size in call.args[1].ty.shape)
        coefficients, offset = (), 0
        if is_call(call, "tvmq.weight_only_conv2d", "tvmq.weight_only_dense"):
            stored = stored_planes(np.zeros(1, np.uint8), dialect.weight_encoding(call)).encoding
            coefficients, offset = tuple(stored.coefficients.tolist()), int(stored.offset)
        groups = int(attrs["groups"]) if is_call(call, "tvmq.float_conv2d") else 1
        low, high = chain.bounds
        return FloatWorkload(
            *((1, 1) if dense else pair(list(call.args[0].ty.shape)[2:])),
            in_channels=inputs * groups,
            out_channels=outputs,
            kernel=(1, 1) if dense else pair(kernel),
            strides=(1, 1) if dense else pair(attrs["strides"]),
            padding=(0, 0, 0, 0) if dense else sides(attrs["padding"]),
            dilation=(1, 1) if dense else pair(attrs["dilation"]),
            dense=dense,
            coefficients=coefficients,
            offset=offset,
            lanes=self.lanes,
            registers=self.registers,
            bias=chain.bias is not None,
            affine=chain.affine is not None,
            shortcut=chain.shortcut is not None,
            low=low,
            high=high,
            groups=groups,
        )


@tvm.transform.module_pass(opt_level=0, name="tvmq.LowerFloatProducts")
class LowerFloatProducts:
    """``tvmq.weight_only_*`` and ``tvmq.float_*`` become ``tvmq.packed_float_product``.

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
