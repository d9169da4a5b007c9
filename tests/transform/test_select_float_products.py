"""Low-bit weights of float products become codes, other products stay float."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.bitplanes import Encoding
from tvmq.dialect import (
    constant,
    dequantize,
    encoding_constants,
    float_conv2d,
    is_call,
    weight_only_conv2d,
    weight_only_dense,
)
from tvmq.transform import SelectFloatProducts

CODES = np.random.default_rng(0).integers(0, 4, (5, 8, 3, 3)).astype(np.uint8)
MATRIX = np.random.default_rng(1).integers(0, 4, (12, 30)).astype(np.uint8)
FOUR = Encoding.equispaced(2)
SIGN = encoding_constants(Encoding.binary())


def test_convolution(assert_same):
    scale = np.array([1, 0.5, 3, 0.1, 0.7], np.float32)
    value = constant(Encoding.equispaced(2, scale).values(CODES))
    codes, factors = constant(CODES), constant(scale)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8, 6, 7), "float32")):
            with R.dataflow():
                conv1 = R.nn.conv2d(x, value, strides=[2, 1], padding=[1, 0, 2, 1], dilation=[1, 2])
                R.output(conv1)
            return conv1

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 8, 6, 7), "float32")):
            with R.dataflow():
                conv1 = weight_only_conv2d(x, codes, factors, FOUR, [2, 1], [1, 0, 2, 1], [1, 2])
                R.output(conv1)
            return conv1

    assert_same(SelectFloatProducts()(Before), Expected)


@pytest.mark.parametrize("transposed", [True, False])
def test_matrix_product_with_dynamic_batch(assert_same, transposed):
    by_output = constant(FOUR.values(MATRIX))
    by_input = constant(np.ascontiguousarray(FOUR.values(MATRIX).T))
    codes, one = constant(MATRIX), constant(np.float32(1).reshape(()))

    @I.ir_module
    class Transposed:
        @R.function
        def main(x: R.Tensor(("n", 30), "float32")):
            with R.dataflow():
                w = R.permute_dims(by_output, [1, 0])
                fc = R.matmul(x, w)
                R.output(fc)
            return fc

    @I.ir_module
    class Stored:
        @R.function
        def main(x: R.Tensor(("n", 30), "float32")):
            with R.dataflow():
                fc = R.matmul(x, by_input)
                R.output(fc)
            return fc

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 30), "float32")):
            with R.dataflow():
                fc = weight_only_dense(x, codes, one, FOUR)
                R.output(fc)
            return fc

    assert_same(SelectFloatProducts()(Transposed if transposed else Stored), Expected)


def test_vectors_of_sequences_are_samples(assert_same):
    value = constant(np.ascontiguousarray(FOUR.values(MATRIX).T))
    codes, one = constant(MATRIX), constant(np.float32(1).reshape(()))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 7, 30), "float32")):
            with R.dataflow():
                fc = R.matmul(x, value)
                R.output(fc)
            return fc

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((4, 7, 30), "float32")):
            with R.dataflow():
                rows = R.reshape(x, [28, 30])
                product = weight_only_dense(rows, codes, one, FOUR)
                fc = R.reshape(product, [4, 7, 12])
                R.output(fc)
            return fc

    assert_same(SelectFloatProducts()(Before), Expected)


def test_weights_that_the_network_has_as_codes(assert_same):
    encoding = encoding_constants(Encoding.twos_complement(2, 0.25))
    codes, scale = constant(CODES), constant(np.float32(0.25).reshape(()))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8, 6, 7), "float32")):
            with R.dataflow():
                w = dequantize(codes, *encoding)
                conv1 = R.nn.conv2d(x, w)
                R.output(conv1)
            return conv1

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 8, 6, 7), "float32")):
            with R.dataflow():
                conv1 = weight_only_conv2d(x, codes, scale, Encoding.twos_complement(2))
                R.output(conv1)
            return conv1

    assert_same(SelectFloatProducts()(Before), Expected)


def _float() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 8, 3, 3)).astype(np.float32)


def _learned() -> np.ndarray:
    return Encoding.learned(np.sqrt([0.3, 0.7]), -0.4).values(CODES)


def _five_bits() -> np.ndarray:
    codes = np.random.default_rng(0).integers(0, 32, (5, 8, 3, 3)).astype(np.uint8)
    return Encoding.equispaced(5).values(codes)


def _few() -> np.ndarray:
    return FOUR.values(CODES[:3])


@pytest.mark.parametrize("weight", [_float, _learned, _five_bits, _few], ids=lambda make: make.__name__[1:])
def test_other_weights_stay_float(assert_same, weight):
    value = constant(weight())

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8, 6, 7), "float32")):
            with R.dataflow():
                conv1 = R.nn.conv2d(x, value)
                R.output(conv1)
            return conv1

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 8, 6, 7), "float32")):
            with R.dataflow():
                conv1 = float_conv2d(x, value)
                R.output(conv1)
            return conv1

    assert_same(SelectFloatProducts()(Before), Expected)


def test_weights_of_groups_and_of_quantized_inputs_stay_float(assert_same):
    many = np.tile(FOUR.values(CODES), (8, 1, 1, 1))
    grouped, depthwise, dense = constant(many[:, :4]), constant(many[:40, :1]), constant(FOUR.values(CODES))

    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 8, 6, 7), "float32"),
            y: R.Tensor((2, 40, 6, 7), "float32"),
            q: R.Tensor((2, 8, 6, 7), "uint8"),
        ):
            with R.dataflow():
                a = R.nn.conv2d(x, grouped, groups=2)
                b = R.nn.conv2d(y, depthwise, strides=[2, 2], groups=40)
                values = dequantize(q, *SIGN)
                c = R.nn.conv2d(values, dense)
                out = (a, b, c)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 8, 6, 7), "float32"),
            y: R.Tensor((2, 40, 6, 7), "float32"),
            q: R.Tensor((2, 8, 6, 7), "uint8"),
        ):
            with R.dataflow():
                a = float_conv2d(x, grouped, groups=2)
                b = float_conv2d(y, depthwise, [2, 2], groups=40)
                values = dequantize(q, *SIGN)
                c = float_conv2d(values, dense)
                out = (a, b, c)
                R.output(out)
            return out

    assert_same(SelectFloatProducts()(Before), Expected)


def test_a_weight_that_is_used_again_is_one_constant():
    value = constant(np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32))

    @I.ir_module
    class Recurrent:
        @R.function
        def main(x: R.Tensor((30,), "float32")):
            with R.dataflow():
                a = R.matmul(x, value)
                b = R.matmul(a, value)
                R.output(b)
            return b

    selected = SelectFloatProducts()(Recurrent)
    bindings = [binding.value for block in selected["main"].body.blocks for binding in block.bindings]
    first, second = (call for call in bindings if is_call(call, "tvmq.float_dense"))
    assert first.args[1].same_as(second.args[1])
    assert list(selected["main"].ret_ty.shape) == [30]


def test_a_product_of_two_inputs_stays_float(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((20, 30), "float32"), y: R.Tensor((30, 20), "float32")):
            with R.dataflow():
                fc = R.matmul(x, y)
                R.output(fc)
            return fc

    assert_same(SelectFloatProducts()(Before), Before)
