"""LQ-Nets' quantization error minimization: the basis whose sums lie closest to given values, without torch.

A quantizer of K bits has a basis ``v`` of K numbers and the levels ``v^T e`` of all codes ``e``, which are K signs or
K bits.  The nearest codes B of all values x and the basis that fits them best depend on each other, so they take
turns (Zhang et al., ECCV 2018, algorithm 1):

1. With ``v`` fixed, each value takes the nearest level.  The thresholds lie halfway between neighbours in the order of
   the *levels*: that is the order of the codes as binary numbers only as long as no number of the basis is negative
   and each exceeds the sum of those before it.  A value on a threshold takes the lower level.
2. With ``B`` fixed, ``v = argmin |x - B v|^2 + ridge |v - v_old|^2 = (B^T B + ridge I)^-1 (B^T x + ridge v_old)``.

The first step is the best choice of codes for ``v_old``.  The minimum of the second is not above its value at
``v_old``, where the ridge's share is nothing.  So ``|x - B v|^2`` never rises, and since there are finitely many codes,
it settles; but not always at the smallest error of all bases, so that some different starts are worth their time.  A
step that rounding errors make worse is not taken: what never rises in theory never rises here.

Values on one level have one code, so the sums over values are sums over levels l: with the number of values ``n_l`` and
what they add up to, ``s_l``, which :class:`~tvmq.methods.sorted_rows.SortedRows` knows, ``B^T B = sum_l n_l e_l e_l^T``
and ``B^T x = sum_l s_l e_l``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmq.methods.sorted_rows import SortedRows

__all__ = ["RIDGE", "Fit", "code_table", "fit_bases", "fit_best_bases", "sorted_levels"]

RIDGE = 1e-4
"""Of the original implementation, for weights; for activations it has none, and fails where a code does not occur."""
RATIOS = (1.25, 1.5, 2.0, 3.0)
"""Of neighbours in the bases to start from: with 3 and 4 bits one that is not 2 is often better, by up to a tenth."""
TOPS = (1.0, 2.0, 4.0)
"""Sums of the bases of signs to start from, over the mean magnitude of the values."""
BIT_TOPS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""The same for bits, whose values are zero for the greater part after many a ReLU."""
MOST_ITERATIONS = 100
TRIAL_ITERATIONS = 20
"""So many for each start, before the best of them goes on."""
SMALLEST_FALL = 1e-9
"""Of the squared error, relative to the values' squares: below it, a row is done."""


def code_table(bits: int, signed: bool) -> np.ndarray:
    """All codes: row ``c`` holds the bits of the number ``c``, the lowest first.

    Parameters
    ----------
    bits : int
    signed : bool
        Bits are -1 and 1; else 0 and 1.

    Returns
    -------
    float64 array of shape (2**bits, bits)
    """
    table = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    return (2 * table - 1 if signed else table).astype(np.float64)


def sorted_levels(basis: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The levels of each basis in ascending order, and the code of each.

    Parameters
    ----------
    basis : array of shape (rows, K)
    signed : bool
        As for :func:`code_table`.

    Returns
    -------
    (float64 array of shape (rows, 2**K), float64 array of shape (rows, 2**K, K))
    """
    codes = code_table(basis.shape[1], signed)
    levels = basis @ codes.T
    order = np.argsort(levels, axis=1, kind="stable")
    return np.take_along_axis(levels, order, 1), codes[order]


@dataclass(frozen=True, eq=False)
class Fit:
    """A basis for each row.

    Attributes
    ----------
    basis : float64 array of shape (rows, K)
    errors : float64 array of shape (rows,)
        Squared norms of what is left.
    history : tuple of float64 arrays of shape (rows,)
        The errors of the start and after each iteration.
    """

    basis: np.ndarray
    errors: np.ndarray
    history: tuple[np.ndarray, ...]


def fit_bases(values: SortedRows, start: np.ndarray, signed: bool, iterations: int = MOST_ITERATIONS) -> Fit:
    """Improve the basis of each row until its error stops falling.

    Parameters
    ----------
    values : SortedRows
    start : array of shape (rows, K)
        Any numbers; ordered or not, negative ones too.
    signed : bool
        Whether codes are signs or bits.
    iterations : int
        The most.

    Returns
    -------
    Fit
    """
    basis = start.astype(np.float64)
    codes, counts, sums, errors = _assigned(values, basis, signed)
    history = [errors.copy()]
    falling, part = np.arange(len(basis)), values
    for _ in range(iterations):
        tried = _fitted(counts, sums, codes, basis[falling])
        codes, counts, sums, found = _assigned(part, tried, signed)
        better = found < errors[falling]
        goes_on = errors[falling] - found > SMALLEST_FALL * part.squares
        basis[falling[better]], errors[falling[better]] = tried[better], found[better]
        history.append(errors.copy())
        if not goes_on.any():
            break
        if not goes_on.all():
            falling, part = falling[goes_on], part.rows(goes_on)
            codes, counts, sums = codes[goes_on], counts[goes_on], sums[goes_on]
    return Fit(basis, errors, tuple(history))


def fit_best_bases(values: SortedRows, bits: int, signed: bool) -> Fit:
    """:func:`fit_bases` from the start of each row that is best after a few iterations.

    The starts are geometric sequences, scaled to several multiples of the mean magnitude.

    Parameters
    ----------
    values : SortedRows
    bits : int
        K.
    signed : bool
        Whether codes are signs or bits.

    Returns
    -------
    Fit
    """
    means = values.mean_magnitudes[:, None]
    starts = [means * sequence for sequence in _sequences(bits, TOPS if signed else BIT_TOPS)]
    fits = [fit_bases(values, start, signed, TRIAL_ITERATIONS) for start in starts]
    best = np.argmin([fit.errors for fit in fits], axis=0)
    bases = np.stack([fit.basis for fit in fits])
    return fit_bases(values, bases[best, np.arange(len(best))], signed)


def _sequences(bits: int, tops: tuple[float, ...]) -> list[np.ndarray]:
    """Geometric sequences of K numbers that add up to each of the tops."""
    ratios = RATIOS if bits > 1 else RATIOS[:1]
    powers = [ratio ** np.arange(float(bits)) for ratio in ratios]
    return [top * sequence / sequence.sum() for top in tops for sequence in powers]


def _assigned(
    values: SortedRows, basis: np.ndarray, signed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Step 1: codes of the levels, how many values take each, what these add up to, and the squared error."""
    levels, codes = sorted_levels(basis, signed)
    counts, sums = values.statistics((levels[:, 1:] + levels[:, :-1]) / 2)
    return codes, counts, sums, values.errors_of(levels, counts, sums)


def _fitted(counts: np.ndarray, sums: np.ndarray, codes: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Step 2: the basis that fits the values of each level best."""
    transposed = codes.transpose(0, 2, 1)
    matrix = (transposed * counts[:, None, :]) @ codes + RIDGE * np.eye(codes.shape[2])
    right = (transposed @ sums[:, :, None])[:, :, 0] + RIDGE * basis
    return np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
