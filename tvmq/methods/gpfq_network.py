"""Greedy path-following quantization of a whole network, layer after layer.

For each weight, in the order in which it is first used: run both networks up to its layers; choose a quantizer for
their inputs, if activations are quantized; gather what the neurons see in the analog network, X, and in the
quantized one, X~; walk.  From then on the quantized network uses the result, so that the next layer's X~ holds the
error made here, and its walk makes up for it.
"""

from __future__ import annotations

import time
import warnings
from functools import partial

import numpy as np

from tvmq.methods.activations import ActivationRange, InputQuantizer, fit_quantizer
from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.gpfq_layer import (
    SEARCHED_NEURONS,
    TRIED_CONSTANTS,
    GatheredData,
    GramData,
    quantize_layer,
)
from tvmq.methods.layer_walk import Calibrated, Walk, walk_layers
from tvmq.methods.layerwise import LayerInputs
from tvmq.methods.linear_layers import LayerUse, SharedWeight, columns, pieces
from tvmq.methods.progress import Estimator
from tvmq.methods.quantized_layer import QuantizedLayer
from tvmq.methods.trials import NO_SECONDS, expected_seconds
from tvmq.model import Model

__all__ = ["quantize_network"]

USEFUL_ROWS = 256
"""With fewer calibration rows than this, and than a layer has inputs, the walk fits the samples and not the data."""


def quantize_network(model: Model, config: GPFQ, calibrated: Calibrated) -> Model:
    """Quantize a network; see :func:`tvmq.quantize`, which checks what it passes on.

    Parameters
    ----------
    model : Model
    config : GPFQ
    calibrated : Calibrated

    Returns
    -------
    Model
    """

    def fit_input(values: ActivationRange, bits: int) -> InputQuantizer:
        return fit_quantizer(values, bits, config.activation_clip, config.percentile)

    return walk_layers(model, config, calibrated, partial(_Greedy, config), fit_input)


def _rows(weight: SharedWeight, samples: int, patches: int | None) -> int:
    """Rows of calibration data of a weight."""
    positions = [use.rows_per_sample for use in weight.uses]
    if patches is not None and not weight.uses[0].is_dense:
        positions = [min(patches, count) for count in positions]
    return samples * sum(positions)


def _gathers(weight: SharedWeight, rows: int, config: GPFQ, memory: int) -> bool:
    """Whether gathered data is walked with fewer operations than Gram matrices, and fits into memory."""
    searched = min(SEARCHED_NEURONS, weight.neurons) * TRIED_CONSTANTS if config.constant == "search" else 0
    inputs, walks = weight.inputs, weight.neurons + searched
    if weight.groups > 1 or 4 * rows * (2 * inputs + 4 * weight.neurons) > memory:
        return False
    return 6.0 * rows * inputs * walks < 4.0 * rows * inputs**2 + 4.0 * inputs**2 * walks


class _Greedy:
    """Quantizes one weight after the other."""

    def __init__(self, config: GPFQ, walk: Walk) -> None:
        self._config, self._inputs = config, walk.inputs
        networks, processes, weights = walk.networks, walk.processes, walk.waiting
        self._networks, self._processes = networks, processes
        self._rows = {weight: _rows(weight, networks.samples, config.patches) for weight in weights}
        self._gathers = {
            weight: processes.size == 1 and _gathers(weight, rows, config, walk.memory)
            for weight, rows in self._rows.items()
        }
        self._expected = dict.fromkeys(weights, NO_SECONDS)
        if walk.report is not None:
            self._expected = expected_seconds(networks, weights, config, self._rows, self._gathers, self._try_gathering)
        expected = self._expected.values()
        kinds = {
            "forward": sum(seconds.forward for seconds in expected),
            "sums": sum(seconds.sums for seconds in expected),
            "walks": sum(seconds.walks for seconds in expected),
        }
        self._estimator = Estimator(kinds, walk.report)

    def quantize(self, weight: SharedWeight, first: bool) -> QuantizedLayer:
        """Quantize a weight; ``first`` says that it is the network's first."""
        start = time.perf_counter()
        quantizer = self._inputs.of(weight, first)
        # The networks ran to this layer here: that is counted as done when its data is gathered.
        self._estimator.finished("forward", 0.0, time.perf_counter() - start, weight.name)
        data = self._data(weight)
        before = time.perf_counter()
        layer = quantize_layer(weight, data, self._config, self._processes, quantizer)
        expected = self._expected[weight].walks
        self._estimator.finished("walks", expected, time.perf_counter() - before, weight.name)
        layer.row["seconds"] = round(time.perf_counter() - start, 3)
        return layer

    def _data(self, weight: SharedWeight) -> GramData | GatheredData:
        data: GramData | GatheredData = GramData(weight.inputs, weight.groups)
        if self._gathers[weight]:
            data = GatheredData(weight.inputs, self._rows[weight])
        expected, count = self._expected[weight], self._networks.batches
        # A generator for each layer, so that a resumed run draws what an uninterrupted one does.
        random = np.random.default_rng([self._config.seed, self._processes.rank, weight.uses[0].position])
        before = time.perf_counter()
        for batch in self._networks.inputs(weight):
            ran = time.perf_counter()
            self._estimator.finished("forward", expected.forward / count, ran - before, weight.name)
            for seen in batch:
                self._add(data, seen, random)
            before = time.perf_counter()
            self._estimator.finished("sums", expected.sums / count, before - ran, weight.name)
        data.reduce(self._processes)
        if not weight.weight.any():
            warnings.warn(f"layer '{weight.name}': all weights are zero, and stay zero", stacklevel=2)
        if data.rows < min(USEFUL_ROWS, weight.inputs):
            warnings.warn(
                f"layer '{weight.name}': {data.rows} rows of calibration data for {weight.inputs} inputs; the result "
                f"may not hold for other data, use at least {min(USEFUL_ROWS, weight.inputs)}",
                stacklevel=2,
            )
        return data

    def _add(self, data: GramData | GatheredData, seen: LayerInputs, random: np.random.Generator) -> None:
        positions = self._positions(seen.use, random)
        for piece in pieces(seen.use, len(seen.analog)):
            analog = columns(seen.use, seen.analog[piece], positions)
            same = seen.quantized is seen.analog
            data.add(analog, analog if same else columns(seen.use, seen.quantized[piece], positions))

    def _positions(self, use: LayerUse, random: np.random.Generator) -> np.ndarray | None:
        """Output positions of a convolution that are looked at, if not all."""
        limit, count = self._config.patches, use.rows_per_sample
        if limit is None or use.is_dense or limit >= count:
            return None
        return np.sort(random.choice(count, limit, replace=False))

    def _try_gathering(self, use: LayerUse, x: np.ndarray) -> None:
        for piece in pieces(use, len(x)):
            columns(use, x[piece], self._positions(use, np.random.default_rng(0)))
