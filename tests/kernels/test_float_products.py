"""The float kernels on every core that runs here: bit for bit what plain sequential multiply-adds give."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from tvmq.bitplanes import Encoding
from tvmq.dialect import fused_multiply_add
from tvmq.kernels.float_planes import float_planes
from tvmq.kernels.float_products import float_product
from tvmq.kernels.float_workload import (
    FloatWorkload,
    pack_codes,
    pack_floats,
    stored_planes,
    unpack_codes,
    unpack_weights,
    vector_unit,
)
from tvmq.kernels.schedule import schedule
from tvmq.kernels.sequential import sequential_product
from tvmq.machine import this_machine
from tvmq.target import Target, get_target, list_targets

ALPHABETS = {
    "binary": Encoding.binary(),
    "ternary": Encoding.ternary(),
    "equispaced2": Encoding.equispaced(2),
    "equispaced3": Encoding.equispaced(3),
    "equispaced4": Encoding.equispaced(4),
    "unsigned2": Encoding.unsigned(2),
    "twos_complement3": Encoding.twos_complement(3),
    "powers": Encoding(np.array([1, 2, -4]), np.array(0)),
    "sums": Encoding(np.array([1, 3, 7, -12]), np.array(2)),
}
RUNNABLE = [
    target
    for target in list_targets()
    if target.name != "host" and this_machine().obstacle(target.triple, target.required_cpu_flags) is None
]


def workload(target: Target, encoding: Encoding | None, **fields: Any) -> FloatWorkload:
    """A dense layer, or a convolution if there is a kernel, with odd sizes unless `fields` say otherwise.

    Without an encoding weights are floats.
    """
    dense = "kernel" not in fields
    defaults: dict[str, Any] = {
        "height": 1 if dense else 9,
        "width": 1 if dense else 11,
        "in_channels": 37 if dense else 5,
        "out_channels": 19,
        "kernel": (1, 1),
        "strides": (1, 1),
        "padding": (0, 0, 0, 0),
        "dilation": (1, 1),
        "dense": dense,
    }
    coefficients, offset = (), 0
    if encoding is not None:
        stored = stored_planes(np.zeros(1, np.uint8), encoding).encoding
        coefficients, offset = tuple(stored.coefficients.tolist()), int(stored.offset)
    lanes, registers = vector_unit(target)
    return FloatWorkload(
        **{**defaults, **fields},
        coefficients=coefficients,
        offset=offset,
        lanes=lanes,
        registers=registers,
    )


def windows(x: np.ndarray, work: FloatWorkload, group: int) -> np.ndarray:
    """Rows of products of a group in the order (channel, kernel row, kernel column), one tap at a time."""
    if work.dense:
        return x
    top, left, bottom, right = work.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    inputs = work.in_channels // work.groups
    taps = [
        padded[
            :,
            channel,
            row * work.dilation[0] :: work.strides[0],
            column * work.dilation[1] :: work.strides[1],
        ][:, : work.out_height, : work.out_width]
        for channel in range(group * inputs, (group + 1) * inputs)
        for row in range(work.kernel[0])
        for column in range(work.kernel[1])
    ]
    return np.stack(taps, axis=-1).reshape(-1, work.length)


def sums(x: np.ndarray, weights: np.ndarray, work: FloatWorkload) -> np.ndarray:
    """Products by numpy's own multiply-adds, in the shape of the output."""
    groups = []
    for group, rows in enumerate(np.split(weights, work.groups)):
        matrix = windows(x, work, group)
        total = np.zeros((len(matrix), len(rows)), np.float32)
        for k in range(work.length):
            total = fused_multiply_add(matrix[:, k : k + 1], rows[:, k], total)
        groups.append(total)
    joined = np.concatenate(groups, axis=1)
    if work.dense:
        return joined
    size = (len(x), work.out_height, work.out_width, work.out_channels)
    return np.ascontiguousarray(joined.reshape(size).transpose(0, 3, 1, 2))


def case(work: FloatWorkload, batch: int, encoding: Encoding | None, magnitude: float = 1.0, seed: int = 0) -> Any:
    """Arguments of the function, and the output by numpy."""
    random = np.random.default_rng(seed)
    shape = (batch, work.in_channels) if work.dense else (batch, work.in_channels, work.height, work.width)
    x = (magnitude * random.standard_normal(shape)).astype(np.float32)
    x[random.random(shape) < 0.1] *= -0.0
    per_channel = (-1,) if work.dense else (-1, 1, 1)

    def stored(values: np.ndarray) -> np.ndarray:
        padded = np.zeros(work.stored_channels, np.float32)
        padded[: work.out_channels] = values
        return padded

    if encoding is None:
        weights = random.standard_normal((work.out_channels, work.length)).astype(np.float32)
        arguments, result = [x, pack_floats(weights, work)], sums(x, weights, work)
    else:
        codes = random.integers(0, 2**encoding.planes, (work.out_channels, work.length)).astype(np.uint8)
        scale = random.standard_normal(work.out_channels).astype(np.float32)
        packed = pack_codes(stored_planes(codes, encoding).codes, work)
        result = sums(x, encoding.units(codes).astype(np.float32), work) * scale.reshape(per_channel)
        arguments = [x, packed, stored(scale)]
    if work.bias:
        bias = random.standard_normal(work.out_channels).astype(np.float32)
        arguments.append(stored(bias))
        result = result + bias.reshape(per_channel)
    if work.affine:
        multiplier, offset = random.standard_normal((2, work.out_channels)).astype(np.float32)
        arguments += [stored(multiplier), stored(offset)]
        result = fused_multiply_add(result, multiplier.reshape(per_channel), offset.reshape(per_channel))
    if work.shortcut:
        arguments.append(random.standard_normal(result.shape).astype(np.float32))
        result = result + arguments[-1]
    if work.high is not None:
        result = np.minimum(result, np.float32(work.high))
    return arguments, result if work.low is None else np.maximum(result, np.float32(work.low))


def run(function: tirx.PrimFunc, target: Target, arguments: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    output = tvm.runtime.empty(like.shape, "float32")
    tvm.compile(module, target.tvm_target())["main"](*map(tvm.runtime.tensor, arguments), output)
    return output.numpy()


def unscheduled(work: FloatWorkload, batch: Any) -> tirx.PrimFunc:
    return float_planes(work, batch) if work.pixel_lanes else float_product(work, batch)


def assert_exact(target: Target, name: str, batch: int, dynamic: bool = False, seed: int = 0, **fields: Any) -> None:
    encoding = ALPHABETS.get(name)
    work = workload(target, encoding, **fields)
    arguments, expected = case(work, batch, encoding, seed=seed)
    function = schedule(unscheduled(work, tirx.Var("n", "int64") if dynamic else batch), target)
    assert function is not None
    actual = run(function, target, arguments, expected)
    np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


NAMES = [*ALPHABETS, "float"]
EPILOGUES = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "affine": st.booleans(),
        "shortcut": st.booleans(),
        "low": st.sampled_from([None, -0.5]),
        "high": st.sampled_from([None, 0.7]),
    }
)


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NAMES)
def test_dense(target, name):
    assert_exact(target, name, 1)
    assert_exact(target, name, 5)


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NAMES)
def test_convolution(target, name):
    assert_exact(target, name, 2, kernel=(3, 3), padding=(1, 1, 1, 1))
    assert_exact(target, name, 1, kernel=(3, 3), bias=True, affine=True, shortcut=True, low=0.0)


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NAMES)
def test_convolution_with_pixels_in_lanes(target, name):
    fields = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "width": 31, "out_channels": 12}
    assert workload(target, ALPHABETS.get(name), **fields).pixel_lanes
    assert_exact(target, name, 2, **fields)


def test_weights_that_no_cache_holds_are_decoded_in_registers():
    fields = {"kernel": (3, 3), "width": 18, "height": 18, "in_channels": 128}
    for outputs, by_pixel in ((56, True), (57, False)):
        work = workload(get_target("host"), ALPHABETS["ternary"], out_channels=outputs, **fields)
        assert work.pixel_lanes == by_pixel


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
@pytest.mark.parametrize("width", [7, 14, 17, 32])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(target, width, stride):
    fields = {"in_channels": 6, "out_channels": 6, "groups": 6, "kernel": (3, 3), "padding": (1, 1, 1, 1)}
    assert_exact(target, "float", 2, width=width, strides=(stride, stride), bias=True, low=0.0, **fields)


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (1, 37), (1, 1), (14, 14)])
def test_pointwise(target, size):
    assert_exact(target, "float", 2, height=size[0], width=size[1], kernel=(1, 1), shortcut=True, out_channels=16)


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda target: target.name)
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_dynamic_batch(target, batch):
    for name in ("ternary", "float"):
        assert_exact(target, name, batch, dynamic=True, shortcut=True)
        assert_exact(target, name, batch, dynamic=True, kernel=(3, 3), padding=(1, 1, 1, 1), bias=True)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    name=st.sampled_from(["float", "float", *NAMES]),
    target=st.sampled_from(RUNNABLE) if RUNNABLE else st.nothing(),
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 150),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(5, 40), st.integers(5, 40)),
    groups=st.sampled_from([1, 1, 2, 3, 5]),
    epilogue=EPILOGUES,
)
def test_any_convolution(
    seed, name, target, batch, channels, outputs, kernel, strides, padding, dilation, size, groups, epilogue
):
    if name == "float" and groups > 1:
        channels, outputs = groups * (channels // groups + 1), groups * (outputs // groups + 1)
    else:
        groups = 1
    assert_exact(
        target,
        name,
        batch,
        seed=seed,
        height=size[0],
        width=size[1],
        in_channels=channels,
        out_channels=outputs,
        kernel=kernel,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        **epilogue,
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    name=st.sampled_from(["float", "float", *NAMES]),
    target=st.sampled_from(RUNNABLE) if RUNNABLE else st.nothing(),
    batch=st.integers(1, 40),
    length=st.integers(1, 150),
    outputs=st.integers(1, 300),
    dynamic=st.booleans(),
    epilogue=EPILOGUES,
)
def test_any_dense_layer(seed, name, target, batch, length, outputs, dynamic, epilogue):
    assert_exact(target, name, batch, dynamic, seed, in_channels=length, out_channels=outputs, **epilogue)


@pytest.mark.parametrize("fields", [{}, {"kernel": (3, 3)}], ids=["dense", "conv2d"])
def test_on_several_threads(fields):
    target = dataclasses.replace(get_target("host"), cores=4)
    fields = {**fields, "in_channels": 100, "out_channels": 1300 if not fields else 70}
    for name in ("ternary", "float"):
        assert_exact(target, name, 3, **fields)
        assert_exact(target, name, 3, dynamic=True, **fields)


@pytest.mark.parametrize("name", NAMES)
def test_unscheduled_function_is_the_same(name):
    target = get_target("host")
    for fields in ({}, {"kernel": (3, 2), "strides": (2, 1), "padding": (1, 0, 1, 1), "bias": True}):
        work = workload(target, ALPHABETS.get(name), **fields)
        arguments, expected = case(work, 3, ALPHABETS.get(name))
        np.testing.assert_array_equal(run(unscheduled(work, 3), target, arguments, expected), expected)


@pytest.mark.parametrize("fields", [{}, {"kernel": (3, 3)}, {"kernel": (1, 3), "width": 34}], ids=str)
@pytest.mark.parametrize("name", list(ALPHABETS))
def test_packing_is_undone_by_unpacking(name, fields):
    encoding = ALPHABETS[name]
    work = workload(get_target("host"), encoding, **{**fields, "in_channels": 41, "out_channels": 150})
    codes = np.random.default_rng(0).integers(0, 2**encoding.planes, (150, work.length)).astype(np.uint8)
    planes = stored_planes(codes, encoding)
    np.testing.assert_array_equal(unpack_codes(pack_codes(planes.codes, work), work), planes.codes)
    np.testing.assert_array_equal(planes.encoding.units(planes.codes), encoding.units(codes))
    assert FloatWorkload.from_json(work.to_json()) == work


@pytest.mark.parametrize("fields", [{}, {"kernel": (3, 3)}, {"kernel": (3, 3), "groups": 3}], ids=str)
def test_packing_floats_is_undone_by_unpacking(fields):
    work = workload(get_target("host"), None, **{**fields, "in_channels": 42, "out_channels": 150, "low": 0.1})
    weights = np.random.default_rng(0).standard_normal((150, work.length)).astype(np.float32)
    np.testing.assert_array_equal(unpack_weights(pack_floats(weights, work), work), weights)
    assert FloatWorkload.from_json(work.to_json()) == work


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
@pytest.mark.parametrize("name, ratio", [("binary", 32), ("ternary", 16), ("equispaced3", 10), ("equispaced4", 8)])
def test_weights_are_as_small_as_their_bits(target, name, ratio):
    work = workload(target, ALPHABETS[name], in_channels=640, out_channels=256)
    packed = pack_codes(np.zeros((256, 640), np.uint8), work)
    assert packed.nbytes * ratio <= 4 * 256 * 640


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
@pytest.mark.parametrize("name", ["binary", "ternary", "equispaced3", "equispaced4", "sums", "float"])
def test_every_target_has_a_schedule(target, name):
    for fields in ({}, {"kernel": (3, 3), "padding": (1, 1, 1, 1)}):
        function = schedule(unscheduled(workload(target, ALPHABETS.get(name), **fields), 2), target)
        assert function is not None and function.attrs["tirx.is_scheduled"]
        tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target.tvm_target())


@pytest.mark.parametrize("tiny", [False, True], ids=["normal", "denormal"])
@pytest.mark.parametrize("name", ["ternary", "equispaced4", "sums", "float"])
def test_on_emulated_cores(name, tiny, core, reference):
    window = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "strides": (2, 1)}
    depthwise = {"kernel": (3, 3), "strides": (2, 2), "in_channels": 7, "out_channels": 7, "groups": 7}
    rows = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "width": 16, "out_channels": 6}
    for fields in ({"out_channels": 35}, window, rows, *([depthwise] if name == "float" else [])):
        work = workload(core, ALPHABETS.get(name), **fields)
        arguments, expected = case(work, 3, ALPHABETS.get(name), magnitude=1e-42 if tiny else 1.0)
        assert tiny == bool(np.abs(expected).max() < np.finfo(np.float32).tiny)
        (actual,) = reference.emulate(schedule(unscheduled(work, 3), core), core, arguments, [expected])
        np.testing.assert_array_equal(actual.view(np.int32), expected.view(np.int32))


def test_reference_is_sequential():
    random = np.random.default_rng(0)
    a = random.standard_normal((2, 9, 40)).astype(np.float32)
    b = random.standard_normal((2, 40, 70)).astype(np.float32)
    total = np.zeros((2, 9, 70), np.float32)
    for k in range(40):
        total = fused_multiply_add(a[:, :, k : k + 1], b[:, k : k + 1], total)
    np.testing.assert_array_equal(sequential_product(a, b), total)


def test_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="1 to 4 bits, got 5"):
        workload(get_target("host"), Encoding.unsigned(5))
