"""Quantizers of the forward pass, and the gradients that stand in for theirs.

A sign has no useful derivative, so training replaces it by an estimate: the forward pass quantizes, the backward pass
pretends that it did not.  Each quantizer exists twice: as plain operators (``sign``, ``round_to_8_bits``), which is
what evaluation, export and the compiler see, and as an autograd function, which computes the same values and adds the
estimated gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = [
    "ActivationSign",
    "RoundTo8Bits",
    "StochasticSign",
    "WeightSign",
    "round_to_8_bits",
    "sign",
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


class ActivationSign(Function):
    """:func:`sign` with a straight-through gradient where ``|x| <= 1``, and none outside.

    The mask is the derivative of hardtanh: outside it the sign is saturated, and a gradient would only push x further.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Binarize."""
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Pass the gradient where ``|x| <= 1``."""
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * (x.abs() <= 1)


class WeightSign(Function):
    """:func:`sign` with an unmasked straight-through gradient, for latent weights.

    Weights are clipped to [-1, 1] after each step instead: a mask would leave a weight that reached the edge stuck.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Binarize."""
        return sign(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Pass the gradient unchanged."""
        return grad_outputs[0]


class StochasticSign(Function):
    """+1 with probability ``clip((x + 1) / 2, 0, 1)``, else -1; gradient as in :class:`ActivationSign`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Draw a sign for every element from torch's global generator."""
        ctx.save_for_backward(x)
        probability = torch.clamp((x + 1) / 2, 0.0, 1.0)
        # rand lies in [0, 1): probability 0 never draws +1, and probability 1 always does.
        return torch.where(torch.rand_like(x) < probability, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Pass the gradient where ``|x| <= 1``."""
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * (x.abs() <= 1)


class RoundTo8Bits(Function):
    """:func:`round_to_8_bits` with a straight-through gradient where ``0 <= x <= 1``, and none outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Round."""
        ctx.save_for_backward(x)
        return round_to_8_bits(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Pass the gradient where x was not clamped."""
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * ((x >= 0) & (x <= 1))
