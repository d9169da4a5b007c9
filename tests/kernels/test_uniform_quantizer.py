"""Quantizers with equal steps are recognised from their thresholds, and rounding counts what comparisons count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmq.kernels.packing import quantize
from tvmq.kernels.uniform_quantizer import UniformQuantizer, uniform_quantizer


def ordered(x: np.ndarray) -> np.ndarray:
    """Integers in the order of float32 numbers."""
    bits = x.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def number(key: int) -> np.float32:
    """The float32 number of an integer of that order."""
    magnitude = np.array(abs(key), np.int32).view(np.float32)
    return np.float32(-magnitude if key < 0 else magnitude)


def thresholds_of(quantizer: UniformQuantizer, count: int) -> np.ndarray:
    """The smallest float32 number of each level, by bisection."""
    largest = int(ordered(np.array([np.finfo(np.float32).max]))[0])
    limits = []
    for level in range(1, count + 1):
        low, high = -largest, largest
        while low < high:
            middle = (low + high) // 2
            if quantizer.rounded(np.array([number(middle)]))[0] >= level:
                high = middle
            else:
                low = middle + 1
        limits.append(number(low))
    return np.array(limits, np.float32)


@given(
    bits=st.integers(3, 8),
    factor=st.floats(2**-10, 2**10, width=32),
    divides=st.booleans(),
    signed=st.booleans(),
)
def test_the_rounding_behind_thresholds_is_found(bits: int, factor: float, divides: bool, signed: bool) -> None:
    count = 2**bits - 1
    truth = UniformQuantizer(factor, divides, 2 ** (bits - 1) if signed else 0)
    limits = thresholds_of(truth, count)
    found = uniform_quantizer(limits)
    assert found is not None
    random = np.random.default_rng(0).normal(0, 3 * np.abs(limits).max(), 300).astype(np.float32)
    x = np.concatenate([limits, np.nextafter(limits, np.float32(-np.inf)), random])
    np.testing.assert_array_equal(
        found.rounded(x).clip(0, count), np.searchsorted(limits, x, side="right").astype(np.float32)
    )


@pytest.mark.parametrize(
    "limits",
    [
        [0.5, 1.5, 2.5],
        [0.0, 1.0, 2.0, 4.0],
        [1.0, 1.0, 1.0, 1.0],
        [0.5, 1.5, 2.5, np.inf],
        [-np.inf, 0.5, 1.5, 2.5],
        [0.0, 1e-45, 2e-45, 3e-45],
        [-3e38, -1e38, 1e38, 3e38],
    ],
)
def test_other_thresholds_are_left_alone(limits: list[float]) -> None:
    assert uniform_quantizer(np.array(limits, np.float32)) is None


def test_a_limit_that_is_off_by_one_number_is_noticed() -> None:
    limits = thresholds_of(UniformQuantizer(85.0, False, 0), 255)
    assert uniform_quantizer(limits) == UniformQuantizer(85.0, False, 0)
    limits[100] = np.nextafter(limits[100], np.float32(9))
    assert uniform_quantizer(limits) != UniformQuantizer(85.0, False, 0)


@pytest.mark.parametrize(
    "uniform",
    [UniformQuantizer(255.0, False, 0), UniformQuantizer(0.0117, True, 0), UniformQuantizer(3.7, False, 128)],
)
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_function_counts_by_rounding(
    uniform: UniformQuantizer, shuffled: bool, family: Any, reference: SimpleNamespace
) -> None:
    random, limits = np.random.default_rng(0), thresholds_of(uniform, 255)
    codes = random.integers(0, 256, 256) if shuffled else np.arange(256)
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38]
    below, above = (np.nextafter(limits, np.float32(side)) for side in (-9e9, 9e9))
    values = np.concatenate([limits, below, above, special, random.normal(0, limits[-1], 1000)]).astype(np.float32)
    expected = codes[(values[:, None] >= limits).sum(-1)].astype(np.uint8)
    found = uniform_quantizer(limits)
    function = reference.scheduled(quantize(values.shape, 255, codes.tolist(), found), family)
    actual = reference.run_function(function, family, [values, limits], expected)
    np.testing.assert_array_equal(actual, expected)
