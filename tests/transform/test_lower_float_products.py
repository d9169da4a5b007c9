"""Weight-only products get packed weights; every stage computes the same bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.bitplanes import Encoding
from tvmq.dialect import (
    affine,
    constant,
    float_conv2d,
    float_dense,
    float_workload,
    is_call,
    packed_float_product,
    weight_only_conv2d,
    weight_only_dense,
)
from tvmq.golden import interpret
from tvmq.kernels.float_workload import FloatWorkload, pack_codes
from tvmq.target import get_target
from tvmq.transform import LegalizeKernels, LowerFloatProducts

TARGET = get_target("raspberry-pi-4")
TERNARY = Encoding.ternary()
CODES = np.random.default_rng(0).integers(0, 3, (5, 3, 3, 3)).astype(np.uint8)
MATRIX = np.random.default_rng(1).integers(0, 8, (6, 30)).astype(np.uint8)


@pytest.mark.parametrize(("width", "stored"), [(1, 8), (7, 5)], ids=["channels in lanes", "pixels in lanes"])
def test_convolution(assert_same, width, stored):
    codes, scale = constant(CODES), constant(np.arange(1, 6, dtype=np.float32))
    workload = FloatWorkload(
        height=8,
        width=width,
        in_channels=3,
        out_channels=5,
        kernel=(3, 3),
        strides=(2, 1),
        padding=(1, 0, 1, 2),
        dilation=(1, 1),
        dense=False,
        coefficients=(1, -2),
        offset=0,
        lanes=4,
        registers=32,
    )
    # +1 is code 1 in both alphabets; -1 is code 2, and 3 in two's complement.
    words = constant(pack_codes(np.array([0, 1, 3], np.uint8)[CODES].reshape(5, 27), workload))
    padded = constant(np.array([1, 2, 3, 4, 5, 0, 0, 0], np.float32)[:stored])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, width), "float32")):
            with R.dataflow():
                conv1 = weight_only_conv2d(x, codes, scale, TERNARY, [2, 1], [1, 0, 1, 2])
                R.output(conv1)
            return conv1

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, width), "float32")):
            with R.dataflow():
                conv1 = packed_float_product(x, words, [padded], workload, "conv1")
                R.output(conv1)
            return conv1

    assert_same(LowerFloatProducts(TARGET)(Before), Expected)


def test_dense_layer(assert_same):
    codes, scale = constant(MATRIX), constant(np.float32(0.5).reshape(()))
    workload = FloatWorkload(
        height=1,
        width=1,
        in_channels=30,
        out_channels=6,
        kernel=(1, 1),
        strides=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        dense=True,
        coefficients=(2, 4, 8),
        offset=-7,
        lanes=4,
        registers=32,
    )
    words = constant(pack_codes(MATRIX, workload))
    padded = constant(np.array([0.5] * 6 + [0] * 2, np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 30), "float32")):
            with R.dataflow():
                fc = weight_only_dense(x, codes, scale, Encoding.equispaced(3))
                R.output(fc)
            return fc

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((3, 30), "float32")):
            with R.dataflow():
                fc = packed_float_product(x, words, [padded], workload, "fc")
                R.output(fc)
            return fc

    assert_same(LowerFloatProducts(TARGET)(Before), Expected)


def kernels(module: tvm.IRModule) -> list[Any]:
    lowered = LowerFloatProducts(TARGET)(module)
    bindings = [binding.value for block in lowered["main"].body.blocks for binding in block.bindings]
    return [value for value in bindings if is_call(value, "tvmq.packed_float_product")]


def test_what_follows_a_product_goes_into_its_kernel(assert_same):
    weight = constant(np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32))
    bias = constant(np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1))
    workload = FloatWorkload(
        height=8,
        width=8,
        in_channels=3,
        out_channels=8,
        kernel=(3, 3),
        strides=(1, 1),
        padding=(1, 1, 1, 1),
        dilation=(1, 1),
        dense=False,
        coefficients=(),
        offset=0,
        lanes=4,
        registers=32,
        bias=True,
        affine=True,
        shortcut=True,
        low=0.0,
        high=6.0,
    )
    rows = constant(np.arange(8, dtype=np.float32))
    multiplier, offset = constant(np.arange(8, 16, dtype=np.float32)), constant(np.arange(-8, 0, dtype=np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, 8), "float32"), y: R.Tensor(("n", 8, 8, 8), "float32")):
            with R.dataflow():
                conv1 = float_conv2d(x, weight, [1, 1], [1, 1, 1, 1])
                biased = R.add(bias, conv1)
                normal = affine(biased, multiplier, offset)
                total = R.add(normal, y)
                z = R.clip(total, 0, 6)
                R.output(z)
            return z

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, 8), "float32"), y: R.Tensor(("n", 8, 8, 8), "float32")):
            with R.dataflow():
                z = packed_float_product(x, weight, [rows, multiplier, offset, y], workload, "conv1")
                R.output(z)
            return z

    assert workload.pixel_lanes
    assert_same(LowerFloatProducts(TARGET)(Before), Expected)


def test_a_bias_behind_a_normalization_stays_an_addition():
    weight, rows = constant(np.ones((30, 30), np.float32)), constant(np.arange(30, dtype=np.float32))

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 30), "float32")):
            with R.dataflow():
                product = float_dense(x, weight)
                normal = affine(product, rows, rows)
                again = affine(normal, rows, rows)
                y = R.add(again, rows)
                R.output(y)
            return y

    (kernel,) = kernels(Module)
    workload = float_workload(kernel)
    assert (workload.affine, workload.bias, len(kernel.args)) == (True, False, 4)


def test_the_sum_of_two_products_belongs_to_one_of_them():
    weight = constant(np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32))

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 30), "float32"), y: R.Tensor((2, 30), "float32")):
            with R.dataflow():
                a = float_dense(x, weight)
                b = float_dense(y, weight)
                c = R.add(a, b)
                d = R.nn.relu(c)
                R.output(d)
            return d

    workloads = [float_workload(call) for call in kernels(Module)]
    assert [(work.shortcut, work.low) for work in workloads] == [(False, None), (True, 0.0)]


def test_what_others_read_stays_a_value():
    weight = constant(np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32))

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 30), "float32")):
            with R.dataflow():
                a = float_dense(x, weight)
                b = R.nn.relu(a)
                c = float_dense(b, weight)
                d = R.add(c, c)
                e = float_dense(d, weight)
                f = R.add(e, R.const(np.ones((2, 30), np.float32)))
                out = (a, f)
                R.output(out)
            return out

    calls = kernels(Module)
    assert all(work == dataclasses.replace(work, bias=False, shortcut=False) for work in map(float_workload, calls))
    assert len({float_workload(call).low for call in calls}) == 1
    assert calls[0].args[1].same_as(calls[1].args[1])  # a packed weight is shared as the weight was


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-3-32", "x86-avx2", "x86-avx512"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_stage_computes_the_same_bits(random, name, batch):
    codes, scale = constant(CODES), constant(random.normal(size=5).astype(np.float32))
    matrix, one = constant(MATRIX), constant(np.float32(0.3).reshape(()))
    shapes = {"bias": (6,), "floats": (6, 1, 3, 3), "wide": (5, 3, 3, 2), "square": (6, 6)}
    bias, floats, wide, square = (constant(random.normal(size=shape).astype(np.float32)) for shape in shapes.values())

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, 7), "float32"), y: R.Tensor(("n", 30), "float32")):
            with R.dataflow():
                conv1 = weight_only_conv2d(x, codes, scale, TERNARY, [1, 2], [1, 1, 1, 1], [2, 1])
                fc = weight_only_dense(y, matrix, one, Encoding.equispaced(3))
                fc_biased = R.add(fc, bias)
                conv2 = float_conv2d(x, floats, [2, 2], [1, 1, 1, 1], groups=3)
                conv2_biased = R.add(conv2, R.const(0.3, "float32"))
                conv3 = float_conv2d(x, wide, [1, 1], [1, 0, 1, 0])
                total = R.add(conv3, conv3)
                rectified = R.nn.relu(total)
                head = float_dense(fc_biased, square)
                shortcut = R.add(head, fc_biased)
                out = (conv1, fc_biased, conv2_biased, rectified, shortcut)
                R.output(out)
            return out

    arrays = [random.normal(size=(batch, *shape)).astype(np.float32) for shape in ((3, 8, 7), (30,))]
    expected = interpret(Module, arrays)
    module: tvm.IRModule = Module
    for item in (LowerFloatProducts(get_target(name)), LegalizeKernels()):
        module = item(module)
        for actual, like in zip(interpret(module, arrays), expected, strict=True):
            np.testing.assert_array_equal(actual.view(np.int32), like.view(np.int32))
