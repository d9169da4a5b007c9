"""The corridor: a model and a target in, a bundle out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvmq.build import build_library, stages_of
from tvmq.errors import InputError, ModelError
from tvmq.layers import LayerRows, layer_rows
from tvmq.machine import this_machine
from tvmq.model import Model
from tvmq.records import RecordBook
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.tensors import check_inputs as checked
from tvmq.runtime.toolchain import find_compiler
from tvmq.target import Target, get_target
from tvmq.verification import Verifier

__all__ = ["compile"]

SELF_CHECK_SEED = 0
SELF_CHECK_BATCH = 2


def compile(
    model: Model,
    target: str | Target | Sequence[str | Target] = "host",
    *,
    check_inputs: Sequence[Any] | None = None,
    debug_dir: str | os.PathLike[str] | None = None,
    verify: bool = False,
    schedules: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Compile a model for one or more targets.

    Parameters
    ----------
    model : Model
        From :func:`tvmq.load`.
    target : str, Target or sequence of them
        Names of files in ``targets/``, or ``"host"``.
    check_inputs : sequence of arrays, optional
        One array per input, stored with the outputs that they must give; a few seeded random samples by default.
    debug_dir : path-like, optional
        Folder in which the module after every pass is left as text.
    verify : bool
        Run the module after every pass, and the library where it runs on this machine, and compare with the golden
        executor.
    schedules : path-like, optional
        A folder of tuned schedules, such as :func:`tvmq.tune` writes to its ``output``; they go before the user's own
        and those that come with tvmq, which are always looked up.

    Returns
    -------
    Bundle

    Raises
    ------
    TargetError
        For an unknown target.
    RecordError
        If a file of tuned schedules is damaged, or the folder does not exist.
    ToolchainError
        If a cross compiler is missing.
    InputError
        If ``check_inputs`` do not fit the model.
    ModelError
        If the model cannot be compiled, or ``verify`` finds a difference.
    """
    if not isinstance(model, Model):
        raise InputError(f"compile takes a tvmq.Model (from tvmq.load), not {type(model).__name__}")
    names = [target] if isinstance(target, str | Target) else list(target)
    targets = [get_target(name) if isinstance(name, str) else name for name in names]
    if not targets:
        raise InputError("compile needs at least one target; `tvmq targets` lists them")
    for core in targets:
        find_compiler(core)  # before any work
    records = [RecordBook.of(core, schedules) for core in targets]
    inputs = checked(model.inputs, random_inputs(model) if check_inputs is None else check_inputs)
    outputs = model.run(*inputs)

    verifier = Verifier(model, inputs) if verify else None
    libraries, layers = {}, {}
    for core, book in zip(targets, records, strict=True):
        debug = _DebugFolder(Path(debug_dir) / core.name if debug_dir is not None else None)
        libraries[core.name], layers[core.name] = _build(model, core, book, debug, verifier)
    bundle = Bundle(
        manifest={
            **model.manifest(),
            "targets": {
                core.name: {
                    "triple": core.triple,
                    "mcpu": core.mcpu,
                    "required_cpu_flags": list(core.required_cpu_flags),
                }
                for core in targets
            },
            "layers": layers,
        },
        model_json=model.to_json(),
        libraries=libraries,
        check_inputs=inputs,
        check_outputs=outputs,
    )
    if verify:
        _verify_bundle(bundle, targets)
    return bundle


def random_inputs(model: Model) -> list[np.ndarray]:
    """Seeded inputs for a self-check: floats in [0, 1) in steps of 1/256, integers 0 to 9.

    Parameters
    ----------
    model : Model

    Returns
    -------
    list of arrays
        One per input; a dynamic batch gets two samples.
    """
    random = np.random.default_rng(SELF_CHECK_SEED)
    arrays = []
    for spec in model.inputs:
        shape = [SELF_CHECK_BATCH if extent is None else extent for extent in spec.shape]
        if np.issubdtype(np.dtype(spec.dtype), np.floating):
            arrays.append((random.integers(0, 256, shape) / 256).astype(spec.dtype))
        else:
            arrays.append(random.integers(0, 10, shape).astype(spec.dtype))
    return arrays


class _DebugFolder:
    """Leaves the module after each pass in a folder, if one was asked for."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.count = 0

    def __call__(self, name: str, module: tvm.IRModule) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.count:02d}-{name.rsplit('.', maxsplit=1)[-1]}.py"
        temporary = path.with_suffix(".part")
        temporary.write_text(module.script(show_meta=False), encoding="utf-8")
        temporary.replace(path)
        self.count += 1


def _build(
    model: Model, core: Target, records: RecordBook, debug: _DebugFolder, verifier: Verifier | None
) -> tuple[bytes, list[dict[str, Any]]]:
    """Library and layers of one target."""
    native = this_machine().obstacle(core.triple, core.required_cpu_flags) is None
    debug("source", model.module)
    rows = LayerRows()
    module = model.module
    for stage in stages_of(model.module, core, records):
        module = stage.module
        debug(stage.name, module)
        if verifier is not None and stage.exact and (stage.portable or native):
            verifier.require(stage.name, module)
        if stage.name == "tvmq.LowerBitserial":
            rows = layer_rows(module, core)
    rows.name_functions(module)
    for text in rows.warnings:
        warnings.warn(text, UserWarning, stacklevel=3)
    return build_library(module, core, model.inputs, model.outputs), rows.as_dicts()


def _verify_bundle(bundle: Bundle, targets: Sequence[Target]) -> None:
    machine = this_machine()
    for core in targets:
        if machine.obstacle(core.triple, core.required_cpu_flags) is not None:
            continue
        differences = bundle.check(core.name)
        if differences:
            raise ModelError(f"target '{core.name}': {differences[0]}; this is a bug of tvmq, please report it")
