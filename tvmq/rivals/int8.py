"""A float ONNX network in int8, as onnxruntime's own static quantization makes it."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization

__all__ = ["quantize_int8"]


class _Samples(quantization.CalibrationDataReader):
    """Hands out calibration samples one by one."""

    def __init__(self, samples: Sequence[dict[str, np.ndarray]]) -> None:
        self._left = list(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample, or None after the last."""
        return self._left.pop(0) if self._left else None


def quantize_int8(
    network: onnx.ModelProto, samples: Sequence[dict[str, np.ndarray]], signed: bool = False
) -> onnx.ModelProto:
    """The network with QuantizeLinear and DequantizeLinear around every operator that int8 engines fuse.

    Weights are int8, one scale per output channel; activations are uint8 with the range they have on the samples.
    That is what VNNI computes, and the form that onnxruntime and OpenVINO document as their fastest.  Instructions of
    ARM multiply bytes that both have a sign.

    Parameters
    ----------
    network : onnx.ModelProto
        Float, batch norms folded, shapes inferred.
    samples : sequence of dict
        Inputs by name, one dictionary per calibration run.
    signed : bool
        Whether activations are int8 instead.

    Returns
    -------
    onnx.ModelProto
    """
    network = copy.deepcopy(network)  # it moves the constants out of the network that it is given
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory(prefix="tvmq-") as folder:
        path = Path(folder) / "int8.onnx"
        root.setLevel(logging.ERROR)  # it recommends a preparation that has been done
        try:
            quantization.quantize_static(
                network,
                path,
                _Samples(samples),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        return onnx.load(path)
