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
from tvm import relax, tirx

from tvmq.dialect import fused_multiply_add, line_index
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.depth import depth_of
from tvmq.kernels.packing import (
    pack_activations,
    pack_bytes,
    pack_depth_weights,
    pack_weight_bytes,
    pack_weight_indices,
    pack_weights,
)
from tvmq.kernels.schedule import Conv2dKnobs, apply_knobs, schedule
from tvmq.kernels.workload import DEPTH_LANES, Conv2dWorkload, Dot, Integer, Table, Thresholds, dot_form
from tvmq.runtime.emulator import run_emulated
from tvmq.runtime.toolchain import export_library
from tvmq.target import Target, get_target


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
    dot: str | None = None

    @property
    def dot_lanes(self) -> int:
        """Integers of 32 bits in a vector."""
        return self.word_bits * self.lanes // 32

    def target(self) -> tvm.target.Target:
        """The TVM target."""
        return tvm.target.Target(self.llvm)


def _llvm(mcpu: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "llvm", "mcpu": mcpu, **fields}


def _linux(mtriple: str, mcpu: str, **fields: Any) -> dict[str, Any]:
    return _llvm(mcpu, keys=["arm_cpu", "cpu"], mtriple=mtriple, **fields)


_HARD_FLOAT = {"mattr": ["+neon", "+vfp4"], "mfloat-abi": "hard"}
CROSS = {
    "vpopcntdq": Family("vpopcntdq", "x86_64", "vpopcntdq", 32, 16, _llvm("znver5"), dot="vpdpbusd"),
    "avx512bw": Family("avx512bw", "x86_64", "pshufb", 8, 64, _llvm("skylake-avx512"), dot="vpmaddubsw"),
    "avx2": Family("avx2", "x86_64", "pshufb", 8, 32, _llvm("haswell"), dot="vpmaddubsw"),
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
        family
        if needed[family.name] in flags
        else dataclasses.replace(family, llvm=fallback, dot=None if family.dot_lanes == 16 else family.dot)
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


def make_dot(family: Family, pair_bound: int = 65280, gathered: bool = False, **fields: Any) -> Conv2dWorkload:
    """The same of bytes."""
    dot = Dot(8, 8, pair_bound, gathered, dot_form(family.dot))
    return make_workload(family, combine="dot", class_multiplier=(1,), lanes=family.dot_lanes, dot=dot, **fields)


def make_depth(family: Family | Target, **fields: Any) -> Conv2dWorkload:
    """The same with vectors along the depth."""
    channels = fields.get("in_channels", 64)
    return make_workload(family, **{**fields, "lanes": DEPTH_LANES, "depth": depth_of(-(-channels // 8), family.arch)})


def make_table(family: Family, bits: int, signed: bool = True, **fields: Any) -> Conv2dWorkload:
    """The same of activations of some bits and weights of one bit, -1 and 1 or 0 and 1."""
    workload = make_workload(family, **{"epilogue": Integer(), **fields})
    bound = workload.in_channels * workload.kernel[0] * workload.kernel[1] * (2**bits - 1)
    multipliers = {"class_multiplier": (2,), "activation_multiplier": (-1,)} if signed else {"class_multiplier": (1,)}
    table = Table(bits, min(bound, 2**16 - 1))
    return dataclasses.replace(workload, combine="table", table=table, **multipliers)


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


def pair_counts(workload: Conv2dWorkload, image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The popcounts [P, Pw, N, OH, OW, O] of all plane pairs in int64."""
    view = windows(image, workload).astype(np.int64)
    flat = view.reshape(*view.shape[:4], -1)
    filters = weights.reshape(*weights.shape[:2], -1).astype(np.int64)
    if workload.combine != "xor":
        return np.stack([[activation @ weight.T for weight in filters] for activation in flat])
    return np.stack([[a @ (1 - weight).T + (1 - a) @ weight.T for weight in filters] for a in flat])


def convolve(workload: Conv2dWorkload, image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The integer result [N, OH, OW, O] in int64."""
    counts = pair_counts(workload, image, weights)
    factors = np.array(workload.class_multiplier)[np.array(workload.plane_class)]
    result = np.einsum("ij,ij...->...", factors, counts)
    if workload.dot is not None:  # signed products take this off every byte, and the padding's too
        sums = weights[0].sum(axis=(1, 2, 3), dtype=np.int64)
        result = result - workload.class_multiplier[0] * workload.dot.shift * sums
    activations = windows(image, workload).sum((4, 5, 6), dtype=np.int64)
    return result + np.einsum("i,i...->...", np.array(workload.activation_multiplier), activations)[..., None]


def _pack_codes(codes: np.ndarray, epilogue: Thresholds, workload: Conv2dWorkload) -> np.ndarray:
    planes, word_bits = epilogue.planes, workload.word_bits
    if workload.writes_bytes:
        return pack_bytes(codes.astype(np.uint8).transpose(0, 3, 1, 2), workload.out_words)
    bits = np.stack([codes >> plane & 1 for plane in range(planes)]).astype(bool)
    return pack_activations(bits.transpose(0, 1, 4, 2, 3), word_bits)


Constants = tuple[list[np.ndarray], list[np.ndarray]]
"""Arguments after the weights and the classes, and the expected outputs."""


def _integer_constants(workload: Conv2dWorkload, result: np.ndarray, at: Any, random: np.random.Generator) -> Constants:
    shape = (workload.row_classes, workload.col_classes, workload.out_channels_padded)
    epilogue = workload.epilogue
    if isinstance(epilogue, Integer):
        bias = random.integers(-1000, 1000, shape).astype(np.int32)
        return [bias], [(result + at(bias)).astype(np.int32)]
    middle, spread = int(np.median(result)), int(result.std()) + 1
    if epilogue.arithmetic != "compare":
        slope = (random.uniform(0.2, 2, shape[2]) * epilogue.count / (4 * spread)).astype(epilogue.arithmetic)
        intercept = (epilogue.count / 2 - slope * middle + random.normal(size=shape)).astype(epilogue.arithmetic)
        slope[workload.out_channels :] = intercept[..., workload.out_channels :] = 0
        used = slope[: workload.out_channels]
        level = line_index(result, used, at(intercept), epilogue.count)
        return [slope, intercept], [_pack_codes(np.array(epilogue.codes)[level], epilogue, workload)]
    thresholds = random.integers(middle - 2 * spread, middle + 2 * spread + 1, (epilogue.count, *shape))
    thresholds = np.sort(thresholds, axis=0).astype(np.int32)
    thresholds[..., workload.out_channels :] = np.iinfo(np.int32).max
    level = sum((result >= at(row)).astype(int) for row in thresholds)
    return [thresholds], [_pack_codes(np.array(epilogue.codes)[level], epilogue, workload)]


def _affine_constants(
    workload: Conv2dWorkload, result: np.ndarray, at: Any, random: np.random.Generator, magnitude: float
) -> Constants:
    padded, channels = workload.out_channels_padded, workload.out_channels
    bias = random.integers(-1000, 1000, (workload.row_classes, workload.col_classes, padded)).astype(np.int32)
    scale = (magnitude * random.standard_normal(padded)).astype(np.float32)
    offset = (1000 * magnitude * random.standard_normal(padded)).astype(np.float32)
    total = (result + at(bias)).astype(np.float32)
    return [bias, scale, offset], [fused_multiply_add(total, scale[:channels], offset[:channels])]


def _basis_constants(
    workload: Conv2dWorkload, counts: np.ndarray, at: Any, random: np.random.Generator, magnitude: float
) -> Constants:
    padded, channels = workload.out_channels_padded, workload.out_channels
    shape = (workload.weight_planes, padded)
    base = random.integers(-1000, 1000, shape).astype(np.int32)
    activation_basis = random.standard_normal(workload.activation_planes).astype(np.float32)
    weight_basis = (magnitude * random.standard_normal(shape)).astype(np.float32)
    bias = random.standard_normal((workload.row_classes, workload.col_classes, padded))
    bias = (magnitude * bias).astype(np.float32)
    sums = (base[:, None, None, None, :channels] + workload.class_multiplier[0] * counts).astype(np.float32)
    result = np.broadcast_to(at(bias), sums.shape[2:])
    for j in range(workload.weight_planes):
        total = activation_basis[0] * sums[0, j]
        for i in range(1, workload.activation_planes):
            total = fused_multiply_add(activation_basis[i], sums[i, j], total)
        result = fused_multiply_add(weight_basis[j, :channels], total, result)
    return [base, activation_basis, weight_basis, bias], [result]


def _float_codes(workload: Conv2dWorkload, numbers: np.ndarray, random: np.random.Generator) -> Constants:
    """Thresholds that the numbers miss, reach, and equal; a few that are always or never reached."""
    epilogue, channels = workload.thresholds, workload.out_channels
    assert epilogue is not None
    direction = random.choice(np.array([-1, 1], np.float32), workload.out_channels_padded)
    signed = numbers * direction[:channels]
    thresholds = np.full((epilogue.count, len(direction)), np.inf, np.float32)
    thresholds[:, :channels] = random.choice(signed.reshape(-1, channels), epilogue.count)
    thresholds[random.random(thresholds.shape) < 0.1] = np.inf
    always = random.random((epilogue.count, channels)) < 0.1
    thresholds[:, :channels][always] = -np.inf
    thresholds = np.sort(thresholds, axis=0)
    level = (signed >= thresholds[:, None, None, None, :channels]).sum(0)
    codes = np.array(epilogue.codes)[level]
    return [direction, thresholds], [_pack_codes(codes, epilogue, workload)]


def _constants(
    workload: Conv2dWorkload,
    image: np.ndarray,
    weights: np.ndarray,
    random: np.random.Generator,
    nan: bool,
    magnitude: float,
) -> Constants:
    """All arguments after the weights, and the expected outputs."""
    result = convolve(workload, image, weights)
    rows, columns = result.shape[1:3]
    row_class = random.integers(0, workload.row_classes, rows).astype(np.int32)
    col_class = random.integers(0, workload.col_classes, columns).astype(np.int32)
    arguments = [row_class, col_class] if workload.has_border_classes else []

    def at(constant: np.ndarray) -> np.ndarray:
        return constant[row_class][:, col_class][..., : workload.out_channels]

    epilogue = workload.float_epilogue
    if epilogue is None:
        constants, outputs = _integer_constants(workload, result, at, random)
        return [*arguments, *constants], outputs
    if epilogue.combine == "affine":
        constants, (numbers,) = _affine_constants(workload, result, at, random, magnitude)
    else:
        counts = pair_counts(workload, image, weights)
        constants, (numbers,) = _basis_constants(workload, counts, at, random, magnitude)
    if epilogue.shortcut:
        shortcut = (100 * magnitude * random.standard_normal(numbers.shape)).astype(np.float32)
        if nan:
            shortcut[random.random(shortcut.shape) < 0.3] = np.nan
        arguments.append(shortcut)
        numbers = numbers + shortcut
    outputs = [numbers] if epilogue.store else []
    if epilogue.thresholds is not None:
        more, codes = _float_codes(workload, numbers, random)
        constants, outputs = [*constants, *more], [*outputs, *codes]
    return [*arguments, *constants], outputs


def run_outputs(
    function: tirx.PrimFunc, family: Family, arguments: list[np.ndarray], likes: list[np.ndarray]
) -> list[np.ndarray]:
    """Compile a scheduled function, run it, and return its last arguments, one for each of `likes`."""
    compiled = tvm.compile(function, target=family.target())
    garbage = [np.full(like.shape, 77, dtype=like.dtype) for like in likes]
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in (*arguments, *garbage)]
    compiled(*tensors)
    return [tensor.numpy() for tensor in tensors[len(arguments) :]]


def run_function(function: tirx.PrimFunc, family: Family, arguments: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    """Compile a scheduled function, run it, and return its last argument."""
    return run_outputs(function, family, arguments, [like])[0]


def scheduled(function: tirx.PrimFunc, family: Family) -> tirx.PrimFunc:
    """The function with its default schedule."""
    result = schedule(function, family)
    assert result is not None
    return result


def _bytes(image: tuple, weight: tuple, dot: Dot, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Activations and weights whose products in pairs stay below the bound, the largest ones among them."""
    most = min(128, dot.pair_bound // (2 * dot.magnitude))
    largest = 2**dot.activation_bits - 1
    weights = random.integers(-most, min(most, 127) + 1, weight)
    extreme = random.random(weight) < 0.3
    weights[extreme] = random.choice([-most, min(most, 127)], weight)[extreme]
    codes = random.integers(0, largest + 1, image, dtype=np.uint8)
    codes[random.random(image) < 0.3] = largest
    return codes, weights


def _packed_bits(weights: np.ndarray, workload: Conv2dWorkload) -> np.ndarray:
    if workload.depth is not None:
        return pack_depth_weights(weights, workload.depth)
    if workload.has_quintets:
        return pack_weight_indices(weights, workload.weight_words, workload.lanes)
    return pack_weights(weights, workload.word_bits, workload.lanes)


def conv2d_case(
    workload: Conv2dWorkload,
    family: Family,
    batch: int = 1,
    symbolic: bool = False,
    width: int | None = None,
    knobs: Conv2dKnobs | None = None,
    seed: int = 0,
    nan: bool = False,
    magnitude: float = 1.0,
) -> tuple[tirx.PrimFunc, list[np.ndarray], list[np.ndarray]]:
    """A scheduled convolution of random bits, its arguments and its outputs; a width makes the width symbolic."""
    random = np.random.default_rng(seed)
    columns = workload.width if width is None else width
    image_shape = (workload.activation_planes, batch, workload.in_channels, workload.height, columns)
    shape = (workload.weight_planes, workload.out_channels, *workload.kernel, workload.in_channels)
    if workload.table is not None:
        most = 2**workload.table.activation_bits
        image, weights = random.integers(0, most, image_shape).astype(np.uint8), random.random(shape) < 0.5
        packed = [pack_bytes(image[0], workload.in_words), _packed_bits(weights, workload)]
    elif workload.dot is None:
        image, weights = random.random(image_shape) < 0.5, random.random(shape) < 0.5
        packed = [pack_activations(image, workload.word_bits), _packed_bits(weights, workload)]
    else:
        image, weights = _bytes(image_shape, shape, workload.dot, random)
        padded, gathered = workload.out_channels_padded, workload.dot.gathered
        units = pack_weight_bytes(weights[0], workload.lanes, padded, gathered, workload.dot.form)
        packed = [pack_bytes(image[0], workload.in_words), units]
    constants, expected = _constants(workload, image, weights, random, nan, magnitude)
    symbols = (tirx.Var("n", "int64") if symbolic else batch, None if width is None else tirx.Var("w", "int64"))
    function = conv2d(workload, *symbols)
    ready = scheduled(function, family) if knobs is None else apply_knobs(function, knobs)
    return ready, [*packed, *constants], expected


def check_conv2d(workload: Conv2dWorkload, family: Family, **options: Any) -> None:
    """Run one convolution, see `conv2d_case`, and compare every element."""
    function, arguments, expected = conv2d_case(workload, family, **options)
    outputs = run_outputs(function, family, arguments, expected)
    assert len(outputs) == len(workload.out_dtypes)
    for output, reference, dtype in zip(outputs, expected, workload.out_dtypes, strict=True):
        assert reference.dtype == dtype
        np.testing.assert_array_equal(output, reference)


@pytest.fixture(scope="module", params=["raspberry-pi-4", "raspberry-pi-3-32"])
def core(request: pytest.FixtureRequest, runner_cache: None) -> Target:
    """An emulated core."""
    return get_target(request.param)


def emulate(
    function: tirx.PrimFunc, target: Target, arguments: list[np.ndarray], likes: list[np.ndarray]
) -> list[np.ndarray]:
    """Run a scheduled function as a network of one layer."""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(function.without_attr("global_symbol"), "kernel")
    # The runner reads no words of 32 bits from files: those are weights, and constants in a network too.
    operands = [
        relax.const(a, "uint32")
        if a.dtype == np.uint32
        else relax.Var(f"x{i}", relax.TensorType(a.shape, str(a.dtype)))
        for i, a in enumerate(arguments)
    ]
    inputs = [operand for operand in operands if isinstance(operand, relax.Var)]
    types = [relax.TensorType(like.shape, str(like.dtype)) for like in likes]
    with builder.function("main", inputs):
        with builder.dataflow():
            output = builder.emit_output(relax.call_tir(kernel, operands, types if len(types) > 1 else types[0]))
        builder.emit_func_output(output)
    library = export_library(tvm.compile(builder.get(), target.tvm_target()), target)
    return run_emulated(library, target, [a for a in arguments if a.dtype != np.uint32])


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
        conv2d_case=conv2d_case,
        emulate=emulate,
        families=CROSS,
        host=HOST,
        make_depth=make_depth,
        make_dot=make_dot,
        make_table=make_table,
        make_workload=make_workload,
        planes=planes,
        run_function=run_function,
        scheduled=scheduled,
        windows=windows,
    )
