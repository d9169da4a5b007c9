"""All passes in order, from a network with quantizers to scheduled kernels."""

from __future__ import annotations

import tvm
from tvm import relax

from tvmq.records import RecordBook
from tvmq.target import Target, get_target
from tvmq.transform.encode_weights import EncodeWeights
from tvmq.transform.fold_epilogues import FoldEpilogues
from tvmq.transform.hoist_quantizers import HoistQuantizers
from tvmq.transform.legalize_kernels import LegalizeKernels
from tvmq.transform.lower_bitserial import LowerBitserial
from tvmq.transform.lower_float_products import LowerFloatProducts
from tvmq.transform.mark_opaque import MarkOpaque
from tvmq.transform.propagate_codes import PropagateCodes
from tvmq.transform.recognize_quantizers import RecognizeQuantizers
from tvmq.transform.schedule_kernels import ScheduleKernels
from tvmq.transform.select_float_products import SelectFloatProducts

__all__ = ["fold", "folding_passes", "lowering_passes", "pipeline", "scheduling_passes"]


def folding_passes() -> list[tvm.transform.Pass]:
    """Phase 1: quantizers become codes, epilogues thresholds; the result *defines* what the network computes."""
    return [
        RecognizeQuantizers(),
        PropagateCodes(),
        HoistQuantizers(),
        relax.transform.EliminateCommonSubexpr(),
        EncodeWeights(),
        FoldEpilogues(),
        SelectFloatProducts(),
        relax.transform.EliminateCommonSubexpr(),
    ]


def lowering_passes(target: Target) -> list[tvm.transform.Pass]:
    """Phase 2: exact integers become packed kernels.  Everything from here on is exact."""
    return [LowerFloatProducts(target), LowerBitserial(target), relax.transform.EliminateCommonSubexpr()]


def scheduling_passes(target: Target, records: RecordBook | None = None) -> list[tvm.transform.Pass]:
    """Phase 3: operators become functions, neighbours are fused, kernels get their loops, tuned where records are."""
    return [
        LegalizeKernels(),
        relax.transform.AnnotateTIROpPattern(),
        MarkOpaque(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        ScheduleKernels(target, records),
    ]


def pipeline(target: str | Target) -> tvm.transform.Pass:
    """One pass that does it all, for use inside ``relax.build`` or ``tvm.compile`` of your own.

    Parameters
    ----------
    target : str or Target

    Returns
    -------
    tvm.transform.Pass
        From a Relax module with constants bound to one whose kernels are scheduled; TVM's ``default_build``
        pipeline can follow.
    """
    core = get_target(target) if isinstance(target, str) else target
    passes = [*folding_passes(), *lowering_passes(core), *scheduling_passes(core)]
    return tvm.transform.Sequential(passes, name="tvmq.pipeline")


def fold(module: tvm.IRModule) -> tvm.IRModule:
    """Phase 1 alone: the module that the golden executor runs.

    Parameters
    ----------
    module : tvm.IRModule

    Returns
    -------
    tvm.IRModule
    """
    return tvm.transform.Sequential(folding_passes(), name="tvmq.fold")(module)
