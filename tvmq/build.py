"""From a model's module to a library: the passes one by one, then code generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tvm
from tvm import relax

from tvmq.records import RecordBook
from tvmq.runtime.tensors import TensorSpec
from tvmq.runtime.toolchain import export_library
from tvmq.target import Target
from tvmq.transform import folding_passes, lowering_passes, scheduling_passes

__all__ = ["Stage", "build_library", "stages_of"]


@dataclass(frozen=True)
class Stage:
    """The module after one pass.

    Attributes
    ----------
    name : str
        Of the pass.
    module : tvm.IRModule
    exact : bool
        Whether the golden executor's values are defined by now: folding is what defines them.
    portable : bool
        Whether any machine can run it; scheduled kernels may use instructions of the target.
    """

    name: str
    module: tvm.IRModule
    exact: bool
    portable: bool


def stages_of(module: tvm.IRModule, core: Target, records: RecordBook | None = None) -> Iterator[Stage]:
    """The module after every pass.

    Parameters
    ----------
    module : tvm.IRModule
        Of a model.
    core : Target
    records : RecordBook, optional
        Tuned schedules; default: what comes with tvmq, and the user's own.

    Yields
    ------
    Stage
        The last is ready for :func:`build_library`.
    """
    folding, lowering, scheduling = folding_passes(), lowering_passes(core), scheduling_passes(core, records)
    passes = [*folding, *lowering, *scheduling]
    for index, item in enumerate(passes):
        module = item(module)
        yield Stage(str(item.info.name), module, index >= len(folding) - 1, index < len(passes) - 1)


def build_library(
    module: tvm.IRModule, core: Target, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> bytes:
    """Compile and link a scheduled module.

    Parameters
    ----------
    module : tvm.IRModule
        The last of :func:`stages_of`.
    core : Target
    inputs, outputs : sequence of TensorSpec
        Of the model; the library names them.

    Returns
    -------
    bytes
        Of the ``.so`` file.
    """
    with core.tvm_target() as tvm_target, tvm.transform.PassContext(opt_level=3):
        executable = tvm.compile(module, target=tvm_target, relax_pipeline=relax.get_pipeline("default_build"))
    return export_library(executable, core, inputs, outputs)
