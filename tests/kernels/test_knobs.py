"""The knob space: it has the default, every point of it is valid, and records are fitted into it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from tvm import tirx

from tvmq.kernels.conv2d import conv2d, tiled_width
from tvmq.kernels.knobs import KINDS, kind_of
from tvmq.kernels.packing import bitpack
from tvmq.kernels.schedule import apply_knobs, function_knobs, schedule
from tvmq.kernels.workload import Affine, Dot, Float, Integer, Thresholds
from tvmq.target import get_target

KIND = KINDS["conv2d"]
TARGETS = ["x86-avx512-vpopcntdq", "x86-avx2", "raspberry-pi-4", "raspberry-pi-3-32"]
SHAPES = {
    "square": {"height": 14, "width": 14, "in_channels": 256, "out_channels": 256},
    "stride": {"height": 56, "width": 56, "in_channels": 64, "out_channels": 128, "strides": (2, 2)},
    "odd": {"height": 13, "width": 13, "in_channels": 40, "out_channels": 70},
    "dense": {"height": 1, "width": 1, "in_channels": 1024, "out_channels": 512, "kernel": (1, 1), "padding": (0,) * 4},
}


def kernel(reference: SimpleNamespace, target, shape: str, planes: tuple[int, int] = (1, 1), width=None, **fields):
    core = SimpleNamespace(word_bits=target.word_bits, lanes=target.lanes)
    bits = {} if planes == (1, 1) else reference.planes(*planes)
    return conv2d(reference.make_workload(core, **SHAPES[shape], **bits, **fields), 1, width)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("planes", [(1, 1), (2, 1)])
def test_the_space_starts_with_the_default_and_has_valid_points_only(reference, name, shape, planes):
    target = get_target(name)
    function = kernel(reference, target, shape, planes)
    points = KIND.space(function, target)
    assert points[0] == KIND.default(function, target)
    assert len({tuple(point.items()) for point in points}) == len(points)
    rows, width = (int(size) for size in function.params[-1].shape[1:3])
    for point in points:
        assert rows % point["pixel_rows"] == 0 and rows % point["row_tile"] == 0
        assert point["row_tile"] % point["pixel_rows"] == 0
        assert KIND.adapted(function, target, point) == point or function_knobs(function, target).parallel
    workload_width = tiled_width(_workload(function), width)
    assert all(workload_width % point["pixel_tile"] == 0 for point in points)


def _workload(function: tirx.PrimFunc):
    from tvmq.kernels.workload import Conv2dWorkload

    return Conv2dWorkload.from_json(str(function.attrs["tvmq.workload"]))


def test_there_is_something_to_choose(reference):
    target = get_target("x86-avx512-vpopcntdq")
    assert 50 < len(KIND.space(kernel(reference, target, "square"), target)) < 1000


def test_all_points_compute_the_same(reference, family):
    workload = reference.make_workload(family, height=6, width=6, in_channels=64, out_channels=64)
    function = conv2d(workload, 1)
    points = KIND.space(function, family)
    chosen = [points[int(i)] for i in np.linspace(0, len(points) - 1, 6)]
    for point in chosen:
        knobs = dataclasses.replace(function_knobs(function, family), **point)
        reference.check_conv2d(workload, family, knobs=knobs)


def test_the_default_point_is_the_analytic_schedule(reference, family):
    function = conv2d(reference.make_workload(family), 1)
    ready = KIND.apply(function, family, KIND.default(function, family))
    tvm.ir.assert_structural_equal(ready, schedule(function, family))
    tvm.ir.assert_structural_equal(ready, apply_knobs(function, function_knobs(function, family)))


def test_a_record_of_another_shape_keeps_its_register_tile(reference):
    target = dataclasses.replace(get_target("x86-avx512-vpopcntdq"), cores=1)
    function = kernel(reference, target, "square")
    knobs = {"pixel_tile": 7, "pixel_rows": 2, "channel_tile": 2, "row_tile": 56, "unroll_words": 5}
    assert KIND.adapted(function, target, knobs) == {**knobs, "row_tile": 14, "unroll_words": 4}
    assert KIND.adapted(function, target, {**knobs, "row_tile": 1}) == {**knobs, "row_tile": 2, "unroll_words": 4}
    for unfit in ({"pixel_tile": 8}, {"pixel_rows": 4}, {"channel_tile": 3}, {"pixel_tile": 14, "channel_tile": 4}):
        assert KIND.adapted(function, target, {**knobs, **unfit}) is None
    assert KIND.adapted(function, target, {"pixel_tile": 7}) is None


def test_a_record_of_one_thread_leaves_work_for_every_core(reference):
    target = dataclasses.replace(get_target("x86-avx512-vpopcntdq"), cores=8)
    function = kernel(reference, target, "square")
    default = KIND.default(function, target)
    adapted = KIND.adapted(function, target, {**default, "row_tile": 14})
    assert default["row_tile"] < 14 and adapted == default


def test_keys_say_what_matters(reference):
    target = get_target("x86-avx512-vpopcntdq")
    texts = set()
    epilogues = [
        Thresholds(1, (0, 1), 1),
        Thresholds(3, (0, 1, 2, 3), 2),
        Integer(),
        Affine(),
        Float("affine", True, True, None),
        Float("affine", True, True, Thresholds(1, (0, 1), 1)),
        Float("affine", True, False, Thresholds(1, (0, 1), 1)),
    ]
    for epilogue in epilogues:
        texts.add(KIND.key(kernel(reference, target, "square", epilogue=epilogue), target).text)
    texts.add(KIND.key(kernel(reference, target, "square", (2, 1)), target).text)
    texts.add(KIND.key(kernel(reference, target, "stride"), target).text)
    assert len(texts) == len(epilogues) + 2
    again = KIND.key(kernel(reference, target, "square", row_classes=3, col_classes=3), target)
    assert again.text in texts  # constants per border class do not change what is best


def test_threads_are_a_detail(reference):
    target = get_target("x86-avx512-vpopcntdq")
    many, one = (KIND.key(kernel(reference, core, "square"), core) for core in (target, _with_cores(target, 1)))
    assert many.details["threads"] == 4 and one.details["threads"] == 1 and 0 < one.distance(many) < 1
    assert KIND.key(kernel(reference, target, "dense"), target).details["threads"] == 1  # too small to share


def _with_cores(target, cores: int):
    return dataclasses.replace(target, cores=cores)


def test_an_open_number_of_samples(reference):
    target = get_target("x86-avx512-vpopcntdq")
    open_samples = kernel(reference, target, "dense", width=tirx.Var("samples", "int64"))
    many = kernel(reference, target, "dense", width=256)
    assert "width" not in KIND.key(open_samples, target).shape and KIND.key(many, target).shape["width"] == 256
    points = KIND.space(open_samples, target)
    assert points[0] == KIND.default(open_samples, target) and len(points) > 1
    for point in points[:: len(points) // 4]:
        KIND.apply(open_samples, target, point)
    assert KIND.title(open_samples) == "dense 1024 to 512, w1a1" and KIND.title(many) == "dense 256 x 1024 to 512, w1a1"


def test_titles(reference):
    target = get_target("x86-avx512-vpopcntdq")
    assert KIND.title(kernel(reference, target, "square", (2, 1))) == "conv 3x3 14x14, 256 to 256, w1a2"
    assert KIND.title(kernel(reference, target, "stride")) == "conv 3x3 stride 2x2 56x56, 64 to 128, w1a1"


def test_kinds(reference):
    target = get_target("x86-avx512-vpopcntdq")
    function = kernel(reference, target, "square")
    assert kind_of(function) is KIND
    assert kind_of(schedule(function, target)) is None
    assert kind_of(bitpack(1, 32, 4, 4, 1, 32)) is None
    assert kind_of(None) is None


@pytest.mark.parametrize("name", ["x86-avx512-vpopcntdq", "x86-avx2"])
@pytest.mark.parametrize("gathered", [False, True])
def test_products_of_bytes_have_knobs_too(reference, name, gathered):
    target = get_target(name)
    planes = _workload(kernel(reference, target, "square"))
    operands = Dot(activation_bits=8, weight_bits=8, pair_bound=2 * 255 * 127, gathered=gathered)
    workload = dataclasses.replace(
        planes, combine="dot", class_multiplier=(1,), activation_multiplier=(0,), lanes=target.dot_lanes, dot=operands
    )
    function = conv2d(workload, 1)
    points = KIND.space(function, target)
    assert points[0] == KIND.default(function, target)
    assert KIND.key(function, target).traits["gathered"] == gathered
    assert KIND.title(function) == "conv 3x3 14x14, 256 to 256, bytes"
    for point in points[:: max(1, len(points) // 4)]:
        assert KIND.apply(function, target, point).attrs["tirx.is_scheduled"]
