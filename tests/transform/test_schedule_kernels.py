"""Which schedule a kernel gets: a tuned one, that of the nearest shape, or the analytic default."""

from __future__ import annotations

import dataclasses

import pytest
import tvm

from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.knobs import KINDS
from tvmq.kernels.schedule import schedule
from tvmq.kernels.workload import Conv2dWorkload, Thresholds
from tvmq.records import Record, RecordBook, write_records
from tvmq.target import get_target
from tvmq.transform import ScheduleKernels

KIND = KINDS["conv2d"]
TARGET = dataclasses.replace(get_target("x86-avx512-vpopcntdq"), cores=1)


def kernel(size: int = 14, channels: int = 64) -> tvm.tirx.PrimFunc:
    workload = Conv2dWorkload(
        height=size,
        width=size,
        in_channels=channels,
        out_channels=channels,
        kernel=(3, 3),
        strides=(1, 1),
        padding=(1, 1, 1, 1),
        dilation=(1, 1),
        activation_planes=1,
        weight_planes=1,
        combine="xor",
        plane_class=((0,),),
        class_multiplier=(-1,),
        activation_multiplier=(0,),
        row_classes=1,
        col_classes=1,
        word_bits=32,
        lanes=16,
        epilogue=Thresholds(1, (0, 1), 1),
    )
    return conv2d(workload, 1)


FUNCTION = kernel()
DEFAULT = KIND.default(FUNCTION, TARGET)
OTHER = {**DEFAULT, "pixel_rows": 1, "row_tile": 7, "unroll_words": 2}


def record(function: tvm.tirx.PrimFunc, knobs: dict[str, int], default: dict[str, int] = DEFAULT) -> Record:
    seconds = 2.0 if knobs == default else 1.0
    return Record(KIND.key(function, TARGET), knobs, default, seconds, 2.0, 0.0, 1, {})


def scheduled(*records: Record) -> tvm.tirx.PrimFunc:
    book = RecordBook({item.key.text: item for item in records})
    return ScheduleKernels(TARGET, book)(tvm.IRModule({"main": FUNCTION}))["main"]


def expect(function: tvm.tirx.PrimFunc, origin: str, knobs: dict[str, int]) -> None:
    assert function.attrs["tvmq.schedule"] == origin
    expected = KIND.apply(FUNCTION, TARGET, knobs).with_attr("tvmq.schedule", origin)
    tvm.ir.assert_structural_equal(function, expected)


def test_before_and_after():
    function = scheduled()
    assert function.attrs["tirx.is_scheduled"]
    expect(function, "default", DEFAULT)
    analytic = schedule(FUNCTION, TARGET).with_attr("tvmq.schedule", "default")
    tvm.ir.assert_structural_equal(function, analytic)


def test_a_record_of_the_same_kernel():
    expect(scheduled(record(FUNCTION, OTHER)), "tuned", OTHER)


def test_a_record_that_says_the_default_is_best():
    expect(scheduled(record(FUNCTION, DEFAULT), record(kernel(28), OTHER)), "tuned", DEFAULT)


def test_the_nearest_shape():
    far = record(kernel(28, 128), {**OTHER, "row_tile": 1})
    near = record(kernel(14, 128), {**OTHER, "row_tile": 14, "unroll_words": 4})
    expect(scheduled(far, near), "nearest", {**OTHER, "row_tile": 14})


def test_no_shape_is_near():
    expect(scheduled(record(kernel(56, 128), OTHER)), "default", DEFAULT)


def test_the_default_was_best_for_the_nearest_shape():
    expect(scheduled(record(kernel(14, 128), DEFAULT), record(kernel(28, 64), OTHER)), "default", DEFAULT)


def test_a_small_gain_is_not_taken_to_another_shape():
    near = dataclasses.replace(record(kernel(14, 128), OTHER), microseconds=1.95)
    expect(scheduled(near), "default", DEFAULT)
    expect(scheduled(dataclasses.replace(near, microseconds=1.9)), "nearest", {**OTHER, "row_tile": 7})


@pytest.mark.parametrize("unfit", [{"pixel_tile": 5}, {"channel_tile": 8}])
def test_knobs_that_do_not_fit_are_passed_over(unfit):
    expect(scheduled(record(FUNCTION, {**OTHER, **unfit})), "default", DEFAULT)
    expect(scheduled(record(FUNCTION, {**OTHER, **unfit}), record(kernel(28), OTHER)), "nearest", OTHER)


def test_the_users_records_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_records(tmp_path / "tvmq" / "schedules", TARGET, [record(FUNCTION, OTHER)])
    expect(ScheduleKernels(TARGET)(tvm.IRModule({"main": FUNCTION}))["main"], "tuned", OTHER)
