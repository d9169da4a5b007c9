"""Many thresholds as one line: the index of a level is the rounded-down value of an increasing linear function.

A kernel counts the thresholds t_1 <= .. <= t_T of its channel that an integer v reaches.  Quantizers with equal steps
have thresholds that lie on a line, up to their rounding to integers, and then one fused multiply-add does what T
comparisons do:

    count(v) = clip(floor(a v + b), 0, T)      for all v, if and only if, for every k,
    a t_k + b >= k     and     a (t_k - 1) + b < k,

since both sides increase with v and change at no other place.  For one slope a the intercepts are those between
``max_k (k - a t_k)`` and ``min_k (k - a t_k) + a``; the difference of these two bounds is a convex function of a, whose
minimum a search finds.  Thresholds that no v reaches, or every v, count at the ends of the range of v.

That is for real numbers.  The kernel rounds ``a v + b`` to float32 or float64, so the two conditions are then checked
in that arithmetic, at every threshold of every channel: it is monotone as well, and where the check succeeds the line
gives exactly the codes that the thresholds define.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmq.dialect import line_index
from tvmq.transform.fold_epilogues import ALWAYS, NEVER

__all__ = ["FEWEST", "LevelLines", "level_lines"]

FEWEST = {"float32": 4, "float64": 12}
"""Thresholds from which on a line takes fewer instructions than comparisons."""
_STEPS = 100
_GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class LevelLines:
    """One line per output channel and border class.

    Attributes
    ----------
    slope : float array of shape (O,)
    intercept : float array of shape (RC, CC, O)
        Both float32, or both float64.
    """

    slope: np.ndarray
    intercept: np.ndarray

    @property
    def arithmetic(self) -> str:
        """The data type of the computation."""
        return str(self.slope.dtype)


def level_lines(thresholds: np.ndarray, low: int, high: int) -> LevelLines | None:
    """Lines that count thresholds exactly.

    Parameters
    ----------
    thresholds : int array of shape (T, RC, CC, O)
        Ascending along T; `ALWAYS` and `NEVER` are below and above every value.
    low, high : int
        The least and the largest value that is compared with the thresholds.

    Returns
    -------
    LevelLines or None
        In float32 if that is exact, else in float64; None if neither is, or if there are few thresholds.
    """
    limits = thresholds.astype(np.int64)
    if len(limits) < min(FEWEST.values()):
        return None
    # Values below a limit, and from it on, that occur.
    first = np.where(thresholds == NEVER, high + 1, np.where(thresholds == ALWAYS, low, limits)).clip(low, high + 1)
    slope = _slopes(first, low, high)
    least, most = _intercepts(first, low, high, slope)
    if np.any(least >= most):
        return None
    intercept = np.where(np.isinf(least), most - 0.5, np.where(np.isinf(most), least + 0.5, (least + most) / 2))
    for dtype in (np.float32, np.float64):
        lines = LevelLines(_shortened(slope, dtype, max(-low, high)), intercept.astype(dtype))
        if len(limits) >= FEWEST[lines.arithmetic] and _is_exact(lines, first, low, high):
            return lines
    return None


def _intercepts(first: np.ndarray, low: int, high: int, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least intercept, and one that is too large; infinite where nothing limits it."""
    level = np.arange(1, len(first) + 1, dtype=np.float64).reshape(-1, 1, 1, 1)
    reached = np.where(first > high, -np.inf, level - slope * first)
    missed = np.where(first <= low, np.inf, level - slope * (first - 1))
    return reached.max(axis=0), missed.min(axis=0)


def _slopes(first: np.ndarray, low: int, high: int) -> np.ndarray:
    """The slope of each channel that leaves its intercepts the most room, by golden section search."""
    least_slope, most_slope = np.zeros(first.shape[3]), np.full(first.shape[3], float(len(first) + 1))

    def gap(slope: np.ndarray) -> np.ndarray:
        least, most = _intercepts(first, low, high, slope)
        # Relative to the slope: what is searched for may be very flat.
        return np.max(np.where(np.isinf(least) | np.isinf(most), -np.inf, least - most), axis=(0, 1))

    width = _GOLDEN * (most_slope - least_slope)
    one, two = most_slope - width, least_slope + width
    gap_one, gap_two = gap(one), gap(two)
    for _ in range(_STEPS):
        left = gap_one <= gap_two
        least_slope, most_slope = np.where(left, least_slope, one), np.where(left, two, most_slope)
        width = _GOLDEN * (most_slope - least_slope)
        new = np.where(left, most_slope - width, least_slope + width)
        gap_new = gap(new)
        one, two = np.where(left, new, two), np.where(left, one, new)
        gap_one, gap_two = np.where(left, gap_new, gap_two), np.where(left, gap_one, gap_new)
    return (least_slope + most_slope) / 2


def _shortened(slope: np.ndarray, dtype: type, bound: int) -> np.ndarray:
    """The slope with so few bits that, in float64, its product with any value is exact and fused or not is the same."""
    if dtype is np.float32:
        return slope.astype(np.float32)
    mantissa, exponent = np.frexp(slope)
    scale = 2.0 ** (53 - bound.bit_length())
    return np.ldexp(np.round(mantissa * scale) / scale, exponent)


def _is_exact(lines: LevelLines, first: np.ndarray, low: int, high: int) -> bool:
    """Whether the lines have the right index at the first and the last value of every level."""
    count = len(first)
    values = np.concatenate([first, first - 1, np.full_like(first[:1], low), np.full_like(first[:1], high)])
    values = values.clip(low, high)
    ordered = np.sort(first, axis=0)
    index = np.zeros(values.shape, np.int64)
    for limit in ordered:
        index += values >= limit
    return bool(np.array_equal(line_index(values, lines.slope, lines.intercept, count), index))
