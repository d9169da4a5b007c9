"""Accuracy of QNN and LQ-Nets fitted to the MNIST network of the GPFQ paper, without training.

    python benchmarks/gpfq/fits.py --data DIR --weights build/gpfq/mnist-mlp.pt \\
        --output benchmarks/results/fits_mnist_mlp.json

Every layer is quantized, the first and the last too, and calibration data are 2,500 training images.  With quantized
activations the first layer reads 8 bits.  GPFQ stands beside them with the same bits and data, its radius per channel
and its bias corrected as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from data import Images, mnist
from networks import load

import tvmq

SAMPLES = 2500
BITS: list[tuple[int | str, int | None]] = [
    *((bits, None) for bits in (1, "ternary", 2, 3, 4)),
    *((1, 2), (2, 2), (2, 3), (3, 3), (4, 4)),
]


def configurations(weights: int | str, activations: int | None) -> dict[str, Any]:
    """Every method that has so many bits."""
    options: dict[str, Any] = {"weights": weights, "activations": activations}
    found: dict[str, Any] = {"GPFQ": tvmq.GPFQ(**options, radius="channel", bias_correction=True)}
    if weights != "ternary":
        found["LQNets"] = tvmq.LQNets(**options, first_layer="input8", last_layer="quantized")
    found["QNN"] = tvmq.QNN(**options)
    if weights not in (1, "ternary"):
        found["QNN, powers of two"] = tvmq.QNN(**options, rounding="log")
    return found


def accuracy(model: tvmq.Model, images: Images, batch: int = 500) -> float:
    """Percent of the labels that a model finds."""
    inputs, right = images.inputs().contiguous().numpy(), 0
    for start in range(0, len(inputs), batch):
        scores = model.run(inputs[start : start + batch])[0]
        right += int((scores.argmax(1) == images.labels[start : start + batch].numpy()).sum())
    return round(100 * right / len(inputs), 2)


def main() -> None:
    """Run and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST")
    parser.add_argument("--weights", type=Path, required=True, help="what train.py wrote")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    calibration = mnist(arguments.data, "train")[:SAMPLES].inputs().contiguous().numpy()
    test = mnist(arguments.data, "test")
    batch = torch.export.Dim("batch", min=1)
    network = load("mnist-mlp", arguments.weights)
    model = tvmq.load(torch.export.export(network, (torch.from_numpy(calibration[:2]),), dynamic_shapes=({0: batch},)))
    rows = []
    for weights, activations in BITS:
        for method, config in configurations(weights, activations).items():
            start = time.perf_counter()
            with warnings.catch_warnings():
                # Borders that are black in all images are as good as any for these networks.
                warnings.simplefilter("ignore")
                quantized = tvmq.quantize(model, config, calibration, batch_size=250)
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "method": method,
                    "weights": weights,
                    "activations": activations,
                    "accuracy": accuracy(quantized, test),
                    "seconds": round(seconds, 1),
                    "relative_errors": [round(row["relative_error"], 4) for row in quantized.quantization],
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    result = {
        "command": "python " + " ".join(sys.argv),
        "network": "mnist-mlp",
        "float": accuracy(model, test),
        "calibration_samples": SAMPLES,
        "rows": rows,
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
