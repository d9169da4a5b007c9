"""Matrix products in float32 whose order and rounding are fixed, for comparison with kernels that compute the same.

Every number of the result takes its products one after the other, each in a fused multiply-add; the loops are the
plainest there are, over memory, and share nothing with the kernels.  LLVM vectorises over the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import tvm
from tvm.script import tirx as T

__all__ = ["sequential_product"]


@T.prim_func(s_tir=True)
def _product(a: T.handle, b: T.handle, c: T.handle) -> None:
    T.func_attr({"global_symbol": "main", "tirx.noalias": True})
    rows, length, columns = T.int64(), T.int64(), T.int64()
    left = T.match_buffer(a, (rows, length), "float32")
    right = T.match_buffer(b, (length, columns), "float32")
    total = T.match_buffer(c, (rows, columns), "float32")
    for i in T.parallel(rows):
        for k in range(length):
            for j in range(columns):
                with T.sblock("product"):
                    row, column, step = T.axis.remap("SSR", [i, j, k])
                    with T.init():
                        total[row, column] = T.float32(0)
                    total[row, column] = T.call_llvm_pure_intrin(
                        "float32", "llvm.fma", left[row, step], right[step, column], total[row, column]
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
    a : float32 of shape (M, K)
    b : float32 of shape (K, N)

    Returns
    -------
    float32 of shape (M, N)
    """
    result = tvm.runtime.empty((len(a), b.shape[1]), "float32")
    operands = (np.ascontiguousarray(array, np.float32) for array in (a, b))
    _compiled()(*(tvm.runtime.tensor(array) for array in operands), result)
    return result.numpy()
