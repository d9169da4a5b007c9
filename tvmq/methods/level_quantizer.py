"""Quantizers for activations with any levels: those of a learned basis, and zero and powers of two.

A value's level is the highest one whose threshold lies below it.  In operators that is a maximum over all levels of
"this level if the value lies above its threshold, else the lowest one": comparisons and maxima of the levels
themselves, so that no sum rounds them, and the compiler finds every level and threshold in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvmq.errors import InputError
from tvmq.methods.activations import ActivationQuantizer, ActivationRange, InputQuantizer
from tvmq.methods.powers_of_two import best_power_range, power_levels
from tvmq.methods.qem import fit_best_bases, sorted_levels
from tvmq.methods.sorted_rows import SortedRows

__all__ = ["LevelQuantizer", "fit_learned_quantizer", "fit_power_quantizer"]

CLOSEST = 1e-6
"""Distance of two levels, relative to the largest, that still counts."""
SMALLEST = 2.0**-124
"""Power of two whose threshold, too, float32 holds in full."""


@dataclass(frozen=True)
class LevelQuantizer:
    """Each value takes the level ``levels[number of thresholds below it]``.

    Parameters
    ----------
    bits : int
        Of a code.
    thresholds : sequence of float
        Float32 numbers, ascending.
    levels : sequence of float
        Float32 numbers, ascending; one more than thresholds, at least 2.
    """

    bits: int
    thresholds: tuple[float, ...]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        """Reject what is no staircase."""
        for name in ("thresholds", "levels"):
            object.__setattr__(self, name, tuple(float(np.float32(number)) for number in getattr(self, name)))
            numbers = getattr(self, name)
            if not all(map(math.isfinite, numbers)) or any(np.diff(numbers) <= 0):
                raise InputError(f"activation quantizer: the {name} must ascend, got {numbers}")
        if len(self.levels) < 2 or len(self.levels) != len(self.thresholds) + 1:
            raise InputError(
                f"activation quantizer: {len(self.levels)} levels do not go with {len(self.thresholds)} thresholds"
            )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Levels of values, as the operators of :meth:`emit` compute them.

        Parameters
        ----------
        x : float32 array

        Returns
        -------
        float32 array of the same shape
        """
        levels, thresholds = (np.array(numbers, np.float32) for numbers in (self.levels, self.thresholds))
        return levels[np.searchsorted(thresholds, x)]

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
        op, lowest = relax.op, relax.const(np.float32(self.levels[0]))
        result: relax.Expr | None = None
        for threshold, level in zip(self.thresholds, self.levels[1:], strict=True):
            above = emit(op.greater(x, relax.const(np.float32(threshold))), f"{name}_above")
            step = emit(op.where(above, relax.const(np.float32(level)), lowest), f"{name}_level")
            result = step if result is None else emit(op.maximum(result, step), f"{name}_quantized")
        return result

    def describe(self) -> dict[str, Any]:
        """Its levels."""
        return {"activation_step": None, "activation_levels": list(self.levels)}


def fit_learned_quantizer(values: ActivationRange, bits: int) -> InputQuantizer:
    """A quantizer whose levels are the sums of a basis, fitted to a distribution.

    Parameters
    ----------
    values : ActivationRange
    bits : int
        Numbers of the basis.  Codes are bits, and zero is a level, for values that are never negative, such as those
        that come from a ReLU; else codes are signs.

    Returns
    -------
    InputQuantizer
        For values that are all zero, one with the levels 0, 1, ..
    """
    if values.magnitude == 0:
        return ActivationQuantizer(bits, 1.0, False)
    fit = fit_best_bases(_rows(values), bits, values.signed)
    levels = sorted_levels(fit.basis, values.signed)[0][0]
    # Different codes may have one sum, or sums that float32 hardly tells apart.
    distinct = levels[np.diff(levels, prepend=-np.inf) > CLOSEST * np.abs(levels).max()]
    return LevelQuantizer(bits, tuple((distinct[1:] + distinct[:-1]) / 2), tuple(distinct))


def fit_power_quantizer(values: ActivationRange, bits: int) -> InputQuantizer:
    """A quantizer with the levels zero and powers of two, for values of both signs minus them too.

    Parameters
    ----------
    values : ActivationRange
    bits : int
        1 to 8; at least 2 for values of both signs.

    Returns
    -------
    InputQuantizer
        The largest level has the smallest mean squared error of all powers of two.
    """
    if values.magnitude == 0:
        return ActivationQuantizer(bits, 1.0, False)
    thresholds, levels = power_levels(bits, values.signed)
    largest = float(best_power_range(_rows(values), bits, values.signed)[0])
    # With many bits, the smallest powers are no float32 numbers any more: what would take them is zero.
    edges = np.abs(largest * thresholds) >= SMALLEST * np.sqrt(0.5)
    powers = np.abs(largest * levels) >= SMALLEST
    return LevelQuantizer(bits, tuple(largest * thresholds[edges]), tuple(largest * levels[powers | (levels == 0)]))


def _rows(values: ActivationRange) -> SortedRows:
    """The histogram as one row of values that count as often as they occur."""
    return SortedRows(values.centers[None], values.counts[None])
