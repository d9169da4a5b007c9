"""Shared by the pass tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def assert_same() -> Callable[[tvm.IRModule, tvm.IRModule], None]:
    """Structural equality, constants compared by value."""

    def compare(actual: tvm.IRModule, expected: tvm.IRModule) -> None:
        tvm.ir.assert_structural_equal(actual, expected, map_free_vars=True)

    return compare
