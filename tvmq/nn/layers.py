"""Convolution and linear layer with binary weights that binarize their own input.

In eval mode a layer is plain operators only: the input's quantizer, ``torch.where(weight >= 0, 1, -1)``, and the
ordinary convolution or linear operator.  Exporters therefore give standard graphs, and the compiler recognises the
layer by what it computes, not by its class.  Padding is the convolution's own: zeros, which are neither of the two
activation values.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tvmq.errors import InputError
from tvmq.nn.estimators import ActivationSign, RoundTo8Bits, StochasticSign, WeightSign, round_to_8_bits, sign

__all__ = ["BinaryConv2d", "BinaryLayer", "BinaryLinear", "binary_layers"]

_INPUTS = ("sign", "input8")


class BinaryLayer(nn.Module):
    """What a binary convolution and a binary linear layer share: the two quantizers.

    Attributes
    ----------
    weight : Parameter
        The latent real weights; or the signs themselves once ``frozen``.
    input_quantizer : {"sign", "input8"}
        Binarize the input, or round it to 8 bits in [0, 1].
    stochastic : bool
        Draw the input's signs while training.
    frozen : bool
        Set by :func:`tvmq.nn.freeze`: ``weight`` holds exactly -1 and +1 and is used as it is.
    """

    weight: nn.Parameter
    input_quantizer: str
    stochastic: bool
    frozen: bool

    def quantize_input(self, x: Tensor) -> Tensor:
        """Quantize the layer's input, with an estimated gradient while training."""
        if self.input_quantizer == "input8":
            return RoundTo8Bits.apply(x) if self.training else round_to_8_bits(x)
        if not self.training:
            return sign(x)
        return (StochasticSign if self.stochastic else ActivationSign).apply(x)

    def binary_weight(self) -> Tensor:
        """Exactly -1 and +1, in the shape of ``weight``."""
        if self.frozen:
            return self.weight
        return WeightSign.apply(self.weight) if self.training else sign(self.weight)

    def extra_repr(self) -> str:
        """Show the quantizer of the input beside the shape."""
        return f"{super().extra_repr()}, input_quantizer={self.input_quantizer!r}"

    def _configure(self, input_quantizer: str, stochastic: bool) -> None:
        if input_quantizer not in _INPUTS:
            raise InputError(
                f"{type(self).__name__}: input_quantizer={input_quantizer!r} is not supported; use 'sign' or 'input8'"
            )
        self.input_quantizer = input_quantizer
        self.stochastic = stochastic
        self.frozen = False


class BinaryConv2d(BinaryLayer, nn.Conv2d):
    """A :class:`torch.nn.Conv2d` with binary weights and a quantized input.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`torch.nn.Conv2d`.
    input_quantizer : {"sign", "input8"}
        Binarize the input, or round it to 8 bits in [0, 1].
    stochastic : bool
        Draw the input's signs while training.

    Raises
    ------
    InputError
        For an unknown ``input_quantizer``.
    """

    def __init__(self, *args: Any, input_quantizer: str = "sign", stochastic: bool = False, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self._configure(input_quantizer, stochastic)

    @classmethod
    def from_float(cls, layer: nn.Conv2d, input_quantizer: str = "sign", stochastic: bool = False) -> BinaryConv2d:
        """Take over a float layer: its geometry, and its very parameters as latent weights and bias.

        Parameters
        ----------
        layer : nn.Conv2d
            Not changed.
        input_quantizer : {"sign", "input8"}
            Binarize the input, or round it to 8 bits in [0, 1].
        stochastic : bool
            Draw the input's signs while training.

        Returns
        -------
        BinaryConv2d
            Shares its parameters with ``layer``.
        """
        binary = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device="meta",
            input_quantizer=input_quantizer,
            stochastic=stochastic,
        )
        return _take_over(binary, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the quantized input with the binary weights.

        Parameters
        ----------
        x : Tensor
            ``[batch, in_channels, height, width]``.

        Returns
        -------
        Tensor
            ``[batch, out_channels, height, width]``: integers where the input is binary (before the bias).
        """
        return self._conv_forward(self.quantize_input(x), self.binary_weight(), self.bias)


class BinaryLinear(BinaryLayer, nn.Linear):
    """A :class:`torch.nn.Linear` with binary weights and a quantized input.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`torch.nn.Linear`.
    input_quantizer : {"sign", "input8"}
        Binarize the input, or round it to 8 bits in [0, 1].
    stochastic : bool
        Draw the input's signs while training.

    Raises
    ------
    InputError
        For an unknown ``input_quantizer``.
    """

    def __init__(self, *args: Any, input_quantizer: str = "sign", stochastic: bool = False, **kwargs: Any) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self._configure(input_quantizer, stochastic)

    @classmethod
    def from_float(cls, layer: nn.Linear, input_quantizer: str = "sign", stochastic: bool = False) -> BinaryLinear:
        """Take over a float layer: its geometry, and its very parameters as latent weights and bias.

        Parameters
        ----------
        layer : nn.Linear
            Not changed.
        input_quantizer : {"sign", "input8"}
            Binarize the input, or round it to 8 bits in [0, 1].
        stochastic : bool
            Draw the input's signs while training.

        Returns
        -------
        BinaryLinear
            Shares its parameters with ``layer``.
        """
        binary = cls(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            device="meta",
            input_quantizer=input_quantizer,
            stochastic=stochastic,
        )
        return _take_over(binary, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the quantized input by the binary weights.

        Parameters
        ----------
        x : Tensor
            ``[..., in_features]``.

        Returns
        -------
        Tensor
            ``[..., out_features]``: integers where the input is binary (before the bias).
        """
        return F.linear(self.quantize_input(x), self.binary_weight(), self.bias)


def binary_layers(module: nn.Module) -> list[BinaryLayer]:
    """All binary layers of a module.

    Parameters
    ----------
    module : nn.Module
        Made by :func:`tvmq.nn.prepare`, or containing binary layers.

    Returns
    -------
    list of BinaryLayer
        In the order of ``module.modules()``; never empty.

    Raises
    ------
    InputError
        If there is none: the module was never prepared.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, BinaryLayer)]
    if not layers:
        raise InputError(f"{type(module).__name__} contains no binary layer; make one with tvmq.prepare first")
    return layers


def _take_over(binary: Any, layer: nn.Conv2d | nn.Linear) -> Any:
    binary.weight = layer.weight
    binary.bias = layer.bias
    binary.train(layer.training)
    return binary
