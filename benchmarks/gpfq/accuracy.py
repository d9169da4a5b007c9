"""Accuracy of the networks that the GPFQ paper quantizes: the paper's table beside ours.

    python benchmarks/gpfq/accuracy.py mnist-mlp --data DIR --weights build/gpfq/mnist-mlp.pt \\
        --output benchmarks/results/gpfq_mnist_mlp.json
    python benchmarks/gpfq/accuracy.py cifar10-cnn --data DIR --weights build/gpfq/cifar10-cnn.pt \\
        --output benchmarks/results/gpfq_cifar10_cnn.json

As in the paper, every layer is quantized, calibration data are training images (25,000 of MNIST, 5,000 of CIFAR-10),
and the table has a row per constant of the radius.  Below it stand our additions, which look at calibration data alone:
the constant found by search, a radius per channel, a correction of the bias.  Of every image of CIFAR-10 we take 32
output positions of each convolution, drawn at random: 160,000 rows for at most 1,152 inputs.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import cifar10, mnist
from networks import load
from torch import Tensor, nn

import tvmq
from tvmq.methods.alphabets import equispaced_alphabet, median_radius
from tvmq.methods.gpfq import scalar_quantize
from tvmq.methods.linear_layers import shared_weights

# Test accuracy in percent, from the authors' published result files: {levels: {constant: (GPFQ, scalar)}}.
PAPER: dict[str, dict[str, Any]] = {
    "mnist-mlp": {
        "float": 98.24,
        "samples": 25000,
        "tables": {
            3: (
                range(1, 11),
                [51.56, 95.48, 97.39, 97.34, 96.93, 96.88, 95.82, 94.62, 93.02, 92.31],
                [72.72, 93.30, 90.69, 72.85, 60.00, 22.35, 13.47, 11.35, 11.35, 11.35],
            )
        },
    },
    "cifar10-cnn": {
        "float": 89.22,
        "samples": 5000,
        "patches": 32,
        "tables": {
            3: (range(2, 7), [74.87, 73.50, 69.19, 56.27, 35.15], [13.47, 14.64, 9.91, 10.00, 10.00]),
            4: (range(2, 7), [75.22, 80.36, 74.89, 67.48, 53.65], [22.09, 28.00, 17.42, 18.35, 13.90]),
            8: (range(2, 7), [79.42, 86.70, 87.10, 85.67, 86.00], [41.73, 37.54, 50.14, 56.52, 53.60]),
            16: (range(2, 7), [81.24, 87.78, 88.79, 88.88, 88.10], [45.25, 77.76, 84.43, 82.91, 78.31]),
        },
    },
}
BITS: dict[int, Any] = {3: "ternary", 4: 2, 8: 3, 16: 4}
OURS = {
    "searched constant": {},
    "per channel": {"radius": "channel"},
    "bias correction": {"bias_correction": True},
    "all three": {"radius": "channel", "bias_correction": True},
}


def linear_layers(network: nn.Sequential) -> list[nn.Linear | nn.Conv2d]:
    """The layers with weights, in order."""
    return [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]


def replaced(network: nn.Sequential, weights: list[np.ndarray], corrections: list[np.ndarray | None]) -> nn.Sequential:
    """A copy of a network with other weights, and corrections added to the layers' outputs."""
    changed = copy.deepcopy(network)
    for layer, weight, correction in zip(linear_layers(changed), weights, corrections, strict=True):
        layer.weight.data = torch.from_numpy(weight)
        if correction is not None:
            bias = torch.from_numpy(correction.reshape(-1))
            layer.bias = nn.Parameter(bias if layer.bias is None else layer.bias.data + bias)
    return changed


def corrections_of(model: tvmq.Model, names: list[str]) -> list[np.ndarray | None]:
    """What was added to the output of each layer."""
    bindings = {
        binding.var.name: binding.value for block in model.module["main"].body.blocks for binding in block.bindings
    }
    found = [bindings.get(f"{name}_correction") for name in names]
    return [None if call is None else call.args[1].value.numpy() for call in found]


def accuracy(network: nn.Sequential, inputs: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Percent of the labels that a network finds."""
    right = 0
    with torch.no_grad():
        for start in range(0, len(inputs), batch):
            scores = network(inputs[start : start + batch])
            right += int((scores.argmax(1) == labels[start : start + batch]).sum())
    return round(100 * right / len(labels), 2)


class Experiment:
    """A trained network with its calibration and test data."""

    def __init__(self, name: str, folder: Path, weights: Path) -> None:
        read = mnist if name == "mnist-mlp" else cifar10
        train, test = read(folder, "train"), read(folder, "test")
        self.network = load(name, weights)
        self.patches = PAPER[name].get("patches")
        self.calibration = train[: PAPER[name]["samples"]].inputs().contiguous().numpy()
        self.inputs, self.labels = test.inputs().contiguous(), test.labels
        batch = torch.export.Dim("batch", min=1)
        exported = torch.export.export(self.network, (self.inputs[:2],), dynamic_shapes=({0: batch},))
        self.model = tvmq.load(exported)

    def float_accuracy(self) -> float:
        """Percent, of the network as trained."""
        return accuracy(self.network, self.inputs, self.labels)

    def gpfq(self, **config: Any) -> dict[str, Any]:
        """Quantize and measure."""
        start = time.perf_counter()
        settings = tvmq.GPFQ(patches=self.patches, **config)
        model = tvmq.quantize(self.model, settings, self.calibration, batch_size=250)
        seconds = time.perf_counter() - start
        sites = shared_weights(model)
        network = replaced(
            self.network, [site.weight for site in sites], corrections_of(model, [site.name for site in sites])
        )
        # Torch evaluates the test set quickly; the model itself must say the same.
        few = self.inputs[:200]
        with torch.no_grad():
            np.testing.assert_allclose(model.run(few.numpy())[0], network(few).numpy(), rtol=1e-3, atol=1e-3)
        return {
            "accuracy": accuracy(network, self.inputs, self.labels),
            "seconds": round(seconds, 1),
            "constants": [round(row["constant"], 3) for row in model.quantization],
            "relative_errors": [round(row["relative_error"], 4) for row in model.quantization],
        }

    def scalar(self, levels: int, constant: float) -> float:
        """Accuracy of memoryless scalar quantization."""
        weights = []
        for site in shared_weights(self.model):
            matrix = site.weight.reshape(site.neurons, -1).T
            letters, _codes = scalar_quantize(matrix, equispaced_alphabet(levels, median_radius(matrix, constant)))
            weights.append(np.ascontiguousarray(letters.T.reshape(site.weight.shape), np.float32))
        return accuracy(replaced(self.network, weights, [None] * len(weights)), self.inputs, self.labels)


def table(experiment: Experiment, name: str, levels: int) -> dict[str, Any]:
    """One alphabet: the paper's rows with ours beside them, then our additions."""
    constants, paper_gpfq, paper_scalar = PAPER[name]["tables"][levels]
    rows = []
    for constant, theirs, theirs_scalar in zip(constants, paper_gpfq, paper_scalar, strict=True):
        found = experiment.gpfq(weights=BITS[levels], constant=float(constant))
        rows.append(
            {
                "constant": constant,
                "paper": theirs,
                "paper_scalar": theirs_scalar,
                "scalar": experiment.scalar(levels, constant),
                **{key: found[key] for key in ("accuracy", "seconds", "relative_errors")},
            }
        )
        print(levels, json.dumps(rows[-1]), file=sys.stderr)
    additions = {}
    for title, config in OURS.items():
        additions[title] = experiment.gpfq(weights=BITS[levels], **config)
        print(levels, title, json.dumps(additions[title]), file=sys.stderr)
    return {
        "levels": levels,
        "rows": rows,
        "best": {key: max(row[key] for row in rows) for key in ("paper", "accuracy", "paper_scalar", "scalar")},
        "additions": additions,
    }


def main() -> None:
    """Run and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=PAPER)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data set")
    parser.add_argument("--weights", type=Path, required=True, help="what train.py wrote")
    parser.add_argument("--levels", type=int, nargs="*", help="letters of the alphabets to try; default: the paper's")
    parser.add_argument("--output", type=Path, help="JSON file to write, after every table")
    arguments = parser.parse_args()
    experiment = Experiment(arguments.network, arguments.data, arguments.weights)
    result = {
        "command": "python " + " ".join(sys.argv),
        "network": arguments.network,
        "float": experiment.float_accuracy(),
        "paper_float": PAPER[arguments.network]["float"],
        "calibration_samples": len(experiment.calibration),
        "patches": experiment.patches,
        "tables": [],
    }
    for levels in arguments.levels or PAPER[arguments.network]["tables"]:
        result["tables"].append(table(experiment, arguments.network, levels))
        text = json.dumps(result, indent=2) + "\n"
        if arguments.output is not None:
            temporary = arguments.output.with_suffix(".part")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(arguments.output)
    print(text, end="")


if __name__ == "__main__":
    main()
