"""Popcount algebra against dense arithmetic, for random encodings, shapes and odd lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.bitplanes import (
    BitPlanes,
    ByteTerms,
    Encoding,
    basis_terms,
    border_classes,
    border_constants,
    byte_constants,
    byte_terms,
    constant_terms,
    dot,
    dot_terms,
    offset_terms,
    window_classes,
)
from tvmq.errors import InputError

LENGTHS = (1, 31, 33, 64, 100, 513)
UNIFORM = [
    Encoding.binary(),
    Encoding.ternary(),
    Encoding.unsigned(1),
    Encoding.unsigned(2),
    Encoding.unsigned(8),
    Encoding.twos_complement(3),
    Encoding.equispaced(2),
    Encoding.equispaced(4),
    Encoding(np.array([3, -5, 7]), np.array(4)),
]
uniform = st.sampled_from(UNIFORM)


def random_planes(encoding: Encoding, shape: tuple[int, ...], seed: int) -> BitPlanes:
    codes = np.random.default_rng(seed).integers(0, 2**encoding.planes, shape, dtype=np.uint8)
    return BitPlanes(codes, encoding)


@given(uniform, uniform, st.sampled_from(LENGTHS), st.integers(0, 2**31))
def test_dot_equals_dense_arithmetic_exactly(x_encoding, w_encoding, length, seed):
    x = random_planes(x_encoding, (3, length), seed)
    w = random_planes(w_encoding, (5, length), seed + 1)
    expected = x_encoding.units(x.codes) @ w_encoding.units(w.codes).T
    result = dot(x, w)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, expected)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from(LENGTHS), st.integers(0, 2**31))
def test_learned_bases_with_one_row_per_output_channel(x_bits, w_bits, length, seed):
    random = np.random.default_rng(seed)
    basis = random.normal(size=(5, w_bits))
    x = random_planes(Encoding.learned(random.normal(size=x_bits)), (3, length), seed)
    w = random_planes(Encoding.learned(2 * basis, -basis.sum(-1)), (5, length), seed + 1)
    expected = x.encoding.units(x.codes) @ w.encoding.units(w.codes).T
    np.testing.assert_allclose(dot(x, w), expected, rtol=1e-10, atol=1e-10)


def popcount_convolution(x: BitPlanes, w: BitPlanes, stride, padding, dilation) -> np.ndarray:
    """A convolution exactly as a kernel computes it: zero *bits* as padding, then constants per border class."""
    terms = dot_terms(x.encoding, w.encoding)
    (top, bottom), (left, right) = padding
    kernel_height, kernel_width = w.codes.shape[2:]
    image = np.pad(x.planes, ((0, 0), (0, 0), (0, 0), (top, bottom), (left, right)))
    rows, row_taps = border_classes(x.codes.shape[2], kernel_height, stride, (top, bottom), dilation)
    columns, column_taps = border_classes(x.codes.shape[3], kernel_width, stride, (left, right), dilation)
    result = np.zeros((x.codes.shape[0], w.codes.shape[0], len(rows), len(columns)), np.int64)
    for y, row in enumerate(rows):
        for z, column in enumerate(columns):
            taps_y = y * stride + dilation * np.arange(kernel_height)
            taps_x = z * stride + dilation * np.arange(kernel_width)
            window = image[..., taps_y[:, None], taps_x[None, :]]
            inside = row_taps[row][:, None] & column_taps[column][None, :]
            value = np.broadcast_to(constant_terms(x.encoding, w, inside), result.shape[:2]).copy()
            for i, classes in enumerate(terms.plane_class):
                value += terms.activation_multiplier[i] * window[i].sum(axis=(1, 2, 3))[:, None]
                for j, index in enumerate(classes):
                    pair = (window[i][:, None], w.planes[j][None])
                    both = pair[0] ^ pair[1] if terms.combine == "xor" else pair[0] & pair[1]
                    value += terms.class_multiplier[index] * both.sum(axis=(2, 3, 4))
            result[:, :, y, z] = value
    return result


def dense_convolution(x: np.ndarray, w: np.ndarray, stride, padding, dilation) -> np.ndarray:
    image, weight = np.pad(x, ((0, 0), (0, 0), *padding)), w
    height, width = (
        (image.shape[2 + axis] - dilation * (weight.shape[2 + axis] - 1) - 1) // stride + 1 for axis in (0, 1)
    )
    result = np.zeros((image.shape[0], weight.shape[0], height, width), weight.dtype)
    for ky in range(weight.shape[2]):
        for kx in range(weight.shape[3]):
            rows = slice(ky * dilation, ky * dilation + stride * (height - 1) + 1, stride)
            columns = slice(kx * dilation, kx * dilation + stride * (width - 1) + 1, stride)
            result += np.einsum("ncyx,oc->noyx", image[:, :, rows, columns], weight[:, :, ky, kx])
    return result


@settings(max_examples=60, deadline=None)
@given(
    uniform,
    uniform,
    st.sampled_from([(1, 1), (3, 3), (5, 3), (2, 1)]),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.integers(0, 2**31),
)
def test_zero_padding_is_exact_through_border_classes(
    x_encoding, w_encoding, kernel, stride, before, after, dilation, seed
):
    x = random_planes(x_encoding, (2, 3, 10, 9), seed)
    w = random_planes(w_encoding, (4, 3, *kernel), seed + 1)
    geometry = (stride, ((before, after), (after, before)), dilation)
    expected = dense_convolution(x_encoding.units(x.codes), w_encoding.units(w.codes), *geometry)
    np.testing.assert_array_equal(popcount_convolution(x, w, *geometry), expected)


def test_no_alphabet_in_use_needs_the_popcount_of_the_activations():
    for activations in UNIFORM[:-1]:
        for weights in (Encoding.binary(), Encoding.ternary(), Encoding.twos_complement(4), Encoding.equispaced(3)):
            assert not any(dot_terms(activations, weights).activation_multiplier)


def test_binary_times_binary_is_one_xor():
    terms = dot_terms(Encoding.binary(), Encoding.binary())
    assert (terms.combine, terms.class_multiplier, terms.activation_multiplier) == ("xor", (-2,), (0,))


def test_pairs_of_equal_weight_share_an_accumulator():
    terms = dot_terms(Encoding.unsigned(3), Encoding.equispaced(2))
    assert len(terms.class_multiplier) == 4
    assert terms.plane_class == ((0, 1), (1, 2), (2, 3))


def test_three_by_three_with_padding_one_has_three_classes_per_axis():
    index, taps = border_classes(7, 3, 1, (1, 1), 1)
    assert len(taps) == 3
    assert (taps[index[0]] == [False, True, True]).all()
    assert (taps[index[3]] == [True, True, True]).all()
    assert (taps[index[6]] == [True, True, False]).all()


@given(uniform)
def test_negation_negates(encoding):
    for code in np.arange(2**encoding.planes, dtype=np.uint8)[:, None]:
        negated = encoding.negated(code)
        if negated is None:
            assert -encoding.units(code) not in encoding.units(np.arange(2**encoding.planes, dtype=np.uint8))
        else:
            assert encoding.units(negated) == -encoding.units(code)


ALPHABETS = [
    ([-1, 1], 1, "xor"),
    ([-1, 0, 1], 2, "and"),
    ([-3, -1, 1, 3], 2, "xor"),
    ([0, 1, 2, 3], 2, "and"),
    ([-2, -1, 0, 1], 2, "and"),
    ([-4, -3, 0, 3], 3, "and"),
    ([0, 1, 5], 2, "and"),
    (list(range(-7, 9)), 4, "and"),
    ([-8, -4, -2, -1, 1, 2, 4, 8], 4, "xor"),
    (list(range(-15, 16, 2)), 4, "xor"),
    (list(range(-128, 128)), 8, "and"),
]


@pytest.mark.parametrize("levels, planes, combine", ALPHABETS)
@pytest.mark.parametrize("channels", [1, 5])
def test_values_find_their_smallest_alphabet(levels, planes, combine, channels):
    random = np.random.default_rng(planes)
    scale = random.uniform(0.01, 3, channels).astype(np.float32)
    integers = np.resize(np.array(levels), (5, 300))
    random.shuffle(integers, axis=1)
    array = (integers * np.resize(scale, (5, 1))).astype(np.float32)
    found = BitPlanes.of_values(array)
    assert found.encoding.planes == planes
    np.testing.assert_allclose(found.dense(), array, rtol=2e-7)
    assert dot_terms(Encoding.unsigned(2), found.encoding).combine == combine


def test_values_off_the_grid_have_no_alphabet():
    random = np.random.default_rng(0)
    assert BitPlanes.of_values(random.normal(size=(4, 50)).astype(np.float32)) is None
    assert BitPlanes.of_values(np.array([[1.0, 1.7320508]], np.float32)) is None
    for bad in (np.nan, np.inf):
        assert BitPlanes.of_values(np.full((2, 3), bad, np.float32)) is None


def test_a_dead_channel_does_not_spoil_the_others():
    array = np.array([[0.3, -0.3, 0.0], [0.0, 0.0, 0.0], [0.7, 0.0, -0.7]], np.float32)
    found = BitPlanes.of_values(array)
    assert found.encoding.planes == 2
    np.testing.assert_array_equal(found.dense(), array)
    np.testing.assert_array_equal(BitPlanes.of_values(np.zeros((2, 3), np.float32)).dense(), 0)


@given(st.integers(2, 256), st.integers(-300, 300), st.floats(1e-3, 1e3))
def test_equispaced_levels_are_recognised(count, first, unit):
    levels = np.float64(unit) * (first + np.arange(count))
    encoding, codes = Encoding.of_levels(levels)
    assert encoding.is_integer
    np.testing.assert_allclose(encoding.values(codes), levels, rtol=1e-5, atol=1e-6 * np.abs(levels).max())


@pytest.mark.parametrize(
    "levels, expected",
    [
        ([0.0, 0.125, 0.25, 0.5, 1.0], [0, 1, 2, 4, 8]),
        ([-3.0, -0.75, 0.0, 0.75], [0, 3, 4, 5]),
        ([-1.5, -0.5, 2.5], [0, 1, 4]),
        ([0.0, 1.0, 255.0], [0, 1, 255]),
    ],
)
def test_some_levels_of_a_grid_are_recognised(levels, expected):
    encoding, codes = Encoding.of_grid_levels(levels)
    assert encoding.is_integer
    assert codes.tolist() == expected
    np.testing.assert_allclose(encoding.values(codes), levels, rtol=1e-6)


@pytest.mark.parametrize("levels", [[0.0, 1.0, 2.5], [0.0, 1.0, 256.0], [0.1, 1.1, 3.1], [1.0], [0.0, 0.0]])
def test_levels_of_no_grid_are_not(levels):
    assert Encoding.of_grid_levels(levels) is None


@pytest.mark.parametrize("levels", [[0.0, 1.0, 3.0], [0.1, 1.1], [1.0], [0.0, 0.0], list(range(300))])
def test_other_levels_are_not(levels):
    assert Encoding.of_levels(np.array(levels)) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"coefficients": np.ones((0,), int)},
        {"coefficients": np.ones(17, int)},
        {"coefficients": np.array([np.nan])},
        {"coefficients": np.array([1, 2]), "offset": np.array(0.5)},
    ],
)
def test_impossible_encodings_are_rejected(arguments):
    with pytest.raises(InputError, match="encoding"):
        Encoding(**arguments)


def test_codes_must_fit_their_planes():
    with pytest.raises(InputError, match="code 2 does not fit 1 planes"):
        BitPlanes(np.array([0, 2], np.uint8), Encoding.binary())
    with pytest.raises(InputError, match="uint8"):
        BitPlanes(np.array([0, 1]), Encoding.binary())
    wide = BitPlanes(np.array([0, 2**9], np.uint16), Encoding.unsigned(10))
    assert wide.planes[:, 1].tolist() == [False] * 9 + [True]


BASIS = np.array([0.317, 0.559, 1.301, 2.203])
SUMS = (np.arange(16)[:, None] >> np.arange(4) & 1) @ BASIS
SIGNED = 2 * SUMS - BASIS.sum()
ROOTS = np.sqrt(np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53]))
LEVELS = [
    (SUMS, 4, "and"),  # subset sums
    (SIGNED, 4, "xor"),  # sums with signs
    (SIGNED[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13]], 4, "xor"),  # some are missing, but not their negatives
    (SIGNED[[0, 3, 5, 6, 7, 8, 9, 10, 12, 15]], 5, "xor"),  # too many are: a plane per magnitude
    (SUMS + 0.783, 5, "xor"),  # an offset takes a plane
    (ROOTS, 16, "and"),  # without structure, a plane per level
    ([0, *ROOTS[:15]], 15, "and"),  # 0 needs none
    ([*ROOTS[:8], *-ROOTS[:8]], 8, "xor"),  # one per magnitude
    ([0, *ROOTS[:7], *-ROOTS[:7]], 8, "xor"),
    ([*ROOTS[:8], *-ROOTS[:4]], 8, "xor"),
    ([-1.0, -0.3, 0.9, np.sqrt(2)], 4, "and"),
]


@pytest.mark.parametrize("levels, planes, combine", LEVELS)
@pytest.mark.parametrize("is_shared", [True, False])
def test_any_sixteen_levels_have_planes(levels, planes, combine, is_shared):
    random = np.random.default_rng(planes)
    factors = 1.0 if is_shared else random.uniform(0.5, 2, (5, 1))
    picked = np.resize(np.array(levels), (5, 400))
    random.shuffle(picked, axis=1)
    array = (picked * factors).astype(np.float32)
    found = BitPlanes.of_weights(array)
    assert found.encoding.planes == planes
    assert found.codes.dtype == (np.uint8 if planes <= 8 else np.uint16)
    assert found.encoding.coefficients.ndim == (1 if is_shared else 2)
    np.testing.assert_allclose(found.dense(), array, rtol=0, atol=1e-6 * np.abs(array).max())
    if planes == len(levels):
        np.testing.assert_array_equal(found.dense(), array)
    assert basis_terms(Encoding.unsigned(2), found).combine == combine


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.integers(0, 3), st.integers(0, 2**31))
def test_levels_take_at_most_a_plane_per_magnitude(count, rounding, seed):
    random = np.random.default_rng(seed)
    levels = random.normal(size=count).round(rounding if rounding else 8).astype(np.float32)
    array = random.choice(levels, (3, 200))
    found = BitPlanes.of_weights(array)
    magnitudes = np.unique(np.abs(array))
    assert found.encoding.planes <= max(1, min(len(magnitudes), len(np.unique(array[array != 0]))))
    np.testing.assert_allclose(found.dense(), array, rtol=0, atol=1e-6 * np.abs(array).max())


def test_levels_that_are_close_stay_apart():
    levels = np.float32([0.0, 3e-8, np.sqrt(2), np.sqrt(2) + 5e-7, -np.sqrt(3)])
    array = np.random.default_rng(0).choice(levels, (3, 60))
    np.testing.assert_array_equal(BitPlanes.of_weights(array).dense(), array)


def test_more_levels_or_fewer_values_have_no_alphabet():
    random = np.random.default_rng(0)
    assert BitPlanes.of_weights(random.choice(random.normal(size=17), (4, 300)).astype(np.float32)) is None
    assert BitPlanes.of_weights(random.normal(size=(8, 9)).astype(np.float32)) is None  # nine floats are nine levels
    assert BitPlanes.of_weights(np.array([[0.1, np.sqrt(2), np.nan]], np.float32)) is None
    assert BitPlanes.of_weights(np.zeros((2, 0), np.float32)) is None


LEARNED = [
    Encoding.binary(0.7),
    Encoding.unsigned(2, 0.3),
    Encoding.equispaced(2),
    Encoding.learned(np.array([0.4, 1.1]), np.array(-0.9)),
]
WEIGHTS = [  # of four channels: symmetric, from 0 on, and neither
    Encoding.learned(BASIS[:2] * [[1], [2], [3], [-1]], -BASIS[:2].sum() / 2 * np.array([1, 2, 3, -1])),
    Encoding.learned(BASIS * [[1], [2], [3], [0.5]], np.zeros(4)),
    Encoding.learned(BASIS * [[1], [2], [3], [0.5]], np.array([0.1, 0.0, -3.0, 1.0])),
    Encoding.learned(ROOTS[:8], np.array(0.3)),
    Encoding.learned(ROOTS[:15], np.array(0.3)),
]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LEARNED),
    st.sampled_from(WEIGHTS),
    st.sampled_from([(1, 1), (3, 3), (5, 3), (2, 1)]),
    st.integers(1, 2),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.integers(1, 2),
    st.integers(0, 2**31),
)
def test_float_coefficients_weigh_exact_sums_of_zero_bits_and_a_bias(
    x_encoding, w_encoding, kernel, stride, padding, dilation, seed
):
    random = np.random.default_rng(seed)
    x = random_planes(x_encoding, (2, 3, 11, 9), seed)
    codes = random.integers(0, 2**w_encoding.planes, (4, 3, *kernel)).astype(
        np.uint8 if w_encoding.planes <= 8 else np.uint16
    )
    w = BitPlanes(codes, w_encoding)
    terms = basis_terms(x_encoding, w)
    top, left, bottom, right = padding
    geometry = (stride, ((top, bottom), (left, right)), dilation)
    axes = window_classes((11, 9), kernel, (stride, stride), padding, (dilation, dilation))
    bias = border_constants(lambda taps: offset_terms(x_encoding, w, taps), axes)
    classes = [index if extent > 1 else 0 * index for (index, _), extent in zip(axes, bias.shape, strict=False)]
    total = bias[classes[0][:, None], classes[1][None, :]].transpose(2, 0, 1)[None]
    for i, a in enumerate(terms.activation_basis):
        bits = x.planes[i].astype(np.float64)
        for j, b in enumerate(terms.weight_basis):
            plane = (terms.codes >> j & 1).astype(np.float64)
            sums = dense_convolution(bits, 2 * plane - 1 if terms.combine == "xor" else plane, *geometry)
            total = total + a * b.reshape(-1, 1, 1) * sums
    expected = dense_convolution(x.dense(), w.dense().astype(np.float64), *geometry)
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def test_an_offset_takes_a_plane_of_ones():
    terms = basis_terms(Encoding.unsigned(1), BitPlanes(np.array([[0, 255]], np.uint8), WEIGHTS[3]))
    assert terms.combine == "and" and terms.codes.dtype == np.uint16
    assert terms.codes.tolist() == [[256, 511]] and terms.weight_basis.shape == (9, 1)
    full = Encoding.learned(ROOTS, np.array(0.3))
    assert basis_terms(Encoding.unsigned(1), BitPlanes(np.zeros((1, 2), np.uint16), full)) is None


def test_activations_with_coefficients_per_channel_have_no_basis_product():
    per_channel = Encoding.learned(np.ones((2, 1)))
    assert basis_terms(per_channel, BitPlanes(np.zeros((4, 2), np.uint8), WEIGHTS[0])) is None


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (Encoding.unsigned(8), (1, 0, 0)),
        (Encoding.binary(), (2, 0, -1)),
        (Encoding.equispaced(3), (2, 0, -7)),
        (Encoding.twos_complement(8), (1, 128, -128)),
        (Encoding(np.array([-3, 6]), np.array(5)), (3, 1, 2)),
        (Encoding.ternary(), None),
        (Encoding(np.array([1, 3])), None),
        (Encoding.learned(np.array([1.0, 2.0])), None),
    ],
)
def test_activations_as_bytes(encoding, expected):
    terms = byte_terms(encoding)
    if expected is None:
        assert terms is None
        return
    assert terms == ByteTerms(*expected)
    codes = np.arange(2**encoding.planes, dtype=np.uint8)
    octets = (codes ^ np.uint8(terms.flip)).astype(np.int64)
    np.testing.assert_array_equal(encoding.units(codes), terms.multiplier * octets + terms.offset)


def test_the_constant_of_bytes_leaves_out_the_padding():
    units = np.arange(-9, 9).reshape(1, 2, 3, 3)
    inside = np.array([[False, False, False], [False, True, True], [False, True, True]])
    terms = byte_terms(Encoding.twos_complement(8))
    assert terms is not None
    np.testing.assert_array_equal(byte_constants(terms, units), -128 * units.sum(axis=(1, 2, 3)))
    np.testing.assert_array_equal(byte_constants(terms, units, inside), -128 * units[..., 1:, 1:].sum(axis=(1, 2, 3)))
