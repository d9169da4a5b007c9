"""A network compiled by tvmq for an ARM core, and what one run of it executes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from blocks import Block, count_blocks, per_run
from functions import Code, by_function, read_code
from tvm import relax

from tvmq.build import stages_of
from tvmq.layers import Layer, LayerRows, layer_rows
from tvmq.model import Model
from tvmq.runtime.description import describe, description_source
from tvmq.runtime.toolchain import build_runner, find_compiler
from tvmq.target import Target

__all__ = ["OwnRun", "run_ours"]

RUNS = 4


@dataclass(frozen=True)
class OwnRun:
    """What one run executes.

    Attributes
    ----------
    counts : dict of str to dict of Block to float
        By function; of a network, one per kernel.
    layers : list of Layer
        Convolutions and dense layers, with the function that computes each.
    code : Code
        Of the library.
    """

    counts: dict[str, dict[Block, float]]
    layers: list[Layer]
    code: Code

    @property
    def total(self) -> dict[Block, float]:
        """All functions together."""
        return {block: count for counts in self.counts.values() for block, count in counts.items()}


def run_ours(model: Model, core: Target, array: np.ndarray) -> OwnRun:
    """Compile, check against the golden executor bit for bit, and count.

    Parameters
    ----------
    model : Model
    core : Target
        An ARM one.
    array : numpy.ndarray
        The input.

    Returns
    -------
    OwnRun
    """
    with tempfile.TemporaryDirectory(prefix="tvmq-") as name:
        folder = Path(name)
        library, layers = _library(model, core, folder)
        np.save(folder / "input.npy", array)
        command = [str(build_runner(core)), str(library), "--input", str(folder / "input.npy")]
        command += ["--output-prefix", str(folder / "output")]
        environment = {"TVM_NUM_THREADS": "1"}
        system = (str(core.qemu_cpu), str(core.sysroot), environment, str(core.qemu).removesuffix("-static"))
        once, _ = count_blocks(command, *system)
        # With --repeat, there is one more run before.
        more, printed = count_blocks([*command, "--repeat", str(RUNS)], *system)
        _check([np.load(path) for path in json.loads(printed)["outputs"]], model.run(array))
        tools = str(core.cross_compiler).removesuffix("g++")
        code = read_code(library, tools)
        return OwnRun(by_function(per_run(once, more, RUNS), library, code, tools), layers, code)


def _library(model: Model, core: Target, folder: Path) -> tuple[Path, list[Layer]]:
    """The network as :func:`tvmq.compile` links it, but with the functions' names."""
    rows = LayerRows()
    for stage in stages_of(model.module, core):
        if stage.name == "tvmq.LowerBitserial":
            rows = layer_rows(stage.module, core)
    rows.name_functions(stage.module)
    with core.tvm_target() as target, tvm.transform.PassContext(opt_level=3):
        executable = tvm.compile(stage.module, target=target, relax_pipeline=relax.get_pipeline("default_build"))
    path, description = folder / "network.so", folder / "description.cc"
    description.write_text(description_source(describe(core, model.inputs, model.outputs)), encoding="ascii")

    def link(output: str, objects: Sequence[str]) -> None:
        command = [find_compiler(core), "-shared", "-fPIC", "-static-libgcc", "-o", output, *objects, str(description)]
        subprocess.run(command, check=True)

    executable.export_library(str(path), fcompile=link)
    return path, rows.layers


def _check(outputs: list[np.ndarray], golden: list[np.ndarray]) -> None:
    for index, (ours, expected) in enumerate(zip(outputs, golden, strict=True)):
        if not np.array_equal(ours, expected):
            sys.exit(f"output {index} is not the golden executor's")
