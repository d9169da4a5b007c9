"""Staircases written as arithmetic, and arithmetic that only looks like one."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvmq import golden
from tvmq.bitplanes import Encoding
from tvmq.dialect import constant, dequantize, encoding_constants, quantize
from tvmq.transform import RecognizeQuantizers
from tvmq.transform.recognize_quantizers import staircase

ZERO = constant(np.zeros(1, np.float32))
BITS = constant(np.array([0, 1], np.uint8))
SIGN = encoding_constants(Encoding.binary())


def test_sign_with_zero_positive(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.greater_equal(x, R.const(0.0))
                b = R.where(a, R.const(1.0), R.const(-1.0))
                c = R.exp(b)
                R.output(c)
            return c

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                q = quantize(x, ZERO, BITS)
                b = dequantize(q, *SIGN)
                c = R.exp(b)
                R.output(c)
            return c

    assert_same(RecognizeQuantizers()(Before), Expected)


def test_clip_before_the_sign_disappears(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                h = R.clip(x, T.float64(-1.0), T.float64(1.0))
                a = R.greater_equal(h, R.const(0.0))
                b = R.where(a, R.const(1.0), R.const(-1.0))
                c = R.exp(b)
                R.output(c)
            return c

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                q = quantize(x, ZERO, BITS)
                b = dequantize(q, *SIGN)
                c = R.exp(b)
                R.output(c)
            return c

    assert_same(RecognizeQuantizers()(Before), Expected)


def test_a_falling_step_swaps_the_codes(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.greater_equal(x, R.const(0.0))
                b = R.where(a, R.const(-1.0), R.const(1.0))
                c = R.exp(b)
                R.output(c)
            return c

    swapped = constant(np.array([1, 0], np.uint8))

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                q = quantize(x, ZERO, swapped)
                b = dequantize(q, *SIGN)
                c = R.exp(b)
                R.output(c)
            return c

    assert_same(RecognizeQuantizers()(Before), Expected)


def test_relu_alone_is_no_staircase(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                h = R.nn.relu(x)
                c = R.exp(h)
                R.output(c)
            return c

    assert_same(RecognizeQuantizers()(Before), Before)


def test_floor_without_bounds_has_too_many_levels(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                h = R.floor(x)
                c = R.exp(h)
                R.output(c)
            return c

    assert_same(RecognizeQuantizers()(Before), Before)


def test_of_levels_that_are_not_equispaced_the_equispaced_part_is_taken():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.clip(R.floor(x), T.float64(0.0), T.float64(6.0))
                b = R.tanh(a)
                c = R.exp(b)
                R.output(c)
            return c

    text = RecognizeQuantizers()(Before).script(show_meta=False)
    assert "R.tanh(a)" in text and "tvmq.quantize(x" in text and "R.floor" not in text


def test_a_few_levels_need_not_be_equispaced(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.where(R.greater_equal(x, R.const(0.0)), R.const(0.0), R.const(-0.5))
                b = R.where(R.greater_equal(x, R.const(1.0)), R.const(1.25), R.const(0.0))
                c = R.where(R.greater_equal(x, R.const(2.0)), R.const(0.625), R.const(0.0))
                d = R.add(R.add(a, b), c)
                R.output(d)
            return d

    thresholds = constant(np.array([0, 1, 2], np.float32))
    encoding = Encoding.learned(np.array([0.5, 1.75, 2.375]), np.array(-0.5))
    codes = constant(np.array([0, 1, 2, 4], np.uint8))

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                q = quantize(x, thresholds, codes)
                d = dequantize(q, *encoding_constants(encoding))
                R.output(d)
            return d

    assert_same(RecognizeQuantizers()(Before), Expected)


def test_a_threshold_per_channel_is_no_scalar_chain(assert_same):
    bound = constant(np.array([[0.0], [1.0]], np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.greater_equal(x, bound)
                b = R.astype(a, "float32")
                c = R.exp(b)
                R.output(c)
            return c

    result = RecognizeQuantizers()(Before)
    assert "tvmq" not in result.script(show_meta=False)


def test_eight_bit_input_is_exact_for_every_float(random):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((40000,), "float32")):
            with R.dataflow():
                a = R.multiply(x, R.const(255.0))
                b = R.add(a, R.const(0.5))
                c = R.floor(b)
                d = R.clip(c, T.float64(0.0), T.float64(255.0))
                e = R.multiply(d, R.const(0.25))
                f = R.nn.relu(R.exp(e))
                R.output(f)
            return f

    after = RecognizeQuantizers()(Before)
    assert "tvmq.quantize" in after.script(show_meta=False)
    ties = (np.arange(-10, 300) + 0.5) / 255
    around = [np.nextafter(ties.astype(np.float32), np.float32(side)) for side in (-9, 9)]
    special = np.array([np.inf, -np.inf, 0.0, -0.0, 1e38, -1e38, 1e-40], np.float32)
    values = np.concatenate([special, ties.astype(np.float32), *around])
    x = np.concatenate([values, random.normal(size=40000 - len(values)).astype(np.float32)])
    codes = golden.interpret(after, [x])[0]
    np.testing.assert_array_equal(codes, golden.interpret(Before, [x])[0])


@pytest.mark.parametrize("offset", [0.0, 0.1, -3.3])
def test_staircase_finds_the_exact_thresholds(offset, random):
    def function(x):
        with np.errstate(over="ignore"):
            x = x * np.float32(1.7)
        return np.clip(np.round(x + np.float32(offset)), -3, 4)

    thresholds, levels = staircase(function)
    np.testing.assert_array_equal(levels, np.arange(-3, 5))
    below = np.nextafter(thresholds, np.float32(-np.inf))
    np.testing.assert_array_equal(function(thresholds), levels[1:])
    np.testing.assert_array_equal(function(below), levels[:-1])


def test_staircase_gives_up_on_smooth_functions():
    assert staircase(np.tanh) is None


def test_sums_of_steps_that_rise_are_one_staircase():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.where(R.greater(x, R.const(0.5)), R.const(1.0), R.const(0.0))
                b = R.where(R.greater(x, R.const(1.5)), R.const(1.0), R.const(0.0))
                c = R.exp(R.add(a, b))
                R.output(c)
            return c

    after = RecognizeQuantizers()(Before)
    assert after.script(show_meta=False).count("tvmq.quantize") == 1
    x = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1.5], [2, -1, 0]], np.float32)
    np.testing.assert_array_equal(golden.interpret(after, [x])[0], golden.interpret(Before, [x])[0])


def test_a_sum_of_a_step_up_and_a_step_down_is_not():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.where(R.greater(x, R.const(0.5)), R.const(1.0), R.const(0.0))
                b = R.where(R.less(x, R.const(1.5)), R.const(1.0), R.const(0.0))
                c = R.exp(R.add(a, b))
                R.output(c)
            return c

    after = RecognizeQuantizers()(Before)
    assert after.script(show_meta=False).count("tvmq.quantize") == 2  # each step alone


def test_a_reciprocal_is_not_monotone(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float32")):
            with R.dataflow():
                a = R.divide(R.const(1.0), x)
                b = R.greater_equal(a, R.const(0.5))
                c = R.where(b, R.const(1.0), R.const(-1.0))
                d = R.exp(c)
                R.output(d)
            return d

    after = RecognizeQuantizers()(Before)
    assert "R.divide" in after.script(show_meta=False)
    x = np.array([[-5, -0.1, 0.1], [1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_array_equal(golden.interpret(after, [x])[0], golden.interpret(Before, [x])[0])
