"""The simulated records of boards that come with tvmq are those of today's kernels, and networks get them."""

from __future__ import annotations

import dataclasses

import pytest
import tvm

from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.depth import depth_of
from tvmq.kernels.knobs import KINDS
from tvmq.kernels.workload import DEPTH_LANES, Affine, Conv2dWorkload, Dot, Epilogue, Float, Thresholds, dot_form
from tvmq.records import Key, Record, RecordBook, read_records
from tvmq.target import Target, data_folder, get_target
from tvmq.transform.schedule_kernels import SCHEDULE_ATTRIBUTE, ScheduleKernels
from tvmq.tuning.simulate import SMALLEST_GAIN
from tvmq.tuning.tasks import Task

BOARDS = ("3", "3-32", "4", "5", "zero-2")


@pytest.fixture(params=BOARDS)
def core(request: pytest.FixtureRequest) -> Target:
    return get_target(f"raspberry-pi-{request.param}")


def shipped(core: Target) -> list[Record]:
    return read_records(data_folder("schedules") / core.name / "conv2d.json")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace(",", "x").split("x")))


def epilogue_of(text: str) -> Epilogue:
    parts = text.split(", ")
    counts = [int(part.split()[0]) for part in parts if part.endswith("thresholds")]
    codes = [Thresholds(count, tuple(range(count + 1)), count.bit_length()) for count in counts]
    if parts[0] == "affine" and (codes or "shortcut" in parts):
        store = "store" in parts or not codes
        return Float("affine", "shortcut" in parts, store, codes[0] if codes else None)
    return codes[0] if codes else Affine()


def kernel_of(key: Key, core: Target) -> Task:
    """A kernel that has this name in records."""
    traits = dict(key.traits)
    width = key.shape.get("width", 1)
    is_dense = traits["kernel"] == "1x1" and key.shape["height"] == 1
    planes = int(traits["activation_planes"]), int(traits["weight_planes"])
    classes = tuple(tuple(i + j for j in range(planes[1])) for i in range(planes[0]))
    workload = Conv2dWorkload(
        height=key.shape["height"],
        width=1 if is_dense else width,
        in_channels=key.shape["in_channels"],
        out_channels=key.shape["out_channels"],
        **{name: numbers(str(traits[name])) for name in ("kernel", "strides", "padding", "dilation")},
        activation_planes=planes[0],
        weight_planes=planes[1],
        combine="xor",
        plane_class=classes,
        class_multiplier=(1,) * int(traits["classes"]),
        activation_multiplier=(0,) * planes[0],
        row_classes=1,
        col_classes=1,
        word_bits=core.word_bits,
        lanes=core.lanes,
        epilogue=epilogue_of(str(key.details["epilogue"])),
    )
    if "depth_step" in traits:
        depth = depth_of(workload.in_words, core.arch)
        workload = dataclasses.replace(workload, lanes=DEPTH_LANES, depth=depth)
    if traits["combine"] == "dot":
        operands = Dot(8, 8, 2 * 255 * 127, gathered=bool(traits["gathered"]), form=dot_form(core.dot))
        workload = dataclasses.replace(workload, combine="dot", dot=operands, lanes=core.dot_lanes)
    return Task(conv2d(workload, 1, width if is_dense else None), KINDS["conv2d"], core)


def test_records_are_simulated_and_never_lose(core: Target) -> None:
    records = shipped(core)
    assert records
    for record in records:
        assert record.is_simulated and len(record.candidates) <= min(5, record.trials)
        sure = record.microseconds < (1 - SMALLEST_GAIN) * record.default_microseconds
        assert record.knobs == record.default_knobs or sure


def test_records_fit_the_kernels_of_today(core: Target) -> None:
    for record in shipped(core):
        kernel = kernel_of(record.key, core)
        assert kernel.key == record.key
        assert kernel.kind.default(kernel.function, core) == record.default_knobs, "tune again"
        for knobs in (record.knobs, *record.candidates):
            assert kernel.kind.adapted(kernel.function, core, knobs) == knobs


def test_a_compiled_kernel_has_the_knobs_of_its_record(core: Target) -> None:
    record = min(shipped(core), key=lambda item: (item.knobs == item.default_knobs, item.microseconds))
    kernel = kernel_of(record.key, core)
    expected = kernel.kind.apply(kernel.function, core, record.knobs).with_attr(SCHEDULE_ATTRIBUTE, "tuned")
    module = tvm.IRModule({"kernel": kernel.function.with_attr("global_symbol", "kernel")})
    scheduled = ScheduleKernels(core, RecordBook.of(core))(module)["kernel"]
    tvm.ir.assert_structural_equal(scheduled.without_attr("global_symbol"), expected.without_attr("global_symbol"))


def test_one_run_serves_both_boards_of_a_core() -> None:
    one, other = (get_target(f"raspberry-pi-{name}") for name in ("3", "zero-2"))
    assert dataclasses.replace(one, name=other.name, description=other.description) == other
    assert shipped(one) == shipped(other)
