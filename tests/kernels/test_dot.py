"""The convolution of bytes equals plain integer arithmetic, bit for bit, on every family that runs here."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.shapes import BORDER, GEOMETRIES, POINTWISE
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.packing import pack_bytes, pack_weight_bytes
from tvmq.kernels.schedule import Conv2dKnobs, apply_knobs, default_knobs
from tvmq.kernels.workload import Affine, Conv2dWorkload, Dot, Float, Integer, Thresholds
from tvmq.kernels.x86 import dot

STEM = {"kernel": (7, 7), "padding": (3, 3, 3, 3), "strides": (2, 2), "in_channels": 3, "height": 14, "width": 17}
SHAPES: dict[str, dict[str, Any]] = {
    **GEOMETRIES,
    "stem": {**STEM, "gathered": True},
    "gathered": {"in_channels": 1, "gathered": True, "out_channels": 5},
    "gathered and dilated": {"in_channels": 3, "gathered": True, "dilation": (2, 3), "padding": (3, 3, 3, 3)},
    "gathered in rows": {"in_channels": 2, "gathered": True, "dilation": (2, 1), "kernel": (2, 5)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_geometries(name: str, family: Any, reference: SimpleNamespace) -> None:
    reference.check_conv2d(reference.make_dot(family, epilogue=Integer(), **SHAPES[name]), family, batch=2)


@pytest.mark.parametrize(
    "epilogue",
    [
        Affine(),
        Thresholds(1, (1, 0), 1),
        Thresholds(1, (1, 0), 1, "bytes"),
        Thresholds(3, (3, 1, 2, 0), 2),
        Thresholds(3, (3, 1, 2, 0), 2, "bytes"),
        Thresholds(15, tuple(range(16)), 4, "planes", "float32"),
        Thresholds(15, tuple((level + 9) ^ 8 for level in range(16)), 5, "bytes", "float32"),
        Thresholds(255, tuple(range(255, -1, -1)), 8, "bytes", "float64"),
        Float("affine", True, True, Thresholds(3, (0, 1, 2, 3), 2, "bytes")),
    ],
    ids=repr,
)
def test_epilogues(epilogue: Any, family: Any, reference: SimpleNamespace) -> None:
    shape = {"out_channels": 10, "in_channels": 20, "height": 5, "width": 6}
    workload = reference.make_dot(family, epilogue=epilogue, **shape, **BORDER)
    reference.check_conv2d(workload, family)


@pytest.mark.parametrize("epilogue", [Thresholds(3, (1, 0, 2, 3), 2, "bytes"), Thresholds(1, (0, 1), 1, "bytes")])
def test_bit_planes_to_bytes(epilogue: Any, family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_workload(family, epilogue=epilogue, out_channels=10, **reference.planes(2, 2))
    reference.check_conv2d(workload, family)


@pytest.mark.parametrize("pair_bound", [2 * 255 * 64, 2 * 255 * 128])
def test_no_pair_saturates(pair_bound: int, family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_dot(family, pair_bound, epilogue=Integer(), in_channels=30)
    if family.dot == "vpmaddubsw":
        exact = "vpmaddubsw" if pair_bound < 2**15 else "vpmaddwd"
        assert default_knobs(workload, family).dot == f"x86.{exact}.{family.dot_lanes}"
    reference.check_conv2d(workload, family)


def test_every_byte_at_its_extreme(family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_dot(family, epilogue=Integer(), in_channels=512, **POINTWISE)
    function = reference.scheduled(conv2d(workload, 1), family)
    codes, units = np.full((1, 512, 9, 9), 255, np.uint8), np.full((64, 1, 1, 512), -128)
    operands = [pack_bytes(codes, 512), pack_weight_bytes(units, workload.lanes, workload.out_channels_padded, False)]
    bias = np.zeros((1, 1, workload.out_channels_padded), np.int32)
    expected = np.full((1, 9, 9, 64), -512 * 255 * 128, np.int32)
    np.testing.assert_array_equal(reference.run_function(function, family, [*operands, bias], expected), expected)


@pytest.mark.parametrize("width", [1, 13])
def test_a_symbolic_width_serves_dense_layers(width: int, family: Any, reference: SimpleNamespace) -> None:
    epilogue = Thresholds(1, (0, 1), 1, "bytes")
    fields = {**POINTWISE, "height": 1, "width": 1, "in_channels": 100, "out_channels": 70, "epilogue": epilogue}
    reference.check_conv2d(reference.make_dot(family, **fields), family, width=width)


def test_threads(family: Any, reference: SimpleNamespace) -> None:
    cores = dataclasses.replace(family, cores=2)
    for fields in ({"in_channels": 128, "height": 12}, {**STEM, "gathered": True, "height": 60, "width": 60}):
        workload = reference.make_dot(family, **{"out_channels": 256, **BORDER, **fields})
        assert default_knobs(workload, cores).parallel
        reference.check_conv2d(workload, cores, batch=2)


def test_plain_arithmetic_computes_the_same(family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_dot(family, epilogue=Integer(), in_channels=20)
    knobs = dataclasses.replace(default_knobs(workload, family), dot="scalar")
    reference.check_conv2d(workload, family, knobs=knobs)


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject, family: Any, reference: SimpleNamespace) -> None:
    small = st.integers(1, 3)
    fields: dict[str, Any] = {
        "kernel": (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))),
        "strides": (data.draw(small), data.draw(small)),
        "padding": tuple(data.draw(st.integers(0, 2)) for _ in range(4)),
        "dilation": (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        "height": data.draw(st.integers(9, 12)),
        "width": data.draw(st.integers(9, 20)),
        "in_channels": data.draw(st.sampled_from([1, 2, 3, 5, 16, 33, 100])),
        "out_channels": data.draw(st.sampled_from([1, 3, 10, 33, 64, 130])),
        "col_classes": data.draw(small),
        "epilogue": data.draw(st.sampled_from([Integer(), Thresholds(3, (0, 3, 1, 2), 2, "bytes")])),
        "gathered": data.draw(st.booleans()),
    }
    if fields["gathered"]:
        fields["in_channels"] = min(fields["in_channels"], 5)
    reference.check_conv2d(reference.make_dot(family, **fields), family, seed=data.draw(st.integers(0, 99)))


INSTRUCTIONS = {"vpopcntdq": r"vpdpbusd\s.*zmm", "avx512bw": r"vpmaddwd\s.*zmm", "avx2": r"vpmaddwd\s.*ymm"}


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("fields", [{"in_channels": 256}, {**STEM, "gathered": True}, POINTWISE], ids=str)
def test_every_family_uses_its_instructions(name: str, fields: dict[str, Any], reference: SimpleNamespace) -> None:
    cross = reference.families[name]
    epilogue = Thresholds(15, tuple(range(16)), 4, "bytes", "float32")
    shape = {"height": 14, "width": 14, "in_channels": 64, "out_channels": 256, "epilogue": epilogue}
    workload = reference.make_dot(cross, **{**shape, **fields})
    function = apply_knobs(conv2d(workload, 1), default_knobs(workload, cross))
    assembly = tvm.compile(function, target=cross.target()).mod.inspect_source("s")
    blocks = re.split(r"^\.LBB\S+:.*$|^\s+j[a-z.]*\s+\.LBB\S+.*$", assembly, flags=re.MULTILINE)
    body = max(blocks, key=lambda block: len(re.findall(INSTRUCTIONS[name], block)))
    tile = default_knobs(workload, cross)
    assert len(re.findall(INSTRUCTIONS[name], body)) >= tile.pixel_tile * tile.pixel_rows * tile.channel_tile
    assert "vpbroadcastd" in body
    assert not re.search(r"\(%rsp", body), f"the inner loop spills:\n{body}"


def test_names_of_the_instructions() -> None:
    assert dot("vpdpbusd", 16, 65280) == "x86.vpdpbusd.16"
    assert dot("vpmaddubsw", 8, 32767) == "x86.vpmaddubsw.8"
    assert dot("vpmaddubsw", 8, 32768) == "x86.vpmaddwd.8"
    with pytest.raises(ValueError, match="unknown dot product"):
        Conv2dKnobs(1, 1, 1, 1, dot="sdot")


def test_the_text_of_a_workload_gives_it_back(family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_dot(family, gathered=True, epilogue=Thresholds(15, tuple(range(16)), 4, "bytes"))
    assert Conv2dWorkload.from_json(workload.to_json()) == workload


def test_sizes(reference: SimpleNamespace) -> None:
    family = reference.families["vpopcntdq"]
    workload = reference.make_dot(family, in_channels=33, out_channels=10, epilogue=Integer())
    assert (workload.in_words, workload.out_channels_padded) == (36, 16)
    assert workload.weight_shape() == (1, 3, 3, 1, 9, 16, 4)
    stem = reference.make_dot(family, **STEM, gathered=True)
    assert (stem.in_words, stem.window_bytes, stem.out_channels_padded) == (3, 148, 64)
    assert stem.weight_shape() == (4, 1, 1, 1, 37, 16, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dot": None}, "does not go with"),
        ({"combine": "and"}, "does not go with"),
        ({"activation_multiplier": (1,)}, "no sum of activations"),
        ({"epilogue": Float("basis", False, True, None)}, "no products of bytes"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str, reference: SimpleNamespace) -> None:
    workload = reference.make_dot(reference.families["avx2"])
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(workload, **fields)


def test_wrong_descriptions_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        Dot(9, 8, 0)
    with pytest.raises(ValueError, match="at most 65280"):
        Dot(8, 8, 65281)
    with pytest.raises(ValueError, match="'planes' or 'bytes'"):
        Thresholds(1, (0, 1), 1, "words")
    with pytest.raises(ValueError, match="unknown arithmetic"):
        Thresholds(1, (0, 1), 1, "bytes", "float16")
    with pytest.raises(ValueError, match="compared with their thresholds"):
        Float("affine", False, False, Thresholds(1, (0, 1), 1, "bytes", "float32"))
