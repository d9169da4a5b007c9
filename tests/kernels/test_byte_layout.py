"""Codes as bytes: packing, unpacking, conversion to and from bit planes, and pooling equal numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from tvmq.kernels.byte_layout import bits_to_bytes, bytepack, bytes_to_bits, byteunpack
from tvmq.kernels.packing import pack_activations, pack_bytes, pack_weight_bytes
from tvmq.kernels.pool import byte_max_pool2d


def codes_of(channels: int, planes: int) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 2**planes, (2, channels, 5, 7)).astype(np.uint8)


@pytest.mark.parametrize(("channels", "length"), [(3, 3), (3, 4), (33, 36), (64, 64)])
@pytest.mark.parametrize("flip", [0, 128])
def test_pack_and_unpack(channels: int, length: int, flip: int, family: Any, reference: SimpleNamespace) -> None:
    codes = codes_of(channels, 8)
    packed = pack_bytes(codes ^ np.uint8(flip), length)
    assert not packed[..., channels:].any()
    shape = (tirx.Var("n", "int64"), channels, 5, 7, length, flip)
    function = reference.scheduled(bytepack(*shape), family)
    np.testing.assert_array_equal(reference.run_function(function, family, [codes], packed), packed)
    function = reference.scheduled(byteunpack(*shape), family)
    np.testing.assert_array_equal(reference.run_function(function, family, [packed], codes), codes)


@pytest.mark.parametrize(("channels", "planes", "flip"), [(3, 8, 0), (33, 2, 2), (64, 4, 8)])
def test_bit_planes_and_back(channels: int, planes: int, flip: int, family: Any, reference: SimpleNamespace) -> None:
    codes = codes_of(channels, planes)
    length = -(-channels // 4) * 4
    octets = pack_bytes(codes ^ np.uint8(flip), length)
    words = pack_activations(np.stack([codes >> p & 1 for p in range(planes)]).astype(bool), family.word_bits)
    shape = (2, channels, 5, 7, planes, family.word_bits, flip)
    function = reference.scheduled(bytes_to_bits(*shape), family)
    np.testing.assert_array_equal(reference.run_function(function, family, [octets], words), words)
    function = reference.scheduled(bits_to_bytes(*shape), family)
    np.testing.assert_array_equal(reference.run_function(function, family, [words], octets), octets)


@pytest.mark.parametrize("length", [4, 20, 64])
def test_largest_and_smallest_bytes(length: int, family: Any, reference: SimpleNamespace) -> None:
    data = pack_bytes(codes_of(length, 8), length)
    flip = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), length)
    flipped = np.pad(data[:, :, :, 0] ^ flip, ((0, 0), (1, 1), (1, 0), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(flipped, (3, 2), axis=(1, 2))[:, ::2, ::2]
    expected = (view.max(axis=(-2, -1)) ^ flip)[:, :, :, None]
    function = byte_max_pool2d(2, 5, 7, length, (3, 2), (2, 2), (1, 1), expected.shape[1:3])
    output = reference.run_function(reference.scheduled(function, family), family, [data, flip], expected)
    np.testing.assert_array_equal(output, expected)


def test_weights_have_lanes_and_steps_innermost() -> None:
    units = np.zeros((20, 3, 3, 6), np.int64)
    units[17, 2, 0, 5] = -128
    packed = pack_weight_bytes(units, 16, 32, False)
    assert packed.shape == (2, 3, 3, 1, 2, 16, 4)
    assert packed[1, 2, 0, 0, 1, 1, 1] == -128 == packed.astype(int).sum()
    gathered = pack_weight_bytes(units, 16, 32, True)
    assert gathered.shape == (2, 1, 1, 1, 14, 16, 4)
    assert gathered[1, 0, 0, 0, (6 * 6 + 5) // 4, 1, (6 * 6 + 5) % 4] == -128
    with pytest.raises(ValueError, match="axes"):
        pack_weight_bytes(units[0], 16, 32, False)


def test_a_window_outside_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the image"):
        byte_max_pool2d(1, 5, 5, 4, (2, 2), (2, 2), (2, 0), (3, 3))
