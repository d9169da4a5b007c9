"""ONNX graphs: whether they are sound, and what converters see of one node."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from tvm import relax
from tvm.ir import GenericConst
from tvm.tirx import IntImm

from tvmq.errors import ModelError, UnsupportedOperatorError

__all__ = ["Node", "check_graph", "place_of"]


def place_of(node: onnx.NodeProto) -> str:
    """What to call a node in an error: ``"node 'conv1'"``, or what it computes if it has no name."""
    if node.name:
        return f"node '{node.name}'"
    outputs = [tensor for tensor in node.output if tensor]
    return f"the {node.op_type} node that computes '{outputs[0]}'" if outputs else f"a {node.op_type} node"


def check_graph(graph: onnx.GraphProto, source: str) -> None:
    """Check that every tensor has one origin, and bring the nodes into an order in which they can run.

    Parameters
    ----------
    graph : onnx.GraphProto
        Its nodes are reordered if one of them comes before what it reads.
    source : str
        What to call the network in errors.

    Raises
    ------
    ModelError
        For a tensor that several nodes compute, an input or an output that none does, and for a cycle.
    """
    _check_names([tensor.name for tensor in graph.output], "output", source)
    _check_names([tensor.name for tensor in graph.initializer], "initializer", source)
    _check_names([tensor.name for tensor in graph.input], "input", source)
    given = {"", *(tensor.name for tensor in graph.input), *(tensor.name for tensor in graph.initializer)}
    producers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for tensor in filter(None, node.output):
            if tensor in given:
                raise ModelError(
                    f"{source}: {place_of(node)} computes '{tensor}', which is an input or initializer of the graph; "
                    "give the tensor another name"
                )
            if tensor in producers:
                raise ModelError(
                    f"{source}: both {place_of(graph.node[producers[tensor]])} and {place_of(node)} compute "
                    f"'{tensor}'; give the tensors different names"
                )
            producers[tensor] = index
    for node in graph.node:
        for tensor in node.input:
            if tensor not in given and tensor not in producers:
                raise ModelError(
                    f"{source}: {place_of(node)} reads '{tensor}', which is no input or initializer and which no node "
                    "computes; export the network again with its parameters"
                )
    for output in graph.output:
        if output.name not in given and output.name not in producers:
            raise ModelError(
                f"{source}: output '{output.name}' is not connected: no node computes it; remove it, or export again"
            )
    _sort(graph, producers, source)


def _check_names(names: list[str], kind: str, source: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ModelError(f"{source}: {kind} '{name}' is listed {count} times; give each a name of its own")


def _sort(graph: onnx.GraphProto, producers: dict[str, int], source: str) -> None:
    """Depth first from each node in the order of the file, which is kept where it is valid."""
    order: list[int] = []
    done: set[int] = set()
    path: dict[int, None] = {}  # nodes that wait for what they read, in order
    for root in range(len(graph.node)):
        stack = [root]
        while stack:
            index = stack[-1]
            if index in done:
                stack.pop()
                continue
            path[index] = None
            waiting = [producers[tensor] for tensor in graph.node[index].input if tensor in producers]
            waiting = [producer for producer in waiting if producer not in done]
            if not waiting:
                order.append(index)
                done.add(index)
                path.pop(index)
                stack.pop()
            elif waiting[0] in path:
                members = list(path)[list(path).index(waiting[0]) :]
                places = ", ".join(place_of(graph.node[member]) for member in members)
                raise ModelError(f"{source} has a cycle through {places}; export the network unrolled")
            else:
                stack.append(waiting[0])
    if order != sorted(order):
        nodes = [graph.node[index] for index in order]
        copies = [onnx.NodeProto() for _ in nodes]
        for copy, node in zip(copies, nodes, strict=True):
            copy.CopyFrom(node)
        del graph.node[:]
        graph.node.extend(copies)


@dataclass(frozen=True)
class Node:
    """One node of an ONNX graph while it is imported.

    Parameters
    ----------
    builder : tvm.relax.BlockBuilder
        Where to emit what the node computes.
    source : str
        What to call the network in errors.
    place : str
        What to call the node in errors.
    operator : str
        Type of the node.
    inputs : list of tvm.relax.Expr or None
        Constants where the tensors are initializers or computed from them.
    attributes : dict
        Numbers, bytes, or tuples of them.
    """

    builder: relax.BlockBuilder
    source: str
    place: str
    operator: str
    inputs: list[Any]
    attributes: dict[str, Any]

    def error(self, problem: str, kind: type[ModelError] = ModelError) -> ModelError:
        """An error that names the network and this node."""
        return kind(f"{self.source}: {self.place} ({self.operator}): {problem}")

    def unsupported(self, problem: str) -> ModelError:
        """The error for what the standard allows and tvmq does not compile."""
        return self.error(problem, UnsupportedOperatorError)

    def input(self, position: int) -> Any:
        """An input, or None where the node leaves it out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def is_constant(self, *positions: int) -> bool:
        """Whether none of these inputs, as far as they are there, depends on the network's inputs."""
        return all(isinstance(self.input(position), GenericConst | None) for position in positions)

    def required(self, position: int, what: str) -> relax.Expr:
        """An input that must be there."""
        if self.input(position) is None:
            raise self.error(f"input {position}, the {what}, is missing; export the network again")
        return self.inputs[position]

    def constant(self, position: int, what: str) -> np.ndarray:
        """Value of an input that must be there and must not depend on the network's inputs."""
        expr = self.required(position, what)
        if not isinstance(expr, GenericConst):
            raise self.error(f"the {what} must be a constant, but depends on the network's input; export it as one")
        return expr.value.numpy()

    def optional_constant(self, position: int, what: str) -> np.ndarray | None:
        """As :meth:`constant`, or None where the node leaves the input out."""
        return None if self.input(position) is None else self.constant(position, what)

    def integer(self, name: str, default: int, choices: tuple[int, ...] | None = None) -> int:
        """An attribute that is an integer."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int) or (choices is not None and value not in choices):
            allowed = "an integer" if choices is None else " or ".join(map(str, choices))
            raise self.error(f"attribute '{name}' is {_text(value)}, but must be {allowed}")
        return value

    def string(self, name: str, default: str) -> str:
        """An attribute that is text."""
        value = self.attributes.get(name, default)
        if not isinstance(value, bytes | str):
            raise self.error(f"attribute '{name}' is {value}, but must be a text")
        return _text(value)

    def shape(self, position: int) -> list[int | None]:
        """Shape of an input; None for open dimensions."""
        ty = self.inputs[position].ty
        if not isinstance(ty, relax.TensorType) or ty.shape is None:
            raise self.error(f"the rank of input {position} is unknown; export the network with its inputs' shapes")
        return [int(size) if isinstance(size, IntImm) else None for size in ty.shape]

    def dtype(self, position: int) -> str:
        """Data type of an input."""
        return str(self.inputs[position].ty.dtype)

    def check_broadcast(self, parameter: np.ndarray, what: str) -> None:
        """Check that a parameter stretches to the first input without stretching that."""
        shape = self.shape(0)
        aligned = shape[len(shape) - parameter.ndim :] if parameter.ndim <= len(shape) else None
        fits = parameter.size == 1 or (
            aligned is not None
            and all(size in (1, given) for size, given in zip(parameter.shape, aligned, strict=True))
        )
        if not fits:
            sizes = " × ".join("?" if size is None else str(size) for size in shape)
            raise self.error(
                f"the {what} of shape {parameter.shape} does not fit the input of shape {sizes}; give it one number, "
                "or one per channel with sizes of 1 elsewhere"
            )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
