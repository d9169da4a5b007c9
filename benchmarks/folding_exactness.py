"""How often the compiler's folded network and the network as torch runs it choose different levels, on CIFAR-10.

    python benchmarks/folding_exactness.py --data DIR --output benchmarks/results/folding_exactness.json

tvmq folds batch norms and quantizers into thresholds in float64, and that defines the result.  Torch runs the same
network unfolded: integers summed as floats, normalized and quantized in float32.  A value that lies within float32
rounding of a threshold may then get another level, and what follows it sees that.  Counted are all activations that
any quantizer puts out, and top-1 predictions.  The networks have random weights, which damp no difference, and batch
norms with the statistics of the images.  DIR holds CIFAR-10 (see benchmarks/gpfq/data.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tvmq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from gpfq.data import cifar10
from networks.quantized import Sign, SignedLevels, UnsignedLevels
from networks.zoo import SETTINGS, ZOO, Recipe

NETWORKS = ("resnet18", "vgg16", "mobilenetv2")
BATCH = 100


class Tapped(nn.Module):
    """A network that also returns what each of its quantizers put out, in the order of the calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.taps: list[Tensor] = []
        for module in network.modules():
            if isinstance(module, Sign | SignedLevels | UnsignedLevels):
                module.register_forward_hook(lambda _module, _inputs, output: self.taps.append(output))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.taps = []
        scores = self.network(x)
        return (scores, *self.taps)


def normalized(network: nn.Module, images: Tensor) -> nn.Module:
    """Give batch norms gammas of both signs and the statistics of some images."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            norm.weight.data += 0.5 * norm.weight.data.sign()
            nn.init.normal_(norm.bias, std=0.5)
            norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def compare(name: str, setting: str, images: Tensor) -> dict[str, Any]:
    """One network: the counts of activations and predictions, and of those that differ."""
    torch.manual_seed(0)
    weights, bits = SETTINGS[setting]
    entry = ZOO[name]
    network = entry.make(Recipe(weights, bits, "quantized", "quantized", entry.width))
    tapped = Tapped(normalized(network, images[:BATCH])).eval()
    model = tvmq.load(tapped, images[:BATCH])
    activations = differing = predictions = 0
    first: int | None = None
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        with torch.no_grad():
            unfolded = [output.numpy() for output in tapped(batch)]
        folded = model.run(batch.numpy())
        predictions += int((unfolded[0].argmax(1) != folded[0].argmax(1)).sum())
        for depth, (one, other) in enumerate(zip(unfolded[1:], folded[1:], strict=True)):
            step = np.ptp(one) / max(1, 2**bits - 1)
            changed = int((np.abs(one - other) > step / 4).sum())
            if changed and (first is None or depth < first):
                first = depth
            activations += one.size
            differing += changed
    return {
        "network": name,
        "setting": setting,
        "images": len(images),
        "activations": activations,
        "differing_activations": differing,
        "differing_fraction": differing / activations,
        "first_differing_quantizer": first,
        "differing_predictions": predictions,
    }


def main() -> None:
    """Run and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    images = cifar10(arguments.data, "test").pixels[: arguments.images].float() / 255
    rows = []
    for name in NETWORKS:
        for setting in SETTINGS:
            rows.append(compare(name, setting, images))
            print(json.dumps(rows[-1]), file=sys.stderr)
    result = {"command": "python " + " ".join(sys.argv), "torch": torch.__version__, "networks": rows}
    text = json.dumps(result, indent=2) + "\n"
    if arguments.output is not None:
        temporary = arguments.output.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(arguments.output)
    print(text, end="")


if __name__ == "__main__":
    main()
