"""Layers whose weights lie on a low-bit alphabet and activations that are staircases, as plain torch operators.

Nothing here knows the compiler: ``torch.export`` gives ordinary graphs, and quantizers have to be found in them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .alphabets import ALPHABETS


def alphabet_weight(alphabet: str, shape: tuple[int, ...], scale: Tensor, generator: torch.Generator) -> Tensor:
    """A random weight on an alphabet.

    Parameters
    ----------
    alphabet : str
        A key of ``ALPHABETS``.
    shape : tuple of int
        ``(outputs, ...)``.
    scale : Tensor
        Of shape ``()`` or ``(outputs,)``.
    generator : torch.Generator

    Returns
    -------
    Tensor
    """
    levels = torch.tensor(ALPHABETS[alphabet], dtype=torch.float32)
    units = levels[torch.randint(len(levels), shape, generator=generator)]
    return units * scale.reshape(-1, *([1] * (len(shape) - 1)))


def _scale(fan_in: int, alphabet: str, outputs: int, per_channel: bool, generator: torch.Generator) -> Tensor:
    """Scales that keep sums of the order of 1, all different or all equal."""
    deviation = torch.tensor(ALPHABETS[alphabet], dtype=torch.float32).std()
    jitter = 0.5 + torch.rand(outputs if per_channel else 1, generator=generator)
    return jitter / (deviation * fan_in**0.5)


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weight is constant and already quantized.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`torch.nn.Conv2d`.
    alphabet : str
        A key of ``ALPHABETS``.
    per_channel : bool
        One scale per output channel instead of one for all.
    seed : int
    """

    def __init__(
        self, *args: Any, alphabet: str = "binary", per_channel: bool = True, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        quantize_(self, alphabet, per_channel, seed)


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is constant and already quantized; parameters as for :class:`QuantizedConv2d`."""

    def __init__(
        self, *args: Any, alphabet: str = "binary", per_channel: bool = True, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        quantize_(self, alphabet, per_channel, seed)


def quantize_(layer: nn.Conv2d | nn.Linear, alphabet: str, per_channel: bool, seed: int) -> None:
    """Replace a layer's weight by a random one on an alphabet, and its bias by small numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(layer.weight.shape)
    scale = _scale(layer.weight[0].numel(), alphabet, shape[0], per_channel, generator)
    with torch.no_grad():
        layer.weight.copy_(alphabet_weight(alphabet, shape, scale, generator))
        if layer.bias is not None:
            layer.bias.copy_(0.2 * torch.randn(shape[0], generator=generator))


class Sign(nn.Module):
    """-1 or 1; zero counts as positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


class UnsignedLevels(nn.Module):
    """ReLU, then multiples 0 .. 2**bits - 1 of a step."""

    def __init__(self, bits: int, step: float) -> None:
        super().__init__()
        self.bits, self.step = bits, step

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.round(torch.relu(x) / self.step), 0, 2**self.bits - 1) * self.step


class SignedLevels(nn.Module):
    """Multiples -2**(bits - 1) .. 2**(bits - 1) - 1 of a step."""

    def __init__(self, bits: int, step: float) -> None:
        super().__init__()
        self.bits, self.step = bits, step

    def forward(self, x: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        return torch.clamp(torch.round(x / self.step), -half, half - 1) * self.step


class EightBitInput(nn.Module):
    """Pixels in [0, 1] as multiples of 1/255; halves round up."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.floor(x * 255.0 + 0.5), 0.0, 255.0) * (1.0 / 255.0)


def activation(bits: int) -> nn.Module:
    """What stands between two layers: a sign for one bit, else unsigned levels that cover most of a unit normal."""
    return Sign() if bits == 1 else UnsignedLevels(bits, 2.1 / (2**bits - 1))
