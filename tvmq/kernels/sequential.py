"""Matrix products in float32 whose order and rounding are fixed, for comparison with kernels that compute the same.

Every number of the result takes its products one after the other, each in a fused multiply-add; the loops are the
plainest there are that leave the sums of a block of columns in registers, and share nothing with the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import tvm
from tvm.script import tirx as T

__all__ = ["sequential_product", "sequential_windows"]

BLOCK = 64
"""Columns whose sums are under way together."""


@T.prim_func(s_tir=True)
def _product(a: T.handle, b: T.handle, c: T.handle) -> None:
    T.func_attr({"global_symbol": "main", "tirx.noalias": True})
    groups, rows, length, blocks = T.int64(), T.int64(), T.int64(), T.int64()
    left = T.match_buffer(a, (groups, rows, length), "float32")
    right = T.match_buffer(b, (groups, length, blocks, 64), "float32")
    total = T.match_buffer(c, (groups, rows, blocks, 64), "float32")
    for task in T.parallel(groups * blocks):
        for i in range(rows):
            for j in T.vectorized(64):
                total[task // blocks, i, task % blocks, j] = T.float32(0)
            for k in range(length):
                for j in T.vectorized(64):
                    total[task // blocks, i, task % blocks, j] = T.call_llvm_pure_intrin(
                        "float32",
                        "llvm.fma",
                        left[task // blocks, i, k],
                        right[task // blocks, k, task % blocks, j],
                        total[task // blocks, i, task % blocks, j],
                    )


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None]:
    host = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
    # A fresh pass context: whatever instruments or options the caller has set must not change the reference.
    with tvm.transform.PassContext(opt_level=3):
        return tvm.compile(tvm.IRModule({"main": _product}), host)["main"]


def sequential_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` by ``acc = fma(a[m, k], b[k, n], acc)`` for k in ascending order, from 0 on.

    Parameters
    ----------
    a : float32 of shape (G, M, K)
        One matrix for each of G independent products.
    b : float32 of shape (G, K, N)
        As many columns as there are samples: they run side by side.

    Returns
    -------
    float32 of shape (G, M, N)
    """
    right, columns = _operand(*b.shape)
    columns[...] = b
    return _run(a, right, b.shape[-1])


def sequential_windows(a: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Products like :func:`sequential_product` with the pixels of windows, which need not be copied beforehand.

    Parameters
    ----------
    a : float32 of shape (G, M, K)
    windows : float32 of shape (C, KH, KW, N, OH, OW)
        A view; G groups of channels with K numbers for every pixel.

    Returns
    -------
    float32 of shape (G, M, N * OH * OW)
    """
    groups, _, length = a.shape
    count = math.prod(windows.shape[3:])
    right, columns = _operand(groups, length, count)
    # Axes that are split need no copy: this is a view of the operand.
    columns.reshape(windows.shape)[...] = windows
    return _run(a, right, count)


def _operand(groups: int, length: int, columns: int) -> tuple[tvm.runtime.Tensor, np.ndarray]:
    """A right operand with whole blocks, and its columns."""
    blocks = -(-columns // BLOCK)
    right = tvm.runtime.empty((groups, length, blocks, BLOCK), "float32")
    everything = np.from_dlpack(right).reshape(groups, length, blocks * BLOCK)
    everything[..., columns:] = 0
    return right, everything[..., :columns]


def _run(a: np.ndarray, right: tvm.runtime.Tensor, columns: int) -> np.ndarray:
    groups, _, blocks, _ = right.shape
    left = tvm.runtime.tensor(np.ascontiguousarray(a, np.float32))
    result = tvm.runtime.empty((groups, a.shape[1], blocks, BLOCK), "float32")
    _compiled()(left, right, result)
    return result.numpy().reshape(groups, a.shape[1], -1)[..., :columns]
