"""From a float module to a trainable low-bit copy, and from the trained copy to one fit for export."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from tvmq.errors import InputError, nearest
from tvmq.methods import QNN, LQNets
from tvmq.nn.layers import GradientQuantizer, QuantizedConv2d, QuantizedLayer, QuantizedLinear, quantized_layers
from tvmq.nn.lqnets import LearnedActivation, LearnedWeight
from tvmq.nn.quantizers import (
    BinaryActivation,
    BinaryWeight,
    EightBitInput,
    FloatActivation,
    LinearActivation,
    LinearWeight,
    LogActivation,
    LogWeight,
    Quantizer,
)
from tvmq.nn.recurrent import QuantizedGRU, QuantizedLSTM

__all__ = ["freeze", "prepare"]

_REPLACED = (nn.Conv2d, nn.Linear, nn.LSTM, nn.GRU)
TERNARY_BITS = 2


def prepare(module: nn.Module, config: QNN | LQNets) -> nn.Module:
    """A trainable copy of a module whose convolutions, linear and recurrent layers are quantized.

    Every ``nn.Conv2d``, ``nn.Linear``, ``nn.LSTM`` and ``nn.GRU`` is replaced; the copy keeps their names and takes
    over their weights as latent weights.  Subclasses are left alone, because their own forward would be lost.  First
    and last layer are those in the order of :meth:`torch.nn.Module.named_modules`, which is the order of assignment in
    ``__init__``: define layers in the order in which they run.

    Parameters
    ----------
    module : nn.Module
        Not changed.
    config : QNN or LQNets
        What to quantize and how; ``skip`` patterns match the dotted names of layers.

    Returns
    -------
    nn.Module
        In training mode.  :func:`tvmq.load` reads it once it is trained.

    Raises
    ------
    InputError
        If there is no layer to quantize, a ``skip`` pattern matches no layer, or the module is already prepared.
    """
    if not isinstance(config, QNN | LQNets):
        raise InputError(
            f"prepare: expected a configuration such as tvmq.QNN() or tvmq.LQNets(), got {type(config).__name__}"
        )
    trainable = copy.deepcopy(module)
    replacements = {
        layer: _quantized(layer, config, eight_bits) for layer, eight_bits in _choose(trainable, config).items()
    }
    if trainable in replacements:
        return replacements[trainable].train()
    # By parent rather than by name: a layer that is used under two names stays one layer.
    for parent in list(trainable.modules()):
        # Not named_children(), which lists a child that has two names in one parent only once.
        for name, child in list(parent._modules.items()):
            if child in replacements:
                parent.register_module(name, replacements[child])
    return trainable.train()


def freeze(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights lie on their levels instead of being latent: what an exporter should see.

    The copy computes the same values.  Its graph holds the quantized weights as constants under their own names, where
    that of a merely evaluated module computes them from the latent weights.

    Parameters
    ----------
    module : nn.Module
        Made by :func:`prepare`, or containing quantized layers.  Not changed.

    Returns
    -------
    nn.Module
        In eval mode, its quantized weights without gradient.

    Raises
    ------
    InputError
        If there is no quantized layer in the module.
    """
    frozen = copy.deepcopy(module).eval()
    layers = quantized_layers(frozen)
    with torch.no_grad():
        # All before any is changed, and in place: a weight that two layers share stays shared.
        levels = [(layer, name, layer.quantized_weight(name)) for layer in layers for name in layer.weights()]
        for layer, name, quantized in levels:
            getattr(layer, name).copy_(quantized)
            getattr(layer, name).requires_grad_(False)
            layer.frozen = True
    return frozen


def _choose(module: nn.Module, config: QNN | LQNets) -> dict[nn.Module, bool]:
    """The layers to replace, in order, each with whether it reads bytes."""
    layers = {name: layer for name, layer in module.named_modules() if type(layer) in _REPLACED}
    if not layers:
        raise InputError(_nothing_to_quantize(module))
    for pattern in config.skip:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise InputError(f"prepare: skip pattern {pattern!r} matches no layer{nearest(pattern, layers)}")
    names = list(layers)
    left = {name for name in names if any(fnmatchcase(name, pattern) for pattern in config.skip)}
    if config.first_layer == "float":
        left.add(names[0])
    if config.last_layer == "float":
        left.add(names[-1])
    chosen = {layers[name]: name == names[0] and config.first_layer == "input8" for name in names if name not in left}
    if not chosen:
        raise InputError("prepare: first_layer, last_layer and skip leave every layer in float; nothing to quantize")
    return chosen


def _nothing_to_quantize(module: nn.Module) -> str:
    kind = type(module).__name__
    if any(isinstance(layer, QuantizedLayer) for layer in module.modules()):
        return f"prepare: {kind} is already prepared; pass the float module, or train this one"
    return f"prepare: {kind} contains no nn.Conv2d, nn.Linear, nn.LSTM or nn.GRU to quantize"


def _quantized(layer: nn.Module, config: QNN | LQNets, eight_bits: bool) -> QuantizedLayer:
    gradient = None
    if isinstance(config, QNN) and config.gradients is not None:
        gradient = GradientQuantizer(config.gradients, config.rounding)

    def weight(parameter: Tensor) -> Quantizer:
        return _weight_quantizer(config, parameter.detach())

    if isinstance(layer, nn.LSTM | nn.GRU):
        kind = QuantizedLSTM if isinstance(layer, nn.LSTM) else QuantizedGRU
        # Hidden states have both signs, whatever the other activations of the network have.
        return kind(layer, weight, lambda: _activation_quantizer(config, signed=True), gradient)
    signed = isinstance(config, QNN) and config.signed
    activation = EightBitInput() if eight_bits else _activation_quantizer(config, signed)
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(layer, weight(layer.weight), activation, gradient)
    assert isinstance(layer, nn.Linear)
    return QuantizedLinear(layer, weight(layer.weight), activation, gradient)


def _weight_quantizer(config: QNN | LQNets, weight: Tensor) -> Quantizer:
    if isinstance(config, LQNets):
        return LearnedWeight(config.weights, weight)
    if config.weights == 1:
        return BinaryWeight()
    if config.weights == "ternary":
        return LogWeight(TERNARY_BITS, weight)
    return (LinearWeight if config.rounding == "linear" else LogWeight)(config.weights, weight)


def _activation_quantizer(config: QNN | LQNets, signed: bool) -> Quantizer:
    if config.activations is None:
        return FloatActivation()
    if isinstance(config, LQNets):
        return LearnedActivation(config.activations, signed)
    if config.activations == 1 and signed:
        return BinaryActivation(config.stochastic)
    kind = LinearActivation if config.rounding == "linear" else LogActivation
    return kind(config.activations, signed, config.stochastic)
