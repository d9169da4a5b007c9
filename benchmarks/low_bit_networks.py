"""ResNet-18, VGG-small, an MLP and stacks of convolutions with random low-bit weights, as plain torch modules.

Real topology, sizes and channel counts; weights and batch norms are random, because speed does not depend on them.
What matters for speed is the form: quantizers are staircases of ordinary operators, weights lie on their alphabet, and
batch norm statistics are measured on random images, so that activations are mixed at every depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Network", "Recipe", "build", "pixels", "plain"]


@dataclass(frozen=True)
class Recipe:
    """How the layers are quantized.

    Attributes
    ----------
    activation_bits : int
        0 leaves activations float: the network that one would deploy without tvmq, with ReLUs.
    weight_bits : {1, 2}
        Of low-bit layers: -1 and 1, or -3, -1, 1 and 3, times a scale.
    stem : {"binary", "int8", "float", "low-bit"}
        Weights of the first layer.  "binary" and "int8" read 8-bit levels; "low-bit" is a layer like those within.
    head : {"binary", "int8", "float"}
        Weights of the last layer, which reads low-bit ("binary") or 8-bit ("int8") activations.
    """

    activation_bits: int
    weight_bits: int = 1
    stem: str = "int8"
    head: str = "int8"

    @property
    def is_plain(self) -> bool:
        """Whether nothing is quantized."""
        return self.activation_bits == 0

    def activation(self) -> nn.Module:
        """What stands before a low-bit layer."""
        if self.is_plain:
            return nn.ReLU()
        return Sign() if self.activation_bits == 1 else Levels(self.activation_bits, 2.1)

    def conv(self, *sizes: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
        """A low-bit convolution."""
        return with_weights(nn.Conv2d(*sizes, stride=stride, padding=padding, bias=False), self._low_bit())

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A low-bit linear layer."""
        return with_weights(nn.Linear(inputs, outputs, bias=False), self._low_bit())

    def first(self, layer: nn.Module) -> nn.Module:
        """The first layer with the quantizer of its input."""
        if self._weights(self.stem) == "low-bit":
            return nn.Sequential(self.activation(), with_weights(layer, self._low_bit()))
        layer = with_weights(layer, self._weights(self.stem))
        return layer if self._weights(self.stem) == "float" else nn.Sequential(Levels(8, 1.0), layer)

    def last(self, layer: nn.Module) -> nn.Module:
        """The last layer with the quantizer of its input."""
        kind = self._weights(self.head)
        quantizers = {"binary": self.activation, "int8": lambda: Levels(8, 3.0), "float": nn.Identity}
        return nn.Sequential(quantizers[kind](), with_weights(layer, kind))

    def _low_bit(self) -> str:
        return self._weights("binary" if self.weight_bits == 1 else "2-bit")

    def _weights(self, kind: str) -> str:
        return "float" if self.is_plain else kind


class Sign(nn.Module):
    """-1 or 1; zero counts as positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


class Levels(nn.Module):
    """Rounding to 2**bits levels from 0 to ``largest``."""

    def __init__(self, bits: int, largest: float) -> None:
        super().__init__()
        self.most, self.step = 2**bits - 1, largest / (2**bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.round(x * (1 / self.step)), 0, self.most) * self.step


def with_weights(layer: nn.Module, kind: str) -> nn.Module:
    """Random weights on an alphabet, with a scale per output channel; "float" leaves those of torch."""
    if kind == "float":
        return layer
    weight = layer.weight.data
    scale = (0.5 + torch.rand(len(weight))).reshape(-1, *[1] * (weight.dim() - 1)) / weight[0].numel() ** 0.5
    if kind == "binary":
        units = torch.where(torch.rand_like(weight) < 0.5, -1.0, 1.0)
    elif kind == "2-bit":
        units = 2.0 * torch.randint_like(weight, 0, 4) - 3.0
    else:
        units = torch.randint_like(weight, -127, 128) / 73.0  # the deviation of those integers
        scale = 2.0 ** torch.round(torch.log2(scale))
        units, scale = torch.round(units * 73.0), scale / 64.0
    layer.weight.data = units * scale
    return layer


class Unit(nn.Module):
    """Quantizer, 3x3 convolution, batch norm, and the float value around them (Bi-Real style)."""

    def __init__(self, recipe: Recipe, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activation = recipe.activation()
        self.conv, self.norm = recipe.conv(inputs, outputs, 3, stride=stride, padding=1), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            # The shortcut of a low-bit network quantizes its own input, like any other layer.
            self.shortcut = nn.Sequential(
                recipe.activation(), recipe.conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.activation(x))) + self.shortcut(x)


class BasicBlock(nn.Module):
    """The two convolutions of an ordinary ResNet, for the plain network."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(recipe: Recipe) -> nn.Module:
    """224x224 images; the low-bit network has a shortcut around every convolution, the plain one around every two."""
    layers: list[nn.Module] = [
        recipe.first(nn.Conv2d(3, 64, 7, 2, 3, bias=False)),
        nn.BatchNorm2d(64),
        *([nn.ReLU()] if recipe.is_plain else []),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for outputs in (64, 128, 256, 512):
        stride = 1 if outputs == 64 else 2
        if recipe.is_plain:
            layers += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        else:
            layers += [Unit(recipe, inputs, outputs, stride), *[Unit(recipe, outputs, outputs, 1) for _ in range(3)]]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), recipe.last(nn.Linear(512, 1000)))


def vgg_small(recipe: Recipe) -> nn.Module:
    """Six convolutions and a linear layer for 32x32 images."""
    layers: list[nn.Module] = [recipe.first(nn.Conv2d(3, 128, 3, 1, 1, bias=False)), nn.BatchNorm2d(128)]
    for inputs, outputs, pools in ((128, 128, 1), (128, 256, 0), (256, 256, 1), (256, 512, 0), (512, 512, 1)):
        layers += [recipe.activation(), recipe.conv(inputs, outputs, 3, padding=1)]
        after = [nn.BatchNorm2d(outputs), *([nn.MaxPool2d(2)] if pools else [])]
        # As is usual in either kind of network.
        layers += after if recipe.is_plain else after[::-1]
    if recipe.is_plain:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), recipe.last(nn.Linear(8192, 10)))


def mlp(recipe: Recipe) -> nn.Module:
    """784-4096-4096-4096-10."""
    layers: list[nn.Module] = [recipe.first(nn.Linear(784, 4096, bias=False)), nn.BatchNorm1d(4096)]
    for _ in range(2):
        layers += [recipe.activation(), recipe.linear(4096, 4096), nn.BatchNorm1d(4096)]
    if recipe.is_plain:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, recipe.last(nn.Linear(4096, 10)))


def stack(channels: int) -> Callable[[Recipe], nn.Module]:
    """Four 3x3 convolutions of so many channels, each with a batch norm; float images in and out."""

    def make(recipe: Recipe) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(4):
            product = [recipe.conv(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)]
            layers += [*product, recipe.activation()] if recipe.is_plain else [recipe.activation(), *product]
        return nn.Sequential(*layers)

    return make


@dataclass(frozen=True)
class Network:
    """How to make a network, the shape of one input, and the batch it is measured at."""

    make: Callable[[Recipe], nn.Module]
    shape: tuple[int, ...]
    batch: int = 1


NETWORKS = {
    "resnet18": Network(resnet18, (3, 224, 224)),
    "vgg_small": Network(vgg_small, (3, 32, 32)),
    "mlp_1": Network(mlp, (784,)),
    "mlp_256": Network(mlp, (784,), 256),
    "stack_56": Network(stack(64), (64, 56, 56)),
    "stack_14": Network(stack(256), (256, 14, 14)),
}


def pixels(shape: tuple[int, ...], batch: int, seed: int = 0) -> Tensor:
    """Random multiples of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *shape), generator=generator).float() / 255


def build(name: str, recipe: Recipe, samples: int = 4) -> nn.Module:
    """A seeded network in eval mode, its batch norms calibrated on random inputs."""
    torch.manual_seed(0)
    net = NETWORKS[name].make(recipe)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
            norm.momentum = 1.0  # statistics of this one batch
    with torch.no_grad():
        net.train()(pixels(NETWORKS[name].shape, samples, seed=1))
    return net.eval()


def plain(name: str) -> nn.Module:
    """The float network that one would deploy without low-bit layers."""
    return build(name, Recipe(0))
