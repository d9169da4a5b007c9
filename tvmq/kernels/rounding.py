"""One rounding per operation in TVM's own float functions.

TVM lets LLVM contract a product and a sum into a fused multiply-add.  Whether that happens depends on the machine, and
on what was fused into one function, so the last bit of a float layer would too.  An ``llvm.arithmetic.fence`` around
the product forbids it::

    y[i] = a[i] * b[i] + c[i]   becomes   y[i] = T.call_llvm_pure_intrin("llvm.arithmetic.fence", a[i] * b[i]) + c[i]

Reductions keep their multiply-adds: their order and rounding are the same in and out of a fused function, and
convolutions need the speed.  Our own kernels write every rounding out and are left alone.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import TensorLoad

from tvmq.kernels.conv2d import KERNEL_ATTRIBUTE, fused_multiply_add

__all__ = ["FENCE", "fuse_products", "round_products"]

FENCE = "llvm.arithmetic.fence"
REDUCTION = 2  # IterVar.CommReduce


def round_products(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Round products of floats before anything is added to them, except in reductions.

    Parameters
    ----------
    function : tirx.PrimFunc
        Unscheduled.

    Returns
    -------
    tirx.PrimFunc
        The same function for a kernel of ours.
    """
    if function.attrs and KERNEL_ATTRIBUTE in function.attrs:
        return function
    return tvm_ffi.structural_map(function, (s_tir.SBlock, _rounded))


def _rounded(block: Any) -> Any:
    """A block with its products fenced, unless it is a reduction or holds other blocks."""
    if not len(block.iter_vars) or any(int(variable.iter_type) == REDUCTION for variable in block.iter_vars):
        return block
    return tvm_ffi.structural_map(block, (tirx.Mul, _fenced))


def _fenced(product: tirx.Mul) -> Any:
    dtype = str(product.ty.dtype)
    return tirx.call_llvm_pure_intrin(dtype, FENCE, product) if dtype.startswith("float") else product


def fuse_products(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Make ``sum + x * w`` one operation in blocks named "accumulate": tensor expressions have no reduction for it.

    Parameters
    ----------
    function : tirx.PrimFunc
        Unscheduled.

    Returns
    -------
    tirx.PrimFunc
    """

    def fused(block: Any) -> Any:
        if not str(block.name_hint).startswith("accumulate"):
            return block
        return tvm_ffi.structural_map(block, (tirx.Add, fused_sum))

    def fused_sum(total: tirx.Add) -> Any:
        if isinstance(total.a, TensorLoad) and isinstance(total.b, tirx.Mul) and str(total.b.ty.dtype) == "float32":
            return fused_multiply_add(total.b.a, total.b.b, total.a)
        return total

    return tvm_ffi.structural_map(function, (s_tir.SBlock, fused))
