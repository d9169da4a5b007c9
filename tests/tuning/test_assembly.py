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
\tvpaddb\t64(%rdi,%rax){1to16}, %zmm1, %zmm1 # a remark
\tvmovups\t%zmm1, (%rsi)
\tjne\t.LBB0_1
\tretq
"""
ARM32 = """\
f:
\tpush\t{r4, lr}
\tldr\tr0, .LCPI0_1
.LPC0_0:
\tadd\tr0, pc, r0
\tvldr\td16, .LCPI0_0
\tbeq\t.LBB0_2
.LBB0_1:
\tvld1.8\t{d16, d17}, [r0]!
\tvst1.64\t{d16, d17}, [r3:128]         @ 16-byte Spill
\tsubs\tr1, r1, #1
\tbne\t.LBB0_1
.LBB0_2:
\tpop\t{r4, pc}
\t.p2align\t2
.LCPI0_0:
\t.long\t1
"""


def test_blocks_begin_behind_labels_and_jumps():
    _, blocks = with_counters(ARM, dialect_of("aarch64"))
    assert [len(block) for block in blocks] == [1, 3, 2]
    assert blocks[1].lines[0].split() == ["ldr", "q0,", "[x8],", "#16"]


INSIDE = """\
f:
.Ltmp0:
\t//APP
\tmov\tx13, #3
\tb\t.Ltmp2
.Ltmp1:
\tuadalp\tv0.8h, v1.16b
.Ltmp2:
\tcnt\tv1.16b, v2.16b
.Ltmp3:
\tsubs\tx13, x13, #1
\tb.ne\t.Ltmp1
\tuadalp\tv0.8h, v1.16b
\t//NO_APP
\tret
"""


def test_blocks_of_a_loop_of_assembly_inside_of_a_function():
    _, blocks = with_counters(INSIDE, dialect_of("aarch64"))
    assert [len(block) for block in blocks] == [2, 1, 3, 2]


def test_every_block_has_its_counter():
    text, blocks = with_counters(X86, dialect_of("x86_64"))
    assert [len(block) for block in blocks] == [1, 3, 1]
    for index in range(3):
        assert text.count(f"tvmq_counts+{8 * index}(%rip), %rax") == 1
    assert ".comm tvmq_counts,24,8" in text
    assert text.index("tvmq_counts+8(") < text.index("vpaddb") < text.index("tvmq_counts+16(")
    assert ".file" not in with_counters(ARM, dialect_of("aarch64"))[0]


def test_constants_among_32_bit_code_may_be_far_away():
    text, blocks = with_counters(ARM32, dialect_of("armv7l"))
    assert [len(block) for block in blocks] == [5, 4, 1]
    assert "ldr\tr0, .LCPI" not in text and "movt r0, #:upper16:.LCPI0_1\n ldr r0, [r0]" in text
    assert "vldr d16, [r0]" in text
    assert ".LPC0_0:\n\tadd" in text  # the address that is added is that of this very instruction
    assert blocks[0].lines[1].split() == ["ldr", "r0,", ".LCPI0_1"]


@pytest.mark.parametrize(
    ("arch", "text", "vectors", "loads", "stack"),
    [("aarch64", ARM, 10, 10, 2), ("x86_64", X86, 20, 10, 1), ("armv7l", ARM32, 21, 11, 10)],
)
def test_kinds_of_instructions(arch, text, vectors, loads, stack):
    dialect = dialect_of(arch)
    _, blocks = with_counters(text, dialect)
    assert count_matching(blocks, [1, 10, 1], dialect.vector) == vectors
    assert count_matching(blocks, [1, 10, 1], dialect.load) == loads
    assert count_matching(blocks, [1, 10, 1], dialect.stack) == stack


def test_an_architecture_without_a_dialect():
    with pytest.raises(TargetError, match="kernels for riscv64 cannot be simulated; there is x86_64, aarch64, armv7l"):
        dialect_of("riscv64")
