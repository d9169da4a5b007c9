"""LQ-Nets' quantization error minimization: the basis whose sums lie closest to given values.

A quantizer of K bits has a basis ``v`` of K numbers and the levels ``v^T e`` of all codes ``e``, which are K signs
(weights) or K bits (activations).  Neither the nearest codes B of all values x nor the basis that fits them best can be
found without the other, so they take turns (the paper's algorithm 1):

1. with ``v`` fixed, each value takes the nearest level: thresholds halfway between neighbouring levels, in the order
   of the *levels*, which is not that of the codes as binary numbers, nor need any number of the basis be positive;
2. with ``B`` fixed, ``v = argmin |x - B v|^2 + ridge |v - v_old|^2 = (B^T B + ridge I)^-1 (B^T x + ridge v_old)``.

Neither step makes ``|x - B v|^2`` larger: the first is the best choice of codes, and the minimum of the second is not
above its value at ``v_old``, where the ridge is nothing.  The ridge keeps the system regular where a code does not
occur.

Values on the same level have the same code, so the sums over all values are sums over levels:
``B^T B = sum_l count_l e_l e_l^T`` and ``B^T x = sum_l sum_l e_l`` need nothing but how many values take each level and
what they add up to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "ACTIVATION_RIDGE",
    "WEIGHT_RIDGE",
    "code_table",
    "fitted_basis",
    "level_statistics",
    "nearest_levels",
    "sorted_levels",
    "thresholds_between",
]

WEIGHT_RIDGE = 1e-4
"""As in the original implementation."""
ACTIVATION_RIDGE = 1e-7
"""The original has none and fails where a code does not occur; this one is too small to be seen where all do."""

BLOCK = 2**18
"""Values that are looked at together on a processor: 1 MiB."""


def code_table(bits: int, signed: bool, like: Tensor) -> Tensor:
    """All codes: row ``c`` holds the bits of the number ``c``, the lowest first.

    Parameters
    ----------
    bits : int
    signed : bool
        Bits are -1 and 1; else 0 and 1.
    like : Tensor
        Of the dtype and on the device of the result.

    Returns
    -------
    Tensor
        ``[2**bits, bits]``.
    """
    numbers = torch.arange(2**bits, device=like.device)[:, None]
    table = (numbers >> torch.arange(bits, device=like.device)) & 1
    return (2 * table - 1 if signed else table).to(like.dtype)


def sorted_levels(basis: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The levels of each basis in ascending order, and which code gives each.

    Parameters
    ----------
    basis : Tensor
        ``[rows, K]``.
    codes : Tensor
        ``[2**K, K]``, from :func:`code_table`.

    Returns
    -------
    (Tensor, Tensor)
        Levels ``[rows, 2**K]`` and numbers of codes of the same shape.
    """
    levels, order = torch.sort(basis @ codes.T, dim=1, stable=True)
    return levels, order


def thresholds_between(levels: Tensor) -> Tensor:
    """The midpoints of neighbouring levels; a value that lies on one belongs to the lower level.

    Parameters
    ----------
    levels : Tensor
        ``[rows, L]``, ascending.

    Returns
    -------
    Tensor
        ``[rows, L - 1]``.
    """
    return (levels[:, 1:] + levels[:, :-1]) / 2


def level_statistics(x: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """How many values of a row take each level, and their sum.

    Parameters
    ----------
    x : Tensor
        ``[rows, n]``.
    thresholds : Tensor
        ``[rows, L - 1]``, ascending.

    Returns
    -------
    (Tensor, Tensor)
        Counts and sums, float64 ``[rows, L]``.
    """
    # Of the values above each threshold, and of all of them (above nothing); levels are differences of two.
    above_counts = x.new_zeros(len(x), thresholds.shape[1] + 2, dtype=torch.float64)
    above_sums = torch.zeros_like(above_counts)
    for rows, columns in _blocks(x):
        part = x[rows, columns]
        ones, above = part.new_ones(part.shape[1]), torch.empty_like(part)
        above_counts[rows, 0] += part.shape[1]
        above_sums[rows, 0] += part @ ones
        for number, threshold in enumerate(thresholds[rows].unbind(1), start=1):
            # Masks are numbers and are multiplied with: sums over masks of truth values are far slower.
            torch.gt(part, threshold[:, None], out=above)
            above_counts[rows, number] += above @ ones
            above_sums[rows, number] += torch.linalg.vecdot(above, part)
    return above_counts[:, :-1] - above_counts[:, 1:], above_sums[:, :-1] - above_sums[:, 1:]


def nearest_levels(x: Tensor, thresholds: Tensor, levels: Tensor) -> Tensor:
    """Step 1: each value's nearest level, as :func:`tvmq.nn.estimators.staircase` gives it.

    Faster than that: every level is multiplied with the mask of its values, and as each value has one level, nothing
    but zeros is added to it.

    Parameters
    ----------
    x : Tensor
        ``[rows, n]``.
    thresholds : Tensor
        ``[rows, L - 1]``, ascending.
    levels : Tensor
        ``[rows, L]``.

    Returns
    -------
    Tensor
        ``[rows, n]``.
    """
    result = torch.zeros_like(x)
    for rows, columns in _blocks(x):
        part, quantized = x[rows, columns], result[rows, columns]
        above, before = torch.empty_like(part), torch.ones_like(part)
        for threshold, level in zip(thresholds[rows].unbind(1), levels[rows].unbind(1), strict=False):
            torch.gt(part, threshold[:, None], out=above)
            quantized.addcmul_(before.sub_(above), level[:, None])
            above, before = before, above
        quantized.addcmul_(before, levels[rows, -1:])
    return result


def fitted_basis(counts: Tensor, sums: Tensor, codes: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Step 2: the basis that fits the values of each row best, given their levels.

    Parameters
    ----------
    counts, sums : Tensor
        Float64 ``[rows, L]``, of :func:`level_statistics`.
    codes : Tensor
        ``[rows, L, K]``: the code of each level.
    basis : Tensor
        ``[rows, K]``: the one before, which the ridge pulls to.
    ridge : float
        Not negative.

    Returns
    -------
    Tensor
        Float64 ``[rows, K]``.
    """
    codes = codes.double()
    weighted = codes * counts[:, :, None]
    diagonal = ridge * torch.eye(codes.shape[2], dtype=torch.float64, device=codes.device)
    matrix = codes.transpose(1, 2) @ weighted + diagonal
    right = (codes.transpose(1, 2) @ sums[:, :, None])[:, :, 0] + ridge * basis.double()
    return torch.linalg.solve(matrix, right)


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of parts of a matrix that stay in a processor's cache; the whole one for other devices."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(None), slice(None)
        return
    rows, columns = x.shape
    wide = min(columns, BLOCK)
    high = max(1, BLOCK // max(wide, 1))
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            yield slice(top, top + high), slice(left, left + wide)
