"""The quantizers of layers' inputs, fitted to what the layers see in the quantized network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tvmq.methods.activations import ActivationRange, InputQuantizer, fit_quantizer
from tvmq.methods.layerwise import SideBySide
from tvmq.methods.linear_layers import SharedWeight
from tvmq.methods.processes import Processes

__all__ = ["FitInput", "InputQuantizers"]

INPUT_BITS = 8

FitInput = Callable[[ActivationRange, int], InputQuantizer]
"""A method's quantizer of so many bits for a distribution."""


class _Config(Protocol):
    @property
    def activations(self) -> int | None: ...
    @property
    def first_layer(self) -> str: ...


class InputQuantizers:
    """Fits a quantizer where a method wants one; layers that read the same values share it.

    Parameters
    ----------
    config : GPFQ, QNN or LQNets
    networks : SideBySide
    processes : Processes
        Their values are counted together.
    fit : callable
    """

    def __init__(self, config: _Config, networks: SideBySide, processes: Processes, fit: FitInput) -> None:
        self._config, self._networks, self._processes, self._fit = config, networks, processes, fit
        self._found: dict[Any, InputQuantizer] = {}

    def of(self, weight: SharedWeight, first: bool) -> InputQuantizer | None:
        """The quantizer for a weight's inputs, used from now on; None if they stay in float.

        Parameters
        ----------
        weight : SharedWeight
        first : bool
            Whether it is the network's first.

        Returns
        -------
        InputQuantizer or None
        """
        if self._config.activations is None:
            return None
        # Pixels are levels already: nothing to clip.
        as_bytes = first and self._config.first_layer == "input8"
        bits = INPUT_BITS if as_bytes else self._config.activations
        key = _key(weight, bits)
        if key not in self._found:
            values = self._distribution(weight)
            self._found[key] = fit_quantizer(values, bits, "max") if as_bytes else self._fit(values, bits)
        self._networks.quantize_inputs(weight, self._found[key])
        return self._found[key]

    def adopt(self, weight: SharedWeight, quantizer: InputQuantizer) -> None:
        """Use a quantizer that was found in an earlier run."""
        self._networks.quantize_inputs(weight, quantizer)
        self._found.setdefault(_key(weight, quantizer.bits), quantizer)

    def _distribution(self, weight: SharedWeight) -> ActivationRange:
        values = ActivationRange()
        for batch in self._networks.inputs(weight):
            for seen in batch:
                values.add_range(seen.quantized)
        values.reduce_range(self._processes)
        for batch in self._networks.inputs(weight):
            for seen in batch:
                values.add_counts(seen.quantized)
        values.reduce_counts(self._processes)
        return values


def _key(weight: SharedWeight, bits: int) -> Any:
    return (*(use.call.args[0] for use in weight.uses), bits)
