"""Quantizers move above what they commute with, and only there."""

from __future__ import annotations

import numpy as np
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.dialect import constant, max_pool2d, quantize
from tvmq.transform import HoistQuantizers

LIMITS = constant(np.array([-1.0, 0.0, 1.0], np.float32))
RISING, FALLING, MIXED = (constant(np.array(codes, np.uint8)) for codes in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3]))
LARGEST, SMALLEST = (constant(np.full(5, flag, np.uint8)) for flag in (0, 1))


def network(codes):
    @I.ir_module
    class Module:
        @R.function
        def main(a: R.Tensor((1, 2, 4, 4), "float32"), b: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                c = R.concat((a, b), axis=1)
                p = R.nn.max_pool2d(c, pool_size=[2, 2], strides=[2, 2])
                f = R.reshape(p, (1, 20))
                q = quantize(f, LIMITS, codes)
                R.output(q)
            return q

    return Module


def hoisted(codes, minimum):
    @I.ir_module
    class Module:
        @R.function
        def main(a: R.Tensor((1, 2, 4, 4), "float32"), b: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                qa = quantize(a, LIMITS, codes)
                qb = quantize(b, LIMITS, codes)
                c = R.concat((qa, qb), axis=1)
                p = max_pool2d(c, minimum, (2, 2), (2, 2))
                q = R.reshape(p, (1, 20))
                R.output(q)
            return q

    return Module


def test_above_concat_pool_and_reshape(assert_same):
    assert_same(HoistQuantizers()(network(RISING)), hoisted(RISING, LARGEST))


def test_falling_codes_take_the_minimum(assert_same):
    assert_same(HoistQuantizers()(network(FALLING)), hoisted(FALLING, SMALLEST))


def test_codes_without_order_stay_below_the_pool(assert_same):
    @I.ir_module
    class Expected:
        @R.function
        def main(a: R.Tensor((1, 2, 4, 4), "float32"), b: R.Tensor((1, 3, 4, 4), "float32")):
            with R.dataflow():
                c = R.concat((a, b), axis=1)
                p = R.nn.max_pool2d(c, pool_size=[2, 2], strides=[2, 2])
                q = quantize(p, LIMITS, MIXED)
                f = R.reshape(q, (1, 20))
                R.output(f)
            return f

    assert_same(HoistQuantizers()(network(MIXED)), Expected)


def test_not_above_an_average(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(a: R.Tensor((1, 2, 4, 4), "float32")):
            with R.dataflow():
                p = R.nn.avg_pool2d(a, pool_size=[2, 2], strides=[2, 2])
                q = quantize(p, LIMITS, RISING)
                R.output(q)
            return q

    assert_same(HoistQuantizers()(Before), Before)
