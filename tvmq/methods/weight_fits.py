"""The quantized weights of QNN and LQ-Nets that lie closest to trained ones, one scale or basis per output channel.

Training finds weights for levels that are given; here the weights are given, and each output channel gets the levels
with the smallest squared error:

* One bit, levels ``-s`` and ``s``: ``|w - s sign(w)|^2`` is smallest for ``s = mean |w|``.
* k bits, levels ``step * c`` with c = -2^(k-1) .. 2^(k-1) - 1.  With the codes c fixed, ``step = <w, c> / <c, c>`` is
  best; with the step fixed, rounding is.  Neither raises the error, so they take turns, from the best of many steps.
* Powers of two, ternary among them: see :mod:`tvmq.methods.powers_of_two`.
* A learned basis: see :mod:`tvmq.methods.qem`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tvmq.methods.lqnets import LQNets
from tvmq.methods.powers_of_two import best_power_range, power_levels
from tvmq.methods.qem import fit_best_bases, sorted_levels
from tvmq.methods.qnn import QNN
from tvmq.methods.sorted_rows import SortedRows

__all__ = ["FittedWeight", "fit_weight"]

TERNARY_BITS = 2
BLOCK = 2**21
"""Weights that are fitted at a time: some 100 MiB of sums."""
TRIED_CLIPS = np.geomspace(2.0**-5, 2.0, 49)
"""Range of the levels over the largest weight.  It is 2 where weights are -1, 0 and 1 and levels -2, -1, 0 and 1."""
FINER_CLIPS = np.linspace(0.92, 1.08, 33)
"""Around the best of those."""
MOST_ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class FittedWeight:
    """A weight on its levels.

    Attributes
    ----------
    weight : float32, of the shape of the weight
    levels : float32 of shape (O, L)
        Of each output channel, ascending.
    basis : float64 of shape (O, K), optional
        Whose sums the levels are, for LQ-Nets.
    """

    weight: np.ndarray
    levels: np.ndarray
    basis: np.ndarray | None = None


def fit_weight(weight: np.ndarray, config: QNN | LQNets) -> FittedWeight:
    """Quantize a weight by itself.

    Parameters
    ----------
    weight : float32 array of shape (O, ...)
    config : QNN or LQNets

    Returns
    -------
    FittedWeight
        Weights of a channel that are all zero stay zero.
    """
    rows = weight.reshape(len(weight), -1)
    fits = [_staircases(SortedRows(rows[block]), config) for block in _blocks(*rows.shape)]
    thresholds = np.concatenate([fit.thresholds for fit in fits])
    levels = np.concatenate([fit.levels for fit in fits]).astype(np.float32)
    bases = [fit.basis for fit in fits if fit.basis is not None]
    quantized = np.empty(rows.shape, np.float32)
    for channel, values in enumerate(rows):
        quantized[channel] = levels[channel, np.searchsorted(thresholds[channel], values)]
    return FittedWeight(quantized.reshape(weight.shape), levels, np.concatenate(bases) if bases else None)


class _Staircases(NamedTuple):
    """A quantizer per row: a value has the level ``levels[number of thresholds below it]``."""

    thresholds: np.ndarray
    levels: np.ndarray
    basis: np.ndarray | None = None


def _staircases(values: SortedRows, config: QNN | LQNets) -> _Staircases:
    if isinstance(config, LQNets):
        basis = fit_best_bases(values, config.weights, signed=True).basis
        levels, _ = sorted_levels(basis, signed=True)
        return _Staircases(_midpoints(levels), levels, basis)
    if config.weights == 1:
        scale = values.mean_magnitudes[:, None]
        # Zero counts as positive, as in training.
        return _Staircases(np.full(scale.shape, np.nextafter(0.0, -1.0)), scale * [-1.0, 1.0])
    if config.weights == "ternary" or config.rounding == "log":
        bits = TERNARY_BITS if config.weights == "ternary" else config.weights
        thresholds, levels = power_levels(bits, signed=True)
        largest = best_power_range(values, bits, signed=True)[:, None]
        return _Staircases(largest * thresholds, largest * levels)
    levels = _best_linear_levels(values, config.weights)
    return _Staircases(_midpoints(levels), levels)


def _best_linear_levels(values: SortedRows, bits: int) -> np.ndarray:
    """The levels of two's complement, with the step of each row that leaves the smallest error."""
    codes = np.arange(-(2.0 ** (bits - 1)), 2 ** (bits - 1))
    step = values.largest / 2 ** (bits - 1)
    for tried in (TRIED_CLIPS, FINER_CLIPS):
        errors = np.stack([values.errors(factor * step[:, None] * codes) for factor in tried])
        step, error = step * tried[errors.argmin(0)], errors.min(0)
    for _ in range(MOST_ITERATIONS):
        counts, sums = values.statistics(_midpoints(step[:, None] * codes))
        squares = counts @ codes**2
        tried = np.divide(sums @ codes, squares, out=step.copy(), where=squares > 0)
        found = values.errors(tried[:, None] * codes)
        better = found < error
        if not better.any():
            break
        step, error = np.where(better, tried, step), np.where(better, found, error)
    return step[:, None] * codes


def _midpoints(levels: np.ndarray) -> np.ndarray:
    return (levels[:, 1:] + levels[:, :-1]) / 2


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)
