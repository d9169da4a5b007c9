"""Roundings of the forward pass, and the gradients that stand in for theirs.

A staircase has no useful derivative, so training replaces it by an estimate: the forward pass quantizes, the backward
pass pretends that it did not (:func:`straight_through`).  The roundings themselves are plain operators, which is what
evaluation, export and the compiler see; those that draw at random are for training only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = [
    "ap2",
    "drawn_linear",
    "drawn_power_of_two",
    "drawn_sign",
    "linear",
    "powers_of_two",
    "quantized_gradient",
    "round_to_8_bits",
    "sign",
    "staircase",
    "straight_through",
]


def sign(x: Tensor) -> Tensor:
    """-1 where x is negative, +1 elsewhere; zero counts as positive, unlike in :func:`torch.sign`.

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype.

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    signs = torch.where(x >= 0, 1.0, -1.0)
    # No conversion in the usual case: an exported graph should hold nothing but the comparison and the choice.
    return signs if signs.dtype == x.dtype else signs.to(x.dtype)


def drawn_sign(x: Tensor) -> Tensor:
    """+1 with probability ``clip((x + 1) / 2, 0, 1)``, else -1 (QNN, eq. 2).

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype.

    Returns
    -------
    Tensor
        Of the same shape and dtype; drawn from torch's global generator.
    """
    probability = torch.clamp((x + 1) / 2, 0.0, 1.0)
    # rand lies in [0, 1): probability 0 never draws +1, and probability 1 always does.
    return torch.where(torch.rand_like(x) < probability, 1.0, -1.0).to(x.dtype)


def round_to_8_bits(x: Tensor) -> Tensor:
    """The nearest multiple of 1/255 in [0, 1]; halves round up, values outside are clamped.

    ``k / 255`` in float32 gives the code ``k`` back exactly, so pixels of 8 bits pass through unchanged but for the
    last bit of the mantissa.

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype.

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    return torch.clamp(torch.floor(x * 255.0 + 0.5), 0.0, 255.0) * (1.0 / 255.0)


def linear_grid(bits: int, signed: bool) -> tuple[float, int, int]:
    """Levels per unit, and the lowest and highest level, of :func:`linear`."""
    if signed:
        return 2.0 ** (bits - 1), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 2.0**bits - 1, 0, 2**bits - 1


def linear(x: Tensor, bits: int, signed: bool) -> Tensor:
    """The nearest of ``2**bits`` equispaced levels (QNN's LinearQuant); halves go to the even level.

    Signed levels are the multiples of ``2**(1 - bits)`` in [-1, 1), those of two's complement; unsigned ones are the
    multiples of ``1 / (2**bits - 1)`` in [0, 1].

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype.
    bits : int
    signed : bool

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    per_unit, lowest, highest = linear_grid(bits, signed)
    return torch.clamp(torch.round(x * per_unit), lowest, highest) * (1.0 / per_unit)


def drawn_linear(x: Tensor, bits: int, signed: bool) -> Tensor:
    """One of the two levels of :func:`linear` around each value, drawn so that the mean is the value.

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype.
    bits : int
    signed : bool

    Returns
    -------
    Tensor
        Of the same shape and dtype; drawn from torch's global generator.
    """
    per_unit, lowest, highest = linear_grid(bits, signed)
    return torch.clamp(torch.floor(x * per_unit + torch.rand_like(x)), lowest, highest) * (1.0 / per_unit)


def ap2(x: Tensor) -> Tensor:
    """The power of two nearest in the logarithm, ``sign(x) * 2 ** round(log2 |x|)``; 0 for 0 (QNN, eq. 9).

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype.

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    powers = torch.exp2(torch.round(torch.log2(x.abs())))
    return torch.where(x == 0, torch.zeros_like(x), torch.copysign(powers, x))


def magnitudes(bits: int, signed: bool) -> list[float]:
    """The positive levels of :func:`powers_of_two`, ascending.

    Zero takes one of the ``2**bits`` codes; with signs, one more stays unused.
    """
    count = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return [2.0**-exponent for exponent in reversed(range(count))]


def powers_of_two(x: Tensor, bits: int, signed: bool) -> Tensor:
    """The nearest, in the logarithm, of zero and the powers of two up to 1 (QNN's LogQuant).

    A value between two powers goes to the one that :func:`ap2` gives.  What that puts below the smallest level is zero.

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype.
    bits : int
        At least 2 with signs.
    signed : bool

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    positive = magnitudes(bits, signed)
    edges = [level * math.sqrt(0.5) for level in positive]
    if signed:
        negative = [-level for level in reversed(positive)]
        return staircase(x, [-edge for edge in reversed(edges)] + edges, [*negative, 0.0, *positive])
    return staircase(x, edges, [0.0, *positive])


def drawn_power_of_two(x: Tensor, bits: int, signed: bool) -> Tensor:
    """One of the two levels of :func:`powers_of_two` around each value, drawn so that the mean is the value.

    Parameters
    ----------
    x : Tensor
        Of any shape and floating dtype; values outside of [-1, 1], or [0, 1], are clamped.
    bits : int
        At least 2 with signs.
    signed : bool

    Returns
    -------
    Tensor
        Of the same shape and dtype; drawn from torch's global generator.
    """
    clamped = torch.clamp(x, -1.0 if signed else 0.0, 1.0)
    magnitude = clamped.abs()
    smallest = magnitudes(bits, signed)[0]
    below = torch.exp2(torch.floor(torch.log2(magnitude.clamp(min=smallest))))
    # Under the smallest power the two levels are zero and that power.
    below = torch.where(magnitude < smallest, torch.zeros_like(below), below)
    above = torch.where(below == 0, torch.full_like(below, smallest), 2 * below)
    drawn = torch.where(torch.rand_like(x) * (above - below) < magnitude - below, above, below)
    return torch.copysign(drawn, clamped)


def staircase(x: Tensor, thresholds: Any, levels: Any) -> Tensor:
    """The level that belongs to each value: ``levels[number of thresholds below it]``.

    Written as the largest level whose threshold lies below, so that the values are the levels themselves and not sums
    of steps, and that the graph holds comparisons and maxima only.

    Parameters
    ----------
    x : Tensor
        Of any shape.
    thresholds : sequence of L - 1 numbers or tensors
        Ascending; tensors are broadcast to ``x``.
    levels : sequence of L numbers or tensors
        Ascending.

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    lowest = levels[0]
    result = torch.where(x > thresholds[0], levels[1], lowest)
    for threshold, level in zip(thresholds[1:], levels[2:], strict=True):
        result = torch.maximum(result, torch.where(x > threshold, level, lowest))
    return result if result.dtype == x.dtype else result.to(x.dtype)


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * ((x >= ctx.low) & (x <= ctx.high)), None, None, None


class _Identity(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0], None


def straight_through(
    x: Tensor, quantized: Tensor, low: float | Tensor | None = None, high: float | Tensor | None = None
) -> Tensor:
    """``quantized``, whose gradient goes to ``x`` where it lies between two bounds, and nowhere else (QNN, eq. 4).

    Outside, a quantizer is saturated, and a gradient would only push x further: for a sign the mask is the derivative
    of hardtanh.  Latent weights have no bounds: a mask would leave a weight that reached the edge stuck.

    Parameters
    ----------
    x : Tensor
        Of any shape.
    quantized : Tensor
        Of the same shape.
    low, high : float or scalar Tensor, optional
        Bounds, themselves included; both or neither.

    Returns
    -------
    Tensor
        The values of ``quantized``.
    """
    quantized = quantized.detach()
    return _Identity.apply(x, quantized) if low is None else _StraightThrough.apply(x, quantized, low, high)


class _QuantizedGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, rounding: str) -> Tensor:
        ctx.bits, ctx.rounding = bits, rounding
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _round_gradient(grad_outputs[0], ctx.bits, ctx.rounding), None, None


def quantized_gradient(x: Tensor, bits: int, rounding: str = "linear") -> Tensor:
    """``x`` unchanged, whose gradient is rounded to few levels at random on its way back (QNN, section 3.3).

    The levels are scaled to the tensor's largest gradient, and the mean over all draws is the gradient itself.
    "linear": ``2**bits - 1`` equispaced levels, zero among them; one bit draws between plus and minus the largest.
    "log": zero and powers of two times the largest.

    Parameters
    ----------
    x : Tensor
        Of any shape.
    bits : int
        1 to 8; at least 2 for "log".
    rounding : {"linear", "log"}

    Returns
    -------
    Tensor
        ``x``.
    """
    return _QuantizedGradient.apply(x, bits, rounding)


def _round_gradient(gradient: Tensor, bits: int, rounding: str) -> Tensor:
    largest = gradient.abs().amax()
    # All zero: divided by one, they stay zero.
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    unit = gradient / scale
    if bits == 1:
        return drawn_sign(unit) * largest
    if rounding == "log":
        return drawn_power_of_two(unit, bits, signed=True) * largest
    levels = 2 ** (bits - 1) - 1
    return torch.clamp(torch.floor(unit * levels + torch.rand_like(unit)), -levels, levels) * (scale / levels)
