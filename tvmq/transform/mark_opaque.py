"""Keep TVM's operator fusion away from the kernels that are fused already.

Before::

    @T.prim_func
    def conv1(...): T.func_attr({"tvmq.kernel": "conv2d", "op_pattern": 4})      # "fuse elementwise operators into me"

After::

    @T.prim_func
    def conv1(...): T.func_attr({"tvmq.kernel": "conv2d", "op_pattern": 8})      # opaque

``AnnotateTIROpPattern`` overwrites a pattern that was there before, so this pass runs after it.
"""

from __future__ import annotations

import tvm
from tvm import tirx

__all__ = ["MarkOpaque"]

OPAQUE = 8


@tvm.transform.module_pass(opt_level=0, name="tvmq.MarkOpaque")
class MarkOpaque:
    """Functions with the attribute ``tvmq.kernel`` become opaque to ``FuseOps``."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        result = module.clone()
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and function.attrs and "tvmq.kernel" in function.attrs:
                result[variable] = function.with_attr("op_pattern", OPAQUE)
        return result
