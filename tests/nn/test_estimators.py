from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvmq.nn.estimators import ActivationSign, RoundTo8Bits, StochasticSign, WeightSign, round_to_8_bits, sign

# Both sides of every edge, and both zeros.
EDGES = torch.tensor([-2.0, -1.0001, -1.0, -0.9999, -0.3, -0.0, 0.0, 0.3, 0.9999, 1.0, 1.0001, 2.0])


def gradient(estimator, x, upstream):
    x = x.clone().requires_grad_()
    estimator.apply(x).backward(upstream)
    return x.grad


def test_the_sign_of_zero_is_positive():
    assert sign(torch.tensor([-0.0, 0.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_signs_have_the_dtype_of_their_argument(dtype):
    signs = sign(EDGES.to(dtype))
    assert signs.dtype == dtype
    assert signs.tolist() == [-1.0] * 5 + [1.0] * 7
    assert StochasticSign.apply(EDGES.to(dtype)).dtype == dtype


@pytest.mark.parametrize("estimator", [ActivationSign, WeightSign])
def test_sign_estimators_compute_the_sign(estimator):
    torch.testing.assert_close(estimator.apply(EDGES), sign(EDGES), rtol=0, atol=0)


def test_activation_gradients_pass_only_within_one():
    upstream = torch.arange(1.0, 13.0)
    expected = [0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 0.0, 0.0]
    assert gradient(ActivationSign, EDGES, upstream).tolist() == expected
    assert gradient(StochasticSign, EDGES, upstream).tolist() == expected


def test_weight_gradients_pass_everywhere():
    upstream = torch.arange(1.0, 13.0)
    assert gradient(WeightSign, EDGES, upstream).tolist() == upstream.tolist()


def test_rounding_gradients_pass_where_nothing_is_clamped():
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1])
    assert gradient(RoundTo8Bits, x, torch.arange(1.0, 6.0)).tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_stochastic_signs_have_the_right_mean():
    torch.manual_seed(0)
    latent = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5])
    drawn = StochasticSign.apply(latent.expand(40_000, -1))
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


def test_rounding_estimator_computes_the_rounding():
    x = torch.linspace(-0.2, 1.2, 1001)
    torch.testing.assert_close(RoundTo8Bits.apply(x), round_to_8_bits(x), rtol=0, atol=0)
