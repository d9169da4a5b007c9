"""ONNX networks."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.tirx import IntImm

from tvmq import golden
from tvmq.errors import InputError, ModelError, TvmqError, UnsupportedOperatorError
from tvmq.frontend.normalize import first_line, layer_of_parameter, normalize
from tvmq.model import Model

__all__ = ["load_onnx", "read_onnx"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, with its external data.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ModelError
        When the file is not ONNX, or its external data is missing.
    """
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf, onnx and the file system each raise their own
        raise ModelError(f"{path} cannot be read as an ONNX file: {first_line(error)}") from error
    # Protobuf reads an empty file, and some text, as a message without fields.
    if proto.ir_version == 0 or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX file: it holds no graph; export the network again")
    return proto


def load_onnx(proto: onnx.ModelProto, inputs: Any, name: str, dynamic_batch: bool) -> Model:
    """Import an ONNX network.

    Parameters
    ----------
    proto : onnx.ModelProto
        Left as it is.
    inputs : tuple of array-like or None
        Arrays whose shapes the dimensions take that the file leaves open.
    name : str
        Name of the network, also in errors.
    dynamic_batch : bool
        Leave the first dimension of every input open.

    Returns
    -------
    Model

    Raises
    ------
    ModelError, UnsupportedOperatorError, InputError
        See :func:`tvmq.load`.
    """
    _check_operators(proto.graph, name)
    prepared = onnx.ModelProto()
    prepared.CopyFrom(proto)
    graph = prepared.graph
    _constants_to_initializers(graph)
    tensors = _graph_inputs(graph)
    _set_shapes(tensors, inputs, name, dynamic_batch)
    importer = _Importer(_layer_names(graph))
    try:
        with _quiet():
            module = importer.from_onnx(graph, _opset(prepared))
            module = normalize(module, importer.origins, f"'{name}'")
    except TvmqError:
        raise
    except Exception as error:  # TVM's importer raises anything from assertions to internal errors
        raise ModelError(f"'{name}' cannot be imported: {first_line(error)}") from error
    return Model.from_module(
        module, name, [tensor.name for tensor in tensors], [tensor.name for tensor in graph.output]
    )


class _Importer(onnx_frontend.ONNXGraphImporter):
    """TVM's importer, which here notes the layer that each weight belongs to, and converts some operators otherwise.

    Parameters
    ----------
    layers : list of str
        Names of the layers, in the order of their nodes.
    """

    def __init__(self, layers: list[str]) -> None:
        super().__init__(None, None)
        self.layers = iter(layers)
        self.origins: dict[Any, str] = {}

    def _convert_operator(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        if op_name in _WEIGHTED:
            layer = next(self.layers)
            if isinstance(inputs[1], GenericConst):
                self.origins.setdefault(inputs[1].value, layer)
        converter = _CONVERTERS.get(op_name)
        result = converter(inputs, attrs) if converter else None
        if result is None:
            result = super()._convert_operator(op_name, inputs, attrs, opset)
        elif isinstance(result, Call):
            result = self.bb.emit(result)
        # Exporters compute paddings and shapes in the graph, and TVM's converters want them as constants.
        given = [expr for expr in inputs if expr is not None]
        return _to_constant(self._value(result)) if given and all(map(_is_constant, given)) else result

    def _value(self, expr: Any) -> Any:
        """Value of an expression that is computed from constants."""
        environment = {
            variable: self._value(self.bb.lookup_binding(variable)) for variable in relax.analysis.free_vars(expr)
        }
        return golden.Interpreter(self.bb.get()).evaluate(expr, environment)


def _is_constant(expr: Any) -> bool:
    if isinstance(expr, relax.ShapeExpr):
        return all(isinstance(size, IntImm) for size in expr.values)
    return isinstance(expr, GenericConst)


def _to_constant(value: Any) -> Any:
    if isinstance(value, golden.Shape):
        return relax.ShapeExpr(value)
    if isinstance(value, tuple):
        return relax.Tuple([_to_constant(field) for field in value])
    return relax.const(np.asarray(value), np.asarray(value).dtype.name)


def _clip(inputs: list[Any], attrs: dict[str, Any]) -> Any:
    low, high = (_bound(inputs, attrs, position, key) for position, key in ((1, "min"), (2, "max")))
    if low is None or high is None:
        return None
    return relax.op.clip(inputs[0], low, high)


def _bound(inputs: list[Any], attrs: dict[str, Any], position: int, key: str) -> float | None:
    """A bound of Clip as a number: an attribute up to opset 10, then an input."""
    if len(inputs) <= position or inputs[position] is None:
        return attrs.get(key)
    value = inputs[position]
    return float(value.value.numpy()) if isinstance(value, GenericConst) else None


def _pad(inputs: list[Any], attrs: dict[str, Any]) -> Any:
    pads = attrs.get("pads")
    value = attrs.get("value", 0.0)
    if len(inputs) > 1:
        if not all(tensor is None or isinstance(tensor, GenericConst) for tensor in inputs[1:]):
            return None
        pads = inputs[1].value.numpy().tolist()
        value = float(inputs[2].value.numpy()) if len(inputs) > 2 and inputs[2] is not None else 0.0
    mode = attrs.get("mode", b"constant")
    if pads is None or min(pads) < 0 or mode != b"constant" or (len(inputs) > 3 and inputs[3] is not None):
        return None
    before, after = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    widths = [width for pair in zip(before, after, strict=True) for width in pair]
    return relax.op.nn.pad(inputs[0], widths, "constant", value)


# TVM converts these to loops, which no later stage recognises.  None: leave it to TVM after all.
_CONVERTERS: Mapping[str, Callable[[list[Any], dict[str, Any]], Any]] = {"Clip": _clip, "Pad": _pad}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what TVM's importer says about renamed inputs and the checker's wishes, and prints before it raises."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", category=UserWarning, module=r"tvm\.relax\.frontend\.onnx")
        yield


def _check_operators(graph: onnx.GraphProto, name: str) -> None:
    supported = {"Constant", *onnx_frontend._get_convert_map()}
    for node in graph.node:
        place = f" of node '{node.name}'" if node.name else ""
        # TVM's importer looks at the operator's type only, and would take one of another domain for the standard's.
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOperatorError(
                f"'{name}': operator '{node.domain}.{node.op_type}'{place} is not supported: only the standard ONNX "
                "domain is; export the network without custom operators"
            )
        if node.op_type not in supported:
            raise UnsupportedOperatorError(
                f"'{name}': operator '{node.op_type}'{place} is not supported; replace it by operators that are, or "
                "load the network from PyTorch with tvmq.load(module, inputs)"
            )


def _opset(proto: onnx.ModelProto) -> int:
    return next((opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")), 1)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Make constants one kind of thing, so that a weight in either form names its layer."""
    for node in list(graph.node):
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if node.op_type == "Constant" and values:
            graph.initializer.add().CopyFrom(values[0])
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)


def _graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are not weights: old files list the initializers among the inputs."""
    initializers = {tensor.name for tensor in graph.initializer}
    return [tensor for tensor in graph.input if tensor.name not in initializers]


def _set_shapes(tensors: list[onnx.ValueInfoProto], inputs: Any, name: str, dynamic_batch: bool) -> None:
    """Open or fix the dimensions of the inputs; an open batch is one symbol for all of them."""
    if inputs is not None and not isinstance(inputs, tuple | list):
        inputs = (inputs,)
    if inputs is not None and len(inputs) != len(tensors):
        raise InputError(f"'{name}' takes {len(tensors)} inputs, but {len(inputs)} examples were given")
    for index, tensor in enumerate(tensors):
        shape = tensor.type.tensor_type.shape
        example = None if inputs is None else np.shape(inputs[index])
        if example is not None and len(example) != len(shape.dim):
            raise InputError(
                f"'{name}': input '{tensor.name}' has {len(shape.dim)} dimensions, but the example has shape {example}"
            )
        for axis, dimension in enumerate(shape.dim):
            if axis == 0 and dynamic_batch:
                dimension.dim_param = "batch"
            elif dimension.dim_value > 0:
                continue
            elif example is not None:
                dimension.dim_value = example[axis]
            elif axis == 0:
                dimension.dim_param = "batch"
            elif not dimension.dim_param:
                dimension.dim_param = f"{tensor.name}_{axis}"


def _layer_names(graph: onnx.GraphProto) -> list[str]:
    """Names of the layers, one for each node that takes a weight, in order."""
    # tensor -> the initializers from which it is computed; tensors that depend on the network's input are not in it
    sources = {tensor.name: [tensor.name] for tensor in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type in _WEIGHTED:
            names.append(_layer_name(sources.get(node.input[1], []), node))
        given = [tensor for tensor in node.input if tensor]
        if given and all(tensor in sources for tensor in given):
            leaves = list(dict.fromkeys(leaf for tensor in given for leaf in sources[tensor]))
            sources.update(dict.fromkeys(node.output, leaves))
    return names


def _layer_name(initializers: list[str], node: onnx.NodeProto) -> str:
    """Exporters that keep torch's names call the weight ``layer.weight``; others name at least the node."""
    for initializer in initializers:
        if re.search(r"\.(weight|kernel)\w*$", initializer):
            return layer_of_parameter(initializer)
    return _scope(node) or (initializers[0] if initializers else "")


def _scope(node: onnx.NodeProto) -> str:
    """Torch's module path in a node name: ``/layer1/layer1.0/conv1/Conv`` is ``layer1.0.conv1``."""
    parts = [part for part in node.name.split("/") if part]
    if len(parts) > 1 and re.fullmatch(rf"{node.op_type}(_\d+)?", parts[-1]):
        parts.pop()
    # A member of a container repeats the container's name.
    path = [part for part, below in pairwise([*parts, ""]) if not below.startswith(f"{part}.")]
    return ".".join(path)
