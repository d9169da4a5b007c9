from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvmq.nn.estimators import (
    ap2,
    drawn_linear,
    drawn_power_of_two,
    drawn_sign,
    linear,
    powers_of_two,
    quantized_gradient,
    round_to_8_bits,
    sign,
    staircase,
    straight_through,
)

# Both sides of every edge, and both zeros.
EDGES = torch.tensor([-2.0, -1.0001, -1.0, -0.9999, -0.3, -0.0, 0.0, 0.3, 0.9999, 1.0, 1.0001, 2.0])


def gradient(function, x, upstream):
    x = x.clone().requires_grad_()
    function(x).backward(upstream)
    return x.grad


def test_the_sign_of_zero_is_positive():
    assert sign(torch.tensor([-0.0, 0.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_signs_have_the_dtype_of_their_argument(dtype):
    signs = sign(EDGES.to(dtype))
    assert signs.dtype == dtype
    assert signs.tolist() == [-1.0] * 5 + [1.0] * 7
    assert drawn_sign(EDGES.to(dtype)).dtype == dtype


def test_gradients_pass_only_within_the_bounds():
    upstream = torch.arange(1.0, 13.0)
    expected = [0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 0.0, 0.0]
    assert gradient(lambda x: straight_through(x, sign(x), -1.0, 1.0), EDGES, upstream).tolist() == expected
    drawn = gradient(lambda x: straight_through(x, drawn_sign(x), -1.0, 1.0), EDGES, upstream)
    assert drawn.tolist() == expected
    bounds = torch.tensor(-1.0), torch.tensor(1.0)
    assert gradient(lambda x: straight_through(x, sign(x), *bounds), EDGES, upstream).tolist() == expected


def test_gradients_without_bounds_pass_everywhere():
    upstream = torch.arange(1.0, 13.0)
    assert gradient(lambda x: straight_through(x, sign(x)), EDGES, upstream).tolist() == upstream.tolist()


def test_straight_through_has_the_values_of_the_quantizer():
    torch.testing.assert_close(straight_through(EDGES, sign(EDGES)), sign(EDGES), rtol=0, atol=0)


def test_drawn_signs_have_the_right_mean():
    torch.manual_seed(0)
    latent = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5])
    drawn = drawn_sign(latent.expand(40_000, -1))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    # The standard deviation of a mean is at most 1 / sqrt(40,000) = 0.005.
    torch.testing.assert_close(drawn.mean(0), latent.clamp(-1, 1), rtol=0, atol=0.025)
    # Saturated values are certain, not just likely.
    assert drawn[:, [0, 1]].eq(-1).all()
    assert drawn[:, [5, 6]].eq(1).all()


def test_pixels_of_8_bits_keep_their_codes():
    codes = torch.arange(256)
    rounded = round_to_8_bits(codes.float() / 255)
    torch.testing.assert_close(rounded, codes.float() / 255)
    assert (rounded * 255).round().int().tolist() == codes.tolist()


@given(st.floats(-1, 2, width=32))
def test_rounding_takes_the_nearest_code(value):
    code = round_to_8_bits(torch.tensor(value)).item() * 255
    assert abs(code - round(code)) < 1e-4
    clamped = min(max(value, 0.0), 1.0)
    assert abs(code / 255 - clamped) <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_linear_levels_are_those_of_the_definition(bits, signed):
    step = 2.0 ** (1 - bits) if signed else 1 / (2**bits - 1)
    numbers = range(-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else range(2**bits)
    expected = torch.tensor([number * step for number in numbers])
    x = torch.linspace(-1.5, 1.5, 20_001)
    levels = linear(x, bits, signed).unique()
    torch.testing.assert_close(levels, expected.unique())
    # The nearest of all levels, at every value.
    distance = (x[:, None] - expected).abs().amin(1)
    torch.testing.assert_close((x - linear(x, bits, signed)).abs(), distance, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("value", "power"), [(0.0, 0), (1, 1), (3, 4), (-3, -4), (2.8, 2), (2.9, 4), (-0.3, -0.25)])
def test_ap2_is_the_nearest_power_in_the_logarithm(value, power):
    assert ap2(torch.tensor(float(value))).item() == power


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (3, True), (4, True), (1, False), (2, False), (4, False)])
def test_powers_of_two_are_those_of_the_definition(bits, signed):
    torch.manual_seed(1)
    x = torch.cat([torch.randn(5000), torch.randn(5000) * 0.01, torch.zeros(1)])
    rounded = powers_of_two(x, bits, signed)
    count = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    assert set(rounded.unique().tolist()) <= {0.0} | {f * 2.0**-e for e in range(count) for f in (-1, 1)}
    expected = ap2(x).clamp(-1.0 if signed else 0.0, 1.0)
    expected = torch.where(expected.abs() < 2.0 ** (1 - count), torch.zeros_like(x), expected)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0)


@pytest.mark.parametrize("draw", [drawn_linear, drawn_power_of_two])
@pytest.mark.parametrize("signed", [False, True])
def test_drawn_levels_are_the_two_around_and_their_mean_is_the_value(draw, signed):
    torch.manual_seed(2)
    low = -0.8 if signed else 0.0
    values = torch.linspace(low, 0.74, 23)
    drawn = draw(values.expand(20_000, -1), 3, signed)
    assert all(len(column.unique()) <= 2 for column in drawn.T)
    # Two levels lie at most 1/2 apart: the standard deviation of a mean is at most 1/4 / sqrt(20,000) = 0.0018.
    torch.testing.assert_close(drawn.mean(0), values, rtol=0, atol=0.01)


@pytest.mark.parametrize("rounding", ["linear", "log"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_rounded_gradients_keep_their_mean(rounding, bits):
    torch.manual_seed(3)
    upstream = torch.linspace(-3.0, 3.0, 13)
    drawn = torch.stack(
        [gradient(lambda x: quantized_gradient(x, bits, rounding), upstream, upstream) for _ in range(4000)]
    )
    levels = 2 ** (bits - 1) - 1
    allowed = [3 * number / levels for number in range(levels + 1)]
    if rounding == "log":
        allowed = [0.0] + [3 * 2.0**-exponent for exponent in range(levels)]
    distance = (drawn.abs().unique()[:, None] - torch.tensor(allowed)).abs().amin(1)
    assert distance.max() < 1e-5
    # One of two levels at most 3 apart: standard deviation at most 1.5 / sqrt(4,000) = 0.024.
    torch.testing.assert_close(drawn.mean(0), upstream, rtol=0, atol=0.12)


def test_gradients_of_one_bit_are_signs_of_the_largest():
    torch.manual_seed(4)
    upstream = torch.tensor([-2.0, 0.0, 1.0, 2.0])
    drawn = torch.stack([gradient(lambda x: quantized_gradient(x, 1), upstream, upstream) for _ in range(4000)])
    assert drawn.abs().eq(2).all()
    torch.testing.assert_close(drawn.mean(0), upstream, rtol=0, atol=0.16)


@pytest.mark.parametrize("bits", [1, 6])
def test_gradients_that_are_zero_stay_zero(bits):
    zeros = torch.zeros(5)
    assert gradient(lambda x: quantized_gradient(x, bits), zeros, zeros).eq(0).all()


def test_values_pass_unchanged_where_gradients_are_rounded():
    assert torch.equal(quantized_gradient(EDGES, 6), EDGES)


def test_a_staircase_takes_the_level_that_belongs_to_a_value():
    levels = [-1.0, 0.1, 0.7]
    x = torch.tensor([-math.inf, -0.2, -0.19, 0.4, 0.41, math.inf])
    # A value on a threshold belongs to the lower level.
    assert staircase(x, [-0.2, 0.4], levels).tolist() == pytest.approx([-1.0, -1.0, 0.1, 0.1, 0.7, 0.7])
