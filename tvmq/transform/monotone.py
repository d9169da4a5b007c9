"""Monotone functions of one number per channel: what may stand between a sum and a quantizer.

Elementwise operations with constants (bias, scale, batch norm, ReLU, clip ...) are functions of one number, one per
channel, each increasing or decreasing, and so is their composition, also as computed in float64 step by step, because
rounding is monotone.  A :class:`Chain` is such a composition, together with the max-pools and reshapes on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvmq.dialect import constant_value, is_call
from tvmq.errors import ModelError

__all__ = ["Chain", "Function", "monotone_function"]

POOLS = ("relax.nn.max_pool2d",)
RESHAPES = ("relax.reshape", "relax.flatten")


@dataclass(frozen=True, eq=False)
class Function:
    """A monotone function of float64 arrays whose last axis is the channel.

    Attributes
    ----------
    apply : callable
    direction : array of shape () or (C,)
        1 where it increases, -1 where it decreases, 0 where it is constant.
    affine : (array, array), optional
        Scale and offset in float64, if it is affine.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    direction: np.ndarray
    affine: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of_affine(
        cls, scale: np.ndarray, offset: np.ndarray, apply: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Function:
        """``scale * x + offset``, or ``apply`` where the network computes that in another order."""
        scale, offset = np.asarray(scale, np.float64), np.asarray(offset, np.float64)
        return cls(apply or (lambda x: x * scale + offset), np.sign(scale), (scale, offset))


@dataclass(frozen=True, eq=False)
class Chain:
    """Functions, max-pools and reshapes in the order of the network.

    Attributes
    ----------
    layer : str
        The layer before it, for messages.
    channels : int
    steps : tuple of Function or Call
        A call is a max-pool or reshape: codes can go through it as well as the numbers they stand for.
    """

    layer: str
    channels: int
    steps: tuple[Function | Call, ...] = ()

    def then(self, *steps: Function | Call) -> Chain:
        """The chain with more steps after it."""
        return dataclasses.replace(self, steps=(*self.steps, *steps))

    @property
    def reshaped(self) -> bool:
        """Whether a reshape has mixed the channels with other axes."""
        return any(is_call(step, *RESHAPES) for step in self.steps)

    @property
    def pooled(self) -> bool:
        """Whether there is a max-pool."""
        return any(is_call(step, *POOLS) for step in self.steps)

    @property
    def functions(self) -> list[Function]:
        """The steps that compute."""
        return [step for step in self.steps if isinstance(step, Function)]

    def direction(self, start: int = 0) -> np.ndarray:
        """Direction per channel, int64 of shape (C,), of all functions from step ``start`` on."""
        result = np.ones(self.channels, np.int64)
        for step in self.steps[start:]:
            if isinstance(step, Function):
                result = result * step.direction.astype(np.int64)
        return result

    def evaluate(self, numbers: np.ndarray) -> np.ndarray:
        """The functions applied one after the other in float64; shape (..., C) to (..., C)."""
        result = numbers.astype(np.float64)
        for function in self.functions:
            with np.errstate(all="ignore"):
                result = function.apply(result)
        return result

    def affine(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(scale, offset), float32 of shape (C,), if every step is an affine function; else None."""
        scale, offset = np.ones(self.channels), np.zeros(self.channels)
        for step in self.steps:
            if not isinstance(step, Function) or step.affine is None:
                return None
            scale, offset = scale * step.affine[0], offset * step.affine[0] + step.affine[1]
        return scale.astype(np.float32), offset.astype(np.float32)


def monotone_function(call: Call, chain: Chain) -> Function | None:
    """The function that an elementwise call applies to its one operand that is not a constant.

    Parameters
    ----------
    call : Call
    chain : Chain
        What comes before it.

    Returns
    -------
    Function or None
        None if the call is not monotone, not elementwise, or its constants do not go along the channels.

    Raises
    ------
    ModelError
        If a parameter is NaN or infinite, or a variance is not positive.
    """
    name = str(call.op.name)
    if name == "relax.nn.batch_norm":
        return _batch_norm(call, chain)
    if name in _UNARY:
        return _UNARY[name]
    if name == "relax.clip":
        low, high = (float(getattr(bound, "value", bound)) for bound in call.args[1:3])
        return Function(lambda x: np.clip(x, low, high), _INCREASING)
    if name not in _BINARY:
        return None
    first = constant_value(call.args[0]) is None
    array = constant_value(call.args[1] if first else call.args[0])
    constant = None if array is None else _per_channel(array, call, chain)
    if constant is None:
        return None
    if not np.isfinite(constant).all():
        raise ModelError(f"layer '{chain.layer}': a parameter after it is NaN or infinite; check the trained weights")
    return _binary(name, constant, first)


_INCREASING = np.ones(())
_UNARY = {
    "relax.nn.relu": Function(lambda x: np.maximum(x, 0.0), _INCREASING),
    "relax.tanh": Function(np.tanh, _INCREASING),
    "relax.sigmoid": Function(lambda x: 1.0 / (1.0 + np.exp(-x)), _INCREASING),
    "relax.negative": Function.of_affine(-_INCREASING, np.zeros(())),
}
_BINARY = tuple(f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"))


def _per_channel(array: np.ndarray, call: Call, chain: Chain) -> np.ndarray | None:
    """A constant operand as shape () or (C,); None if it is neither, or channels were mixed by a reshape."""
    if array.size == 1:
        return array.reshape(()).astype(np.float64)
    ndim = len(call.ty.shape)
    if array.ndim > ndim or chain.reshaped:
        return None
    aligned = array.reshape(*([1] * (ndim - array.ndim)), *array.shape)
    if aligned.shape[1] != chain.channels or aligned.size != chain.channels:
        return None
    return aligned.reshape(-1).astype(np.float64)


def _binary(name: str, c: np.ndarray, first: bool) -> Function | None:
    zero = np.zeros(())
    if name == "relax.add":
        return Function.of_affine(_INCREASING, c, lambda x: x + c)
    if name == "relax.multiply":
        return Function.of_affine(c, zero, lambda x: x * c)
    if name == "relax.subtract" and first:
        return Function.of_affine(_INCREASING, -c, lambda x: x - c)
    if name == "relax.subtract":
        return Function.of_affine(-_INCREASING, c, lambda x: c - x)
    if name == "relax.maximum":
        return Function(lambda x: np.maximum(x, c), _INCREASING)
    if name == "relax.minimum":
        return Function(lambda x: np.minimum(x, c), _INCREASING)
    return Function.of_affine(1 / c, zero, lambda x: x / c) if first and np.all(c != 0) else None


def _batch_norm(call: Call, chain: Chain) -> Function | None:
    """Inference over axis 1: ``(x - mean) / deviation * gamma + beta``."""
    parameters = [array for argument in call.args[1:5] if (array := constant_value(argument)) is not None]
    if int(call.attrs["axis"]) != 1 or len(parameters) != 4 or chain.reshaped:
        return None
    gamma, beta, mean, variance = (parameter.astype(np.float64) for parameter in parameters)
    gamma = gamma if bool(call.attrs["scale"]) else np.ones_like(mean)
    beta = beta if bool(call.attrs["center"]) else np.zeros_like(mean)
    with np.errstate(invalid="ignore"):
        deviation = np.sqrt(variance + float(call.attrs["epsilon"]))
    if not all(np.isfinite(array).all() for array in (gamma, beta, mean, deviation)) or not np.all(deviation > 0):
        raise ModelError(
            f"layer '{chain.layer}': the batch norm after it has a NaN or infinite parameter or a variance that is "
            "not positive; check the trained weights"
        )
    scale = gamma / deviation
    return Function.of_affine(scale, beta - mean * scale, lambda x: (x - mean) / deviation * gamma + beta)


def operand_of(call: Call) -> relax.Expr | None:
    """The one operand of a call that is not a constant; None if there are more, or none."""
    operands = [argument for argument in call.args if isinstance(argument, relax.Var)]
    return operands[0] if len(operands) == 1 else None
