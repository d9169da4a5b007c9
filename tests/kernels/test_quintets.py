"""Sums looked up in tables of 32 entries equal plain integer arithmetic, bit for bit, on an emulated core."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm

from tvmq.kernels.arm_table_assembly import Lookups, Run, assembly, lookup_module
from tvmq.kernels.arm_tables import TableTile
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.knobs import kind_of
from tvmq.kernels.packing import pack_bytes, pack_weight_indices
from tvmq.kernels.schedule import apply_knobs, default_knobs
from tvmq.kernels.tables import table_bytes
from tvmq.kernels.workload import Conv2dWorkload, Float, Table, Thresholds, index_bits, most_lookups, table_indices
from tvmq.target import Target, get_target

BORDER = {"row_classes": 3, "col_classes": 2}
POINTWISE = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
SAMPLES = {**POINTWISE, "height": 1, "width": 1}


@pytest.fixture(scope="module")
def core(runner_cache: None) -> Target:
    """The one that is fastest with them."""
    return get_target("raspberry-pi-5")


@pytest.mark.parametrize(
    ("bits", "fields", "options"),
    [
        (2, {**BORDER, "height": 7}, {"batch": 2}),
        (3, {**POINTWISE, "in_channels": 100, "out_channels": 33, "epilogue": Thresholds(7, tuple(range(8)), 3)}, {}),
        (4, {"strides": (2, 2), "in_channels": 33, "out_channels": 100, "width": 10}, {}),
        (2, {**POINTWISE, "strides": (2, 2), "epilogue": Thresholds(3, (3, 1, 2, 0), 2, "bytes")}, {}),
        (3, {"dilation": (2, 2), "padding": (2, 2, 2, 2), "strides": (1, 2), "in_channels": 70}, {}),
        (2, {"padding": (0, 0, 0, 0), "strides": (2, 2), "in_channels": 160, "width": 8}, {}),
        (4, {**SAMPLES, "width": 13, "in_channels": 170, "out_channels": 70}, {}),
        (2, {**SAMPLES, "out_channels": 40, "epilogue": Float("affine", False, True, None)}, {}),
    ],
    ids=["3x3", "1x1", "strided", "1x1 strided", "dilated", "valid", "dense", "one sample"],
)
def test_geometries(
    bits: int, fields: dict[str, Any], options: dict[str, Any], core: Target, reference: SimpleNamespace
) -> None:
    workload = reference.make_table(core, bits, **fields)
    assert workload.has_quintets
    function, arguments, expected = reference.conv2d_case(workload, core, **options)
    for output, like in zip(reference.emulate(function, core, arguments, expected), expected, strict=True):
        np.testing.assert_array_equal(output.view(np.uint8), like.view(np.uint8))


@pytest.mark.parametrize("bits", [2, 4])
def test_every_code_at_its_extreme(bits: int, core: Target, reference: SimpleNamespace) -> None:
    """Every sum of bytes is as large as it can be, and the sums of 16 bits nearly so."""
    most, lanes = 2**bits - 1, core.lanes
    channels = (2**16 - 1) // most // 10 * 10
    fields = {**POINTWISE, "height": 1, "width": 2, "in_channels": channels, "out_channels": lanes}
    workload = reference.make_table(core, bits, signed=False, **fields)
    function = reference.scheduled(conv2d(workload, 1), core)
    codes, ones = np.full((1, channels, 1, 2), most, np.uint8), np.ones((1, lanes, 1, 1, channels), bool)
    weights = pack_weight_indices(ones, workload.weight_words, lanes)
    operands = [pack_bytes(codes, workload.in_words), weights, np.zeros((1, 1, lanes), np.int32)]
    expected = np.full((1, 1, 2, lanes), channels * most, np.int32)
    (output,) = reference.emulate(function, core, operands, [expected])
    np.testing.assert_array_equal(output, expected)


def test_a_byte_holds_what_a_chunk_sums() -> None:
    assert [most_lookups(bits) for bits in (1, 2, 3, 4)] == [51, 17, 7, 3]
    for bits in (1, 2, 3, 4):
        for indices in range(1, 200):
            lookups = Lookups((0,), (0,), indices, most_lookups(bits), ())
            count, size = lookups.chunks
            assert (count - 1) * size < indices <= count * size
            assert 5 * (2**bits - 1) * size <= 255


def test_every_index_is_looked_up_once() -> None:
    lines = assembly(Lookups((0, 64), (0, 96, 192), 40, 17, (Run(3, 4096, 640),)))
    counts = {name: sum(line.startswith(f"{name} v") for line in lines) for name in ("tbl", "add", "uaddw", "uaddw2")}
    # Two chunks of 14 are one body, and the last has 12; the first lookup of each is not added.
    assert counts == {"tbl": 6 * (14 + 12), "add": 6 * (13 + 11), "uaddw": 2 * 6, "uaddw2": 2 * 6}
    assert [line for line in lines if line.startswith("mov")] == ["mov x13, #3", "mov x12, #2"]
    assert lines[-2:] == ["subs x13, x13, #1", "b.ne 2b"]
    used = {int(number) for line in lines for number in re.findall(r"\b[vq](\d+)", line)}
    assert used == set(range(3 * 6 + 2 + 3 + 6))


def test_rounds_end_where_the_next_begin() -> None:
    lines = assembly(Lookups((0,), (0,), 3, 3, (Run(2, 1024, 48), Run(4, 8192, 96))))
    # 3 tables and 3 indices further, then to the next rows of both loops.
    ends = [line for line in lines if re.match(r"(add|sub) x[01],", line)]
    assert ends == [
        "add x0, x0, #96",
        "add x1, x1, #48",
        "add x0, x0, #928",
        "add x0, x0, #1, lsl #12",
        "add x0, x0, #2048",
    ]


def test_the_function_asks_for_the_registers_of_its_sums() -> None:
    text = lookup_module("sums", Lookups((0, 32), (0,), 9, 7, ()))
    assert "void @sums(ptr %tables, ptr %weights, ptr %sums0, ptr %sums1) alwaysinline" in text
    assert '"={v0},={v1},={v2},={v3},={x0},={x2},0,1,2,3,4,5,~{v4}' in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": tuple(range(9))}, "1 to 8 sums, not 9"),
        ({"runs": (Run(2, 32, 16),) * 3}, "at most 2 loops around chunks, not 3"),
    ],
)
def test_lookups_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Lookups((0,), (0,), 4, 3, ()), **fields)


def test_columns_of_a_window_are_one_run() -> None:
    tile = TableTile(1, 2, 1, (3, 3), (1, 2), (1, 1), 8, 4096, 17)
    assert tile.lookups() == Lookups((0, 512), (0,), 24, 17, (Run(3, 4096, 384),))
    apart = dataclasses.replace(tile, dilation=(2, 2)).lookups()
    assert (apart.indices, apart.runs) == (8, (Run(3, 512, 128), Run(3, 8192, 384)))


def test_sizes(reference: SimpleNamespace) -> None:
    core = get_target("raspberry-pi-5")
    assert (index_bits(8, 16), index_bits(8, 32), index_bits(32, 16)) == (5, 4, 4)
    assert [table_indices(channels) for channels in (1, 64, 65, 128, 512)] == [8, 14, 14, 26, 104]
    workload = reference.make_table(core, 2, in_channels=64, out_channels=33)
    assert (workload.weight_words, workload.padded_words, table_bytes(workload)) == (14, 70, 448)
    assert workload.weight_shape() == (3, 3, 3, 1, 14, 16)
    assert Conv2dWorkload.from_json(workload.to_json()) == workload
    with pytest.raises(ValueError, match="by words of 8 bits are at most 65535, got 65536"):
        dataclasses.replace(workload, table=Table(2, 2**16))


def test_weights_are_indices() -> None:
    bits = np.zeros((1, 3, 1, 1, 12), bool)
    bits[0, 1, 0, 0, [0, 3, 5, 11]] = True
    packed = pack_weight_indices(bits, 8, 16)
    assert packed.shape == (1, 1, 1, 1, 8, 16)
    assert packed[0, 0, 0, 0, :, 1].tolist() == [9, 1, 2, 0, 0, 0, 0, 0]
    assert packed[..., [0, *range(2, 16)]].max() == 0


def test_points_of_the_search_space(core: Target, reference: SimpleNamespace) -> None:
    workload = reference.make_table(core, 3, height=6, width=4, in_channels=16, out_channels=64)
    function = conv2d(workload, 1)
    kind = kind_of(function)
    assert kind is not None
    points = kind.space(function, core)
    assert max(point["pixel_tile"] * point["pixel_rows"] * point["channel_tile"] for point in points) == 8
    assert kind.title(function) == "conv 3x3 6x4, 16 to 64, w1a3 by tables"
    knobs = dataclasses.replace(default_knobs(workload, core), **points[-1])
    function, arguments, expected = reference.conv2d_case(workload, core, knobs=knobs)
    np.testing.assert_array_equal(reference.emulate(function, core, arguments, expected)[0], expected[0])


@pytest.mark.parametrize("fields", [{}, {**SAMPLES, "in_channels": 100}], ids=["images", "samples"])
def test_an_unknown_batch_compiles(fields: dict[str, Any], reference: SimpleNamespace) -> None:
    core = get_target("raspberry-pi-5")
    workload = reference.make_table(core, 2, **fields)
    width = 13 if workload.is_dense else None
    function, _, _ = reference.conv2d_case(workload, core, symbolic=width is None, width=width)
    assert "tbl" in tvm.compile(function, target=core.tvm_target()).mod.inspect_source("s")


def test_the_sums_stay_in_registers(core: Target, reference: SimpleNamespace) -> None:
    workload = reference.make_table(core, 2, height=14, width=14, in_channels=256, out_channels=256)
    function = apply_knobs(conv2d(workload, 1), default_knobs(workload, core))
    assembly = tvm.compile(function, target=core.tvm_target()).mod.inspect_source("s")
    inside = re.findall(r"^\s*(?://|#)APP$(.*?)^\s*(?://|#)NO_APP$", assembly, re.MULTILINE | re.DOTALL)
    assert inside and not any("sp" in re.findall(r"\[(\w+)", text) for text in inside)
    assert sum(text.count("tbl\t") + text.count("tbl ") for text in inside) >= 8 * 16
