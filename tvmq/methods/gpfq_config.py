"""Configuration of greedy path-following quantization for a whole network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvmq.errors import InputError
from tvmq.methods.checks import check_choice, name_patterns

__all__ = ["GPFQ"]

MOST_BITS = 4
MOST_ACTIVATION_BITS = 8


@dataclass(frozen=True)
class GPFQ:
    """Quantize the weights of a trained network without training, by greedy path following.

    The defaults are the paper's (Lybrand and Saab, JMLR 2021): every layer is quantized, the first and the last too,
    one alphabet for a layer, radius ``constant * median |weight|``, float activations.  Where the paper tried several
    constants, the default searches for the best.

    Parameters
    ----------
    weights : int or "ternary"
        ``"ternary"`` for the levels -1, 0, 1, or 1 to 4 bits for 2**bits equispaced levels, symmetric around zero,
        times the radius.
    activations : int, optional
        Bits of the inputs of quantized layers, 1 to 8; None leaves them in float.  The walk of a layer then sees its
        quantized inputs and compensates for their error.
    first_layer : {"input8", "quantized", "float"}
        With quantized activations, "input8" rounds the input of the first layer to 8 bits, "quantized" to
        ``activations`` bits.  Its weights are quantized either way; "float" leaves the layer as it is.
    last_layer : {"quantized", "float"}
        Whether the last layer stays as it is or is quantized like the others.
    skip : tuple of str
        Names of layers to leave in float, or patterns such as ``"layer1.*"`` (as in :mod:`fnmatch`, case matters).
    constant : float or "search"
        What the median of the layer's absolute weights is multiplied with to give the radius, the largest level.
        "search" takes the constant with the smallest reconstruction error on the calibration data.
    radius : {"layer", "channel"}
        One radius for a layer, or one per output channel, whose median is then that of the channel.
    walk : {"filter", "channel"}
        "filter" walks through all weights of an output channel; "channel" is the original code's convolution, which
        treats each input channel on its own.  It matters for convolutions only.
    bias_correction : bool
        Add the mean of the error that is left, per output channel.
    activation_clip : {"mse", "percentile", "max"}
        How the largest level of an activation is chosen on the calibration data: smallest mean squared error, the
        given percentile, or the largest value.
    percentile : float
        For ``activation_clip="percentile"``, of the absolute values; in (50, 100].
    patches : int, optional
        Use at most that many output positions of each sample of a convolution, drawn at random.  None takes all.
    seed : int
        Of every random choice.

    Raises
    ------
    InputError
        For a value that is not one of those above; the message states the legal ones.

    Examples
    --------
    >>> GPFQ(weights=2, activations=2, skip=("head.*",)).skip
    ('head.*',)
    """

    weights: int | Literal["ternary"] = "ternary"
    activations: int | None = None
    first_layer: str = "input8"
    last_layer: str = "quantized"
    skip: tuple[str, ...] = ()
    constant: float | Literal["search"] = "search"
    radius: str = "layer"
    walk: str = "filter"
    bias_correction: bool = False
    activation_clip: str = "mse"
    percentile: float = 99.9
    patches: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject every value that no later stage could honour."""
        if self.weights != "ternary" and (type(self.weights) is not int or not 1 <= self.weights <= MOST_BITS):
            raise InputError(
                f"GPFQ: weights={self.weights!r} is not supported; use 'ternary' or 1 to {MOST_BITS} (bits)"
            )
        bits = self.activations
        if bits is not None and (type(bits) is not int or not 1 <= bits <= MOST_ACTIVATION_BITS):
            raise InputError(
                f"GPFQ: activations={bits!r} is not supported; use None or 1 to {MOST_ACTIVATION_BITS} (bits)"
            )
        check_choice("GPFQ", "first_layer", self.first_layer, ("float", "input8", "quantized"))
        check_choice("GPFQ", "last_layer", self.last_layer, ("float", "quantized"))
        check_choice("GPFQ", "radius", self.radius, ("layer", "channel"))
        check_choice("GPFQ", "walk", self.walk, ("filter", "channel"))
        check_choice("GPFQ", "activation_clip", self.activation_clip, ("mse", "percentile", "max"))
        object.__setattr__(self, "skip", name_patterns("GPFQ", self.skip))
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.constant != "search" and not _is_number(self.constant, 0, 1e6):
            raise InputError(f"GPFQ: constant={self.constant!r} is not supported; use 'search' or a positive number")
        if not _is_number(self.percentile, 50, 100):
            raise InputError(f"GPFQ: percentile={self.percentile!r} is not supported; use a number in (50, 100]")
        if self.patches is not None and (type(self.patches) is not int or self.patches < 1):
            raise InputError(f"GPFQ: patches={self.patches!r} is not supported; use None or a positive integer")
        if type(self.seed) is not int or self.seed < 0:
            raise InputError(f"GPFQ: seed={self.seed!r} is not supported; use an integer that is not negative")

    @property
    def levels(self) -> int:
        """How many letters the alphabet has."""
        return 3 if self.weights == "ternary" else 2**self.weights


def _is_number(value: object, above: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value <= most
