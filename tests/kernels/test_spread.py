"""Kernels that are not products: large ones are spread over threads, with the same results; small ones are not."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from tvmq.kernels.byte_layout import bytepack
from tvmq.kernels.packing import bitpack, bitunpack, quantize
from tvmq.kernels.pool import byte_max_pool2d, float_max_pool2d, max_pool2d


def functions(batch: Any, size: int, word_bits: int) -> dict[str, tirx.PrimFunc]:
    """One of every kind on images of `size` x `size`."""
    window: dict[str, Any] = {"kernel": (3, 3), "strides": (2, 2), "padding": (1, 1)}
    window["out_size"] = (size // 2, size // 2)
    return {
        "bitpack": bitpack(batch, 64, size, size, 2, word_bits),
        "bitpack of few channels": bitpack(batch, 3, size, size, 8, word_bits),
        "bitunpack": bitunpack(batch, 64, size, size, 2, word_bits),
        "bytepack": bytepack(batch, 3, size, size, 3, 0),
        "quantize": quantize((batch, 3, 2 * size, size), 15, range(16)),
        "max_pool2d": max_pool2d(batch, size, size, 64 // word_bits, word_bits, planes=2, **window),
        "byte_max_pool2d": byte_max_pool2d(batch, size, size, 64, **window),
        "float_max_pool2d": float_max_pool2d(batch, size, size, 64, **window),
    }


KINDS = list(functions(1, 8, 8))


def shape_of(buffer: Any) -> tuple[int, ...]:
    """The shape of an argument; two images where their number is open."""
    return tuple(int(extent) if isinstance(extent, tirx.IntImm) else 2 for extent in buffer.shape)


def arguments(function: tirx.PrimFunc) -> list[np.ndarray]:
    """Random numbers and codes."""
    random = np.random.default_rng(0)
    arrays = []
    for buffer in list(function.params)[:-1]:
        dtype, shape = str(buffer.dtype), shape_of(buffer)
        numbers = random.standard_normal(shape) if "float" in dtype else random.integers(0, 16, shape)
        arrays.append(numbers.astype(dtype))
    return arrays


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_large_ones_are_spread(kind: str, symbolic: bool, family: Any, reference: SimpleNamespace) -> None:
    batch = tirx.Var("n", "int64") if symbolic else 2
    function = functions(batch, 128, family.word_bits)[kind]
    one, two = (reference.scheduled(function, dataclasses.replace(family, cores=cores)) for cores in (1, 2))
    assert "T.parallel(" in two.script()
    assert "T.parallel(" not in one.script()
    given = arguments(function)
    output = function.params[-1]
    like = np.zeros(shape_of(output), str(output.dtype))
    expected, spread = (reference.run_function(scheduled, family, given, like) for scheduled in (one, two))
    np.testing.assert_array_equal(spread, expected)


def test_innermost_loops_are_not_spread(family: Any, reference: SimpleNamespace) -> None:
    two = dataclasses.replace(family, cores=2)
    window: dict[str, Any] = {"kernel": (1, 1), "strides": (1, 1), "padding": (0, 0), "out_size": (1, 1)}
    pool = reference.scheduled(float_max_pool2d(1, 1, 1, 1 << 16, **window), two)
    assert "T.parallel(" not in pool.script()


def test_elements_are_spread_as_whole_vectors(family: Any, reference: SimpleNamespace) -> None:
    two = dataclasses.replace(family, cores=2)
    script = reference.scheduled(quantize((1, 256, 14, 14), 15, range(16)), two).script()
    assert re.search(r"T\.parallel\(16\)", script)
    assert re.search(r"range\(3136\)", script)


@pytest.mark.parametrize("kind", KINDS)
def test_small_ones_are_not(kind: str, family: Any, reference: SimpleNamespace) -> None:
    function = functions(1, 8, family.word_bits)[kind]
    assert "T.parallel(" not in reference.scheduled(function, dataclasses.replace(family, cores=2)).script()
