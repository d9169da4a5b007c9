"""GPFQ against what the public reference implementations computed.

Two sources.  The authors' first code (``gpfq_dense_*``, ``gpfq_conv*``): every case has the output of that code
(``Q_ref``) and that of the argmin in the paper (``Q_paper``), which differ where the code takes a shortcut.  The code
of the follow-up paper (``gpfq_torch_*``): alphabets of ``2 K + 1`` letters, with and without thresholding, and one
walk per filter of a convolution.  The ``.json`` beside each case says what its arrays mean.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmq.methods.alphabets import (
    Alphabet,
    equispaced_alphabet,
    hard_threshold_alphabet,
    median_radius,
    quantile_radius,
    soft_threshold_alphabet,
)
from tvmq.methods.gpfq import GramAccumulator, QuantizedWeights, quantize_weights, scalar_quantize, walk

DATA = Path(__file__).parent / "data"
FOUR_DIGITS = 5e-5


def names(pattern: str) -> list[str]:
    return sorted(path.stem for path in DATA.glob(f"{pattern}.npz"))


def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays), json.loads((DATA / f"{name}.json").read_text())


def test_every_case_is_here():
    assert [len(names(p)) for p in ("gpfq_dense_*", "gpfq_conv*", "gpfq_torch_*")] == [13, 4, 11]


def streamed(weight, inputs, quantized_inputs, *, alphabet, **options) -> QuantizedWeights:
    """Batches of different sizes, one of a single row, divided among two accumulators."""
    first, second = GramAccumulator(len(weight)), GramAccumulator(len(weight))
    bounds = [0, 1, len(inputs) // 3, len(inputs)]
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        (first, second)[i % 2].add(inputs[start:stop], quantized_inputs[start:stop])
    second += first
    return walk(weight, second, alphabet=alphabet, block=7, **options)


def in_memory(method: str):
    def run(weight, inputs, quantized_inputs, **options) -> QuantizedWeights:
        return quantize_weights(weight, inputs, quantized_inputs, method=method, **options)

    return run


FORMS = {"gram": in_memory("gram"), "residual": in_memory("residual"), "streamed": streamed}


@pytest.fixture(params=list(FORMS))
def quantize(request):
    return FORMS[request.param]


def check_same(result: QuantizedWeights, expected: np.ndarray, alphabet: Alphabet | np.ndarray) -> None:
    """The same letters; where the reference left the alphabet (value 0 of a dead input), any letter will do."""
    letters = Alphabet.of(alphabet).levels
    distance = np.abs(expected[..., None] - letters)
    known = distance.min(axis=-1) <= 1e-6 * np.ptp(letters)
    assert known[~result.dead_inputs].all()
    np.testing.assert_array_equal(result.codes[known], distance.argmin(axis=-1)[known])
    np.testing.assert_array_equal(result.weights, letters[result.codes])


def relative(error: np.ndarray, output: np.ndarray) -> float:
    return float(np.linalg.norm(error) / np.linalg.norm(output))


# The authors' code, dense layers


@pytest.mark.parametrize("name", names("gpfq_dense_*"))
def test_dense_is_the_argmin(name, quantize):
    case, facts = load(name)
    result = quantize(case["W"], case["X"], case["X_tilde"], alphabet=case["alphabet"])
    known = case["idx_paper"] >= 0
    # No case comes so close to a threshold that rounding could decide.
    assert case["margin"].min() > 1e-9 * facts["alpha"]
    np.testing.assert_array_equal(result.codes[known], case["idx_paper"][known])
    assert known[~result.dead_inputs].all()
    assert result.relative_error == pytest.approx(facts["rel_err_paper"], rel=FOUR_DIGITS)


@pytest.mark.parametrize("name", names("gpfq_dense_*"))
def test_dense_is_the_authors_code_on_request(name, quantize):
    case, facts = load(name)
    result = quantize(case["W"], case["X"], case["X_tilde"], alphabet=case["alphabet"], compat="original")
    known = case["idx_ref"] >= 0
    np.testing.assert_array_equal(result.codes[known], case["idx_ref"][known])
    assert result.relative_error == pytest.approx(facts["rel_err_ref"], rel=FOUR_DIGITS)
    differing = known & (case["idx_paper"] >= 0) & (case["idx_ref"] != case["idx_paper"])
    assert differing.sum() == facts["paper_vs_ref_mismatch"]


@pytest.mark.parametrize("name", names("gpfq_dense_*"))
def test_dense_errors_are_those_of_the_last_state(name, quantize):
    case, _ = load(name)
    result = quantize(case["W"], case["X"], case["X_tilde"], alphabet=case["alphabet"])
    output = case["X"].astype(np.float64) @ case["W"].astype(np.float64)
    state = case["U_paper_final"]
    expected = np.linalg.norm(state, axis=0) / np.linalg.norm(output, axis=0)
    np.testing.assert_allclose(result.relative_errors, expected, rtol=1e-9)
    np.testing.assert_allclose(result.mean_error, state.mean(axis=0), atol=1e-12 * np.abs(state).max())


@pytest.mark.parametrize("name", names("gpfq_dense_*"))
def test_dense_alphabet_and_scalar_quantization(name):
    case, facts = load(name)
    radius = median_radius(case["W"], facts["C_alpha"])
    assert radius == pytest.approx(facts["alpha"], rel=1e-6)
    np.testing.assert_allclose(equispaced_alphabet(facts["M"], radius), case["alphabet"], rtol=1e-6)
    weights, codes = scalar_quantize(case["W"], case["alphabet"])
    np.testing.assert_array_equal(weights, case["Q_msq"])
    np.testing.assert_array_equal(case["alphabet"][codes], case["Q_msq"])


# Convolutions


def patches(images: np.ndarray, kernel, stride, padding, dilation=1) -> np.ndarray:
    """(N, C, H, W) to (N * OH * OW, C * kh * kw); ``padding`` is ((top, bottom), (left, right))."""
    padded = np.pad(images, ((0, 0), (0, 0), *padding))
    reach = tuple((k - 1) * dilation + 1 for k in kernel)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], ::dilation, ::dilation]
    images_, channels, height, width = windows.shape[:4]
    columns = windows.transpose(0, 2, 3, 1, 4, 5)
    return columns.reshape(images_ * height * width, channels * kernel[0] * kernel[1])


def same_padding(sizes, kernel, stride) -> list[tuple[int, int]]:
    """What TensorFlow calls SAME: the odd row is padded at the bottom."""
    total = [max((-(-size // s) - 1) * s + k - size, 0) for size, k, s in zip(sizes, kernel, stride, strict=True)]
    return [(t // 2, t - t // 2) for t in total]


def original_convolution(name: str):
    case, facts = load(name)
    kernel, stride = facts["kernel_HWIO"][:2], facts["strides"]
    padding = [(0, 0), (0, 0)]
    if facts["padding"] == "SAME":
        padding = same_padding(facts["input_NHWC"][1:3], kernel, stride)
    analog, quantized = (
        patches(case[key].transpose(0, 3, 1, 2), kernel, stride, padding) for key in ("A_NHWC", "A_tilde_NHWC")
    )
    assert len(analog) == facts["patches"]
    return case, facts, analog, quantized


def columns_of_hwio(kernel: np.ndarray) -> np.ndarray:
    """(kh, kw, C, O) to (C * kh * kw, O)."""
    return kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[3])


@pytest.mark.parametrize("name", names("gpfq_conv*"))
def test_convolution_with_one_walk_per_filter(name, quantize):
    case, facts, analog, quantized = original_convolution(name)
    result = quantize(columns_of_hwio(case["W_HWIO"]), analog, quantized, alphabet=case["alphabet"])
    check_same(result, columns_of_hwio(case["Q_paper_fullwalk"]), case["alphabet"])
    assert result.relative_error == pytest.approx(facts["rel_err_full_walk"], rel=FOUR_DIGITS)


@pytest.mark.parametrize(("compat", "key"), [(None, "Q_paper_perchannel"), ("original", "Q_ref_perchannel")])
@pytest.mark.parametrize("name", names("gpfq_conv*"))
def test_convolution_with_one_walk_per_channel(name, compat, key, quantize):
    case, facts, analog, quantized = original_convolution(name)
    taps = int(np.prod(facts["kernel_HWIO"][:2]))
    weight = columns_of_hwio(case["W_HWIO"])
    result = quantize(weight, analog, quantized, alphabet=case["alphabet"], compat=compat, walk_length=taps)
    check_same(result, columns_of_hwio(case[key]), case["alphabet"])
    if compat == "original":
        assert result.relative_error == pytest.approx(facts["rel_err_ref_perchannel"], rel=FOUR_DIGITS)


@pytest.mark.parametrize("name", names("gpfq_conv*"))
def test_walk_per_channel_is_one_accumulator_per_channel(name):
    case, facts, analog, quantized = original_convolution(name)
    taps = int(np.prod(facts["kernel_HWIO"][:2]))
    weight = columns_of_hwio(case["W_HWIO"])
    for start in range(0, len(weight), taps):
        channel = slice(start, start + taps)
        gram = GramAccumulator(taps)
        gram.add(analog[:, channel], quantized[:, channel])
        result = walk(weight[channel], gram, alphabet=case["alphabet"])
        check_same(result, columns_of_hwio(case["Q_paper_perchannel"])[channel], case["alphabet"])


@pytest.mark.parametrize("name", names("gpfq_conv*"))
def test_convolution_scalar_quantization(name):
    case, facts, analog, quantized = original_convolution(name)
    weight = columns_of_hwio(case["W_HWIO"])
    weights, _ = scalar_quantize(weight, case["alphabet"])
    np.testing.assert_array_equal(weights, columns_of_hwio(case["Q_msq"]))
    output = analog.astype(np.float64) @ weight
    assert relative(output - quantized @ weights, output) == pytest.approx(facts["rel_err_msq"], rel=FOUR_DIGITS)


# The code of the follow-up paper


def followup_alphabet(facts: dict[str, Any], step: float, positive: int) -> Alphabet | np.ndarray:
    if facts.get("reg") == "L0":
        # The same radius: the first positive letter is the cutoff, and the others share what is left.
        return hard_threshold_alphabet(positive + 1, step - facts["lamb"] / positive, facts["lamb"])
    levels = step * np.arange(-positive, positive + 1)
    return soft_threshold_alphabet(levels, facts["lamb"]) if facts.get("reg") == "L1" else levels


@pytest.mark.parametrize("name", names("gpfq_torch_b*"))
def test_followup_dense(name, quantize):
    case, facts = load(name)
    positive = int(case["K"])
    alphabet = followup_alphabet(facts, float(case["step"]), positive)
    if facts["reg"] is None:
        assert len(alphabet) == facts["levels"]
    result = quantize(case["W_rows"].T, case["X"], case["X_tilde"], alphabet=alphabet)
    check_same(result, case["Q_ref_rows"].T, alphabet)
    assert result.relative_error == pytest.approx(facts["rel"], rel=FOUR_DIGITS)


@pytest.mark.parametrize("name", names("gpfq_torch_b*"))
def test_followup_radius(name):
    case, facts = load(name)
    radius = quantile_radius(case["W_rows"].T, facts["scalar"], facts["percentile"])
    assert radius / int(case["K"]) == pytest.approx(float(case["step"]), rel=1e-6)


@pytest.mark.parametrize("name", names("gpfq_torch_conv*"))
def test_followup_convolution(name, quantize):
    case, facts = load(name)
    kernel, stride = (facts["kernel"],) * 2, (facts["stride"],) * 2
    padding, groups = ((facts["padding"],) * 2,) * 2, facts["groups"]
    weight = case["weight_OIHW"]
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    alphabet = followup_alphabet(facts, float(case["step"]), int(case["K"]))
    error = output = 0.0
    for group in range(groups):
        filters = slice(group * outputs, (group + 1) * outputs)
        channels = slice(group * inputs, (group + 1) * inputs)
        analog, quantized = (
            patches(case[key][:, channels], kernel, stride, padding, facts["dilation"])
            for key in ("A_NCHW", "A_tilde_NCHW")
        )
        columns = weight[filters].reshape(outputs, -1).T
        result = quantize(columns, analog, quantized, alphabet=alphabet)
        check_same(result, case["Q_OIHW"][filters].reshape(outputs, -1).T, alphabet)
        squares = np.sum((analog.astype(np.float64) @ columns) ** 2, axis=0)
        error += float((result.relative_errors**2) @ squares)
        output += float(squares.sum())
        # The patches are those of the real convolution.
        expected = case["conv_quant"][:, filters].transpose(0, 2, 3, 1).reshape(-1, outputs)
        np.testing.assert_allclose(quantized @ result.weights, expected, atol=1e-5)
    assert np.sqrt(error / output) == pytest.approx(facts["rel"], rel=FOUR_DIGITS)
