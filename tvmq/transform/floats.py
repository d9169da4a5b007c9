"""Float32 numbers in order: integer keys for bisection over all of them."""

from __future__ import annotations

import numpy as np

__all__ = ["LARGEST_KEY", "SMALLEST_KEY", "float_of_key"]

_BASE = -(2**31)


def float_of_key(key: np.ndarray) -> np.ndarray:
    """Float32 of integer keys; keys are in the order of the floats that they stand for.

    Parameters
    ----------
    key : int64 array
        Non-negative keys are the bits of the non-negative floats, negative ones count down from -0.0.

    Returns
    -------
    float32 array of the same shape
    """
    bits = np.where(key < 0, _BASE - key - 1, key).astype(np.int32)
    return bits.view(np.float32)


LARGEST_KEY = int(np.finfo(np.float32).max.view(np.int32))
SMALLEST_KEY = -LARGEST_KEY - 1
"""Keys of the largest and the smallest finite float."""
