"""The passes: each one file, one class, and usable alone as an ordinary TVM pass."""

from tvmq.transform.encode_weights import EncodeWeights
from tvmq.transform.fold_epilogues import FoldEpilogues
from tvmq.transform.hoist_quantizers import HoistQuantizers
from tvmq.transform.legalize_kernels import LegalizeKernels
from tvmq.transform.lower_bitserial import LowerBitserial
from tvmq.transform.lower_float_products import LowerFloatProducts
from tvmq.transform.mark_opaque import MarkOpaque
from tvmq.transform.pipeline import fold, folding_passes, lowering_passes, pipeline, scheduling_passes
from tvmq.transform.propagate_codes import PropagateCodes
from tvmq.transform.recognize_quantizers import RecognizeQuantizers
from tvmq.transform.schedule_kernels import ScheduleKernels
from tvmq.transform.select_float_products import SelectFloatProducts

__all__ = [
    "EncodeWeights",
    "FoldEpilogues",
    "HoistQuantizers",
    "LegalizeKernels",
    "LowerBitserial",
    "LowerFloatProducts",
    "MarkOpaque",
    "PropagateCodes",
    "RecognizeQuantizers",
    "ScheduleKernels",
    "SelectFloatProducts",
    "fold",
    "folding_passes",
    "lowering_passes",
    "pipeline",
    "scheduling_passes",
]
