"""Train LQ-Nets' networks for CIFAR-10: VGG-small and ResNet-20 with learned levels.

The first convolution and the last linear layer stay in float, as in the paper.  Training images are moved by up to four
pixels and mirrored.  All training images are used, and the last epoch is the result, unless ``--held-out`` says
otherwise.

    python examples/recipes/cifar10_lqnets.py --network vgg-small --weights 1 --activations 2 --data DIR --out DIR
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from datasets import load_cifar10
from options import parse
from torch import Tensor, nn
from trainer import Recipe, image_parser, mirrored, normalized, shifted, train

from tvmq import LQNets, prepare

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training images, in units of 255."""
SHIFT = 4
MOMENTUM = 0.9
BLOCKS = 3
"""Of each size in ResNet-20: with two convolutions each, the first convolution and the last layer they are 20."""


def vgg_small(width: int) -> nn.Sequential:
    """Pairs of ``width``, twice and four times as many channels, each pair halving the image; in float."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        channels = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 4 * 4, 10))


class Block(nn.Module):
    """Two convolutions, each after a batch norm and a ReLU, beside a shortcut without parameters.

    Where the image shrinks, the shortcut takes every second pixel, and the channels that are new are zero.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.new = outputs // inputs, outputs - inputs
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        if self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return x + residual


def resnet20(width: int) -> nn.Sequential:
    """Three blocks each of ``width``, twice and four times as many channels; in float."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    channels = width
    for outputs in (width, 2 * width, 4 * width):
        for _ in range(BLOCKS):
            layers.append(Block(channels, outputs))
            channels = outputs
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Schedule:
    """A network, and how long and how fast it is trained; ``width`` is that of its first layer in the paper."""

    network: Callable[[int], nn.Module]
    width: int
    batch: int
    learning_rate: float
    weight_decay: float
    epochs: int


NETWORKS = {
    "vgg-small": Schedule(vgg_small, width=128, batch=100, learning_rate=0.02, weight_decay=5e-4, epochs=400),
    "resnet-20": Schedule(resnet20, width=16, batch=128, learning_rate=0.1, weight_decay=1e-4, epochs=200),
}


def groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser: weights decay, biases and those of batch norms do not."""
    parameters = list(network.parameters())
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def varied(images: Tensor) -> Tensor:
    """Moved by up to four pixels, and mirrored."""
    return mirrored(shifted(images, SHIFT))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    options = image_parser((__doc__ or "").splitlines()[0], epochs=None, held_out=0)
    options.add_argument("--network", choices=list(NETWORKS), required=True)
    options.add_argument("--weights", type=int, choices=range(1, 5), required=True, help="bits of a weight")
    options.add_argument("--activations", type=int, choices=range(1, 5), required=True, help="bits of an activation")
    options.add_argument("--width", type=int, default=None, help="channels of the first layer; default: the paper's")
    chosen = parse(options, arguments)
    schedule = NETWORKS[chosen.network]
    width, chosen.epochs = chosen.width or schedule.width, chosen.epochs or schedule.epochs
    train_set, test_set = load_cifar10(chosen.data)
    config = LQNets(weights=chosen.weights, activations=chosen.activations)
    prepared = prepare(schedule.network(width), config).to(chosen.device)
    parameters = groups(prepared, schedule.weight_decay)
    recipe = Recipe(
        name=f"{chosen.network}-w{chosen.weights}a{chosen.activations}",
        settings={"width": width},
        network=prepared,
        optimizer=torch.optim.SGD(parameters, lr=schedule.learning_rate, momentum=MOMENTUM),
        loss=F.cross_entropy,
        as_input=lambda images: normalized(images, MEAN, DEVIATION),
        augment=varied,
        batch=schedule.batch,
    )
    train(recipe, train_set, test_set, chosen)


if __name__ == "__main__":
    main()
