"""What ncnn reads: a text of layers (.param) and a file of weights (.bin).

The text has a magic number, the numbers of layers and of tensors, and one line per layer::

    Convolution conv 1 1 x y 0=64 1=3 5=1 -23310=2,0.000000e+00,6.000000e+00

kind, name, number of inputs and of outputs, their names, and numbered parameters; one that is an array has the key
``-23300 - number`` and its length in front.  A tensor has one reader, so one that several layers read goes through a
layer ``Split``.  The weights follow one another in the order of the layers: bytes behind a tag and filled up to a
multiple of four, floats as they are.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Layer", "layers_text", "split_shared", "weights_file"]

_MAGIC = 7767517
_INT8_TAG = 0x000D4B38
_ARRAYS = -23300

Parameter = int | float | tuple[float, ...]


@dataclass
class Layer:
    """One layer.

    Attributes
    ----------
    kind, name : str
        ncnn's name of the operator, and the layer's own.
    inputs, outputs : list of str
        Names of tensors.
    parameters : dict of int to number or tuple of float
    weights : list of numpy.ndarray
        int8 or float32, in the order in which ncnn reads them.
    """

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, Parameter] = field(default_factory=dict)
    weights: list[np.ndarray] = field(default_factory=list)


def split_shared(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with a ``Split`` behind every tensor that is read more than once.

    Parameters
    ----------
    layers : sequence of Layer
        In an order in which they can run; left as they are.

    Returns
    -------
    list of Layer
    """
    readers: dict[str, int] = defaultdict(int)
    for layer in layers:
        for name in layer.inputs:
            readers[name] += 1
    copies = {name: [f"{name}.{index}" for index in range(count)] for name, count in readers.items() if count > 1}
    left = {name: iter(names) for name, names in copies.items()}
    result = []
    for layer in layers:
        inputs = [next(left[name]) if name in left else name for name in layer.inputs]
        result.append(Layer(layer.kind, layer.name, inputs, layer.outputs, layer.parameters, layer.weights))
        result += [Layer("Split", f"{name}.split", [name], copies[name]) for name in layer.outputs if name in copies]
    return result


def layers_text(layers: Sequence[Layer]) -> str:
    """The text of layers.

    Parameters
    ----------
    layers : sequence of Layer
        Every tensor is read at most once; no name has white space.

    Returns
    -------
    str
    """
    tensors = sum(len(layer.outputs) for layer in layers)
    return "\n".join([str(_MAGIC), f"{len(layers)} {tensors}", *map(_line, layers), ""])


def _line(layer: Layer) -> str:
    names = [*layer.inputs, *layer.outputs]
    parameters = [_parameter(number, value) for number, value in layer.parameters.items()]
    return " ".join([layer.kind, layer.name, str(len(layer.inputs)), str(len(layer.outputs)), *names, *parameters])


def _parameter(number: int, value: Parameter) -> str:
    if isinstance(value, tuple):
        return f"{_ARRAYS - number}={len(value)}," + ",".join(f"{item:e}" for item in value)
    return f"{number}={value}" if isinstance(value, int) else f"{number}={value:e}"


def weights_file(layers: Sequence[Layer]) -> bytes:
    """The file of weights.

    Parameters
    ----------
    layers : sequence of Layer

    Returns
    -------
    bytes
    """
    return b"".join(_bytes(array) for layer in layers for array in layer.weights)


def _bytes(array: np.ndarray) -> bytes:
    if array.dtype != np.int8:
        return array.astype("<f4").tobytes()
    return struct.pack("<I", _INT8_TAG) + array.tobytes() + bytes(-array.size % 4)
