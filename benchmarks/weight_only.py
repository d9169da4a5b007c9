"""Layers with packed binary, ternary, 2-bit and 4-bit weights and float activations against the same layers in float.

    python benchmarks/weight_only.py --output benchmarks/results/weight_only.json

Rivals are the float layer compiled by tvmq, and onnxruntime in fp32; all take and return the same float arrays, on one
thread.  Weights lie on their alphabets from the start: GPFQ would only have chosen other letters.  All take turns in
one process; figures are medians over the rounds with interquartile ranges, ratios are medians of the rounds' own ratios
(above 1: packed weights are faster).  Inputs are bound once; a call from Python costs either a few microseconds.
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
from tvmq.bitplanes import Encoding
from tvmq.machine import this_machine

ALPHABETS = {
    "binary": Encoding.binary(),
    "ternary": Encoding.ternary(),
    "2-bit": Encoding.equispaced(2),
    "4-bit": Encoding.equispaced(4),
}
BLOCK_SECONDS = 0.02
"""Time of one contestant in one round, at least one call."""


def cases() -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """Layers and their inputs."""
    torch.manual_seed(0)
    found: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {}
    for length, outputs in ((4096, 4096), (784, 500)):
        for batch in (1, 64):
            layer = torch.nn.Linear(length, outputs, bias=False)
            found[f"dense {length}x{outputs}, batch {batch}"] = (layer, torch.randn(batch, length))
    for channels, size in ((16, 32), (64, 32), (64, 56), (128, 28), (256, 14), (512, 7)):
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        found[f"conv 3x3 {channels}->{channels}, {size}x{size}"] = (layer, torch.randn(1, channels, size, size))
    return found


def with_weights(layer: torch.nn.Module, encoding: Encoding) -> torch.nn.Module:
    """The layer with random letters of an alphabet for weights."""
    planes, shape = encoding.planes, tuple(layer.weight.shape)
    random = np.random.default_rng(0)
    codes = random.integers(0, 3 if planes == 2 and encoding.offset == 0 else 2**planes, shape).astype(np.uint8)
    copy = type(layer)(*_arguments(layer), bias=False, **_options(layer))
    with torch.no_grad():
        copy.weight.copy_(torch.from_numpy(encoding.values(codes) * np.float32(0.02)))
    return copy.eval()


def _arguments(layer: torch.nn.Module) -> tuple[int, ...]:
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size[0]


def _options(layer: torch.nn.Module) -> dict[str, int]:
    return {} if isinstance(layer, torch.nn.Linear) else {"padding": layer.padding[0]}


def compiled(layer: torch.nn.Module, x: torch.Tensor, target: str) -> tuple[Callable[[], object], tvmq.Bundle, bool]:
    """A layer compiled by tvmq, and whether it equals the golden executor bit for bit."""
    array = x.numpy()
    model = tvmq.load(layer, (x,))
    bundle = tvmq.compile(model, target, check_inputs=[array])
    exact = np.array_equal(bundle.run(array)[0], model.run(array)[0])
    return bound(bundle.libraries[target], array), bundle, exact


def seconds_of(call: Callable[[], object], calls: int) -> float:
    """Seconds per call over a few calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def compare(layer: torch.nn.Module, x: torch.Tensor, target: str, rounds: int) -> dict[str, object]:
    """All contestants on one layer."""
    float_call, float_bundle, _ = compiled(layer.eval(), x, target)
    calls = {"float, tvmq": float_call, "float, onnxruntime": onnxruntime_call(layer, x)}
    report: dict[str, object] = {"float_bytes": float_bundle.layers(target)[0]["bytes_float"]}
    rows = {}
    for name, encoding in ALPHABETS.items():
        calls[name], bundle, exact = compiled(with_weights(layer, encoding), x, target)
        (row,) = bundle.layers(target)
        rows[name] = {
            "kernel_name": row["kernel"],
            "bits": row["weight_bits"],
            "packed_bytes": row["bytes_packed"],
            "equals_golden_executor": exact,
        }
    counts = {name: max(1, int(BLOCK_SECONDS / seconds_of(call, 2))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls) if index % 2 else reversed(calls):
            times[name].append(seconds_of(calls[name], counts[name]))
    for rival in ("float, tvmq", "float, onnxruntime"):
        report[rival] = summary(times[rival])
        for name, row in rows.items():
            ratios = [other / own for own, other in zip(times[name], times[rival], strict=True)]
            row[f"times as fast as {rival}"] = round(statistics.median(ratios), 2)
    return {**report, **{name: {**row, **summary(times[name])} for name, row in rows.items()}}


def main() -> None:
    """Measure and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="host")
    parser.add_argument("--rounds", type=int, default=30)
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
        for alphabet in ALPHABETS:
            row = results[name][alphabet]
            ratios = [row[f"times as fast as float, {rival}"] for rival in ("tvmq", "onnxruntime")]
            print(f"{name}, {alphabet}: {row['median_us']} us, {ratios[0]}x tvmq float, {ratios[1]}x onnxruntime")
    result = {
        "command": "python " + " ".join(sys.argv),
        "work": "one layer, float32 in and out, one thread",
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
