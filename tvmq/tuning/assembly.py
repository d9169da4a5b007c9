"""Basic blocks of the assembly that LLVM writes, and the same code with a counter in each of them.

    .LBB0_3:                                .LBB0_3:
        ldr     q0, [x8], #16                   (tvmq_counts[7] += 1)
        subs    x9, x9, #1          ->          ldr     q0, [x8], #16
        b.ne    .LBB0_3                         subs    x9, x9, #1
        ret                                     b.ne    .LBB0_3
                                                (tvmq_counts[8] += 1)
                                                ret

A block begins behind a label that is jumped to, or a jump.  Counting changes neither flags nor registers, so the code
computes what it computes without: executed instructions are those of the blocks times their counts, on every machine
that can run them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tvmq.errors import TargetError

__all__ = ["COUNTS", "Block", "Dialect", "count_matching", "dialect_of", "with_counters"]

COUNTS = "tvmq_counts"
"""The array of counters: one of 64 bits per block."""
_SAVED = "tvmq_saved"
"""A place for a register where the stack must not be touched."""
_WORD = re.compile(r"[\w.$]+")
_LABEL = re.compile(rf"{_WORD.pattern}:")
_NO_BLOCK = re.compile(r"\.L(tmp|func_|cfi|PC)")
"""Labels of debuggers, of the place that an address is counted from, and of loops of assembly inside of a function."""


@dataclass(frozen=True)
class Block:
    """Instructions that run one after another.

    Attributes
    ----------
    lines : tuple of str
    """

    lines: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class Dialect:
    """How an architecture's assembly is read.

    Attributes
    ----------
    comment : str
        What begins a comment.
    jump : re.Pattern
        Matches instructions behind which a block ends.
    vector, load, stack : re.Pattern
        Found in instructions with vector registers, in those that read memory into them, and in those that reach the
        stack.
    counter : str
        Instructions that add one to the counter at ``{place}``.
    far : tuple of (re.Pattern, str)
        What to write in place of instructions that cannot reach far, as counters move their constants away.
    header : str
        A line that lets the assembler know the instructions of all cores, where LLVM writes none.
    """

    comment: str
    jump: re.Pattern[str]
    vector: re.Pattern[str]
    load: re.Pattern[str]
    stack: re.Pattern[str]
    counter: str
    far: tuple[tuple[re.Pattern[str], str], ...] = ()
    header: str = ""


_CONDITIONS = "(eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|al)?"

_DIALECTS = {
    # What lies below the stack's pointer may be in use.
    "x86_64": Dialect(
        comment="#",
        jump=re.compile(r"(j|ret)"),
        vector=re.compile(r"%[xyz]mm"),
        load=re.compile(r"\([^()]*\)(\{\w+\})?,.*%[xyz]mm\d+"),
        stack=re.compile(r"\(%rsp"),
        counter=f"movq %rax, {_SAVED}(%rip)\n movq {{place}}(%rip), %rax\n leaq 1(%rax), %rax\n"
        f" movq %rax, {{place}}(%rip)\n movq {_SAVED}(%rip), %rax",
    ),
    "aarch64": Dialect(
        comment="//",
        jump=re.compile(r"(b|br|ret|b\.\w+|cbn?z|tbn?z)\s|ret$"),
        vector=re.compile(r"\b[vq]\d+\b"),
        load=re.compile(r"^ld\w+\s.*\b[vqd]\d+"),
        stack=re.compile(r"\[sp\b"),
        counter="stp x16, x17, [sp, #-16]!\n adrp x16, {place}\n ldr x17, [x16, :lo12:{place}]\n"
        " add x17, x17, #1\n str x17, [x16, :lo12:{place}]\n ldp x16, x17, [sp], #16",
        header=" .arch armv8.6-a+fp16",
    ),
    # Any instruction may have a condition, and a place on the stack may be in any register.
    "armv7l": Dialect(
        comment="@",
        jump=re.compile(rf"bx?{_CONDITIONS}\s|(pop|ldm\w*)\S*\s.*\bpc\b|\w+\s+pc\b"),
        vector=re.compile(r"\b[dq]\d+\b"),
        load=re.compile(r"^vld\w*[.\s]"),
        stack=re.compile(r"\[sp\b|\bspill\b|\breload\b", re.IGNORECASE),
        counter="push {{r0, r1}}\n movw r0, #:lower16:{place}\n movt r0, #:upper16:{place}\n ldr r1, [r0]\n"
        " add r1, r1, #1\n str r1, [r0]\n pop {{r0, r1}}",
        far=(
            (
                re.compile(r"\bldr(\w*)\s+(\w+), (\.LCPI\w+)"),
                r"movw\1 \2, #:lower16:\3\n movt\1 \2, #:upper16:\3\n ldr\1 \2, [\2]",
            ),
            (re.compile(r"\badr(\w*)\s+(\w+), (\.LCPI\w+)"), r"movw\1 \2, #:lower16:\3\n movt\1 \2, #:upper16:\3"),
            (
                re.compile(r"\bvldr\s+(\w+), (\.LCPI\w+)"),
                r"push {r0}\n movw r0, #:lower16:\2\n movt r0, #:upper16:\2\n vldr \1, [r0]\n pop {r0}",
            ),
        ),
    ),
}


def dialect_of(arch: str) -> Dialect:
    """How the assembly of an architecture is read.

    Parameters
    ----------
    arch : str
        As a target has it.

    Returns
    -------
    Dialect

    Raises
    ------
    TargetError
        If it is not known here.
    """
    if arch not in _DIALECTS:
        raise TargetError(f"kernels for {arch} cannot be simulated; there is {', '.join(_DIALECTS)}")
    return _DIALECTS[arch]


def with_counters(assembly: str, dialect: Dialect) -> tuple[str, list[Block]]:
    """Assembly that counts its blocks.

    Parameters
    ----------
    assembly : str
        As LLVM writes it.
    dialect : Dialect

    Returns
    -------
    (str, list of Block)
        The assembly, and the blocks in the order of their counters.
    """
    lines: list[str] = []
    blocks: list[list[str]] = []
    begins = True
    places = _jumped_to(assembly, dialect)
    for line in assembly.splitlines():
        code = line.split(dialect.comment)[0].strip()
        if _LABEL.match(code):
            begins = begins or not _NO_BLOCK.match(code) or code.split(":")[0] in places
        elif code and not code.startswith("."):
            if begins:
                lines.append(" " + dialect.counter.format(place=f"{COUNTS}+{8 * len(blocks)}"))
                blocks.append([])
            # Remarks stay: on some architectures nothing else tells that an address is the stack's.
            blocks[-1].append(line.strip())
            begins = dialect.jump.match(code) is not None
        # Assemblers disagree about how these two are written.
        if not code.startswith((".file", ".loc")):
            lines.append(_far(line, dialect))
    room = [f" .comm {COUNTS},{8 * len(blocks)},8", f" .comm {_SAVED},8,8", ""]
    return "\n".join([dialect.header, *lines, *room]), [Block(tuple(block)) for block in blocks]


def _jumped_to(assembly: str, dialect: Dialect) -> set[str]:
    """All words of jumps, the labels among them."""
    codes = (line.split(dialect.comment)[0].strip() for line in assembly.splitlines())
    return {word for code in codes if dialect.jump.match(code) for word in _WORD.findall(code)}


def _far(line: str, dialect: Dialect) -> str:
    for pattern, replacement in dialect.far:
        line = pattern.sub(replacement, line)
    return line


def count_matching(blocks: Sequence[Block], counts: Sequence[int], pattern: re.Pattern[str]) -> int:
    """Executed instructions in which something is found.

    Parameters
    ----------
    blocks : sequence of Block
    counts : sequence of int
        How often each ran.
    pattern : re.Pattern

    Returns
    -------
    int
    """
    return sum(
        count * sum(pattern.search(line) is not None for line in block.lines)
        for block, count in zip(blocks, counts, strict=True)
        if count
    )
