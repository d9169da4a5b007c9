"""QNN and LQ-Nets without training: levels fitted to the weights of a trained network, and to what its layers see.

A weight is quantized by itself (:mod:`tvmq.methods.weight_fits`).  A layer's input gets the levels that fit best what
the layer sees in the network whose earlier layers are quantized already.  What cannot be made up for by levels is at
least centred: the mean of the error that a layer's weights and inputs leave, over the calibration data, is added to the
layer's output, per output channel.  With two bits and fewer a network is of little use without: the errors of the
weights add up wherever the inputs, such as those after a ReLU, have a mean.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tvmq.methods.activations import ActivationRange, InputQuantizer, describe_input, fit_quantizer
from tvmq.methods.layer_walk import Calibrated, Walk, walk_layers
from tvmq.methods.layerwise import LayerInputs
from tvmq.methods.level_quantizer import fit_learned_quantizer, fit_power_quantizer
from tvmq.methods.linear_layers import SharedWeight, apply_layer
from tvmq.methods.lqnets import LQNets
from tvmq.methods.progress import Estimator
from tvmq.methods.qnn import QNN
from tvmq.methods.quantized_layer import QuantizedLayer, relative_norm
from tvmq.methods.weight_fits import FittedWeight, fit_weight
from tvmq.model import Model

__all__ = ["fit_network"]

PROBE = (32, 512)
"""Output channels and inputs of the weight whose fit is timed for the estimate."""


def fit_network(model: Model, config: QNN | LQNets, calibrated: Calibrated) -> Model:
    """Quantize a network; see :func:`tvmq.quantize`, which checks what it passes on.

    Parameters
    ----------
    model : Model
    config : QNN or LQNets
    calibrated : Calibrated

    Returns
    -------
    Model
    """
    return walk_layers(model, config, calibrated, partial(_Fitting, config), partial(_fit_input, config))


def _fit_input(config: QNN | LQNets, values: ActivationRange, bits: int) -> InputQuantizer:
    if isinstance(config, LQNets):
        return fit_learned_quantizer(values, bits)
    # One bit for both signs has no zero, and no powers to choose from.
    if config.rounding == "log" and not (bits == 1 and values.signed):
        return fit_power_quantizer(values, bits)
    return fit_quantizer(values, bits, "mse")


class _Fitting:
    """Quantizes one weight after the other."""

    def __init__(self, config: QNN | LQNets, walk: Walk) -> None:
        self._config, self._inputs = config, walk.inputs
        self._networks, self._processes = walk.networks, walk.processes
        self._expected = {weight: dict.fromkeys(("forward", "fit", "errors"), 0.0) for weight in walk.waiting}
        if walk.report is not None:
            self._expected = self._expected_seconds(walk.waiting)
        kinds = {
            kind: sum(seconds[kind] for seconds in self._expected.values()) for kind in ("forward", "fit", "errors")
        }
        self._estimator = Estimator(kinds, walk.report)

    def quantize(self, weight: SharedWeight, first: bool) -> QuantizedLayer:
        """Quantize a weight; ``first`` says that it is the network's first."""
        if not weight.weight.any():
            warnings.warn(f"layer '{weight.name}': all weights are zero, and stay zero", stacklevel=2)
        start = time.perf_counter()
        quantizer = self._inputs.of(weight, first)
        ran = self._finished("forward", weight, start)
        fitted = fit_weight(weight.weight, self._config)
        errors = _Errors(weight, fitted.weight)
        before = self._finished("fit", weight, ran)
        for batch in self._networks.inputs(weight):
            for seen in batch:
                errors.add(seen)
        sums = self._processes.sum(errors.sums)
        self._finished("errors", weight, before)
        row = self._row(weight, fitted, quantizer) | _measured(sums)
        row["seconds"] = round(time.perf_counter() - start, 3)
        return QuantizedLayer(fitted.weight, (sums[0] / sums[3]).astype(np.float32), quantizer, row)

    def _row(self, weight: SharedWeight, fitted: FittedWeight, quantizer: InputQuantizer | None) -> dict[str, Any]:
        config = self._config
        largest = np.abs(fitted.levels).max(1)
        row = {
            "layer": weight.name,
            "inputs": weight.inputs,
            "neurons": weight.neurons,
            "weights": _bits_of(config),
            "levels": fitted.levels.shape[1],
            "radius": {"min": float(largest.min()), "max": float(largest.max())},
            **describe_input(quantizer),
            "weight_error": relative_norm(
                float(np.square(fitted.weight - weight.weight, dtype=np.float64).sum()),
                float(np.square(weight.weight, dtype=np.float64).sum()),
            ),
            "method": type(config).__name__,
        }
        if fitted.basis is not None:
            row["mean_basis"] = [float(number) for number in np.abs(fitted.basis).mean(0)]
        return row

    def _finished(self, kind: str, weight: SharedWeight, start: float) -> float:
        """Count work that began at ``start``; the time now."""
        now = time.perf_counter()
        self._estimator.finished(kind, self._expected[weight][kind], now - start, weight.name)
        return now

    def _expected_seconds(self, weights: Sequence[SharedWeight]) -> dict[SharedWeight, dict[str, float]]:
        """From a trial of one sample and of the fit of a small weight."""
        self._networks.try_sample(lambda use, x: None)  # the first run compiles operators
        elapsed, samples = self._networks.try_sample(lambda use, x: None).elapsed, self._networks.samples
        fit = _probed_seconds(self._config)
        expected, before = {}, 0.0
        for weight in weights:
            layers = sum(elapsed[use.position + 1] - elapsed[use.position] for use in weight.uses)
            expected[weight] = {
                "forward": 2 * samples * (elapsed[weight.uses[-1].position] - before),
                "fit": weight.weight.size * fit,
                "errors": 2 * samples * layers,
            }
            before = elapsed[weight.uses[0].position]
        return expected


class _Errors:
    """What a layer's outputs lose, per output channel.

    Attributes
    ----------
    sums : float64 array of shape (4, O)
        Over all output positions: the error, its squares, the squares of the analog output, and how many there are.
    """

    def __init__(self, weight: SharedWeight, quantized: np.ndarray) -> None:
        self._weight, self._quantized = weight.weight, quantized
        self.sums = np.zeros((4, weight.neurons))

    def add(self, seen: LayerInputs) -> None:
        """Count the outputs on a batch."""
        analog = apply_layer(seen.use, seen.analog, self._weight)
        error = analog - apply_layer(seen.use, seen.quantized, self._quantized)
        analog, error = (_by_channel(part, seen.use.is_dense) for part in (analog, error))
        self.sums[0] += error.sum(1, dtype=np.float64)
        self.sums[1] += np.einsum("or,or->o", error, error, dtype=np.float64)
        self.sums[2] += np.einsum("or,or->o", analog, analog, dtype=np.float64)
        self.sums[3] += error.shape[1]


def _bits_of(config: QNN | LQNets) -> str:
    if config.weights == "ternary":
        return "ternary"
    return f"{config.weights} bit{'s' if config.weights != 1 else ''}"


def _by_channel(outputs: np.ndarray, is_dense: bool) -> np.ndarray:
    """Outputs as (O, rows)."""
    channels = outputs.shape[-1] if is_dense else outputs.shape[1]
    return np.moveaxis(outputs, -1 if is_dense else 1, 0).reshape(channels, -1)


def _measured(sums: np.ndarray) -> dict[str, Any]:
    """The report's part about the output, whose error's mean is corrected."""
    error, squares, outputs, rows = sums
    left = np.maximum(squares - error**2 / rows, 0.0)
    return {
        "rows": int(rows[0]),
        "relative_error": relative_norm(float(left.sum()), float(outputs.sum())),
        "uncorrected_relative_error": relative_norm(float(squares.sum()), float(outputs.sum())),
    }


def _probed_seconds(config: QNN | LQNets) -> float:
    """Seconds of the fit of one weight, from that of a few random ones."""
    weight = np.random.default_rng(0).standard_normal(PROBE, np.float32)
    start = time.perf_counter()
    fit_weight(weight, config)
    return (time.perf_counter() - start) / weight.size
