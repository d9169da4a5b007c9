"""Packing, unpacking, windows of first layers, and quantization equal numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from tvmq.kernels.packing import (
    bitpack,
    bitunpack,
    im2col_bitpack,
    pack_activations,
    pack_weights,
    quantize,
    unpack_activations,
)
from tvmq.kernels.uniform_quantizer import UniformQuantizer


def bit_planes(codes: np.ndarray, planes: int) -> np.ndarray:
    return np.stack([codes >> plane & 1 for plane in range(planes)]).astype(bool)


@given(
    channels=st.integers(1, 70), word_bits=st.sampled_from([8, 32]), planes=st.integers(1, 3), seed=st.integers(0, 99)
)
def test_unpacking_inverts_packing(channels: int, word_bits: int, planes: int, seed: int) -> None:
    bits = np.random.default_rng(seed).random((planes, 2, channels, 3, 4)) < 0.5
    packed = pack_activations(bits, word_bits)
    assert packed.shape == (2, 3, 4, planes, -(-channels // word_bits))
    assert packed.dtype == np.dtype(f"uint{word_bits}")
    np.testing.assert_array_equal(unpack_activations(packed, channels), bits)


def test_bits_are_little_endian_and_the_tail_is_zero() -> None:
    bits = np.ones((1, 1, 33, 1, 1), dtype=bool)
    bits[0, 0, 1] = False
    np.testing.assert_array_equal(pack_activations(bits, 32).ravel(), [0xFFFFFFFD, 1])
    np.testing.assert_array_equal(pack_activations(bits, 8).ravel(), [0xFD, 0xFF, 0xFF, 0xFF, 1])


def test_weights_have_the_lanes_innermost() -> None:
    bits = np.zeros((2, 20, 3, 3, 40), dtype=bool)
    bits[1, 17, 2, 0, 33] = True
    packed = pack_weights(bits, 32, 16)
    assert packed.shape == (2, 3, 3, 2, 2, 16)
    assert packed[1, 2, 0, 1, 1, 1] == 2
    assert packed.sum() == 2


@pytest.mark.parametrize("pack", [lambda bits: pack_activations(bits, 8), lambda bits: pack_weights(bits, 8, 16)])
def test_a_wrong_number_of_axes_is_refused(pack: Any) -> None:
    with pytest.raises(ValueError, match="axes"):
        pack(np.zeros((1, 2, 3, 4), dtype=bool))


@pytest.mark.parametrize(("channels", "planes"), [(3, 8), (64, 1), (33, 2), (100, 3), (1, 1)])
@pytest.mark.parametrize("size", [(5, 7), (3, 17), (2, 32)])
def test_pack_and_unpack_kernels(
    channels: int, planes: int, size: tuple[int, int], family: Any, reference: SimpleNamespace
) -> None:
    codes = np.random.default_rng(0).integers(0, 2**planes, (3, channels, *size)).astype(np.uint8)
    packed = pack_activations(bit_planes(codes, planes), family.word_bits)
    batch = tirx.Var("n", "int64")
    shape = (batch, channels, *size, planes, family.word_bits)
    function = reference.scheduled(bitpack(*shape), family)
    np.testing.assert_array_equal(reference.run_function(function, family, [codes], packed), packed)
    function = reference.scheduled(bitunpack(*shape), family)
    np.testing.assert_array_equal(reference.run_function(function, family, [packed], codes), codes)


@pytest.mark.parametrize(
    ("channels", "fields"),
    [
        (3, {"kernel": (3, 3)}),
        (1, {"kernel": (5, 5), "padding": (2, 2, 2, 2)}),
        (3, {"kernel": (7, 7), "padding": (3, 3, 3, 3), "strides": (2, 2), "height": 15, "width": 13}),
        (4, {"kernel": (2, 3), "padding": (0, 1, 1, 0), "dilation": (2, 1)}),
        (2, {"kernel": (1, 1), "padding": (0, 0, 0, 0), "strides": (2, 2)}),
    ],
)
@pytest.mark.parametrize("planes", [1, 8])
def test_windows_of_first_layers(
    channels: int, fields: dict[str, Any], planes: int, family: Any, reference: SimpleNamespace
) -> None:
    workload = reference.make_workload(family, in_channels=channels, **fields)
    shape = (2, channels, workload.height, workload.width)
    codes = np.random.default_rng(0).integers(0, 2**planes, shape).astype(np.uint8)
    view = reference.windows(bit_planes(codes, planes), workload)
    patches = view.reshape(*view.shape[:4], -1).transpose(0, 1, 4, 2, 3)
    expected = pack_activations(patches, family.word_bits)
    function = im2col_bitpack(
        *shape, planes, family.word_bits, workload.kernel, workload.strides, workload.padding, workload.dilation
    )
    actual = reference.run_function(reference.scheduled(function, family), family, [codes], expected)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 100, 255])
@pytest.mark.parametrize("shuffled", [False, True])
def test_quantize(count: int, shuffled: bool, family: Any, reference: SimpleNamespace) -> None:
    random = np.random.default_rng(count)
    codes = random.integers(0, 256, count + 1) if shuffled else np.arange(count + 1)
    thresholds = np.sort(random.standard_normal(count)).astype(np.float32)
    if count > 2:
        thresholds[1] = thresholds[2]
    values = random.standard_normal((2, 3, 11, 7)).astype(np.float32)
    special = [np.nan, np.inf, -np.inf, -np.nan, 0.0, -0.0]
    values[0, 0, 0, : len(special)] = special
    below, above = (np.nextafter(thresholds, np.float32(side)) for side in (-9, 9))
    edges = np.concatenate([thresholds, below, above])
    values.reshape(-1)[20 : 20 + len(edges[:400])] = edges[:400]
    expected = codes[(values[..., None] >= thresholds).sum(-1)].astype(np.uint8)
    function = reference.scheduled(quantize(values.shape, count, [int(code) for code in codes]), family)
    actual = reference.run_function(function, family, [values, thresholds], expected)
    np.testing.assert_array_equal(actual, expected)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_quantize_evenly_spaced(data: st.DataObject, family: Any, reference: SimpleNamespace) -> None:
    """Input codes of 8 bits have even steps; the ends and equal thresholds included."""
    count = 255
    low = data.draw(st.floats(-1e3, 1e3, width=32))
    step = data.draw(st.sampled_from([0.0, 1e-6, 1 / 255, 0.5, 1e30]))
    thresholds = (np.float32(low) + np.float32(step) * np.arange(count, dtype=np.float32)).astype(np.float32)
    around = np.random.default_rng(0).choice(thresholds, 300)
    values = np.concatenate([around, np.nextafter(around, np.float32(-np.inf)), [np.nan, np.inf, -np.inf]])
    values = values.astype(np.float32)
    expected = (values[:, None] >= thresholds).sum(-1).astype(np.uint8)
    function = reference.scheduled(quantize(values.shape, count, range(count + 1)), family)
    actual = reference.run_function(function, family, [values, thresholds], expected)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: bitpack(1, 1, 1, 1, 9, 8),
        lambda: bitunpack(1, 1, 1, 1, 1, 16),
        lambda: quantize((1,), 2, [0, 1]),
        lambda: quantize((1,), 1, [0, 256]),
        lambda: quantize((1,), 0, [0]),
    ],
)
def test_impossible_arguments_are_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_every_family_compiles_the_packing_kernels(cross: Any, reference: SimpleNamespace) -> None:
    for function in (
        bitpack(1, 40, 5, 5, 2, cross.word_bits),
        bitunpack(1, 40, 5, 5, 2, cross.word_bits),
        quantize((1, 3, 9, 9), 255, range(256)),
        quantize((1, 3, 9, 9), 255, range(256), UniformQuantizer(255.0, False, 0)),
    ):
        assert tvm.compile(reference.scheduled(function, cross), target=cross.target()).mod.inspect_source("s")
