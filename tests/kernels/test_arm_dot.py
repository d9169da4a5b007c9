"""Products of signed bytes on emulated ARM cores equal plain integer arithmetic, bit for bit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm

from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.packing import pack_weight_bytes
from tvmq.kernels.schedule import apply_knobs, default_knobs
from tvmq.kernels.workload import Affine, Conv2dWorkload, Float, Integer, Thresholds
from tvmq.runtime.toolchain import cached_runner
from tvmq.target import Target, get_target

EXACT = 2 * 128 * 127
"""The bound of weights of 8 bits that are not -128."""
STEM = {"kernel": (7, 7), "padding": (3, 3, 3, 3), "strides": (2, 2), "in_channels": 3, "height": 10, "width": 21}
POINTWISE = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
STRIDED = {**POINTWISE, "in_channels": 64, "out_channels": 48, "strides": (2, 2)}
CASES: dict[str, dict[str, Any]] = {
    "stem": {**STEM, "gathered": True, "epilogue": Affine()},
    "rest": {"in_channels": 20, "out_channels": 33, "epilogue": Thresholds(1, (0, 1), 1), "row_classes": 3},
    "strided": {**STRIDED, "bits": 4, "epilogue": Thresholds(3, (3, 1, 2, 0), 2, "bytes")},
    "dense": {**POINTWISE, "height": 1, "width": 1, "in_channels": 70, "out_channels": 10, "epilogue": Integer()},
    "few bytes": {**POINTWISE, "in_channels": 3, "bits": 7, "epilogue": Float("affine", True, True, None)},
    "saturating": {**STRIDED, "pair_bound": 65280, "epilogue": Integer()},
}


@pytest.fixture(scope="module", params=["raspberry-pi-3-32", "raspberry-pi-4", "raspberry-pi-5"])
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """An emulated core; its runner is the user's if there is one, and not left behind if there is none."""
    target = dataclasses.replace(get_target(request.param), cores=1)
    with pytest.MonkeyPatch.context() as patch:
        if not cached_runner(target).exists():
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield target


def make(target: Target, reference: SimpleNamespace, bits: int = 8, **fields: Any) -> Conv2dWorkload:
    """A convolution of bytes as the target's core multiplies them."""
    bound = {"pair_bound": EXACT} | {name: fields.pop(name) for name in ("pair_bound",) if name in fields}
    workload = reference.make_dot(target, **{**bound, **fields})
    dot = dataclasses.replace(workload.dot, activation_bits=bits)
    return dataclasses.replace(workload, dot=dot, lanes=target.dot_lanes)


@pytest.mark.parametrize("name", CASES)
def test_emulated(name: str, core: Target, reference: SimpleNamespace) -> None:
    workload = make(core, reference, **CASES[name])
    function, arguments, expected = reference.conv2d_case(workload, core)
    outputs = reference.emulate(function, core, arguments, expected)
    for output, like in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, like)


def test_a_symbolic_width_serves_dense_layers(core: Target, reference: SimpleNamespace) -> None:
    epilogue = Thresholds(1, (0, 1), 1, "bytes")
    fields = {**POINTWISE, "height": 1, "width": 1, "in_channels": 100, "out_channels": 70, "epilogue": epilogue}
    function, arguments, expected = reference.conv2d_case(make(core, reference, **fields), core, width=13)
    (output,) = reference.emulate(function, core, arguments, expected)
    np.testing.assert_array_equal(output, expected[0])


@pytest.mark.parametrize("weight", [-128, 127])
def test_every_byte_at_its_extreme(weight: int, core: Target, reference: SimpleNamespace) -> None:
    workload = make(core, reference, in_channels=64, pair_bound=256 * abs(weight), epilogue=Integer(), **POINTWISE)
    function = reference.scheduled(conv2d(workload, 1), core)
    units = np.full((64, 1, 1, 64), weight)
    assert workload.dot is not None
    packed = pack_weight_bytes(units, workload.lanes, workload.out_channels_padded, False, workload.dot.form)
    bias = np.zeros((1, 1, 64), np.int32)
    for code, value in ((0, -128), (255, 127)):
        image = np.full((1, 9, 9, 1, 64), code, np.uint8)
        expected = np.full((1, 9, 9, 64), 64 * value * weight, np.int32)
        (output,) = reference.emulate(function, core, [image, packed, bias], [expected])
        np.testing.assert_array_equal(output, expected)


INSTRUCTIONS = {
    "raspberry-pi-3-32": (r"vmull\.s8|vmlal\.s8|vpadal\.s16", 1),
    "raspberry-pi-3": (r"smull2?\b|smlal2?\b|sadalp", 4),
    "raspberry-pi-4": (r"smull2?\b|smlal2?\b|sadalp", 4),
    "raspberry-pi-5": (r"sdot.*4b\[", 6),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_core_uses_its_instructions(name: str, reference: SimpleNamespace) -> None:
    pattern, columns = INSTRUCTIONS[name]
    target = get_target(name)
    workload = make(target, reference, **{**STEM, "height": 48, "width": 48}, gathered=True, epilogue=Affine())
    knobs = default_knobs(workload, target)
    assert (knobs.pixel_tile, knobs.channel_tile) == (columns, 1)
    function = apply_knobs(conv2d(workload, 1), knobs)
    assembly = tvm.compile(function, target=target.tvm_target()).mod.inspect_source("s")
    lines = [line for line in assembly.splitlines() if re.match(r"\s+[a-z]|\.LBB", line)]
    blocks = re.split(r"^\.LBB.*$|^\s+b[a-z.]*\s+\.LBB\S+$", "\n".join(lines), flags=re.MULTILINE)
    body = max(blocks, key=lambda block: len(re.findall(pattern, block)))
    multiplications = 16 * columns * (1 if workload.dot.form == "signed" else 3)
    assert len(re.findall(pattern, body)) == multiplications
    # What has to move beside them: loads of weights, shared by the pixels, and of activations; and their spreading.
    assert len(body.strip().splitlines()) <= (1.8 if columns == 1 else 1.25) * multiplications
