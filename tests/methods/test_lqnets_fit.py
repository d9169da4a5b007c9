"""LQ-Nets fitted to trained networks: levels, what they lose, compiling, interruption."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

import tvmq
from tvmq.methods.activations import ActivationRange
from tvmq.methods.level_quantizer import LevelQuantizer, fit_learned_quantizer
from tvmq.methods.weight_fits import fit_weight
from tvmq.nn.lqnets import LearnedWeight
from tvmq.nn.qem import code_table, sorted_levels

from .networks import Mlp, Recurrent, Shared, make
from .test_gpfq_network import weights_of

ALL = {"first_layer": "quantized", "last_layer": "quantized"}


def histogram(x: np.ndarray) -> ActivationRange:
    values = ActivationRange()
    values.add_range(x)
    values.add_counts(x)
    return values


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_those_of_training(bits):
    """The module that trains, given the fitted basis, quantizes the weight to the same levels."""
    weight = np.random.default_rng(bits).standard_normal((6, 5, 3, 3)).astype(np.float32)
    fitted = fit_weight(weight, tvmq.LQNets(weights=bits))
    module = LearnedWeight(bits, torch.from_numpy(weight)).eval()
    basis = torch.from_numpy(fitted.basis)
    levels, _ = sorted_levels(basis, code_table(bits, True, basis))
    module.levels = levels.float()
    module.thresholds = ((levels[:, 1:] + levels[:, :-1]) / 2).float()
    np.testing.assert_allclose(fitted.weight, module(torch.from_numpy(weight)).numpy(), rtol=1e-6)
    assert all(len(np.unique(channel)) <= 2**bits for channel in fitted.weight)


def test_levels_leave_less_than_training_would_after_as_many_steps():
    weight = np.random.default_rng(0).standard_normal((8, 200)).astype(np.float32)
    for bits in (2, 3):
        module = LearnedWeight(bits, torch.from_numpy(weight)).train()
        for _ in range(50):
            trained = module(torch.from_numpy(weight)).numpy()
        fitted = fit_weight(weight, tvmq.LQNets(weights=bits)).weight
        assert np.linalg.norm(weight - fitted) <= np.linalg.norm(weight - trained)


def test_inputs_that_are_never_negative_keep_zero():
    x = np.maximum(np.random.default_rng(0).standard_normal(20000).astype(np.float32), 0)
    for bits in (1, 2, 3, 4):
        quantizer = fit_learned_quantizer(histogram(x), bits)
        assert quantizer.levels[0] == 0.0 and len(quantizer.levels) == 2**bits
        error = np.square(quantizer(x) - x).sum()
        equispaced = min(
            np.square(np.clip(np.rint(x / step), 0, 2**bits - 1) * step - x).sum() for step in np.linspace(0.05, 3, 200)
        )
        assert error <= 1.001 * equispaced


def test_inputs_of_both_signs_have_symmetric_levels():
    x = np.random.default_rng(0).standard_normal(20000).astype(np.float32) - 0.1
    levels = np.array(fit_learned_quantizer(histogram(x), 2).levels)
    np.testing.assert_allclose(levels, -levels[::-1], rtol=1e-6)
    np.testing.assert_allclose(levels[2:], [0.453, 1.510], rtol=0.03)


def test_zero_inputs_and_weights():
    quantizer = fit_learned_quantizer(histogram(np.zeros(10, np.float32)), 2)
    np.testing.assert_array_equal(quantizer(np.zeros(3, np.float32)), 0)
    assert not fit_weight(np.zeros((2, 5), np.float32), tvmq.LQNets(weights=3)).weight.any()


@settings(max_examples=40, deadline=None)
@given(
    x=arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=32)),
    bits=st.integers(1, 4),
)
def test_a_quantizer_is_found_for_any_values(x, bits):
    quantizer = fit_learned_quantizer(histogram(x), bits)
    assert np.isfinite(quantizer(x)).all()
    assert np.square(quantizer(x) - x).sum() <= 1.001 * np.square(x).sum() + 0.01


@pytest.mark.parametrize(
    ("thresholds", "levels", "message"),
    [
        ((0.0,), (1.0, 1.0), "levels must ascend"),
        ((0.0, 0.0), (0.0, 1.0, 2.0), "thresholds must ascend"),
        ((0.0,), (0.0, float("inf")), "levels must ascend"),
        ((), (1.0,), "1 levels do not go with 0 thresholds"),
        ((0.5,), (0.0, 1.0, 2.0), "3 levels do not go with 1 thresholds"),
    ],
)
def test_what_is_no_staircase_is_refused(thresholds, levels, message):
    with pytest.raises(tvmq.InputError, match=message):
        LevelQuantizer(2, thresholds, levels)


class Pair(nn.Module):
    """Padded convolutions of values of both signs and of a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.signed, self.unsigned = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 6, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unsigned(torch.relu(self.signed(x)))


def test_quantized_networks_compile_to_packed_kernels():
    torch.manual_seed(0)
    data = torch.randn(16, 3, 7, 6)
    model = tvmq.load(Pair().eval(), (data[:4],))
    quantized = tvmq.quantize(model, tvmq.LQNets(weights=2, activations=2, **ALL), data.numpy(), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = tvmq.compile(quantized, "host", check_inputs=[data[:4].numpy()])
    np.testing.assert_array_equal(quantized.run(data[:4].numpy())[0], bundle.run(data[:4].numpy())[0])
    assert [row["activation_levels"][0] < 0 for row in quantized.quantization] == [True, False]
    for row in bundle.layers("host"):
        assert row["kernel"].startswith(("bitserial", "int8")), row
        assert (row["weight_bits"], row["activation_bits"]) == (2, 2)


def test_more_bits_lose_less_and_other_layers_stay():
    network, model, data = make(Mlp, samples=256)
    expected = model.run(data)[0]
    lost = []
    for weights, activations in ((1, 1), (2, 2), (4, None)):
        quantized = tvmq.quantize(model, tvmq.LQNets(weights=weights, activations=activations, **ALL), data)
        lost.append(np.linalg.norm(quantized.run(data)[0] - expected) / np.linalg.norm(expected))
        assert [row["activations"] for row in quantized.quantization] == [activations] * 3
    assert lost == sorted(lost, reverse=True) and lost[-1] < 0.1
    default = tvmq.quantize(model, tvmq.LQNets(), data)
    assert [row["layer"] for row in default.quantization] == ["fc2"]
    np.testing.assert_array_equal(weights_of(default)["fc1"], network.fc1.weight.detach().numpy())
    as_bytes = tvmq.quantize(model, tvmq.LQNets(first_layer="input8"), data)
    assert [row["activations"] for row in as_bytes.quantization] == [8, 2]


def test_the_correction_is_the_mean_error():
    network, model, data = make(Mlp, samples=256)
    quantized = tvmq.quantize(model, tvmq.LQNets(weights=1, activations=None, first_layer="quantized"), data)
    (row,) = (row for row in quantized.quantization if row["layer"] == "fc1")
    weight = weights_of(quantized)["fc1"]
    exact = network.fc1.weight.detach().numpy()
    error = data.astype(np.float64) @ (exact - weight).T.astype(np.float64)
    output = np.linalg.norm(data.astype(np.float64) @ exact.T)
    assert row["uncorrected_relative_error"] == pytest.approx(np.linalg.norm(error) / output, rel=1e-5)
    assert row["relative_error"] == pytest.approx(np.linalg.norm(error - error.mean(0)) / output, rel=1e-5)
    assert row["weight_error"] == pytest.approx(np.linalg.norm(exact - weight) / np.linalg.norm(exact), rel=1e-5)
    (correction,) = (
        binding.value.args[1].value.numpy()
        for block in quantized.module["main"].body.blocks
        for binding in block.bindings
        if binding.var.name == "fc1_correction"
    )
    np.testing.assert_allclose(correction.reshape(-1), error.mean(0), atol=1e-5)


@pytest.mark.parametrize("kind", [Shared, Recurrent])
def test_shared_weights_and_batches(kind):
    _, model, data = make(kind, samples=24)
    config = tvmq.LQNets(weights=2, activations=2, **ALL)
    one = tvmq.quantize(model, config, data)
    other = tvmq.quantize(model, config, data, batch_size=8, memory=0)
    for name, weight in weights_of(one).items():
        np.testing.assert_array_equal(weights_of(other)[name], weight)
    for row, again in zip(one.quantization, other.quantization, strict=True):
        assert row["relative_error"] == pytest.approx(again["relative_error"], rel=1e-3)


def test_an_interrupted_run_resumes(tmp_path):
    _, model, data = make(Mlp)
    config = tvmq.LQNets(weights=2, activations=2, **ALL)
    whole = tvmq.quantize(model, config, data)
    moments = []

    def interrupt(moment) -> None:
        assert 0 <= moment.fraction <= 1 and moment.seconds_left >= 0
        moments.append(moment.layer)
        if moment.layer == "fc3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tvmq.quantize(model, config, data, checkpoint=tmp_path / "partial", progress=interrupt)
    assert len(list((tmp_path / "partial").glob("layer-*.npz"))) == 2
    resumed = tvmq.quantize(model, config, data, checkpoint=tmp_path / "partial")
    np.testing.assert_array_equal(whole.run(data[:4])[0], resumed.run(data[:4])[0])
    for row, again in zip(whole.quantization, resumed.quantization, strict=True):
        assert {**row, "seconds": 0} == {**again, "seconds": 0}
    with pytest.raises(tvmq.InputError, match=r"another config.*delete the folder"):
        tvmq.quantize(model, tvmq.LQNets(weights=3, **ALL), data, checkpoint=tmp_path / "partial")
    with pytest.raises(tvmq.InputError, match=r"another config"):
        tvmq.quantize(model, tvmq.QNN(), data, checkpoint=tmp_path / "partial")


def test_bad_input():
    _, model, data = make(Mlp)
    for config, calibration, message in (
        (tvmq.LQNets(skip=("fc9",)), data, "skip pattern 'fc9' matches no layer"),
        (tvmq.LQNets(skip=("fc2",)), data, "nothing to quantize"),
        (tvmq.LQNets(), data[:0], "no samples|empty"),
        (tvmq.LQNets(), np.full((4, 20), np.nan, np.float32), "NaN"),
    ):
        with pytest.raises(tvmq.InputError, match=message):
            tvmq.quantize(model, config, calibration)
