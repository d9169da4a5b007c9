"""Time binary 3x3 convolutions with thresholds and packing, alone and four in a row, on one thread of this computer.

Run as ``TVM_NUM_THREADS=1 python benchmarks/stack_of_four_kernels.py [family ...]``.  Every line gives the minimum
and the median of 30 rounds, and the share of the limit: 683 binary multiply-accumulates per cycle with VPOPCNTDQ and
128 with AVX2, at the clock that a chain of dependent multiplications measures in the same process.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import te

from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.packing import pack_activations, pack_weights
from tvmq.kernels.schedule import schedule
from tvmq.kernels.workload import Conv2dWorkload, Thresholds

ROUNDS = 30
CALLS = 5
"""Calls per round: short enough that other processes spare some rounds."""
CHAIN_CYCLES = 4
"""Cycles of one step of the dependent chain: three of a multiplication and one of an exclusive or."""


@dataclass(frozen=True)
class Core:
    """What a schedule asks about a core."""

    arch: str
    popcount: str
    word_bits: int
    lanes: int
    mcpu: str
    limit: float
    features: tuple[str, ...] = ()


CORES = {
    "vpopcntdq": Core("x86_64", "vpopcntdq", 32, 16, "znver5", 2048 / 3),
    "avx2": Core("x86_64", "pshufb", 8, 32, "haswell", 128),
}
SHAPES = ((56, 64), (28, 128), (14, 256), (7, 512))


def binary_layer(core: Core, size: int, channels: int) -> Conv2dWorkload:
    """A 3x3 convolution of +1 and -1 with zero padding corrected by nine border classes."""
    return Conv2dWorkload(
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
        row_classes=3,
        col_classes=3,
        word_bits=core.word_bits,
        lanes=core.lanes,
        epilogue=Thresholds(1, (0, 1), 1),
    )


def clock() -> float:
    """Cycles per second of this core, now."""
    steps = 1 << 18
    start = te.placeholder((1,), "uint64", "start")
    axis = te.reduce_axis((0, steps), "step")
    chain = te.comm_reducer(
        lambda a, b: (a * np.uint64(6364136223846793005)) ^ b, lambda _: tvm.tirx.const(1, "uint64")
    )
    last = te.compute((1,), lambda i: chain(start[i] + axis.astype("uint64"), axis=axis), name="last")
    compiled = tvm.compile(te.create_prim_func([start, last]), target="llvm")
    arguments = [tvm.runtime.tensor(np.ones(1, dtype=np.uint64)) for _ in range(2)]
    seconds = min(compiled.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=100)(*arguments).results)
    return steps * CHAIN_CYCLES / seconds


def arguments(workload: Conv2dWorkload, random: np.random.Generator) -> list[Any]:
    """Weights and constants of one layer."""
    channels = workload.out_channels
    weights = random.random((1, channels, 3, 3, workload.in_channels)) < 0.5
    edge = np.ones(workload.height, dtype=np.int32)
    edge[0], edge[-1] = 0, 2
    thresholds = -9 * workload.in_channels // 2 + random.integers(-50, 50, (1, 3, 3, channels)).astype(np.int32)
    packed = pack_weights(weights, workload.word_bits, workload.lanes)
    return [tvm.runtime.tensor(array) for array in (packed, edge, edge, thresholds)]


def measure(core: Core, size: int, channels: int) -> str:
    """One line of the table."""
    random = np.random.default_rng(0)
    workload = binary_layer(core, size, channels)
    function = schedule(conv2d(workload, 1), core)
    target = tvm.target.Target({"kind": "llvm", "mcpu": core.mcpu})
    compiled = tvm.compile(function, target=target)
    call = compiled.mod["main"]
    layers = [arguments(workload, random) for _ in range(4)]
    image = pack_activations(random.random((1, 1, channels, size, size)) < 0.5, workload.word_bits)
    buffers = [tvm.runtime.tensor(image), *(tvm.runtime.empty(image.shape, image.dtype) for _ in range(4))]

    def stack() -> None:
        for source, constants, sink in zip(buffers, layers, buffers[1:], strict=False):
            call(source, *constants, sink)

    single = compiled.mod.time_evaluator("main", tvm.cpu(), number=CALLS, repeat=ROUNDS)
    alone = np.array(single(buffers[0], *layers[0], buffers[1]).results) * 1e6
    rounds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            stack()
        rounds.append((time.perf_counter() - begin) / CALLS * 1e6)
    hertz = clock()
    share = workload.macs / (alone.min() * 1e-6) / hertz / core.limit
    return (
        f"{size:3}x{size}x{channels:<4} one layer {alone.min():6.1f} / {np.median(alone):6.1f} us   "
        f"four {min(rounds):6.1f} / {np.median(rounds):6.1f} us   {share:5.1%} of the limit at {hertz / 1e9:.2f} GHz"
    )


def main() -> None:
    """Print the table of the families named on the command line, or of all."""
    for name in sys.argv[1:] or CORES:
        print(name)
        for size, channels in SHAPES:
            print("  " + measure(CORES[name], size, channels), flush=True)


if __name__ == "__main__":
    main()
