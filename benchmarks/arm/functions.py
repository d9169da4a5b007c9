"""Which function of a library each counted block belongs to.

A block's bytes are looked for in the library at the same place within a page.  The library keeps its names for that:
it is linked as usual, but not stripped.
"""

from __future__ import annotations

import subprocess
import tempfile
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from blocks import INSTRUCTION_BYTES, Block, BlockCounts

__all__ = ["OUTSIDE", "Code", "by_function", "read_code"]

OUTSIDE = "outside the library"
_PAGE = 4096


@dataclass(frozen=True)
class Code:
    """The instructions of a library.

    Attributes
    ----------
    address : int
        Of the first one, in the library.
    text : bytes
    """

    address: int
    text: bytes

    def find(self, block: Block) -> int | None:
        """The address of a block, or None if it is of another library."""
        first = (block.offset - self.address) % _PAGE
        for start in range(first, len(self.text), _PAGE):
            if self.text.startswith(block.code, start):
                return self.address + start
        return None

    def block(self, start: int, end: int) -> Block:
        """The instructions from one address to another, all of 4 bytes."""
        size = (end - start) // INSTRUCTION_BYTES
        return Block(start % _PAGE, self.text[start - self.address : end - self.address], size)


def by_function(counts: BlockCounts, library: Path, code: Code, tools: str) -> dict[str, dict[Block, float]]:
    """The counts of each function; blocks of other libraries under :data:`OUTSIDE`."""
    starts, names = _functions(library, tools)
    found: dict[str, dict[Block, float]] = defaultdict(dict)
    for block, count in counts.items():
        place = code.find(block)
        name = OUTSIDE if place is None else names[bisect_right(starts, place) - 1]
        found[name][block] = count
    return dict(found)


def read_code(library: Path, tools: str) -> Code:
    """The section of instructions, by the binary tools whose names begin like this."""
    for line in _tool(f"{tools}objdump", "-h", str(library)).splitlines():
        words = line.split()
        if len(words) > 3 and words[1] == ".text":
            address = int(words[3], 16)
    with tempfile.NamedTemporaryFile() as file:
        _tool(f"{tools}objcopy", "-O", "binary", "--only-section=.text", str(library), file.name)
        return Code(address, Path(file.name).read_bytes())


def _functions(library: Path, tools: str) -> tuple[list[int], list[str]]:
    """Addresses in ascending order, and names without what the compiler puts around them."""
    symbols = []
    for line in _tool(f"{tools}nm", "--defined-only", str(library)).splitlines():
        address, kind, name = line.split()
        if kind in "tT" and not name.startswith("$"):
            symbols.append((int(address, 16), _plain(name)))
    symbols.sort()
    return [address for address, _ in symbols], [name for _, name in symbols]


def _plain(name: str) -> str:
    return name.removeprefix("__tvm_ffi_").removesuffix("_compute_")


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=True).stdout
