"""QNN's quantizers as modules: what a layer does to its weights and to its input.

A quantizer in training mode adds the estimated gradient, and may draw at random; in eval mode it is plain operators on
the same levels.

Weights of one bit are signs.  With more bits the paper's levels span [-1, 1), the range that it also initialises and
clips weights to.  Weights of other networks live on another scale, so here the range follows them: it is a multiple of
their root mean square, for linear levels the one with the smallest mean squared error for weights of a normal
distribution, ``1.5 + 0.3 * bits`` (which is within 1 % of the best multiple for 2 to 8 bits), and for powers of two
the nearest power of two to such a multiple.
The range is a buffer, renewed by every step of training, so that evaluation and export see a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvmq.nn.estimators import (
    ap2,
    drawn_linear,
    drawn_power_of_two,
    drawn_sign,
    linear,
    powers_of_two,
    round_to_8_bits,
    sign,
    straight_through,
)

__all__ = [
    "BinaryActivation",
    "BinaryWeight",
    "EightBitInput",
    "FloatActivation",
    "LinearActivation",
    "LinearWeight",
    "LogActivation",
    "LogWeight",
    "Quantizer",
]

LOG_RANGES = {2: 1.1, 3: 2.0}
"""The largest power of two over the root mean square of weights of a normal distribution, for the smallest error."""
WIDE_LOG_RANGE = 4.2
"""The same with 4 bits or more."""


class Quantizer(nn.Module):
    """Maps values to few levels.

    Attributes
    ----------
    bits : int
    clips : bool
        Whether latent weights belong into [-1, 1], the range of binary weights.
    """

    bits: int
    clips = False

    def extra_repr(self) -> str:
        """Show the bits."""
        return f"bits={self.bits}"


class BinaryWeight(Quantizer):
    """-1 and +1, with a gradient that passes unchanged."""

    bits = 1
    clips = True

    def forward(self, weight: Tensor) -> Tensor:
        """Signs of weights of any shape."""
        return straight_through(weight, sign(weight)) if self.training else sign(weight)


class BinaryActivation(Quantizer):
    """-1 and +1, with a gradient within [-1, 1].

    Parameters
    ----------
    stochastic : bool
        Draw while training.
    """

    bits = 1

    def __init__(self, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def forward(self, x: Tensor) -> Tensor:
        """Signs of values of any shape."""
        if not self.training:
            return sign(x)
        return straight_through(x, drawn_sign(x) if self.stochastic else sign(x), -1.0, 1.0)


class EightBitInput(Quantizer):
    """The multiples of 1/255 in [0, 1], with a gradient within."""

    bits = 8

    def forward(self, x: Tensor) -> Tensor:
        """Rounded pixels of any shape."""
        rounded = round_to_8_bits(x)
        return straight_through(x, rounded, 0.0, 1.0) if self.training else rounded


class FloatActivation(Quantizer):
    """Values as they are."""

    bits = 32

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return x


class _RangedWeight(Quantizer):
    range: Tensor

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("range", self.fitted_range(weight))

    def fitted_range(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def rounded(self, unit: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded weights of any shape, with a gradient that passes unchanged."""
        if not self.training:
            return self.rounded(weight / self.range) * self.range
        with torch.no_grad():
            self.range.copy_(self.fitted_range(weight))
        return straight_through(weight, self.rounded(weight.detach() / self.range) * self.range)


class LinearWeight(_RangedWeight):
    """Equispaced levels, those of two's complement.

    Parameters
    ----------
    bits : int
        2 to 8.
    weight : Tensor
        The weights; their root mean square sets the range.
    """

    def fitted_range(self, weight: Tensor) -> Tensor:
        """Value of the level after the highest one."""
        return _positive(_root_mean_square(weight) * (1.5 + 0.3 * self.bits))

    def rounded(self, unit: Tensor) -> Tensor:
        """The nearest level in [-1, 1)."""
        return linear(unit, self.bits, signed=True)


class LogWeight(_RangedWeight):
    """Zero, and plus and minus powers of two.

    Parameters
    ----------
    bits : int
        2 to 8.
    weight : Tensor
        The weights; their root mean square sets the range.
    """

    def fitted_range(self, weight: Tensor) -> Tensor:
        """The largest level, a power of two."""
        return _positive(ap2(_root_mean_square(weight) * LOG_RANGES.get(self.bits, WIDE_LOG_RANGE)))

    def rounded(self, unit: Tensor) -> Tensor:
        """The nearest level in [-1, 1]."""
        return powers_of_two(unit, self.bits, signed=True)


def _root_mean_square(weight: Tensor) -> Tensor:
    return weight.detach().square().mean().sqrt()


def _positive(value: Tensor) -> Tensor:
    """One instead of zero, so that weights that are all zero stay so."""
    return torch.where(value > 0, value, torch.ones_like(value))


class _Activation(Quantizer):
    def __init__(self, bits: int, signed: bool = True, stochastic: bool = False) -> None:
        super().__init__()
        self.bits, self.signed, self.stochastic = bits, signed, stochastic

    def rounded(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def drawn(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Rounded values of any shape, with a gradient within [-1, 1], or [0, 1]."""
        if not self.training:
            return self.rounded(x)
        rounded = self.drawn(x) if self.stochastic else self.rounded(x)
        return straight_through(x, rounded, -1.0 if self.signed else 0.0, 1.0)


class LinearActivation(_Activation):
    """Equispaced levels, with a gradient within their range.

    Parameters
    ----------
    bits : int
        1 to 8.
    signed : bool
        Levels on both sides of zero, for hardtanh and tanh; else from zero on, for ReLU.
    stochastic : bool
        Draw while training.
    """

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest level."""
        return linear(x, self.bits, self.signed)

    def drawn(self, x: Tensor) -> Tensor:
        """One of the two levels around."""
        return drawn_linear(x, self.bits, self.signed)


class LogActivation(_Activation):
    """Zero and powers of two, with a gradient within their range.

    Parameters
    ----------
    bits : int
        1 to 8; at least 2 with signs.
    signed : bool
        Levels on both sides of zero, for hardtanh and tanh; else from zero on, for ReLU.
    stochastic : bool
        Draw while training.
    """

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest level."""
        return powers_of_two(x, self.bits, self.signed)

    def drawn(self, x: Tensor) -> Tensor:
        """One of the two levels around."""
        return drawn_power_of_two(x, self.bits, self.signed)
