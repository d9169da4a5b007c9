"""Uniform quantizers for activations, fitted to calibration data.

A quantizer of b bits has the levels ``step * k``: k = 0 .. 2^b - 1 for inputs that are never negative, such as those
that come from a ReLU, and k = -2^(b-1) .. 2^(b-1) - 1 for others; one bit for inputs of both signs has the levels -step
and step.  Zero is a level except for the last, so that a convolution's zero padding stays exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import relax

from tvmq.errors import InputError
from tvmq.methods.processes import Processes

__all__ = ["ActivationQuantizer", "ActivationRange", "InputQuantizer", "describe_input", "fit_quantizer"]

BINS = 4096
CANDIDATES = 256
SMALLEST_CLIP = 2.0**-7
"""Of the clips tried for the smallest error, relative to the largest value."""


class InputQuantizer(Protocol):
    """Maps a layer's inputs to few levels; hashable, equal ones are interchangeable."""

    @property
    def bits(self) -> int:
        """How many."""
        ...

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Levels of float32 values, as the operators of :meth:`emit` compute them."""
        ...

    def emit(self, x: relax.Expr, emit: Callable[[relax.Expr, str], relax.Expr], name: str) -> relax.Expr:
        """The quantizer as ordinary operators."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a report says about it."""
        ...


def describe_input(quantizer: InputQuantizer | None) -> dict[str, Any]:
    """What a report says about the inputs of a layer, quantized or not."""
    if quantizer is None:
        return {"activations": None, "activation_step": None}
    return {"activations": quantizer.bits, **quantizer.describe()}


@dataclass(frozen=True)
class ActivationQuantizer:
    """Rounds to the nearest of ``2**bits`` levels; halves go to the even multiple of the step.

    Parameters
    ----------
    bits : int
        1 to 8.
    step : float
        Positive, a float32 number.
    signed : bool
        Whether the levels lie on both sides of zero.
    """

    bits: int
    step: float
    signed: bool

    def __post_init__(self) -> None:
        """Reject a step that is not a positive number."""
        if not np.isfinite(self.step) or not np.float32(self.step) > 0:
            raise InputError(f"activation quantizer: the step must be a positive number, got {self.step}")

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest multiple of the step."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    @property
    def is_sign(self) -> bool:
        """Whether the levels are -step and step."""
        return self.signed and self.bits == 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Rounded values, as the operators of :meth:`emit` compute them.

        Parameters
        ----------
        x : float32 array

        Returns
        -------
        float32 array of the same shape
        """
        step = np.float32(self.step)
        if self.is_sign:
            return np.where(x >= 0, step, -step)
        levels = np.rint(x / step)
        np.clip(levels, *map(np.float32, self.limits), out=levels)
        levels *= step
        return levels

    def emit(self, x: relax.Expr, emit: Callable[[relax.Expr, str], relax.Expr], name: str) -> relax.Expr:
        """The quantizer as ordinary operators.

        Parameters
        ----------
        x : relax.Expr
            Float32.
        emit : callable
            Binds an expression to a variable of a name.
        name : str
            What the variables are named after.

        Returns
        -------
        relax.Expr
        """
        op, step = relax.op, relax.const(np.float32(self.step))
        if self.is_sign:
            positive = emit(op.greater_equal(x, relax.const(np.float32(0))), f"{name}_positive")
            return emit(op.where(positive, step, relax.const(np.float32(-self.step))), f"{name}_sign")
        scaled = emit(op.divide(x, step), f"{name}_scaled")
        clipped = emit(op.clip(emit(op.round(scaled), f"{name}_rounded"), *map(float, self.limits)), f"{name}_level")
        return emit(op.multiply(clipped, step), f"{name}_quantized")

    def describe(self) -> dict[str, Any]:
        """The distance of its levels."""
        return {"activation_step": self.step}


class ActivationRange:
    """The distribution of a tensor, in two passes: first its range, then how often each of many bins is hit."""

    def __init__(self) -> None:
        self.smallest, self.largest = np.inf, -np.inf
        self.counts: np.ndarray = np.zeros(BINS)

    def add_range(self, x: np.ndarray) -> None:
        """First pass."""
        self.smallest = min(self.smallest, float(x.min()))
        self.largest = max(self.largest, float(x.max()))

    def add_counts(self, x: np.ndarray) -> None:
        """Second pass, over the same values."""
        self.counts += np.histogram(x, BINS, (self._low, self._low + self._width * BINS))[0]

    def reduce_range(self, processes: Processes) -> None:
        """The range over all processes, between the passes."""
        low, high = processes.maximum(np.array([-self.smallest, self.largest]))
        self.smallest, self.largest = -float(low), float(high)

    def reduce_counts(self, processes: Processes) -> None:
        """The counts of all processes, after the second pass."""
        self.counts = processes.sum(self.counts)

    @property
    def signed(self) -> bool:
        """Whether there are negative values."""
        return self.smallest < 0

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.smallest), abs(self.largest))

    @property
    def centers(self) -> np.ndarray:
        """A value for every bin."""
        return self._low + self._width * (np.arange(BINS) + 0.5)

    @property
    def _low(self) -> float:
        return -self.magnitude if self.signed else 0.0

    @property
    def _width(self) -> float:
        return max((2 if self.signed else 1) * self.magnitude, np.finfo(np.float32).tiny) / BINS


def fit_quantizer(values: ActivationRange, bits: int, clip: str, percentile: float = 99.9) -> ActivationQuantizer:
    """A quantizer for values of a distribution.

    Parameters
    ----------
    values : ActivationRange
    bits : int
        1 to 8.
    clip : {"mse", "percentile", "max"}
        What the largest level is: the one with the smallest mean squared error, a percentile of the absolute values, or
        the largest of them.
    percentile : float
        In percent.

    Returns
    -------
    ActivationQuantizer
        For values that are all zero, of step 1.
    """
    if values.magnitude == 0:
        return ActivationQuantizer(bits, 1.0, False)
    centers, counts = values.centers, values.counts
    if values.signed and bits == 1:
        # The best of all pairs -s, s, whatever the clip: s is the mean of the absolute values.
        return ActivationQuantizer(1, float(np.float32(np.abs(centers) @ counts / counts.sum())), True)
    top = 2 ** (bits - 1) - 1 if values.signed else 2**bits - 1

    def of_clip(largest: float) -> ActivationQuantizer:
        return ActivationQuantizer(bits, float(np.float32(largest / top)), values.signed)

    if clip == "max":
        return of_clip(values.magnitude)
    if clip == "percentile":
        order = np.argsort(np.abs(centers), kind="stable")
        below = np.searchsorted(np.cumsum(counts[order]), percentile / 100 * counts.sum())
        return of_clip(float(np.abs(centers[order])[min(int(below), BINS - 1)]))
    candidates = [of_clip(values.magnitude * share) for share in np.geomspace(SMALLEST_CLIP, 1, CANDIDATES)]
    points = centers.astype(np.float32)
    errors = [float(((quantizer(points) - points).astype(np.float64) ** 2) @ counts) for quantizer in candidates]
    return candidates[int(np.argmin(errors))]
