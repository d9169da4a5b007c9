"""A float ONNX network as an int8 network of ncnn.

ncnn has tools that quantize its own float networks (``ncnn2table``, ``ncnn2int8``), but they are not in its Python
package; this writes what they write.  A convolution computes

    y[c] = activation(Σ w[c] x + bias[c]) ≈ activation(Σ round(s[c] w[c]) round(t x) / (s[c] t) + bias[c])

with a factor ``s`` per output channel and a factor ``t`` per layer, both ``127 / largest magnitude``; that of ``x`` is
measured on samples.  Where only convolutions read ``y``, ``round(t' y)`` is written at once, for their ``t'``.

A 3x3 convolution of stride 1 can be one of Winograd's.  F(4,3) makes weights up to 12 · 12 and activations up to
10 · 10 times as large before their products are summed over the channels in 32 bits, and so needs weights of 6 bits:
``s = 31 / largest magnitude``.

A dense layer is a ``Gemm``, which has one ``s`` for all channels and finds ``t`` for every sample as it runs.  With
4096 inputs and outputs (one thread of a Zen 4 core) that takes a fifth of the time of an ``InnerProduct``, and for 256
samples a sixteenth.  Everything else works on floats.  ncnn has no batch of images; a batch of vectors is a matrix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmq.errors import UnsupportedOperatorError
from tvmq.rivals.ncnn_files import Layer, layers_text, split_shared, weights_file

__all__ = ["DIRECT", "WINOGRAD_23", "WINOGRAD_43", "NcnnNetwork", "to_ncnn"]

DIRECT, WINOGRAD_23, WINOGRAD_43 = "no Winograd", "Winograd F(2,3)", "Winograd F(4,3)"

_MOST, _MOST_OF_6_BITS = 127, 31
_RELU, _CLIP = 1, 3
"""Kinds of activation function."""
_INT8_TO_FLOAT, _INT8_TO_INT8 = 2, 102
_ACTIVATION, _BOUNDS, _INT8, _INT8_OF_DENSE = 9, 10, 8, 18
"""Parameters of convolutions, and one of dense layers."""
_BIAS_OF_COLUMNS = 4
_FLOATS_FOLLOW = 0.0
"""The tag of floats that could be of another type; its bytes are zeros."""
_STEPS = (3, 13, 2, 12)
"""Parameters of a convolution: strides and dilations."""
_MAXIMUM, _AVERAGE = 0, 1
"""Kinds of pooling."""
_AS_GIVEN = 1
"""A pool's borders are those that its parameters give."""
_SUM = 0
"""Kind of an operator with two operands."""


@dataclass(frozen=True)
class NcnnNetwork:
    """What ncnn loads.

    Attributes
    ----------
    layers : str
        The .param file.
    weights, winograd_43_weights : bytes
        The .bin file; the second one if convolutions are to be computed by F(4,3).
    inputs, outputs : dict of str to str
        ncnn's names of tensors by those in the ONNX network.
    """

    layers: str
    weights: bytes
    winograd_43_weights: bytes
    inputs: dict[str, str]
    outputs: dict[str, str]

    @property
    def kinds(self) -> dict[str, bytes]:
        """The ways to compute 3x3 convolutions of stride 1 with their weights; one way if there are none of those."""
        if self.weights == self.winograd_43_weights:
            return {DIRECT: self.weights}
        return {DIRECT: self.weights, WINOGRAD_23: self.weights, WINOGRAD_43: self.winograd_43_weights}


def to_ncnn(network: onnx.ModelProto, magnitudes: Mapping[str, float]) -> NcnnNetwork:
    """Write a float network for ncnn, its convolutions and dense layers in int8.

    Parameters
    ----------
    network : onnx.ModelProto
        Float, batch norms folded, shapes inferred.
    magnitudes : mapping of str to float
        The largest magnitude of each tensor that is not constant.

    Returns
    -------
    NcnnNetwork

    Raises
    ------
    UnsupportedOperatorError
        If an operator has no counterpart here, or the batch has none; the message names the layer.
    """
    writer = _Writer(network.graph)
    for node in network.graph.node:
        writer.write(node)
    weights = {most: _weights(writer, magnitudes, most) for most in (_MOST, _MOST_OF_6_BITS)}
    return NcnnNetwork(
        layers=layers_text(split_shared(writer.layers)),
        weights=weights[_MOST],
        winograd_43_weights=weights[_MOST_OF_6_BITS],
        inputs={item.name: writer.names[item.name] for item in network.graph.input},
        outputs={item.name: writer.names[item.name] for item in network.graph.output},
    )


@dataclass(frozen=True)
class _Convolution:
    """A convolution without its numbers; ``source`` is the ONNX name of what it reads."""

    layer: Layer
    weight: np.ndarray
    bias: np.ndarray
    source: str


def _weights(writer: _Writer, magnitudes: Mapping[str, float], most_by_winograd: int) -> bytes:
    """The .bin file with 3x3 convolutions of stride 1 up to a magnitude."""
    for convolution in writer.convolutions:
        _quantize(convolution, writer, magnitudes, most_by_winograd)
    return weights_file(writer.layers)


def _quantize(
    convolution: _Convolution, writer: _Writer, magnitudes: Mapping[str, float], most_by_winograd: int
) -> None:
    """Give a convolution its numbers."""
    layer, channels = convolution.layer, convolution.weight.reshape(len(convolution.weight), -1)
    is_winograd = convolution.weight.shape[2:] == (3, 3) and all(layer.parameters[key] == 1 for key in _STEPS)
    factors = _factor(np.abs(channels).max(1), most_by_winograd if is_winograd else _MOST)
    levels = np.rint(channels * factors[:, None]).astype(np.int8)
    readers = writer.convolutions_reading(layer)
    layer.parameters[_INT8] = _INT8_TO_INT8 if readers else _INT8_TO_FLOAT
    sources = [convolution.source, *[reader.source for reader in readers[:1]]]
    layer.weights = [levels, convolution.bias, factors, *[_factor(magnitudes[name], _MOST) for name in sources]]


def _factor(magnitude: np.ndarray | float, most: int) -> np.ndarray:
    """What brings numbers up to a magnitude to integers; 1 where all are zero."""
    magnitude = np.asarray(magnitude, np.float32)
    return np.float32(most) / np.where(magnitude > 0, magnitude, np.float32(most))


class _Writer:
    """Writes a graph's nodes one by one."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.shapes = {
            item.name: tuple(size.dim_value for size in item.type.tensor_type.shape.dim)
            for item in (*graph.input, *graph.value_info, *graph.output)
        }
        self.layers: list[Layer] = []
        self.convolutions: list[_Convolution] = []
        self.names: dict[str, str] = {}
        """ncnn's names of tensors by ONNX's."""
        self.nodes = {name: node for node in graph.node for name in node.output}
        self._results = [item.name for item in graph.output]
        self._reads = Counter(self._results)
        self._reads.update(name for node in graph.node for name in node.input)
        for item in graph.input:
            shape = self.shapes[item.name]
            if len(shape) != 2 and (len(shape) != 4 or shape[0] != 1):
                raise UnsupportedOperatorError(
                    f"input '{item.name}': ncnn takes one image or a batch of vectors, not {list(shape)}"
                )
            self.emit("Input", item.name, [])

    def write(self, node: onnx.NodeProto) -> None:
        """Write a node, or say that it cannot be written."""
        write = _OPERATORS.get(node.op_type)
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if write is None or not write(self, node, attributes):
            raise UnsupportedOperatorError(
                f"layer '{node.name or node.output[0]}': {node.op_type} in this form cannot be written for ncnn"
            )

    def emit(self, kind: str, output: str, inputs: Sequence[str], parameters: dict[int, Any] | None = None) -> Layer:
        """Write a layer with one output; tensors by their ONNX names."""
        name = f"{len(self.layers)}_{re.sub('[^0-9A-Za-z_]', '_', output)}"
        layer = Layer(kind, name, [self.names[item] for item in inputs], [name], parameters or {})
        self.layers.append(layer)
        self.names[output] = name
        return layer

    def alias(self, output: str, source: str) -> bool:
        """Another name of the same tensor."""
        self.names[output] = self.names[source]
        return True

    def unshared(self, tensor: str) -> Layer | None:
        """The layer that wrote a tensor, if that is read once, so that it may write something else instead."""
        if self._reads[tensor] != 1 or Counter(self.names.values())[self.names[tensor]] != 1:
            return None
        return next(layer for layer in self.layers if self.names[tensor] in layer.outputs)

    def convolutions_reading(self, layer: Layer) -> list[_Convolution]:
        """The convolutions that read what a layer writes; none of them if anything else reads it too."""
        (tensor,) = layer.outputs
        readers = [item for item in self.layers if tensor in item.inputs]
        found = [item for item in self.convolutions if tensor in item.layer.inputs]
        is_result = any(self.names[name] == tensor for name in self._results)
        return [] if is_result or len(found) < len(readers) else found


# --- operators: function(writer, node, attributes) -> whether this form of the node could be written ------------------

Writing = Callable[[_Writer, onnx.NodeProto, dict[str, Any]], bool]


def _convolution(writer: _Writer, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
    weight, *biases = _constants(writer, node)
    if weight is None or weight.ndim != 4 or attributes.get("group", 1) != 1 or "auto_pad" in attributes:
        return False
    if writer.shapes[node.input[0]][2:] == (1, 1):
        return False  # such as after global pooling, where ncnn has a vector
    strides, dilations = (attributes.get(name, [1, 1]) for name in ("strides", "dilations"))
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    sizes = {0: len(weight), 1: weight.shape[3], 11: weight.shape[2], 5: 1, 6: weight.size}
    steps = dict(zip(_STEPS, (strides[1], strides[0], dilations[1], dilations[0]), strict=True))
    borders = {4: left, 15: right, 14: top, 16: bottom}
    layer = writer.emit("Convolution", node.output[0], node.input[:1], sizes | steps | borders)
    bias = biases[0] if biases else np.zeros(len(weight))
    writer.convolutions.append(_Convolution(layer, weight, bias, node.input[0]))
    return True


def _dense(writer: _Writer, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
    weight, *biases = _constants(writer, node)
    scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
    if weight is None or weight.ndim != 2 or scaled or attributes.get("transA", 0):
        return False
    if len(writer.shapes[node.input[0]]) != 2:
        return False
    weight = weight if attributes.get("transB", 0) else weight.T
    constants = {3: 1, 5: 1, 6: 1, 10: _BIAS_OF_COLUMNS}
    sizes = {8: weight.shape[0], 9: weight.shape[1], _INT8_OF_DENSE: _INT8_TO_FLOAT}
    layer = writer.emit("Gemm", node.output[0], node.input[:1], constants | sizes)
    factor = _factor(np.abs(weight).max(), _MOST)
    bias = np.broadcast_to(biases[0] if biases else 0, len(weight))
    layer.weights = [np.rint(weight * factor).astype(np.int8), np.append(_FLOATS_FOLLOW, bias), factor]
    return True


def _constants(writer: _Writer, node: onnx.NodeProto) -> list[Any]:
    """The operands behind the first one, if they are constants and the first one is not; else None."""
    operands = [writer.constants.get(name) for name in node.input[1:]]
    return [None] if node.input[0] in writer.constants or any(item is None for item in operands) else operands


def _relu(writer: _Writer, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
    return _activation(writer, node, "ReLU", {}, {_ACTIVATION: _RELU})


def _clip(writer: _Writer, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
    low, high = [*_constants(writer, node), None, None][:2]
    if low is None or high is None:
        return False
    bounds = float(low), float(high)
    return _activation(writer, node, "Clip", dict(enumerate(bounds)), {_ACTIVATION: _CLIP, _BOUNDS: bounds})


def _activation(
    writer: _Writer, node: onnx.NodeProto, kind: str, alone: dict[int, Any], within: dict[int, Any]
) -> bool:
    """An activation function: a layer of its own, or within the convolution that it follows."""
    layer = _with_room(writer, node.input[0])
    if layer is None:
        writer.emit(kind, node.output[0], node.input[:1], alone)
        return True
    layer.parameters.update(within)
    return writer.alias(node.output[0], node.input[0])


def _with_room(writer: _Writer, tensor: str) -> Layer | None:
    """The convolution that can apply a rising function to a tensor; before a maximum is as well."""
    layer = writer.unshared(tensor)
    if layer is not None and layer.kind == "Pooling" and layer.parameters[0] == _MAXIMUM:
        return _with_room(writer, writer.nodes[tensor].input[0])
    if layer is None or layer.kind != "Convolution" or _ACTIVATION in layer.parameters:
        return None
    return layer


def _pool(kind: int) -> Writing:
    def write(writer: _Writer, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        kernel = attributes["kernel_shape"]
        plain = all(size == 1 for size in attributes.get("dilations", [1]))
        if len(kernel) != 2 or not plain or attributes.get("ceil_mode", 0) or "auto_pad" in attributes:
            return False
        strides = attributes.get("strides", [1, 1])
        top, left, bottom, right = attributes.get("pads", [0] * 4)
        sizes = {0: kind, 1: kernel[1], 11: kernel[0], 2: strides[1], 12: strides[0]}
        borders = {3: left, 14: right, 13: top, 15: bottom, 5: _AS_GIVEN, 6: attributes.get("count_include_pad", 0)}
        writer.emit("Pooling", node.output[0], node.input, sizes | borders)
        return True

    return write


def _global_average_pool(writer: _Writer, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
    writer.emit("Pooling", node.output[0], node.input, {0: _AVERAGE, 4: 1})
    return len(writer.shapes[node.input[0]]) == 4


def _flatten(writer: _Writer, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
    before, after = writer.shapes[node.input[0]], writer.shapes[node.output[0]]
    if before == after:
        return writer.alias(node.output[0], node.input[0])
    writer.emit("Reshape", node.output[0], node.input[:1], {0: -1, 1: 1})
    return len(after) == 2 and before[0] == after[0] == 1


def _add(writer: _Writer, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
    one, other = node.input
    if writer.shapes.get(one) != writer.shapes.get(other):
        return False
    writer.emit("BinaryOp", node.output[0], node.input, {0: _SUM})
    return True


def _softmax(writer: _Writer, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
    shape = writer.shapes[node.output[0]]
    axis = attributes.get("axis", -1) % len(shape)
    writer.emit("Softmax", node.output[0], node.input, {0: axis if len(shape) == 2 else axis - 1, 1: 1})
    return axis > 0


def _identity(writer: _Writer, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
    return writer.alias(node.output[0], node.input[0])


_OPERATORS: dict[str, Writing] = {
    "Add": _add,
    "AveragePool": _pool(_AVERAGE),
    "Clip": _clip,
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _dense,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _identity,
    "MatMul": _dense,
    "MaxPool": _pool(_MAXIMUM),
    "Relu": _relu,
    "Reshape": _flatten,
    "Softmax": _softmax,
}
