"""Vectors along the depth give what plain integer arithmetic gives, bit for bit."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.shapes import BORDER, POINTWISE
from tvmq.kernels.arm_depth import DEPTHS, Tile, register_tile
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.depth import depth_of, unrolls
from tvmq.kernels.knobs import KINDS
from tvmq.kernels.packing import pack_depth_weights
from tvmq.kernels.schedule import Conv2dKnobs, default_knobs
from tvmq.kernels.workload import Affine, Conv2dWorkload, Depth, Float, Integer, Thresholds
from tvmq.target import Target, get_target

ANY = SimpleNamespace(word_bits=8, lanes=8, arch="aarch64")
SHAPES: dict[str, dict[str, Any]] = {
    "whole steps": {"in_channels": 256, "height": 7, "width": 7, "out_channels": 24, **BORDER},
    "8 bytes": {"in_channels": 64, "out_channels": 10, "epilogue": Integer()},
    "4 bytes": {"in_channels": 96, "strides": (2, 2), "epilogue": Affine()},
    "2 bytes, padded": {"in_channels": 70, "kernel": (3, 2), "dilation": (2, 1)},
    "odd pixels": {**POINTWISE, "height": 3, "width": 5, "in_channels": 128, "out_channels": 20, "strides": (2, 1)},
    "dense": {**POINTWISE, "height": 1, "width": 1, "in_channels": 1000, "out_channels": 40},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("planes", [(1, 1), (2, 2)], ids=str)
def test_emulated(name: str, planes: tuple[int, int], core: Target, reference: SimpleNamespace) -> None:
    fields = {} if planes == (1, 1) else reference.planes(*planes)
    workload = reference.make_depth(core, **SHAPES[name], **fields)
    assert default_knobs(workload, core).depth in DEPTHS
    function, arguments, expected = reference.conv2d_case(workload, core)
    outputs = reference.emulate(function, core, arguments, expected)
    for output, like in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, like)


@pytest.mark.parametrize("name", ["whole steps", "8 bytes"])
def test_an_in_order_core(name: str, reference: SimpleNamespace, runner_cache: None) -> None:
    core = get_target("raspberry-pi-3")
    workload = reference.make_depth(core, **SHAPES[name])
    assert default_knobs(workload, core).depth.endswith(".in-order")
    function, arguments, expected = reference.conv2d_case(workload, core)
    outputs = reference.emulate(function, core, arguments, expected)
    np.testing.assert_array_equal(outputs, expected)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject, reference: SimpleNamespace) -> None:
    """On this computer, where no instruction takes the place of the loops it describes."""
    family = dataclasses.replace(next(iter(reference.host.values())), word_bits=8, lanes=16, popcount="cnt")
    small = st.integers(1, 3)
    planes = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (8, 1)]), label="planes")
    fields: dict[str, Any] = {
        "kernel": (data.draw(small), data.draw(small)),
        "strides": (data.draw(small), data.draw(small)),
        "padding": tuple(data.draw(st.integers(0, 2)) for _ in range(4)),
        "dilation": (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        "height": data.draw(st.integers(7, 9)),
        "width": data.draw(st.integers(7, 15)),
        "in_channels": data.draw(st.integers(1, 300)),
        "out_channels": data.draw(st.sampled_from([1, 8, 10, 40, 64])),
        "col_classes": data.draw(small),
        "epilogue": data.draw(st.sampled_from([Integer(), Affine(), Thresholds(3, (0, 3, 1, 2), 2)])),
    }
    if planes != (1, 1):
        fields |= reference.planes(*planes, data.draw(st.booleans()))
    words = -(-fields["in_channels"] // 8)
    depth = data.draw(st.sampled_from([depth_of(words, "aarch64"), depth_of(words, "armv7l")]))
    workload = dataclasses.replace(reference.make_depth(ANY, **fields), depth=depth)
    reference.check_conv2d(workload, family, seed=data.draw(st.integers(0, 99)))


def test_learned_bases(reference: SimpleNamespace) -> None:
    family = dataclasses.replace(next(iter(reference.host.values())), word_bits=8, lanes=16)
    fields: dict[str, Any] = {
        "combine": "and",
        "activation_planes": 2,
        "weight_planes": 2,
        "plane_class": ((0, 1), (2, 3)),
        "class_multiplier": (1, 1, 1, 1),
        "activation_multiplier": (0, 0),
        "epilogue": Float("basis", shortcut=False, store=True, thresholds=None),
    }
    reference.check_conv2d(reference.make_depth(ANY, **fields), family)


@pytest.mark.parametrize(
    ("words", "depth"),
    [
        (1, Depth(2, 2, True)),
        (2, Depth(2, 2, True)),
        (8, Depth(8, 8, True)),
        (12, Depth(4, 12, True)),
        (15, Depth(16, 16)),
        (18, Depth(4, 20, True)),
        (32, Depth(16, 32)),
        (125, Depth(16, 128)),
    ],
)
def test_the_cheapest_step(words: int, depth: Depth) -> None:
    assert depth_of(words, "aarch64") == depth
    assert depth_of(words, "armv7l") == Depth(4, -(-words // 4) * 4)


@pytest.mark.parametrize(
    ("depth", "message"),
    [((3, 6), "not 3"), ((16, 24), "not whole steps"), ((8, 0), "not whole steps"), ((16, 16, True), "as they are")],
)
def test_a_step_that_cannot_be_is_refused(depth: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Depth(*depth)


def make_workload(reference: SimpleNamespace, **fields: Any) -> Conv2dWorkload:
    """Of steps of eight bytes, or any."""
    return reference.make_workload(ANY, **{"epilogue": Integer(), "depth": Depth(8, 8, True), **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lanes": 16}, "8 lanes"),
        ({"word_bits": 32}, "words of 8 bits"),
        ({"in_channels": 65}, "do not hold 65 channels"),
        ({"in_channels": 8192, "depth": Depth(16, 1024)}, "sums along the depth are at most 65535, got 73728"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(fields: dict[str, Any], message: str, reference: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=message):
        make_workload(reference, **fields)


def test_the_largest_sum_fits(reference: SimpleNamespace) -> None:
    workload = make_workload(reference, in_channels=7280, depth=Depth(2, 910))
    assert workload.class_bound == 65520
    assert Conv2dWorkload.from_json(workload.to_json()) == workload


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not hold 20 channels"):
        pack_depth_weights(np.zeros((1, 8, 1, 1, 20), bool), Depth(2, 2))
    with pytest.raises(ValueError, match="axes"):
        pack_depth_weights(np.zeros((8, 1, 1, 20), bool), Depth(2, 2))


def test_an_unknown_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown instruction along the depth 'vcnt'"):
        Conv2dKnobs(1, 1, 1, 1, depth="vcnt")


@pytest.mark.parametrize("name", DEPTHS)
def test_every_instruction_is_known_to_tvm(name: str) -> None:
    sizes = {"rows": 2, "columns": 2, "kernel": (3, 3), "strides": (1, 2), "dilation": (1, 1), "pixel_steps": 2}
    memory = {"stride": 16, "activation_planes": 1, "weight_planes": 1, "pitch": 512, "unrolled": 2}
    assert register_tile(name, Tile(**sizes, **memory)).startswith(name)


@pytest.mark.parametrize("board", ["raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-3-32"])
def test_the_space_begins_with_the_default_and_keeps_to_what_unrolls(board: str, reference: SimpleNamespace) -> None:
    target = get_target(board)
    workload = make_workload(reference, in_channels=256, depth=depth_of(32, target.arch))
    function = conv2d(workload, 1)
    kind = KINDS["conv2d"]
    space = kind.space(function, target)
    assert space[0] == kind.default(function, target)
    assert {point["unroll_words"] for point in space} <= set(unrolls(workload))
    assert len(space) > 10
    assert kind.adapted(function, target, space[0]) == space[0]
