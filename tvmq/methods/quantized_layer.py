"""What every method makes of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmq.methods.activations import InputQuantizer

__all__ = ["QuantizedLayer", "relative_norm"]


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """What became of a weight and of the inputs of its layers.

    Attributes
    ----------
    weight : float32, of the shape of the weight
    correction : float32 of shape (O,), optional
        What to add to the layer's output.
    quantizer : InputQuantizer, optional
        What rounds the layer's inputs.
    row : dict
        Of the report.
    """

    weight: np.ndarray
    correction: np.ndarray | None
    quantizer: InputQuantizer | None
    row: dict[str, Any] = field(default_factory=dict)


def relative_norm(error: float, output: float) -> float:
    """Ratio of two norms, given their squares; of nothing to nothing 0."""
    if output == 0:
        return 0.0 if error == 0 else float("inf")
    return float(np.sqrt(error / output))
