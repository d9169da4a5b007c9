"""Well-known architectures with low-bit layers: real topology and depth, but small images and fewer channels."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .quantized import EightBitInput, QuantizedConv2d, QuantizedLinear, SignedLevels, activation


@dataclass
class Recipe:
    """How the layers of a network are quantized.

    Attributes
    ----------
    weights : str
        A key of :data:`alphabets.ALPHABETS`.
    activation_bits : int
    first, last : {"quantized", "float"}
        A quantized first layer reads its pixels as 8-bit levels.
    width : float
        Factor of all channel counts.
    """

    weights: str = "binary"
    activation_bits: int = 1
    first: str = "quantized"
    last: str = "quantized"
    width: float = 1.0
    layers: int = field(default=0, init=False)

    def channels(self, count: int) -> int:
        """A channel count of the original network, scaled."""
        return max(4, round(count * self.width))

    def activation(self) -> nn.Module:
        """What stands before every quantized layer but the first."""
        return activation(self.activation_bits)

    def conv(self, *args: Any, **kwargs: Any) -> nn.Module:
        """A quantized convolution, without bias unless asked; every third has one scale for all channels."""
        self.layers += 1
        kwargs.setdefault("bias", False)
        per_channel = self.layers % 3 != 0
        return QuantizedConv2d(*args, alphabet=self.weights, per_channel=per_channel, seed=self.layers, **kwargs)

    def linear(self, inputs: int, outputs: int, **kwargs: Any) -> nn.Module:
        """A quantized linear layer."""
        self.layers += 1
        return QuantizedLinear(inputs, outputs, alphabet=self.weights, seed=self.layers, **kwargs)

    def stem(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The first convolution."""
        kwargs.setdefault("bias", False)
        if self.first == "float":
            return nn.Conv2d(*args, **kwargs)
        return nn.Sequential(EightBitInput(), self.conv(*args, **kwargs))

    def head(self, inputs: int, outputs: int) -> nn.Module:
        """The last linear layer, with the quantizer of its input."""
        if self.last == "float":
            return nn.Linear(inputs, outputs)
        return nn.Sequential(self.activation(), self.linear(inputs, outputs))

    def unit(self, inputs: int, outputs: int, *args: Any, **kwargs: Any) -> nn.Module:
        """Quantizer, convolution, batch norm."""
        return nn.Sequential(self.activation(), self.conv(inputs, outputs, *args, **kwargs), nn.BatchNorm2d(outputs))


# --- plain stacks -----------------------------------------------------------------------------------------------


def lenet(recipe: Recipe) -> nn.Module:
    """LeNet-5 with average pools, for 28x28."""
    return nn.Sequential(
        recipe.stem(1, 6, 5, padding=2, bias=True),
        nn.BatchNorm2d(6),
        nn.AvgPool2d(2),
        recipe.unit(6, 16, 5, bias=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        recipe.activation(),
        recipe.linear(400, 120),
        nn.BatchNorm1d(120),
        recipe.activation(),
        recipe.linear(120, 84),
        nn.BatchNorm1d(84),
        recipe.head(84, 10),
    )


def mlp(recipe: Recipe) -> nn.Module:
    """Three hidden layers; vectors of 100 features in [0, 1]."""
    layers: list[nn.Module] = [EightBitInput() if recipe.first == "quantized" else nn.Identity()]
    sizes = (100, *(recipe.channels(256),) * 3)
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        is_float = index == 0 and recipe.first == "float"
        layers += [nn.Linear(inputs, outputs) if is_float else recipe.linear(inputs, outputs), nn.BatchNorm1d(outputs)]
        if index < 2:
            layers.append(recipe.activation())
    return nn.Sequential(*layers, recipe.head(sizes[-1], 10))


def vgg16(recipe: Recipe) -> nn.Module:
    """Thirteen convolutions, five pools, three linear layers."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for count in stage:
            outputs = recipe.channels(count)
            if layers:
                layers.append(recipe.unit(inputs, outputs, 3, padding=1))
            else:
                layers += [recipe.stem(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for outputs in (recipe.channels(4096),) * 2:
        layers += [recipe.activation(), recipe.linear(inputs, outputs), nn.BatchNorm1d(outputs)]
        inputs = outputs
    return nn.Sequential(*layers, recipe.head(inputs, 10))


def alexnet(recipe: Recipe) -> nn.Module:
    """Five convolutions with overlapping pools, three linear layers; for 64x64."""
    c = recipe.channels
    return nn.Sequential(
        recipe.stem(3, c(64), 11, stride=4, padding=2),
        nn.BatchNorm2d(c(64)),
        nn.MaxPool2d(3, 2),
        recipe.unit(c(64), c(192), 5, padding=2),
        nn.MaxPool2d(3, 2),
        recipe.unit(c(192), c(384), 3, padding=1),
        recipe.unit(c(384), c(256), 3, padding=1, bias=True),
        recipe.unit(c(256), c(256), 3, padding=1),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        recipe.activation(),
        recipe.linear(c(256), c(4096)),
        nn.BatchNorm1d(c(4096)),
        recipe.activation(),
        recipe.linear(c(4096), c(4096)),
        nn.BatchNorm1d(c(4096)),
        recipe.head(c(4096), 10),
    )


# --- residual networks ------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; what is added is the quantized input of the block, or a quantized 1x1 of it."""

    expansion = 1

    def __init__(self, recipe: Recipe, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.activation = recipe.activation()
        self.body = self.make_body(recipe, inputs, width, stride)
        outputs = width * self.expansion
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(recipe.conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def make_body(self, recipe: Recipe, inputs: int, width: int, stride: int) -> nn.Module:
        return nn.Sequential(
            recipe.conv(inputs, width, 3, stride, padding=1),
            nn.BatchNorm2d(width),
            recipe.unit(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(x)
        return self.body(x) + self.shortcut(x)


class Bottleneck(BasicBlock):
    """1x1, 3x3, 1x1."""

    expansion = 4

    def make_body(self, recipe: Recipe, inputs: int, width: int, stride: int) -> nn.Module:
        return nn.Sequential(
            recipe.conv(inputs, width, 1),
            nn.BatchNorm2d(width),
            recipe.unit(width, width, 3, stride, padding=1),
            recipe.unit(width, width * self.expansion, 1),
        )


class PreActivationBlock(nn.Module):
    """Batch norm and quantizer before each convolution; the float value goes around."""

    def __init__(self, recipe: Recipe, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm, self.activation = nn.BatchNorm2d(inputs), recipe.activation()
        self.conv = recipe.conv(inputs, width, 3, stride, padding=1)
        self.rest = nn.Sequential(nn.BatchNorm2d(width), recipe.activation(), recipe.conv(width, width, 3, padding=1))
        changes = stride != 1 or inputs != width
        self.shortcut = recipe.conv(inputs, width, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        quantized = self.activation(self.norm(x))
        return self.rest(self.conv(quantized)) + (x if self.shortcut is None else self.shortcut(quantized))


def _residual(recipe: Recipe, block: Callable[..., nn.Module], counts: tuple[int, ...], expansion: int) -> nn.Module:
    inputs = recipe.channels(64)
    layers: list[nn.Module] = [
        recipe.stem(3, inputs, 7, stride=2, padding=3),
        nn.BatchNorm2d(inputs),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    for index, count in enumerate(counts):
        width = recipe.channels(64) * 2**index
        for position in range(count):
            layers.append(block(recipe, inputs, width, 2 if index and not position else 1))
            inputs = width * expansion
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(inputs)]
    return nn.Sequential(*layers, recipe.head(inputs, 10))


def resnet18(recipe: Recipe) -> nn.Module:
    """Eight basic blocks."""
    return _residual(recipe, BasicBlock, (2, 2, 2, 2), 1)


def resnet50(recipe: Recipe) -> nn.Module:
    """Sixteen bottlenecks."""
    return _residual(recipe, Bottleneck, (3, 4, 6, 3), 4)


def preactivation_resnet(recipe: Recipe) -> nn.Module:
    """Eight pre-activation blocks."""
    return _residual(recipe, PreActivationBlock, (2, 2, 2, 2), 1)


# --- branches that are joined -----------------------------------------------------------------------------------


class Inception(nn.Module):
    """Four branches; each quantizes its own result, so codes are joined."""

    def __init__(self, recipe: Recipe, inputs: int, counts: tuple[int, ...]) -> None:
        super().__init__()
        one, three_reduce, three, five_reduce, five, pool = map(recipe.channels, counts)
        self.one = self.branch(recipe, (inputs, one, 1))
        self.three = self.branch(recipe, (inputs, three_reduce, 1), (three_reduce, three, 3))
        self.five = self.branch(recipe, (inputs, five_reduce, 1), (five_reduce, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), self.branch(recipe, (inputs, pool, 1)))
        self.outputs = one + three + five + pool

    @staticmethod
    def branch(recipe: Recipe, *convolutions: tuple[int, int, int]) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs, kernel in convolutions:
            layers += [recipe.conv(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs)]
            layers.append(recipe.activation())
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1)


_INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def googlenet(recipe: Recipe) -> nn.Module:
    """Nine inception modules."""
    c = recipe.channels
    layers: list[nn.Module] = [
        recipe.stem(3, c(64), 7, stride=2, padding=3),
        nn.BatchNorm2d(c(64)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        recipe.unit(c(64), c(64), 1),
        recipe.unit(c(64), c(192), 3, padding=1),
        recipe.activation(),
    ]
    inputs = c(192)
    for index, stage in enumerate(_INCEPTIONS):
        if index:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for counts in stage:
            module = Inception(recipe, inputs, counts)
            layers.append(module)
            inputs = module.outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(inputs)]
    return nn.Sequential(*layers, recipe.head(inputs, 10))


class DenseLayer(nn.Module):
    """Two convolutions whose result is joined to their input."""

    def __init__(self, recipe: Recipe, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            recipe.unit(inputs, 4 * growth, 1),
            recipe.activation(),
            recipe.conv(4 * growth, growth, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def densenet121(recipe: Recipe) -> nn.Module:
    """Four blocks of 6, 12, 24 and 16 layers; every layer reads all before it."""
    inputs, growth = recipe.channels(64), recipe.channels(32)
    layers: list[nn.Module] = [
        recipe.stem(3, inputs, 7, stride=2, padding=3),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    for index, count in enumerate((6, 12, 24, 16)):
        if index:
            outputs = inputs // 2
            layers += [nn.BatchNorm2d(inputs), recipe.activation(), recipe.conv(inputs, outputs, 1), nn.AvgPool2d(2)]
            inputs = outputs
        for _ in range(count):
            layers.append(DenseLayer(recipe, inputs, growth))
            inputs += growth
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(inputs)]
    return nn.Sequential(*layers, recipe.head(inputs, 10))


class InvertedResidual(nn.Module):
    """Widen by a quantized 1x1, filter each channel in float, narrow by a quantized 1x1."""

    def __init__(self, recipe: Recipe, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [recipe.unit(inputs, hidden, 1), nn.ReLU6()] if expansion != 1 else []
        self.body = nn.Sequential(
            *widen,
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            recipe.unit(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenetv2(recipe: Recipe) -> nn.Module:
    """Seventeen inverted residuals."""
    inputs = recipe.channels(32)
    layers: list[nn.Module] = [recipe.stem(3, inputs, 3, stride=2, padding=1), nn.BatchNorm2d(inputs), nn.ReLU6()]
    for expansion, count, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for position in range(repeats):
            outputs = recipe.channels(count)
            layers.append(InvertedResidual(recipe, inputs, outputs, 1 if position else stride, expansion))
            inputs = outputs
    last = recipe.channels(1280)
    layers += [recipe.unit(inputs, last, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(last)]
    return nn.Sequential(*layers, recipe.head(last, 10))


# --- recurrence -------------------------------------------------------------------------------------------------


class Lstm(nn.Module):
    """One LSTM cell over a few steps, unrolled: inputs and state are quantized, gates are float."""

    STEPS = 4

    def __init__(self, recipe: Recipe, inputs: int = 24) -> None:
        super().__init__()
        self.size = recipe.channels(64)
        self.input_levels: nn.Module = EightBitInput() if recipe.first == "quantized" else nn.Identity()
        self.input_gates = recipe.linear(inputs, 4 * self.size)
        self.state_levels = SignedLevels(max(2, recipe.activation_bits), 0.4)
        self.state_gates = recipe.linear(self.size, 4 * self.size)
        self.norm = nn.BatchNorm1d(self.size)
        self.head = recipe.head(self.size, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros((x.shape[0], self.size))
        memory = hidden
        for step in range(self.STEPS):
            gates = self.input_gates(self.input_levels(x[:, step])) + self.state_gates(self.state_levels(hidden))
            take, forget, give, candidate = gates.chunk(4, dim=1)
            memory = torch.sigmoid(forget) * memory + torch.sigmoid(take) * torch.tanh(candidate)
            hidden = torch.sigmoid(give) * torch.tanh(memory)
        return self.head(self.norm(hidden))


@dataclass(frozen=True)
class Entry:
    """A network of the zoo: how to make it, its input, and the width that keeps it affordable."""

    make: Callable[[Recipe], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    width: float = 1 / 8


ZOO: dict[str, Entry] = {
    "resnet18": Entry(resnet18),
    "resnet50": Entry(resnet50, width=1 / 16),
    "preactivation_resnet": Entry(preactivation_resnet),
    "vgg16": Entry(vgg16),
    "alexnet": Entry(alexnet, (3, 64, 64)),
    "googlenet": Entry(googlenet),
    "densenet121": Entry(densenet121, width=1 / 8),
    "mobilenetv2": Entry(mobilenetv2, width=1 / 4),
    "lenet": Entry(lenet, (1, 28, 28), 1),
    "mlp": Entry(mlp, (100,), 1 / 4),
    "lstm": Entry(Lstm, (Lstm.STEPS, 24), 1 / 2),
}

SETTINGS: dict[str, tuple[str, int]] = {
    "w1a1": ("binary", 1),
    "w1a2": ("binary", 2),
    "w2a2": ("equispaced2", 2),
    "ternary-a2": ("ternary", 2),
}


def pixels(shape: tuple[int, ...], batch: int, seed: int = 0) -> Tensor:
    """Random multiples of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *shape), generator=generator).float() / 255


def calibrate(net: nn.Module, shape: tuple[int, ...], images: int = 16) -> nn.Module:
    """Give batch norms gammas of both signs (every seventh zero) and statistics measured on random images.

    So activations are mixed at every depth.  Changes the network, and leaves it in eval mode.
    """
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            norm.weight.data += 0.5 * norm.weight.data.sign()
            norm.weight.data[3::7] = 0
            nn.init.normal_(norm.bias, std=0.5)
            norm.momentum = 1.0  # statistics of this one batch
    with torch.no_grad():
        net.train()(pixels(shape, images, seed=1))
    return net.eval()


def build(name: str, setting: str, first: str = "quantized", last: str = "quantized") -> nn.Module:
    """A network of the zoo in eval mode, its weights and batch norms seeded by the arguments.

    Parameters
    ----------
    name : str
        A key of ``ZOO``.
    setting : str
        A key of ``SETTINGS``.
    first, last : {"quantized", "float"}

    Returns
    -------
    nn.Module
    """
    entry = ZOO[name]
    weights, bits = SETTINGS[setting]
    torch.manual_seed(zlib.crc32(f"{name} {setting} {first} {last}".encode()))
    return calibrate(entry.make(Recipe(weights, bits, first, last, entry.width)), entry.shape)
