"""Learned bases, one per output channel for weights and one per layer for activations, from torch to the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tvmq
from tests.networks.small import (
    Layers,
    LearnedBases,
    Shifted,
    Sign,
    codebooks,
    learned_weight,
    one_codebook,
    signs_of_a_basis,
    sums_with_an_offset,
)
from tvmq.bitplanes import BitPlanes, Encoding, basis_terms


@pytest.mark.parametrize("weight_bits", [2, 3])
@pytest.mark.parametrize("activation_bits", [1, 2, 3])
def test_learned_bases_are_packed_and_exact(weight_bits, activation_bits):
    net = LearnedBases(weight_bits, activation_bits).eval()
    x = torch.randn(2, 20, 6, 6, generator=torch.Generator().manual_seed(1))
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model, check_inputs=[x.numpy()], verify=weight_bits == activation_bits == 2)
    golden = model.run(x.numpy())[0]
    np.testing.assert_array_equal(bundle.run(x.numpy())[0], golden)
    np.testing.assert_allclose(golden, net(x).detach().numpy(), rtol=1e-4, atol=1e-3)
    rows = bundle.layers("host")
    assert [(row["weight_bits"], row["activation_bits"]) for row in rows] == [(weight_bits, activation_bits)] * 3
    assert all(row["kernel"].startswith(("bitserial", "int8")) for row in rows)


def test_learned_bases_under_emulation():
    net = LearnedBases(2, 2).eval()
    x = torch.randn(1, 20, 6, 6, generator=torch.Generator().manual_seed(1))
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model, "raspberry-pi-4", check_inputs=[x.numpy()])
    np.testing.assert_array_equal(bundle.run_emulated("raspberry-pi-4", x.numpy())[0], model.run(x.numpy())[0])


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize(
    "weight, bits", [(signs_of_a_basis, 2), (sums_with_an_offset, 3), (codebooks, 5), (one_codebook, 16)]
)
@pytest.mark.parametrize("quantize", [Sign(), Shifted(2)], ids=["sign", "shifted"])
def test_offsets_of_activations_and_weights_are_exact_at_borders(quantize, weight, bits):
    net = Layers(quantize, weight).eval()
    x = torch.randn(2, 20, 9, 7, generator=torch.Generator().manual_seed(1))
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model, check_inputs=[x.numpy()], verify=weight is codebooks)
    golden = model.run(x.numpy())
    for actual, one, expected in zip(bundle.run(x.numpy()), golden, net(x), strict=True):
        np.testing.assert_array_equal(actual, one)
        np.testing.assert_allclose(one, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    rows = bundle.layers("host")
    assert [row["weight_bits"] for row in rows] == [bits] * 6
    assert all(row["kernel"].startswith(("bitserial", "int8")) for row in rows)


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
