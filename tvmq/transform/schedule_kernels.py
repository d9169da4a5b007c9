"""Give every ``tvmq`` kernel its loops, and vector loops to the elementwise operators between them.

Before::

    @T.prim_func
    def conv1(...): T.func_attr({"tvmq.kernel": "conv2d", "tvmq.workload": "..."})   # blocks as written

After::

    @T.prim_func
    def conv1(...): T.func_attr({"tirx.is_scheduled": True, ...})                    # tiled, unrolled, vectorised

Kernels with knobs take those of a tuned record: of the same kernel, else of the nearest one, else the analytic
default.  The attribute ``tvmq.schedule`` says which it was.  Elementwise functions of TVM are fused into one loop and
vectorised; other functions are left alone.
"""

from __future__ import annotations

import tvm
from tvm import tirx

from tvmq.kernels.glue import schedule_glue
from tvmq.kernels.knobs import KernelKind, Knobs, kind_of
from tvmq.kernels.schedule import schedule
from tvmq.records import RecordBook
from tvmq.target import Target

__all__ = ["SCHEDULE_ATTRIBUTE", "ScheduleKernels"]

SCHEDULE_ATTRIBUTE = "tvmq.schedule"
"""Where a kernel's knobs are from: "tuned", "nearest" or "default"."""
LEAST_GAIN = 1.05
"""Speed-up of a near kernel above which its knobs are taken: smaller ones do not survive a change of shape."""


@tvm.transform.module_pass(opt_level=0, name="tvmq.ScheduleKernels")
class ScheduleKernels:
    """A schedule for every kernel.

    Parameters
    ----------
    target : Target
    records : RecordBook, optional
        Where to look up knobs; default: what comes with tvmq, and the user's own.
    """

    def __init__(self, target: Target, records: RecordBook | None = None) -> None:
        self.target = target
        self.records = RecordBook.of(target) if records is None else records

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        result = module.clone()
        for variable, function in module.functions_items():
            if not isinstance(function, tirx.PrimFunc):
                continue
            kind = kind_of(function)
            if kind is not None:
                origin, knobs = self._chosen(kind, function)
                result[variable] = kind.apply(function, self.target, knobs).with_attr(SCHEDULE_ATTRIBUTE, origin)
                continue
            scheduled = schedule(function, self.target) or schedule_glue(function, self.target)
            if scheduled is not None:
                result[variable] = scheduled
        return result

    def _chosen(self, kind: KernelKind, function: tirx.PrimFunc) -> tuple[str, Knobs]:
        """The knobs of a kernel, and where they are from."""
        key = kind.key(function, self.target)
        record = self.records.exact(key)
        knobs = None if record is None else kind.adapted(function, self.target, record.knobs)
        if knobs is not None:
            return "tuned", knobs
        for near in self.records.nearest(key):
            if near.speedup < LEAST_GAIN:
                break  # the default was as good there, and is so here for all we know
            knobs = kind.adapted(function, self.target, near.knobs)
            if knobs is not None:
                return "nearest", knobs
        return "default", kind.default(function, self.target)
