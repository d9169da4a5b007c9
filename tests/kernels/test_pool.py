"""Pooling of packed codes equals pooling of the codes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from tvmq.kernels.packing import pack_activations
from tvmq.kernels.pool import float_max_pool2d, max_pool2d

Window = dict[str, Any]
WINDOWS: list[tuple[Window, tuple[int, int]]] = [
    ({"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0), "out_size": (4, 3)}, (8, 7)),
    ({"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0), "out_size": (5, 4)}, (9, 7)),
    ({"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1), "out_size": (5, 4)}, (9, 8)),
    ({"kernel": (3, 2), "strides": (1, 3), "padding": (0, 1), "out_size": (6, 3)}, (8, 7)),
    ({"kernel": (3, 3), "strides": (1, 1), "padding": (2, 0), "out_size": (9, 3), "dilation": (2, 2)}, (9, 7)),
]


def pool(codes: np.ndarray, window: Window) -> np.ndarray:
    """Maximum over the taps inside the image, one output at a time."""
    dilation = window.get("dilation", (1, 1))
    result = np.zeros((*codes.shape[:2], *window["out_size"]), dtype=codes.dtype)
    for y, x in np.ndindex(*window["out_size"]):
        rows, columns = (
            [
                place
                for place in range(start, start + window["kernel"][axis] * dilation[axis], dilation[axis])
                if 0 <= place < codes.shape[2 + axis]
            ]
            for axis, start in enumerate(
                at * window["strides"][axis] - window["padding"][axis] for axis, at in enumerate((y, x))
            )
        )
        result[:, :, y, x] = codes[:, :, rows][:, :, :, columns].max((2, 3))
    return result


@pytest.mark.parametrize(("window", "size"), WINDOWS)
@pytest.mark.parametrize(("planes", "channels"), [(1, 64), (1, 33), (2, 64), (3, 10)])
def test_pooling(
    window: Window, size: tuple[int, int], planes: int, channels: int, family: Any, reference: SimpleNamespace
) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 2**planes, (2, channels, *size))
    flip = random.random(channels) < 0.5
    top = 2**planes - 1
    flipped = np.where(flip[None, :, None, None], top - codes, codes)
    expected_codes = pool(flipped, window)
    expected_codes = np.where(flip[None, :, None, None], top - expected_codes, expected_codes)

    def packed(values: np.ndarray) -> np.ndarray:
        return pack_activations(np.stack([values >> p & 1 for p in range(planes)]).astype(bool), family.word_bits)

    mask = pack_activations(flip.reshape(1, 1, -1, 1, 1), family.word_bits).reshape(-1)
    expected = packed(expected_codes)
    function = max_pool2d(tirx.Var("n", "int64"), *size, mask.size, family.word_bits, planes=planes, **window)
    actual = reference.run_function(reference.scheduled(function, family), family, [packed(codes), mask], expected)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    "fields",
    [{"padding": (2, 0)}, {"out_size": (6, 4)}, {"out_size": (0, 4)}, {"planes": 9}, {"word_bits": 16}],
)
def test_impossible_windows_are_refused(fields: dict[str, Any]) -> None:
    defaults = {"kernel": (2, 2), "strides": (2, 2), "padding": (0, 0), "out_size": (4, 4), "word_bits": 8}
    with pytest.raises(ValueError):
        max_pool2d(1, 8, 8, 2, **{**defaults, **fields})


@pytest.mark.parametrize(("window", "size"), WINDOWS)
@pytest.mark.parametrize("channels", [64, 33])
def test_pooling_of_floats(
    window: Window, size: tuple[int, int], channels: int, family: Any, reference: SimpleNamespace
) -> None:
    values = np.random.default_rng(0).standard_normal((2, channels, *size)).astype(np.float32)
    values[0, :, 3, 2], values[1, :, 0, 0] = -np.inf, np.inf
    lowest = np.finfo(np.float32).min  # where a window of TVM's own pool starts
    expected = pool(np.maximum(values, lowest), window).transpose(0, 2, 3, 1).astype(np.float32)
    function = reference.scheduled(float_max_pool2d(2, *size, channels, **window), family)
    data = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    actual = reference.run_function(function, family, [data], np.ascontiguousarray(expected))
    np.testing.assert_array_equal(actual, expected)
