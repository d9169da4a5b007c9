"""A float network as a float network of ncnn: the int8 network with its numbers exchanged.

    Convolution conv 1 1 x y 0=64 1=3 8=2 ...  ->  Convolution conv 1 1 x y 0=64 1=3 ...

Layers and their order are the same.  Weights are floats behind a tag of zeros, which says that they are.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmq.rivals.ncnn_int8 import NcnnNetwork, to_ncnn

__all__ = ["to_ncnn_float"]

_FLOATS_FOLLOW = np.zeros(1, np.float32)
_KINDS = {"Convolution": 8, "Gemm": 18}
"""Layers with weights, and the parameter that makes them int8."""


def to_ncnn_float(network: onnx.ModelProto) -> NcnnNetwork:
    """Write a float network for ncnn."""
    written = to_ncnn(network, defaultdict(lambda: 1.0))
    lines = [_without_int8(line) for line in written.layers.splitlines()]
    weights = b"".join(array.astype("<f4").tobytes() for array in _weights(network))
    return NcnnNetwork("\n".join([*lines, ""]), weights, weights, written.inputs, written.outputs)


def _without_int8(line: str) -> str:
    parameter = _KINDS.get(line.split(" ")[0])
    return line if parameter is None else re.sub(rf" {parameter}=\d+", "", line)


def _weights(network: onnx.ModelProto) -> list[np.ndarray]:
    """Weights and biases of the layers in their order, as they stand in the file."""
    constants = {item.name: numpy_helper.to_array(item) for item in network.graph.initializer}
    arrays = []
    for node in network.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight, *biases = (constants[name] for name in node.input[1:])
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type != "Conv" and not attributes.get("transB", 0):
            weight = weight.T
        bias = np.broadcast_to(biases[0] if biases else np.float32(0), len(weight))
        arrays += [_FLOATS_FOLLOW, weight, *([] if node.op_type == "Conv" else [_FLOATS_FOLLOW]), bias]
    return arrays
