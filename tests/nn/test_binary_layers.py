from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvmq.errors import InputError
from tvmq.nn import BinaryConv2d, BinaryLinear

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0)},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "groups": 2, "bias": False},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("input_quantizer", ["sign", "input8"])
def test_training_and_evaluation_compute_the_same(geometry, input_quantizer):
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 6, input_quantizer=input_quantizer, **geometry)
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution_is_the_float_one_on_signs(geometry):
    torch.manual_seed(1)
    reference = nn.Conv2d(4, 6, **geometry)
    layer = BinaryConv2d.from_float(reference).eval()
    x = torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        actual = layer(x)
        reference.weight.copy_(torch.where(reference.weight < 0, -1.0, 1.0))
        torch.testing.assert_close(actual, reference(torch.where(x < 0, -1.0, 1.0)), rtol=0, atol=0)


def test_padding_is_zero_and_so_neither_sign():
    layer = BinaryConv2d(1, 1, 3, padding=1, bias=False).eval()
    nn.init.ones_(layer.weight)
    # Nine ones in the middle, six at an edge, four in a corner: padding with a sign would give other counts.
    sums = layer(torch.ones(1, 1, 3, 3))
    assert sums.squeeze().tolist() == [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]


def test_zero_counts_as_positive_in_inputs_and_weights():
    layer = BinaryLinear(3, 1, bias=False).eval()
    nn.init.zeros_(layer.weight)
    assert layer(torch.zeros(1, 3)).item() == 3.0


def test_the_first_layer_reads_8_bits():
    layer = BinaryLinear(2, 1, bias=False, input_quantizer="input8").eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.5]]))
    # 0.3 * 255 = 76.5 rounds up to 77; 1.7 is clamped to 255.
    assert layer(torch.tensor([[1.7, 0.3]])).item() == pytest.approx((255 - 77) / 255)


def test_gradients_are_those_of_the_estimators():
    torch.manual_seed(2)
    layer = BinaryLinear(5, 3)
    with torch.no_grad():
        layer.weight.mul_(8)
    x = (2 * torch.randn(4, 5)).requires_grad_()
    upstream = torch.randn(4, 3)
    layer(x).backward(upstream)
    signs, weight_signs = torch.where(x >= 0, 1.0, -1.0), torch.where(layer.weight >= 0, 1.0, -1.0)
    assert (layer.weight.abs() > 1).any()
    torch.testing.assert_close(layer.weight.grad, upstream.T @ signs)
    torch.testing.assert_close(x.grad, (upstream @ weight_signs) * (x.abs() <= 1))
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0))


def test_drawing_happens_only_in_training():
    torch.manual_seed(3)
    layer = BinaryLinear(64, 8, stochastic=True)
    x = torch.zeros(1, 64)
    assert not torch.equal(layer.train()(x), layer(x))
    expected = F.linear(torch.ones(1, 64), torch.where(layer.weight >= 0, 1.0, -1.0), layer.bias)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=0, atol=0)


def test_a_layer_learns_in_double_precision_too():
    layer = BinaryConv2d(1, 1, 3).double()
    assert layer(torch.randn(1, 1, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_the_representation_names_the_quantizer():
    assert "input_quantizer='input8'" in repr(BinaryConv2d(1, 2, 3, input_quantizer="input8"))


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(InputError, match="input_quantizer='int8' is not supported; use 'sign' or 'input8'"):
        BinaryLinear(1, 1, input_quantizer="int8")
