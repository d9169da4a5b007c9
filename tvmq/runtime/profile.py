"""Which layer each call of a library's functions belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["layers_of_calls"]


def layers_of_calls(functions: Sequence[str], layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    """The layer that each call computes.

    Both sequences are in the order in which the network runs, and every layer is one call: so the n-th layer is the
    first call of its function after the (n-1)-th layer's.

    Parameters
    ----------
    functions : sequence of str
        Names of all functions that one run calls.
    layers : sequence of mapping
        Rows of the receipt, each with the ``function`` that computes it, or ``None``.

    Returns
    -------
    list of mapping or None
        One per call; ``None`` for calls between layers, and for all calls of a network whose layers do not say which
        function computes them.
    """
    found: list[Mapping[str, Any] | None] = [None] * len(functions)
    position = 0
    for layer in layers:
        while position < len(functions) and functions[position] != layer.get("function"):
            position += 1
        if position == len(functions):
            return [None] * len(functions)
        found[position] = layer
        position += 1
    return found
