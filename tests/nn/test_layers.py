from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvmq.errors import InputError
from tvmq.nn.layers import GradientQuantizer, QuantizedConv2d, QuantizedLinear, quantized_layers
from tvmq.nn.quantizers import BinaryActivation, BinaryWeight, EightBitInput, LinearActivation, LinearWeight

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0)},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "groups": 2, "bias": False},
]


def binary_linear(inputs, outputs, activation=None, **options):
    return QuantizedLinear(nn.Linear(inputs, outputs, **options), BinaryWeight(), activation or BinaryActivation())


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("activation", [BinaryActivation(), EightBitInput(), LinearActivation(3)])
def test_training_and_evaluation_compute_the_same(geometry, activation):
    torch.manual_seed(0)
    float_layer = nn.Conv2d(4, 6, **geometry)
    layer = QuantizedConv2d(float_layer, LinearWeight(2, float_layer.weight), activation, GradientQuantizer(6))
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution_is_the_float_one_on_signs(geometry):
    torch.manual_seed(1)
    reference = nn.Conv2d(4, 6, **geometry)
    layer = QuantizedConv2d(reference, BinaryWeight(), BinaryActivation()).eval()
    x = torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        actual = layer(x)
        reference.weight.copy_(torch.where(reference.weight < 0, -1.0, 1.0))
        torch.testing.assert_close(actual, reference(torch.where(x < 0, -1.0, 1.0)), rtol=0, atol=0)


def test_padding_is_zero_and_so_neither_sign():
    layer = QuantizedConv2d(nn.Conv2d(1, 1, 3, padding=1, bias=False), BinaryWeight(), BinaryActivation()).eval()
    nn.init.ones_(layer.weight)
    # Nine ones in the middle, six at an edge, four in a corner: padding with a sign would give other counts.
    sums = layer(torch.ones(1, 1, 3, 3))
    assert sums.squeeze().tolist() == [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]


def test_zero_counts_as_positive_in_inputs_and_weights():
    layer = binary_linear(3, 1, bias=False).eval()
    nn.init.zeros_(layer.weight)
    assert layer(torch.zeros(1, 3)).item() == 3.0


def test_the_first_layer_reads_8_bits():
    layer = binary_linear(2, 1, EightBitInput(), bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.5]]))
    # 0.3 * 255 = 76.5 rounds up to 77; 1.7 is clamped to 255.
    assert layer(torch.tensor([[1.7, 0.3]])).item() == pytest.approx((255 - 77) / 255)


def test_gradients_are_those_of_the_estimators():
    torch.manual_seed(2)
    layer = binary_linear(5, 3)
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


def test_gradients_of_the_output_are_rounded_before_both_products():
    torch.manual_seed(3)
    layer = QuantizedLinear(nn.Linear(5, 3), BinaryWeight(), BinaryActivation(), GradientQuantizer(2))
    x = (torch.rand(4, 5) - 0.5).requires_grad_()
    upstream = torch.randn(4, 3)
    layer(x).backward(upstream)
    # Two bits: minus the largest, zero, the largest; so all gradients are whole numbers of the largest.
    largest = upstream.abs().max()
    for gradient in (layer.bias.grad, layer.weight.grad, x.grad):
        assert gradient.any()
        torch.testing.assert_close(gradient / largest, (gradient / largest).round())


def test_drawing_happens_only_in_training():
    torch.manual_seed(3)
    layer = binary_linear(64, 8, BinaryActivation(stochastic=True))
    x = torch.zeros(1, 64)
    assert not torch.equal(layer.train()(x), layer(x))
    expected = F.linear(torch.ones(1, 64), torch.where(layer.weight >= 0, 1.0, -1.0), layer.bias)
    torch.testing.assert_close(layer.eval()(x), expected, rtol=0, atol=0)


def test_a_layer_learns_in_double_precision_too():
    layer = binary_linear(3, 2).double()
    assert layer(torch.randn(1, 3, dtype=torch.float64)).dtype == torch.float64


def test_the_representation_names_the_quantizers():
    assert "EightBitInput(bits=8)" in repr(binary_linear(1, 2, EightBitInput()))


def test_a_float_network_has_no_quantized_layer():
    with pytest.raises(InputError, match="Linear contains no quantized layer"):
        quantized_layers(nn.Linear(1, 1))
