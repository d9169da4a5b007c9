"""The fused convolution equals plain integer arithmetic, bit for bit, on every family that runs here."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from tests.kernels.shapes import BORDER, GEOMETRIES, POINTWISE
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.schedule import Conv2dKnobs, apply_knobs, default_knobs, schedule
from tvmq.kernels.tiling import register_tile
from tvmq.kernels.workload import Affine, Float, Integer, Thresholds

SHAPES: dict[str, dict[str, Any]] = {
    **GEOMETRIES,
    "wide": {"height": 2, "width": 29, **BORDER, "row_classes": 1},
    "long": {**POINTWISE, "height": 1, "width": 3, "in_channels": 8 * 37, "out_channels": 64},
    "overflow": {**POINTWISE, "height": 1, "width": 1, "in_channels": 70000, "out_channels": 3, "epilogue": Integer()},
}


@pytest.mark.parametrize("name", SHAPES)
def test_geometries(name: str, family: Any, reference: SimpleNamespace) -> None:
    reference.check_conv2d(reference.make_workload(family, **SHAPES[name]), family)


@pytest.mark.parametrize(
    "epilogue",
    [
        Integer(),
        Affine(),
        Thresholds(1, (1, 0), 1),
        Thresholds(2, (0, 1, 0), 1),
        Thresholds(3, (0, 1, 2, 3), 2),
        Thresholds(3, (3, 1, 2, 0), 2),
        Thresholds(7, tuple(range(8)), 3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("out_channels", [10, 64])
def test_epilogues(epilogue: Any, out_channels: int, family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_workload(family, epilogue=epilogue, out_channels=out_channels, in_channels=40, **BORDER)
    reference.check_conv2d(workload, family)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(("activations", "weights"), [(1, 1), (2, 1), (3, 1), (8, 1), (1, 2), (2, 2), (3, 2)])
def test_planes(activations: int, weights: int, corrected: bool, family: Any, reference: SimpleNamespace) -> None:
    fields = reference.planes(activations, weights, corrected)
    workload = reference.make_workload(family, height=6, width=5, in_channels=40, strides=(1, 2), **fields)
    reference.check_conv2d(workload, family)


def test_classes_in_any_order(family: Any, reference: SimpleNamespace) -> None:
    fields = {
        **reference.planes(2, 2),
        "plane_class": ((2, 0), (0, 1)),
        "class_multiplier": (-3, 5, 7),
        "activation_multiplier": (0, 11),
    }
    reference.check_conv2d(reference.make_workload(family, epilogue=Integer(), **fields), family)


def test_xor_of_several_planes(family: Any, reference: SimpleNamespace) -> None:
    fields = {**reference.planes(2, 2), "combine": "xor"}
    reference.check_conv2d(reference.make_workload(family, **fields), family)


@pytest.mark.parametrize("symbolic", [True, False])
def test_batches(symbolic: bool, family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_workload(family, **BORDER, **reference.planes(2, 1))
    for batch in (1, 3):
        reference.check_conv2d(workload, family, batch=batch, symbolic=symbolic)


@pytest.mark.parametrize("width", [1, 3, 8, 13])
@pytest.mark.parametrize("epilogue", [Affine(), Thresholds(1, (0, 1), 1)], ids=repr)
def test_a_symbolic_width_serves_dense_layers(
    width: int, epilogue: Any, family: Any, reference: SimpleNamespace
) -> None:
    workload = reference.make_workload(
        family, **POINTWISE, height=1, width=4, in_channels=100, out_channels=70, epilogue=epilogue
    )
    reference.check_conv2d(workload, family, width=width)


@pytest.mark.parametrize("symbolic", [True, False])
def test_threads(symbolic: bool, family: Any, reference: SimpleNamespace) -> None:
    cores = dataclasses.replace(family, cores=2)
    workload = reference.make_workload(family, height=12, width=12, out_channels=512, **BORDER)
    assert default_knobs(workload, cores).parallel
    assert not default_knobs(reference.make_workload(family), cores).parallel
    reference.check_conv2d(workload, cores, batch=3, symbolic=symbolic)


@pytest.mark.parametrize("choice", [(1, 1, 2, 1, 1), (3, 3, 2, 9, 2), (9, 1, 4, 3, 4), (1, 9, 4, 2, 64)], ids=str)
def test_knobs_do_not_change_the_result(choice: tuple, family: Any, reference: SimpleNamespace) -> None:
    pixel_tile, pixel_rows, channel_tile, row_tile, unroll_words = choice
    workload = reference.make_workload(family, out_channels=256, in_channels=128, **reference.planes(2, 1))
    if register_tile(workload, 9).columns not in (1, 3, 9):
        pixel_tile = register_tile(workload, 9).columns
    for pack in ("scalar", default_knobs(workload, family).pack):
        knobs = Conv2dKnobs(pixel_tile, pixel_rows, channel_tile, row_tile, unroll_words, pack)
        reference.check_conv2d(workload, family, knobs=knobs)


@pytest.mark.parametrize("name", ["same", "strided", "wide"])
def test_the_schedule_of_aarch64_computes_the_same(name: str, reference: SimpleNamespace) -> None:
    """Its instructions exist on every processor, so that the schedule can run without an ARM board."""
    here = dataclasses.replace(reference.families["aarch64"], llvm={"kind": "llvm"})
    workload = reference.make_workload(here, **{**SHAPES[name], **reference.planes(2, 2)})
    assert default_knobs(workload, here).pack == "arm.addv.8x16"
    reference.check_conv2d(workload, here)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject, family: Any, reference: SimpleNamespace) -> None:
    small = st.integers(1, 3)
    activations, weights = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 2)]), label="planes")
    fields: dict[str, Any] = {
        "kernel": (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))),
        "strides": (data.draw(small), data.draw(small)),
        "padding": tuple(data.draw(st.integers(0, 2)) for _ in range(4)),
        "dilation": (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        "height": data.draw(st.integers(9, 12)),
        "width": data.draw(st.integers(9, 20)),
        "in_channels": data.draw(st.integers(1, 300)),
        "out_channels": data.draw(st.sampled_from([1, 3, 10, 33, 64, 100, 130])),
        "col_classes": data.draw(small),
        "epilogue": data.draw(st.sampled_from([Integer(), Affine(), Thresholds(3, (0, 3, 1, 2), 2)])),
    }
    if (activations, weights) != (1, 1) or data.draw(st.booleans(), label="and"):
        fields |= reference.planes(activations, weights, data.draw(st.booleans()))
    workload = reference.make_workload(family, **fields)
    reference.check_conv2d(workload, family, batch=data.draw(st.integers(1, 2)), seed=data.draw(st.integers(0, 99)))


def test_other_functions_are_left_alone(family: Any, reference: SimpleNamespace) -> None:
    function = conv2d(reference.make_workload(family), 1)
    assert schedule(function.without_attr("tvmq.kernel"), family) is None
    assert schedule(reference.scheduled(function, family), family) is None


def test_every_family_packs_with_an_instruction(cross: Any, reference: SimpleNamespace) -> None:
    assert default_knobs(reference.make_workload(cross), cross).pack != "scalar"


def test_knobs_are_checked() -> None:
    with pytest.raises(ValueError, match="positive"):
        Conv2dKnobs(0, 1, 1, 1)
    with pytest.raises(ValueError, match="pack"):
        Conv2dKnobs(1, 1, 1, 1, pack="perfect")


def test_too_many_pairs_for_a_byte_are_refused(reference: SimpleNamespace, family: Any) -> None:
    if family.word_bits != 8:
        family = dataclasses.replace(family, word_bits=8)
    fields = {**reference.planes(8, 8), "plane_class": ((0,) * 8,) * 8, "class_multiplier": (1,)}
    with pytest.raises(ValueError, match="byte sum"):
        conv2d(reference.make_workload(family, **fields), 1)


INSTRUCTIONS = {
    "vpopcntdq": (r"vpopcntd\s.*zmm", r"kmovw|kunpck"),
    "avx512bw": (r"vpshufb\s.*zmm", r"kmov|vpmovmskb"),
    "avx2": (r"vpshufb\s.*ymm", r"vpmovmskb"),
    "aarch64": (r"\bcnt\s+v\d+\.16b", r"addv"),
    "armv7": (r"vcnt\.8\s+q", r"vpadd"),
}


@pytest.mark.parametrize(
    "epilogue",
    [Thresholds(1, (0, 1), 1), Affine(), Float("affine", True, True, Thresholds(1, (0, 1), 1))],
    ids=repr,
)
def test_every_family_uses_its_instructions(cross: Any, epilogue: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_workload(
        cross, height=14, width=14, in_channels=256, out_channels=256, epilogue=epilogue, **BORDER
    )
    assembly = assemble(apply_knobs(conv2d(workload, 1), default_knobs(workload, cross)), cross)
    popcount, pack = INSTRUCTIONS[cross.name]
    assert re.search(popcount, assembly)
    if workload.thresholds is not None:
        assert re.search(pack, assembly)
    if workload.float_epilogue is not None:
        assert re.search(r"vfmadd|fmla|vfma\.f32", assembly)
        assert "fmaf" not in assembly
    body = inner_loop(assembly, popcount)
    assert not re.search(r"\[sp|\(%rsp|\[r\d+, *#-", body), f"the inner loop spills:\n{body}"


def assemble(function: tirx.PrimFunc, family: Any) -> str:
    return tvm.compile(function, target=family.target()).mod.inspect_source("s")


def inner_loop(assembly: str, instruction: str) -> str:
    """The basic block with the most popcounts."""
    blocks = re.split(r"^\.LBB\S+:.*$|^\s+(?:b|j)[a-z.]*\s+\.LBB\S+.*$", assembly, flags=re.MULTILINE)
    return max(blocks, key=lambda block: len(re.findall(instruction, block)))
