"""Layers that stay in float, compiled by tvmq, against onnxruntime in fp32.

    python benchmarks/float_layers.py --output benchmarks/results/float_layers.json

Both take and return the same float arrays, on one thread; convolutions and dense layers have a bias, convolutions a
ReLU.  They take turns in one process; figures are medians over the rounds with interquartile ranges, the ratio is the
median of the rounds' own ratios (above 1: tvmq is faster).  Inputs are bound once; a call from Python costs either a
few microseconds.  Times are those of the thread that computes, so that other work on the machine counts for little.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tvm
from contestants import bound, onnxruntime_call, summary

import tvmq
from tvmq.machine import this_machine

BLOCK_SECONDS = 0.01
"""Time of one contestant in one round, at least one call."""


def cases() -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """Layers and their inputs."""
    torch.manual_seed(0)
    found: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {}
    for channels, outputs, kernel, size, stride in (
        (64, 64, 3, 56, 1),
        (128, 128, 3, 28, 1),
        (256, 256, 3, 14, 1),
        (512, 512, 3, 7, 1),
        (64, 64, 3, 32, 1),
        (64, 256, 1, 56, 1),
        (256, 1024, 1, 14, 1),
        (3, 64, 7, 224, 2),
        (3, 64, 3, 32, 1),
    ):
        name = f"conv {kernel}x{kernel} {channels}->{outputs}, {size}x{size}, stride {stride}"
        found[name] = convolution(channels, outputs, kernel, size, stride, 1)
    for channels, size in ((512, 14), (64, 56), (32, 112)):
        for stride in (1, 2):
            name = f"depthwise 3x3 {channels}, {size}x{size}, stride {stride}"
            found[name] = convolution(channels, channels, 3, size, stride, channels)
    for length, outputs in ((4096, 4096), (784, 500)):
        for batch in (1, 64, 256):
            layer = torch.nn.Linear(length, outputs)
            found[f"dense {length}x{outputs}, batch {batch}"] = (layer, torch.randn(batch, length))
    found["max-pool 3x3 64, 112x112, stride 2"] = (torch.nn.MaxPool2d(3, 2, 1), torch.randn(1, 64, 112, 112))
    found["average-pool 2x2 64, 56x56, stride 2"] = (torch.nn.AvgPool2d(2), torch.randn(1, 64, 56, 56))
    found["global average-pool 512, 7x7"] = (torch.nn.AdaptiveAvgPool2d(1), torch.randn(1, 512, 7, 7))
    return found


def convolution(
    channels: int, outputs: int, kernel: int, size: int, stride: int, groups: int
) -> tuple[torch.nn.Module, torch.Tensor]:
    """A convolution with bias and ReLU, and an image."""
    layer = torch.nn.Conv2d(channels, outputs, kernel, stride, padding=kernel // 2, groups=groups)
    return torch.nn.Sequential(layer, torch.nn.ReLU()), torch.randn(1, channels, size, size)


def compiled(layer: torch.nn.Module, x: torch.Tensor, target: str) -> tuple[Callable[[], object], bool]:
    """A layer compiled by tvmq, and whether it equals the golden executor bit for bit."""
    array = x.numpy()
    model = tvmq.load(layer, (x,))
    bundle = tvmq.compile(model, target, check_inputs=[array])
    exact = np.array_equal(bundle.run(array)[0].view(np.int32), model.run(array)[0].view(np.int32))
    return bound(bundle.libraries[target], array), exact


def seconds_of(call: Callable[[], object], calls: int) -> float:
    """Seconds per call of this thread over a few calls in a row."""
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls


def compare(layer: torch.nn.Module, x: torch.Tensor, target: str, rounds: int) -> dict[str, object]:
    """Both contestants on one layer."""
    call, exact = compiled(layer.eval(), x, target)
    calls = {"tvmq": call, "onnxruntime": onnxruntime_call(layer, x)}
    counts = {name: max(1, int(BLOCK_SECONDS / max(seconds_of(call, 2), 1e-6))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls) if index % 2 else reversed(calls):
            times[name].append(seconds_of(calls[name], counts[name]))
    ratios = [other / own for own, other in zip(times["tvmq"], times["onnxruntime"], strict=True)]
    return {
        "equals_golden_executor": exact,
        **{name: summary(values) for name, values in times.items()},
        "times as fast as onnxruntime": round(statistics.median(ratios), 2),
    }


def main() -> None:
    """Measure and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="host")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="measure the layers whose name contains this")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    results = {}
    for name, (layer, x) in cases().items():
        if arguments.only not in name:
            continue
        with torch.no_grad():
            results[name] = compare(layer, x, arguments.target, arguments.rounds)
        print(f"{name}: {results[name]['times as fast as onnxruntime']}x onnxruntime", flush=True)
    result = {
        "command": "python " + " ".join(sys.argv),
        "work": "one layer, float32 in and out, one thread; seconds of the thread",
        "target": arguments.target,
        "rounds": arguments.rounds,
        "layers": results,
        "versions": {"tvmq": tvmq.__version__, "tvm": tvm.__version__, "onnxruntime": onnxruntime.__version__},
        "processor": this_machine().core,
    }
    text = json.dumps(result, indent=2)
    if arguments.output is None:
        print(text)
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(arguments.output)


if __name__ == "__main__":
    main()
