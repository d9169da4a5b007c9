"""Configuration of quantized neural networks (QNN): low-bit weights, activations and gradients from the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvmq.errors import InputError
from tvmq.methods.checks import check_choice, name_patterns

__all__ = ["QNN"]

MOST_BITS = 8

_FIRST_LAYER = ("float", "input8", "quantized")
_LAST_LAYER = ("float", "quantized")


@dataclass(frozen=True)
class QNN:
    """Weights, activations and gradients of few bits, on fixed levels (Hubara et al., JMLR 2018).

    The defaults are the paper's: binary weights and activations; the first layer reads an 8-bit input as bit planes and
    has binary weights, the last layer has binary weights and binary inputs and is followed by a batch norm without a
    sign.  For :func:`tvmq.prepare`, which makes a network to train, and for :func:`tvmq.quantize`, which fits ranges
    to a trained network instead.

    Parameters
    ----------
    weights : int or "ternary"
        Bits of a weight, 1 to 8: one bit has the values -1 and +1.  "ternary" has -1, 0 and 1 times a power of two.
    activations : int, optional
        Bits of an activation, 1 to 8: one bit has the values -1 and +1.  None leaves activations in float.
    gradients : int, optional
        Bits of the gradients that flow back through each layer, 1 to 8, rounded at random; None leaves them in float.
        The paper takes 6.
    stochastic : bool
        While training, draw the activations: of one bit +1 with probability ``clip((x + 1) / 2, 0, 1)``, of more bits
        one of the two levels around.  Weights are always quantized deterministically, and so is everything in eval
        mode.
    rounding : {"linear", "log"}
        With more than one bit, whether levels are equispaced, or zero and powers of two.  Powers of two are compiled as
        some of the levels of a grid, if it has at most 256: up to 4 bits with signs, or 3 bits without; layers of more
        are computed in float.
    signed : bool
        Whether activations have levels on both sides of zero, in [-1, 1], as hardtanh and tanh give; or, for networks
        of ReLUs, from zero on, in [0, 1].
    first_layer : {"input8", "quantized", "float"}
        "input8": the input lies in [0, 1] and is rounded to 8 bits.  "quantized": it is quantized like every other
        activation.  "float": the first layer stays as it is.
    last_layer : {"quantized", "float"}
        Whether the last layer is quantized like the others or stays as it is.
    skip : tuple of str
        Names of layers to leave in float, or patterns such as ``"layer1.*"`` (as in :mod:`fnmatch`, case matters).

    Raises
    ------
    InputError
        For a value that is not one of those above; the message states the legal ones.

    Examples
    --------
    >>> QNN(weights=4, activations=4, first_layer="float", skip=("head.*",)).skip
    ('head.*',)
    """

    weights: int | Literal["ternary"] = 1
    activations: int | None = 1
    gradients: int | None = None
    stochastic: bool = False
    rounding: str = "linear"
    signed: bool = True
    first_layer: str = "input8"
    last_layer: str = "quantized"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Reject every value that no later stage could honour."""
        if self.weights != "ternary":
            _check_bits("weights", self.weights, "'ternary' or ")
        if self.activations is not None:
            _check_bits("activations", self.activations, "None or ")
        if self.gradients is not None:
            _check_bits("gradients", self.gradients, "None or ")
        check_choice("QNN", "rounding", self.rounding, ("linear", "log"))
        check_choice("QNN", "first_layer", self.first_layer, _FIRST_LAYER)
        check_choice("QNN", "last_layer", self.last_layer, _LAST_LAYER)
        for field in ("stochastic", "signed"):
            if not isinstance(getattr(self, field), bool):
                raise InputError(f"QNN: {field}={getattr(self, field)!r} is not supported; use True or False")
        if self.rounding == "log" and self.gradients == 1:
            raise InputError(
                "QNN: gradients=1 has no powers of two to choose from; use 2 or more, or rounding='linear'"
            )
        object.__setattr__(self, "skip", name_patterns("QNN", self.skip))


def _check_bits(field: str, value: object, others: str) -> None:
    # bool is an int to Python, but `weights=True` is a slip, not a bit width.
    if type(value) is not int or not 1 <= value <= MOST_BITS:
        raise InputError(f"QNN: {field}={value!r} is not supported; use {others}1 to {MOST_BITS} (bits)")
