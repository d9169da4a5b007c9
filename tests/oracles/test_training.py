"""Steps of training against vectors from the papers' own code: LQ-Nets' learned bases, shift-based norm and AdaMax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tvmq.nn import ShiftAdaMax, ShiftBatchNorm1d, qem
from tvmq.nn.lqnets import LearnedActivation, LearnedWeight

from .test_bits import cases, load

DTYPES = [torch.float64, torch.float32]


def as_weight(hwio: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(hwio.transpose(3, 2, 0, 1), dtype=dtype)


def close(actual: torch.Tensor, expected: np.ndarray, relative: float) -> None:
    """Bases ``[K, rows]``, relative to the largest element of each."""
    largest = np.abs(expected).max(axis=0)
    np.testing.assert_allclose(actual.double().numpy() / largest, expected / largest, rtol=0, atol=relative)


def level_numbers(values: torch.Tensor, levels: torch.Tensor) -> np.ndarray:
    """Which level each value is; ``values`` ``[rows, n]``, ``levels`` ``[rows, L]``."""
    distance = (values[:, :, None].double() - levels[:, None, :].double()).abs()
    return distance.argmin(2).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases("lq_w_*"))
def test_bases_of_weights_over_ten_steps(name, dtype):
    arrays, meaning = load(name)
    feeds = arrays["feeds"]
    first = as_weight(feeds[0], dtype)
    quantizer = LearnedWeight(meaning["nbit"], first)
    close(quantizer.basis.T, arrays["basis_ref"][0], 1e-6)
    for step in range(meaning["steps"]):
        weight = as_weight(feeds[step % len(feeds)], dtype).requires_grad_()
        levels = quantizer.levels.clone()
        quantized = quantizer(weight)
        expected = as_weight(arrays["y_ref"][step], dtype)
        flips = level_numbers(quantized.detach().flatten(1), levels) != level_numbers(expected.flatten(1), levels)
        assert flips.sum() == 0
        # A level is a sum of as many elements of the basis as there are bits.
        close(quantized.detach().flatten(1).T, expected.flatten(1).T.numpy(), meaning["nbit"] * 1e-6)
        close(quantizer.basis.T, arrays["basis_ref"][step + 1], 1e-6)
        if dtype == torch.float64:
            close(quantizer.basis.T, arrays["basis_own64"][step + 1], 1e-12)
    gradient = as_weight(arrays["grad_in"], dtype)
    quantized.backward(gradient)
    np.testing.assert_array_equal(weight.grad.numpy(), as_weight(arrays["grad_x_ref"], dtype).numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases("lq_a_*"))
def test_bases_of_activations_over_ten_steps(name, dtype):
    arrays, meaning = load(name)
    feeds = arrays["feeds"]
    quantizer = LearnedActivation(meaning["nbit"]).to(dtype)
    close(quantizer.basis.T, arrays["basis_ref"][0], 1e-6)
    for step in range(meaning["steps"]):
        x = torch.tensor(feeds[step % len(feeds)], dtype=dtype).requires_grad_()
        levels = quantizer.levels.clone()
        quantized = quantizer(x)
        expected = torch.tensor(arrays["y_ref"][step], dtype=dtype)
        flips = level_numbers(quantized.detach().reshape(1, -1), levels) != level_numbers(
            expected.reshape(1, -1), levels
        )
        assert flips.sum() == 0
        close(quantizer.basis.T, arrays["basis_ref"][step + 1], 1e-6)
        if step == 0:
            quantized.backward(torch.tensor(arrays["grad_in"], dtype=dtype))
            np.testing.assert_array_equal(x.grad.numpy(), arrays["grad_x_ref"])


@pytest.mark.parametrize("name", cases("lq_w_*"))
def test_the_moving_average_is_not_the_plain_one(name):
    arrays, meaning = load(name)
    quantizer = LearnedWeight(meaning["nbit"], as_weight(arrays["feeds"][0], torch.float64))
    quantizer(as_weight(arrays["feeds"][0], torch.float64))
    assert np.abs(quantizer.basis.T.numpy() / arrays["basis_plainEMA64"][1] - 1).max() > 0.01


@pytest.mark.parametrize("name", cases("lq_w_*_fixed"))
def test_errors_of_ten_iterations(name):
    arrays, meaning = load(name)
    weight = as_weight(arrays["feeds"][0], torch.float64).flatten(1)
    basis = LearnedWeight(meaning["nbit"], as_weight(arrays["feeds"][0], torch.float64)).basis
    codes = qem.code_table(meaning["nbit"], True, basis)
    for error in arrays["qem_relerr"]:
        levels, order = qem.sorted_levels(basis, codes)
        thresholds = qem.thresholds_between(levels)
        counts, sums = qem.level_statistics(weight, thresholds)
        quantized = qem.nearest_levels(weight, thresholds, levels)
        actual = ((weight - quantized) ** 2).sum() / (weight**2).sum()
        assert min(abs(actual / error - 1), abs(actual.sqrt() / error - 1)) < 1e-4
        basis = qem.fitted_basis(counts, sums, codes[order], basis, qem.WEIGHT_RIDGE)
    close(basis.T, arrays["qem_basis_10iters"], 1e-6)


def test_shift_based_batch_norm_and_its_gradients():
    arrays, _ = load("shift_bn")
    norm = ShiftBatchNorm1d(10).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(arrays["gamma"]))
        norm.bias.copy_(torch.tensor(arrays["beta"]))
    x = torch.tensor(arrays["x"], requires_grad=True)
    y = norm(x)
    y.backward(torch.tensor(arrays["grad_out"]))
    np.testing.assert_allclose(y.detach().numpy(), arrays["out"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(x.grad.numpy(), arrays["grad_in"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(norm.weight.grad.numpy(), arrays["grad_gamma"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(norm.bias.grad.numpy(), arrays["grad_beta"], rtol=0, atol=1e-13)
    inverse = norm.running_inverse.numpy()
    np.testing.assert_array_equal(np.exp2(np.round(np.log2((inverse - 0.875) * 8))), arrays["inv_std_ap2"])


def test_shift_based_adamax():
    arrays, meaning = load("shift_adamax")
    parameter = torch.nn.Parameter(torch.tensor(arrays["params"][0]))
    optimizer = ShiftAdaMax([parameter], lr=meaning["lr"], betas=(meaning["beta1"], meaning["beta2"]))
    for gradient, expected in zip(arrays["grads"], arrays["params"][1:], strict=True):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        with torch.no_grad():
            parameter.clamp_(-1, 1)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-15, atol=0)
