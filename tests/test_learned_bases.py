"""Learned bases, one per output channel for weights and one per layer for activations, from torch to the library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tvmq.bitplanes import BitPlanes, Encoding, basis_terms

ACTIVATION_BASES = {1: [0.7], 2: [0.4, 1.1], 3: [0.3, 0.55, 1.3]}


class Quantize(nn.Module):
    """LQ-Nets' activation quantizer with a frozen basis: levels are subset sums, thresholds their midpoints."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        codes = np.arange(2**bits)
        basis = np.array(ACTIVATION_BASES[bits])
        self.levels = np.sort(((codes[:, None] >> np.arange(bits)) & 1) @ basis).astype(np.float32)
        self.thresholds = (self.levels[1:] + self.levels[:-1]) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = np.diff(self.levels)
        result = torch.where(x > float(self.thresholds[0]), float(steps[0]), 0.0)
        for threshold, step in zip(self.thresholds[1:], steps[1:], strict=True):
            result = result + torch.where(x > float(threshold), float(step), 0.0)
        return result


def learned_weight(random: np.random.Generator, bits: int, *shape: int) -> torch.Tensor:
    """Signs times a basis of each output channel."""
    basis = random.uniform(0.5, 1, (shape[0], bits)) * 1.7 ** np.arange(bits)
    signs = random.choice([-1.0, 1.0], (*shape, bits))
    return torch.tensor((signs * basis.reshape(shape[0], *[1] * (len(shape) - 1), bits)).sum(-1).astype(np.float32))


class Network(nn.Module):
    """Two convolutions and a dense layer, with a residual sum."""

    def __init__(self, weight_bits: int, activation_bits: int) -> None:
        super().__init__()
        random = np.random.default_rng(10 * weight_bits + activation_bits)
        torch.manual_seed(0)
        self.quantize = Quantize(activation_bits)
        self.weights = nn.ParameterList(
            [
                nn.Parameter(learned_weight(random, weight_bits, *shape))
                for shape in ((20, 20, 3, 3), (20, 20, 3, 3), (10, 20 * 36))
            ]
        )
        self.norm = nn.BatchNorm2d(20)
        nn.init.normal_(self.norm.weight)
        self.norm.running_var.fill_(200.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(torch.conv2d(self.quantize(x), self.weights[0], padding=1)))
        y = torch.conv2d(self.quantize(y), self.weights[1], padding=1) * 0.05 + x
        return torch.nn.functional.linear(self.quantize(torch.relu(y)).flatten(1), self.weights[2])


@pytest.mark.parametrize("weight_bits", [2, 3])
@pytest.mark.parametrize("activation_bits", [1, 2, 3])
def test_learned_bases_are_packed_and_exact(weight_bits, activation_bits):
    net = Network(weight_bits, activation_bits).eval()
    x = torch.randn(2, 20, 6, 6, generator=torch.Generator().manual_seed(1))
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model, check_inputs=[x.numpy()], verify=True)
    golden = model.run(x.numpy())[0]
    np.testing.assert_array_equal(bundle.run(x.numpy())[0], golden)
    np.testing.assert_allclose(golden, net(x).detach().numpy(), rtol=1e-4, atol=1e-3)
    rows = bundle.layers("host")
    assert [(row["weight_bits"], row["activation_bits"]) for row in rows] == [(weight_bits, activation_bits)] * 3
    assert all(row["kernel"].startswith(("bitserial", "int8")) for row in rows)


def test_learned_bases_under_emulation():
    net = Network(2, 2).eval()
    x = torch.randn(1, 20, 6, 6, generator=torch.Generator().manual_seed(1))
    model = tvmq.load(net, (x,))
    for target in ("raspberry-pi-4", "raspberry-pi-3-32"):
        bundle = tvmq.compile(model, target, check_inputs=[x.numpy()])
        np.testing.assert_array_equal(bundle.run_emulated(target, x.numpy())[0], model.run(x.numpy())[0])


class Layers(nn.Module):
    """Convolutions of every geometry and a dense layer, after any quantizer and with any weights."""

    GEOMETRIES = ((3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 2, 2), (1, 1, 0, 1))

    def __init__(self, quantize: nn.Module, weight: Callable[..., np.ndarray]) -> None:
        super().__init__()
        self.quantize = quantize
        self.kernels = nn.ParameterList(
            [nn.Parameter(torch.tensor(weight(9, 20, size, size))) for size, *_ in self.GEOMETRIES]
        )
        self.matrix = nn.Parameter(torch.tensor(weight(7, 20 * 63)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.quantize(x)
        images = [
            torch.conv2d(x, kernel, stride=stride, padding=padding, dilation=dilation)
            for kernel, (_, stride, padding, dilation) in zip(self.kernels, self.GEOMETRIES, strict=True)
        ]
        return (*images, self.quantize(images[0] - 0.0123), torch.nn.functional.linear(x.flatten(1), self.matrix))


class Sign(nn.Module):
    """-1 or 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


class Shifted(Quantize):
    """A learned basis whose lowest level is not 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) - 0.63


def signs_of_a_basis(*shape: int) -> np.ndarray:
    return learned_weight(np.random.default_rng(0), 2, *shape).numpy()


def sums_with_an_offset(*shape: int) -> np.ndarray:
    """Neither symmetric nor with 0 at code 0."""
    offset = np.random.default_rng(1).normal(size=(shape[0], *[1] * (len(shape) - 1)))
    return (signs_of_a_basis(*shape) + offset).astype(np.float32)


def one_codebook(*shape: int) -> np.ndarray:
    random = np.random.default_rng(len(shape))
    return random.choice(random.normal(size=16), shape).astype(np.float32)


def codebooks(*shape: int) -> np.ndarray:
    """Five levels of each output channel."""
    random = np.random.default_rng(len(shape))
    levels = random.normal(size=(shape[0], 5)).astype(np.float32)
    picked = random.integers(0, 5, shape).reshape(shape[0], -1)
    return np.take_along_axis(levels, picked, axis=1).reshape(shape)


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize(
    "weight, bits", [(signs_of_a_basis, 2), (sums_with_an_offset, 3), (codebooks, 5), (one_codebook, 16)]
)
@pytest.mark.parametrize("quantize", [Sign(), Shifted(2)], ids=["sign", "shifted"])
def test_offsets_of_activations_and_weights_are_exact_at_borders(quantize, weight, bits):
    net = Layers(quantize, weight).eval()
    x = torch.randn(2, 20, 9, 7, generator=torch.Generator().manual_seed(1))
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model, check_inputs=[x.numpy()], verify=True)
    golden = model.run(x.numpy())
    for actual, one, expected in zip(bundle.run(x.numpy()), golden, net(x), strict=True):
        np.testing.assert_array_equal(actual, one)
        np.testing.assert_allclose(one, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    rows = bundle.layers("host")
    assert [row["weight_bits"] for row in rows] == [bits] * 6
    assert all(row["kernel"].startswith(("bitserial", "int8")) for row in rows)


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
def test_borders_of_codebooks_under_emulation():
    net = Layers(Sign(), codebooks).eval()
    x = torch.randn(1, 20, 9, 7, generator=torch.Generator().manual_seed(1))
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model, "raspberry-pi-4", check_inputs=[x.numpy()])
    for actual, expected in zip(bundle.run_emulated("raspberry-pi-4", x.numpy()), model.run(x.numpy()), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_basis_per_channel_is_recovered_from_its_levels(bits):
    weight = learned_weight(np.random.default_rng(bits), bits, 6, 2000).numpy()
    found = BitPlanes.of_weights(weight)
    assert found.encoding.planes == bits
    np.testing.assert_allclose(found.dense(), weight, rtol=1e-5, atol=1e-6)
    assert basis_terms(Encoding.unsigned(2), found).combine == "xor"


def test_levels_of_an_activation_are_sums_of_at_most_four_numbers():
    encoding, codes = Encoding.of_basis_levels([-0.5, 0.5, 2.0, 8.5])
    np.testing.assert_array_equal(encoding.values(codes), np.float32([-0.5, 0.5, 2.0, 8.5]))
    assert encoding.planes == 3
    encoding, codes = Encoding.of_basis_levels([0.0, 1.0, 2.5, 3.5])
    assert encoding.planes == 2 and codes.tolist() == [0, 1, 2, 3]
    assert Encoding.of_basis_levels([0.0, *np.sqrt([2, 3, 5, 7, 11])]) is None
    assert Encoding.of_basis_levels([1.0]) is None
