"""Which products become products of bytes, and that what they are lowered to is exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.ir import Call

from tvmq import golden
from tvmq.bitplanes import Encoding
from tvmq.dialect import affine, constant, conv2d, dense, is_call, max_pool2d, threshold, workload_of
from tvmq.target import KERNEL_KINDS, get_target
from tvmq.transform import LowerBitserial
from tvmq.transform.kernel_choice import byte_form, plane_depth, rates

WIDE, NARROW, ARM = (get_target(name) for name in ("x86-avx512-vpopcntdq", "x86-avx2", "raspberry-pi-4"))
PI_5 = get_target("raspberry-pi-5")
PLANES = dataclasses.replace(WIDE, dot=None, mac_per_cycle={kind: WIDE.mac_per_cycle[kind] for kind in KERNEL_KINDS})
"""Bit planes and nothing else."""
SIGNED = Encoding.twos_complement
UNSIGNED = Encoding.unsigned


def product(x: Encoding, w: Encoding, channels: int = 64, kernel: int = 3, samples: int = 1, outputs: int = 8):
    q = relax.Var("q", relax.TensorType((samples, channels, 9, 9), "uint8"))
    codes = np.zeros((outputs, channels, kernel, kernel), np.uint8)
    codes[0, 0] = 2**w.planes - 1
    return conv2d(q, constant(codes), x, w)


@pytest.mark.parametrize(
    ("x", "w", "wide", "arm"),
    [
        (UNSIGNED(8), SIGNED(8), True, True),
        (UNSIGNED(8), Encoding.binary(), True, False),
        (UNSIGNED(4), SIGNED(4), True, True),
        (SIGNED(8), SIGNED(8), True, True),
        (Encoding.equispaced(4), Encoding.equispaced(4), True, True),
        (UNSIGNED(2), Encoding.ternary(), False, False),
        (Encoding.binary(), Encoding.binary(), False, False),
        (UNSIGNED(1), UNSIGNED(5), False, False),
        (UNSIGNED(1), UNSIGNED(6), True, False),
        (Encoding(np.array([1, -1])), SIGNED(8), False, False),  # ternary activations are no range of bytes
        (UNSIGNED(8), Encoding.equispaced(8), False, False),  # its weights are odd numbers up to 255
        (UNSIGNED(8), UNSIGNED(8), False, False),  # and these are unsigned
    ],
)
def test_bytes_where_bit_planes_do_not_pay(x, w, wide, arm):
    assert (byte_form(product(x, w), WIDE) is not None) == wide
    assert (byte_form(product(x, w), ARM) is not None) == arm
    assert byte_form(product(x, w), dataclasses.replace(ARM, dot=None)) is None


def test_padding_channels_count():
    assert rates(WIDE, 32, 9, 2, 3, 0, 64).planes == pytest.approx(683 / 6)
    assert rates(WIDE, 33, 9, 2, 3, 0, 64).planes == pytest.approx(683 / 6 * 33 / 64)
    assert rates(WIDE, 3, 49, 1, 8, 0, 64).planes == pytest.approx(683 / 8 * 147 / 160)
    assert rates(WIDE, 3, 49, 1, 8, 0, 64).bytes == pytest.approx(128 * 147 / 148)
    assert byte_form(product(UNSIGNED(2), UNSIGNED(2), 32), WIDE) is None
    assert byte_form(product(UNSIGNED(2), UNSIGNED(2), 36), WIDE) is not None


@pytest.mark.parametrize(
    ("x", "w", "tables", "wide"),
    [
        (Encoding.binary(), Encoding.binary(), True, None),  # AVX-512 counts bits faster than it looks them up
        (UNSIGNED(2), Encoding.binary(), True, True),
        (UNSIGNED(4), UNSIGNED(1), True, True),
        (Encoding.equispaced(3), Encoding.binary(), True, True),
        (SIGNED(4), Encoding.binary(), True, True),
        (UNSIGNED(5), Encoding.binary(), False, None),  # two nibbles of such sums exceed a byte
        (UNSIGNED(8), Encoding.binary(), False, False),
        (UNSIGNED(2), Encoding.ternary(), None, None),
        (UNSIGNED(4), SIGNED(2), False, False),
        (Encoding(np.array([1, -1])), Encoding.binary(), None, None),  # ternary activations are no range of bytes
    ],
)
def test_lookups_where_a_core_has_them(x, w, tables, wide):
    for core, expected in ((NARROW, tables), (WIDE, wide)):
        form = byte_form(product(x, w), core)
        assert (None if form is None else form.tables) == expected
    for core in (PLANES, dataclasses.replace(NARROW, mac_per_cycle=PLANES.mac_per_cycle)):
        other = byte_form(product(x, w), core)
        assert other is None or not other.tables


@pytest.mark.parametrize(
    ("channels", "taps", "outputs", "pairs", "step"),
    [
        (256, 9, 256, 1, 16),
        (64, 9, 64, 1, 8),
        (96, 9, 40, 2, 4),
        (8, 9, 64, 1, None),  # half of a step of two bytes would be padding
        (8, 9, 8, 1, 2),  # but eight lanes would be as well
        (70, 1, 40, 1, 2),
        (7280, 9, 64, 1, 16),
        (7281, 9, 64, 1, None),  # sums of 16 bits overflow
        (7280, 9, 64, 2, None),
    ],
)
def test_vectors_along_the_depth(channels, taps, outputs, pairs, step):
    depth = plane_depth(ARM, channels, taps, outputs, pairs)
    assert (None if depth is None else depth.step) == step
    for core in (WIDE, dataclasses.replace(ARM, mac_per_cycle=PLANES.mac_per_cycle)):
        assert plane_depth(core, channels, taps, outputs, pairs) is None


def test_rates_of_vectors_along_the_depth():
    limits = ARM.mac_per_cycle
    assert rates(ARM, 256, 9, 1, 2, 0, 64).planes == pytest.approx(limits["binary"] / 2)
    assert rates(ARM, 8, 9, 1, 1, 0, 64).planes == pytest.approx(limits["binary_lanes"])
    assert rates(ARM, 60, 9, 1, 1, 0, 64).planes == pytest.approx(limits["binary"] * 60 / 64)


def test_lookups_need_no_products_of_bytes():
    core = dataclasses.replace(NARROW, dot=None)
    assert byte_form(product(UNSIGNED(2), Encoding.binary()), core).tables
    assert byte_form(product(UNSIGNED(8), Encoding.binary()), core) is None


def test_rates_of_lookups():
    assert rates(NARROW, 64, 9, 1, 2, 0, 64).table == pytest.approx(133)
    assert rates(NARROW, 33, 9, 1, 4, 0, 64).table == pytest.approx(97 * 33 / 40)
    assert rates(NARROW, 64, 9, 2, 2, 0, 64).table == rates(PLANES, 64, 9, 1, 2, 0, 64).table == 0
    assert rates(WIDE, 33, 9, 1, 4, 0, 64).table == pytest.approx(WIDE.mac_per_cycle["table4"] * 33 / 64)
    assert rates(NARROW, 256, 1, 1, 2, 256 * 256, 64).table == pytest.approx(0.6 * 133)
    # One channel in eight is too few for tables, and a byte of its bits no better.
    assert not byte_form(product(UNSIGNED(4), Encoding.binary(), 1), NARROW).tables


@pytest.mark.parametrize(
    ("bits", "channels", "kernel", "outputs", "tables"),
    [
        (1, 256, 3, 256, None),  # counting bits is as fast
        (2, 256, 3, 256, True),
        (2, 64, 3, 64, True),
        (2, 1024, 1, 256, True),
        (2, 64, 1, 256, None),  # few taps and outputs share a table
        (2, 3, 3, 64, None),  # a table of five channels, and no fewer than eight of them
        (3, 64, 1, 256, True),
        (3, 64, 1, 128, False),  # bytes are faster
        (4, 256, 3, 256, True),
        (5, 256, 3, 256, False),
    ],
)
def test_lookups_on_arm(bits, channels, kernel, outputs, tables):
    form = byte_form(product(UNSIGNED(bits), Encoding.binary(), channels, kernel, outputs=outputs), PI_5)
    assert (None if form is None else form.tables) == tables
    ternary = byte_form(product(UNSIGNED(bits), Encoding.ternary(), channels, kernel, outputs=outputs), PI_5)
    assert ternary is None or not ternary.tables
    assert byte_form(product(UNSIGNED(2), Encoding.binary(), 256, outputs=256), ARM) is None


def test_rates_of_lookups_on_arm():
    speed = PI_5.mac_per_cycle["table2"]
    assert rates(PI_5, 256, 9, 1, 2, 0, 256).table == pytest.approx(speed * 256 / 260 * 2304 / (2304 + 128))
    assert rates(PI_5, 64, 1, 1, 2, 0, 128).table == pytest.approx(speed * 64 / 70 / 2)
    assert rates(PI_5, 64, 1, 1, 2, 1000, 128).table == rates(PI_5, 64, 1, 1, 2, 0, 128).table
    assert rates(PI_5, 64, 9, 2, 2, 0, 64).table == rates(ARM, 64, 9, 1, 2, 0, 64).table == 0


def test_selected_sums_that_leave_16_bits_are_not_looked_up():
    def layer(length: int, ones: int) -> Call:
        q = relax.Var("q", relax.TensorType((16, length), "uint8"))
        codes = np.zeros((4, length), np.uint8)
        codes[2, :ones] = 1
        return dense(q, constant(codes), UNSIGNED(4), Encoding.binary())

    assert byte_form(layer(9000, 4369), NARROW).tables
    assert byte_form(layer(9000, 4370), NARROW) is None
    assert byte_form(layer(9000, 9000), WIDE).tables  # whose sums are 32 bits


@pytest.mark.parametrize(("activation_bits", "tables"), [(1, False), (2, False), (3, False), (4, True)])
def test_one_sample_on_weights_that_are_streamed(activation_bits, tables):
    """Memory limits either kernel to the same rate there; what decides is which would be faster without it."""
    q = relax.Var("q", relax.TensorType((1, 4096), "uint8"))
    codes = constant(np.zeros((4096, 4096), np.uint8))
    form = byte_form(dense(q, codes, UNSIGNED(activation_bits), Encoding.binary()), WIDE)
    assert (form is not None and form.tables) == tables
    assert rates(WIDE, 4096, 1, 1, activation_bits, 4096**2, 64).planes == 128


def test_weights_of_a_single_sample_come_from_memory():
    def layer(samples: int):
        q = relax.Var("q", relax.TensorType((samples, 1024), "uint8"))
        return dense(q, constant(np.zeros((1024, 1024), np.uint8)), UNSIGNED(4), SIGNED(4))

    assert byte_form(layer(1), WIDE) is None
    assert byte_form(layer(16), WIDE) is not None


def test_sums_that_leave_32_bits_stay_planes():
    q = relax.Var("q", relax.TensorType((2, 70000), "uint8"))
    assert byte_form(dense(q, constant(np.full((4, 70000), 128, np.uint8)), UNSIGNED(8), SIGNED(8)), WIDE) is None


def calls(module: tvm.IRModule, name: str) -> list:
    bindings = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    return [value for value in bindings if is_call(value, name)]


def network(encodings: list[tuple[Encoding, Encoding]], channels: int, seed: int) -> tvm.IRModule:
    """conv - threshold - pool - conv - threshold - flatten - dense - affine, on codes, each with its encodings."""
    random = np.random.default_rng(seed)
    hidden = [int(v) for v in random.integers(5, 40, 2)]

    def weight(w: Encoding, *shape: int) -> relax.Expr:
        return constant(random.integers(0, 2**w.planes, shape).astype(np.uint8))

    def quantized(sums: relax.Expr, x: Encoding, spread: float) -> relax.Expr:
        count = 2**x.planes - 1
        levels = np.sort(random.normal(0, spread, (count, int(sums.ty.shape[1]))), axis=0)
        if seed % 2:
            steps = spread * (0.5 + random.random(levels.shape[1])) / count
            levels = (np.arange(count)[:, None] - count / 2) * steps
        # In two's complement codes go up to the largest number, then on from the smallest.
        order = np.argsort(x.units(np.arange(count + 1, dtype=np.uint8)), kind="stable")
        codes = constant(order.astype(np.uint8))
        return builder.emit(threshold(sums, constant(np.ceil(levels).astype(np.int32)), codes))

    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((2, channels, 13, 12), "uint8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            (x0, w0), (x1, w1), (x2, w2) = encodings
            s = builder.emit(conv2d(q, weight(w0, hidden[0], channels, 3, 3), x0, w0, (2, 2), (1, 1, 1, 1)))
            c = quantized(s, x1, 2.0 ** (x0.planes + w0.planes - 1))
            if np.all(np.diff(x1.units(np.arange(2**x1.planes, dtype=np.uint8))) > 0):
                c = builder.emit(max_pool2d(c, constant(random.integers(0, 2, hidden[0], dtype=np.uint8)), (2, 2)))
            s = builder.emit(conv2d(c, weight(w1, hidden[1], hidden[0], 3, 3), x1, w1, (1, 1), (1, 1, 1, 1)))
            c = quantized(s, x2, 2.0 ** (x1.planes + w1.planes))
            flat = builder.emit(relax.op.reshape(c, (2, -1)))
            s = builder.emit(dense(flat, weight(w2, 10, int(flat.ty.shape[1])), x2, w2))
            scale, offset = (constant(random.normal(size=10).astype(np.float32)) for _ in range(2))
            output = builder.emit_output(affine(s, scale, offset))
        builder.emit_func_output(output)
    return builder.get()


W8A8, W4A4, W1A1 = (UNSIGNED(8), SIGNED(8)), (UNSIGNED(4), SIGNED(4)), (Encoding.binary(), Encoding.binary())
NETWORKS = {
    "w8a8": [W8A8] * 3,
    "w4a4": [W4A4] * 3,
    "signed": [(SIGNED(8), SIGNED(8))] * 3,
    "odd numbers": [(Encoding.equispaced(4), Encoding.equispaced(4))] * 3,
    "eight-bit input": [(UNSIGNED(8), Encoding.binary()), W1A1, W1A1],
    "back to bytes": [W1A1, W1A1, W4A4],
    "in between": [W1A1, W4A4, (Encoding.binary(), SIGNED(4))],
    "one-bit weights": [(UNSIGNED(8), Encoding.binary()), *[(UNSIGNED(2), Encoding.binary())] * 2],
    "signed activations": [(SIGNED(3), Encoding.binary())] * 3,
    "flipped activations": [(Encoding(np.array([-2, -4]), np.array(3)), UNSIGNED(1))] * 3,
    "ternary in between": [(UNSIGNED(4), Encoding.binary()), (UNSIGNED(2), Encoding.ternary()), W1A1],
}
WIDE_KERNELS = {
    "w8a8": ["dot"] * 3,
    "w4a4": ["dot"] * 3,
    "signed": ["dot"] * 3,
    "odd numbers": ["dot"] * 3,
    "eight-bit input": ["dot", "xor", "xor"],
    "back to bytes": ["xor", "xor", "dot"],
    "in between": ["xor", "dot", "and"],
    "one-bit weights": ["dot", "table", "table"],
    "signed activations": ["table"] * 3,
    "flipped activations": ["table"] * 3,
    "ternary in between": ["table", "dot", "xor"],
}
NARROW_KERNELS = {
    "w8a8": ["dot"] * 3,
    "w4a4": ["dot"] * 3,
    "signed": ["dot"] * 3,
    "odd numbers": ["dot"] * 3,
    "eight-bit input": ["dot", "table", "table"],
    "back to bytes": ["table", "table", "dot"],
    "in between": ["table", "dot", "dot"],
    "one-bit weights": ["dot", "table", "table"],
    "signed activations": ["table"] * 3,
    "flipped activations": ["table"] * 3,
    "ternary in between": ["table", "dot", "table"],
}
"""The same where lookups in tables are faster than bit planes for one bit of activations too."""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_lowered_networks_are_exact(name, channels, seed):
    module = network(NETWORKS[name], channels, seed)
    q = np.random.default_rng(seed).integers(0, 2 ** NETWORKS[name][0][0].planes, (2, channels, 13, 12), dtype=np.uint8)
    expected = golden.interpret(module, [q])[0]
    for target in (WIDE, NARROW, PLANES, PI_5):
        lowered = LowerBitserial(target)(module)
        np.testing.assert_array_equal(golden.interpret(lowered, [q])[0], expected)
        wanted = {WIDE: WIDE_KERNELS, NARROW: NARROW_KERNELS}.get(target, {}).get(name)
        if wanted is not None and channels == 32:
            assert [workload_of(call).combine for call in calls(lowered, "tvmq.bitserial_conv2d")] == wanted
        # Between products, codes are written as they are read.
        assert not any(calls(lowered, f"tvmq.{moves}") for moves in ("bits_to_bytes", "bytes_to_bits", "byteunpack"))


def test_a_first_layer_of_few_channels_gathers_its_windows():
    lowered = LowerBitserial(WIDE)(network(NETWORKS["w8a8"], 3, 0))
    first = workload_of(calls(lowered, "tvmq.bitserial_conv2d")[0])
    assert first.dot.gathered and first.in_words == 3
    assert int(calls(lowered, "tvmq.bytepack")[0].attrs["length"]) == 3


def test_readers_that_differ_get_what_they_read():
    builder = relax.BlockBuilder()
    random = np.random.default_rng(0)
    q = relax.Var("q", relax.TensorType((1, 32, 6, 6), "uint8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            codes = constant(random.integers(0, 2, (32, 32, 1, 1), dtype=np.uint8))
            s = builder.emit(conv2d(q, codes, *W1A1))
            c = builder.emit(
                threshold(
                    s,
                    constant(np.sort(random.integers(-9, 9, (3, 32)), 0).astype(np.int32)),
                    constant(np.arange(4, dtype=np.uint8)),
                )
            )
            wide = constant(random.integers(0, 256, (8, 32, 3, 3)).astype(np.uint8))
            narrow = constant(random.integers(0, 2, (8, 32, 3, 3), dtype=np.uint8))
            one = builder.emit(conv2d(c, wide, UNSIGNED(2), SIGNED(8)))
            two = builder.emit(conv2d(c, narrow, UNSIGNED(2), Encoding.binary()))
            output = builder.emit_output(relax.Tuple([one, two]))
        builder.emit_func_output(output)
    module = builder.get()
    lowered = LowerBitserial(dataclasses.replace(PLANES, dot=WIDE.dot))(module)
    assert len(calls(lowered, "tvmq.bits_to_bytes")) == 1
    arrays = [random.integers(0, 2, (1, 32, 6, 6), dtype=np.uint8)]
    for actual, expected in zip(golden.interpret(lowered, arrays), golden.interpret(module, arrays), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_the_number_of_samples_may_be_unknown():
    builder = relax.BlockBuilder()
    random = np.random.default_rng(0)
    q = relax.Var("q", relax.TensorType((tirx.Var("n", "int64"), 6, 5, 4), "uint8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            first, second, third = (
                constant(random.integers(0, 256, shape).astype(np.uint8)) for shape in ((9, 6, 2, 2), (7, 108), (5, 7))
            )
            levels = [constant(np.sort(random.integers(-(9**5), 9**5, (255, c)), 0).astype(np.int32)) for c in (9, 7)]
            codes = constant(np.arange(256, dtype=np.uint8))
            c = builder.emit(threshold(builder.emit(conv2d(q, first, *W8A8)), levels[0], codes))
            flat = builder.emit(relax.op.reshape(c, (q.ty.shape[0], 108)))
            c = builder.emit(threshold(builder.emit(dense(flat, second, *W8A8)), levels[1], codes))
            output = builder.emit_output(dense(c, third, *W8A8))
        builder.emit_func_output(output)
    module = builder.get()
    lowered = LowerBitserial(WIDE)(module)
    assert [workload_of(call).combine for call in calls(lowered, "tvmq.bitserial_conv2d")] == ["dot"] * 3
    for samples in (1, 3):
        arrays = [random.integers(0, 256, (samples, 6, 5, 4), dtype=np.uint8)]
        np.testing.assert_array_equal(golden.interpret(lowered, arrays)[0], golden.interpret(module, arrays)[0])
