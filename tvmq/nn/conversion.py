"""From a float module to a trainable low-bit copy, and from the trained copy to one fit for export."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase

import torch
from torch import nn

from tvmq.errors import InputError, nearest
from tvmq.methods import QNN
from tvmq.nn.estimators import sign
from tvmq.nn.layers import BinaryConv2d, BinaryLayer, BinaryLinear, binary_layers

__all__ = ["freeze", "prepare"]


def prepare(module: nn.Module, config: QNN) -> nn.Module:
    """A trainable copy of a module whose convolutions and linear layers are binary.

    Every ``nn.Conv2d`` and ``nn.Linear`` is replaced; the copy keeps their names and takes over their weights as latent
    weights.  Subclasses are left alone, because their own forward would be lost.  First and last layer are those in
    the order of :meth:`torch.nn.Module.named_modules`, which is the order of assignment in ``__init__``: define layers
    in the order in which they run.

    Parameters
    ----------
    module : nn.Module
        Not changed.
    config : QNN
        What to binarize; ``skip`` patterns match the dotted names of layers.

    Returns
    -------
    nn.Module
        In training mode.

    Raises
    ------
    InputError
        If there is no layer to binarize, a ``skip`` pattern matches no layer, or the module is already prepared.
    """
    if not isinstance(config, QNN):
        raise InputError(f"prepare: expected a configuration such as tvmq.QNN(), got {type(config).__name__}")
    trainable = copy.deepcopy(module)
    replacements = {layer: _binary(layer, quantizer, config) for layer, quantizer in _choose(trainable, config)}
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
    """A copy in eval mode whose weights are exactly -1 and +1 instead of latent: what an exporter should see.

    The copy computes the same values.  Its graph holds the binary weights as constants under their own names, where
    that of a merely evaluated module computes them from the latent weights.

    Parameters
    ----------
    module : nn.Module
        Made by :func:`prepare`, or containing binary layers.  Not changed.

    Returns
    -------
    nn.Module
        In eval mode, its binary weights without gradient.

    Raises
    ------
    InputError
        If there is no binary layer in the module.
    """
    frozen = copy.deepcopy(module).eval()
    for layer in binary_layers(frozen):
        # In place, so that a weight that two layers share stays shared.
        with torch.no_grad():
            layer.weight.copy_(sign(layer.weight))
        layer.weight.requires_grad_(False)
        layer.frozen = True
    return frozen


def _choose(module: nn.Module, config: QNN) -> list[tuple[nn.Module, str]]:
    """The layers to replace, in order, each with the quantizer of its input."""
    layers = {name: layer for name, layer in module.named_modules() if type(layer) in (nn.Conv2d, nn.Linear)}
    if not layers:
        raise InputError(_nothing_to_binarize(module))
    for pattern in config.skip:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise InputError(f"prepare: skip pattern {pattern!r} matches no layer{nearest(pattern, layers)}")

    quantizers = dict.fromkeys(layers, "sign")
    names = list(layers)
    if config.first_layer == "input8":
        quantizers[names[0]] = "input8"
    if config.first_layer == "float":
        del quantizers[names[0]]
    if config.last_layer == "float":
        quantizers.pop(names[-1], None)
    chosen = [
        (layers[name], quantizer)
        for name, quantizer in quantizers.items()
        if not any(fnmatchcase(name, pattern) for pattern in config.skip)
    ]
    if not chosen:
        raise InputError("prepare: first_layer, last_layer and skip leave every layer in float; nothing to binarize")
    return chosen


def _nothing_to_binarize(module: nn.Module) -> str:
    kind = type(module).__name__
    if any(isinstance(layer, BinaryLayer) for layer in module.modules()):
        return f"prepare: {kind} is already prepared; pass the float module, or train this one"
    return f"prepare: {kind} contains no nn.Conv2d or nn.Linear to binarize"


def _binary(layer: nn.Module, input_quantizer: str, config: QNN) -> BinaryLayer:
    if isinstance(layer, nn.Conv2d):
        return BinaryConv2d.from_float(layer, input_quantizer, config.stochastic)
    assert isinstance(layer, nn.Linear)
    return BinaryLinear.from_float(layer, input_quantizer, config.stochastic)
