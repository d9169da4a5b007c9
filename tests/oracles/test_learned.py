"""LQ-Nets' inference as bit planes, against vectors that were made independently.

Activations are ``sum_i va[i] * X_i`` with bits in {0, 1}, weights ``sum_j vw[o, j] * W_j`` with bits in {-1, 1}, so
``y = sum_ij va[i] * vw[o, j] * S[i, j]`` with exact integers S.  Bit j of a code belongs to basis element j, also where
the values do not ascend with the codes (``code_order``).
"""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from tvmq import dialect, golden
from tvmq.bitplanes import BitPlanes, Encoding, constant_terms, dot, dot_terms
from tvmq.target import get_target
from tvmq.transform import LowerBitserial
from tvmq.transform.fold_epilogues import integer_thresholds

from .test_bits import BINARY, UNIT, cases, load

NAMES = cases("lq_infer_*")
PAD = 1


def codes_of(bits: np.ndarray) -> np.ndarray:
    """Bits in {0, 1} or {-1, 1} along the last axis to codes."""
    return ((bits > 0) * 2 ** np.arange(bits.shape[-1])).sum(axis=-1).astype(np.uint8)


def rows(x: np.ndarray, kernel: int) -> np.ndarray:
    """Windows of an image padded with code 0, one row per output pixel, in the order (channel, row, column)."""
    padded = np.pad(x, ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    return np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(-1, x.shape[1] * kernel * kernel)


def as_image(product: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    batch, channels, height, width = shape
    return product.reshape(batch, height, width, channels).transpose(0, 3, 1, 2)


def weight_encoding(vw: np.ndarray) -> Encoding:
    return Encoding.learned(2 * vw, -vw.sum(axis=-1))


@pytest.mark.parametrize("name", NAMES)
def test_values_of_codes(name):
    arrays, _ = load(name)
    x, w = codes_of(arrays["x_code"]), codes_of(arrays["w_code"])
    np.testing.assert_allclose(Encoding.learned(arrays["va"]).units(x), arrays["xq"], rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(weight_encoding(arrays["vw"]).units(w), arrays["wq"], rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(arrays["code_order"][arrays["x_idx"]], x)


@pytest.mark.parametrize("name", NAMES)
def test_quantize_gives_the_codes(name):
    arrays, _ = load(name)
    data = relax.Var("x", relax.TensorType(arrays["x"].shape, "float32"))
    thresholds = dialect.constant(arrays["thresholds"].astype(np.float32))
    call = dialect.quantize(data, thresholds, dialect.constant(arrays["code_order"].astype(np.uint8)))
    actual = golden.evaluate(call, {data: arrays["x"].astype(np.float32)})
    np.testing.assert_array_equal(actual, codes_of(arrays["x_code"]))


@pytest.mark.parametrize("name", NAMES)
def test_popcounts_of_each_pair_of_planes(name):
    arrays, meaning = load(name)
    x, w = rows(codes_of(arrays["x_code"]), 3), codes_of(arrays["w_code"]).reshape(len(arrays["w"]), -1)
    for i in range(meaning["Ka"]):
        for j in range(meaning["Kw"]):
            product = dot(BitPlanes((x >> i) & 1, UNIT), BitPlanes((w >> j) & 1, BINARY))
            expected = arrays["S_int"][i, j]
            np.testing.assert_array_equal(as_image(product, expected.shape), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [None, "x86-avx512-vpopcntdq", "x86-avx2", "raspberry-pi-4"])
def test_kernels_of_each_pair_of_planes(name, target):
    arrays, meaning = load(name)
    x, w = codes_of(arrays["x_code"]), codes_of(arrays["w_code"])
    data = relax.Var("q", relax.TensorType(x.shape, "uint8"))
    for j in range(meaning["Kw"]):
        weight = dialect.constant((w >> j) & np.uint8(1))
        builder = relax.BlockBuilder()
        with builder.function("main", [data]):
            with builder.dataflow():
                call = dialect.conv2d(data, weight, UNIT, BINARY, (1, 1), (PAD,) * 4)
                result = builder.emit_output(builder.emit(call, "layer"))
            builder.emit_func_output(result)
        module = builder.get()
        if target is not None:
            module = LowerBitserial(get_target(target))(module)
            assert "tvmq.bitserial_conv2d" in module.script(show_meta=False)
        for i in range(meaning["Ka"]):
            actual = golden.interpret(module, [(x >> i) & np.uint8(1)])[0]
            np.testing.assert_array_equal(actual, arrays["S_int"][i, j])


@pytest.mark.parametrize("name", NAMES)
def test_dot_product(name):
    arrays, _ = load(name)
    x, w = rows(codes_of(arrays["x_code"]), 3), codes_of(arrays["w_code"]).reshape(len(arrays["w"]), -1)
    planes = BitPlanes(x, Encoding.learned(arrays["va"])), BitPlanes(w, weight_encoding(arrays["vw"]))
    np.testing.assert_allclose(as_image(dot(*planes), arrays["y"].shape), arrays["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_terms_and_constants_of_each_channel(name):
    """What a kernel would compute: classes of popcounts times multipliers, and a constant."""
    arrays, _ = load(name)
    x = rows(codes_of(arrays["x_code"]), 3)
    w = codes_of(arrays["w_code"])
    x_encoding = Encoding.learned(arrays["va"])
    columns = []
    for channel, vw in enumerate(arrays["vw"]):
        planes = BitPlanes(w[channel : channel + 1], weight_encoding(vw))
        terms = dot_terms(x_encoding, planes.encoding)
        assert terms.combine == "xor"
        total = np.full(len(x), constant_terms(x_encoding, planes)[0])
        for i, classes in enumerate(terms.plane_class):
            bits = (x >> i) & 1
            total += terms.activation_multiplier[i] * bits.sum(axis=1)
            for j, index in enumerate(classes):
                total += terms.class_multiplier[index] * (bits ^ (w[channel].reshape(-1) >> j & 1)).sum(axis=1)
        columns.append(total)
    actual = as_image(np.stack(columns, axis=1), arrays["y"].shape)
    np.testing.assert_allclose(actual, arrays["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_next_level_after_batch_norm_relu_and_quantizer(name):
    arrays, _ = load(name)
    data = relax.Var("y", relax.TensorType(arrays["y"].shape, "float32"))
    builder = relax.BlockBuilder()
    keys = ("bn_gamma", "bn_beta", "bn_mean", "bn_var")
    parameters = [dialect.constant(arrays[key].astype(np.float32)) for key in keys]
    epsilon = float(arrays["bn_eps"])
    codes = np.arange(len(arrays["levels_sorted"]), dtype=np.uint8)
    with builder.function("main", [data]):
        with builder.dataflow():
            both = builder.emit(relax.op.nn.batch_norm(data, *parameters, axis=1, epsilon=epsilon, training=False))
            value = builder.emit(relax.op.nn.relu(builder.emit(relax.TupleGetItem(both, 0))))
            thresholds = dialect.constant(arrays["thresholds"].astype(np.float32))
            result = builder.emit_output(builder.emit(dialect.quantize(value, thresholds, dialect.constant(codes))))
        builder.emit_func_output(result)
    actual = golden.interpret(builder.get(), [arrays["y"].astype(np.float32)])[0]
    np.testing.assert_array_equal(actual, arrays["next_idx"])


def test_integer_thresholds_of_one_plane_each():
    """With one plane on each side y is a multiple of S, and so the next level is an integer threshold on S."""
    arrays, _ = load("lq_infer_a1w1")
    scale = arrays["va"][0] * arrays["vw"][:, 0]
    deviation = np.sqrt(arrays["bn_var"] + arrays["bn_eps"])

    def function(s: np.ndarray) -> np.ndarray:
        norm = (s * scale - arrays["bn_mean"]) / deviation * arrays["bn_gamma"] + arrays["bn_beta"]
        return np.maximum(norm, 0)

    direction = np.sign(arrays["bn_gamma"]).astype(np.int64)
    found = integer_thresholds(function, direction, arrays["thresholds"], 20 * 9)
    sums = arrays["S_int"][0, 0] * np.where(direction < 0, -1, 1)[:, None, None]
    levels = (sums[None] >= found[:, None, :, None, None]).sum(axis=0)
    np.testing.assert_array_equal(levels, arrays["next_idx"])
