"""The walk over a network's layers that all methods share: one weight after the other, in the order of its first use.

A method quantizes a weight with what the layers see in the analog network and in the quantized one; from then on the
quantized network uses the result.  Finished layers are kept, and adopted by a run that resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import numpy as np

from tvmq.errors import InputError, nearest
from tvmq.methods.checkpoint import Checkpoint
from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.input_quantizers import FitInput, InputQuantizers
from tvmq.methods.layerwise import Quantized, SideBySide
from tvmq.methods.linear_layers import SharedWeight, shared_weights
from tvmq.methods.lqnets import LQNets
from tvmq.methods.processes import Processes, current_processes
from tvmq.methods.progress import Progress
from tvmq.methods.qnn import QNN
from tvmq.methods.quantized_layer import QuantizedLayer
from tvmq.methods.rewrite import rewrite
from tvmq.model import Model

__all__ = ["Calibrated", "LayerMethod", "Walk", "walk_layers"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Calibration data and how to go about it.

    Attributes
    ----------
    batches : iterable of tuples of numpy.ndarray
        One array per input of the network; read once.
    folder : Path, optional
        Where finished layers are kept.
    report : callable, optional
        Called with the progress.
    memory : int
        Bytes of activations that stay in memory, and of a layer's gathered inputs.
    """

    batches: Iterable[tuple[np.ndarray, ...]]
    folder: Path | None = None
    report: Callable[[Progress], None] | None = None
    memory: int = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Walk:
    """What a method has to quantize layers with.

    Attributes
    ----------
    networks : SideBySide
        Before its first step.
    processes : Processes
        That share the work.
    inputs : InputQuantizers
    waiting : tuple of SharedWeight
        The weights that no earlier run has finished, in order.
    report, memory
        As in :class:`Calibrated`.
    """

    networks: SideBySide
    processes: Processes
    inputs: InputQuantizers
    waiting: tuple[SharedWeight, ...]
    report: Callable[[Progress], None] | None
    memory: int


class LayerMethod(Protocol):
    """Quantizes one weight after the other."""

    def quantize(self, weight: SharedWeight, first: bool) -> QuantizedLayer:
        """Quantize a weight; ``first`` says that it is the network's first."""
        ...


def walk_layers(
    model: Model,
    config: GPFQ | QNN | LQNets,
    calibrated: Calibrated,
    begin: Callable[[Walk], LayerMethod],
    fit_input: FitInput,
) -> Model:
    """Quantize a network layer by layer.

    Parameters
    ----------
    model : Model
        Not changed.
    config : GPFQ, QNN or LQNets
    calibrated : Calibrated
    begin : callable
        Makes the method, when it is known which weights are waiting.
    fit_input : callable
        The method's quantizer of an input.

    Returns
    -------
    Model
    """
    weights = shared_weights(model)
    chosen = _chosen(weights, config, model.name)
    processes = current_processes()
    networks = SideBySide(model, weights, calibrated.batches, calibrated.memory)
    try:
        # Only one process writes; all read, so that all resume at the same layer.
        data = processes.fingerprint(networks.fingerprint)
        checkpoint = Checkpoint(calibrated.folder, model, config, data, writes=processes.rank == 0)
        finished = [checkpoint.load(number) for number in range(len(chosen))]
        waiting = tuple(weight for weight, layer in zip(chosen, finished, strict=True) if layer is None)
        inputs = InputQuantizers(config, networks, processes, fit_input)
        method = begin(Walk(networks, processes, inputs, waiting, calibrated.report, calibrated.memory))
        layers = []
        for number, (weight, layer) in enumerate(zip(chosen, finished, strict=True)):
            if layer is None:
                layer = method.quantize(weight, first=weight is weights[0])
                checkpoint.save(number, layer)
            if layer.quantizer is not None:
                inputs.adopt(weight, layer.quantizer)
            networks.quantize_weight(weight, Quantized(layer.weight, layer.correction))
            layers.append((weight, layer))
    finally:
        networks.close()
    return rewrite(model, layers)


def _chosen(weights: Sequence[SharedWeight], config: GPFQ | QNN | LQNets, network: str) -> list[SharedWeight]:
    """The weights to quantize."""
    if not weights:
        raise InputError(f"quantize: network '{network}' has no convolution or linear layer with a constant weight")
    names = [use.variable.name for weight in weights for use in weight.uses]
    for pattern in config.skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"quantize: skip pattern {pattern!r} matches no layer{nearest(pattern, names)}")
    kept = {weights[0]} if config.first_layer == "float" else set()
    if config.last_layer == "float":
        kept.add(max(weights, key=lambda weight: weight.uses[-1].position))
    chosen = [
        weight
        for weight in weights
        if weight not in kept
        and not any(fnmatchcase(use.variable.name, pattern) for use in weight.uses for pattern in config.skip)
    ]
    if not chosen:
        raise InputError("quantize: first_layer, last_layer and skip leave every layer in float; nothing to quantize")
    return chosen
