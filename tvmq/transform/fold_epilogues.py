r"""Products of codes become exact integers; everything up to the next quantizer becomes integer thresholds.

Before::

    conv1 = R.nn.conv2d(tvmq.dequantize(q, ...), tvmq.dequantize(weight_codes, ...))
    pool = R.nn.max_pool2d(conv1)
    bn = R.nn.batch_norm(pool, ...)[0]
    q2 = tvmq.quantize(R.clip(bn, -1, 1), thresholds, codes)

After::

    conv1 = tvmq.conv2d(q, weight_codes)                     # int32, in units of both scales
    c = tvmq.threshold(conv1, integer_thresholds, codes)     # one column of thresholds per channel
    q2 = tvmq.max_pool2d(c, minimum)

**Why this is exact.**  Between the integer s and the quantizer stand only functions of one number per channel (scale,
bias, batch norm, ReLU, clip ...), each monotone, and monotone also as computed in float64, since rounding is monotone.
Their composition f is evaluated *as it stands*, step by step in float64, so "f(s) >= t" is true from some integer on
(or up to some integer), which bisection finds.  The result is, by definition, what the network computes: nothing is
approximated after this pass, and equality, negative and zero factors need no special case:

* a decreasing f (negative gamma): the channel's weights are negated, so that -s is accumulated, and f(-s) increases;
* a constant f (gamma zero): all thresholds of the channel lie at one end of the integers.

**Max-pool** commutes with monotone functions: max over f = f of max, or f of min where f decreases.  So pooling moves
behind the threshold and works on codes; ``minimum`` marks the channels in which what follows the pool decreases.

**No quantizer follows** (last layer, or a sum with a float shortcut): the part of f that is affine, ``a s + b`` with
a and b composed in float64 and rounded once to float32, becomes ``tvmq.affine``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.dialect import constant_array, constant_value, encoding_of, is_call
from tvmq.errors import ModelError
from tvmq.transform.fold_batch_norms import batch_norm
from tvmq.transform.propagate_codes import pool_arguments
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["FoldEpilogues", "integer_thresholds"]

NEVER = np.iinfo(np.int32).max
ALWAYS = np.iinfo(np.int32).min


@dataclass(frozen=True, eq=False)
class _Function:
    """A monotone function of one number per channel; arrays broadcast along the last axis, the channels."""

    apply: Callable[[np.ndarray], np.ndarray]
    direction: np.ndarray  # shape () or (C,): 1 increasing, 0 constant, -1 decreasing
    affine: tuple[np.ndarray, np.ndarray] | None = None  # (scale, offset), float64


@dataclass(frozen=True, eq=False)
class _Epilogue:
    """A value computed from an integer accumulator by the steps so far.

    A step is a :class:`_Function`, or the call of a max-pool or reshape that codes can go through instead.
    """

    variable: relax.Var
    value: relax.Expr
    accumulator: Call
    layer: str
    bound: int
    steps: tuple[_Function | Call, ...]

    def then(self, variable: relax.Var, value: relax.Expr, *steps: _Function | Call) -> _Epilogue:
        return dataclasses.replace(self, variable=variable, value=value, steps=(*self.steps, *steps))

    @property
    def channels(self) -> int:
        return int(self.accumulator.args[1].ty.shape[0])

    @property
    def reshaped(self) -> bool:
        return any(is_call(step, "relax.reshape", "relax.flatten") for step in self.steps)

    @property
    def functions(self) -> list[_Function]:
        return [step for step in self.steps if isinstance(step, _Function)]

    def direction(self, start: int = 0) -> np.ndarray:
        """Direction per channel of all functions from step ``start`` on."""
        result = np.ones(self.channels, np.int64)
        for step in self.steps[start:]:
            if isinstance(step, _Function):
                result = result * step.direction.astype(np.int64)
        return result

    def evaluate(self, integers: np.ndarray) -> np.ndarray:
        result = integers.astype(np.float64)
        for function in self.functions:
            with np.errstate(all="ignore"):
                result = function.apply(result)
        return result

    def affine(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(scale, offset) as float32 of shape (C,) if all steps are affine, else None."""
        scale, offset = np.ones(self.channels), np.zeros(self.channels)
        for step in self.steps:
            if not isinstance(step, _Function) or step.affine is None:
                return None
            scale, offset = scale * step.affine[0], offset * step.affine[0] + step.affine[1]
        return scale.astype(np.float32), offset.astype(np.float32)


def integer_thresholds(
    function: Callable[[np.ndarray], np.ndarray], direction: np.ndarray, thresholds: np.ndarray, bound: int
) -> np.ndarray:
    """For each threshold and channel, the smallest integer s with ``function(direction * s) >= threshold``.

    Parameters
    ----------
    function : callable
        From integers of shape (T, C) to float64 of shape (T, C), monotone per channel.
    direction : integer array of shape (C,)
        1, 0 or -1: how the function runs in each channel.
    thresholds : float array of shape (T,)
    bound : int
        Largest magnitude of s.

    Returns
    -------
    int32 array of shape (T, C)
        ``NEVER`` or ``ALWAYS`` (the ends of int32) where no s, or every s, reaches the threshold.
    """
    sign = np.where(direction < 0, -1, 1)
    targets = thresholds.astype(np.float64)[:, None]
    shape = (len(thresholds), len(direction))

    def reached(s: np.ndarray) -> np.ndarray:
        return function(s * sign) >= targets

    low = np.full(shape, -bound - 1, np.int64)  # "not reached"
    high = np.full(shape, bound + 1, np.int64)  # "reached", or never
    while np.any(open_ := high - low > 1):
        middle = (low + high) // 2
        hit = reached(middle)
        high = np.where(open_ & hit, middle, high)
        low = np.where(open_ & ~hit, middle, low)
    result = np.where(high > bound, NEVER, np.where(high == -bound, ALWAYS, high))
    return result.astype(np.int32)


class _Folder(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "relax.nn.conv2d", "relax.matmul"):
            epilogue = self.product(variable, value)
            if epilogue is not None:
                return epilogue
        if is_call(value, "tvmq.quantize"):
            source = self.operand(value.args[0])
            folded = self.fold(variable, value, source) if isinstance(source, _Epilogue) else None
            if folded is not None:
                return folded
        extended = self.extend(variable, value)
        return super().bind(variable, value) if extended is None else extended

    # --- the accumulator ---

    def product(self, variable: relax.Var, call: Call) -> _Epilogue | None:
        """The integer accumulator of a convolution or matrix product of two dequantized operands."""
        data = self.definition(self.substitute(call.args[0]))
        weight = self.definition(self.substitute(call.args[1]))
        is_dense = is_call(call, "relax.matmul")
        if is_dense:
            if not is_call(weight, "relax.permute_dims") or len(call.args[0].ty.shape) != 2:
                return None
            weight = self.definition(weight.args[0])
        if not is_call(data, "tvmq.dequantize") or not is_call(weight, "tvmq.dequantize"):
            return None
        codes = constant_value(weight.args[0])
        x, w = encoding_of(data), encoding_of(weight)
        if codes is None or not (x.is_integer and w.is_integer) or x.coefficients.ndim + w.coefficients.ndim > 2:
            return None
        if is_dense:
            accumulator = dialect.dense(data.args[0], weight.args[0], x, w)
        else:
            attrs = call.attrs
            if int(attrs["groups"]) != 1 or (attrs["data_layout"], attrs["kernel_layout"]) != ("NCHW", "OIHW"):
                return None
            geometry = (attrs["strides"], attrs["padding"], attrs["dilation"])
            accumulator = dialect.conv2d(data.args[0], weight.args[0], x, w, *geometry)
        largest = [int(np.abs(e.units(np.arange(2**e.planes, dtype=np.uint8))).max()) for e in (x, w)]
        bound = int(np.prod(codes.shape[1:])) * largest[0] * largest[1]
        if bound >= 2**31 - 2:
            raise ModelError(
                f"layer '{variable.name}': sums up to {bound} do not fit 32 bits; keep the layer in float with skip="
            )
        units = x.scale.astype(np.float64) * w.scale.astype(np.float64)
        return _Epilogue(variable, call, accumulator, variable.name, bound, (_scale(units),))

    # --- the steps ---

    def extend(self, variable: relax.Var, value: relax.Expr) -> _Epilogue | None:
        """``value`` as one more step of an epilogue; None if it is not one."""
        if isinstance(value, relax.Var):
            source = self.operand(value)
            return source if isinstance(source, _Epilogue) else None
        if isinstance(value, relax.TupleGetItem):
            source = self.operand(value.tuple_value)
            return source.then(variable, value) if isinstance(source, _Epilogue) and value.index == 0 else None
        if not isinstance(value, Call):
            return None
        operands = [self.operand(argument) for argument in value.args]
        sources = [operand for operand in operands if isinstance(operand, _Epilogue)]
        if len(sources) != 1:
            return None
        source = sources[0]
        if is_call(value, "relax.nn.max_pool2d") and value.attrs["layout"] == "NCHW":
            return source.then(variable, value, value)
        if is_call(value, "relax.reshape", "relax.flatten"):
            return source.then(variable, value, value)
        function = _function(value, operands, source)
        return None if function is None else source.then(variable, value, function)

    # --- the end of an epilogue ---

    def fold(self, variable: relax.Var, call: Call, epilogue: _Epilogue) -> relax.Var | None:
        """Thresholds for a quantizer at the end of an epilogue; None if they cannot express it."""
        thresholds, codes = (constant_array(argument) for argument in call.args[1:])
        pools = any(is_call(step, "relax.nn.max_pool2d") for step in epilogue.steps)
        differences = np.diff(codes.astype(np.int64))
        ascending, descending = bool(np.all(differences > 0)), bool(np.all(differences < 0))
        if pools and not ascending and not descending:
            return None
        direction = epilogue.direction()
        accumulator = self.negated(epilogue.accumulator, direction < 0)
        if accumulator is None:
            return None
        levels = integer_thresholds(epilogue.evaluate, direction, thresholds, epilogue.bound)
        sums = self.emit(accumulator, epilogue.layer)
        result = self.emit(
            dialect.threshold(sums, dialect.constant(levels), dialect.constant(codes)), f"{epilogue.layer}_codes"
        )
        for index, step in enumerate(epilogue.steps):
            if is_call(step, "relax.nn.max_pool2d"):
                falling = (epilogue.direction(index + 1) < 0) != descending
                minimum = dialect.constant(falling.astype(np.uint8))
                pooled = dialect.max_pool2d(result, minimum, **pool_arguments(step))
                result = self.emit(pooled, f"{epilogue.layer}_pool")
            elif isinstance(step, Call):
                result = self.emit(Call(step.op, [result, *step.args[1:]], step.attrs), variable.name)
        return result

    def negated(self, accumulator: Call, channels: np.ndarray) -> Call | None:
        """The accumulator with the weights of some output channels negated; None if the alphabet cannot."""
        if not channels.any():
            return accumulator
        _, w = dialect.operand_encodings(accumulator)
        codes = constant_array(accumulator.args[1]).copy()
        negated = w.negated(codes[channels])
        if negated is None:
            return None
        codes[channels] = negated
        weight = dialect.constant(codes)
        return Call(accumulator.op, [accumulator.args[0], weight], accumulator.attrs)

    def materialize(self, value: Any) -> relax.Expr:
        """As floats: one affine of the accumulator, or the last step as it was, on what came before it."""
        if not isinstance(value, _Epilogue):
            return value
        is_tuple = is_call(value.value, "relax.nn.batch_norm")
        coefficients = None if is_tuple else value.affine()
        if coefficients is not None:
            sums = self.emit(value.accumulator, value.layer)
            scale, offset = (dialect.constant(np.broadcast_to(c, value.channels).copy()) for c in coefficients)
            result = self.emit(dialect.affine(sums, scale, offset), value.variable.name)
        else:
            result = self.emit(self.substitute(value.value), value.variable.name)
        self.values[value.variable] = result
        return result


def _scale(scale: np.ndarray) -> _Function:
    return _affine(lambda x: x * scale, scale, np.zeros(()))


def _affine(apply: Callable[[np.ndarray], np.ndarray], scale: np.ndarray, offset: np.ndarray) -> _Function:
    return _Function(apply, np.sign(scale), (np.asarray(scale, np.float64), np.asarray(offset, np.float64)))


def _per_channel(array: np.ndarray, call: Call, epilogue: _Epilogue) -> np.ndarray | None:
    """A constant operand as shape () or (C,); None if it is neither, or channels were mixed by a reshape."""
    if array.size == 1:
        return array.reshape(()).astype(np.float64)
    ndim = len(call.ty.shape)
    aligned = array.reshape(*([1] * (ndim - array.ndim)), *array.shape)
    if epilogue.reshaped or aligned.shape[1] != epilogue.channels or aligned.size != epilogue.channels:
        return None
    return aligned.reshape(-1).astype(np.float64)


def _function(call: Call, operands: list[Any], epilogue: _Epilogue) -> _Function | None:
    """The monotone function that an elementwise call applies to its one variable operand."""
    name = call.op.name if hasattr(call.op, "name") else ""
    if name == "relax.nn.batch_norm":
        return _batch_norm(call, epilogue)
    if name in ("relax.nn.relu", "relax.tanh", "relax.sigmoid", "relax.clip", "relax.negative"):
        return _unary(name, call)
    if name not in ("relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.maximum", "relax.minimum"):
        return None
    first = isinstance(operands[0], _Epilogue)
    array = constant_value(operands[1] if first else operands[0])
    constant = None if array is None else _per_channel(array, call, epilogue)
    if constant is None:
        return None
    if not np.isfinite(constant).all():
        raise ModelError(
            f"layer '{epilogue.layer}': a parameter after it is NaN or infinite; check the trained weights"
        )
    return _binary(name, constant, first)


def _binary(name: str, c: np.ndarray, first: bool) -> _Function | None:
    if name == "relax.add":
        return _affine(lambda x: x + c, np.ones(()), c)
    if name == "relax.multiply":
        return _affine(lambda x: x * c, c, np.zeros(()))
    if name == "relax.subtract":
        return _affine(lambda x: x - c, np.ones(()), -c) if first else _affine(lambda x: c - x, -np.ones(()), c)
    if name == "relax.divide" and first and np.all(c != 0):
        return _affine(lambda x: x / c, 1 / c, np.zeros(()))
    if name == "relax.maximum":
        return _Function(lambda x: np.maximum(x, c), np.ones(()))
    if name == "relax.minimum":
        return _Function(lambda x: np.minimum(x, c), np.ones(()))
    return None


def _unary(name: str, call: Call) -> _Function:
    increasing = np.ones(())
    if name == "relax.nn.relu":
        return _Function(lambda x: np.maximum(x, 0.0), increasing)
    if name == "relax.tanh":
        return _Function(np.tanh, increasing)
    if name == "relax.sigmoid":
        return _Function(lambda x: 1.0 / (1.0 + np.exp(-x)), increasing)
    if name == "relax.negative":
        return _affine(lambda x: -x, -increasing, np.zeros(()))
    low, high = (float(getattr(bound, "value", bound)) for bound in call.args[1:3])
    return _Function(lambda x: np.clip(x, low, high), increasing)


def _batch_norm(call: Call, epilogue: _Epilogue) -> _Function | None:
    norm = None if epilogue.reshaped else batch_norm(call, epilogue.layer)
    return None if norm is None else _affine(norm, norm.scale, norm.offset)


@tvm.transform.module_pass(opt_level=0, name="tvmq.FoldEpilogues")
class FoldEpilogues:
    """Convolutions of codes become integers, and what follows them thresholds or one affine function."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Folder(module).run()
