"""Convolution and linear layer that quantize their weights, their input and the gradient of their output.

In eval mode a layer is plain operators only: the input's quantizer, the weights' one, and the ordinary convolution or
linear operator.  Exporters therefore give standard graphs, and the compiler recognises the layer by what it computes,
not by its class.  Padding is the convolution's own: zeros, which are neither of the two values of a binary activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tvmq.errors import InputError
from tvmq.nn.estimators import quantized_gradient
from tvmq.nn.quantizers import Quantizer

__all__ = ["GradientQuantizer", "QuantizedConv2d", "QuantizedLayer", "QuantizedLinear", "quantized_layers"]


@dataclass(frozen=True)
class GradientQuantizer:
    """How the gradient of a layer's output is rounded on its way back.

    See :func:`tvmq.nn.estimators.quantized_gradient`.

    Parameters
    ----------
    bits : int
    rounding : {"linear", "log"}
    """

    bits: int
    rounding: str = "linear"

    def __call__(self, x: Tensor) -> Tensor:
        """``x``, whose gradient will be rounded."""
        return quantized_gradient(x, self.bits, self.rounding)


class QuantizedLayer(nn.Module):
    """What all quantized layers share.

    Attributes
    ----------
    gradient_quantizer : GradientQuantizer or None
    frozen : bool
        Set by :func:`tvmq.nn.freeze`: the weights lie on their levels already and are used as they are.
    """

    gradient_quantizer: GradientQuantizer | None
    frozen: bool

    def weights(self) -> dict[str, Quantizer]:
        """The quantizers of the latent weights, by the names of the parameters."""
        raise NotImplementedError

    def quantized_weight(self, name: str) -> Tensor:
        """A weight on its levels, with the estimated gradient while training."""
        weight = getattr(self, name)
        return weight if self.frozen else self.weights()[name](weight)

    def with_gradient(self, output: Tensor) -> Tensor:
        """The layer's output, whose gradient is quantized if the layer says so."""
        return output if self.gradient_quantizer is None or not self.training else self.gradient_quantizer(output)


class _WeightedLayer(QuantizedLayer):
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_quantizer: Quantizer
    input_quantizer: Quantizer

    def weights(self) -> dict[str, Quantizer]:
        """The quantizer of the weight."""
        return {"weight": self.weight_quantizer}

    def take_over(
        self, layer: nn.Module, weight: Quantizer, activation: Quantizer, gradient: GradientQuantizer | None
    ) -> None:
        """Use the very parameters of a float layer, so that parameters which layers share stay shared."""
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.input_quantizer, self.gradient_quantizer = weight, activation, gradient
        self.frozen = False
        self.train(layer.training)


class QuantizedConv2d(_WeightedLayer, nn.Conv2d):
    """A :class:`torch.nn.Conv2d` with quantized weights and a quantized input.

    Parameters
    ----------
    layer : nn.Conv2d
        Its geometry and its very parameters are taken over, as latent weights and bias; itself it is not changed.
    weight : Quantizer
        Of the weights.
    activation : Quantizer
        Of the input.
    gradient : GradientQuantizer, optional
        Of the output's gradient.
    """

    def __init__(
        self, layer: nn.Conv2d, weight: Quantizer, activation: Quantizer, gradient: GradientQuantizer | None = None
    ) -> None:
        geometry = ("stride", "padding", "dilation", "groups", "padding_mode")
        options: dict[str, Any] = {name: getattr(layer, name) for name in geometry}
        nn.Conv2d.__init__(self, layer.in_channels, layer.out_channels, layer.kernel_size, device="meta", **options)
        self.take_over(layer, weight, activation, gradient)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Parameters
        ----------
        x : Tensor
            ``[batch, in_channels, height, width]``.

        Returns
        -------
        Tensor
            ``[batch, out_channels, height, width]``.
        """
        weight = self.quantized_weight("weight")
        return self.with_gradient(self._conv_forward(self.input_quantizer(x), weight, self.bias))


class QuantizedLinear(_WeightedLayer, nn.Linear):
    """A :class:`torch.nn.Linear` with quantized weights and a quantized input.

    Parameters
    ----------
    layer : nn.Linear
        Its very parameters are taken over, as latent weights and bias; itself it is not changed.
    weight : Quantizer
        Of the weights.
    activation : Quantizer
        Of the input.
    gradient : GradientQuantizer, optional
        Of the output's gradient.
    """

    def __init__(
        self, layer: nn.Linear, weight: Quantizer, activation: Quantizer, gradient: GradientQuantizer | None = None
    ) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, device="meta")
        self.take_over(layer, weight, activation, gradient)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Parameters
        ----------
        x : Tensor
            ``[..., in_features]``.

        Returns
        -------
        Tensor
            ``[..., out_features]``.
        """
        return self.with_gradient(F.linear(self.input_quantizer(x), self.quantized_weight("weight"), self.bias))


def quantized_layers(module: nn.Module) -> list[QuantizedLayer]:
    """All quantized layers of a module.

    Parameters
    ----------
    module : nn.Module
        Made by :func:`tvmq.prepare`, or containing quantized layers.

    Returns
    -------
    list of QuantizedLayer
        In the order of ``module.modules()``; never empty.

    Raises
    ------
    InputError
        If there is none: the module was never prepared.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLayer)]
    if not layers:
        raise InputError(f"{type(module).__name__} contains no quantized layer; make one with tvmq.prepare first")
    return layers
