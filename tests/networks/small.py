"""Small networks of everything that is lowered: bits, bytes, learned bases, sums, joins, and every geometry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import tvmq


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms with negative and zero gammas, and statistics that keep signs mixed."""
    torch.manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            norm.weight.data[::5] = 0
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_(0, 3)
            norm.running_var.uniform_(1, 40)
    return module.eval()


def convnet(channels: int = 1) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 24, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(24),
        nn.Hardtanh(),
        nn.Conv2d(24, 70, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(70),
        nn.Hardtanh(),
        nn.Conv2d(70, 33, 1),
        nn.BatchNorm2d(33),
        nn.Hardtanh(),
        nn.Flatten(),
        nn.Linear(33 * 9, 50),
        nn.BatchNorm1d(50),
        nn.Hardtanh(),
        nn.Linear(50, 10),
        nn.BatchNorm1d(10),
    )


class Residual(nn.Module):
    """Two binary convolutions around which the float value is added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.norm1(self.conv1(x)) + x
        x = self.norm2(self.conv2(x)) + x
        return self.head(x.mean(dim=(2, 3)))


class Concat(nn.Module):
    """Two binary branches, joined."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 1)
        self.norm = nn.BatchNorm2d(20)
        self.last = nn.Conv2d(20, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))


def images(batch: int, channels: int = 1, size: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, channels, size, size), generator=generator).float() / 255


def prepared(module: nn.Module, **options) -> nn.Module:
    return tvmq.prepare(randomize(module), tvmq.QNN(**options)).eval()


ACTIVATION_BASES = {1: [0.7], 2: [0.4, 1.1], 3: [0.3, 0.55, 1.3]}


class Quantize(nn.Module):
    """LQ-Nets' activation quantizer with a frozen basis: levels are subset sums, thresholds their midpoints."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        codes = np.arange(2**bits)
        basis = np.array(ACTIVATION_BASES[bits])
        self.levels = np.sort(((codes[:, None] >> np.arange(bits)) & 1) @ basis).astype(np.float32)
        self.thresholds = (self.levels[1:] + self.levels[:-1]) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = np.diff(self.levels)
        result = torch.where(x > float(self.thresholds[0]), float(steps[0]), 0.0)
        for threshold, step in zip(self.thresholds[1:], steps[1:], strict=True):
            result = result + torch.where(x > float(threshold), float(step), 0.0)
        return result


def learned_weight(random: np.random.Generator, bits: int, *shape: int) -> torch.Tensor:
    """Signs times a basis of each output channel."""
    basis = random.uniform(0.5, 1, (shape[0], bits)) * 1.7 ** np.arange(bits)
    signs = random.choice([-1.0, 1.0], (*shape, bits))
    return torch.tensor((signs * basis.reshape(shape[0], *[1] * (len(shape) - 1), bits)).sum(-1).astype(np.float32))


class LearnedBases(nn.Module):
    """Two convolutions and a dense layer, with a residual sum."""

    def __init__(self, weight_bits: int, activation_bits: int) -> None:
        super().__init__()
        random = np.random.default_rng(10 * weight_bits + activation_bits)
        torch.manual_seed(0)
        self.quantize = Quantize(activation_bits)
        self.weights = nn.ParameterList(
            [
                nn.Parameter(learned_weight(random, weight_bits, *shape))
                for shape in ((20, 20, 3, 3), (20, 20, 3, 3), (10, 20 * 36))
            ]
        )
        self.norm = nn.BatchNorm2d(20)
        nn.init.normal_(self.norm.weight)
        self.norm.running_var.fill_(200.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(torch.conv2d(self.quantize(x), self.weights[0], padding=1)))
        y = torch.conv2d(self.quantize(y), self.weights[1], padding=1) * 0.05 + x
        return torch.nn.functional.linear(self.quantize(torch.relu(y)).flatten(1), self.weights[2])


class Layers(nn.Module):
    """Convolutions of every geometry and a dense layer, after any quantizer and with any weights."""

    GEOMETRIES = ((3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 2, 2), (1, 1, 0, 1))

    def __init__(self, quantize: nn.Module, weight: Callable[..., np.ndarray]) -> None:
        super().__init__()
        self.quantize = quantize
        self.kernels = nn.ParameterList(
            [nn.Parameter(torch.tensor(weight(9, 20, size, size))) for size, *_ in self.GEOMETRIES]
        )
        self.matrix = nn.Parameter(torch.tensor(weight(7, 20 * 63)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.quantize(x)
        images = [
            torch.conv2d(x, kernel, stride=stride, padding=padding, dilation=dilation)
            for kernel, (_, stride, padding, dilation) in zip(self.kernels, self.GEOMETRIES, strict=True)
        ]
        return (*images, self.quantize(images[0] - 0.0123), torch.nn.functional.linear(x.flatten(1), self.matrix))


class Sign(nn.Module):
    """-1 or 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


class Shifted(Quantize):
    """A learned basis whose lowest level is not 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) - 0.63


def signs_of_a_basis(*shape: int) -> np.ndarray:
    return learned_weight(np.random.default_rng(0), 2, *shape).numpy()


def sums_with_an_offset(*shape: int) -> np.ndarray:
    """Neither symmetric nor with 0 at code 0."""
    offset = np.random.default_rng(1).normal(size=(shape[0], *[1] * (len(shape) - 1)))
    return (signs_of_a_basis(*shape) + offset).astype(np.float32)


def one_codebook(*shape: int) -> np.ndarray:
    random = np.random.default_rng(len(shape))
    return random.choice(random.normal(size=16), shape).astype(np.float32)


def codebooks(*shape: int) -> np.ndarray:
    """Five levels of each output channel."""
    random = np.random.default_rng(len(shape))
    levels = random.normal(size=(shape[0], 5)).astype(np.float32)
    picked = random.integers(0, 5, shape).reshape(shape[0], -1)
    return np.take_along_axis(levels, picked, axis=1).reshape(shape)
