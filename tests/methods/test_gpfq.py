"""Properties of GPFQ and of its alphabets that need no reference data."""

from __future__ import annotations

import inspect
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tvmq.errors import InputError
from tvmq.methods.alphabets import (
    Alphabet,
    equispaced_alphabet,
    hard_threshold_alphabet,
    median_radius,
    quantile_radius,
    soft_threshold_alphabet,
)
from tvmq.methods.gpfq import GramAccumulator, quantize_weights, scalar_quantize, walk

TERNARY = np.array([-1.0, 0.0, 1.0])
METHODS = ("gram", "residual")
SAFE_MARGIN = 1e-7


def literal_walk(weight, analog, quantized, letters):
    """The recursion as it is printed, a neuron and a weight at a time; also how near a threshold it ever came."""
    quantized_weight, margin = np.zeros(weight.shape), np.inf
    for neuron, column in enumerate(weight.T):
        letters_here = letters[neuron] if letters.ndim == 2 else letters
        u = np.zeros(len(analog))
        for t, w in enumerate(column):
            candidates = u + w * analog[:, t] - np.outer(letters_here, quantized[:, t])
            norms = np.linalg.norm(candidates, axis=1)
            best = int(np.argmin(norms)) if quantized[:, t].any() else int(np.argmin(np.abs(letters_here)))
            if quantized[:, t].any():
                z = quantized[:, t] @ (u + w * analog[:, t]) / (quantized[:, t] @ quantized[:, t])
                margin = min(margin, np.abs(z - (letters_here[1:] + letters_here[:-1]) / 2).min())
            quantized_weight[t, neuron] = letters_here[best]
            u = candidates[best]
    return quantized_weight, margin


def random_layer(seed: int, samples: int, inputs: int, neurons: int, drift: float = 0.2):
    """Weights, analog inputs after a ReLU, and the same with noise."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(-1, 1, (inputs, neurons))
    before = rng.normal(size=(samples, inputs))
    return weight, np.maximum(before, 0), np.maximum(before + drift * rng.normal(size=before.shape), 0)


layers = st.builds(
    random_layer,
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 40),
    inputs=st.integers(1, 30),
    neurons=st.integers(1, 5),
    drift=st.sampled_from([0.0, 0.2]),
)
alphabet_sizes = st.integers(2, 16)


# Alphabets


def exact_argmin(letters: np.ndarray, numbers: np.ndarray) -> list[int]:
    fractions = [Fraction(float(letter)) for letter in letters]
    distances = [[abs(fraction - Fraction(float(z))) for fraction in fractions] for z in numbers]
    return [row.index(min(row)) for row in distances]


def numbers_around(letters: np.ndarray) -> np.ndarray:
    """Letters, midpoints as doubles, the doubles beside them, and what lies far outside."""
    middle = letters[:-1] / 2 + letters[1:] / 2
    points = np.concatenate([letters, middle, [0.0, -0.0, 3 * letters[0] - 1, 3 * letters[-1] + 1, -1e300, 1e300]])
    return np.concatenate([points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf)])


floats = st.floats(-1e6, 1e6, allow_subnormal=False)


@settings(deadline=None)
@given(st.lists(floats, min_size=2, max_size=40, unique=True).map(sorted), st.lists(floats, max_size=20))
def test_nearest_letter_is_the_exact_argmin(letters, numbers):
    levels = np.array(letters)
    z = np.concatenate([numbers_around(levels), numbers])
    expected = exact_argmin(levels, z)
    alphabet = Alphabet.nearest(levels)
    np.testing.assert_array_equal(alphabet.codes(z), expected)
    np.testing.assert_array_equal(alphabet._counted(z), expected)
    np.testing.assert_array_equal(alphabet._searched(z), expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 64), st.floats(1e-6, 1e6), st.lists(floats, max_size=20), st.floats(-100, 100))
def test_nearest_letter_by_arithmetic_is_the_exact_argmin(size, radius, numbers, shift):
    levels = equispaced_alphabet(size, radius) + shift * radius
    z = np.concatenate([numbers_around(levels), numbers])
    expected = exact_argmin(levels, z)
    alphabet = Alphabet.nearest(levels)
    assert alphabet.equispaced
    np.testing.assert_array_equal(alphabet._computed(z), expected)
    np.testing.assert_array_equal(alphabet._counted(z), expected)
    np.testing.assert_array_equal(alphabet._searched(z), expected)


@pytest.mark.parametrize("size", [2, 3, 16, 33, 256])
@pytest.mark.parametrize("equispaced", [True, False])
def test_a_row_of_letters_per_neuron_is_each_neuron_alone(size, equispaced):
    rng = np.random.default_rng(size)
    levels = equispaced_alphabet(size, rng.uniform(0.5, 2, 7))
    if not equispaced:
        levels = np.sort(levels + rng.uniform(0, 0.5, levels.shape), axis=1)
    levels[3] = 0
    alphabet = Alphabet.nearest(levels)
    assert alphabet.equispaced is (equispaced or size == 2)
    z = rng.normal(size=(50, 7))
    codes = np.stack([alphabet.codes(row) for row in z])
    for neuron in range(7):
        np.testing.assert_array_equal(codes[:, neuron], Alphabet.nearest(levels[neuron]).codes(z[:, neuron]))
    np.testing.assert_array_equal(alphabet.letters(codes), levels[np.arange(7), codes])
    assert (codes[:, 3] == (size - 1) // 2).all()


def test_ties_belong_to_the_lower_letter():
    np.testing.assert_array_equal(Alphabet.nearest(TERNARY).codes(np.array([-0.5, 0.5])), [0, 1])
    np.testing.assert_array_equal(Alphabet.nearest([-1, 1]).codes(np.array([0.0, -0.0, 5e-324])), [0, 0, 1])


@given(st.floats(-3, 3), st.floats(0, 0.7))
def test_soft_thresholding_rounds_the_shrunk_number(z, shrinkage):
    levels = np.arange(-2, 3) / 2
    shrunk = np.sign(z) * max(abs(z) - shrinkage, 0)
    distances = np.sort(np.abs(levels - shrunk))
    assume(distances[1] - distances[0] > 1e-9)
    code = soft_threshold_alphabet(levels, shrinkage).codes(np.array([z]))[0]
    assert code == np.argmin(np.abs(levels - shrunk))


def test_hard_thresholding_has_a_gap_around_zero():
    alphabet = hard_threshold_alphabet(3, 0.5, 0.2)
    np.testing.assert_allclose(alphabet.levels, [-1.2, -0.7, -0.2, 0, 0.2, 0.7, 1.2])
    numbers = np.array([-9, -0.46, -0.44, -0.21, -0.19, 0.19, 0.2, 0.21, 0.44, 0.46, 9])
    np.testing.assert_array_equal(alphabet.codes(numbers), [0, 1, 2, 2, 3, 3, 3, 4, 4, 5, 6])


def test_radii():
    weight = np.array([[1.0, -8.0], [-2.0, 0.0], [6.0, 0.0]])
    assert median_radius(weight, 2) == 3.0
    np.testing.assert_array_equal(median_radius(weight, 2, per_channel=True), [4.0, 16.0])
    assert quantile_radius(weight, 2) == 14.0
    assert median_radius(np.zeros((3, 2)), 2) == 0
    assert equispaced_alphabet(4, median_radius(weight, 1, per_channel=True)).shape == (2, 4)


# The walk


@settings(deadline=None)
@given(layers, alphabet_sizes, st.sampled_from(METHODS), st.booleans())
def test_every_form_is_the_literal_recursion(layer, size, method, per_neuron):
    weight, analog, quantized = layer
    radius = median_radius(weight, 2, per_channel=per_neuron)
    letters = equispaced_alphabet(size, radius)
    expected, margin = literal_walk(weight, analog, quantized, letters)
    assume(margin > SAFE_MARGIN)
    result = quantize_weights(weight, analog, quantized, alphabet=letters, method=method)
    np.testing.assert_array_equal(result.weights, expected)
    np.testing.assert_array_equal(result.codes, np.abs(expected[..., None] - letters).argmin(axis=-1))
    assert result.codes.dtype == np.uint8


@settings(deadline=None)
@given(layers, alphabet_sizes, st.integers(1, 9), st.randoms(use_true_random=False))
def test_batches_and_blocks_do_not_matter(layer, size, block, random):
    weight, analog, quantized = layer
    letters = equispaced_alphabet(size, median_radius(weight, 2))
    _, margin = literal_walk(weight, analog, quantized, letters)
    assume(margin > SAFE_MARGIN)
    order = list(range(len(analog)))
    random.shuffle(order)
    parts = [GramAccumulator(len(weight)) for _ in range(3)]
    for start in range(0, len(order), 5):
        rows = order[start : start + 5]
        random.choice(parts).add(analog[rows], quantized[rows])
    parts[0] += parts[1]
    for name, array in parts[2].arrays().items():
        parts[0].arrays()[name][...] += array
    assert parts[0].samples == len(analog)
    result = walk(weight, parts[0], alphabet=letters, block=block)
    expected = quantize_weights(weight, analog, quantized, alphabet=letters)
    np.testing.assert_array_equal(result.codes, expected.codes)
    assert result.relative_error == pytest.approx(expected.relative_error, rel=1e-6, abs=1e-7)


@settings(deadline=None)
@given(layers, alphabet_sizes, st.sampled_from(METHODS))
def test_reported_errors_are_those_of_the_outputs(layer, size, method):
    weight, analog, quantized = layer
    assume((analog @ weight).any(axis=0).all())
    result = quantize_weights(
        weight, analog, quantized, alphabet=equispaced_alphabet(size, median_radius(weight, 2)), method=method
    )
    error, output = analog @ weight - quantized @ result.weights, analog @ weight
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    norms = np.linalg.norm(error, axis=0) / np.linalg.norm(output, axis=0)
    np.testing.assert_allclose(result.relative_errors, norms, **tolerance)
    np.testing.assert_allclose(result.relative_error, np.linalg.norm(error) / np.linalg.norm(output), **tolerance)
    np.testing.assert_allclose(result.mean_error, error.mean(axis=0), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(layers, alphabet_sizes, st.sampled_from(METHODS), st.sampled_from([1e-9, 3e-3, 0.7, 1e5]))
def test_scale_of_the_inputs_does_not_matter(layer, size, method, scale):
    weight, analog, quantized = layer
    letters = equispaced_alphabet(size, median_radius(weight, 2))
    _, margin = literal_walk(weight, analog, quantized, letters)
    assume(margin > SAFE_MARGIN)
    first = quantize_weights(weight, analog, quantized, alphabet=letters, method=method)
    second = quantize_weights(weight, scale * analog, scale * quantized, alphabet=letters, method=method)
    np.testing.assert_array_equal(first.codes, second.codes)


@settings(deadline=None)
@given(layers, st.sampled_from(METHODS))
def test_scaling_weights_and_letters_together_does_not_matter(layer, method):
    weight, analog, quantized = layer
    first = quantize_weights(weight, analog, quantized, alphabet=TERNARY, method=method)
    second = quantize_weights(8 * weight, analog, quantized, alphabet=8 * TERNARY, method=method)
    np.testing.assert_array_equal(first.codes, second.codes)


@pytest.mark.parametrize("size", range(2, 17))
@pytest.mark.parametrize("drift", [0.0, 0.2])
def test_error_is_below_that_of_scalar_quantization(size, drift):
    ratios = []
    for seed in range(5):
        weight, analog, quantized = random_layer(seed, 40, 120, 10, drift)
        letters = equispaced_alphabet(size, 1.0)
        greedy = quantize_weights(weight, analog, quantized, alphabet=letters).relative_errors
        output = analog @ weight
        error = output - quantized @ scalar_quantize(weight, letters)[0]
        ratios.append(greedy / (np.linalg.norm(error, axis=0) / np.linalg.norm(output, axis=0)))
    assert np.mean(ratios) < 0.75


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_dead_inputs_get_the_letter_nearest_to_zero(size, method):
    weight, analog, quantized = random_layer(1, 30, 20, 4)
    dead = [0, 7, 19]
    quantized[:, dead] = 0
    letters = equispaced_alphabet(size, 0.9)
    result = quantize_weights(weight, analog, quantized, alphabet=letters, method=method)
    np.testing.assert_array_equal(np.flatnonzero(result.dead_inputs), dead)
    assert (result.codes[dead] == (size - 1) // 2).all()
    # What the analog network computed from them is still made up for by the other weights.
    expected, _ = literal_walk(weight, analog, quantized, letters)
    np.testing.assert_array_equal(result.weights, expected)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_dead_in_both_networks(method):
    weight, analog, _ = random_layer(2, 30, 20, 4)
    analog[:, 5] = 0
    result = quantize_weights(weight, analog, alphabet=[-1.0, 1.0], method=method)
    assert (result.codes[5] == 0).all() and result.dead_inputs.sum() == 1
    nothing = quantize_weights(weight, np.zeros_like(analog), alphabet=TERNARY, method=method)
    assert nothing.relative_error == 0 and (nothing.codes == 1).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (9, 1, 4), (9, 6, 1), (300, 200, 3), (70, 140, 2)])
def test_extreme_shapes(shape, method):
    weight, analog, quantized = random_layer(3, *shape)
    letters = equispaced_alphabet(3, 0.8)
    expected, margin = literal_walk(weight, analog, quantized, letters)
    assert margin > 1e-12
    result = quantize_weights(weight, analog, quantized, alphabet=letters, method=method)
    np.testing.assert_array_equal(result.weights, expected)


@pytest.mark.parametrize("method", METHODS)
def test_zero_layers_stay_zero(method):
    _, analog, quantized = random_layer(4, 20, 10, 3)
    weight = np.zeros((10, 3))
    for size in (2, 3, 4, 16):
        alphabet = equispaced_alphabet(size, median_radius(weight, 3))
        result = quantize_weights(weight, analog, quantized, alphabet=alphabet, method=method)
        assert not result.weights.any() and (result.codes == (size - 1) // 2).all()
        assert result.relative_error == 0 and not np.isnan(result.relative_errors).any()
    weight[:, 1] = np.linspace(-1, 1, 10)
    alphabet = equispaced_alphabet(4, median_radius(weight, 2, per_channel=True))
    result = quantize_weights(weight, analog, quantized, alphabet=alphabet, method=method)
    assert not result.weights[:, [0, 2]].any() and result.weights[:, 1].all()
    assert np.isfinite(result.relative_errors).all()


@pytest.mark.parametrize(("method", "least"), [("residual", np.inf), ("gram", 1e6)])
def test_silent_analog_inputs_make_an_infinite_error(method, least):
    weight, analog, quantized = random_layer(5, 20, 10, 3)
    result = quantize_weights(weight, np.zeros_like(analog), quantized + 1, alphabet=[-1.0, 1.0], method=method)
    assert result.relative_error >= least


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8, bool])
def test_inputs_of_every_real_type(dtype, method):
    weight, analog, quantized = random_layer(6, 60, 40, 5)
    analog, quantized = (array > 1 if dtype is bool else np.round(4 * array) for array in (analog, quantized))
    expected = quantize_weights(weight, analog * 1.0, quantized * 1.0, alphabet=TERNARY, method=method)
    result = quantize_weights(weight, analog.astype(dtype), quantized.astype(dtype), alphabet=TERNARY, method=method)
    np.testing.assert_array_equal(result.codes, expected.codes)
    assert result.weights.dtype == np.float64


@pytest.mark.parametrize("method", METHODS)
def test_arguments_are_not_changed(method):
    arrays = random_layer(7, 50, 150, 4)
    copies = [array.copy() for array in arrays]
    quantize_weights(*arrays, alphabet=TERNARY, method=method)
    scalar_quantize(arrays[0], TERNARY)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_arrays_in_other_orders():
    weight, analog, quantized = random_layer(8, 50, 40, 4)
    expected = quantize_weights(weight, analog, quantized, alphabet=TERNARY)
    for method in METHODS:
        result = quantize_weights(
            np.asfortranarray(weight),
            np.asfortranarray(analog),
            np.repeat(quantized, 2, axis=1)[:, ::2],
            alphabet=TERNARY,
            method=method,
        )
        np.testing.assert_array_equal(result.codes, expected.codes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("walk_length", [1, 3, 90, 180])
def test_walks_of_some_rows_ignore_each_other(walk_length, method):
    weight, analog, quantized = random_layer(9, 30, 180, 4)
    result = quantize_weights(weight, analog, quantized, alphabet=TERNARY, method=method, walk_length=walk_length)
    for start in range(0, 180, walk_length):
        rows = slice(start, start + walk_length)
        alone = quantize_weights(weight[rows], analog[:, rows], quantized[:, rows], alphabet=TERNARY)
        np.testing.assert_array_equal(result.codes[rows], alone.codes)
    output = analog @ weight
    error = np.linalg.norm(output - quantized @ result.weights) / np.linalg.norm(output)
    assert result.relative_error == pytest.approx(error, rel=1e-9)


def test_accumulator_holds_the_gram_matrices():
    _, analog, quantized = random_layer(10, 50, 300, 1)
    gram = GramAccumulator(300)
    gram.add(analog[:20], quantized[:20])
    gram.add(analog[20:], quantized[20:])
    drift = analog - quantized
    np.testing.assert_allclose(gram.gram, quantized.T @ quantized, atol=1e-10)
    np.testing.assert_allclose(gram.cross, quantized.T @ drift, atol=1e-10)
    np.testing.assert_allclose(gram.drift_gram, drift.T @ drift, atol=1e-10)


def test_first_layer_and_drifting_batches_can_be_merged():
    weight, analog, quantized = random_layer(11, 40, 20, 3)
    first, second = GramAccumulator(20), GramAccumulator(20)
    first.add(analog[:10])
    second.add(analog[10:], quantized[10:])
    both = np.concatenate([analog[:10], quantized[10:]])
    expected = quantize_weights(weight, analog, both, alphabet=TERNARY)
    first += second
    np.testing.assert_array_equal(walk(weight, first, alphabet=TERNARY).codes, expected.codes)
    second_walk = walk(weight, first, alphabet=TERNARY)
    assert second_walk.relative_error == pytest.approx(expected.relative_error)


def test_the_smaller_number_of_operations_is_chosen(monkeypatch):
    chosen = []
    from tvmq.methods import gpfq

    gram, residual = gpfq._walk_gram, gpfq._walk_residual
    monkeypatch.setattr(gpfq, "_walk_gram", lambda *a: chosen.append("gram") or gram(*a))
    monkeypatch.setattr(gpfq, "_walk_residual", lambda *a: chosen.append("residual") or residual(*a))
    for samples, inputs, neurons in ((400, 60, 60), (400, 300, 10)):
        quantize_weights(*random_layer(12, samples, inputs, neurons), alphabet=TERNARY)
    assert chosen == ["gram", "residual"]
    monkeypatch.setattr(gpfq, "MOST_RESIDUALS", 100)
    quantize_weights(*random_layer(12, 400, 300, 10), alphabet=TERNARY)
    assert chosen[-1] == "gram"


@pytest.mark.parametrize("levels", [3, 4])
def test_error_falls_with_the_square_root_of_the_width(levels):
    """Lybrand and Saab: for Gaussian data the relative error decays like sqrt(m / N); that of rounding does not."""
    samples, widths = 32, np.array([256, 512, 1024, 2048])
    letters = equispaced_alphabet(levels, 1.0)
    greedy, rounded = [], []
    for width in widths:
        rng = np.random.default_rng(width)
        weight = rng.uniform(-1, 1, (width, 64))
        inputs = rng.normal(size=(samples, width))
        greedy.append(np.median(quantize_weights(weight, inputs, alphabet=letters).relative_errors))
        error = inputs @ (weight - scalar_quantize(weight, letters)[0])
        rounded.append(np.median(np.linalg.norm(error, axis=0) / np.linalg.norm(inputs @ weight, axis=0)))
    slopes = [np.polyfit(np.log(widths), np.log(errors), 1)[0] for errors in (greedy, rounded)]
    assert slopes[0] == pytest.approx(-0.5, abs=0.06)
    assert slopes[1] == pytest.approx(0, abs=0.06)


# Mistakes


def check_message(error: pytest.ExceptionInfo[InputError]) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


GOOD = {"weight": np.ones((4, 2)), "inputs": np.ones((5, 4)), "alphabet": TERNARY}
MISTAKES = [
    ({"weight": np.ones(4)}, "a neuron per column"),
    ({"weight": np.ones((0, 2))}, "a neuron per column"),
    ({"weight": np.ones((4, 2), complex)}, "must be real"),
    ({"weight": np.full((4, 2), np.nan)}, "NaN or infinity"),
    ({"inputs": np.ones((5, 3))}, r"\(samples, 4\)"),
    ({"inputs": np.ones((0, 4))}, r"\(samples, 4\)"),
    ({"inputs": np.array([["a"] * 4])}, "must be real"),
    ({"inputs": np.array([[1, 2, np.inf, 3]])}, "NaN or infinity .column 2"),
    ({"inputs": np.array([[1, 2, 3, np.nan]])}, "NaN or infinity .column 3"),
    ({"inputs": np.full((2, 4), 1e200)}, "too large"),
    ({"quantized_inputs": np.ones((4, 4))}, "same samples"),
    ({"quantized_inputs": np.full((5, 4), np.nan)}, "NaN or infinity"),
    ({"quantized_inputs": np.ones((5, 3))}, "quantized_inputs must be real"),
    ({"alphabet": np.array([])}, "shape"),
    ({"alphabet": np.array([1.0])}, "2 to 256 letters"),
    ({"alphabet": np.arange(257)}, "2 to 256 letters"),
    ({"alphabet": np.array([1.0, 0.0])}, "strictly increasing"),
    ({"alphabet": np.array([0.0, 1.0, 1.0])}, "strictly increasing"),
    ({"alphabet": np.array([0.0, np.inf])}, "NaN or infinity"),
    ({"alphabet": np.ones((3, 4)).cumsum(axis=1)}, "one row per column"),
    ({"compat": "brevitas"}, "None or 'original'"),
    ({"method": "fast"}, "'auto', 'gram' or 'residual'"),
    ({"walk_length": 3}, "divisor of the 4 rows"),
    ({"walk_length": 0}, "divisor of the 4 rows"),
]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_mistakes(mistake, message, method):
    with pytest.raises(InputError, match=message) as error:
        quantize_weights(**{"method": method, **GOOD, **mistake})
    check_message(error)


def test_mistakes_with_accumulators():
    with pytest.raises(InputError, match="at least one input"):
        GramAccumulator(0)
    gram = GramAccumulator(4)
    with pytest.raises(InputError, match="is empty"):
        walk(np.ones((4, 2)), gram, alphabet=TERNARY)
    with pytest.raises(InputError, match="NaN"):
        gram.add(np.full((3, 4), np.nan))
    assert gram.samples == 0 and not gram.gram.any()
    gram.add(np.ones((3, 4)))
    with pytest.raises(InputError, match="5 rows"):
        walk(np.ones((5, 2)), gram, alphabet=TERNARY)
    with pytest.raises(InputError, match="block"):
        walk(np.ones((4, 2)), gram, alphabet=TERNARY, block=0)
    with pytest.raises(InputError, match="cannot be merged"):
        gram += GramAccumulator(5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: equispaced_alphabet(1, 1.0),
        lambda: equispaced_alphabet(3, -1.0),
        lambda: equispaced_alphabet(3, np.nan),
        lambda: soft_threshold_alphabet(TERNARY, -1),
        lambda: hard_threshold_alphabet(0, 1.0, 1.0),
        lambda: hard_threshold_alphabet(3, 0.0, 1.0),
        lambda: median_radius(np.ones(3), 1),
        lambda: median_radius(np.ones((3, 1)), np.inf),
        lambda: quantile_radius(np.ones((3, 1)), 1, 2),
        lambda: Alphabet(TERNARY, np.zeros(3)),
        lambda: Alphabet(TERNARY, np.array([1.0, 0.0])),
        lambda: scalar_quantize(np.ones(3), TERNARY),
    ],
    ids=lambda call: inspect.getsource(call).strip()[8:40],
)
def test_mistakes_with_alphabets(call):
    with pytest.raises(InputError) as error:
        call()
    check_message(error)
