"""How often each block of instructions of an ARM program runs, under qemu with a plugin that counts.

A block is known by its bytes and its place within its page of memory: libraries are loaded elsewhere in every run.  So
what runs of a repeated program differ by can be told from what they share, such as the start of an interpreter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "BlockCounts", "cache_folder", "count_blocks", "instructions", "per_run"]

INSTRUCTION_BYTES = 4
_PAGE = 4096
_PLUGIN = Path(__file__).with_name("block_counts.c")


@dataclass(frozen=True)
class Block:
    """Instructions that run one after another.

    Attributes
    ----------
    offset : int
        Of the first instruction within its page.
    code : bytes
    size : int
        Number of instructions: of 4 bytes each, but for those of 32-bit libraries in Thumb.
    """

    offset: int
    code: bytes
    size: int


BlockCounts = Mapping[Block, float]


def instructions(counts: BlockCounts) -> float:
    """How many instructions ran."""
    return sum(block.size * count for block, count in counts.items())


def cache_folder() -> Path:
    """Where the plugin and the other systems' files are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "tvmq" / "arm-counts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def count_blocks(
    program: Sequence[str],
    cpu: str,
    prefix: str | Path,
    environment: Mapping[str, str] | None = None,
    emulator: str = "qemu-aarch64",
) -> tuple[Counter[Block], str]:
    """Run a program and count.

    Parameters
    ----------
    program : sequence of str
        The executable and its arguments.  It has to run on one thread.
    cpu : str
        qemu's name of the core, such as ``"cortex-a72"``.
    prefix : path-like
        Where the C library of the program is; files there take the place of the same ones of this machine.
    environment : mapping of str to str, optional
        Variables of the program.
    emulator : {"qemu-aarch64", "qemu-arm"}

    Returns
    -------
    (Counter of Block, str)
        How often each block ran, and what the program printed.
    """
    path = shutil.which(emulator)
    if path is None:
        sys.exit(f"{emulator} is not installed: apt-get install qemu-user (qemu-user-static takes no plugins)")
    plugin = _plugin()
    variables = [word for name, value in (environment or {}).items() for word in ("-E", f"{name}={value}")]
    with tempfile.TemporaryDirectory(prefix="tvmq-") as folder:
        output = Path(folder) / "counts.txt"
        command = [path, "-cpu", cpu, "-L", str(prefix), *variables]
        command += ["-d", "plugin", "-plugin", f"{plugin},out={output}", *program]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0 or not output.exists():
            lines = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
            sys.exit(f"{' '.join(program)}\nended with {result.returncode} under qemu: {lines[-1]}")
        return _read(output), result.stdout


def per_run(once: BlockCounts, more: BlockCounts, runs: int) -> dict[Block, float]:
    """What one run adds.

    Parameters
    ----------
    once, more : mapping of Block to number
        Counts of two programs that differ in the number of runs.
    runs : int
        By how many.

    Returns
    -------
    dict of Block to float
        Blocks that ran less often in the longer program are left as they are, negative: such as a search in a table
        whose content depends on addresses.
    """
    difference = {block: (more.get(block, 0) - once.get(block, 0)) / runs for block in {*once, *more}}
    return {block: count for block, count in difference.items() if count}


def _read(path: Path) -> Counter[Block]:
    counts: Counter[Block] = Counter()
    with path.open() as lines:
        for line in lines:
            address, count, size, code = line.split()
            counts[Block(int(address, 16) % _PAGE, bytes.fromhex(code), int(size))] += int(count)
    return counts


def _plugin() -> Path:
    """The plugin, compiled unless it has been before."""
    digest = hashlib.sha256(_PLUGIN.read_bytes()).hexdigest()[:16]
    path = cache_folder() / f"block_counts-{digest}.so"
    if path.exists():
        return path
    compiler = shutil.which("gcc") or sys.exit("gcc is not installed: apt-get install gcc")
    temporary = path.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(temporary), str(_PLUGIN)], check=True)
    temporary.replace(path)
    return path
