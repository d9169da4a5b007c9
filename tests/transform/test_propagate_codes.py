"""dequantize moves below what only chooses or rearranges."""

from __future__ import annotations

import numpy as np
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.bitplanes import Encoding
from tvmq.dialect import constant, dequantize, encoding_constants, max_pool2d
from tvmq.transform import PropagateCodes

SIGN = encoding_constants(Encoding.binary())
FALLING = encoding_constants(Encoding(np.array([-2]), np.array(1)))
TERNARY = encoding_constants(Encoding.ternary())
LARGEST, SMALLEST = (constant(np.full(4, flag, np.uint8)) for flag in (0, 1))


def test_max_pool_and_reshape_work_on_codes(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                p = R.nn.max_pool2d(b, pool_size=[2, 2], strides=[2, 2])
                f = R.reshape(p, (1, 36))
                R.output(f)
            return f

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                p = max_pool2d(q, LARGEST, (2, 2), (2, 2))
                f = R.reshape(p, (1, 36))
                b = dequantize(f, *SIGN)
                R.output(b)
            return b

    assert_same(PropagateCodes()(Before), Expected)


def test_falling_codes_take_the_minimum(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *FALLING)
                p = R.nn.max_pool2d(b, pool_size=[2, 2], strides=[2, 2])
                R.output(p)
            return p

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                p = max_pool2d(q, SMALLEST, (2, 2), (2, 2))
                b = dequantize(p, *FALLING)
                R.output(b)
            return b

    assert_same(PropagateCodes()(Before), Expected)


def test_codes_without_order_are_not_pooled(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *TERNARY)
                p = R.nn.max_pool2d(b, pool_size=[2, 2], strides=[2, 2])
                R.output(p)
            return p

    assert_same(PropagateCodes()(Before), Before)


def test_average_pool_needs_values(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *SIGN)
                p = R.nn.avg_pool2d(b, pool_size=[2, 2], strides=[2, 2])
                R.output(p)
            return p

    assert_same(PropagateCodes()(Before), Before)


def test_scales_per_channel_stay_where_they_are(assert_same):
    scales = encoding_constants(Encoding.binary(np.array([1.0, 2.0, 3.0, 4.0])))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((4, 6), "uint8")):
            with R.dataflow():
                b = dequantize(q, *scales)
                f = R.reshape(b, (24,))
                R.output(f)
            return f

    assert_same(PropagateCodes()(Before), Before)


def test_concat_of_one_encoding_joins_codes(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), r: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                a = dequantize(q, *TERNARY)
                b = dequantize(r, *TERNARY)
                c = R.concat((a, b), axis=1)
                R.output(c)
            return c

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), r: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                c = R.concat((q, r), axis=1)
                d = dequantize(c, *TERNARY)
                R.output(d)
            return d

    assert_same(PropagateCodes()(Before), Expected)


def test_concat_of_different_encodings_needs_values(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 4, 6, 6), "uint8"), r: R.Tensor((1, 4, 6, 6), "uint8")):
            with R.dataflow():
                a = dequantize(q, *TERNARY)
                b = dequantize(r, *SIGN)
                c = R.concat((a, b), axis=1)
                R.output(c)
            return c

    assert_same(PropagateCodes()(Before), Before)
