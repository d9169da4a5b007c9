"""Convolutions of bytes on one core: share of the instruction's limit, and time beside onnxruntime's int8 kernels.

Kernels read and write packed bytes; levels are those of a 4-bit and of an 8-bit quantizer.  onnxruntime runs one
``QLinearConv`` (dense layers: ``QLinearMatMul``) from uint8 to uint8 on the same shape.  Rounds are interleaved; the
least time of each counts, and the clock is measured by a chain of dependent integer multiplications in every round.

    TVM_NUM_THREADS=1 python benchmarks/int8_kernels.py --rounds 12 --output benchmarks/results/int8_kernels.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import TensorProto, helper, numpy_helper

from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.schedule import schedule
from tvmq.kernels.workload import Conv2dWorkload, Dot, Thresholds
from tvmq.target import get_target

CORE = get_target("x86-avx512-vpopcntdq")
POINTWISE = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
SHAPES: dict[str, dict[str, Any]] = {
    "3x3 56x56x64": {"height": 56, "in_channels": 64, "out_channels": 64},
    "3x3 28x28x128": {"height": 28, "in_channels": 128, "out_channels": 128},
    "3x3 14x14x256": {"height": 14, "in_channels": 256, "out_channels": 256},
    "3x3 7x7x512": {"height": 7, "in_channels": 512, "out_channels": 512},
    "1x1/2 56x56x64 to 128": {"height": 56, "in_channels": 64, "out_channels": 128, "strides": (2, 2), **POINTWISE},
    "7x7/2 224x224x3 to 64": {
        "height": 224,
        "in_channels": 3,
        "out_channels": 64,
        "kernel": (7, 7),
        "padding": (3, 3, 3, 3),
        "strides": (2, 2),
    },
    "dense 64x1024x1024": {"height": 1, "width": 64, "in_channels": 1024, "out_channels": 1024, **POINTWISE},
    "dense 1x4096x4096": {"height": 1, "in_channels": 4096, "out_channels": 4096, **POINTWISE},
}
CLOCK = """
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
double cycles_per_second(void) {
    unsigned long x = 1;
    double start = now();
    for (int i = 0; i < 20000; i++) __asm__ volatile("imul %0,%0\\nimul %0,%0\\nimul %0,%0\\nimul %0,%0" : "+r"(x));
    return 20000 * 12 / (now() - start);
}
double products_per_second(void) {
    long n = 20000;
    double start = now();
    __asm__ volatile("1:\\n"
        "vpdpbusd %%zmm30,%%zmm31,%%zmm0\\nvpdpbusd %%zmm30,%%zmm31,%%zmm1\\nvpdpbusd %%zmm30,%%zmm31,%%zmm2\\n"
        "vpdpbusd %%zmm30,%%zmm31,%%zmm3\\nvpdpbusd %%zmm30,%%zmm31,%%zmm4\\nvpdpbusd %%zmm30,%%zmm31,%%zmm5\\n"
        "vpdpbusd %%zmm30,%%zmm31,%%zmm6\\nvpdpbusd %%zmm30,%%zmm31,%%zmm7\\nvpdpbusd %%zmm30,%%zmm31,%%zmm8\\n"
        "vpdpbusd %%zmm30,%%zmm31,%%zmm9\\nvpdpbusd %%zmm30,%%zmm31,%%zmm10\\nvpdpbusd %%zmm30,%%zmm31,%%zmm11\\n"
        "dec %0\\njnz 1b" : "+r"(n) : : "cc", "memory");
    return 20000 * 12 * 64.0 / (now() - start);
}
"""


def probe() -> Any:
    folder = Path(tempfile.mkdtemp())
    (folder / "clock.c").write_text(CLOCK)
    command = ["gcc", "-O2", "-shared", "-fPIC", str(folder / "clock.c"), "-o", str(folder / "clock.so")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "clock.so"))
    for function in (library.cycles_per_second, library.products_per_second):
        function.restype = ctypes.c_double
    return library


def workload_of(fields: dict[str, Any], bits: int) -> Conv2dWorkload:
    arithmetic = "float32" if bits == 4 else "float64"
    defaults = {"kernel": (3, 3), "strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1)}
    return Conv2dWorkload(
        **{**defaults, "width": fields["height"], **fields},
        activation_planes=1,
        weight_planes=1,
        combine="dot",
        plane_class=((0,),),
        class_multiplier=(1,),
        activation_multiplier=(0,),
        row_classes=1,
        col_classes=1,
        word_bits=CORE.word_bits,
        lanes=CORE.dot_lanes,
        epilogue=Thresholds(2**bits - 1, tuple(range(2**bits)), bits, "bytes", arithmetic),
        dot=Dot(8, 8, 65280, gathered=fields["in_channels"] % 4 != 0),
    )


def kernel(workload: Conv2dWorkload) -> Callable[[int], float]:
    """A function from a number of runs to the seconds of one."""
    random = np.random.default_rng(0)
    compiled = tvm.compile(schedule(conv2d(workload, 1), CORE), target=CORE.tvm_target())
    dtype = workload.epilogue.arithmetic
    padded = workload.out_channels_padded
    arrays = [
        random.integers(0, 256, (1, workload.height, workload.width, 1, workload.in_words)).astype(np.uint8),
        random.integers(-128, 128, workload.weight_shape()).astype(np.int8),
        np.full(padded, 0.001, dtype),
        np.zeros((1, 1, padded), dtype),
        np.zeros((1, workload.out_height, workload.out_width, 1, workload.out_words), np.uint8),
    ]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    return lambda number: compiled.mod.time_evaluator("main", tvm.cpu(), number=number, repeat=1)(*tensors).mean


def rival(workload: Conv2dWorkload) -> Callable[[int], float]:
    """The same of onnxruntime."""
    random = np.random.default_rng(0)
    dense = workload.height == 1
    channels, outputs = workload.in_channels, workload.out_channels
    shape = (workload.width, channels) if dense else (1, channels, workload.height, workload.width)
    weight = random.integers(-128, 128, (channels, outputs) if dense else (outputs, channels, *workload.kernel))
    constants = {
        "weight": weight.astype(np.int8),
        "scale": np.float32(0.01),
        "out_scale": np.float32(20.0),
        "zero": np.uint8(0),
        "weight_zero": np.int8(0),
    }
    names = ["x", "scale", "zero", "weight", "scale", "weight_zero", "out_scale", "zero"]
    attributes = {} if dense else {"pads": list(workload.padding), "strides": list(workload.strides)}
    node = helper.make_node("QLinearMatMul" if dense else "QLinearConv", names, ["y"], **attributes)
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    tensor = helper.make_tensor_value_info
    out = (workload.width, outputs) if dense else (1, outputs, workload.out_height, workload.out_width)
    graph = helper.make_graph(
        [node], "g", [tensor("x", TensorProto.UINT8, shape)], [tensor("y", TensorProto.UINT8, out)], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": random.integers(0, 256, shape).astype(np.uint8)}

    def seconds(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            session.run(None, feed)
        return (time.perf_counter() - start) / number

    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rounds, results = arguments.rounds, {}
    clock = probe()
    print("layer                       4 bits us  of limit   8 bits us  of limit   onnxruntime us   ratio", flush=True)
    for name, fields in SHAPES.items():
        low, high = (workload_of(fields, bits) for bits in (4, 8))
        runs = [kernel(low), kernel(high), rival(low)]
        number = max(1, int(5e7 / low.macs))
        best, peak = [np.inf] * 3, 0.0
        for _ in range(rounds):
            peak = max(peak, clock.products_per_second())
            best = [min(least, run(number)) for least, run in zip(best, runs, strict=True)]
        shares = [low.macs / seconds / peak for seconds in best[:2]]
        us = [seconds * 1e6 for seconds in best]
        ours = f"{us[0]:10.1f} {shares[0]:9.1%} {us[1]:11.1f} {shares[1]:9.1%}"
        results[name] = {"us_4_bits": us[0], "us_8_bits": us[1], "us_onnxruntime": us[2], "shares": shares}
        print(f"{name:26s} {ours} {us[2]:16.1f} {us[2] / us[0]:7.2f}", flush=True)
    frequency = max(clock.cycles_per_second() for _ in range(50))
    if arguments.output:
        versions = {"tvm": tvm.__version__, "onnxruntime": onnxruntime.__version__}
        record = {"clock": frequency, "products_per_cycle": peak / frequency, "versions": versions, "shapes": results}
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"clock {frequency / 1e9:.2f} GHz, limit {peak / 1e9:.0f} G products/s = {peak / frequency:.0f} per cycle")


if __name__ == "__main__":
    main()
