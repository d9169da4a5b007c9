"""Integer products become packed kernels; what the lowered network computes is compared with the folded one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.networks.codes import BINARY, BITS, GEOMETRIES, INPUTS, UNSIGNED, Case, network
from tvmq import golden
from tvmq.bitplanes import BasisTerms, window_classes
from tvmq.dialect import (
    affine,
    basis_conv2d,
    basis_dense,
    bitpack,
    bitserial_conv2d,
    bitunpack,
    channels_first,
    constant,
    conv2d,
    float_threshold,
    is_call,
    max_pool2d,
    packed_max_pool2d,
    quantize,
    threshold,
    workload_of,
)
from tvmq.kernels.packing import pack_weights
from tvmq.kernels.workload import Affine, Conv2dWorkload, Integer, Thresholds
from tvmq.target import KERNEL_KINDS, get_target
from tvmq.transform import LowerBitserial

WIDE, BYTES = get_target("x86-avx512-vpopcntdq"), get_target("raspberry-pi-4")
NEVER = np.iinfo(np.int32).max
WEIGHT = np.random.default_rng(0).integers(0, 2, (32, 64, 3, 3), dtype=np.uint8)
THRESHOLDS = np.arange(-16, 16, dtype=np.int32).reshape(1, 32)


def workload(**changes) -> Conv2dWorkload:
    base = Conv2dWorkload(
        height=6,
        width=6,
        in_channels=64,
        out_channels=32,
        kernel=(3, 3),
        strides=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        activation_planes=1,
        weight_planes=1,
        combine="xor",
        plane_class=((0,),),
        class_multiplier=(-1,),
        activation_multiplier=(0,),
        row_classes=1,
        col_classes=1,
        word_bits=32,
        lanes=16,
        epilogue=Thresholds(1, (0, 1), 1),
    )
    return dataclasses.replace(base, **changes)


def packed(weight: np.ndarray) -> relax.Expr:
    return constant(pack_weights(weight[None].astype(bool).transpose(0, 1, 3, 4, 2), 32, 16))


def test_convolution_threshold_and_pool_stay_packed(assert_same):
    codes, thresholds = constant(WEIGHT), constant(THRESHOLDS)
    minimum = constant((np.arange(32) % 2).astype(np.uint8))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 64, 6, 6), "uint8")):
            with R.dataflow():
                s = conv2d(q, codes, BINARY, BINARY)
                c = threshold(s, thresholds, BITS)
                p = max_pool2d(c, minimum, (2, 2), (2, 2))
                R.output(p)
            return p

    weight = packed(WEIGHT)
    # s = 576 - 2 R, the kernel has v = -R: s >= T is v >= ceil((T - 576) / 2)
    shifted = constant((-((576 - THRESHOLDS) // 2)).reshape(1, 1, 1, 32).astype(np.int32))
    flip = constant(np.array([0xAAAAAAAA], np.uint32))
    kernel = workload()

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 64, 6, 6), "uint8")):
            with R.dataflow():
                x = bitpack(q, 1, 32)
                c = bitserial_conv2d(x, weight, [shifted], kernel, "s")
                p = packed_max_pool2d(c, flip, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), False)
                u = bitunpack(p, 32)
                R.output(u)
            return u

    assert_same(LowerBitserial(WIDE)(Before), Expected)


def test_last_layer_keeps_its_affine_and_returns_to_channels_first(assert_same):
    codes = constant(WEIGHT)
    scale, offset = (constant(np.full(32, value, np.float32)) for value in (0.5, 3.0))

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 64, 6, 6), "uint8")):
            with R.dataflow():
                s = conv2d(q, codes, BINARY, BINARY)
                y = affine(s, scale, offset)
                R.output(y)
            return y

    weight, bias = packed(WEIGHT), constant(np.full((1, 1, 32), 576, np.int32))
    kernel = workload(class_multiplier=(-2,), epilogue=Affine())

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 64, 6, 6), "uint8")):
            with R.dataflow():
                x = bitpack(q, 1, 32)
                nhwc = bitserial_conv2d(x, weight, [bias, scale, offset], kernel, "s")
                y = channels_first(nhwc)
                R.output(y)
            return y

    assert_same(LowerBitserial(WIDE)(Before), Expected)


def test_integers_that_leave_the_packed_world(assert_same):
    codes = constant(WEIGHT)

    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((1, 64, 6, 6), "uint8")):
            with R.dataflow():
                s = conv2d(q, codes, BINARY, BINARY)
                y = R.abs(s)
                R.output(y)
            return y

    weight, bias = packed(WEIGHT), constant(np.full((1, 1, 32), 576, np.int32))
    kernel = workload(class_multiplier=(-2,), epilogue=Integer())

    @I.ir_module
    class Expected:
        @R.function
        def main(q: R.Tensor((1, 64, 6, 6), "uint8")):
            with R.dataflow():
                x = bitpack(q, 1, 32)
                nhwc = bitserial_conv2d(x, weight, [bias], kernel, "s")
                s = channels_first(nhwc)
                y = R.abs(s)
                R.output(y)
            return y

    assert_same(LowerBitserial(WIDE)(Before), Expected)


def test_float_layers_are_left_alone(assert_same):
    value = constant(np.ones((4, 3, 3, 3), np.float32))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3, 6, 6), "float32")):
            with R.dataflow():
                y = R.nn.conv2d(x, value)
                z = R.nn.relu(y)
                R.output(z)
            return z

    assert_same(LowerBitserial(WIDE)(Before), Before)


def calls(module: tvm.IRModule, name: str) -> list:
    bindings = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    return [value for value in bindings if is_call(value, name)]


@pytest.mark.parametrize("target", [WIDE, BYTES], ids=lambda target: target.name)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("encoding, channels", INPUTS)
def test_lowered_networks_are_exact(target, geometry, encoding, channels):
    seed = sum(geometry) * 100 + channels
    module = network(np.random.default_rng(seed), 2, [Case(encoding, channels, geometry)])
    lowered = LowerBitserial(target)(module)
    text = lowered.script(show_meta=False)
    assert not any(name in text for name in ('"tvmq.conv2d"', '"tvmq.dense"', "tvmq.threshold", "bitunpack"))
    q = np.random.default_rng(seed).integers(0, 2**encoding.planes, (2, channels, 13, 12), dtype=np.uint8)
    np.testing.assert_array_equal(golden.interpret(lowered, [q])[0], golden.interpret(module, [q])[0])


@pytest.mark.parametrize("target", [WIDE, BYTES], ids=lambda target: target.name)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("combine, planes, channels", [("xor", 2, 3), ("and", 3, 40), ("and", 16, 33)])
def test_learned_bases_with_a_bias_per_border_class_are_exact(target, geometry, combine, planes, channels, random):
    kernel, stride, padding, dilation = geometry
    codes = random.integers(0, 2**planes, (11, channels, kernel, kernel)).astype(np.uint8 if planes <= 8 else np.uint16)
    bases = (random.normal(size=shape).astype(np.float32) for shape in ((2,), (planes, 11)))
    terms = BasisTerms(combine, codes, *bases)
    axes = window_classes((13, 12), (kernel, kernel), (stride, stride), (padding,) * 4, (dilation, dilation))
    bias = random.normal(size=(len(axes[0][1]), len(axes[1][1]), 11))
    matrix = BasisTerms(combine, codes.reshape(11, -1)[:, :channels], terms.activation_basis, terms.weight_basis)
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((2, channels, 13, 12), "uint8"))
    rows = relax.Var("rows", relax.TensorType((5, channels), "uint8"))
    with builder.function("main", [q, rows]):
        with builder.dataflow():
            image = basis_conv2d(q, terms, bias, (stride, stride), (padding,) * 4, (dilation, dilation))
            results = [builder.emit(image), builder.emit(basis_dense(rows, matrix, bias[:1, :1]))]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    module = builder.get()
    lowered = LowerBitserial(target)(module)
    workloads = [workload_of(call) for call in calls(lowered, "tvmq.bitserial_conv2d")]
    assert [(w.weight_planes, w.has_border_classes) for w in workloads] == [(planes, padding > 0), (planes, False)]
    arrays = [random.integers(0, 4, shape, dtype=np.uint8) for shape in ((2, channels, 13, 12), (5, channels))]
    for actual, expected in zip(golden.interpret(lowered, arrays), golden.interpret(module, arrays), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_first_layer_of_few_channels_packs_its_windows():
    module = network(np.random.default_rng(0), 1, [Case(UNSIGNED, 3, (3, 1, 1, 1))])
    planes_only = {kind: WIDE.mac_per_cycle[kind] for kind in KERNEL_KINDS}
    lowered = LowerBitserial(dataclasses.replace(WIDE, dot=None, mac_per_cycle=planes_only))(module)
    assert len(calls(lowered, "tvmq.im2col_bitpack")) == 1
    first = workload_of(calls(lowered, "tvmq.bitserial_conv2d")[0])
    assert (first.kernel, first.in_channels, first.activation_planes) == ((1, 1), 27, 8)
    assert not first.has_border_classes  # code 0 of an unsigned input is the number 0


def test_border_classes_only_where_zero_bits_are_not_zero():
    module = network(np.random.default_rng(0), 1, [Case(BINARY, 64, (3, 1, 1, 1))])
    kernels = [workload_of(call) for call in calls(LowerBitserial(WIDE)(module), "tvmq.bitserial_conv2d")]
    assert [(kernel.row_classes, kernel.col_classes) for kernel in kernels] == [(3, 3), (3, 3), (1, 1), (1, 1)]


def test_padded_channels_never_reach_their_threshold():
    module = network(np.random.default_rng(3), 1, [Case(BINARY, 64, (3, 1, 1, 1))])
    call = calls(LowerBitserial(WIDE)(module), "tvmq.bitserial_conv2d")[0]
    channels = workload_of(call).out_channels
    assert channels % 32
    assert (call.args[-1].value.numpy()[..., channels:] == NEVER).all()


def test_a_dense_layer_after_a_flattened_image_reads_it_in_place():
    module = network(np.random.default_rng(0), 2, [Case(BINARY, 40, (3, 1, 1, 1))])
    kernels = [workload_of(call) for call in calls(LowerBitserial(WIDE)(module), "tvmq.bitserial_conv2d")]
    assert kernels[2].kernel == (kernels[2].height, kernels[2].width) != (1, 1)
    assert kernels[3].kernel == (1, 1)


RESIDUAL_LIMITS = np.linspace(-20, 20, 32, dtype=np.float32).reshape(1, 32)


def residual(extra_reader: bool):
    """A convolution, a shortcut, thresholds on the sum; and perhaps something else that reads the sum."""
    codes = constant(WEIGHT)
    scale, offset = constant(np.full(32, 0.5, np.float32)), constant(np.arange(32, dtype=np.float32))
    direction, limits = constant(np.where(np.arange(32) % 3, 1, -1).astype(np.float32)), constant(RESIDUAL_LIMITS)
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((2, 64, 6, 6), "uint8"))
    shortcut = relax.Var("shortcut", relax.TensorType((2, 32, 4, 4), "float32"))
    with builder.function("main", [q, shortcut]):
        with builder.dataflow():
            s = builder.emit(conv2d(q, codes, BINARY, BINARY))
            y = builder.emit(relax.op.add(builder.emit(affine(s, scale, offset)), shortcut))
            c = builder.emit(float_threshold(y, direction, limits, BITS))
            outputs = [c, builder.emit(relax.op.nn.relu(y))] if extra_reader else [c]
            output = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(output)
    return builder.get()


def quantized_sum(count: int):
    """A convolution, a shortcut that a max-pool of floats makes, and one quantizer for all channels on their sum."""
    scale, offset = constant(np.full(32, 0.5, np.float32)), constant(np.arange(32, dtype=np.float32))
    limits = constant(np.linspace(-20, 20, count, dtype=np.float32))
    levels = constant(np.arange(count + 1, dtype=np.uint8))
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((2, 64, 6, 6), "uint8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            weight, other = constant(WEIGHT), constant(1 - WEIGHT)
            large = builder.emit(
                affine(builder.emit(conv2d(q, other, BINARY, BINARY, padding=(1, 1, 1, 1))), scale, offset)
            )
            shortcut = builder.emit(relax.op.nn.max_pool2d(large, (3, 3)))
            y = builder.emit(affine(builder.emit(conv2d(q, weight, BINARY, BINARY)), scale, offset))
            total = builder.emit(relax.op.add(shortcut, y))
            codes = builder.emit(quantize(total, limits, levels))
            output = builder.emit_output(relax.Tuple([codes, total]))
        builder.emit_func_output(output)
    return builder.get()


@pytest.mark.parametrize("target", [WIDE, BYTES], ids=lambda target: target.name)
@pytest.mark.parametrize(("count", "fused"), [(1, True), (15, True), (16, False)])
def test_a_quantizer_of_all_channels_is_part_of_the_epilogue(target, count, fused):
    module = quantized_sum(count)
    lowered = LowerBitserial(target)(module)
    kernels = calls(lowered, "tvmq.bitserial_conv2d")
    assert len(kernels) == 2
    thresholds = workload_of(kernels[1]).thresholds
    assert (thresholds is not None and thresholds.count == count) == fused
    assert bool(calls(lowered, "tvmq.quantize")) != fused
    (pool,) = calls(lowered, "relax.nn.max_pool2d")
    assert str(pool.attrs["layout"]) == "NHWC"
    codes = np.random.default_rng(0).integers(0, 2, (2, 64, 6, 6), dtype=np.uint8)
    for actual, expected in zip(golden.interpret(lowered, [codes]), golden.interpret(module, [codes]), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("target", [WIDE, BYTES], ids=lambda target: target.name)
@pytest.mark.parametrize("extra_reader", [False, True])
def test_a_residual_sum_and_its_thresholds_are_one_kernel(target, extra_reader):
    module = residual(extra_reader)
    lowered = LowerBitserial(target)(module)
    kernels = calls(lowered, "tvmq.bitserial_conv2d")
    assert len(kernels) == 1
    epilogue = workload_of(kernels[0]).epilogue
    assert (epilogue.shortcut, epilogue.store, epilogue.thresholds.count) == (True, extra_reader, 1)
    assert not calls(lowered, "relax.add") and not calls(lowered, "tvmq.float_threshold")
    random = np.random.default_rng(0)
    inputs = [
        random.integers(0, 2, (2, 64, 6, 6), dtype=np.uint8),
        random.normal(0, 9, (2, 32, 4, 4)).astype(np.float32),
    ]
    for expected, actual in zip(golden.interpret(module, inputs), golden.interpret(lowered, inputs), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_aligned_packed_images_are_joined_as_words():
    builder = relax.BlockBuilder()
    parts = [(32, 0), (40, 1)]
    q = relax.Var("q", relax.TensorType((1, 64, 6, 6), "uint8"))
    random = np.random.default_rng(0)
    with builder.function("main", [q]):
        with builder.dataflow():
            images = []
            for channels, seed in parts:
                weight = np.random.default_rng(seed).integers(0, 2, (channels, 64, 1, 1), dtype=np.uint8)
                s = builder.emit(conv2d(q, constant(weight), BINARY, BINARY))
                images.append(builder.emit(threshold(s, constant(np.zeros((1, channels), np.int32)), BITS)))
            joined = builder.emit(relax.op.concat(images, axis=1))
            last = random.integers(0, 2, (8, 72, 3, 3), dtype=np.uint8)
            output = builder.emit_output(conv2d(joined, constant(last), BINARY, BINARY))
        builder.emit_func_output(output)
    module = builder.get()
    lowered = LowerBitserial(WIDE)(module)
    assert not calls(lowered, "tvmq.bitunpack")
    codes = random.integers(0, 2, (1, 64, 6, 6), dtype=np.uint8)
    np.testing.assert_array_equal(golden.interpret(lowered, [codes])[0], golden.interpret(module, [codes])[0])


@pytest.mark.parametrize("height, width", [(1, 7), (1, 1), (7, 1)])
def test_a_strided_pointwise_convolution_of_one_row_is_no_dense_layer(height, width):
    random = np.random.default_rng(0)
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((2, 40, height, width), "uint8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            weight = constant(random.integers(0, 2, (33, 40, 1, 1), dtype=np.uint8))
            s = builder.emit(conv2d(q, weight, BINARY, BINARY, (2, 2)))
            output = builder.emit_output(threshold(s, constant(np.zeros((1, 33), np.int32)), BITS))
        builder.emit_func_output(output)
    module = builder.get()
    codes = random.integers(0, 2, (2, 40, height, width), dtype=np.uint8)
    for target in (WIDE, BYTES):
        lowered = LowerBitserial(target)(module)
        np.testing.assert_array_equal(golden.interpret(lowered, [codes])[0], golden.interpret(module, [codes])[0])
