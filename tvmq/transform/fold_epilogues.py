r"""Products of codes become exact integers; everything up to the next quantizer becomes thresholds.

Before::

    conv1 = R.nn.conv2d(tvmq.dequantize(q, ...), tvmq.dequantize(weight_codes, ...))
    pool = R.nn.max_pool2d(conv1)
    bn = R.nn.batch_norm(pool, ...)[0]
    q2 = tvmq.quantize(R.clip(bn, -1, 1), thresholds, codes)

    y = R.nn.batch_norm(R.add(conv2, shortcut), ...)[0]
    q3 = tvmq.quantize(R.nn.relu(y), thresholds, codes)

After::

    conv1 = tvmq.conv2d(q, weight_codes)                     # int32, in units of both scales
    c = tvmq.threshold(conv1, integer_thresholds, codes)     # one column of thresholds per channel
    q2 = tvmq.max_pool2d(c, minimum)

    y = R.add(tvmq.affine(conv2, scale, offset), shortcut)
    q3 = tvmq.float_threshold(y, direction, float_thresholds, codes)

**Why this is exact.**  Between a number x and the quantizer stand only monotone functions (:mod:`.monotone`).  Their
composition f is evaluated *as it stands*, step by step in float64, so "f(x) >= t" is true from some x on (or up to
some x), and bisection over all integers, or over all float32 numbers, finds it.  The result is, by definition, what
the network computes: nothing is approximated after this pass, and equality, negative and zero factors need no special
case:

* a decreasing f (negative gamma): the channel's weights are negated, so that -s is accumulated, and f(-s) increases;
  where the alphabet has no negatives, or x is a float, the comparison is with ``direction * x``;
* a constant f (gamma zero): all thresholds of the channel lie at one end of the numbers.

**Learned bases.**  Where the values of either operand are no integers, or the weights' coefficients differ per channel,
the product is ``tvmq.basis_conv2d`` or ``tvmq.basis_dense``, a float32 by definition (see :mod:`tvmq.bitplanes`), and
what follows folds into float thresholds.  An offset of the activations is a bias per channel and border class::

    conv1 = tvmq.basis_conv2d(q, weight_codes, activation_basis, weight_basis, bias)
    q2 = tvmq.float_threshold(conv1, direction, float_thresholds, codes)

**Max-pool** commutes with monotone functions: max over f = f of max, or f of min where f decreases.  So pooling moves
behind the threshold and works on codes; ``minimum`` marks the channels in which what follows the pool decreases.

**No quantizer follows** (last layer, or a sum with a float shortcut): the part of f that is affine, ``a x + b`` with
a and b composed in float64 and rounded once to float32, becomes ``tvmq.affine``, a fused multiply-add by definition:
as separate operations, compilers would contract them on some targets and not on others.
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
from tvmq.bitplanes import BitPlanes, Encoding, basis_terms, border_constants, offset_terms, window_classes
from tvmq.dialect import constant_array, constant_value, encoding_of, is_call, pair, sides
from tvmq.errors import ModelError
from tvmq.transform.floats import LARGEST_KEY, SMALLEST_KEY, float_of_key
from tvmq.transform.monotone import POOLS, RESHAPES, Chain, Function, monotone_function, operand_of
from tvmq.transform.propagate_codes import pool_arguments
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["FoldEpilogues", "float_thresholds", "integer_thresholds"]

NEVER = np.iinfo(np.int32).max
ALWAYS = np.iinfo(np.int32).min


@dataclass(frozen=True, eq=False)
class _Epilogue:
    """A value computed by a chain from an integer accumulator, or from a float tensor with channels on axis 1.

    ``source`` is the call of the accumulator, emitted when it is known how; or a variable of the new function.
    """

    variable: relax.Var
    value: relax.Expr
    source: Call | relax.Var
    chain: Chain
    bound: int = 0

    @property
    def is_integer(self) -> bool:
        return isinstance(self.source, Call)

    def then(self, variable: relax.Var, value: relax.Expr, *steps: Function | Call) -> _Epilogue:
        return dataclasses.replace(self, variable=variable, value=value, chain=self.chain.then(*steps))


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
    first = _first(lambda s: function(s * sign) >= targets, (len(thresholds), len(direction)), -bound, bound)
    return np.where(first > bound, NEVER, np.where(first == -bound, ALWAYS, first)).astype(np.int32)


def float_thresholds(
    function: Callable[[np.ndarray], np.ndarray], direction: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """For each threshold and channel, the smallest float32 x with ``function(direction * x) >= threshold``.

    Parameters
    ----------
    function, direction, thresholds
        As for :func:`integer_thresholds`.

    Returns
    -------
    float32 array of shape (T, C)
        Infinite where no finite x, or every x, reaches the threshold.
    """
    sign = np.where(direction < 0, -1, 1).astype(np.float32)
    targets = thresholds.astype(np.float64)[:, None]

    def reached(key: np.ndarray) -> np.ndarray:
        return function(float_of_key(key) * sign) >= targets

    first = _first(reached, (len(thresholds), len(direction)), SMALLEST_KEY, LARGEST_KEY)
    values = float_of_key(np.minimum(first, LARGEST_KEY)) + np.float32(0)  # -0.0 becomes 0.0
    return np.where(first > LARGEST_KEY, np.inf, np.where(first == SMALLEST_KEY, -np.inf, values)).astype(np.float32)


def _first(reached: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int], least: int, most: int) -> np.ndarray:
    """The smallest integer from ``least`` to ``most`` at which a monotone condition holds; ``most + 1`` if none."""
    low = np.full(shape, least - 1, np.int64)
    high = np.full(shape, most + 1, np.int64)
    while np.any(unknown := high - low > 1):
        middle = (low + high) // 2
        hit = reached(middle)
        high = np.where(unknown & hit, middle, high)
        low = np.where(unknown & ~hit, middle, low)
    return high


def _basis_product(call: Call, data: relax.Expr, x: Encoding, w: BitPlanes) -> Call | None:
    """The product of codes ``data`` and weights in learned bases; None if there is none."""
    terms = basis_terms(x, w)
    if terms is None:
        return None
    if is_call(call, "relax.matmul"):
        bias = offset_terms(x, BitPlanes(w.codes[:, :, None, None], w.encoding))
        return dialect.basis_dense(data, terms, bias[None, None])
    strides, padding, dilation = pair(call.attrs["strides"]), sides(call.attrs["padding"]), pair(call.attrs["dilation"])
    if x.offset == 0 or not any(padding):
        bias = offset_terms(x, w)[None, None]
    else:
        size = list(data.ty.shape)[2:]
        if any(map(dialect.is_symbolic, size)):
            return None
        axes = window_classes(pair(size), pair(w.codes.shape[2:]), strides, padding, dilation)
        bias = border_constants(lambda taps: offset_terms(x, w, taps), axes)
    return dialect.basis_conv2d(data, terms, bias, strides, padding, dilation)


class _Folder(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "relax.nn.conv2d", "relax.matmul"):
            product = self.product(variable, value)
            if product is not None:
                return self.shared(product)
        if is_call(value, "tvmq.quantize"):
            source = self.operand(value.args[0])
            folded = self.fold(variable, value, source) if isinstance(source, _Epilogue) else None
            if folded is not None:
                return folded
        extended = self.extend(variable, value)
        return super().bind(variable, value) if extended is None else self.shared(extended)

    # --- the start of an epilogue ---

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
        attrs = call.attrs
        if codes is None:
            return None
        if not is_dense and (
            int(attrs["groups"]) != 1 or (attrs["data_layout"], attrs["kernel_layout"]) != ("NCHW", "OIHW")
        ):
            return None
        if not (x.is_integer and w.is_integer) or x.coefficients.ndim + w.coefficients.ndim > 2:
            product = _basis_product(call, data.args[0], x, BitPlanes(codes, w))
            if product is None:
                return None
            numbers = self.emit(product, variable.name)
            return _Epilogue(variable, call, numbers, Chain(variable.name, len(codes)))
        geometry = () if is_dense else (attrs["strides"], attrs["padding"], attrs["dilation"])
        accumulator = (dialect.dense if is_dense else dialect.conv2d)(data.args[0], weight.args[0], x, w, *geometry)
        largest = [int(np.abs(e.units(np.arange(2**e.planes, dtype=np.uint8))).max()) for e in (x, w)]
        bound = int(np.prod(codes.shape[1:])) * largest[0] * largest[1]
        if bound >= 2**31 - 2:
            raise ModelError(
                f"layer '{variable.name}': sums up to {bound} do not fit 32 bits; keep the layer in float with skip="
            )
        scale = x.scale.astype(np.float64) * w.scale.astype(np.float64)
        units = Function.of_affine(scale, np.zeros(()), lambda s: s * scale)
        return _Epilogue(variable, call, accumulator, Chain(variable.name, len(codes), (units,)), bound)

    def start(self, operand: relax.Expr) -> _Epilogue | None:
        """An empty epilogue of a float tensor; None if it has no channels."""
        source = self.substitute(operand)
        if not isinstance(source, relax.Var) or source.ty.dtype != "float32" or len(source.ty.shape) < 2:
            return None
        channels = source.ty.shape[1]
        if dialect.is_symbolic(channels):
            return None
        return _Epilogue(source, source, source, Chain(source.name, int(channels)))

    # --- the steps ---

    def extend(self, variable: relax.Var, value: relax.Expr) -> _Epilogue | None:
        """``value`` as one more step of an epilogue; None if it is not one."""
        if isinstance(value, relax.Var):
            source = self.operand(value)
            return source if isinstance(source, _Epilogue) else None
        if isinstance(value, relax.TupleGetItem):
            source = self.operand(value.tuple_value)
            return source.then(variable, value) if isinstance(source, _Epilogue) and value.index == 0 else None
        operand = operand_of(value) if isinstance(value, Call) else None
        if operand is None:
            return None
        before = self.operand(operand)
        moves = is_call(value, *RESHAPES) or (is_call(value, *POOLS) and value.attrs["layout"] == "NCHW")
        if not isinstance(before, _Epilogue):
            before = None if moves else self.start(operand)
        if before is None:
            return None
        if moves:
            return before.then(variable, value, value)
        function = monotone_function(value, before.chain)
        return None if function is None else before.then(variable, value, function)

    def shared(self, epilogue: _Epilogue) -> _Epilogue:
        """The epilogue from a stored float on if several operations read its value: one product serves them all."""
        if epilogue.is_integer and len(self.users[epilogue.variable]) > 1:
            return self.as_float(epilogue)
        return epilogue

    # --- the end of an epilogue ---

    def fold(self, variable: relax.Var, call: Call, epilogue: _Epilogue) -> relax.Var | None:
        """Thresholds for a quantizer at the end of an epilogue; None if they cannot express it."""
        chain = epilogue.chain
        codes = constant_array(call.args[2])
        differences = np.diff(codes.astype(np.int64))
        ascending, descending = bool(np.all(differences > 0)), bool(np.all(differences < 0))
        if chain.pooled and not ascending and not descending:
            return None
        accumulator = self.increasing(epilogue) if epilogue.is_integer else None
        if epilogue.is_integer and accumulator is None:
            epilogue = self.as_float(epilogue)
            chain = epilogue.chain
        name = f"{chain.layer}_codes"
        result = self.emit(self.comparison(epilogue, accumulator, call), name)
        for index, step in enumerate(chain.steps):
            if is_call(step, *POOLS):
                falling = (chain.direction(index + 1) < 0) != descending
                minimum = dialect.constant(falling.astype(np.uint8))
                result = self.emit(dialect.max_pool2d(result, minimum, **pool_arguments(step)), f"{chain.layer}_pool")
            elif isinstance(step, Call):
                result = self.emit(Call(step.op, [result, *step.args[1:]], step.attrs), variable.name)
        return result

    def comparison(self, epilogue: _Epilogue, accumulator: Call | None, call: Call) -> Call:
        """The call that compares a source with the thresholds of each channel."""
        chain, thresholds = epilogue.chain, constant_array(call.args[1])
        direction = chain.direction()
        if accumulator is not None:
            levels = integer_thresholds(chain.evaluate, direction, thresholds, epilogue.bound)
            sums = self.emit(accumulator, chain.layer)
            return dialect.threshold(sums, dialect.constant(levels), call.args[2])
        limits = dialect.constant(float_thresholds(chain.evaluate, direction, thresholds))
        sign = dialect.constant(np.where(direction < 0, -1, 1).astype(np.float32))
        return dialect.float_threshold(epilogue.source, sign, limits, call.args[2])

    def increasing(self, epilogue: _Epilogue) -> Call | None:
        """The accumulator with the weights negated where the chain decreases; None if the alphabet cannot."""
        accumulator, channels = epilogue.source, epilogue.chain.direction() < 0
        if not channels.any():
            return accumulator
        _, w = dialect.operand_encodings(accumulator)
        codes = constant_array(accumulator.args[1]).copy()
        negated = w.negated(codes[channels])
        if negated is None:
            return None
        codes[channels] = negated
        return Call(accumulator.op, [accumulator.args[0], dialect.constant(codes)], accumulator.attrs)

    def as_float(self, epilogue: _Epilogue) -> _Epilogue:
        """The same value, computed from a float: the accumulator after the longest affine beginning of the chain."""
        chain = epilogue.chain
        affine = [isinstance(step, Function) and step.affine is not None for step in chain.steps]
        count = affine.index(False) if False in affine else len(affine)
        beginning = dataclasses.replace(chain, steps=chain.steps[:count])
        name = epilogue.variable.name if count == len(affine) else chain.layer
        source = self.affine(epilogue.source, beginning, name)
        return dataclasses.replace(epilogue, source=source, chain=dataclasses.replace(chain, steps=chain.steps[count:]))

    def affine(self, source: Call | relax.Var, chain: Chain, name: str) -> relax.Var:
        """Emit a chain of affine functions as one operator."""
        coefficients = chain.affine()
        assert coefficients is not None
        numbers = source if isinstance(source, relax.Var) else self.emit(source, chain.layer)
        scale, offset = (dialect.constant(np.broadcast_to(c, chain.channels).copy()) for c in coefficients)
        return self.emit(dialect.affine(numbers, scale, offset), name)

    def materialize(self, value: Any) -> relax.Expr:
        """As floats: one affine of the source, or the last step as it was, on what came before it."""
        if not isinstance(value, _Epilogue):
            return value
        if not value.chain.steps:
            result = value.source
        elif self.is_one_affine(value):
            result = self.affine(value.source, value.chain, value.variable.name)
        else:
            result = self.emit(self.substitute(value.value), value.variable.name)
        self.values[value.variable] = result
        return result

    @staticmethod
    def is_one_affine(value: _Epilogue) -> bool:
        """Whether to write an epilogue as ``tvmq.affine``; a single addition or product of floats stays as it is."""
        if is_call(value.value, "relax.nn.batch_norm") or value.chain.affine() is None:
            return False
        single = len(value.chain.steps) == 1 and not isinstance(value.value, relax.TupleGetItem)
        return value.is_integer or not single


@tvm.transform.module_pass(opt_level=0, name="tvmq.FoldEpilogues")
class FoldEpilogues:
    """Convolutions of codes become integers, and what precedes a quantizer becomes thresholds."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Folder(module).run()
