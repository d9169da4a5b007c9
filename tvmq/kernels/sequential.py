"""Matrix products in float32 whose order and rounding are fixed, for comparison with kernels that compute the same.

Every number of the result takes its products one after the other, each in a fused multiply-add; the loops are the
plainest there are that leave the sums of a block of columns in registers, and share nothing with the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import tvm
from tvm.script import tirx as T

__all__ = ["sequential_product"]

BLOCK = 64
"""Columns whose sums are under way together."""


@T.prim_func(s_tir=True)
def _product(a: T.handle, b: T.handle, c: T.handle) -> None:
    T.func_attr({"global_symbol": "main", "tirx.noalias": True})
    groups, rows, length, blocks = T.int64(), T.int64(), T.int64(), T.int64()
    left = T.match_buffer(a, (groups, rows, length), "float32")
    right = T.match_buffer(b, (groups, blocks, length, 64), "float32")
    total = T.match_buffer(c, (groups, blocks, rows, 64), "float32")
    for task in T.parallel(groups * blocks):
        for i in range(rows):
            for j in T.vectorized(64):
                total[task // blocks, task % blocks, i, j] = T.float32(0)
            for k in range(length):
                for j in T.vectorized(64):
                    total[task // blocks, task % blocks, i, j] = T.call_llvm_pure_intrin(
                        "float32",
                        "llvm.fma",
                        left[task // blocks, i, k],
                        right[task // blocks, task % blocks, k, j],
                        total[task // blocks, task % blocks, i, j],
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
        As many columns as there are samples or pixels: they run side by side.

    Returns
    -------
    float32 of shape (G, M, N)
    """
    groups, length, columns = b.shape
    rows, blocks = a.shape[1], -(-columns // BLOCK)
    right = np.zeros((groups, blocks, length, BLOCK), np.float32)
    for index in range(blocks):
        part = b[..., index * BLOCK : (index + 1) * BLOCK]
        right[:, index, :, : part.shape[-1]] = part
    result = tvm.runtime.empty((groups, blocks, rows, BLOCK), "float32")
    left = np.ascontiguousarray(a, np.float32)
    _compiled()(tvm.runtime.tensor(left), tvm.runtime.tensor(right), result)
    return result.numpy().transpose(0, 2, 1, 3).reshape(groups, rows, blocks * BLOCK)[..., :columns]
