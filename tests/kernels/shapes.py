"""Shapes of convolutions that tests of several kernels share."""

from __future__ import annotations

from typing import Any

BORDER: dict[str, Any] = {"row_classes": 3, "col_classes": 2}
POINTWISE: dict[str, Any] = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "same": BORDER,
    "pointwise": {**POINTWISE, "in_channels": 256, "out_channels": 33},
    "strided": {"strides": (2, 2), "in_channels": 33, "out_channels": 100},
    "large": {"kernel": (5, 5), "padding": (2, 2, 2, 2), "in_channels": 3, "out_channels": 10},
    "dilated": {"dilation": (2, 2), "padding": (2, 2, 2, 2), "in_channels": 100, "out_channels": 256},
    "lopsided": {"kernel": (3, 1), "padding": (0, 1, 2, 0), "strides": (1, 2), "in_channels": 1, "out_channels": 1},
}
