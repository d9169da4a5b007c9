"""What a network's inputs and outputs look like, and whether given arrays fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmq.errors import InputError

__all__ = ["TensorSpec", "check_inputs"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and element type of one input or output.

    Parameters
    ----------
    name : str
        Name of the tensor in its source.
    shape : tuple of int or None
        ``None`` is the dynamic batch; all ``None`` of one network are the same number.
    dtype : str
        A numpy element type such as ``"float32"``.

    Raises
    ------
    InputError
        For an empty name, a negative dimension or an unknown element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __post_init__(self) -> None:
        """Bring the shape to a tuple of plain integers (JSON has lists) and reject nonsense."""
        shape = tuple(None if size is None else int(size) for size in self.shape)
        object.__setattr__(self, "shape", shape)
        if not self.name:
            raise InputError("a tensor needs a name")
        if any(size is not None and size < 0 for size in shape):
            raise InputError(f"tensor '{self.name}': shape {shape} has a negative dimension")
        try:
            object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        except TypeError:
            raise InputError(f"tensor '{self.name}': '{self.dtype}' is not an element type of numpy") from None

    @property
    def dynamic(self) -> bool:
        """Whether the batch is open."""
        return None in self.shape

    def __str__(self) -> str:
        """``x: float32[batch, 3, 32, 32]``."""
        return f"{self.name}: {self.dtype}[{', '.join('batch' if size is None else str(size) for size in self.shape)}]"


def check_inputs(specs: Sequence[TensorSpec], arrays: Sequence[Any]) -> list[np.ndarray]:
    """Check arrays against what the network takes.

    Nothing is cast silently, except that Python lists and numbers, which have no element type, take the network's.

    Parameters
    ----------
    specs : sequence of TensorSpec
        What the network takes.
    arrays : sequence of array-like
        One array per input.

    Returns
    -------
    list of numpy.ndarray
        The same values, contiguous.

    Raises
    ------
    InputError
        For a wrong number of arrays, or a wrong shape, element type or batch.
    """
    if len(arrays) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"the network takes {len(specs)} input(s) ({names}), but {len(arrays)} were given")
    checked = [_check_input(spec, array) for spec, array in zip(specs, arrays, strict=True)]
    _check_batch(specs, checked)
    return checked


def _check_input(spec: TensorSpec, given: Any) -> np.ndarray:
    untyped = isinstance(given, list | tuple | int | float)
    try:
        array = np.asarray(given, dtype=spec.dtype if untyped else None)
    except (TypeError, ValueError) as error:
        raise InputError(f"input '{spec.name}' is not an array: {error}; give a numpy array of {spec}") from None
    if array.dtype != np.dtype(spec.dtype):
        remedy = f'; convert it with .astype("{spec.dtype}")' if array.dtype.kind in "biuf" else ""
        raise InputError(f"input '{spec.name}' is {array.dtype}, but the network takes {spec.dtype}{remedy}")
    expected = spec.shape
    fits = array.ndim == len(expected) and all(
        wanted is None or size == wanted for size, wanted in zip(array.shape, expected, strict=True)
    )
    if not fits:
        raise InputError(f"input '{spec.name}' has shape {array.shape}, but the network takes {spec}")
    return np.require(array, requirements="C")


def _check_batch(specs: Sequence[TensorSpec], arrays: Sequence[np.ndarray]) -> None:
    batches = {
        (spec.name, size)
        for spec, array in zip(specs, arrays, strict=True)
        for size, wanted in zip(array.shape, spec.shape, strict=True)
        if wanted is None
    }
    if any(size == 0 for _, size in batches):
        raise InputError("the batch is empty; give at least one sample")
    if len({size for _, size in batches}) > 1:
        sizes = ", ".join(f"'{name}': {size}" for name, size in sorted(batches))
        raise InputError(f"the inputs disagree about the batch ({sizes})")
