"""Blocks of assembly, and counters in them."""

from __future__ import annotations

import pytest

from tvmq.errors import TargetError
from tvmq.tuning.assembly import count_matching, dialect_of, with_counters

ARM = """\
\t.file\t1 "." "x"
f:
.Ltmp0:
\tstr\tx30, [sp, #-16]!         // 8-byte Folded Spill
.LBB0_1:
\tldr\tq0, [x8], #16
.Ltmp1:
\tsubs\tx9, x9, #1
\tb.ne\t.LBB0_1
\tldr\tx30, [sp], #16
\tret
"""
X86 = """\
f:
\tmovq\t%rax, -8(%rsp)            # 8-byte Spill
.LBB0_1:                        # %loop
\tvpaddb\t%zmm0, %zmm1, %zmm1
\tjne\t.LBB0_1
\tretq
"""


def test_blocks_begin_behind_labels_and_jumps():
    _, blocks = with_counters(ARM, dialect_of("aarch64"))
    assert [len(block) for block in blocks] == [1, 3, 2]
    assert blocks[1].lines[0].split() == ["ldr", "q0,", "[x8],", "#16"]


def test_every_block_has_its_counter():
    text, blocks = with_counters(X86, dialect_of("x86_64"))
    assert [len(block) for block in blocks] == [1, 2, 1]
    for index in range(3):
        assert text.count(f"tvmq_counts+{8 * index}(%rip), %rax") == 1
    assert ".comm tvmq_counts,24,8" in text
    assert text.index("tvmq_counts+8(") < text.index("vpaddb") < text.index("tvmq_counts+16(")
    assert ".file" not in with_counters(ARM, dialect_of("aarch64"))[0]


@pytest.mark.parametrize(("arch", "text", "vectors", "stack"), [("aarch64", ARM, 10, 2), ("x86_64", X86, 10, 1)])
def test_kinds_of_instructions(arch, text, vectors, stack):
    dialect = dialect_of(arch)
    _, blocks = with_counters(text, dialect)
    assert count_matching(blocks, [1, 10, 1], dialect.vector) == vectors
    assert count_matching(blocks, [1, 10, 1], dialect.stack) == stack


def test_an_architecture_without_a_dialect():
    with pytest.raises(TargetError, match="kernels for armv7l cannot be simulated; there is x86_64, aarch64"):
        dialect_of("armv7l")
