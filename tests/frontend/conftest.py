"""Networks that every way of loading must agree on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import NamedTuple

import onnx
import pytest
import torch
from torch import nn


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = nn.Conv2d(4, 8, 5)
        self.fc1 = nn.Linear(8 * 2 * 2, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.nn.functional.avg_pool2d(torch.relu(self.conv2(x)), 2)
        return torch.softmax(self.fc2(torch.relu(self.fc1(x.flatten(1)))), 1)


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 12)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
            layers += [nn.Hardtanh(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(12 * 2 * 2, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer1 = nn.Sequential(Block(6, 6, 1), Block(6, 8, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.layer1(self.stem(x))), 1))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.join = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([torch.relu(self.left(x)), torch.sign(self.right(x))], 1)
        return self.join(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 9, 1, bias=False)
        self.bn = nn.BatchNorm2d(9)
        self.depthwise = nn.Conv2d(9, 9, 3, stride=2, padding=1, groups=9)
        self.project = nn.Conv2d(9, 6, 1, groups=3)
        self.act = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn(self.expand(x) * 4))
        return self.project(self.act(self.depthwise(x))).mean((2, 3))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 20)
        self.bn1 = nn.BatchNorm1d(20)
        self.fc2 = nn.Linear(20, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.bn1(self.fc1(x)).clamp(0, 2))


class Windows(nn.Module):
    """Strides, paddings and dilations that differ between the axes, and pooling with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(0, 3), dilation=(1, 2))
        self.deep = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.MaxPool2d(3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.wide(nn.functional.pad(x, (1, 2, 0, 1))))
        return nn.functional.avg_pool2d(self.deep(x), 3, 2, 1, count_include_pad=False).flatten(1)


class Elementwise(nn.Module):
    """What quantizers are made of, written out; the weight goes through one as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.round(x.clamp(-1, 1) * 3) / 3
        weight = torch.where(self.conv.weight >= 0, 0.5, -0.5)
        y = nn.functional.conv2d(x, weight, self.conv.bias)
        return torch.floor(y * 8) - 1


class Case(NamedTuple):
    """A network in evaluation mode, the shape of one sample, and the names of its layers."""

    module: nn.Module
    shape: tuple[int, ...]
    layers: list[str]


_CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "lenet": (LeNet, (1, 16, 16), ["conv1", "conv2", "fc1", "fc2"]),
    "vgg": (Vgg, (3, 8, 8), ["features.0", "features.4", "classifier.1"]),
    "resnet": (
        ResNet,
        (3, 8, 8),
        ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer1.1.shortcut.0", "fc"],
    ),
    "concat": (Concat, (3, 6, 6), ["left", "right", "join"]),
    "mobilenet": (MobileNet, (3, 8, 8), ["expand", "depthwise", "project"]),
    "mlp": (Mlp, (12,), ["fc1", "fc2"]),
    "windows": (Windows, (2, 13, 11), ["wide", "deep"]),
    "elementwise": (Elementwise, (2, 6, 6), ["conv"]),
}


def randomize(module: nn.Module) -> nn.Module:
    """Batch normalization as after training: every statistic and parameter counts, some scales are negative."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module.eval()


@pytest.fixture(params=sorted(_CASES))
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(7)
    build, shape, layers = _CASES[request.param]
    return Case(randomize(build()), shape, layers)


@pytest.fixture
def to_onnx() -> Callable[..., onnx.ModelProto]:
    def export(module: nn.Module, inputs: tuple[torch.Tensor, ...], dynamic: bool = False) -> onnx.ModelProto:
        file = io.BytesIO()
        names = [f"input.{index}" for index in range(len(inputs))]
        axes = {name: {0: "N"} for name in names} if dynamic else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter announces its own retirement
            torch.onnx.export(module, inputs, file, dynamo=False, input_names=names, dynamic_axes=axes)
        return onnx.load_from_string(file.getvalue())

    return export
