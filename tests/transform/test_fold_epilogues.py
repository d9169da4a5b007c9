"""Chains between a product and the next quantizer become integer thresholds; their meaning is checked in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvmq import golden
from tvmq.bitplanes import BasisTerms, BitPlanes, Encoding
from tvmq.dialect import (
    affine,
    basis_conv2d,
    basis_dense,
    constant,
    conv2d,
    dense,
    dequantize,
    encoding_constants,
    float_threshold,
    max_pool2d,
    quantize,
    threshold,
)
from tvmq.errors import ModelError
from tvmq.transform import FoldEpilogues
from tvmq.transform.fold_epilogues import ALWAYS, NEVER, float_thresholds, integer_thresholds

BINARY = Encoding.binary()
SIGN = encoding_constants(BINARY)
ZERO, BITS = constant(np.zeros(1, np.float32)), constant(np.array([0, 1], np.uint8))
WEIGHT = np.random.default_rng(0).integers(0, 2, (3, 4, 3, 3), dtype=np.uint8)
CODES = constant(WEIGHT)


def norm(gamma, beta=(0.5, 0.5, 0.5), mean=(1.0, 1.0, 1.0), variance=(4.0, 4.0, 4.0)):
    return [constant(np.array(values, np.float32)) for values in (gamma, beta, mean, variance)]


def test_negative_and_zero_gamma(assert_same):
    # y = (s - 1) / 2 * gamma + 0.5 with epsilon 0, and the code is y >= 0
    parameters = norm((1.0, -1.0, 0.0))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *SIGN)
                conv1 = R.nn.conv2d(x, w)
                bn = R.nn.batch_norm(conv1, *parameters, axis=1, epsilon=0.0, training=False)
                q2 = quantize(bn[0], ZERO, BITS)
                R.output(q2)
            return q2

    negated = WEIGHT.copy()
    negated[1] ^= 1
    flipped = constant(negated)
    # s >= 0;  -s >= -2;  0.5 >= 0 always
    thresholds = constant(np.array([[0, -2, ALWAYS]], np.int32))

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                conv1 = conv2d(q, flipped, BINARY, BINARY)
                q2 = threshold(conv1, thresholds, BITS)
                R.output(q2)
            return q2

    assert_same(FoldEpilogues()(Before), Expected)


def test_pool_moves_behind_the_threshold_and_takes_the_minimum_where_gamma_is_negative(assert_same):
    parameters = norm((1.0, -1.0, 1.0))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *SIGN)
                conv1 = R.nn.conv2d(x, w)
                pool = R.nn.max_pool2d(conv1, pool_size=[2, 2], strides=[2, 2])
                bn = R.nn.batch_norm(pool, *parameters, axis=1, epsilon=0.0, training=False)
                h = R.clip(bn[0], T.float64(-1.0), T.float64(1.0))
                q2 = quantize(h, ZERO, BITS)
                R.output(q2)
            return q2

    negated = WEIGHT.copy()
    negated[1] ^= 1
    flipped = constant(negated)
    thresholds = constant(np.array([[0, -2, 0]], np.int32))
    minimum = constant(np.array([0, 1, 0], np.uint8))

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                conv1 = conv2d(q, flipped, BINARY, BINARY)
                c = threshold(conv1, thresholds, BITS)
                q2 = max_pool2d(c, minimum, (2, 2), (2, 2))
                R.output(q2)
            return q2

    assert_same(FoldEpilogues()(Before), Expected)


def test_last_layer_becomes_one_affine(assert_same):
    matrix = np.random.default_rng(0).integers(0, 2, (3, 8), dtype=np.uint8)
    codes = constant(matrix)
    bias = constant(np.array([1.0, 2.0, 3.0], np.float32))
    parameters = norm((2.0, -2.0, 0.0))
    scale = constant(np.array([1.0, -1.0, 0.0], np.float32))
    offset = constant(np.array([0.5, -0.5, 0.5], np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((5, 8), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(codes, *SIGN)
                t = R.permute_dims(w, [1, 0])
                fc = R.matmul(x, t)
                fb = R.add(bias, fc)
                bn = R.nn.batch_norm(fb, *parameters, axis=1, epsilon=0.0, training=False)
                y = bn[0]
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((5, 8), "uint8")):
            with R.dataflow():
                fc = dense(q, codes, BINARY, BINARY)
                y = affine(fc, scale, offset)
                R.output(y)
            return y

    assert_same(FoldEpilogues()(Before), Expected)


def test_a_residual_sum_gets_floats_on_both_sides(assert_same):
    one, zero = constant(np.ones(3, np.float32)), constant(np.zeros(3, np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), shortcut: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *SIGN)
                conv1 = R.nn.conv2d(x, w)
                y = R.add(conv1, shortcut)
                q2 = quantize(y, ZERO, BITS)
                R.output(q2)
            return q2

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), shortcut: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                s = conv2d(q, CODES, BINARY, BINARY)
                conv1 = affine(s, one, zero)
                y = R.add(conv1, shortcut)
                q2 = quantize(y, ZERO, BITS)
                R.output(q2)
            return q2

    assert_same(FoldEpilogues()(Before), Expected)


def test_grouped_and_float_products_are_left_alone(assert_same):
    value = constant(np.ones((4, 1, 3, 3), np.float32))
    codes = constant(np.zeros((4, 1, 3, 3), np.uint8))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(codes, *SIGN)
                depthwise = R.nn.conv2d(x, w, groups=4)
                other = R.nn.conv2d(depthwise, value, groups=4)
                R.output(other)
            return other

    assert_same(FoldEpilogues()(Before), Before)


def test_a_function_that_is_not_monotone_stays(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *SIGN)
                conv1 = R.nn.conv2d(x, w)
                y = R.abs(conv1)
                q2 = quantize(y, ZERO, BITS)
                R.output(q2)
            return q2

    text = FoldEpilogues()(Before).script(show_meta=False)
    assert "R.abs" in text and "tvmq.quantize" in text and "tvmq.threshold" not in text


@pytest.mark.parametrize("index, bad", [(0, np.nan), (1, np.inf), (2, np.nan), (3, -1.0), (3, 0.0)])
def test_broken_parameters_name_the_layer(index, bad):
    parameters = norm((1.0, 1.0, 1.0))
    values = parameters[index].value.numpy().copy()
    values[1] = bad
    parameters[index] = constant(values)

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *SIGN)
                conv1 = R.nn.conv2d(x, w)
                bn = R.nn.batch_norm(conv1, *parameters, axis=1, epsilon=0.0, training=False)
                q2 = quantize(bn[0], ZERO, BITS)
                R.output(q2)
            return q2

    with pytest.raises(ModelError, match="layer 'conv1'"):
        FoldEpilogues()(Before)


def test_a_float_batch_norm_becomes_one_affine(assert_same):
    parameters = norm((2.0, -1.0, 0.0))
    scale = constant(np.array([1.0, -0.5, 0.0], np.float32))
    offset = constant(np.array([-0.5, 1.0, 0.5], np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 4), "float32")):
            with R.dataflow():
                bn = R.nn.batch_norm(x, *parameters, axis=1, epsilon=0.0, training=False)
                y = R.nn.relu(bn[0])
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 4), "float32")):
            with R.dataflow():
                bn = affine(x, scale, offset)
                y = R.nn.relu(bn)
                R.output(y)
            return y

    assert_same(FoldEpilogues()(Before), Expected)


def test_batch_norms_over_other_axes_or_with_unknown_parameters_stay(assert_same):
    parameters = norm((2.0, -1.0, 0.0))

    @I.ir_module
    class OtherAxis:
        @R.function
        def main(x: R.Tensor((2, 4, 4, 3), "float32")):
            with R.dataflow():
                bn = R.nn.batch_norm(x, *parameters, axis=3, training=False)
                y = R.nn.relu(bn[0])
                R.output(y)
            return y

    @I.ir_module
    class Unknown:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 4), "float32"), gamma: R.Tensor((3,), "float32")):
            with R.dataflow():
                bn = R.nn.batch_norm(x, gamma, *parameters[1:], axis=1, training=False)
                y = R.nn.relu(bn[0])
                R.output(y)
            return y

    for module in (OtherAxis, Unknown):
        assert_same(FoldEpilogues()(module), module)


def test_after_a_residual_sum_the_norm_goes_into_float_thresholds(assert_same):
    parameters = norm((1.0, -1.0, 0.0), mean=(0.0, 0.0, 0.0))
    one, zero = constant(np.ones(3, np.float32)), constant(np.zeros(3, np.float32))
    direction = constant(np.array([1, -1, 1], np.float32))
    # y / 2 * gamma + 0.5 >= 0: y >= -1, -y >= -1, always
    limits = constant(np.array([[-1, -1, -np.inf]], np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), shortcut: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *SIGN)
                conv1 = R.nn.conv2d(x, w)
                y = R.add(conv1, shortcut)
                bn = R.nn.batch_norm(y, *parameters, axis=1, epsilon=0.0, training=False)
                h = R.clip(bn[0], T.float64(-1.0), T.float64(1.0))
                q2 = quantize(h, ZERO, BITS)
                R.output(q2)
            return q2

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), shortcut: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                s = conv2d(q, CODES, BINARY, BINARY)
                conv1 = affine(s, one, zero)
                y = R.add(conv1, shortcut)
                q2 = float_threshold(y, direction, limits, BITS)
                R.output(q2)
            return q2

    assert_same(FoldEpilogues()(Before), Expected)


def test_an_alphabet_without_negatives_compares_floats(assert_same):
    unsigned = Encoding.unsigned(1)
    alphabet = encoding_constants(unsigned)
    parameters = norm((1.0, -1.0, 1.0), mean=(0.0, 0.0, 0.0))
    scale, offset = constant(np.array([0.5, -0.5, 0.5], np.float32)), constant(np.full(3, 0.5, np.float32))
    direction, limits = constant(np.ones(3, np.float32)), constant(np.zeros((1, 3), np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *alphabet)
                conv1 = R.nn.conv2d(x, w)
                bn = R.nn.batch_norm(conv1, *parameters, axis=1, epsilon=0.0, training=False)
                q2 = quantize(bn[0], ZERO, BITS)
                R.output(q2)
            return q2

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                s = conv2d(q, CODES, BINARY, unsigned)
                conv1 = affine(s, scale, offset)
                q2 = float_threshold(conv1, direction, limits, BITS)
                R.output(q2)
            return q2

    assert_same(FoldEpilogues()(Before), Expected)


def test_a_product_with_several_readers_is_computed_once(assert_same):
    parameters = norm((1.0, -1.0, 2.0), mean=(0.0, 0.0, 0.0))
    scale, offset = constant(np.array([0.5, -0.5, 1.0], np.float32)), constant(np.full(3, 0.5, np.float32))
    direction, limits = constant(np.ones(3, np.float32)), constant(np.zeros((1, 3), np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(CODES, *SIGN)
                conv1 = R.nn.conv2d(x, w)
                bn = R.nn.batch_norm(conv1, *parameters, axis=1, epsilon=0.0, training=False)
                y = bn[0]
                q2 = quantize(y, ZERO, BITS)
                z = R.exp(y)
                out = (q2, z)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                conv1 = conv2d(q, CODES, BINARY, BINARY)
                y = affine(conv1, scale, offset)
                q2 = float_threshold(y, direction, limits, BITS)
                z = R.exp(y)
                out = (q2, z)
                R.output(out)
            return out

    assert_same(FoldEpilogues()(Before), Expected)


# Two planes per channel whose codes are sums with signs; activations are 0.5 or 2.5.
BASIS = np.array([[1.0, 2.5], [-1.5, 0.25], [2.0, 0.75]])
TWO_BITS = np.random.default_rng(1).integers(0, 4, (3, 4, 3, 3), dtype=np.uint8)
LEARNED = Encoding.learned(2 * BASIS, -BASIS.sum(axis=1))
SHIFTED = Encoding.learned(np.array([2.0]), np.array(0.5))
TERMS = BasisTerms("xor", TWO_BITS, np.array([2.0], np.float32), BASIS.T.astype(np.float32))


def test_an_offset_of_activations_is_a_bias_per_border_class_of_learned_bases(assert_same):
    limits, direction = constant(np.full((1, 3), -1, np.float32)), constant(np.ones(3, np.float32))
    values = BitPlanes(TWO_BITS, LEARNED).dense()
    # Rows of the window inside the image: all but the first, all, all but the last.
    inside = [slice(1, 3), slice(0, 3), slice(0, 2)]
    # The classes are in lexicographic order of (is inside) per tap.
    order = [inside[0], inside[2], inside[1]]
    bias = np.array([[0.5 * values[:, :, rows, columns].sum(axis=(1, 2, 3)) for columns in order] for rows in order])

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *encoding_constants(SHIFTED))
                w = dequantize(constant(TWO_BITS), *encoding_constants(LEARNED))
                conv1 = R.nn.conv2d(x, w, padding=[1, 1, 1, 1])
                y = R.add(conv1, R.const(1.0, "float32"))
                q2 = quantize(y, ZERO, BITS)
                R.output(q2)
            return q2

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                conv1 = basis_conv2d(q, TERMS, bias, padding=[1, 1, 1, 1])
                q2 = float_threshold(conv1, direction, limits, BITS)
                R.output(q2)
            return q2

    assert_same(FoldEpilogues()(Before), Expected)


def test_without_padding_or_offset_the_bias_is_one_per_channel(assert_same):
    values = BitPlanes(TWO_BITS, LEARNED).dense()
    bias = 0.5 * values.sum(axis=(1, 2, 3))[None, None]

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), r: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *encoding_constants(SHIFTED))
                z = dequantize(r, *encoding_constants(Encoding.unsigned(2)))
                w = dequantize(constant(TWO_BITS), *encoding_constants(LEARNED))
                conv1 = R.nn.conv2d(x, w)
                conv2 = R.nn.conv2d(z, w, padding=[1, 1, 1, 1])
                out = (conv1, conv2)
                R.output(out)
            return out

    unsigned = BasisTerms("xor", TWO_BITS, np.array([1.0, 2.0], np.float32), TERMS.weight_basis)

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), r: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                conv1 = basis_conv2d(q, TERMS, bias)
                conv2 = basis_conv2d(r, unsigned, np.zeros((1, 1, 3)), padding=[1, 1, 1, 1])
                out = (conv1, conv2)
                R.output(out)
            return out

    assert_same(FoldEpilogues()(Before), Expected)


def test_an_offset_of_weights_is_a_plane_of_ones(assert_same):
    codes = np.array([[0, 1, 1, 0], [1, 1, 0, 1]], np.uint8)
    encoding = Encoding.learned(np.array([[1.5], [0.5]]), np.array([0.25, -3.0]))
    # Activations are -1 or 1.
    bias = -BitPlanes(codes, encoding).dense().sum(axis=1)[None, None]
    rows = np.array([[1.5, 0.5], [0.25, -3.0]], np.float32)
    terms = BasisTerms("and", codes | np.uint8(2), np.array([2.0], np.float32), rows)

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((5, 4), "uint8")):
            with R.dataflow():
                x = dequantize(q, *SIGN)
                w = dequantize(constant(codes), *encoding_constants(encoding))
                t = R.permute_dims(w, [1, 0])
                fc = R.matmul(x, t)
                R.output(fc)
            return fc

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((5, 4), "uint8")):
            with R.dataflow():
                fc = basis_dense(q, terms, bias)
                R.output(fc)
            return fc

    assert_same(FoldEpilogues()(Before), Expected)


def test_borders_of_an_image_of_unknown_size_stay_float(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, "h", 6), "uint8")):
            with R.dataflow():
                x = dequantize(q, *encoding_constants(SHIFTED))
                w = dequantize(constant(TWO_BITS), *encoding_constants(LEARNED))
                conv1 = R.nn.conv2d(x, w, padding=[1, 1, 1, 1])
                R.output(conv1)
            return conv1

    assert_same(FoldEpilogues()(Before), Before)


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([0.0, 1e-30, -1e-3, 0.7, -1.0, 3.0, 1e20]), min_size=4, max_size=4),
    st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4),
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=3, unique=True),
)
def test_float_thresholds_agree_with_the_function_around_every_threshold(factors, shifts, levels):
    factor, shift = np.array(factors), np.array(shifts)
    thresholds = np.sort(np.array(levels, np.float32))
    direction = np.sign(factor).astype(np.int64)

    def function(x):
        with np.errstate(invalid="ignore"):
            return np.clip(x.astype(np.float64) * factor + shift, -45, 45)

    found = float_thresholds(function, direction, thresholds)
    sign = np.where(direction < 0, -1, 1).astype(np.float32)
    finite = np.where(np.isfinite(found), found, np.float32(0))
    for x in (finite, np.nextafter(finite, np.float32(-np.inf)), np.nextafter(finite, np.float32(np.inf))):
        for row, level in enumerate(thresholds):
            np.testing.assert_array_equal(x[row] >= found[row], function(x[row] * sign) >= np.float64(level))


magnitudes = st.sampled_from([0.0, 1e-30, 1e-3, 0.7, 1.0, 3.0, 1e20])


@settings(max_examples=200)
@given(
    st.lists(magnitudes, min_size=4, max_size=4),
    st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4),
    st.lists(st.integers(-40, 40), min_size=4, max_size=4),
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=3, unique=True),
)
def test_integer_thresholds_agree_with_the_function_on_every_integer(magnitude, sign, shift, levels):
    factor = np.array(magnitude) * sign
    thresholds = np.sort(np.array(levels, np.float32))

    def function(s):
        return np.clip(s * factor + np.array(shift), -45, 45)

    found = integer_thresholds(function, np.sign(factor), thresholds, 60)
    s = np.arange(-60, 61)[:, None] * np.ones(4, np.int64)
    direction = np.where(factor < 0, -1, 1)
    for row, level in zip(found, thresholds, strict=True):
        np.testing.assert_array_equal(s >= row, function(s * direction) >= np.float64(level))


def test_equality_counts_as_reached():
    found = integer_thresholds(lambda s: s * 0.5, np.ones(1), np.array([1.5, 1.75]), 10)
    np.testing.assert_array_equal(found, [[3], [4]])
    never = integer_thresholds(lambda s: s * 0.5, np.ones(1), np.array([100.0]), 10)
    np.testing.assert_array_equal(never, [[NEVER]])


def random_module(random: np.random.Generator) -> relax.Function:
    channels, outputs = (int(v) for v in random.integers(1, 9, 2))
    weight = constant(random.integers(0, 2, (outputs, channels, 3, 3), dtype=np.uint8))
    gamma = random.normal(size=outputs) * random.integers(0, 2, outputs)
    parameters = [
        constant(values.astype(np.float32))
        for values in (
            gamma,
            random.normal(size=outputs),
            5 * random.normal(size=outputs),
            random.random(outputs) + 0.1,
        )
    ]
    bias = constant(random.normal(size=(1, outputs, 1, 1)).astype(np.float32))
    thresholds = constant(np.sort(random.normal(size=3)).astype(np.float32))
    codes = constant(np.arange(4, dtype=np.uint8))
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((2, channels, 7, 7), "uint8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            x = builder.emit(dequantize(q, *SIGN))
            w = builder.emit(dequantize(weight, *encoding_constants(Encoding.binary(random.random(outputs) + 0.5))))
            value = builder.emit(relax.op.nn.conv2d(x, w, padding=1))
            value = builder.emit(relax.op.add(value, bias))
            if random.integers(2):
                value = builder.emit(relax.op.nn.max_pool2d(value, (2, 2), (2, 2), (1, 1), ceil_mode=True))
            value = builder.emit(relax.op.nn.batch_norm(value, *parameters, axis=1, training=False))
            value = builder.emit(relax.TupleGetItem(value, 0))
            value = builder.emit(relax.op.nn.relu(value))
            value = builder.emit(relax.op.reshape(value, (2, -1)))
            output = builder.emit_output(quantize(value, thresholds, codes))
        builder.emit_func_output(output)
    return builder.get()


@pytest.mark.parametrize("seed", range(20))
def test_folded_and_unfolded_networks_agree(seed):
    random = np.random.default_rng(seed)
    module = random_module(random)
    folded = FoldEpilogues()(module)
    assert "R.nn" not in folded.script(show_meta=False)
    q = random.integers(0, 2, [int(v) for v in module["main"].params[0].ty.shape], dtype=np.uint8)
    np.testing.assert_array_equal(golden.interpret(folded, [q])[0], golden.interpret(module, [q])[0])
