"""ONNX's LSTM, GRU and RNN, step by step.

TVM's importer does not know these operators.  Here a layer becomes the arithmetic of its steps: one matrix product
takes the inputs of all steps, as they do not wait for each other, and one per step takes the state before it.  All are
products with constant weights, so they can be quantized like any linear layer; the products of all steps share one
constant.  A state that starts at zero costs no product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tvm import relax
from tvm.ir import Call, GenericConst

from tvmq.frontend.graph import Node

__all__ = ["OPERATORS", "unroll"]

_ACTIVATIONS: Mapping[str, Callable[[relax.Expr], relax.Expr]] = {
    "relu": relax.op.nn.relu,
    "sigmoid": relax.op.sigmoid,
    "tanh": relax.op.tanh,
}

# Operators whose result holds nothing but elements of their first operand.
_COPIES = ("relax.broadcast_to", "relax.expand_dims", "relax.reshape", "relax.squeeze", "relax.strided_slice")


class _Kind(NamedTuple):
    gates: int
    activations: tuple[str, ...]
    states: int


OPERATORS: Mapping[str, _Kind] = {
    "GRU": _Kind(3, ("Sigmoid", "Tanh"), 1),
    "LSTM": _Kind(4, ("Sigmoid", "Tanh", "Tanh"), 2),
    "RNN": _Kind(1, ("Tanh",), 1),
}

_DIRECTIONS: Mapping[str, tuple[bool, ...]] = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def unroll(node: Node) -> tuple[relax.Tuple, dict[Any, str]]:
    """Convert one recurrent layer.

    Parameters
    ----------
    node : Node
        An ``LSTM``, ``GRU`` or ``RNN``.

    Returns
    -------
    (tvm.relax.Tuple, dict)
        All outputs of the operator, and for the payload of each weight what it is for: ``"input"``, ``"hidden"``, and
        with more than one direction ``"reverse.input"`` and so on.

    Raises
    ------
    ModelError
        For weights that are not constants, and shapes that contradict each other.
    UnsupportedOperatorError
        For sequences of varying length, and variants of the operators that no framework writes.
    """
    layer = _Layer(node)
    directions = [_Direction(layer, index).run() for index in range(len(layer.reversed))]
    outputs = [layer.stack([sequence for sequence, _ in directions], layer.direction_axis)]
    for state in range(layer.kind.states):
        outputs.append(layer.stack([states[state] for _, states in directions], layer.state_axis))
    return relax.Tuple(outputs), layer.weights


@dataclass
class _Layer:
    """What the directions of a layer have in common."""

    node: Node
    weights: dict[Any, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        node = self.node
        self.kind = OPERATORS[node.operator]
        self.emit = node.builder.emit
        self.x = self.emit(node.required(0, "sequence"))
        batch_first = node.integer("layout", 0, (0, 1)) == 1
        # The axis of directions follows that of the steps in the sequence; in the states it comes before the batch.
        self.time, self.direction_axis, self.state_axis = (1, 2, 1) if batch_first else (0, 1, 0)
        direction = node.string("direction", "forward").lower()
        if direction not in _DIRECTIONS:
            raise node.error(f"the direction '{direction}' is unknown; it must be one of {', '.join(_DIRECTIONS)}")
        self.reversed = _DIRECTIONS[direction]
        self.check_sequence()
        self.read_weights()
        self.check_variant()
        self.activations = self.read_activations()

    def check_sequence(self) -> None:
        node = self.node
        shape = node.shape(0)
        if len(shape) != 3 or node.dtype(0) != "float32":
            raise node.error(f"the sequence is a {len(shape)}-D {node.dtype(0)} tensor, but must be 3-D float32")
        steps, features = shape[self.time], shape[2]
        if steps is None or features is None:
            raise node.unsupported("the sequence length is open; export the network with a fixed one")
        self.steps, self.features = steps, features
        lengths = node.input(4)
        if lengths is None:
            return
        if not isinstance(lengths, GenericConst) or (lengths.value.numpy() != self.steps).any():
            raise node.unsupported(
                f"sequences of varying length are; export it without 'sequence_lens', all {self.steps} steps long"
            )

    def read_weights(self) -> None:
        node = self.node
        self.w, self.r = (node.constant(index, what) for index, what in ((1, "weight W"), (2, "weight R")))
        self.hidden = node.integer("hidden_size", self.r.shape[-1] if self.r.ndim else 0)
        directions, rows = len(self.reversed), self.kind.gates * self.hidden
        bias = node.optional_constant(3, "bias B")
        self.b = np.zeros((directions, 2 * rows), np.float32) if bias is None else bias
        for what, array, expected in (
            ("weight W", self.w, (directions, rows, self.features)),
            ("weight R", self.r, (directions, rows, self.hidden)),
            ("bias B", self.b, (directions, 2 * rows)),
        ):
            if array.shape != expected or array.dtype != np.float32:
                raise node.error(f"the {what} is {array.dtype} of shape {array.shape}, but must be float32 {expected}")

    def check_variant(self) -> None:
        node = self.node
        if node.input(7) is not None and not (node.is_constant(7) and not node.constant(7, "peephole P").any()):
            raise node.unsupported("peepholes are not supported; train the network without them")
        if node.integer("input_forget", 0):
            raise node.unsupported("'input_forget' is not supported; train the network without coupled gates")
        if "clip" in node.attributes:
            raise node.unsupported("'clip' is not supported; export the network without it")
        self.linear_before_reset = bool(node.integer("linear_before_reset", 0, (0, 1)))

    def read_activations(self) -> list[list[Callable[[relax.Expr], relax.Expr]]]:
        """The functions of each direction."""
        node, count = self.node, len(self.kind.activations)
        names = node.attributes.get("activations", self.kind.activations * len(self.reversed))
        texts = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
        if len(texts) != count * len(self.reversed):
            raise node.error(f"{len(texts)} activations are given, but {count * len(self.reversed)} are needed")
        for name in texts:
            if name.lower() not in _ACTIVATIONS:
                raise node.unsupported(f"the activation '{name}' is not supported; only Relu, Sigmoid and Tanh are")
        functions = [_ACTIVATIONS[name.lower()] for name in texts]
        return [functions[first : first + count] for first in range(0, len(functions), count)]

    def initial(self, position: int, direction: int) -> relax.Expr | None:
        """Initial state of shape (N, H); None where it is zero."""
        state = self.node.input(position)
        if state is None or self.is_zero(state):
            return None
        return self.pick(state, self.state_axis, direction)

    def is_zero(self, expr: relax.Expr) -> bool:
        """Whether a state is zeros, which exporters also write as zeros stretched to the batch."""
        if isinstance(expr, GenericConst):
            return not expr.value.numpy().any()
        if isinstance(expr, relax.Var):
            definition = self.node.builder.lookup_binding(expr)
            return definition is not None and self.is_zero(definition)
        name = getattr(expr.op, "name", "") if isinstance(expr, Call) else ""
        return name in _COPIES and self.is_zero(expr.args[0])

    def stack(self, parts: list[relax.Expr], axis: int) -> relax.Expr:
        """Join tensors along a new axis."""
        parts = [self.emit(relax.op.expand_dims(part, axis)) for part in parts]
        return parts[0] if len(parts) == 1 else self.emit(relax.op.concat(parts, axis))

    def pick(self, x: relax.Expr, axis: int, index: int) -> relax.Expr:
        """One slice of an axis, without the axis."""
        return self.emit(relax.op.squeeze(self.columns(x, axis, index, index + 1), [axis]))

    def columns(self, x: relax.Expr, axis: int, first: int, last: int) -> relax.Expr:
        return self.emit(relax.op.strided_slice(x, [axis], [first], [last]))


class _Direction:
    """One direction of a layer: its weights and its steps."""

    def __init__(self, layer: _Layer, index: int) -> None:
        self.layer, self.index = layer, index
        self.emit = layer.emit
        self.backward = layer.reversed[index]
        self.first, *self.others = layer.activations[index]
        self.separate = layer.node.operator == "GRU" and not layer.linear_before_reset
        # The candidate of a GRU takes its bias of the state inside what the reset gate scales, or with the reset state.
        rows = layer.kind.gates * layer.hidden
        bias_x, self.bias_h = layer.b[index, :rows], layer.b[index, rows:]
        joined = rows if layer.node.operator != "GRU" or self.separate else 2 * layer.hidden
        self.bias_x = np.concatenate([bias_x[:joined] + self.bias_h[:joined], bias_x[joined:]])
        self.bias_candidate = relax.const(self.bias_h[joined:]) if joined < rows else None
        state = layer.r[index].T
        if self.separate:
            self.recurrent = self.weight(state[:, : 2 * layer.hidden], "hidden")
            self.candidate = self.weight(state[:, 2 * layer.hidden :], "candidate")
        else:
            self.recurrent = self.weight(state, "hidden")

    def weight(self, array: np.ndarray, role: str) -> relax.Expr:
        constant = relax.const(np.ascontiguousarray(array))
        prefix = "reverse." if self.backward and len(self.layer.reversed) > 1 else ""
        self.layer.weights[constant.value] = f"{prefix}{role}"
        return constant

    def run(self) -> tuple[relax.Expr, list[relax.Expr]]:
        """Outputs of all steps, with the axis of steps, and the last states."""
        layer = self.layer
        projected = self.project()
        state = [layer.initial(5 + index, self.index) for index in range(layer.kind.states)]
        step = {"LSTM": self.lstm, "GRU": self.gru, "RNN": self.rnn}[layer.node.operator]
        outputs = []
        order = range(layer.steps)
        for time in reversed(order) if self.backward else order:
            state = step(layer.pick(projected, layer.time, time), state)
            outputs.append(state[0])
        return layer.stack(outputs[::-1] if self.backward else outputs, layer.time), state

    def project(self) -> relax.Expr:
        """What the inputs of all steps contribute, of the sequence's shape with one feature per row of the gates."""
        layer = self.layer
        shape = list(layer.x.ty.shape)
        weight = self.weight(layer.w[self.index].T, "input")
        flat = self.emit(relax.op.reshape(layer.x, (-1, layer.features)))
        product = self.emit(relax.op.matmul(flat, weight))
        if self.bias_x.any():
            product = self.emit(relax.op.add(product, relax.const(self.bias_x)))
        return self.emit(relax.op.reshape(product, (shape[0], shape[1], len(self.bias_x))))

    def gates(self, x: relax.Expr, first: int, last: int) -> relax.Expr:
        hidden = self.layer.hidden
        return self.layer.columns(x, 1, first * hidden, last * hidden)

    def plus_recurrent(self, x: relax.Expr, h: relax.Expr | None) -> relax.Expr:
        """``x`` plus the product of the state, which a state of zero does not change."""
        return x if h is None else self.emit(relax.op.add(x, self.emit(relax.op.matmul(h, self.recurrent))))

    def rnn(self, x: relax.Expr, state: list[relax.Expr | None]) -> list[relax.Expr]:
        return [self.emit(self.first(self.plus_recurrent(x, state[0])))]

    def lstm(self, x: relax.Expr, state: list[relax.Expr | None]) -> list[relax.Expr]:
        """The rows are the gates for input, output and forgetting, and the new content of the cell."""
        h, c = state
        cell_activation, output_activation = self.others
        x = self.plus_recurrent(x, h)
        gates = self.emit(self.first(self.gates(x, 0, 3)))
        taken, output, kept = (self.gates(gates, index, index + 1) for index in range(3))
        new = self.emit(relax.op.multiply(taken, self.emit(cell_activation(self.gates(x, 3, 4)))))
        cell = new if c is None else self.emit(relax.op.add(self.emit(relax.op.multiply(kept, c)), new))
        return [self.emit(relax.op.multiply(output, self.emit(output_activation(cell)))), cell]

    def gru(self, x: relax.Expr, state: list[relax.Expr | None]) -> list[relax.Expr]:
        """The rows are the gates for updating and resetting, and the new state."""
        (h,) = state
        (activation,) = self.others
        gates, candidate = self.gates(x, 0, 2), self.gates(x, 2, 3)
        product = None
        if h is not None:
            product = self.emit(relax.op.matmul(h, self.recurrent))
            gates = self.emit(relax.op.add(gates, product if self.separate else self.gates(product, 0, 2)))
        gates = self.emit(self.first(gates))
        update, reset = self.gates(gates, 0, 1), self.gates(gates, 1, 2)
        contribution = self.reset_state(reset, h, product)
        if contribution is not None:
            candidate = self.emit(relax.op.add(candidate, contribution))
        candidate = self.emit(activation(candidate))
        one = relax.const(1.0, "float32")
        new = self.emit(relax.op.multiply(self.emit(relax.op.subtract(one, update)), candidate))
        return [new if h is None else self.emit(relax.op.add(new, self.emit(relax.op.multiply(update, h))))]

    def reset_state(self, reset: relax.Expr, h: relax.Expr | None, product: relax.Expr | None) -> relax.Expr | None:
        """What the state contributes to the new one; None for nothing."""
        if self.separate:
            if h is None:
                return None
            return self.emit(relax.op.matmul(self.emit(relax.op.multiply(reset, h)), self.candidate))
        linear = self.bias_candidate
        if product is not None:
            linear = self.emit(relax.op.add(self.gates(product, 2, 3), linear))
        return self.emit(relax.op.multiply(reset, linear))
