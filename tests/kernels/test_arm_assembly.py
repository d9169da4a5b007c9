"""Loops of assembly, as text; what they compute is emulated in test_depth.py."""

from __future__ import annotations

import dataclasses

import pytest

from tvmq.kernels.arm_assembly import Loop, Reduction, assembly, llvm_module

ROW = Reduction("xor", 16, (0, 32, 64), 2, (Loop(3, 32, 256), Loop(3, 512, 768)), in_order=False)


def test_rounds_move_all_pointers() -> None:
    lines = assembly(ROW)
    end = lines.index("subs x13, x13, #1")
    assert lines[:2] == ["mov x13, #3", "mov x14, #3"]
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


def test_the_function_asks_for_the_registers_of_its_sums() -> None:
    text = llvm_module("count", ROW)
    assert "void @count(ptr %pixels, ptr %weights, ptr %sums0, ptr %sums1, ptr %sums2) alwaysinline" in text
    assert '"={v0},={v1},={v2},={x0},={x1},0,1,2,3,4,~{v3}' in text
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
