"""LQ-Nets' basis fits: against vectors that were made independently, and what must hold for any values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tvmq.methods.qem import code_table, fit_bases, fit_best_bases, sorted_levels
from tvmq.methods.sorted_rows import SortedRows

DATA = Path(__file__).parents[1] / "oracles" / "data"
VALUES = st.floats(-8, 8, width=32)


@pytest.mark.parametrize("name", ["lq_w_2bit_3x3x8x16_fixed", "lq_w_3bit_3x3x8x16_fixed", "lq_a_2bit_8x6x6x4_fixed"])
def test_ten_iterations_give_the_independent_basis(name):
    with np.load(DATA / f"{name}.npz") as file:
        oracle = dict(file)
    of_weights = name.startswith("lq_w")
    x = oracle["feeds"][0]
    rows = SortedRows(x.reshape(-1, x.shape[-1]).T if of_weights else x.reshape(1, -1))
    start = oracle["basis_ref"][0].T
    fit = fit_bases(rows, start, of_weights, iterations=10)
    np.testing.assert_allclose(fit.basis, oracle["qem_basis_10iters"].T, rtol=1e-6)
    errors = [float(errors.sum() / rows.squares.sum()) for errors in fit.history]
    np.testing.assert_allclose(errors[:10], oracle["qem_relerr"], rtol=1e-6)
    assert json.loads((DATA / f"{name}.json").read_text())["nbit"] == fit.basis.shape[1]


def brute_force(x: np.ndarray, basis: np.ndarray, signed: bool) -> np.ndarray:
    """The smallest squared distance of each row's values to any sum of its basis."""
    levels = basis @ code_table(basis.shape[1], signed).T
    return (np.abs(x[:, :, None] - levels[:, None, :]).min(2) ** 2).sum(1)


@settings(max_examples=60, deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=VALUES),
    basis=arrays(np.float64, 3, elements=st.floats(-4, 4)),
    bits=st.integers(1, 3),
    signed=st.booleans(),
)
def test_the_error_never_rises(x, basis, bits, signed):
    """From any start: unordered, negative, zero, all the same."""
    rows = SortedRows(x)
    start = np.tile(basis[:bits], (len(x), 1))
    fit = fit_bases(rows, start, signed)
    for before, after in zip(fit.history, fit.history[1:], strict=False):
        assert (after <= before).all()
    np.testing.assert_allclose(fit.history[0], brute_force(x, start, signed), atol=1e-9 * (1 + rows.squares.max()))
    np.testing.assert_allclose(fit.errors, brute_force(x, fit.basis, signed), atol=1e-9 * (1 + rows.squares.max()))


@settings(max_examples=30, deadline=None)
@given(basis=arrays(np.float64, (2, 2), elements=st.floats(-4, 4)), signed=st.booleans())
def test_levels_ascend_and_have_their_codes(basis, signed):
    levels, codes = sorted_levels(basis, signed)
    assert (np.diff(levels, axis=1) >= 0).all()
    np.testing.assert_allclose((codes * basis[:, None, :]).sum(2), levels, atol=1e-12)
    for row in codes:
        assert len(np.unique(row, axis=0)) == 4


def test_a_value_between_two_levels_takes_the_lower():
    counts, sums = SortedRows(np.array([[0.5, -0.5, 2.0]])).statistics(np.array([[-0.5, 0.5]]))
    np.testing.assert_array_equal(counts, [[1, 1, 1]])
    np.testing.assert_array_equal(sums, [[-0.5, 0.5, 2.0]])


def test_one_bit_is_the_mean_magnitude():
    x = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    for fit in (fit_best_bases(SortedRows(x), 1, True), fit_bases(SortedRows(x), np.full((5, 1), 9.0), True)):
        np.testing.assert_allclose(fit.basis[:, 0], np.abs(x).mean(1, dtype=np.float64), rtol=1e-6)


def test_values_count_as_often_as_their_weight():
    random = np.random.default_rng(1)
    x, counts = random.random((1, 50)), random.integers(0, 4, (1, 50))
    start = np.array([[0.2, 0.5]])
    weighted = fit_bases(SortedRows(x, counts), start, False)
    repeated = fit_bases(SortedRows(np.repeat(x, counts[0], axis=1)), start, False)
    np.testing.assert_allclose(weighted.basis, repeated.basis, rtol=1e-9)
    np.testing.assert_allclose(weighted.errors, repeated.errors, rtol=1e-9)


def test_a_code_that_never_occurs_does_no_harm():
    zeros = fit_best_bases(SortedRows(np.zeros((2, 10))), 2, False)
    np.testing.assert_array_equal(zeros.basis, 0)
    few = fit_bases(SortedRows(np.full((1, 6), 3.0)), np.array([[1.0, 2.0, 50.0]]), False)
    assert np.isfinite(few.basis).all() and few.errors[0] < 1e-9


def test_several_starts_beat_the_usual_one():
    """The start of the original implementation: powers of two."""
    x = np.random.default_rng(2).standard_normal((16, 300))
    rows = SortedRows(x)
    usual = np.abs(x).mean(1, keepdims=True) * [0.25, 0.5, 1.0]
    best, plain = fit_best_bases(rows, 3, True), fit_bases(rows, usual, True)
    assert best.errors.sum() < 0.97 * plain.errors.sum()
    # Eight free levels are the limit of eight sums of three numbers.
    assert 0.02 < best.errors.sum() / rows.squares.sum() < 0.0345 * 1.05
