"""Find quantizers that were written as ordinary arithmetic, and say them as codes.

Before::

    a = R.greater_equal(x, 0)
    b = R.where(a, 1, -1)                # or round, floor, sign, clip, scale: any monotone staircase of x

After::

    q = tvmq.quantize(x, thresholds, codes)
    b = tvmq.dequantize(q, coefficients, offset, scale)

A chain of elementwise operations with scalar constants is a function of one float.  If one of them is a step (a
comparison, a rounding) and all are monotone, the chain is a staircase, and so is the sum of two that rise.  Its steps
are found by bisection over *all* float32 numbers in order: the thresholds are exact for every input, rounding of the
chain's own arithmetic included.  Chains without a step, with more than 256 levels, or with levels that are neither
equispaced, nor subset sums of at most four numbers above the lowest, nor some levels of an equispaced grid of at most
256, are left alone.
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
    """A value that is a monotone function of one float of ``source``: the operations from there to here.

    ``root`` is the source in the old function, ``direction`` 1 or -1 as the function rises or falls.
    """

    variable: relax.Var
    value: Call
    source: relax.Expr
    root: relax.Var
    operations: tuple[tuple[relax.Var, Call], ...]
    direction: int

    @property
    def has_step(self) -> bool:
        return any(is_call(call, *STEPS) for _, call in self.operations)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        values = {self.root: x}
        for variable, call in self.operations:
            operands = {argument: values[argument] for argument in call.args if isinstance(argument, relax.Var)}
            with np.errstate(all="ignore"):
                values[variable] = np.asarray(evaluate(call, operands)).reshape(x.shape)
        return values[self.variable]


def _scalar_constant(expr: Any) -> float | None:
    array = constant_value(expr)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _direction(call: Call) -> int:
    """How an operation runs in its operands that are not constants: 1, -1, or 0 if it is not known to be monotone."""
    name = str(call.op.name).removeprefix("relax.")
    tensors = [isinstance(argument, relax.Var) for argument in call.args]
    constants = [_scalar_constant(argument) for argument in call.args]
    # Shapes and dtypes are attributes; clip's bounds are primitive values, not tensors.
    arrays = [constant_value(argument) is not None for argument in call.args]
    if any(array and constant is None for array, constant in zip(arrays, constants, strict=True)):
        return 0  # a constant per channel
    if sum(tensors) == 2:
        return 1 if name in ("add", "maximum", "minimum") else 0
    if sum(tensors) != 1:
        return 0
    if name in ("less", "less_equal"):
        return -1 if tensors[0] else 1
    if name in ("greater", "greater_equal", "subtract"):
        return 1 if tensors[0] else -1
    if name == "negative":
        return -1
    if name == "multiply":
        return _sign(constants[1] if tensors[0] else constants[0])
    if name == "divide":
        return _sign(constants[1]) if tensors[0] else 0
    if name == "where":
        high, low = constants[1:]
        return 0 if high is None or low is None else _sign(high - low)
    return 1


def _sign(number: float | None) -> int:
    return 0 if number is None else int(np.sign(number))


class _Recognizer(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        scalar = self.scalar(variable, value) if is_call(value, *STEPS, *SMOOTH) else None
        return super().bind(variable, value) if scalar is None else scalar

    def scalar(self, variable: relax.Var, call: Call) -> _Scalar | None:
        """``call`` as a monotone function of one float; None if it is not one."""
        direction = _direction(call)
        if direction == 0:
            return None
        operands = [argument for argument in call.args if isinstance(argument, relax.Var)]
        before = [self.values.get(operand, operand) for operand in operands]
        if len(operands) == 1 and not isinstance(before[0], _Scalar):
            return _Scalar(variable, call, before[0], operands[0], ((variable, call),), direction)
        if not all(isinstance(operand, _Scalar) for operand in before):
            return None
        first = before[0]
        if any(not other.root.same_as(first.root) or other.direction != first.direction for other in before[1:]):
            return None  # functions of different floats, or a sum of one that rises and one that falls
        operations = {item: step for operand in before for item, step in operand.operations}
        steps = (*operations.items(), (variable, call))
        return _Scalar(variable, call, first.source, first.root, steps, first.direction * direction)

    def materialize(self, value: Any) -> relax.Expr:
        if not isinstance(value, _Scalar):
            return value
        result = self.quantized(value) if value.has_step else None
        if result is None:
            result = self.emit(self.substitute(value.value), value.variable.name)
        self.values[value.variable] = result
        return result

    def quantized(self, scalar: _Scalar) -> relax.Var | None:
        """``scalar`` as quantize and dequantize; None if its levels have no encoding."""
        if scalar.variable.ty.dtype != "float32" or scalar.source.ty.dtype != "float32":
            return None
        steps = staircase(scalar)
        if steps is None or len(steps[0]) == 0:
            return None
        thresholds, levels = steps
        descending = levels[0] > levels[-1]
        ascending = levels[::-1] if descending else levels
        encoded = (
            Encoding.of_levels(ascending) or Encoding.of_basis_levels(ascending) or Encoding.of_grid_levels(ascending)
        )
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
