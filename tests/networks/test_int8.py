"""Networks of 8 and 4 bits, whose products are of bytes: libraries equal the golden executor bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tvmq
from tvmq.target import get_target

from .alphabets import ALPHABETS
from .quantized import EightBitInput, QuantizedConv2d, QuantizedLinear, Sign, SignedLevels, UnsignedLevels


class Network(nn.Module):
    """A strided first layer, max-pool, a residual block, and a dense layer over the flattened image."""

    def __init__(self, alphabet: str, activations: list[nn.Module]) -> None:
        super().__init__()
        one, two, three = activations
        options = {"alphabet": alphabet, "bias": False}
        self.stem = nn.Sequential(
            EightBitInput(), QuantizedConv2d(3, 20, 5, stride=2, padding=2, seed=1, **options), nn.BatchNorm2d(20)
        )
        self.pool = nn.Sequential(one, nn.MaxPool2d(2))
        self.left = nn.Sequential(QuantizedConv2d(20, 24, 3, padding=1, seed=2, **options), nn.BatchNorm2d(24))
        self.right = nn.Sequential(QuantizedConv2d(20, 24, 1, seed=3, **options), nn.BatchNorm2d(24))
        self.two = two
        self.last = nn.Sequential(QuantizedConv2d(24, 9, 3, stride=2, seed=4, **options), nn.BatchNorm2d(9), three)
        self.head = QuantizedLinear(9 * 3 * 3, 10, alphabet=alphabet, seed=5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.pool(self.stem(x))
        total = self.two(self.left(first) + self.right(first))
        return self.head(torch.flatten(self.last(total), 1))


NETWORKS = {
    "w8a8": ("signed8", [UnsignedLevels(8, 0.01), UnsignedLevels(4, 0.2), UnsignedLevels(8, 0.01)]),
    "w4a4": ("signed4", [UnsignedLevels(4, 0.2), UnsignedLevels(3, 0.3), SignedLevels(4, 0.2)]),
    "signed": ("signed4", [SignedLevels(5, 0.1), SignedLevels(4, 0.2), SignedLevels(5, 0.1)]),
    "eight-bit input": ("binary", [Sign(), Sign(), Sign()]),
}


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_bytes(name, monkeypatch):
    monkeypatch.setitem(ALPHABETS, "signed8", tuple(range(-128, 128)))
    torch.manual_seed(0)
    alphabet, activations = NETWORKS[name]
    net = Network(alphabet, activations).eval()
    x = torch.rand(2, 3, 28, 28)
    model = tvmq.load(net, (x,))
    golden = model.run(x.numpy())[0]
    bundle = tvmq.compile(model, "host", check_inputs=[x.numpy()])
    np.testing.assert_array_equal(bundle.run(x.numpy())[0], golden)
    kernels = [row["kernel"] for row in bundle.layers("host")]
    dot = get_target("host").dot
    if dot is None:
        return
    expected = 1 if name == "eight-bit input" else len(kernels)
    assert [kernel == f"int8 {dot}" for kernel in kernels] == [True] * expected + [False] * (len(kernels) - expected)


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize("target", ["raspberry-pi-4", "raspberry-pi-5"])
def test_networks_of_bytes_under_emulation(target):
    torch.manual_seed(0)
    x = torch.rand(1, 3, 28, 28)
    model = tvmq.load(Network(*NETWORKS["signed"]).eval(), (x,))
    bundle = tvmq.compile(model, target, check_inputs=[x.numpy()])
    np.testing.assert_array_equal(bundle.run_emulated(target, x.numpy())[0], model.run(x.numpy())[0])
    assert {row["kernel"] for row in bundle.layers(target)} == {f"int8 {get_target(target).dot}"}
