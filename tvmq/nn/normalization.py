"""Batch norm without multiplications: every factor is replaced by the nearest power of two (QNN, algorithm 2).

With ``c = x - mean(x)`` and AP2 the nearest power of two,

    var = mean(c * AP2(c)) + eps,   s = AP2(1 / sqrt(var))
    y   = c * s * AP2(gamma) + beta

so that every product is a shift.  The gradient is that of the usual batch norm in which the normalised values are
powers of two as well: with ``n = AP2(c * s)`` and ``g = grad * AP2(gamma)``,

    grad_x     = s * (g - mean(g) - n * mean(g * n))
    grad_gamma = sum(grad * n),   grad_beta = sum(grad)

In eval mode mean and ``1 / sqrt(var)`` are moving averages, of which the nearest power of two is taken when the mode is
entered: the layer is one shift and one sum per channel, and both are constants for an exporter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from tvmq.errors import InputError
from tvmq.nn.estimators import ap2

__all__ = ["ShiftBatchNorm1d", "ShiftBatchNorm2d"]


class _ShiftNormalize(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, axes: tuple[int, ...], eps: float) -> Any:
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        mean = x.mean(axes, keepdim=True)
        centered = x - mean
        deviation = 1 / torch.sqrt((centered * ap2(centered)).mean(axes, keepdim=True) + eps)
        scale = ap2(deviation)
        factor = ap2(gamma).reshape(shape)
        ctx.save_for_backward(ap2(centered * scale), scale, factor)
        ctx.axes = axes
        ctx.mark_non_differentiable(mean, deviation)
        return centered * scale * factor + beta.reshape(shape), mean, deviation

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        normalized, scale, factor = ctx.saved_tensors
        grad, axes = grad_outputs[0], ctx.axes
        scaled = grad * factor
        along = (scaled * normalized).mean(axes, keepdim=True)
        grad_x = scale * (scaled - scaled.mean(axes, keepdim=True) - normalized * along)
        return grad_x, (grad * normalized).sum(axes), grad.sum(axes), None, None


class _ShiftBatchNorm(nn.Module):
    dimensions: tuple[int, ...]
    running_mean: Tensor
    running_inverse: Tensor
    factor: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.125) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_inverse", torch.ones(num_features))
        self.register_buffer("factor", torch.ones(num_features))

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"

    def train(self, mode: bool = True) -> nn.Module:
        """Enter training mode, or eval mode, for which the factors are fixed."""
        if not mode:
            with torch.no_grad():
                self.factor.copy_(ap2(self.running_inverse) * ap2(self.weight))
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the channels, which are the second dimension of ``x``."""
        if x.ndim not in self.dimensions:
            raise InputError(f"{type(self).__name__}: a {x.ndim}-D tensor is not supported")
        if self.training:
            axes = (0, *range(2, x.ndim))
            y, mean, inverse = _ShiftNormalize.apply(x, self.weight, self.bias, axes, self.eps)
            with torch.no_grad():
                self.running_mean.lerp_(mean.flatten(), self.momentum)
                self.running_inverse.lerp_(inverse.flatten(), self.momentum)
            return y
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - self.running_mean.reshape(shape)) * self.factor.reshape(shape) + self.bias.reshape(shape)


class ShiftBatchNorm1d(_ShiftBatchNorm):
    """Shift-based batch norm of values ``[batch, features]`` or ``[batch, features, length]``.

    Parameters
    ----------
    num_features : int
    eps : float
        Added to the variance.
    momentum : float
        Weight of a batch in the moving averages.
    """

    dimensions = (2, 3)


class ShiftBatchNorm2d(_ShiftBatchNorm):
    """Shift-based batch norm of images ``[batch, channels, height, width]``.

    Parameters
    ----------
    num_features : int
    eps : float
        Added to the variance.
    momentum : float
        Weight of a batch in the moving averages.
    """

    dimensions = (4,)
