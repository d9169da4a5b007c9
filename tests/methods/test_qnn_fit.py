"""QNN's fixed levels fitted to trained networks: scales, powers of two, what they lose, compiling."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import tvmq
from tvmq.methods.level_quantizer import fit_power_quantizer
from tvmq.methods.weight_fits import fit_weight
from tvmq.nn.estimators import linear, powers_of_two
from tvmq.report import QuantizationReport

from .networks import Convolutions, Mlp, make
from .test_lqnets_fit import histogram


def random_weight(seed: int = 0, outputs: int = 6, inputs: int = 150) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((outputs, inputs)) * random.uniform(0.01, 3, (outputs, 1))).astype(np.float32)


def test_one_bit_has_the_mean_magnitude():
    weight = random_weight()
    weight[0, 0] = 0
    fitted = fit_weight(weight, tvmq.QNN())
    np.testing.assert_allclose(np.abs(fitted.weight), np.tile(np.abs(weight).mean(1)[:, None], weight.shape[1]), 1e-6)
    np.testing.assert_array_equal(np.sign(fitted.weight), np.where(weight >= 0, 1, -1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_equispaced_levels_are_those_of_training(bits):
    weight = random_weight(bits)
    fitted = fit_weight(weight, tvmq.QNN(weights=bits))
    ranges = torch.from_numpy(np.diff(fitted.levels, axis=1).mean(1, keepdims=True)) * 2 ** (bits - 1)
    expected = linear(torch.from_numpy(weight) / ranges, bits, signed=True) * ranges
    np.testing.assert_allclose(fitted.weight, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_other_step_is_much_better(bits):
    weight = random_weight(bits)
    fitted = fit_weight(weight, tvmq.QNN(weights=bits))
    steps = np.diff(fitted.levels, axis=1).mean(1, keepdims=True)
    error = np.square(fitted.weight - weight).sum(1)
    for share in np.linspace(0.3, 3, 200):
        codes = np.clip(np.rint(weight / (share * steps)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert (error <= 1.01 * np.square(codes * share * steps - weight).sum(1)).all()


@pytest.mark.parametrize(("weights", "bits"), [("ternary", 2), (2, 2), (3, 3), (4, 4)])
def test_powers_of_two_are_those_of_training_with_the_best_range(weights, bits):
    weight = random_weight(bits)
    fitted = fit_weight(weight, tvmq.QNN(weights=weights, rounding="log"))
    largest = np.abs(fitted.levels).max(1, keepdims=True)
    np.testing.assert_array_equal(np.log2(largest) % 1, 0)
    for factor in (0.25, 0.5, 1, 2, 4):
        ranges = torch.from_numpy(largest * np.float32(factor))
        tried = (powers_of_two(torch.from_numpy(weight) / ranges, bits, signed=True) * ranges).numpy()
        if factor == 1:
            np.testing.assert_array_equal(fitted.weight, tried)
        assert (np.square(fitted.weight - weight).sum(1) <= np.square(tried - weight).sum(1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_activations_on_powers_of_two(bits, signed):
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    x = x if signed else np.maximum(x, 0)
    quantizer = fit_power_quantizer(histogram(x), bits)
    largest = quantizer.levels[-1]
    assert np.log2(largest) % 1 == 0
    expected = powers_of_two(torch.from_numpy(x / largest), bits, signed) * largest
    np.testing.assert_array_equal(quantizer(x), expected.numpy())


def test_weights_of_zero_stay_zero():
    for config in (tvmq.QNN(), tvmq.QNN(weights=3), tvmq.QNN(weights="ternary")):
        assert not fit_weight(np.zeros((3, 7), np.float32), config).weight.any()


CONFIGURATIONS = [
    (tvmq.QNN(first_layer="quantized"), 1, 1),
    (tvmq.QNN(weights="ternary", activations=2, rounding="log"), 2, 3),
]


@pytest.mark.parametrize(("config", "weights", "activations"), CONFIGURATIONS, ids=["binary", "log"])
def test_quantized_networks_compile_to_packed_kernels(config, weights, activations):
    _, model, data = make(Mlp)
    quantized = tvmq.quantize(model, config, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = tvmq.compile(quantized, "host", check_inputs=[data[:4]])
    np.testing.assert_array_equal(quantized.run(data[:4])[0], bundle.run(data[:4])[0])
    rows = {row["name"]: row for row in bundle.layers("host")}
    for name in ("fc1", "fc2", "fc3"):
        assert rows[name]["kernel"].startswith(("bitserial", "int8")), rows[name]
        planes = 8 if name == "fc1" and config.first_layer == "input8" else activations
        assert (rows[name]["weight_bits"], rows[name]["activation_bits"]) == (weights, planes)


def test_learned_levels_lose_less_than_fixed_and_these_less_than_naive_ones():
    weights = 2
    _, model, data = make(Convolutions, samples=16)
    options = {"weights": weights, "activations": None, "first_layer": "quantized", "last_layer": "quantized"}
    errors = []
    for config in (tvmq.LQNets(**options), tvmq.QNN(**options)):
        rows = tvmq.quantize(model, config, data).quantization
        errors.append(np.array([row["weight_error"] for row in rows]))
        assert all(row["relative_error"] <= row["uncorrected_relative_error"] for row in rows)
    naive = []
    for row, site in zip(rows, tvmq.methods.linear_layers.shared_weights(model), strict=True):
        assert row["layer"] == site.name
        step = np.abs(site.weight).max() / (2 ** (weights - 1) - 1)
        rounded = np.clip(np.rint(site.weight / step), -(2 ** (weights - 1)), 2 ** (weights - 1) - 1) * step
        naive.append(np.linalg.norm(rounded - site.weight) / np.linalg.norm(site.weight))
    assert (errors[0] < errors[1]).all() and (errors[1] < naive).all()


def test_the_report_and_a_round_trip():
    _, model, data = make(Mlp)
    config = tvmq.QNN(weights=3, activations=2, rounding="log", gradients=4, stochastic=True, signed=False)
    quantized = tvmq.quantize(model, config, data)
    assert [row["activations"] for row in quantized.quantization] == [8, 2, 2]
    first, second = quantized.quantization[:2]
    assert first["activation_step"] > 0 and "activation_levels" not in first
    assert second["activation_step"] is None and len(second["activation_levels"]) == 4
    assert (second["method"], second["weights"], second["levels"]) == ("QNN", "3 bits", 7)
    text = str(QuantizationReport(quantized.quantization, "net"))
    assert "3 bits" in text and "8 bits" in text and "rounding each weight alone" not in text
    again = tvmq.Model.from_json(quantized.to_json())
    assert [dict(row) for row in again.quantization] == [dict(row) for row in quantized.quantization]
    np.testing.assert_array_equal(again.run(data[:4])[0], quantized.run(data[:4])[0])


def test_signs_follow_the_data():
    _, model, data = make(Mlp)
    rows = tvmq.quantize(model, tvmq.QNN(activations=1, first_layer="quantized"), data).quantization
    assert [row["activations"] for row in rows] == [1, 1, 1]
    signed, unsigned = (
        tvmq.quantize(model, tvmq.QNN(weights=2, activations=2, signed=signed), data) for signed in (True, False)
    )
    np.testing.assert_array_equal(signed.run(data)[0], unsigned.run(data)[0])


@pytest.mark.filterwarnings("ignore:layer 'fc2'")
def test_a_zero_layer_is_warned_about():
    network, _, data = make(Mlp)
    with torch.no_grad():
        network.fc2.weight.zero_()
    model = tvmq.load(network, torch.from_numpy(data[:4]))
    with pytest.warns(UserWarning, match="layer 'fc2': all weights are zero"):
        quantized = tvmq.quantize(model, tvmq.QNN(weights=2, activations=2), data[:32], batch_size=4)
    assert np.isfinite(quantized.run(data[:4])[0]).all()
