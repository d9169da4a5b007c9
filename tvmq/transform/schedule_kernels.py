"""Give every ``tvmq`` kernel its loops, and vector loops to the elementwise operators between them.

Before::

    @T.prim_func
    def conv1(...): T.func_attr({"tvmq.kernel": "conv2d", "tvmq.workload": "..."})   # blocks as written

After::

    @T.prim_func
    def conv1(...): T.func_attr({"tirx.is_scheduled": True, ...})                    # tiled, unrolled, vectorised

Elementwise functions of TVM are fused into one loop and vectorised; other functions are left alone.
"""

from __future__ import annotations

import tvm
from tvm import tirx

from tvmq.kernels.glue import schedule_glue
from tvmq.kernels.schedule import schedule
from tvmq.target import Target

__all__ = ["ScheduleKernels"]


@tvm.transform.module_pass(opt_level=0, name="tvmq.ScheduleKernels")
class ScheduleKernels:
    """The analytic schedule of the target's family for every kernel.

    Parameters
    ----------
    target : Target
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        result = module.clone()
        for variable, function in module.functions_items():
            if not isinstance(function, tirx.PrimFunc):
                continue
            scheduled = schedule(function, self.target) or schedule_glue(function, self.target)
            if scheduled is not None:
                result[variable] = scheduled
        return result
