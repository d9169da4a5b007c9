"""Configuration of quantized neural networks in the sense of Courbariaux, Hubara et al. (QNN, BNN).

The network is trained with binary weights and activations: the forward pass uses signs, the backward pass a
straight-through estimator, and the latent weights stay real.  Training needs torch and lives in :mod:`tvmq.nn`; this
file only says *what* is quantized, so that every other part can read a configuration without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvmq.errors import InputError
from tvmq.methods.checks import check_choice, name_patterns

__all__ = ["QNN"]

_FIRST_LAYER = ("float", "input8", "quantized")
_LAST_LAYER = ("float", "quantized")


@dataclass(frozen=True)
class QNN:
    """Train with binary weights and binary activations.

    The defaults are the paper's: the first layer reads an 8-bit input as bit planes and has binary weights, the last
    layer has binary weights and binary inputs and is followed by a batch norm without a sign.

    Parameters
    ----------
    weights : int
        Bits of a weight.  Only 1 (values -1 and +1) is supported.
    activations : int
        Bits of an activation.  Only 1 (values -1 and +1) is supported.
    first_layer : {"float", "input8", "quantized"}
        "input8": the input lies in [0, 1], is rounded to 8 bits, and the weights are binary.  "float": the first
        layer stays as it is.  "quantized": the input is binarized like every other activation.
    last_layer : {"float", "quantized"}
        Whether the last layer stays as it is or is binarized like the others.
    skip : tuple of str
        Names of layers to leave in float, or patterns such as ``"layer1.*"`` (as in :mod:`fnmatch`, case matters).
    stochastic : bool
        While training, draw the activations: +1 with probability ``clip((x + 1) / 2, 0, 1)``.  Weights are always
        binarized deterministically, and so is everything in eval mode.

    Raises
    ------
    InputError
        For a value that is not one of those above; the message states the legal ones.

    Examples
    --------
    >>> QNN(first_layer="float", skip=("head.*",)).skip
    ('head.*',)
    """

    weights: int = 1
    activations: int = 1
    first_layer: str = "input8"
    last_layer: str = "quantized"
    skip: tuple[str, ...] = ()
    stochastic: bool = False

    def __post_init__(self) -> None:
        """Reject every value that no later stage could honour."""
        _check_bits("weights", self.weights)
        _check_bits("activations", self.activations)
        check_choice("QNN", "first_layer", self.first_layer, _FIRST_LAYER)
        check_choice("QNN", "last_layer", self.last_layer, _LAST_LAYER)
        if not isinstance(self.stochastic, bool):
            raise InputError(f"QNN: stochastic={self.stochastic!r} is not supported; use True or False")
        object.__setattr__(self, "skip", name_patterns("QNN", self.skip))


def _check_bits(field: str, value: object) -> None:
    # bool is an int to Python, but `weights=True` is a slip, not a bit width.
    if type(value) is not int or value != 1:
        raise InputError(f"QNN: {field}={value!r} is not supported; the only supported bit width is {field}=1 (-1, +1)")
