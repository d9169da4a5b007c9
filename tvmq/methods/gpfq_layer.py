"""GPFQ of one weight: the radius, the search for its constant, the walk, and what it achieved.

The data of a layer comes in the two forms of :mod:`tvmq.methods.gpfq`: summed up to Gram matrices, whose size does not
depend on the number of samples, or gathered, which costs less to walk when there are few of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tvmq.methods.activations import InputQuantizer, describe_input
from tvmq.methods.alphabets import equispaced_alphabet, median_radius
from tvmq.methods.gpfq import GramAccumulator, QuantizedWeights, quantize_weights, scalar_quantize, walk
from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.linear_layers import SharedWeight
from tvmq.methods.processes import Processes
from tvmq.methods.quantized_layer import QuantizedLayer, relative_norm

__all__ = ["SEARCHED_NEURONS", "TRIED_CONSTANTS", "GatheredData", "GramData", "quantize_layer"]

SEARCHED_NEURONS = 64
"""So many neurons, drawn at random, decide about the constant and show what scalar quantization would do."""

COARSE = np.geomspace(0.75, 9.0, 12)
FINE = np.geomspace(0.83, 1.2, 5)
TRIED_CONSTANTS = len(COARSE) + len(FINE)


class LayerData(Protocol):
    """Calibration data of a layer, for each of its groups."""

    method: str

    @property
    def rows(self) -> int:
        """How many rows X has."""
        ...

    def walk(self, group: int, weight: np.ndarray, alphabet: np.ndarray, length: int | None) -> QuantizedWeights:
        """Quantize some neurons, (N, n) float64."""
        ...

    def error_norms(self, group: int, weight: np.ndarray, quantized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``||X w - X~ q||^2`` and ``||X w||^2`` of some neurons."""
        ...


class GramData:
    """Gram matrices, summed batch by batch.

    Parameters
    ----------
    inputs, groups : int
        N, and how many groups there are.
    """

    method = "gram"

    def __init__(self, inputs: int, groups: int) -> None:
        self._grams = [GramAccumulator(inputs) for _ in range(groups)]

    @property
    def rows(self) -> int:
        """How many rows X has."""
        return self._grams[0].samples

    def add(self, analog: np.ndarray, quantized: np.ndarray) -> None:
        """Add columns of shape (groups, N, rows); the same object twice where both networks agree."""
        for group, gram in enumerate(self._grams):
            gram.add(analog[group].T, None if quantized is analog else quantized[group].T)

    def reduce(self, processes: Processes) -> None:
        """Add up the sums of all processes."""
        if processes.size == 1:
            return
        for gram in self._grams:
            for array in gram.arrays().values():
                array[...] = processes.sum(array)

    def walk(self, group: int, weight: np.ndarray, alphabet: np.ndarray, length: int | None) -> QuantizedWeights:
        """Quantize some neurons, (N, n) float64."""
        return walk(weight, self._grams[group], alphabet=alphabet, walk_length=length)

    def error_norms(self, group: int, weight: np.ndarray, quantized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``||X w - X~ q||^2`` and ``||X w||^2`` of some neurons."""
        return self._grams[group].error_norms(weight, quantized)


class GatheredData:
    """All rows of X and X~ in memory, as columns; for layers of one group.

    Parameters
    ----------
    inputs, rows : int
        N, and how many rows there will be.
    """

    method = "residual"

    def __init__(self, inputs: int, rows: int) -> None:
        self._analog = np.empty((inputs, rows), np.float32)
        self._quantized: np.ndarray | None = None
        self.rows = 0

    def add(self, analog: np.ndarray, quantized: np.ndarray) -> None:
        """Add columns of shape (1, N, rows); the same object twice where both networks agree."""
        place = slice(self.rows, self.rows + analog.shape[2])
        self._analog[:, place] = analog[0]
        if quantized is not analog and self._quantized is None:
            self._quantized = self._analog.copy()
        if self._quantized is not None:
            self._quantized[:, place] = quantized[0]
        self.rows = place.stop

    def reduce(self, processes: Processes) -> None:
        """Nothing: gathered data is for one process."""

    def walk(self, group: int, weight: np.ndarray, alphabet: np.ndarray, length: int | None) -> QuantizedWeights:
        """Quantize some neurons, (N, n) float64."""
        quantized = None if self._quantized is None else self._quantized.T
        return quantize_weights(
            weight, self._analog.T, quantized, alphabet=alphabet, method="residual", walk_length=length
        )

    def error_norms(self, group: int, weight: np.ndarray, quantized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``||X w - X~ q||^2`` and ``||X w||^2`` of some neurons."""
        inputs = self._analog if self._quantized is None else self._quantized
        outputs = self._analog.T @ weight.astype(np.float32)
        errors = outputs - inputs.T @ quantized.astype(np.float32)
        return _squares(errors), _squares(outputs)


def quantize_layer(
    weight: SharedWeight,
    data: GramData | GatheredData,
    config: GPFQ,
    processes: Processes,
    quantizer: InputQuantizer | None,
) -> QuantizedLayer:
    """Quantize a weight on its data.

    Parameters
    ----------
    weight : SharedWeight
    data : GramData or GatheredData
        Of all processes.
    config : GPFQ
    processes : Processes
        Each walks its share of the neurons.
    quantizer : InputQuantizer, optional
        What rounded the inputs.

    Returns
    -------
    QuantizedLayer
        Equal in all processes.
    """
    work = _Work(weight, data, config)
    constant = work.best_constant() if config.constant == "search" else float(config.constant)
    parts = [work.share(group, constant, processes) for group in range(weight.groups)]
    error, output, scalar, searched = (sum(part.sums[index] for part in parts) for index in range(4))
    radius = work.radius(constant)
    row = {
        "layer": weight.name,
        "inputs": weight.inputs,
        "neurons": weight.neurons,
        "rows": data.rows,
        "weights": "ternary" if config.weights == "ternary" else f"{config.weights} bits",
        "levels": config.levels,
        "radius": float(radius) if radius.ndim == 0 else {"min": float(radius.min()), "max": float(radius.max())},
        "constant": constant,
        **describe_input(quantizer),
        "relative_error": relative_norm(error, output),
        "scalar_relative_error": relative_norm(scalar, searched),
        "dead_inputs": int(sum(part.dead_inputs for part in parts)),
        "method": data.method,
    }
    correction = np.concatenate([part.mean_error for part in parts]) if config.bias_correction else None
    return QuantizedLayer(
        weight.from_matrices([part.weights for part in parts]),
        None if correction is None else correction.astype(np.float32),
        quantizer,
        row,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """A group's neurons, from all processes.

    ``sums`` are squared norms: of the error, of the analog outputs, of the error of scalar quantization for the
    neurons that are searched, and of their outputs.
    """

    weights: np.ndarray
    mean_error: np.ndarray
    sums: tuple[float, ...]
    dead_inputs: int


class _Work:
    def __init__(self, weight: SharedWeight, data: LayerData, config: GPFQ) -> None:
        self.weight, self.data, self.config = weight, data, config
        kernel = weight.weight.shape[2:]
        self.length = int(np.prod(kernel)) if config.walk == "channel" and kernel else None
        random = np.random.default_rng(config.seed)
        neurons = weight.neurons // weight.groups
        count = min(neurons, max(1, SEARCHED_NEURONS // weight.groups))
        self.searched = [np.sort(random.choice(neurons, count, replace=False)) for _ in range(weight.groups)]
        self.searched_weights = [weight.neurons_of(group, neurons) for group, neurons in enumerate(self.searched)]
        rows = weight.weight.reshape(weight.neurons, -1)
        self.medians = median_radius(rows.T, 1.0, per_channel=config.radius == "channel")

    def radius(self, constant: float) -> np.ndarray:
        """Of the layer, (), or of each neuron, (O,)."""
        return np.asarray(constant * self.medians)

    def alphabet(self, constant: float, group: int, neurons: np.ndarray) -> np.ndarray:
        """Levels for some neurons of a group."""
        radius = self.radius(constant)
        if radius.ndim:
            first = group * (self.weight.neurons // self.weight.groups)
            radius = radius[first + neurons]
        return equispaced_alphabet(self.config.levels, radius)

    def best_constant(self) -> float:
        """The constant with the smallest error on the searched neurons: a coarse search, then a finer one around it."""
        coarse = min(COARSE, key=self._searched_error)
        return float(min(coarse * FINE, key=self._searched_error))

    def _searched_error(self, constant: float) -> float:
        total = 0.0
        for group, neurons in enumerate(self.searched):
            matrix, alphabet = self.searched_weights[group], self.alphabet(constant, group, neurons)
            result = self.data.walk(group, matrix, alphabet, self.length)
            total += float(result.error_norms.sum())
        return total

    def share(self, group: int, constant: float, processes: Processes) -> _Part:
        """Walk this process' neurons and put all together."""
        shares = np.array_split(np.arange(self.weight.neurons // self.weight.groups), processes.size)
        mine, counts = shares[processes.rank], [len(share) for share in shares]
        walked = self._walk(group, constant, mine) if len(mine) else None
        weights, norms = np.empty((self.weight.inputs, 0)), np.empty((3, 0))
        if walked is not None:
            weights, norms = walked.weights, np.stack([walked.mean_error, walked.error_norms, walked.output_norms])
        weights, (mean_error, errors, outputs) = processes.columns(weights, counts), processes.columns(norms, counts)
        searched = self.searched[group]
        letters, _codes = scalar_quantize(self.searched_weights[group], self.alphabet(constant, group, searched))
        scalar, searched_outputs = self.data.error_norms(group, self.searched_weights[group], letters)
        sums = tuple(float(part.sum()) for part in (errors, outputs, scalar, searched_outputs))
        dead = 0 if walked is None else int(walked.dead_inputs.sum())
        return _Part(weights, mean_error, sums, int(processes.maximum(np.array([dead]))[0]))

    def _walk(self, group: int, constant: float, neurons: np.ndarray) -> QuantizedWeights:
        matrix = self.weight.neurons_of(group, neurons)
        return self.data.walk(group, matrix, self.alphabet(constant, group, neurons), self.length)


def _squares(array: np.ndarray) -> np.ndarray:
    return np.einsum("mn,mn->n", array, array, dtype=np.float64)
