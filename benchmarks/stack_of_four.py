"""Four binary 3x3 convolutions in a row against onnxruntime's fp32 convolutions of the same shape.

    python benchmarks/stack_of_four.py --output benchmarks/results/stack_of_four.json

Both networks are conv 3x3 (padding 1) - batch norm - hard tanh, four times, batch 1, one thread; ours takes the sign of
every convolution's input and weights, so it is *another network* than the float one: this compares speed, not accuracy.
Ours includes everything from float input to float output: signs, packing, thresholds, the border correction for zero
padding.  The two take turns in one process; figures are medians over the rounds, the ratio is the median of the
rounds' own ratios.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tvm

import tvmq


def network(channels: int) -> torch.nn.Sequential:
    """conv - batch norm - hard tanh, four times, with batch norms that leave about half the signs positive."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for _ in range(4):
        norm = torch.nn.BatchNorm2d(channels)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        norm.running_var.fill_(9.0 * channels)
        layers += [torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm, torch.nn.Hardtanh()]
    return torch.nn.Sequential(*layers).eval()


def rival(module: torch.nn.Module, image: torch.Tensor) -> Callable[[], object]:
    """The float network in onnxruntime, on one thread, with its input and output bound once."""
    buffer = io.BytesIO()
    torch.onnx.export(module, (image,), buffer, dynamo=False, input_names=["x"], output_names=["y"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", image.numpy())
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def ours(module: torch.nn.Module, image: torch.Tensor, target: str) -> tuple[Callable[[], object], tvmq.Bundle, bool]:
    """The binary network, and whether its output equals the golden executor's."""
    config = tvmq.QNN(weights=1, activations=1, first_layer="quantized", last_layer="quantized")
    model = tvmq.load(tvmq.prepare(module, config).eval(), (image,))
    bundle = tvmq.compile(model, target, check_inputs=[image.numpy()])
    array = image.numpy()
    exact = np.array_equal(bundle.run(array)[0], model.run(array)[0])
    return lambda: bundle.run(array), bundle, exact


def block(call: Callable[[], object], calls: int) -> float:
    """Seconds per call over a few calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, minimum and interquartile range in microseconds."""
    quartiles = statistics.quantiles(seconds, n=4)
    return {
        "median_us": round(1e6 * statistics.median(seconds), 2),
        "minimum_us": round(1e6 * min(seconds), 2),
        "interquartile_range_us": round(1e6 * (quartiles[2] - quartiles[0]), 2),
    }


def main() -> None:
    """Measure and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=14, help="height and width of the image")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--target", default="host")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    image = torch.randn(1, arguments.channels, arguments.size, arguments.size)
    module = network(arguments.channels)
    with torch.no_grad():
        float_call = rival(module, image)
        binary_call, bundle, exact = ours(module, image, arguments.target)
    times: dict[str, list[float]] = {"tvmq": [], "onnxruntime": []}
    contestants = [("tvmq", binary_call, 20), ("onnxruntime", float_call, 4)]
    for index in range(arguments.rounds + 2):
        for name, call, calls in contestants if index % 2 else reversed(contestants):
            seconds = block(call, calls)
            if index >= 2:  # two rounds to warm up
                times[name].append(seconds)
    ratios = [rival / own for own, rival in zip(times["tvmq"], times["onnxruntime"], strict=True)]
    result = {
        "command": "python " + " ".join(sys.argv),
        "work": f"4 x conv 3x3, {arguments.channels} channels, {arguments.size}x{arguments.size}, batch 1, 1 thread",
        "note": "speeds of different networks: binary weights and activations against float32",
        "target": arguments.target,
        "equals_golden_executor": exact,
        "tvmq_w1a1": summary(times["tvmq"]),
        "onnxruntime_fp32": summary(times["onnxruntime"]),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_minimum": round(min(ratios), 2),
        "rounds": arguments.rounds,
        "layers_us": {row.name: round(1e6 * (row.seconds or 0), 2) for row in bundle.report().layers},
        "versions": {"tvmq": tvmq.__version__, "tvm": tvm.__version__, "onnxruntime": onnxruntime.__version__},
        "processor": platform.processor() or platform.machine(),
    }
    text = json.dumps(result, indent=2)
    if arguments.output is None:
        print(text)
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(arguments.output)
    print(f"wrote {arguments.output}: {result['ratio_median']} times onnxruntime fp32")


if __name__ == "__main__":
    main()
