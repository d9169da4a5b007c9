"""Loops of assembly, as text; what they compute is emulated in test_depth.py."""

from __future__ import annotations

import dataclasses

import pytest

from tvmq.kernels.aarch64_assembly import Aarch64Reduction
from tvmq.kernels.arm_assembly import Loop, assembly, llvm_module
from tvmq.kernels.armv7_assembly import Armv7Reduction

ROW = Aarch64Reduction("xor", 16, (0, 32, 64), 2, (Loop(3, 32, 256), Loop(3, 512, 768)), in_order=False)
SQUARE = Armv7Reduction("and", 4, (0, 32, 512, 544), 24, (Loop(1, 96, 768), Loop(3, 512, 768)))


def test_rounds_move_all_pointers() -> None:
    lines = assembly(ROW)
    end = lines.index("subs x13, x13, #1")
    assert lines[2:5] == ["movi v2.2d, #0", "mov x13, #3", "mov x14, #3"]
    assert lines[end - 1 : end + 2] == ["add x0, x0, #32", "subs x13, x13, #1", "b.ne 1b"]
    assert lines[end + 2 : end + 6] == ["add x0, x0, #416", "mov x13, #3", "subs x14, x14, #1", "b.ne 1b"]
    assert sum(line.startswith("ld1") and line.endswith("[x1], #64") for line in lines) == 4 + 2


def test_an_in_order_core_has_a_pointer_for_every_load() -> None:
    lines = assembly(dataclasses.replace(ROW, in_order=True))
    assert lines[:3] == ["add x2, x1, #64", "add x3, x1, #128", "add x4, x1, #192"]
    assert not any(line.startswith("ld1") and "#" in line for line in lines)
    assert [f"add x{number}, x{number}, #256" in lines for number in range(1, 5)] == [True] * 4


def test_one_round_has_no_loop() -> None:
    lines = assembly(dataclasses.replace(ROW, loops=(Loop(1, 32, 256),)))
    assert not any(line.endswith(":") or line.startswith(("b", "subs")) for line in lines)


def test_pixels_that_are_far_away() -> None:
    near, far = (assembly(dataclasses.replace(ROW, pixels=(0, 32, place))) for place in (1024, 70000 // 16 * 16))
    assert "[x0, #1040]" in " ".join(near)
    assert not any(line.startswith("ldp") and "#1024" in line for line in near)
    assert "add x16, x0, #17, lsl #12" in far


def test_every_pixel_of_32_bits_has_a_pointer_that_its_loads_move() -> None:
    lines = assembly(SQUARE)
    assert lines[:3] == ["add r2, r1, #32", "add r3, r2, #480", "add r4, r3, #32"]
    first, end = lines.index("1:"), lines.index("bne 1b")
    assert lines[end - 5 : end] == [*(f"add r{n}, r{n}, #416" for n in range(1, 5)), "subs r8, r8, #1"]
    loads = [line for line in lines[first:end] if line.startswith("vld1")]
    assert {pointer: sum(line.endswith(f"[{pointer}]!") for line in loads) for pointer in ("r0", "r1", "r4")} == {
        "r0": 48,
        "r1": 24,
        "r4": 24,
    }
    assert len(lines[first:end]) == 24 * 30 + 2 + 5


def test_two_sums_of_every_channel_are_added_in_the_end() -> None:
    lines = assembly(SQUARE)
    assert lines[3:11] == [f"vmov.i32 q{register}, #0" for register in range(8)]
    assert lines[-2:] == ["vpadd.i16 d12, d12, d13", "vpadd.i16 d13, d14, d15"]
    assert '"={q0},={q2},={q4},={q6},={r1},={r0},4,5,~{q1},' in llvm_module("count", SQUARE)


@pytest.mark.parametrize("offset", [0, 255, 256, 1021, 70000, 2**24 + 1, -3, -(2**20) - 7])
def test_constants_of_32_bits_are_added_in_parts(offset: int) -> None:
    """Each part is eight bits that begin at an even place."""
    lines = list(SQUARE.added("r2", "r1", offset))
    parts = [int(line.rsplit("#", 1)[1]) for line in lines]
    assert sum(parts) == abs(offset)
    assert all(any(part % 4**place == 0 and part >> 2 * place < 256 for place in range(13)) for part in parts)
    assert all(line.startswith("sub" if offset < 0 else "add") for line in lines)
    assert [line.split()[1:3] for line in lines] == [["r2,", "r1,"], *([["r2,", "r2,"]] * (len(lines) - 1))]
    assert not list(SQUARE.added("r2", "r2", 0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"step": 2}, "take 4 bytes on 32-bit ARM, not 2"), ({"pixels": (0,) * 5}, "at most 4 pixels have a pointer")],
)
def test_a_reduction_that_32_bits_cannot_do_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SQUARE, **fields)


def test_the_function_asks_for_the_registers_of_its_sums() -> None:
    text = llvm_module("count", ROW)
    assert "void @count(ptr %pixels, ptr %weights, ptr %sums0, ptr %sums1, ptr %sums2) alwaysinline" in text
    assert '"={v0},={v1},={v2},={x0},={x1},3,4,~{v3}' in text
    assert '~{cc},~{memory}"' in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": tuple(range(0, 640, 32))}, "too few registers for 20 pixels and 2 steps of 16 bytes"),
        ({"loops": ()}, "1 to 3 loops, not 0"),
        ({"loops": (Loop(2, 32, 256),) * 4}, "1 to 3 loops, not 4"),
    ],
)
def test_a_reduction_that_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROW, **fields)


def test_steps_too_long_for_a_constant_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        assembly(dataclasses.replace(ROW, loops=(Loop(3, 32, 256), Loop(3, 1 << 25, 768))))
