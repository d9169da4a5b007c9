"""Small float networks for quantization."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import tvmq


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2, self.fc3 = (
            nn.Linear(20, 24),
            nn.BatchNorm1d(24),
            nn.Linear(24, 16),
            nn.Linear(16, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.norm(self.fc1(x))))))


class Convolutions(nn.Module):
    """Strides, dilation, groups, a depthwise layer, padding, a residual sum, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.dilated = nn.Conv2d(12, 12, 3, padding=2, dilation=2, bias=False)
        self.shortcut = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.grouped(x))
        x = torch.relu(self.depthwise(x))
        x = torch.relu(self.dilated(x) + self.shortcut(x))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Shared(nn.Module):
    """One layer that is used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(10, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        return self.last(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


SHAPES = {Mlp: (20,), Convolutions: (3, 9, 9), Shared: (10,), Recurrent: (5, 6)}


def make(kind: type[nn.Module], samples: int = 96, seed: int = 0) -> tuple[nn.Module, tvmq.Model, np.ndarray]:
    """A network in eval mode with plausible batch norms, as torch has it and loaded, and calibration data."""
    torch.manual_seed(seed)
    network = kind()
    x = torch.randn(samples, *SHAPES[kind])
    with torch.no_grad():
        network.train()(x)
    network.eval()
    batch = torch.export.Dim("batch", min=1)
    dynamic = kind is not Recurrent
    example = x[:4] if dynamic else x[:8]
    source = torch.export.export(network, (example,), dynamic_shapes=((({0: batch}),) if dynamic else None))
    return network, tvmq.load(source), x.numpy()
