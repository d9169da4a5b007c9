r"""Alphabets: the finite sets of values a quantized weight can take, their radii, and the exact nearest letter.

**The nearest letter.**  For letters ``a_0 < .. < a_{M-1}`` the quantizer is ``Q(z) = argmin_a |z - a|``, and a tie goes
to the lower letter.  Between neighbours the choice changes at the midpoint, so the code of z is a count,

    code(z) = #{k : z > t_k},   t_k = (a_k + a_{k+1}) / 2.

The midpoint of two doubles need not be a double.  For every double z, ``z > t`` is the same as ``z > down(t)`` with
``down(t)`` the largest double that is not above t.  TwoSum (Knuth) gives the rounding error of the sum of the halves
exactly, and its sign says whether the rounded sum is ``down(t)`` or its successor.  With such thresholds the count is
the argmin of exact arithmetic, ties included.

**Other rounding rules** are the same count with other thresholds, which is how the two sparse variants of Zhang, Zhou
and Saab (2023) are expressed:

* soft thresholding (their L1 penalty) rounds ``sign(z) max(|z| - s, 0)`` instead of z, and
  ``sign(z) max(|z| - s, 0) > t`` is ``z > t + s`` for t >= 0 and ``z > t - s`` for t < 0;
* hard thresholding (their L0 penalty) has letters 0 and ``±(s + k step)``, and sends all of [-s, s] to 0.

**Degenerate alphabets.**  The radius of an all-zero layer is 0 and then all letters are 0.  The thresholds are placed
at ±infinity, so that every z has the code ``(M - 1) // 2``: the letter that is 0, or just below it, when the radius
is positive.  The layer stays zero and its codes are deterministic.

References
----------
E. Lybrand and R. Saab, "A Greedy Algorithm for Quantizing Neural Networks", JMLR 22(156), 2021: equispaced alphabets,
radius ``C median |W|``.  J. Zhang, Y. Zhou and R. Saab, "Post-training Quantization for Neural Networks with Provable
Guarantees", SIAM J. Math. Data Sci. 5(2), 2023: alphabets of ``2 K + 1`` letters, quantile radius, thresholding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tvmq.errors import InputError

__all__ = [
    "Alphabet",
    "equispaced_alphabet",
    "hard_threshold_alphabet",
    "median_radius",
    "quantile_radius",
    "soft_threshold_alphabet",
]

MOST_LETTERS = 256
"""Codes are bytes."""

COUNTED_LETTERS = 32
"""Up to here it is faster to compare with every threshold than to compute a code: no branches, no gathers."""

SPACING_TOLERANCE = 1e-6
"""Letters are equispaced if they are within this part of a step of a grid; a computed code is then at most 1 off."""


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The letters of a layer, and where one letter takes over from the next.

    Parameters
    ----------
    levels : array of shape (M,) or (n, M)
        2 <= M <= 256 finite real numbers, strictly increasing along the last axis; one row for all neurons, or one row
        per neuron.  A row of zeros is allowed and means that the neuron is zero.
    thresholds : array of shape (M - 1,) or (n, M - 1)
        Not decreasing; letter k + 1 is chosen over letter k where z > thresholds[k].

    Raises
    ------
    InputError
        For an alphabet that is empty, unsorted, too large or not finite, or thresholds that do not fit it.
    """

    levels: np.ndarray
    thresholds: np.ndarray

    def __post_init__(self) -> None:
        levels = _checked_levels(self.levels)
        thresholds = _checked_thresholds(self.thresholds, levels)
        centre = np.where(np.arange(levels.shape[-1] - 1) < (levels.shape[-1] - 1) // 2, -np.inf, np.inf)
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "thresholds", np.where(_is_zero(levels), centre, thresholds))

    @classmethod
    def nearest(cls, levels: np.ndarray) -> Alphabet:
        """The alphabet that rounds to the nearest letter, and to the lower one in a tie."""
        checked = _checked_levels(levels)
        return cls(checked, _midpoints(checked))

    @classmethod
    def of(cls, letters: Alphabet | np.ndarray) -> Alphabet:
        """The argument itself if it is an alphabet, otherwise :meth:`nearest` of these levels."""
        return letters if isinstance(letters, Alphabet) else cls.nearest(letters)

    @property
    def size(self) -> int:
        """The number M of letters."""
        return self.levels.shape[-1]

    @property
    def neurons(self) -> int | None:
        """The number of neurons with letters of their own, or None if all share one row."""
        return self.levels.shape[0] if self.levels.ndim == 2 else None

    def codes(self, z: np.ndarray) -> np.ndarray:
        """Codes of the letters for real numbers, by the thresholds.

        Parameters
        ----------
        z : float64 array of shape (n,)
            One number per neuron; not NaN.

        Returns
        -------
        uint8 array of shape (n,)
            ``#{k : z > thresholds[k]}``; ties belong to the lower letter.
        """
        if self.size <= COUNTED_LETTERS:
            return self._counted(z)
        if self.equispaced:
            return self._computed(z)
        if self.neurons is None:
            return self._searched(z)
        return self._counted(z)

    def letters(self, codes: np.ndarray) -> np.ndarray:
        """Letters of codes.

        Parameters
        ----------
        codes : integer array of shape (n,) or (N, n)
            Codes below M.

        Returns
        -------
        float64 array of the same shape
        """
        if self.neurons is None:
            return self.levels.take(codes)
        return self.levels.ravel().take(codes + self._row_starts)

    def _counted(self, z: np.ndarray) -> np.ndarray:
        return np.add.reduce((z > self._threshold_columns).view(np.uint8), axis=0, dtype=np.uint8)

    def _searched(self, z: np.ndarray) -> np.ndarray:
        return self.thresholds.searchsorted(z).astype(np.uint8)

    def _computed(self, z: np.ndarray) -> np.ndarray:
        """A code from the spacing, moved by one where the exact thresholds say so."""
        first, per_step, offset = self._grid
        estimate = np.ceil((z - first) * per_step + offset)
        codes = np.clip(estimate, 0, self.size - 1).astype(np.intp)
        starts = 0 if self.neurons is None else np.arange(len(z)) * (self.size + 1)
        bounds = self._bounds.take(codes + starts), self._bounds.take(codes + starts + 1)
        codes += z > bounds[1]
        codes -= z <= bounds[0]
        return codes.astype(np.uint8)

    @cached_property
    def _threshold_columns(self) -> np.ndarray:
        """Thresholds as (M - 1, 1) or (M - 1, n): a comparison with a row of numbers broadcasts."""
        return np.ascontiguousarray(np.atleast_2d(self.thresholds).T)

    @cached_property
    def _row_starts(self) -> np.ndarray:
        return np.arange(len(self.levels)) * self.size

    @cached_property
    def equispaced(self) -> bool:
        """Whether the nearest letter can be computed from the spacing."""
        return _is_equispaced(self.levels) and np.array_equal(
            self.thresholds, np.where(_is_zero(self.levels), self.thresholds, _midpoints(self.levels))
        )

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First letter, reciprocal step, and what to add before rounding up.

        A row of zeros has no step; its code does not depend on z.
        """
        step = (self.levels[..., -1] - self.levels[..., 0]) / (self.size - 1)
        zero = step == 0
        return self.levels[..., 0], ~zero / np.where(zero, 1, step), np.where(zero, (self.size - 1) // 2, -0.5)

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Thresholds between -infinity and infinity, all rows one after the other."""
        ends = np.full((*self.levels.shape[:-1], 1), np.inf)
        return np.concatenate([-ends, self.thresholds, ends], axis=-1).ravel()


def _checked_levels(levels: np.ndarray) -> np.ndarray:
    array = np.asarray(levels)
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or 0 in array.shape:
        raise InputError(
            f"an alphabet is an array of real numbers of shape (M,) or (neurons, M); got {array.dtype} of shape "
            f"{array.shape}"
        )
    if not 2 <= array.shape[-1] <= MOST_LETTERS:
        raise InputError(f"an alphabet has 2 to {MOST_LETTERS} letters, not {array.shape[-1]}: codes are bytes")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError("an alphabet must not contain NaN or infinity; check the radius it was made from")
    if not ((np.diff(array, axis=-1) > 0) | _is_zero(array)).all():
        raise InputError(
            "an alphabet must be strictly increasing (or all zero, for a layer that is zero); "
            "sort the letters and remove duplicates with numpy.unique"
        )
    return array


def _is_zero(levels: np.ndarray) -> np.ndarray:
    """Which rows are all zero; broadcasts against levels and thresholds."""
    return np.asarray(~levels.any(axis=-1, keepdims=True))


def _checked_thresholds(thresholds: np.ndarray, levels: np.ndarray) -> np.ndarray:
    array = np.asarray(thresholds, dtype=np.float64)
    expected = (*levels.shape[:-1], levels.shape[-1] - 1)
    if array.shape != expected:
        raise InputError(f"thresholds of shape {array.shape} do not fit; expected {expected}, one between neighbours")
    if np.isnan(array).any() or (np.diff(array, axis=-1) < 0).any():
        raise InputError("thresholds must be sorted and must not contain NaN")
    return array


def _is_equispaced(levels: np.ndarray) -> bool:
    step = (levels[..., -1:] - levels[..., :1]) / (levels.shape[-1] - 1)
    grid = levels[..., :1] + step * np.arange(levels.shape[-1])
    return bool((np.abs(levels - grid) <= SPACING_TOLERANCE * step).all())


def _midpoints(levels: np.ndarray) -> np.ndarray:
    """The largest doubles that are not above the exact midpoints (see the head of this file)."""
    low, high = levels[..., :-1] / 2, levels[..., 1:] / 2
    middle = low + high
    high_part = middle - low
    error = (low - (middle - high_part)) + (high - high_part)
    return np.where(error < 0, np.nextafter(middle, -np.inf), middle)


def equispaced_alphabet(levels: int, radius: float | np.ndarray) -> np.ndarray:
    """Letters ``radius * linspace(-1, 1, M)``, exactly symmetric around 0 (Lybrand and Saab, 2021).

    Parameters
    ----------
    levels : int
        M: 3 for ternary weights, ``2**b`` for b bits.  An even M has no letter 0.
    radius : float or array of shape (n,)
        The largest letter, not negative; 0 makes all letters 0.  One per neuron gives an alphabet per neuron.

    Returns
    -------
    float64 array of shape (M,) or (n, M)

    Raises
    ------
    InputError
        For M outside 2 .. 256, or a radius that is negative or not finite.

    Examples
    --------
    >>> equispaced_alphabet(3, 0.5)
    array([-0.5,  0. ,  0.5])
    """
    if not 2 <= levels <= MOST_LETTERS:
        raise InputError(f"levels={levels!r} is not supported; use 2 to {MOST_LETTERS}")
    radii = _checked_sizes("radius", radius)
    # Not linspace, whose letters are not exactly symmetric.
    return radii[..., None] * (np.arange(1 - levels, levels, 2) / (levels - 1))


def soft_threshold_alphabet(levels: np.ndarray, shrinkage: float) -> Alphabet:
    """Round ``sign(z) max(|z| - shrinkage, 0)`` to the nearest letter: GPFQ with an L1 penalty (Zhang et al., 2023).

    Parameters
    ----------
    levels : array of shape (M,) or (n, M)
        The letters, as for :class:`Alphabet`.
    shrinkage : float
        How far z is moved towards 0 first, in units of the weights; not negative.

    Returns
    -------
    Alphabet
        The same letters with thresholds moved away from 0.
    """
    shift = float(_checked_sizes("shrinkage", shrinkage))
    nearest = Alphabet.nearest(levels)
    return Alphabet(nearest.levels, nearest.thresholds + np.where(nearest.thresholds >= 0, shift, -shift))


def hard_threshold_alphabet(levels: int, step: float, cutoff: float) -> Alphabet:
    """Letters 0 and ``±(cutoff + k step)``; all of [-cutoff, cutoff] becomes 0 (Zhang et al., 2023, L0 penalty).

    Parameters
    ----------
    levels : int
        How many positive letters there are, at least 1; the alphabet has ``2 * levels + 1``.
    step : float
        Positive distance of neighbouring letters beyond the cutoff.
    cutoff : float
        Positive: the smallest positive letter, and the largest number that becomes 0.

    Returns
    -------
    Alphabet
        A tie belongs to the lower letter, hence exactly ``-cutoff`` to the letter ``-cutoff``.
    """
    size, start = float(_checked_sizes("step", step)), float(_checked_sizes("cutoff", cutoff))
    if not (1 <= levels <= (MOST_LETTERS - 1) // 2 and size > 0 and start > 0):
        raise InputError(
            f"levels={levels!r}, step={step!r}, cutoff={cutoff!r} is not supported; "
            f"use 1 to {(MOST_LETTERS - 1) // 2} levels and a positive step and cutoff"
        )
    positive = start + size * np.arange(levels)
    upper = np.concatenate([[start], _midpoints(positive)])
    letters = np.concatenate([-positive[::-1], [0.0], positive])
    return Alphabet(letters, np.concatenate([-upper[::-1], upper]))


def median_radius(weight: np.ndarray, constant: float, per_channel: bool = False) -> np.ndarray:
    """The radius ``C median |W|`` of Lybrand and Saab (2021).

    Parameters
    ----------
    weight : real array of shape (N, n)
        A neuron per column; without the bias.
    constant : float
        C, positive; 1 to 10 in the paper.
    per_channel : bool
        The median over the weights of each neuron, instead of over the whole layer as in the paper.

    Returns
    -------
    float64 array of shape () or (n,)
        0 only where all weights are 0; :func:`equispaced_alphabet` then makes all letters 0.

    Notes
    -----
    If more than half of the weights are 0, so is their median, and the paper's rule would erase the layer.  The median
    is then taken over the weights that are not 0.
    """
    array = _checked_weight(weight)
    factor = float(_checked_sizes("constant", constant))
    if per_channel:
        return factor * np.array([_median_magnitude(column) for column in array.T])
    return np.asarray(factor * _median_magnitude(array))


def quantile_radius(weight: np.ndarray, constant: float, quantile: float = 1.0) -> np.ndarray:
    """The radius of Zhang et al. (2023): C times the mean over the neurons of a quantile of ``|w|``.

    Parameters
    ----------
    weight : real array of shape (N, n)
        A neuron per column; without the bias.
    constant : float
        C, positive; 1.16 in the authors' code.
    quantile : float
        In [0, 1]; 1 is the largest magnitude of each neuron.

    Returns
    -------
    float64 array of shape ()
    """
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile={quantile!r} is not supported; use a number in [0, 1]")
    factor = float(_checked_sizes("constant", constant))
    return np.asarray(factor * np.quantile(np.abs(_checked_weight(weight)), quantile, axis=0).mean())


def _median_magnitude(weight: np.ndarray) -> float:
    # As they lie in memory: to put a transposed matrix in order takes longer than to find its median.
    magnitudes = np.abs(weight).ravel(order="K")
    middle = float(np.median(magnitudes, overwrite_input=True))
    if middle > 0 or not magnitudes.any():
        return middle
    return float(np.median(magnitudes[magnitudes > 0]))


def _checked_sizes(name: str, value: float | np.ndarray) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1 or not np.isfinite(array).all() or (array < 0).any():
        raise InputError(f"{name}={value!r} is not supported; use a finite number that is not negative")
    return array


def _checked_weight(weight: np.ndarray) -> np.ndarray:
    array = np.asarray(weight)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape:
        raise InputError(f"weight must be real of shape (inputs, neurons); got {array.dtype} of shape {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError("weight contains NaN or infinity; check the layer it comes from")
    return array
