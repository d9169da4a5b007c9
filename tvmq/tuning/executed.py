"""How often each block of a kernel's assembly runs, here or under an emulator.

The kernel is compiled to assembly, every block gets a counter, and a small program runs it once.  So the counts are
exact for every core, whatever LLVM made of the loops; the emulator is an ordinary one.
"""

from __future__ import annotations

import shutil
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
    instructions, vector_instructions, stack_instructions : int
        All of them, those with vector registers, and those that reach the stack.
    """

    blocks: list[Block]
    counts: list[int]
    instructions: int
    vector_instructions: int
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
    with tempfile.TemporaryDirectory(prefix="tvmq-") as name:
        folder = Path(name)
        program = _program(folder, assembly, len(blocks), arguments_of(function), target)
        try:
            result = subprocess.run([*prefix, str(program)], capture_output=True, check=False, timeout=_SECONDS)
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
        stack_instructions=count_matching(blocks, counts, dialect.stack),
    )


def _program(
    folder: Path, assembly: str, blocks: int, arguments: Sequence[tuple[tuple[int, ...], str]], target: Target
) -> Path:
    """The kernel with the program that runs it."""
    from tvm_ffi import libinfo

    (folder / "kernel.s").write_text(assembly, encoding="utf-8")
    (folder / "arguments.h").write_text(_arguments(blocks, arguments), encoding="utf-8")
    shutil.copy(_PROGRAM, folder)
    includes = [f"-I{path}" for path in (folder, libinfo.find_include_path(), libinfo.find_dlpack_include_path())]
    sources = [str(folder / name) for name in (_PROGRAM.name, "kernel.s")]
    program = folder / "program"
    command = [find_compiler(target), "-std=c++17", "-O1", "-w", "-static", *includes, "-o", str(program), *sources]
    result = subprocess.run([*command, "-lm"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if "rror" in line or "undefined" in line]
        raise ToolchainError(
            f"target '{target.name}': cannot build the kernel: {(errors or ['no message'])[0].strip()}"
        )
    return program


def _arguments(blocks: int, arguments: Sequence[tuple[tuple[int, ...], str]]) -> str:
    """The header that describes the kernel to the program."""
    rows = []
    for shape, dtype in arguments:
        kind = np.dtype(dtype)
        sizes = ", ".join(map(str, shape))
        rows.append(f"  {{{_CODES[kind.kind]}, {8 * kind.itemsize}, {len(shape)}, {{{sizes}}}}},\n")
    most = max(len(shape) for shape, _ in arguments)
    return (
        "#include <cstdint>\n"
        f"constexpr int BLOCKS = {blocks};\n"
        f"struct Argument {{ int code, bits, ndim; int64_t shape[{max(1, most)}]; }};\n"
        f"static Argument ARGUMENTS[] = {{\n{''.join(rows)}}};\n"
    )
