"""QuantizeLinear and DequantizeLinear, ONNX's own quantizers.

Both become the arithmetic that defines them.  A weight's values are computed at once; a pair around an activation with
one scale is a chain of scalar operations, which :class:`tvmq.transform.RecognizeQuantizers` turns into codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from tvm import relax

from tvmq.frontend.graph import Node

__all__ = ["CONVERTERS", "widen_small_integers"]

# element type -> (data type that holds it here, smallest, largest)
_TYPES: dict[int, tuple[str, int, int]] = {
    TensorProto.INT8: ("int8", -128, 127),
    TensorProto.UINT8: ("uint8", 0, 255),
    TensorProto.INT16: ("int16", -32768, 32767),
    TensorProto.UINT16: ("uint16", 0, 65535),
}
# Types narrower than a byte, which TVM stores packed and cannot compute with; onnx has had them since 1.16 and 1.20.
_SMALL: dict[int, tuple[str, int, int]] = {
    TensorProto.DataType.Value(name): bounds
    for name, bounds in (
        ("INT4", ("int8", -8, 7)),
        ("UINT4", ("uint8", 0, 15)),
        ("INT2", ("int8", -2, 1)),
        ("UINT2", ("uint8", 0, 3)),
    )
    if name in TensorProto.DataType.keys()
}
_OF_DTYPE = {dtype: element for element, (dtype, *_) in _TYPES.items()}


def widen_small_integers(graph: onnx.GraphProto) -> None:
    """Store initializers of 2 and 4 bits in bytes, and note at QuantizeLinear what its zero point was.

    Parameters
    ----------
    graph : onnx.GraphProto
        Changed in place.
    """
    small = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.data_type in _SMALL}
    for tensor in graph.initializer:
        if tensor.name in small:
            dtype = _SMALL[tensor.data_type][0]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2] in small:
            given = [attribute for attribute in node.attribute if attribute.name == "output_dtype"]
            if not given:
                node.attribute.append(onnx.helper.make_attribute("output_dtype", small[node.input[2]]))


def _axis(node: Node, rank: int) -> int:
    axis = node.integer("axis", 1)
    if not -rank <= axis < rank:
        raise node.error(f"attribute 'axis' is {axis}, but the tensor has {rank} dimensions")
    return axis % rank


def _aligned(node: Node, position: int, what: str) -> np.ndarray:
    """A scale or zero point in the shape in which it broadcasts to the tensor."""
    value = node.constant(position, what)
    block = node.integer("block_size", 0)
    if value.size == 1:
        return value.reshape(())
    shape = node.shape(0)
    rank = len(shape)
    axis = _axis(node, rank)
    if value.ndim == 1 and not block:
        if shape[axis] is not None and shape[axis] != len(value):
            raise node.error(f"the {what} has {len(value)} values, but dimension {axis} of the tensor is {shape[axis]}")
        return value.reshape([-1 if index == axis else 1 for index in range(rank)])
    if block and value.ndim == rank and shape[axis] is not None:
        value = np.take(np.repeat(value, block, axis), np.arange(min(shape[axis], value.shape[axis] * block)), axis)
        if all(size in (None, given) for size, given in zip(shape, value.shape, strict=True)):
            return value
    raise node.error(
        f"the {what} of shape {value.shape} does not fit the tensor of shape {tuple(shape)}; give one number, one per "
        "channel of 'axis', or one per block of 'block_size'"
    )


def _scale(node: Node) -> np.ndarray:
    scale = _aligned(node, 1, "scale")
    if scale.dtype != np.float32:
        raise node.unsupported(f"the scale is {scale.dtype}, but only float32 is supported; convert the network to it")
    if not np.isfinite(scale).all() or (scale <= 0).any():
        raise node.error("the scale is not positive; quantize the network again")
    return scale


def _zero_point(node: Node) -> np.ndarray | None:
    """The zero point as float32, or None where it is zero."""
    if node.input(2) is None:
        return None
    value = _aligned(node, 2, "zero point").astype(np.float32)
    return value if value.any() else None


def _output_type(node: Node) -> tuple[str, int, int]:
    element = node.integer("output_dtype", 0)
    if element == 0:
        dtype = "uint8" if node.input(2) is None else node.dtype(2)
        element = _OF_DTYPE.get(dtype, -1)
    found = {**_TYPES, **_SMALL}.get(element)
    if found is None:
        given = node.attributes.get("output_dtype")
        name = TensorProto.DataType.Name(given).lower() if given in TensorProto.DataType.values() else node.dtype(2)
        raise node.unsupported(f"the output type {name} is not supported; quantize to integers of at most 16 bits")
    return found


def _quantize(node: Node) -> relax.Expr | None:
    """``saturate(round(x / scale) + zero_point)``, halves rounded to even; None where the scale is computed."""
    if not node.is_constant(1, 2):
        return None
    x = node.required(0, "tensor to quantize")
    if node.dtype(0) != "float32":
        raise node.unsupported(f"the tensor is {node.dtype(0)}, but only float32 can be quantized; add a Cast")
    scale, zero_point = _scale(node), _zero_point(node)
    dtype, low, high = _output_type(node)
    y = relax.op.round(relax.op.divide(x, relax.const(scale)))
    if zero_point is not None:
        y = relax.op.add(y, relax.const(zero_point))
    return relax.op.astype(relax.op.clip(y, low, high), dtype)


def _dequantize(node: Node) -> relax.Expr | None:
    """``(x - zero_point) * scale``; None where the scale is computed."""
    if not node.is_constant(1, 2):
        return None
    x = node.required(0, "tensor to dequantize")
    dtype = node.dtype(0)
    if dtype != "int32" and dtype not in _OF_DTYPE:
        raise node.unsupported(f"the tensor is {dtype}; only integers of 2, 4, 8, 16 and 32 bits are supported")
    scale, zero_point = _scale(node), _zero_point(node)
    if zero_point is not None and dtype == "int32":
        raise node.error("a tensor of int32, such as a bias, must have the zero point 0; quantize the network again")
    y = relax.op.astype(x, "float32")
    if zero_point is not None:
        y = relax.op.subtract(y, relax.const(zero_point))
    return relax.op.multiply(y, relax.const(scale))


CONVERTERS: Mapping[str, Callable[[Node], relax.Expr | None]] = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}
