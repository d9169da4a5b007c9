"""Find quantizers that were written as ordinary arithmetic, and say them as codes.

Before::

    a = R.greater_equal(x, 0)
    b = R.where(a, 1, -1)                # or round, floor, sign, clip, scale: any monotone staircase of x

After::

    q = tvmq.quantize(x, thresholds, codes)
    b = tvmq.dequantize(q, coefficients, offset, scale)

A chain of elementwise operations with scalar constants is a function of one float.  If one of them is a step (a
comparison, a rounding) and all are monotone, the chain is a staircase, and its steps are found by bisection over *all*
float32 numbers in order: the thresholds are exact for every input, rounding of the chain's own arithmetic included.
Chains without a step, with more than 256 levels, or with levels that are neither equispaced nor
the subset sums of a learned basis are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import MAX_PLANES, Encoding
from tvmq.dialect import constant_value, is_call
from tvmq.golden import evaluate
from tvmq.transform.floats import LARGEST_KEY, SMALLEST_KEY, float_of_key
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["RecognizeQuantizers", "staircase"]

STEPS = tuple(
    f"relax.{name}" for name in ("floor", "ceil", "round", "sign", "greater_equal", "greater", "less_equal", "less")
)
SMOOTH = tuple(
    f"relax.{name}"
    for name in (
        *("add", "subtract", "multiply", "divide", "clip", "nn.relu", "maximum", "minimum", "negative", "where"),
        *("tanh", "sigmoid", "astype"),
    )
)


def staircase(function: Any, most: int = 2**MAX_PLANES) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps of a monotone function of one float32.

    Parameters
    ----------
    function : callable
        From a float32 array of shape (n,) to a float array of shape (n,); monotone.
    most : int
        Largest number of levels to accept.

    Returns
    -------
    (float32 array of shape (T,), float32 array of shape (T + 1,)) or None
        Thresholds, such that the level is ``levels[number of thresholds <= x]``; None with more than ``most`` levels.
    """
    low, high = np.array([SMALLEST_KEY], np.int64), np.array([LARGEST_KEY], np.int64)
    at_low, at_high = function(float_of_key(low)), function(float_of_key(high))
    first = at_low[0]
    while np.any(high - low > 1):
        middle = (low + high) // 2
        at_middle = function(float_of_key(middle))
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
        at_low, at_high = np.concatenate([at_low, at_middle]), np.concatenate([at_middle, at_high])
        steps = (at_low != at_high) & (high > low)
        low, high, at_low, at_high = low[steps], high[steps], at_low[steps], at_high[steps]
        if len(low) >= most:
            return None
    order = np.argsort(high)
    thresholds = float_of_key(high[order]) + np.float32(0)  # -0.0 becomes 0.0
    levels = np.concatenate([[first], at_high[order]]).astype(np.float32)
    return thresholds, levels


@dataclass(frozen=True)
class _Scalar:
    """A value that is a function of one float of ``source``: the operations from there to here."""

    variable: relax.Var
    value: Call
    source: relax.Expr
    operations: tuple[tuple[relax.Var, Call], ...]

    @property
    def has_step(self) -> bool:
        return any(is_call(call, *STEPS) for _, call in self.operations)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        previous: relax.Expr | None = None
        result: Any = x
        for variable, call in self.operations:
            operand = next(argument for argument in call.args if isinstance(argument, relax.Var))
            assert previous is None or operand.same_as(previous)
            with np.errstate(all="ignore"):
                result = np.asarray(evaluate(call, {operand: result})).reshape(x.shape)
            previous = variable
        return result


def _is_scalar_constant(expr: Any) -> bool:
    array = constant_value(expr)
    return array is not None and array.size == 1


def _is_scalar_operation(call: Any) -> bool:
    if not is_call(call, *STEPS, *SMOOTH):
        return False
    tensors = [argument for argument in call.args if isinstance(argument, relax.Var)]
    others = [argument for argument in call.args if not isinstance(argument, relax.Var)]
    if is_call(call, "relax.where") and not isinstance(call.args[0], relax.Var):
        return False
    # Shapes and dtypes are attributes; clip's bounds are primitive values, not tensors.
    constants = [argument for argument in others if constant_value(argument) is not None]
    return len(tensors) == 1 and all(_is_scalar_constant(argument) for argument in constants)


class _Recognizer(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if _is_scalar_operation(value):
            operand = next(argument for argument in value.args if isinstance(argument, relax.Var))
            before = self.values.get(operand, operand)
            if isinstance(before, _Scalar):
                return _Scalar(variable, value, before.source, (*before.operations, (variable, value)))
            return _Scalar(variable, value, before, ((variable, value),))
        return super().bind(variable, value)

    def materialize(self, value: Any) -> relax.Expr:
        if not isinstance(value, _Scalar):
            return value
        result = self.quantized(value) if value.has_step else None
        if result is None:
            result = self.emit(self.substitute(value.value), value.variable.name)
        self.values[value.variable] = result
        return result

    def quantized(self, scalar: _Scalar) -> relax.Var | None:
        """``scalar`` as quantize and dequantize; None if it has too many levels or they are not equispaced."""
        if scalar.variable.ty.dtype != "float32" or scalar.source.ty.dtype != "float32":
            return None
        steps = staircase(scalar)
        if steps is None or len(steps[0]) == 0:
            return None
        thresholds, levels = steps
        descending = levels[0] > levels[-1]
        ascending = levels[::-1] if descending else levels
        encoded = Encoding.of_levels(ascending) or Encoding.of_basis_levels(ascending)
        if encoded is None:
            return None
        encoding, codes = encoded
        codes = codes[::-1].copy() if descending else codes
        name = scalar.variable.name
        quantized = dialect.quantize(scalar.source, dialect.constant(thresholds), dialect.constant(codes))
        variable = self.emit(quantized, f"{name}_codes")
        return self.emit(dialect.dequantize(variable, *dialect.encoding_constants(encoding)), name)


@tvm.transform.module_pass(opt_level=0, name="tvmq.RecognizeQuantizers")
class RecognizeQuantizers:
    """Staircases become ``tvmq.quantize`` and ``tvmq.dequantize``."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Recognizer(module).run()
