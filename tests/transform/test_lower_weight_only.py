"""Weight-only products get packed weights; every stage computes the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.bitplanes import Encoding
from tvmq.dialect import constant, packed_weight_only, weight_only_conv2d, weight_only_dense
from tvmq.golden import interpret
from tvmq.kernels.weight_only import WeightOnlyWorkload, pack_codes
from tvmq.target import get_target
from tvmq.transform import LegalizeKernels, LowerWeightOnly

TARGET = get_target("raspberry-pi-4")
TERNARY = Encoding.ternary()
CODES = np.random.default_rng(0).integers(0, 3, (5, 3, 3, 3)).astype(np.uint8)
MATRIX = np.random.default_rng(1).integers(0, 8, (6, 30)).astype(np.uint8)


def test_convolution(assert_same):
    codes, scale = constant(CODES), constant(np.arange(1, 6, dtype=np.float32))
    workload = WeightOnlyWorkload(
        height=8,
        width=7,
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
    padded = constant(np.array([1, 2, 3, 4, 5, 0, 0, 0], np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, 7), "float32")):
            with R.dataflow():
                conv1 = weight_only_conv2d(x, codes, scale, TERNARY, [2, 1], [1, 0, 1, 2])
                R.output(conv1)
            return conv1

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, 7), "float32")):
            with R.dataflow():
                conv1 = packed_weight_only(x, words, padded, workload, "conv1")
                R.output(conv1)
            return conv1

    assert_same(LowerWeightOnly(TARGET)(Before), Expected)


def test_dense_layer(assert_same):
    codes, scale = constant(MATRIX), constant(np.float32(0.5).reshape(()))
    workload = WeightOnlyWorkload(
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
                fc = packed_weight_only(x, words, padded, workload, "fc")
                R.output(fc)
            return fc

    assert_same(LowerWeightOnly(TARGET)(Before), Expected)


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-3-32", "x86-avx2", "x86-avx512"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_stage_computes_the_same_bits(random, name, batch):
    codes, scale = constant(CODES), constant(random.normal(size=5).astype(np.float32))
    matrix, one = constant(MATRIX), constant(np.float32(0.3).reshape(()))

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor(("n", 3, 8, 7), "float32"), y: R.Tensor(("n", 30), "float32")):
            with R.dataflow():
                conv1 = weight_only_conv2d(x, codes, scale, TERNARY, [1, 2], [1, 1, 1, 1], [2, 1])
                fc = weight_only_dense(y, matrix, one, Encoding.equispaced(3))
                out = (conv1, fc)
                R.output(out)
            return out

    arrays = [random.normal(size=(batch, *shape)).astype(np.float32) for shape in ((3, 8, 7), (30,))]
    expected = interpret(Module, arrays)
    module: tvm.IRModule = Module
    for item in (LowerWeightOnly(get_target(name)), LegalizeKernels()):
        module = item(module)
        for actual, like in zip(interpret(module, arrays), expected, strict=True):
            np.testing.assert_array_equal(actual.view(np.int32), like.view(np.int32))
