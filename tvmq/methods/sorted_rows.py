"""Values in ascending order, whose sums between any thresholds cost next to nothing.

What a quantizer with levels ``q_l`` leaves of values x, ``|x - q(x)|^2 = |x|^2 - 2 sum_l s_l q_l + sum_l n_l q_l^2``,
depends only on how many values n_l take each level, and on what these add up to, s_l.  The values of a level lie next
to each other in ascending order.  So they are sorted and cumulated once, and any thresholds then need a binary search
each.  Values may have weights, such as the counts of a histogram.
"""

from __future__ import annotations

import numpy as np

__all__ = ["SortedRows"]


class SortedRows:
    """Values in ascending order with the sums that any thresholds cut them into.

    Parameters
    ----------
    x : array of shape (rows, n)
    weights : array of shape (rows, n), optional
        How often each value counts; once by default.

    Attributes
    ----------
    squares : float64 array of shape (rows,)
        Of the values, summed.
    """

    def __init__(self, x: np.ndarray, weights: np.ndarray | None = None) -> None:
        x = x.astype(np.float64)
        order = np.argsort(x, axis=1, kind="stable")
        self._values = np.take_along_axis(x, order, 1)
        counts = np.ones_like(x) if weights is None else np.take_along_axis(weights.astype(np.float64), order, 1)
        self._counts, self._sums = (_cumulated(part) for part in (counts, counts * self._values))
        self.squares: np.ndarray = (counts * self._values**2).sum(1)

    def rows(self, chosen: np.ndarray) -> SortedRows:
        """Some of the rows, by a mask or their numbers."""
        part = object.__new__(SortedRows)
        part._values, part._counts, part._sums = self._values[chosen], self._counts[chosen], self._sums[chosen]
        part.squares = self.squares[chosen]
        return part

    @property
    def largest(self) -> np.ndarray:
        """The largest absolute value of each row, (rows,)."""
        return np.maximum(np.abs(self._values[:, 0]), np.abs(self._values[:, -1]))

    @property
    def mean_magnitudes(self) -> np.ndarray:
        """The mean of the absolute values of each row, (rows,)."""
        counts, sums = self.statistics(np.zeros((len(self._values), 1)))
        return (sums[:, 1] - sums[:, 0]) / counts.sum(1)

    def statistics(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many values lie between thresholds, and their sum.

        Parameters
        ----------
        thresholds : array of shape (rows, L - 1)
            Ascending; a value on one lies below it.

        Returns
        -------
        (float64 array of shape (rows, L), the same)
        """
        edges = self._positions(thresholds)
        last = np.full((len(edges), 1), self._values.shape[1])
        edges = np.concatenate([np.zeros_like(last), edges, last], 1)
        counts, sums = (np.diff(np.take_along_axis(part, edges, 1), axis=1) for part in (self._counts, self._sums))
        return counts, sums

    def errors(self, levels: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
        """Squared norms of what quantization leaves.

        Parameters
        ----------
        levels : array of shape (rows, L)
            Ascending.
        thresholds : array of shape (rows, L - 1), optional
            Halfway between the levels by default.

        Returns
        -------
        float64 array of shape (rows,)
        """
        if thresholds is None:
            thresholds = (levels[:, 1:] + levels[:, :-1]) / 2
        return self.errors_of(levels, *self.statistics(thresholds))

    def errors_of(self, levels: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """:meth:`errors` of levels whose :meth:`statistics` are known."""
        return np.maximum(self.squares + (levels * (levels * counts - 2 * sums)).sum(1), 0.0)

    def _positions(self, thresholds: np.ndarray) -> np.ndarray:
        """How many values of each row are not above each threshold: a binary search in all rows at once."""
        count = self._values.shape[1]
        low, high = np.zeros(thresholds.shape, np.int64), np.full(thresholds.shape, count, np.int64)
        for _ in range(count.bit_length()):
            middle = np.minimum((low + high) // 2, count - 1)
            below = (np.take_along_axis(self._values, middle, 1) <= thresholds) & (low < high)
            low, high = np.where(below, middle + 1, low), np.where(below | (low >= high), high, middle)
        return low


def _cumulated(array: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, .., n numbers of each row."""
    return np.concatenate([np.zeros((len(array), 1)), np.cumsum(array, axis=1)], axis=1)
