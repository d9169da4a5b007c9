"""The two float networks that the GPFQ paper quantizes.

Both are plain ``nn.Sequential`` and take normalised float32 inputs, as ``data.Images.inputs`` returns them; no
normalisation happens inside.  Layers in front of a batch norm have no bias: the batch norm's own replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


def mnist_mlp() -> nn.Sequential:
    """The MLP 784-500-300-10.

    Returns
    -------
    nn.Sequential
        Linear, batch norm and ReLU twice, then a linear layer: normalised ``float32[batch, 784]`` to scores
        ``float32[batch, 10]``.
    """
    return nn.Sequential(*hidden(784, 500), *hidden(500, 300), nn.Linear(300, 10))


def cifar10_cnn() -> nn.Sequential:
    """The CNN 2×Conv32, 2×Conv64, 2×Conv128, each pair followed by a 2×2 max pool, then FC128 and FC10.

    Returns
    -------
    nn.Sequential
        Batch norm and ReLU follow every layer but the last: normalised ``float32[batch, 3, 32, 32]`` to scores
        ``float32[batch, 10]``.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        layers += [*convolution(channels, width), *convolution(width, width), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), *hidden(128 * 4 * 4, 128), nn.Linear(128, 10))


def hidden(inputs: int, outputs: int) -> list[nn.Module]:
    """A linear layer with batch norm and ReLU, ``[batch, inputs]`` to ``[batch, outputs]``."""
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """A 3×3 convolution with batch norm and ReLU, ``[batch, inputs, h, w]`` to ``[batch, outputs, h, w]``."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"mnist-mlp": mnist_mlp, "cifar10-cnn": cifar10_cnn}


def load(name: str, weights: Path) -> nn.Sequential:
    """A trained network.

    Parameters
    ----------
    name : str
        A key of `NETWORKS`.
    weights : Path
        State dict that ``train.py`` wrote.

    Returns
    -------
    nn.Sequential
        The network in evaluation mode, with float32 weights.
    """
    network = NETWORKS[name]()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()
