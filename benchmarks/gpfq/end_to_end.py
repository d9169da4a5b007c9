"""From a trained float network to a build: GPFQ of weights and activations, compiled, exact, and timed.

    python benchmarks/gpfq/end_to_end.py mnist-mlp --data DIR --weights build/gpfq/mnist-mlp.pt \\
        --output benchmarks/results/gpfq_build_mnist_mlp.json

All test images run through the library and through the golden executor, and every score must be the same.  Speed is
that of one image against onnxruntime's fp32 on the float network, one thread each, in turns.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import torch
from accuracy import PAPER
from data import cifar10, mnist
from networks import load

import tvmq

SETTINGS = {
    "ternary weights, 2-bit activations": {"weights": "ternary", "activations": 2},
    "2-bit weights, 4-bit activations": {"weights": 2, "activations": 4},
    "ternary weights, float activations": {"weights": "ternary"},
}
ROUNDS = 30
BATCH = 100


def float_session(network: torch.nn.Module, example: torch.Tensor) -> onnxruntime.InferenceSession:
    """The float network in onnxruntime, with one thread."""
    file = io.BytesIO()
    torch.onnx.export(network, (example,), file, input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])


def float_seconds(session: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    """Time of one run of the float network."""
    start = time.perf_counter()
    session.run(None, {"x": x})
    return time.perf_counter() - start


def main() -> None:
    """Run and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=PAPER)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data set")
    parser.add_argument("--weights", type=Path, required=True, help="what train.py wrote")
    parser.add_argument("--images", type=int, default=10000, help="test images")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    read = mnist if arguments.network == "mnist-mlp" else cifar10
    calibration = read(arguments.data, "train")[: PAPER[arguments.network]["samples"]].inputs().contiguous().numpy()
    test = read(arguments.data, "test")[: arguments.images]
    inputs, labels = test.inputs().contiguous(), test.labels.numpy()
    network = load(arguments.network, arguments.weights)
    session = float_session(network, inputs[:1])
    batch = torch.export.Dim("batch", min=1)
    model = tvmq.load(torch.export.export(network, (inputs[:2],), dynamic_shapes=({0: batch},)))
    rows = []
    for title, setting in SETTINGS.items():
        config = tvmq.GPFQ(
            radius="channel", bias_correction=True, patches=PAPER[arguments.network].get("patches"), **setting
        )
        quantized = tvmq.quantize(model, config, calibration, batch_size=250)
        bundle = tvmq.compile(quantized, "host")
        right = different = 0
        for start in range(0, len(inputs), BATCH):
            images = inputs[start : start + BATCH].numpy()
            scores = bundle.run(images)[0]
            different += int((scores != quantized.run(images)[0]).sum())
            right += int((scores.argmax(1) == labels[start : start + BATCH]).sum())
        one = inputs[:1].numpy()
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(bundle.time(one, repeat=1).median)
            theirs.append(float_seconds(session, one))
        rows.append(
            {
                "setting": title,
                "accuracy": round(100 * right / len(inputs), 2),
                "values_that_differ_from_the_golden_executor": different,
                "kernels": {row["name"]: row["kernel"] for row in bundle.layers("host")},
                "microseconds": round(1e6 * statistics.median(ours), 1),
                "onnxruntime_fp32_microseconds": round(1e6 * statistics.median(theirs), 1),
                "speedup": round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    result = {"command": "python " + " ".join(sys.argv), "images": len(inputs), "rows": rows}
    text = json.dumps(result, indent=2) + "\n"
    if arguments.output is not None:
        temporary = arguments.output.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(arguments.output)
    print(text, end="")


if __name__ == "__main__":
    main()
