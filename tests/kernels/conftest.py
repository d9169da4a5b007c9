"""Plain numpy references of the kernels, and the machine code families that this computer can run."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx

from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.packing import pack_activations, pack_weights
from tvmq.kernels.schedule import Conv2dKnobs, apply_knobs, schedule
from tvmq.kernels.workload import Conv2dWorkload, Integer, Thresholds


@dataclass(frozen=True)
class Family:
    """A kernel family: what a schedule asks about the core, and how LLVM is told to compile for it."""

    name: str
    arch: str
    popcount: str
    word_bits: int
    lanes: int
    llvm: dict[str, Any]
    cores: int = 1
    features: tuple[str, ...] = ()

    def target(self) -> tvm.target.Target:
        """The TVM target."""
        return tvm.target.Target(self.llvm)


def _llvm(mcpu: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "llvm", "mcpu": mcpu, **fields}


def _linux(mtriple: str, mcpu: str, **fields: Any) -> dict[str, Any]:
    return _llvm(mcpu, keys=["arm_cpu", "cpu"], mtriple=mtriple, **fields)


_HARD_FLOAT = {"mattr": ["+neon", "+vfp4"], "mfloat-abi": "hard"}
CROSS = {
    "vpopcntdq": Family("vpopcntdq", "x86_64", "vpopcntdq", 32, 16, _llvm("znver5")),
    "avx512bw": Family("avx512bw", "x86_64", "pshufb", 8, 64, _llvm("skylake-avx512")),
    "avx2": Family("avx2", "x86_64", "pshufb", 8, 32, _llvm("haswell")),
    "aarch64": Family("aarch64", "aarch64", "cnt", 8, 16, _linux("aarch64-linux-gnu", "cortex-a72")),
    "armv7": Family("armv7", "armv7l", "vcnt", 8, 16, _linux("armv7l-linux-gnueabihf", "cortex-a53", **_HARD_FLOAT)),
}


def _host_families() -> list[Family]:
    """Families that run here; where a feature is missing, its schedule runs compiled for the best core there is."""
    if platform.machine() == "aarch64":
        return [dataclasses.replace(CROSS["aarch64"], llvm=_llvm("generic"))]
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    fallback = _llvm("haswell" if "avx2" in flags else "x86-64")
    needed = {"vpopcntdq": "avx512_vpopcntdq", "avx512bw": "avx512bw", "avx2": "avx2"}
    families = [
        family if needed[family.name] in flags else dataclasses.replace(family, llvm=fallback)
        for family in CROSS.values()
        if family.name in needed
    ]
    return [family for family in families if family.word_bits == 32 or "avx2" in flags]


HOST = {family.name: family for family in _host_families()}


def make_workload(family: Family, **fields: Any) -> Conv2dWorkload:
    """A 3x3 binary convolution with border classes, changed by `fields`."""
    defaults: dict[str, Any] = {
        "height": 9,
        "width": 9,
        "in_channels": 64,
        "out_channels": 64,
        "kernel": (3, 3),
        "strides": (1, 1),
        "padding": (1, 1, 1, 1),
        "dilation": (1, 1),
        "activation_planes": 1,
        "weight_planes": 1,
        "combine": "xor",
        "plane_class": ((0,),),
        "class_multiplier": (-1,),
        "activation_multiplier": (0,),
        "row_classes": 1,
        "col_classes": 1,
        "word_bits": family.word_bits,
        "lanes": family.lanes,
        "epilogue": Thresholds(1, (0, 1), 1),
    }
    return Conv2dWorkload(**{**defaults, **fields})


def planes(activations: int, weights: int, corrected: bool = True) -> dict[str, Any]:
    """Fields of a convolution of unsigned codes: one class per bit weight."""
    classes = activations + weights - 1
    return {
        "combine": "and",
        "activation_planes": activations,
        "weight_planes": weights,
        "plane_class": tuple(tuple(i + j for j in range(weights)) for i in range(activations)),
        "class_multiplier": tuple(2 << index for index in range(classes)),
        "activation_multiplier": tuple(-(1 << i) if corrected else 0 for i in range(activations)),
    }


def windows(image: np.ndarray, workload: Conv2dWorkload) -> np.ndarray:
    """The windows [P, N, OH, OW, KH, KW, C] of planes [P, N, C, H, W]."""
    top, left, bottom, right = workload.padding
    (kernel_h, kernel_w), (stride_h, stride_w) = workload.kernel, workload.strides
    dilation_h, dilation_w = workload.dilation
    padded = np.pad(image, ((0, 0), (0, 0), (0, 0), (top, bottom), (left, right)))
    rows = (padded.shape[3] - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    columns = (padded.shape[4] - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    taps = []
    for kh in range(kernel_h):
        for kw in range(kernel_w):
            y, x = kh * dilation_h, kw * dilation_w
            tap = padded[:, :, :, y : y + (rows - 1) * stride_h + 1 : stride_h]
            taps.append(tap[..., x : x + (columns - 1) * stride_w + 1 : stride_w])
    stacked = np.stack(taps).transpose(1, 2, 4, 5, 0, 3)
    return stacked.reshape(*stacked.shape[:4], kernel_h, kernel_w, -1)


def convolve(workload: Conv2dWorkload, image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The integer result [N, OH, OW, O] in int64, one plane pair after the other."""
    view = windows(image, workload).astype(np.int64)
    flat = view.reshape(*view.shape[:4], -1)
    result = np.zeros((*flat.shape[1:4], weights.shape[1]), dtype=np.int64)
    for i, activation in enumerate(flat):
        for j, weight in enumerate(weights.reshape(*weights.shape[:2], -1).astype(np.int64)):
            if workload.combine == "and":
                count = activation @ weight.T
            else:
                count = activation @ (1 - weight).T + (1 - activation) @ weight.T
            result += workload.class_multiplier[workload.plane_class[i][j]] * count
        result += workload.activation_multiplier[i] * activation.sum(-1, keepdims=True)
    return result


def _constants(
    workload: Conv2dWorkload, result: np.ndarray, random: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Arguments after the weights, and the expected output."""
    rows, columns = result.shape[1:3]
    row_class = random.integers(0, workload.row_classes, rows).astype(np.int32)
    col_class = random.integers(0, workload.col_classes, columns).astype(np.int32)
    positions = [row_class, col_class] if workload.has_border_classes else []
    shape = (workload.row_classes, workload.col_classes, workload.out_channels_padded)
    channels = workload.out_channels
    epilogue = workload.epilogue
    if isinstance(epilogue, Thresholds):
        middle, spread = int(np.median(result)), int(result.std()) + 1
        thresholds = random.integers(middle - 2 * spread, middle + 2 * spread + 1, (epilogue.count, *shape))
        thresholds = np.sort(thresholds, axis=0).astype(np.int32)
        thresholds[..., channels:] = np.iinfo(np.int32).max
        there = thresholds[:, row_class][:, :, col_class][..., :channels]
        codes = np.array(epilogue.codes)[(result[None] >= there[:, None]).sum(0)]
        bits = np.stack([codes >> plane & 1 for plane in range(epilogue.planes)]).astype(bool)
        return [*positions, thresholds], pack_activations(bits.transpose(0, 1, 4, 2, 3), workload.word_bits)
    bias = random.integers(-1000, 1000, shape).astype(np.int32)
    total = (result + bias[row_class][:, col_class][..., :channels]).astype(np.int32)
    if isinstance(epilogue, Integer):
        return [*positions, bias], total
    scale = random.standard_normal(workload.out_channels_padded).astype(np.float32)
    offset = (1000 * random.standard_normal(workload.out_channels_padded)).astype(np.float32)
    # The product of two float32 is exact in float64; adding to it in extended precision rounds far below float32.
    product = total.astype(np.float32).astype(np.longdouble) * scale[:channels].astype(np.longdouble)
    fused = (product + offset[:channels].astype(np.longdouble)).astype(np.float32)
    return [*positions, bias, scale, offset], fused


def run_function(function: tirx.PrimFunc, family: Family, arguments: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    """Compile a scheduled function, run it, and return its last argument."""
    compiled = tvm.compile(function, target=family.target())
    garbage = np.full(like.shape, 77, dtype=like.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in (*arguments, garbage)]
    compiled(*tensors)
    return tensors[-1].numpy()


def scheduled(function: tirx.PrimFunc, family: Family) -> tirx.PrimFunc:
    """The function with its default schedule."""
    result = schedule(function, family)
    assert result is not None
    return result


def check_conv2d(
    workload: Conv2dWorkload,
    family: Family,
    batch: int = 1,
    symbolic: bool = False,
    width: int | None = None,
    knobs: Conv2dKnobs | None = None,
    seed: int = 0,
) -> None:
    """Run one convolution on random bits and compare every element; a width makes the width symbolic."""
    random = np.random.default_rng(seed)
    columns = workload.width if width is None else width
    image = random.random((workload.activation_planes, batch, workload.in_channels, workload.height, columns)) < 0.5
    shape = (workload.weight_planes, workload.out_channels, *workload.kernel, workload.in_channels)
    weights = random.random(shape) < 0.5
    constants, expected = _constants(workload, convolve(workload, image, weights), random)
    packed = [pack_activations(image, workload.word_bits), pack_weights(weights, workload.word_bits, workload.lanes)]
    symbols = (tirx.Var("n", "int64") if symbolic else batch, None if width is None else tirx.Var("w", "int64"))
    function = conv2d(workload, *symbols)
    ready = scheduled(function, family) if knobs is None else apply_knobs(function, knobs)
    np.testing.assert_array_equal(run_function(ready, family, [*packed, *constants], expected), expected)


@pytest.fixture(scope="session", params=HOST)
def family(request: pytest.FixtureRequest) -> Family:
    """Every family that runs on this computer."""
    return HOST[request.param]


@pytest.fixture(scope="session", params=CROSS)
def cross(request: pytest.FixtureRequest) -> Family:
    """Every family, to compile for."""
    return CROSS[request.param]


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """The functions of this file, for the tests."""
    return SimpleNamespace(
        check_conv2d=check_conv2d,
        families=CROSS,
        make_workload=make_workload,
        planes=planes,
        run_function=run_function,
        scheduled=scheduled,
        windows=windows,
    )
