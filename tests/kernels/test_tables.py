"""Sums looked up in tables equal plain integer arithmetic, bit for bit, on every family that has the instructions."""

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

from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.knobs import kind_of
from tvmq.kernels.packing import pack_bytes, pack_weights
from tvmq.kernels.schedule import apply_knobs, default_knobs
from tvmq.kernels.tables import joined_words, lookup_chunks, table_bytes
from tvmq.kernels.workload import Affine, Conv2dWorkload, Float, Integer, Table, Thresholds

BITS = (1, 2, 3, 4)
BORDER = {"row_classes": 3, "col_classes": 2}
POINTWISE = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "same": BORDER,
    "pointwise": {**POINTWISE, "in_channels": 256, "out_channels": 33},
    "strided": {"strides": (2, 2), "in_channels": 33, "out_channels": 100},
    "seven": {"kernel": (7, 7), "padding": (3, 3, 3, 3), "strides": (2, 2), "in_channels": 3, "out_channels": 10},
    "small": {"height": 7, "width": 7, "in_channels": 100, "out_channels": 160},
    "dilated": {"dilation": (2, 2), "padding": (2, 2, 2, 2), "in_channels": 20, "out_channels": 256},
    "lopsided": {"kernel": (3, 1), "padding": (0, 1, 2, 0), "strides": (1, 2), "in_channels": 1, "out_channels": 1},
    "bands": {"height": 28, "width": 56, "in_channels": 128, "out_channels": 32},
}


@pytest.fixture(scope="module")
def narrow(reference: SimpleNamespace) -> Any:
    """The family with lookups, where this computer runs it."""
    if "avx2" not in reference.host:
        pytest.skip("this machine has no AVX2")
    return reference.host["avx2"]


@pytest.fixture(scope="module", params=["avx512bw", "vpopcntdq"])
def wide(request: pytest.FixtureRequest, reference: SimpleNamespace) -> Any:
    """The families of wider vectors, where this computer runs them."""
    family = reference.host.get(request.param)
    if family is None or family.llvm != reference.families[request.param].llvm:
        pytest.skip(f"this machine has no {request.param}")
    return family


@pytest.fixture
def words(reference: SimpleNamespace) -> Any:
    """The family that looks up words of 32 bits, where this computer runs it."""
    if reference.host.get("vpopcntdq") != reference.families["vpopcntdq"]:
        pytest.skip("this machine has no AVX-512 VBMI")
    return reference.host["vpopcntdq"]


@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
def test_geometries_of_wider_vectors(index: int, wide: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_table(wide, BITS[3 - index % 4], **list(GEOMETRIES.values())[index])
    reference.check_conv2d(workload, wide, batch=2, symbolic=index % 2 == 0)


@pytest.mark.parametrize(
    "epilogue",
    [
        Thresholds(7, (3, 1, 2, 0, 7, 5, 6, 4), 3),
        Thresholds(3, (3, 1, 2, 0), 2, "bytes"),
        Float("affine", True, True, Thresholds(3, (0, 1, 2, 3), 2)),
    ],
    ids=repr,
)
def test_epilogues_of_wider_vectors(epilogue: Any, wide: Any, reference: SimpleNamespace) -> None:
    shape = {"out_channels": 40, "in_channels": 70, "height": 5, "width": 6}
    workload = reference.make_table(wide, 3, epilogue=epilogue, **shape, **BORDER)
    assert workload.codes_dtype == ("uint8" if workload.writes_bytes else workload.word_dtype)
    reference.check_conv2d(workload, wide)


def test_words_of_32_bits_add_up_to_more_than_16_bits(words: Any, reference: SimpleNamespace) -> None:
    channels, most = 8192, 15
    workload = reference.make_table(words, 4, signed=False, height=1, width=2, in_channels=channels, **POINTWISE)
    function = reference.scheduled(conv2d(workload, 1), words)
    codes, ones = np.full((1, channels, 1, 2), most, np.uint8), np.ones((1, 64, 1, 1, channels), bool)
    operands = [pack_bytes(codes, channels), pack_weights(ones, 32, 16), np.zeros((1, 1, 64), np.int32)]
    expected = np.full((1, 1, 2, 64), channels * most, np.int32)
    np.testing.assert_array_equal(reference.run_function(function, words, operands, expected), expected)


@pytest.mark.parametrize("width", [1, 13])
def test_dense_layers_of_words_of_32_bits(width: int, words: Any, reference: SimpleNamespace) -> None:
    fields = {**POINTWISE, "height": 1, "width": 1, "in_channels": 160, "out_channels": 70}
    workload = reference.make_table(words, 4, epilogue=Thresholds(3, (0, 1, 2, 3), 2), **fields)
    reference.check_conv2d(workload, words, width=width)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
def test_geometries(index: int, symbolic: bool, narrow: Any, reference: SimpleNamespace) -> None:
    bits = BITS[(index + 2 * symbolic) % 4]
    workload = reference.make_table(narrow, bits, **list(GEOMETRIES.values())[index])
    reference.check_conv2d(workload, narrow, batch=2, symbolic=symbolic)


@pytest.mark.parametrize("bits", BITS)
def test_activations_of_any_bits(bits: int, narrow: Any, reference: SimpleNamespace) -> None:
    reference.check_conv2d(reference.make_table(narrow, bits, in_channels=96, **BORDER), narrow)


def test_large_images_have_bands(narrow: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_table(narrow, 2, **GEOMETRIES["bands"])
    assert 1 < default_knobs(workload, narrow).row_tile < workload.out_height


@pytest.mark.parametrize(
    "epilogue",
    [
        Affine(),
        Thresholds(1, (1, 0), 1),
        Thresholds(3, (3, 1, 2, 0), 2),
        Thresholds(3, (3, 1, 2, 0), 2, "bytes"),
        Thresholds(15, tuple(range(16)), 4, "bytes", "float32"),
        Float("affine", True, True, Thresholds(3, (0, 1, 2, 3), 2, "bytes")),
    ],
    ids=repr,
)
def test_epilogues(epilogue: Any, narrow: Any, reference: SimpleNamespace) -> None:
    shape = {"out_channels": 10, "in_channels": 20, "height": 5, "width": 6}
    reference.check_conv2d(reference.make_table(narrow, 2, epilogue=epilogue, **shape, **BORDER), narrow)


def test_weights_of_no_sign_need_no_sums_of_windows(narrow: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_table(narrow, 3, signed=False)
    assert not workload.needs_activation_sum
    reference.check_conv2d(workload, narrow)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_at_its_extreme(bits: int, narrow: Any, reference: SimpleNamespace) -> None:
    most = 2**bits - 1
    channels = (2**16 - 1) // most // 8 * 8
    workload = reference.make_table(narrow, bits, signed=False, height=1, width=2, in_channels=channels, **POINTWISE)
    function = reference.scheduled(conv2d(workload, 1), narrow)
    codes = np.full((1, channels, 1, 2), most, np.uint8)
    ones = np.ones((1, 64, 1, 1, channels), bool)
    operands = [pack_bytes(codes, channels), pack_weights(ones, 8, 32), np.zeros((1, 1, 64), np.int32)]
    expected = np.full((1, 1, 2, 64), channels * most, np.int32)
    np.testing.assert_array_equal(reference.run_function(function, narrow, operands, expected), expected)


@pytest.mark.parametrize("width", [1, 13])
def test_a_symbolic_width_serves_dense_layers(width: int, narrow: Any, reference: SimpleNamespace) -> None:
    epilogue = Thresholds(1, (0, 1), 1, "bytes")
    fields = {**POINTWISE, "height": 1, "width": 1, "in_channels": 100, "out_channels": 70, "epilogue": epilogue}
    reference.check_conv2d(reference.make_table(narrow, 2, **fields), narrow, width=width)


@pytest.mark.parametrize(
    "fields",
    [
        {"in_channels": 128, "height": 12, "out_channels": 512},
        {"in_channels": 128, "height": 40, "width": 20},
        {**POINTWISE, "height": 1, "width": 64, "in_channels": 256, "out_channels": 512},
    ],
    ids=["channels", "bands", "dense"],
)
@pytest.mark.parametrize("symbolic", [False, True])
def test_threads(fields: dict[str, Any], symbolic: bool, narrow: Any, reference: SimpleNamespace) -> None:
    cores = dataclasses.replace(narrow, cores=2)
    workload = reference.make_table(narrow, 2, **fields)
    assert default_knobs(workload, cores).parallel
    reference.check_conv2d(workload, cores, batch=2, symbolic=symbolic)


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_convolution(data: st.DataObject, narrow: Any, reference: SimpleNamespace) -> None:
    small = st.integers(1, 3)
    fields: dict[str, Any] = {
        "kernel": (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))),
        "strides": (data.draw(small), data.draw(small)),
        "padding": tuple(data.draw(st.integers(0, 2)) for _ in range(4)),
        "dilation": (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        "height": data.draw(st.integers(9, 12)),
        "width": data.draw(st.integers(9, 20)),
        "in_channels": data.draw(st.sampled_from([1, 3, 5, 8, 16, 33, 88, 100])),
        "out_channels": data.draw(st.sampled_from([1, 3, 10, 33, 64, 130])),
        "col_classes": data.draw(small),
        "epilogue": data.draw(st.sampled_from([Integer(), Thresholds(3, (0, 3, 1, 2), 2, "bytes")])),
    }
    workload = reference.make_table(narrow, data.draw(st.sampled_from(BITS)), data.draw(st.booleans()), **fields)
    knobs = default_knobs(workload, narrow)
    rows = [size for size in range(knobs.pixel_rows, workload.out_height + 1) if workload.out_height % size == 0]
    rows = [size for size in rows if size % knobs.pixel_rows == 0]
    knobs = dataclasses.replace(knobs, row_tile=data.draw(st.sampled_from(rows)))
    reference.check_conv2d(workload, narrow, knobs=knobs, seed=data.draw(st.integers(0, 99)))


def test_every_point_of_the_search_space_computes_the_same(narrow: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_table(narrow, 3, height=6, width=4, in_channels=16, out_channels=64)
    function = conv2d(workload, 1)
    kind = kind_of(function)
    assert kind is not None
    points = kind.space(function, narrow)
    assert len({point["row_tile"] for point in points}) > 1
    assert kind.key(function, narrow).traits["activation_bits"] == 3
    assert kind.title(function) == "conv 3x3 6x4, 16 to 64, w1a3 by tables"
    for point in points[:: len(points) // 4 + 1]:
        knobs = dataclasses.replace(default_knobs(workload, narrow), **point)
        reference.check_conv2d(workload, narrow, knobs=knobs)


def test_points_of_the_search_space_by_words_of_32_bits(words: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_table(words, 3, height=4, width=6, in_channels=96, out_channels=128)
    function = conv2d(workload, 1)
    kind = kind_of(function)
    assert kind is not None
    points = kind.space(function, words)
    assert max(point["pixel_tile"] * point["pixel_rows"] * point["channel_tile"] for point in points) == 16
    assert kind.title(function) == "conv 3x3 4x6, 96 to 128, w1a3 by tables"
    for point in points[:: len(points) // 2 + 1]:
        assert kind.adapted(function, words, point) == point
        knobs = dataclasses.replace(default_knobs(workload, words), **point)
        reference.check_conv2d(workload, words, knobs=knobs)


@pytest.mark.parametrize(("name", "bits"), [("avx2", 1), ("avx2", 2), ("avx2", 3), ("avx512bw", 3)])
def test_the_inner_loop_of_bytes_stays_in_registers(name: str, bits: int, reference: SimpleNamespace) -> None:
    cross, register = reference.families[name], "ymm" if name == "avx2" else "zmm"
    workload = reference.make_table(cross, bits, height=14, width=14, in_channels=256, out_channels=256)
    tile = default_knobs(workload, cross)
    assembly = tvm.compile(apply_knobs(conv2d(workload, 1), tile), target=cross.target()).mod.inspect_source("s")
    blocks = re.split(r"^\.LBB\S+:.*$|^\s+j[a-z.]*\s+\.LBB\S+.*$", assembly, flags=re.MULTILINE)
    body = max(blocks, key=lambda block: len(re.findall(r"vbroadcasti(?:128|32x4)", block)))
    lookups = len(re.findall(rf"vpshufb\s.*{register}", body))
    assert lookups >= 2 * tile.pixel_tile * tile.pixel_rows * tile.channel_tile
    assert not re.search(r"\(%rsp", body), f"the inner loop spills:\n{body}"


def test_the_inner_loop_of_words_has_nothing_but_lookups_and_sums(reference: SimpleNamespace) -> None:
    cross = reference.families["vpopcntdq"]
    workload = reference.make_table(cross, 4, height=14, width=14, in_channels=256, out_channels=256)
    tile = default_knobs(workload, cross)
    updates = tile.pixel_tile * tile.pixel_rows * tile.channel_tile
    assembly = tvm.compile(apply_knobs(conv2d(workload, 1), tile), target=cross.target()).mod.inspect_source("s")
    blocks = re.split(r"^\.LBB\S+:.*$|^\s+j[a-z.]*\s+\.LBB\S+.*$", assembly, flags=re.MULTILINE)
    body = max(blocks, key=lambda block: len(re.findall(r"vpdpbusd", block)))
    counts = {name: len(re.findall(rf"^\s+{name}\s", body, re.MULTILINE)) for name in ("vpermb", "vpaddb", "vpdpbusd")}
    assert updates >= 8
    assert counts == {"vpermb": 4 * updates, "vpaddb": 3 * updates, "vpdpbusd": updates}
    assert not re.search(r"\(%rsp", body), f"the inner loop spills:\n{body}"


def test_chunks_fit_in_a_byte(reference: SimpleNamespace) -> None:
    family = reference.families["avx2"]

    def chunks(bits: int, channels: int, **fields: Any) -> tuple[list[str], int]:
        return lookup_chunks(reference.make_table(family, bits, in_channels=channels, **fields))

    assert [chunks(bits, 256) for bits in BITS] == [([], 16), ([], 8), ([], 4), ([], 2)]
    assert chunks(1, 64) == (["kw"], 8)
    assert chunks(1, 24) == (["kh", "kw"], 3)
    assert chunks(2, 88) == ([], 1)
    assert chunks(2, 64, **POINTWISE) == (["kh", "kw"], 8)


def test_the_text_of_a_workload_gives_it_back(reference: SimpleNamespace) -> None:
    workload = reference.make_table(reference.families["avx2"], 2)
    assert Conv2dWorkload.from_json(workload.to_json()) == workload


def test_sizes(reference: SimpleNamespace) -> None:
    workload = reference.make_table(reference.families["avx2"], 2, in_channels=33, out_channels=10)
    assert (workload.in_words, workload.weight_words, workload.out_channels_padded) == (36, 5, 32)
    assert (workload.weight_shape(), workload.data_dtype, workload.weight_dtype) == (
        (1, 3, 3, 1, 5, 32),
        *["uint8"] * 2,
    )
    workload = reference.make_table(reference.families["vpopcntdq"], 2, in_channels=70, out_channels=10)
    assert (workload.in_words, workload.weight_words, workload.out_channels_padded) == (72, 3, 32)
    assert workload.weight_shape() == (2, 3, 3, 1, 3, 16)
    assert (workload.data_dtype, workload.weight_dtype, workload.padded_words) == ("uint8", "uint32", 96)
    assert (table_bytes(workload), joined_words(workload)) == (384, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"table": None}, "does not go with"),
        ({"combine": "and"}, "does not go with"),
        ({"weight_planes": 2, "plane_class": ((0, 0),)}, "one plane per operand"),
        (
            {"word_bits": 32, "lanes": 32},
            "32 words of 8 bits or 64 words of 8 bits or 16 words of 32 bits or 16 words of 8 bits, not 32 of 32",
        ),
        ({"table": Table(2, 2**16)}, "by words of 8 bits are at most 65535, got 65536"),
        ({"epilogue": Float("basis", False, True, None), "activation_multiplier": (0,)}, "no products of bytes"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str, reference: SimpleNamespace) -> None:
    workload = dataclasses.replace(reference.make_table(reference.families["avx2"], 2), class_multiplier=(1,))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(workload, **fields)


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 4 bits"):
        Table(5, 0)
    with pytest.raises(ValueError, match="at most 2147483647"):
        Table(4, 2**31)
