"""How often each block of a kernel's assembly runs, here or under an emulator.

The kernel is compiled to assembly, every block gets a counter, and a small program runs it once.  So the counts are
exact for every core, whatever LLVM made of the loops; the emulator is an ordinary one.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm import tirx

from tvmq.errors import ToolchainError
from tvmq.machine import this_machine
from tvmq.runtime.emulator import emulator_command
from tvmq.runtime.toolchain import find_compiler
from tvmq.target import Target
from tvmq.tuning.assembly import Block, count_matching, dialect_of, with_counters
from tvmq.tuning.measure import CANDIDATE, arguments_of

__all__ = ["Executed", "execute", "runs_here"]

_PROGRAM = Path(__file__).with_name("counting.cc")
_CODES = {"i": 0, "u": 1, "f": 2, "b": 1}
"""DLPack's numbers of kinds of data."""
_SECONDS = 60


@dataclass(frozen=True)
class Executed:
    """What one run of a kernel executes.

    Attributes
    ----------
    blocks : list of Block
    counts : list of int
        How often each ran.
    instructions, vector_instructions, vector_loads, stack_instructions : int
        All of them, those with vector registers, those that read memory into one, and those that reach the stack.
    """

    blocks: list[Block]
    counts: list[int]
    instructions: int
    vector_instructions: int
    vector_loads: int
    stack_instructions: int


def runs_here(target: Target) -> bool:
    """Whether this machine runs the target's code without an emulator.

    Parameters
    ----------
    target : Target

    Returns
    -------
    bool
    """
    return this_machine().obstacle(target.triple, target.required_cpu_flags) is None


def execute(function: tirx.PrimFunc, target: Target) -> Executed:
    """Compile a kernel and count.

    Parameters
    ----------
    function : tirx.PrimFunc
        Scheduled; a size that is open is 1.
    target : Target

    Returns
    -------
    Executed

    Raises
    ------
    TargetError
        If the target's assembly is not known, or it has no emulator and is not this machine.
    ToolchainError
        If the compiler or the emulator is missing or fails.
    """
    dialect = dialect_of(target.arch)
    module = tvm.IRModule({CANDIDATE: function.with_attr("global_symbol", CANDIDATE)})
    assembly, blocks = with_counters(tvm.compile(module, target=target.tvm_target()).mod.inspect_source("s"), dialect)
    prefix = [] if runs_here(target) else emulator_command(target)
    with tempfile.TemporaryDirectory(prefix="tvmq-") as folder:
        command = [*prefix, str(_program(Path(folder), assembly, target)), str(len(blocks))]
        command += [_word(*argument) for argument in arguments_of(function)]
        try:
            result = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise ToolchainError(f"target '{target.name}': the kernel ran for more than {_SECONDS} s") from None
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {result.returncode}"]
        raise ToolchainError(f"target '{target.name}': the kernel could not be run: {lines[-1]}")
    counts = list(struct.unpack(f"{len(blocks)}Q", result.stdout))
    return Executed(
        blocks,
        counts,
        instructions=sum(len(block) * count for block, count in zip(blocks, counts, strict=True)),
        vector_instructions=count_matching(blocks, counts, dialect.vector),
        vector_loads=count_matching(blocks, counts, dialect.load),
        stack_instructions=count_matching(blocks, counts, dialect.stack),
    )


def _program(folder: Path, assembly: str, target: Target) -> Path:
    """The kernel with the program that runs it."""
    kernel, program = folder / "kernel.s", folder / "program"
    kernel.write_text(assembly, encoding="utf-8")
    compiler = find_compiler(target)
    _call([compiler, "-static", "-o", str(program), str(_caller(compiler)), str(kernel), "-lm"], target.name)
    return program


def _caller(compiler: str) -> Path:
    """The program without a kernel, compiled once."""
    return Path(_caller_folder(compiler).name) / "counting.o"


@functools.cache
def _caller_folder(compiler: str) -> tempfile.TemporaryDirectory[str]:
    """The folder of the compiled program; it is deleted when this process ends."""
    from tvm_ffi import libinfo

    folder = tempfile.TemporaryDirectory(prefix="tvmq-")
    includes = [f"-I{path}" for path in (libinfo.find_include_path(), libinfo.find_dlpack_include_path())]
    output = str(Path(folder.name) / "counting.o")
    _call([compiler, "-std=c++17", "-O1", "-w", *includes, "-c", "-o", output, str(_PROGRAM)], compiler)
    return folder


def _call(command: Sequence[str], name: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "rror" in line or "undefined" in line]
        raise ToolchainError(f"{name}: cannot build the kernel: {(errors or ['no message'])[0].strip()}")


def _word(shape: Sequence[int], dtype: str) -> str:
    """An argument of the kernel, as the program reads it."""
    kind = np.dtype(dtype)
    return "x".join(map(str, (_CODES[kind.kind], 8 * kind.itemsize, *shape)))
