"""Thresholds of a quantizer with equal steps, as one rounded product.

A quantizer counts the thresholds t_1 <= .. <= t_T that a float32 x reaches.  Where the thresholds come from rounding a
multiple of x to an integer, as in ``clip(round(x / step), 0, T)``, that rounding does what T comparisons do:

    count(x) = clip(rint(a x) + shift, 0, T)     for all x, if and only if, for every k,
    rint(a t_k) + shift >= k     and     rint(a x) + shift < k for the largest float32 x below t_k,

since both sides increase with x (a rounded product with a > 0 does, and so does rint) and change at no other place.
The factor is not known here, only the thresholds; it is close to ``(T - 1) / (t_T - t_1)``, and so few float32 numbers
are close to that, and to its reciprocal, that all are tried.  NaN reaches no threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["UniformQuantizer", "uniform_quantizer"]

FEWEST = 4
"""Thresholds from which on rounding takes fewer instructions than comparisons."""
_NEIGHBOURS = 64
"""Float32 numbers on either side of the estimate that are tried."""


@dataclass(frozen=True)
class UniformQuantizer:
    """How to count thresholds by rounding.

    Attributes
    ----------
    factor : float
        A float32 number that x is multiplied with, or divided by.
    divides : bool
    shift : int
        Added to the rounded number.
    """

    factor: float
    divides: bool
    shift: int

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """The unclipped count of thresholds.

        Parameters
        ----------
        x : float32 array

        Returns
        -------
        float32 array
        """
        factor = np.float32(self.factor)
        with np.errstate(over="ignore"):
            scaled = x / factor if self.divides else x * factor
        result: np.ndarray = np.rint(scaled) + np.float32(self.shift)
        return result


def uniform_quantizer(thresholds: np.ndarray) -> UniformQuantizer | None:
    """The rounding that counts thresholds exactly.

    Parameters
    ----------
    thresholds : float32 array of shape (T,)
        Ascending.

    Returns
    -------
    UniformQuantizer or None
        None if no rounding does, or if there are few thresholds.
    """
    limits = np.asarray(thresholds, np.float32)
    if len(limits) < FEWEST or not np.isfinite(limits).all() or limits[0] == limits[-1]:
        return None
    below = np.nextafter(limits, np.float32(-np.inf))
    levels = np.arange(1, len(limits) + 1, dtype=np.float32)
    step = (float(limits[-1]) - float(limits[0])) / (len(limits) - 1)
    for divides, estimate in ((False, 1 / step), (True, step)):
        for factor in _nearest(estimate):
            unshifted = UniformQuantizer(float(factor), divides, 0)
            shift = int(1 - unshifted.rounded(limits[:1])[0])
            candidate = UniformQuantizer(float(factor), divides, shift)
            if np.all(candidate.rounded(limits) >= levels) and np.all(candidate.rounded(below) < levels):
                return candidate
    return None


def _nearest(estimate: float) -> np.ndarray:
    """Float32 numbers around a positive one, the nearest first."""
    single = np.finfo(np.float32)
    if not float(single.tiny) < estimate < float(single.max) / 2:
        return np.zeros(0, np.float32)
    bits = int(np.float32(estimate).view(np.int32))
    offsets = sorted(range(-_NEIGHBOURS, _NEIGHBOURS + 1), key=abs)
    return np.array([bits + offset for offset in offsets], np.int32).view(np.float32)
