"""GPFQ of a network of VGG-16's size: time, whether the first estimate held, and memory.

    python benchmarks/gpfq/vgg16.py --output benchmarks/results/gpfq_vgg16.json

All layers of VGG-16 at 224 x 224, the linear layer of 25088 x 4096 weights among them, with random weights and
random images: neither changes what is computed.  Memory is the largest resident size of the process, with the network
itself in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tvmq

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
SETTLED = 0.02
"""The estimate that is judged is the first one after this part of the work."""


def vgg16() -> nn.Sequential:
    """The network of Simonyan and Zisserman with random weights."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in STAGES:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *head).eval()


class Watch:
    """Keeps the first estimate that has some work behind it, and shows progress."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.estimate: float | None = None
        self.made_after = 0.0

    def __call__(self, progress: Any) -> None:
        passed = time.perf_counter() - self.start
        if self.estimate is None and progress.fraction >= SETTLED:
            self.estimate, self.made_after = passed + progress.seconds_left, passed
        print(
            f"\r{progress.fraction:4.0%} {progress.layer:12} {progress.seconds_left:6.0f} s left ",
            end="",
            file=sys.stderr,
        )


def main() -> None:
    """Run and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--patches", type=int, default=128, help="output positions of a convolution per image")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1)
    example = torch.zeros(2, 3, 224, 224)
    model = tvmq.load(torch.export.export(vgg16(), (example,), dynamic_shapes=({0: batch},)))
    random = np.random.default_rng(0)
    images = (random.random((8, 3, 224, 224), np.float32) for _ in range(0, arguments.images, 8))
    watch = Watch()
    config = tvmq.GPFQ(weights="ternary", patches=arguments.patches)
    quantized = tvmq.quantize(model, config, images, batch_size=8, progress=watch)
    seconds = time.perf_counter() - watch.start
    print(file=sys.stderr)
    assert watch.estimate is not None
    result = {
        "command": "python " + " ".join(sys.argv),
        "images": arguments.images,
        "patches": arguments.patches,
        "seconds": round(seconds, 1),
        "estimate": round(watch.estimate, 1),
        "estimate_made_after": round(watch.made_after, 1),
        "seconds_over_estimate": round(seconds / watch.estimate, 3),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "layers": [
            {key: row[key] for key in ("layer", "inputs", "neurons", "rows", "method", "seconds")}
            for row in quantized.quantization
        ],
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.output is not None:
        temporary = arguments.output.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(arguments.output)
    print(text, end="")


if __name__ == "__main__":
    main()
