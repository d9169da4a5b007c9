"""Cycles of counted blocks in llvm-mca's models of cores.

Every block is repeated a hundred times in the model, as if it were a loop: the steady state.  The sum over all blocks
of how often they ran times their cycles knows nothing of caches, of memory and of branches that are mispredicted.
Blocks are taken in order of the instructions they stand for until few are left; those count like the average.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from blocks import INSTRUCTION_BYTES, Block, BlockCounts, instructions

__all__ = ["MODELS", "block_cycles", "disassemble", "modelled_cycles"]

MODELS = {"cortex-a53": "cortex-a53", "cortex-a72": "cortex-a72", "cortex-a76": "neoverse-n1"}
"""llvm-mca's models by core.  LLVM 19 models the A72 as an A57, and so it would the A76, to which the N1 is closer."""
ITERATIONS = 100
COVERAGE = 0.995
_TRIPLE = "aarch64-linux-gnu"
_FEATURES = "-mattr=+v8.2a,+fullfp16,+dotprod,+aes,+sha2"


def modelled_cycles(counts: BlockCounts, core: str) -> float:
    """Cycles of all blocks on a core."""
    known = block_cycles(_hottest(counts), core)
    covered = sum(block.size * counts[block] for block in known)
    cycles = sum(counts[block] * value for block, value in known.items())
    return cycles * instructions(counts) / covered


def block_cycles(blocks: Sequence[Block], core: str, iterations: int = ITERATIONS) -> dict[Block, float]:
    """Cycles of one pass through each block, on average over some as if it were a loop.

    A block of nothing that the model knows is left out.
    """
    texts = disassemble(blocks)
    text = "".join(
        f"# LLVM-MCA-BEGIN {index}\n" + "".join(f"{line}\n" for line in texts[block]) + "# LLVM-MCA-END\n"
        for index, block in enumerate(blocks)
    )
    options = [f"-mtriple={_TRIPLE}", "-json", f"-iterations={iterations}", f"-mcpu={MODELS[core]}"]
    # What is called has its own blocks; llvm-mca would add 100 cycles for it.
    options += ["-call-latency=1", "-skip-unsupported-instructions=any"]
    report = json.loads(_llvm("llvm-mca", options, text))
    cycles = {
        int(region["Name"]): region["SummaryView"]["TotalCycles"] / iterations
        for region in report["CodeRegions"]
        if "SummaryView" in region
    }
    return {block: cycles[index] for index, block in enumerate(blocks) if index in cycles}


def disassemble(blocks: Sequence[Block]) -> dict[Block, list[str]]:
    """The instructions of blocks as text; jumps by their distance."""
    texts = _texts({word for block in blocks for word in _words(block)})
    return {block: [texts.get(word, f".inst 0x{word}") for word in _words(block)] for block in blocks}


def _words(block: Block) -> list[str]:
    """The instructions as bytes in hexadecimal."""
    code = block.code.hex()
    return [code[start : start + 2 * INSTRUCTION_BYTES] for start in range(0, len(code), 2 * INSTRUCTION_BYTES)]


def _texts(words: set[str]) -> dict[str, str]:
    """Instructions as text; those that no core has are left out."""
    given = "".join(" ".join(f"0x{word[at : at + 2]}" for at in range(0, len(word), 2)) + "\n" for word in words)
    lines = _llvm("llvm-mc", [f"-triple={_TRIPLE}", "--disassemble", "--show-encoding", _FEATURES], given).splitlines()
    found = {}
    for line in lines:
        instruction, _, encoding = line.partition("// encoding: ")
        if encoding:
            found[re.sub("[^0-9a-f]", "", encoding.replace("0x", ""))] = " ".join(instruction.split())
    return found


def _hottest(counts: BlockCounts) -> list[Block]:
    """Blocks that make up nearly all executed instructions."""
    ranked = sorted(counts, key=lambda block: counts[block] * block.size, reverse=True)
    left = COVERAGE * instructions(counts)
    chosen = []
    for block in ranked:
        if left <= 0 or counts[block] <= 0:
            break
        chosen.append(block)
        left -= counts[block] * block.size
    return chosen


def _llvm(tool: str, options: Sequence[str], text: str) -> str:
    path = shutil.which(f"{tool}-19") or sys.exit(f"{tool}-19 is not installed: apt-get install llvm-19")
    command = [path, *options]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{tool}: {result.stderr.strip().splitlines()[0]}")
    return result.stdout
