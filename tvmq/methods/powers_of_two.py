"""Levels that are zero and powers of two: QNN's LogQuant, with the range that fits given values.

A value lies between two powers of two where it is nearest in the logarithm: the threshold between ``2^(e-1)`` and
``2^e`` is ``2^e / sqrt(2)``.  What is below the lowest threshold is zero.  The largest level, the range, is a power of
two as well, so that all products are shifts.
"""

from __future__ import annotations

import numpy as np

from tvmq.methods.sorted_rows import SortedRows

__all__ = ["best_power_range", "power_levels"]

TRIED_RANGES = 12
"""Powers of two, from the first that is not below the largest value down."""


def power_levels(bits: int, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The thresholds and levels of a range of 1.

    Parameters
    ----------
    bits : int
        At least 2 with signs.
    signed : bool
        Whether there are negative levels too.  Zero takes one of the ``2**bits`` codes; with signs, one more stays
        unused.

    Returns
    -------
    (float64 array of shape (L - 1,), float64 array of shape (L,))
        Ascending.
    """
    count = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    positive = 2.0 ** np.arange(1.0 - count, 1)
    edges = positive * np.sqrt(0.5)
    if not signed:
        return edges, np.concatenate([[0.0], positive])
    return np.concatenate([-edges[::-1], edges]), np.concatenate([-positive[::-1], [0.0], positive])


def best_power_range(values: SortedRows, bits: int, signed: bool) -> np.ndarray:
    """The range of each row with the smallest squared error.

    Parameters
    ----------
    values : SortedRows
    bits : int
    signed : bool
        As for :func:`power_levels`.

    Returns
    -------
    float64 array of shape (rows,)
        Powers of two; 1 for a row of zeros.
    """
    thresholds, levels = power_levels(bits, signed)
    largest = np.where(values.largest > 0, values.largest, 1.0)
    ranges = 2.0 ** (np.ceil(np.log2(largest))[:, None] - np.arange(TRIED_RANGES))
    errors = [values.errors(tried[:, None] * levels, tried[:, None] * thresholds) for tried in ranges.T]
    return ranges[np.arange(len(ranges)), np.argmin(errors, axis=0)]
