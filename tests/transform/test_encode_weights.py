"""Weights on few levels become codes, others do not."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.bitplanes import Encoding
from tvmq.dialect import constant, dequantize, encoding_constants
from tvmq.transform import EncodeWeights

SIGN = encoding_constants(Encoding.binary())
SIGNS = np.random.default_rng(0).choice(np.array([-1.0, 1.0], np.float32), (5, 4, 3, 3))
MATRIX = np.random.default_rng(1).choice(np.array([-1.0, 1.0], np.float32), (5, 7))


def convolution(weight: np.ndarray):
    value = constant(weight)

    @I.ir_module
    class Module:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                conv1 = R.nn.conv2d(b, value)
                R.output(conv1)
            return conv1

    return Module


@pytest.mark.parametrize("scale", [np.float32(1), np.array([1, 2, 3, 4, 0.1], np.float32)])
def test_convolution_weight_with_one_scale_or_one_per_channel(assert_same, scale):
    codes = constant((SIGNS > 0).astype(np.uint8))
    encoding = encoding_constants(Encoding.binary(scale))

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                w = dequantize(codes, *encoding)
                conv1 = R.nn.conv2d(b, w)
                R.output(conv1)
            return conv1

    assert_same(EncodeWeights()(convolution(SIGNS * np.reshape(scale, (-1, 1, 1, 1)))), Expected)


def expected_dense():
    codes = constant((MATRIX > 0).astype(np.uint8))

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((3, 7), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                w = dequantize(codes, *SIGN)
                t = R.permute_dims(w, [1, 0])
                fc = R.matmul(b, t)
                R.output(fc)
            return fc

    return Expected


def test_transposed_matrix_weight(assert_same):
    value = constant(MATRIX)

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((3, 7), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                t = R.permute_dims(value, [1, 0])
                fc = R.matmul(b, t)
                R.output(fc)
            return fc

    assert_same(EncodeWeights()(Before), expected_dense())


def test_matrix_weight_is_stored_by_output(assert_same):
    value = constant(np.ascontiguousarray(MATRIX.T))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((3, 7), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                fc = R.matmul(b, value)
                R.output(fc)
            return fc

    assert_same(EncodeWeights()(Before), expected_dense())


def test_ternary_weights_get_two_planes(assert_same):
    weight = SIGNS.copy()
    weight[:, ::2] = 0
    codes = constant(np.where(weight > 0, 1, np.where(weight < 0, 2, 0)).astype(np.uint8))
    ternary = encoding_constants(Encoding.ternary())

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                w = dequantize(codes, *ternary)
                conv1 = R.nn.conv2d(b, w)
                R.output(conv1)
            return conv1

    assert_same(EncodeWeights()(convolution(weight)), Expected)


def test_other_weights_stay_float(assert_same):
    module = convolution(np.random.default_rng(0).normal(size=(5, 4, 3, 3)).astype(np.float32))
    assert_same(EncodeWeights()(module), module)


@pytest.mark.parametrize("count, dtype", [(5, np.uint8), (16, np.uint16)])
def test_any_levels_get_a_plane_each(assert_same, count, dtype):
    levels = np.sqrt(np.arange(2, 60)[np.arange(58) % 4 != 2][:count]).astype(np.float32)
    picked = np.random.default_rng(2).integers(0, count, (5, 40, 3, 3))
    codes = constant((1 << picked).astype(dtype))
    encoding = encoding_constants(Encoding.learned(levels))
    value = constant(levels[picked])

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 40, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                conv1 = R.nn.conv2d(b, value)
                R.output(conv1)
            return conv1

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 40, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                w = dequantize(codes, *encoding)
                conv1 = R.nn.conv2d(b, w)
                R.output(conv1)
            return conv1

    assert_same(EncodeWeights()(Before), Expected)


def test_seventeen_levels_stay_float(assert_same):
    module = convolution(np.resize(np.sqrt(np.arange(2, 19, dtype=np.float32)), (5, 4, 3, 3)))
    assert_same(EncodeWeights()(module), module)


def test_products_without_a_packed_kernel_keep_their_weights(assert_same):
    depthwise, matrix = constant(SIGNS[:4, :1]), constant(MATRIX.T.copy())

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), r: R.Tensor((2, 3, 7), "uint8")):
            with R.dataflow():
                a = dequantize(q, *SIGN)
                b = dequantize(r, *SIGN)
                grouped = R.nn.conv2d(a, depthwise, groups=4)
                batched = R.matmul(b, matrix)
                out = (grouped, batched)
                R.output(out)
            return out

    assert_same(EncodeWeights()(Before), Before)


def test_a_float_operand_keeps_its_weights(assert_same):
    value = constant(SIGNS)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 6), "float32")):
            with R.dataflow():
                conv1 = R.nn.conv2d(x, value)
                R.output(conv1)
            return conv1

    assert_same(EncodeWeights()(Before), Before)
