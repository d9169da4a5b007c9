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
import tvm
from onnx import numpy_helper
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.tirx import IntImm

from tvmq import golden
from tvmq.errors import InputError, ModelError, TvmqError, UnsupportedOperatorError
from tvmq.frontend import qdq, qonnx, recurrent
from tvmq.frontend.graph import Node, check_graph, place_of
from tvmq.frontend.normalize import first_line, layer_of_parameter, normalize
from tvmq.model import Model

__all__ = ["load_onnx", "read_onnx"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", *recurrent.OPERATORS)


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
    check_graph(graph, f"'{name}'")
    _constants_to_initializers(graph)
    tensors = _graph_inputs(graph)
    _set_shapes(tensors, inputs, name, dynamic_batch)
    _check_quantized_weights(graph, f"'{name}'")
    importer = _Importer(_layer_names(graph), f"'{name}'")
    _prepare(graph)
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
    source : str
        What to call the network in errors.
    """

    def __init__(self, layers: list[str], source: str) -> None:
        super().__init__(None, None)
        self.layers = iter(layers)
        self.source = source
        self.origins: dict[Any, str] = {}
        self.block_is_open = False

    def from_onnx(self, graph: onnx.GraphProto, opset: int) -> tvm.IRModule:
        """As TVM's, but without a warning about an unfinished block next to the error."""
        try:
            return super().from_onnx(graph, opset)
        except Exception:
            if self.block_is_open:
                self.bb._end_block()
            raise

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        self.block_is_open = True
        super()._construct_nodes(graph)

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Nothing left to check: :func:`_check_operators` knows our converters too, and names the node."""

    def _convert_operator(self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int) -> Any:
        node = Node(self.bb, self.source, attrs["tvm_custom"]["name"], op_name, list(inputs), attrs)
        layer = next(self.layers, "") if op_name in _WEIGHTED else ""
        if op_name in recurrent.OPERATORS:
            result, weights = recurrent.unroll(node)
            self.origins.update({payload: f"{layer or op_name.lower()}.{role}" for payload, role in weights.items()})
            return result
        if layer and isinstance(inputs[1], GenericConst):
            self.origins.setdefault(inputs[1].value, layer)
        converter = _CONVERTERS.get(op_name)
        result = converter(node) if converter else None
        if result is None:
            result = self._convert_with_tvm(node, inputs, opset)
        elif isinstance(result, Call):
            result = self.bb.emit(result)
        # Exporters compute paddings and shapes in the graph, and TVM's converters want them as constants.
        given = [expr for expr in inputs if expr is not None]
        return _to_constant(self._value(result)) if given and all(map(_is_constant, given)) else result

    def _convert_with_tvm(self, node: Node, inputs: list[Any], opset: int) -> Any:
        try:
            return super()._convert_operator(node.operator, inputs, node.attributes, opset)
        except Exception as error:  # TVM's converters raise anything from assertions to internal errors
            raise ModelError(f"{self.source} cannot be imported: {node.place}: {first_line(error)}") from error

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


def _clip(node: Node) -> Any:
    inputs, attrs = node.inputs, node.attributes
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


def _pad(node: Node) -> Any:
    inputs, attrs = node.inputs, node.attributes
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


# Names that operators of QONNX take in the copy of the graph, as TVM's importer does not see their domain.
_QONNX = {operator: f"qonnx.{operator}" for operator in qonnx.CONVERTERS}

# A converter that returns None leaves the node to TVM after all.
_CONVERTERS: Mapping[str, Callable[[Node], Any]] = {
    # TVM converts these two to loops, which no later stage recognises.
    "Clip": _clip,
    "Pad": _pad,
    **qdq.CONVERTERS,
    **{_QONNX[operator]: converter for operator, converter in qonnx.CONVERTERS.items()},
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what TVM's importer says about renamed inputs and the checker's wishes, and prints before it raises."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", category=UserWarning, module=r"tvm\.relax\.frontend\.onnx")
        yield


def _check_operators(graph: onnx.GraphProto, name: str) -> None:
    supported = {"Constant", *recurrent.OPERATORS, *onnx_frontend._get_convert_map()}
    for node in graph.node:
        # TVM's importer looks at the operator's type only, and would take one of another domain for the standard's.
        if node.domain in qonnx.DOMAINS:
            if node.op_type not in qonnx.CONVERTERS:
                raise UnsupportedOperatorError(
                    f"'{name}': operator '{node.domain}.{node.op_type}' of {place_of(node)} is not supported: of that "
                    f"domain only {', '.join(qonnx.CONVERTERS)} are"
                )
            continue
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOperatorError(
                f"'{name}': operator '{node.domain}.{node.op_type}' of {place_of(node)} is not supported: only the "
                "standard ONNX domain and QONNX are; export the network without custom operators"
            )
        if node.op_type not in supported:
            raise UnsupportedOperatorError(
                f"'{name}': operator '{node.op_type}' of {place_of(node)} is not supported; replace it by operators "
                "that are, or load the network from PyTorch with tvmq.load(module, inputs)"
            )


def _check_quantized_weights(graph: onnx.GraphProto, source: str) -> None:
    """Quantized weights must be constants: one that is an input of the network has no codes to compile."""
    producers = {tensor: node for node in graph.node for tensor in node.output}
    constants = _sources(graph)
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] in constants:
            continue
        quantizer = producers.get(node.input[1])
        if quantizer is not None and (quantizer.op_type == "DequantizeLinear" or quantizer.domain in qonnx.DOMAINS):
            raise ModelError(
                f"{source}: {place_of(quantizer)} quantizes the weight of {place_of(node)}, but '{quantizer.input[0]}' "
                "is no initializer; export the network with its weights"
            )


def _prepare(graph: onnx.GraphProto) -> None:
    """Say in the nodes themselves what TVM's importer would not tell our converters: their domain and their place."""
    qdq.widen_small_integers(graph)
    for node in graph.node:
        node.name = place_of(node)
        if node.domain in qonnx.DOMAINS:
            node.op_type = _QONNX[node.op_type]


def _opset(proto: onnx.ModelProto) -> int:
    return next((opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")), 1)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Make constants one kind of thing, so that a weight in either form names its layer."""
    for node in list(graph.node):
        tensor = _constant_tensor(node) if node.op_type == "Constant" else None
        if tensor is not None:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Value of a Constant, which may be written as a tensor, as numbers or as a number; None for other kinds."""
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return value
        if attribute.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(value, np.float32))
        if attribute.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(value, np.int64))
    return None


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
    sources = _sources(graph)
    return [_layer_name(sources.get(node.input[1], []), node) for node in graph.node if node.op_type in _WEIGHTED]


def _sources(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """For each tensor that does not depend on the network's input, the initializers from which it is computed."""
    sources = {tensor.name: [tensor.name] for tensor in graph.initializer}
    for node in graph.node:
        given = [tensor for tensor in node.input if tensor]
        if given and all(tensor in sources for tensor in given):
            leaves = list(dict.fromkeys(leaf for tensor in given for leaf in sources[tensor]))
            sources.update(dict.fromkeys(node.output, leaves))
    return sources


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
