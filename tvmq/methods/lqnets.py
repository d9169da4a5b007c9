"""Configuration of LQ-Nets: quantizers whose levels are learned."""

from __future__ import annotations

from dataclasses import dataclass

from tvmq.errors import InputError
from tvmq.methods.checks import check_choice, name_patterns

__all__ = ["LQNets"]

MOST_BITS = 4
"""Sums of four numbers are the most that kernels have bit planes for."""


@dataclass(frozen=True)
class LQNets:
    """Weights and activations on the sums of a learned basis (Zhang et al., ECCV 2018).

    The defaults are the paper's: weights have one basis per output channel, activations one per layer; the first and
    the last layer stay in float; all others, convolutions of shortcuts too, are quantized.  For :func:`tvmq.prepare`,
    which makes a network to train, and for :func:`tvmq.quantize`, which fits the bases to a trained network instead.

    Parameters
    ----------
    weights : int
        Bits of a weight, 1 to 4.
    activations : int, optional
        Bits of an activation, 1 to 4; None leaves activations in float.  Training expects values that come from a ReLU
        and takes what is below zero for zero; :func:`tvmq.quantize` gives inputs of both signs a basis of signs.
    first_layer : {"float", "input8", "quantized"}
        "float": the first layer stays as it is.  "input8": its input lies in [0, 1] and is rounded to 8 bits.
        "quantized": it is quantized like every other layer.
    last_layer : {"float", "quantized"}
        Whether the last layer stays as it is or is quantized like the others.
    skip : tuple of str
        Names of layers to leave in float, or patterns such as ``"layer1.*"`` (as in :mod:`fnmatch`, case matters).

    Raises
    ------
    InputError
        For a value that is not one of those above; the message states the legal ones.

    Examples
    --------
    >>> LQNets(weights=2, activations=2).first_layer
    'float'
    """

    weights: int = 2
    activations: int | None = 2
    first_layer: str = "float"
    last_layer: str = "float"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Reject every value that no later stage could honour."""
        _check_bits("weights", self.weights, "")
        if self.activations is not None:
            _check_bits("activations", self.activations, "None or ")
        check_choice("LQNets", "first_layer", self.first_layer, ("float", "input8", "quantized"))
        check_choice("LQNets", "last_layer", self.last_layer, ("float", "quantized"))
        object.__setattr__(self, "skip", name_patterns("LQNets", self.skip))


def _check_bits(field: str, value: object, others: str) -> None:
    # bool is an int to Python, but `weights=True` is a slip, not a bit width.
    if type(value) is not int or not 1 <= value <= MOST_BITS:
        raise InputError(f"LQNets: {field}={value!r} is not supported; use {others}1 to {MOST_BITS} (bits)")
