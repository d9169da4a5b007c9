"""The parts of a training loop that low-bit weights change: clipping, learning rates, the loss, and what went wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvmq.nn.layers import QuantizedLayer, quantized_layers
from tvmq.nn.quantizers import Quantizer

__all__ = ["clip_weights", "diverged_layer", "estimate_statistics", "parameter_groups", "squared_hinge_loss"]


@torch.no_grad()
def clip_weights(module: nn.Module) -> None:
    """Clip the latent weights of all binary layers to [-1, 1]; call it after each step of the optimiser.

    Without it a latent weight drifts so far from zero that no gradient can flip its sign any more.  Weights of more
    bits, and those on learned levels, stay as they are: their levels follow them.

    Parameters
    ----------
    module : nn.Module
        Changed in place; weights of other layers and biases are not.

    Raises
    ------
    InputError
        If there is no quantized layer in the module.
    """
    for weight in _binary_weights(module):
        weight.clamp_(-1.0, 1.0)


def parameter_groups(module: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser, with Glorot-scaled learning rates for binary weights.

    A binary layer's latent weights get ``lr / sqrt(1.5 / (fan_in + fan_out))``, both fans including the kernel's area;
    all other parameters get ``lr``.

    Parameters
    ----------
    module : nn.Module
        Made by :func:`tvmq.prepare`, or containing quantized layers.
    lr : float
        The common learning rate.

    Returns
    -------
    list of dict
        The parameters with the plain rate first, then one group per binary weight.

    Raises
    ------
    InputError
        If there is no quantized layer in the module.

    Examples
    --------
    >>> import tvmq
    >>> [group["lr"] for group in parameter_groups(tvmq.prepare(nn.Linear(100, 50), tvmq.QNN()), lr=0.1)]
    [0.1, 1.0]
    """
    # Keyed by identity: a weight that two layers share must reach the optimiser once.
    binary = {id(weight): weight for weight in _binary_weights(module)}
    plain = [parameter for parameter in module.parameters() if id(parameter) not in binary]
    groups: list[dict[str, Any]] = [{"params": plain, "lr": lr}] if plain else []
    return groups + [{"params": [weight], "lr": lr * _glorot_scale(weight)} for weight in binary.values()]


def squared_hinge_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``max(0, 1 - target * score)^2`` with target +1 for the labelled class and -1 for all others.

    Parameters
    ----------
    scores : Tensor
        ``[batch, classes]``.
    labels : Tensor
        ``[batch]``, class numbers of an integer dtype.

    Returns
    -------
    Tensor
        A scalar.
    """
    targets = F.one_hot(labels.long(), scores.shape[-1]).to(scores.dtype) * 2 - 1
    return torch.clamp(1 - targets * scores, min=0).square().mean()


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give batch norms the mean and variance that their inputs have when nothing else is in training mode.

    The running averages of training are those of units drawn at random, and of weights of many steps before.  Here no
    unit is drawn, and every batch counts alike; each is normalised by its own statistics, as in training.

    Parameters
    ----------
    module : nn.Module
        Changed in place: the running statistics of torch's batch norms, and nothing else.
    batches : iterable of Tensor
        Inputs of the network, at least one batch.
    """
    modes = {part: part.training for part in module.modules()}
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    try:
        for batch in batches:
            module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes.items():
            part.training = mode


@torch.no_grad()
def diverged_layer(module: nn.Module, *inputs: Tensor) -> str | None:
    """The first layer, in the order in which they run, that has or makes a value that is NaN or infinite.

    Parameters
    ----------
    module : nn.Module
        Not changed: it is run in eval mode.
    *inputs : Tensor
        A batch on which it diverged.

    Returns
    -------
    str or None
        The layer's dotted name; None if all is finite.
    """
    found: list[str] = []
    quantizers = {part for part in module.modules() if isinstance(part, Quantizer)}
    names = {
        layer: name
        for name, layer in module.named_modules()
        if isinstance(layer, QuantizedLayer) or (layer not in quantizers and not any(layer.children()))
    }

    def look(layer: nn.Module, _arguments: Any, output: Any) -> None:
        values = [*layer.parameters(), *layer.buffers(), *_tensors(output)]
        if any(value.is_floating_point() and not torch.isfinite(value).all() for value in values):
            found.append(names[layer])

    hooks = [layer.register_forward_hook(look) for layer in names]
    training = {child: child.training for child in module.modules()}
    try:
        module.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for child, mode in training.items():
            child.training = mode
    return found[0] if found else None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, tuple | list) else []


def _binary_weights(module: nn.Module) -> list[nn.Parameter]:
    layers = quantized_layers(module)
    return [getattr(layer, name) for layer in layers for name, own in layer.weights().items() if own.clips]


def _glorot_scale(weight: Tensor) -> float:
    outputs, inputs = weight.shape[:2]
    area = math.prod(weight.shape[2:])
    return 1 / math.sqrt(1.5 / (inputs * area + outputs * area))
