"""Recurrent layers, against onnxruntime and torch."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tvmq import golden
from tvmq.errors import ModelError, UnsupportedOperatorError
from tvmq.frontend import load
from tvmq.model import LAYER_OPERATORS, Model, module_bindings

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, FEATURES, HIDDEN = 3, 2, 4, 5


def run(model: Model, *arrays: np.ndarray) -> list[np.ndarray]:
    return golden.interpret(model.module, list(arrays))


def reference(proto: onnx.ModelProto, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)})


def network(
    operator: str,
    directions: int = 1,
    bias: bool = True,
    states: bool | str = True,
    batch: int | str = BATCH,
    steps: int | str = STEPS,
    lengths: list[int] | str | None = None,
    extra: dict[str, np.ndarray] | None = None,
    name: str = "/encoder/memory/LSTM",
    **attributes: Any,
) -> onnx.ModelProto:
    """One recurrent node; ``states`` says whether it has initial ones, and ``"input"`` makes them inputs."""
    generator = np.random.default_rng(3)
    layout = attributes.get("layout", 0)
    rows = GATES[operator] * HIDDEN
    tensors = {
        "W": generator.normal(size=(directions, rows, FEATURES)),
        "R": generator.normal(size=(directions, rows, HIDDEN)),
        "B": generator.normal(size=(directions, 2 * rows)) if bias else None,
        "lengths": None if lengths is None or lengths == "input" else np.array(lengths, np.int32),
    }
    shape = [batch, directions, HIDDEN] if layout else [directions, batch, HIDDEN]
    kinds = ["h", "c"] if operator == "LSTM" else ["h"]
    inputs = [
        helper.make_tensor_value_info(
            "x", TensorProto.FLOAT, [batch, steps, FEATURES] if layout else [steps, batch, FEATURES]
        )
    ]
    for kind in kinds:
        tensors[kind] = generator.normal(size=shape) if states is True else None
        if states == "input":
            inputs.append(helper.make_tensor_value_info(kind, TensorProto.FLOAT, shape))
    if lengths == "input":
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [batch]))
    tensors |= extra or {}
    initializers = [
        numpy_helper.from_array(array if array.dtype == np.int32 else array.astype(np.float32), key)
        for key, array in tensors.items()
        if array is not None
    ]
    known = {tensor.name for tensor in initializers} | {value.name for value in inputs}
    order = ["x", "W", "R", "B", "lengths", *kinds, *(extra or {})]
    outputs = ["Y", *(f"Y_{kind}" for kind in kinds)]
    node = helper.make_node(
        operator,
        [key if key in known else "" for key in order],
        outputs,
        name=name,
        hidden_size=HIDDEN,
        **attributes,
    )
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    graph = helper.make_graph([node], "net", inputs, values, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sequence(batch: int = BATCH, layout: int = 0) -> np.ndarray:
    shape = (batch, STEPS, FEATURES) if layout else (STEPS, batch, FEATURES)
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def check(proto: onnx.ModelProto, *arrays: np.ndarray) -> Model:
    model = load(proto)
    for output, expected in zip(run(model, *arrays), reference(proto, *arrays), strict=True):
        assert output.shape == expected.shape
        np.testing.assert_allclose(output, expected, atol=1e-5, rtol=1e-5)
    return model


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "GRU after", "RNN"])
def test_operators_and_directions(operator, direction):
    operator, _, after = operator.partition(" ")
    attributes = {"linear_before_reset": 1} if after else {}
    proto = network(operator, 2 if direction == "bidirectional" else 1, direction=direction, **attributes)
    check(proto, sequence())


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "GRU after", "RNN"])
@pytest.mark.parametrize("bias", [False, True])
def test_state_that_starts_at_zero(operator, bias):
    operator, _, after = operator.partition(" ")
    attributes = {"linear_before_reset": 1} if after else {}
    absent = check(network(operator, bias=bias, states=False, **attributes), sequence())
    zeros = {kind: np.zeros((1, BATCH, HIDDEN)) for kind in (["h", "c"] if operator == "LSTM" else ["h"])}
    proto = network(operator, bias=bias, **attributes)
    for tensor in proto.graph.initializer:
        if tensor.name in zeros:
            tensor.CopyFrom(numpy_helper.from_array(zeros[tensor.name].astype(np.float32), tensor.name))
    assert len(check(proto, sequence()).layers()) == len(absent.layers())  # zeros cost no product in either form


def test_states_that_are_inputs():
    states = np.random.default_rng(6).normal(size=(2, 2, BATCH, HIDDEN)).astype(np.float32)
    # Only the first dimension of an input may be open, which here is that of the directions.
    check(network("LSTM", 2, states="input", direction="bidirectional"), sequence(), *states)


def test_activations():
    activations = ["Relu", "Sigmoid", "Tanh", "sigmoid", "tanh", "Relu"]
    check(network("LSTM", 2, direction="bidirectional", activations=activations), sequence())
    check(network("RNN", activations=["Relu"]), sequence())


def test_sequence_lens_that_say_nothing_new():
    check(network("GRU", lengths=[STEPS] * BATCH), sequence())


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_batch_first(operator):
    """Onnxruntime has no such layout: compare with the other one."""
    model = load(network(operator, 2, states=False, batch="N", layout=1, direction="bidirectional"))
    other = load(network(operator, 2, states=False, batch=7, direction="bidirectional"))
    x = sequence(7)
    y, *states = run(other, x)
    outputs = run(model, np.ascontiguousarray(x.transpose(1, 0, 2)))
    np.testing.assert_allclose(outputs[0], y.transpose(2, 0, 1, 3), atol=1e-6)
    for output, state in zip(outputs[1:], states, strict=True):
        np.testing.assert_allclose(output, state.transpose(1, 0, 2), atol=1e-6)
    assert model.outputs[0].shape == (None, STEPS, 2, HIDDEN)


def products(model: Model) -> list[Any]:
    return [
        binding.value
        for binding in module_bindings(model.module["main"])
        if getattr(getattr(binding.value, "op", None), "name", "") in LAYER_OPERATORS
    ]


def test_products_have_names_and_constant_weights():
    model = load(network("LSTM", 2, states="input", direction="bidirectional"))
    assert [layer.name for layer in model.layers()] == [
        *("encoder.memory.input", "encoder.memory.hidden", "encoder.memory.hidden_2", "encoder.memory.hidden_3"),
        *("encoder.memory.reverse.input", "encoder.memory.reverse.hidden"),
        *("encoder.memory.reverse.hidden_2", "encoder.memory.reverse.hidden_3"),
    ]
    weights = [call.args[1] for call in products(model)]
    assert {type(weight).__name__ for weight in weights} == {"GenericConst"}
    assert all(weights[1].same_as(weight) for weight in weights[2:4])  # the steps share one
    gru = load(network("GRU", states=False, name=""))
    assert [layer.name for layer in gru.layers()] == [
        *("W.input", "W.hidden", "W.candidate", "W.hidden_2", "W.candidate_2"),
    ]


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.memory = layer
        self.head = nn.LazyLinear(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.memory(x)
        return self.head(y[:, -1])


class Steps(nn.Module):
    """A cell that a loop of Python applies."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state


MODULES = {
    "lstm": lambda: Net(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)),
    "gru": lambda: Net(nn.GRU(4, 5, 2, batch_first=True)),
    "rnn": lambda: Net(nn.RNN(4, 5, batch_first=True, nonlinearity="relu")),
    "lstmcell": lambda: Steps(nn.LSTMCell(4, 5)),
    "grucell": lambda: Steps(nn.GRUCell(4, 5)),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("module", MODULES)
def test_torch_layers(module, dynamic, to_onnx):
    torch.manual_seed(1)
    network = MODULES[module]().eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        expected = network(x).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(network, (x,), dynamic_batch=dynamic)
    np.testing.assert_allclose(run(model, x.numpy())[0], expected, atol=1e-5)
    assert {layer.name.split("_")[0] for layer in model.layers()} <= {"memory", "head", "cell"}
    model = load(to_onnx(network, (x,), dynamic))
    assert model.dynamic_batch == dynamic
    np.testing.assert_allclose(run(model, x.numpy())[0], expected, atol=1e-5)
    if not module.endswith("cell"):
        roles = {layer.name.split("_")[0] for layer in model.layers()}
        assert {"memory.input", "memory.hidden", "head"} <= roles
        # torch writes its states of zeros into the graph, whose first step then needs no product
        directions = 4 if module == "lstm" else 2 if module == "gru" else 1
        assert sum("hidden" in layer.name for layer in model.layers()) == directions * (x.shape[1] - 1)


def error_of(kind: type[Exception], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as raised:
        load(network(*arguments, **options))
    text = str(raised.value)
    assert "/encoder/memory/LSTM" in text and "\n" not in text
    return text


def test_variants_that_are_not_supported():
    unsupported = UnsupportedOperatorError
    assert "'HardSigmoid'" in error_of(unsupported, "GRU", activations=["HardSigmoid", "Tanh"])
    assert "clip" in error_of(unsupported, "LSTM", clip=1.0)
    assert "input_forget" in error_of(unsupported, "LSTM", input_forget=1)
    assert "peephole" in error_of(unsupported, "LSTM", extra={"P": np.ones((1, 3 * HIDDEN))})
    assert "varying length" in error_of(unsupported, "GRU", lengths=[STEPS, STEPS - 1])
    assert "varying length" in error_of(unsupported, "GRU", lengths="input")
    assert "sequence length" in error_of(unsupported, "GRU", steps="T")


def test_malformed_nodes():
    assert "'sideways'" in error_of(ModelError, "GRU", direction="sideways")
    assert "'layout'" in error_of(ModelError, "GRU", layout=2)
    assert "3 activations" in error_of(ModelError, "LSTM", 2, direction="bidirectional", activations=["Tanh"] * 3)
    assert "weight W" in error_of(ModelError, "GRU", 1, direction="bidirectional")
    proto = network("GRU")
    weights = next(tensor for tensor in proto.graph.initializer if tensor.name == "R")
    proto.graph.initializer.remove(weights)
    proto.graph.input.append(helper.make_tensor_value_info("R", TensorProto.FLOAT, weights.dims))
    with pytest.raises(ModelError, match=r"weight R must be a constant.*network's input"):
        load(proto)


def test_peephole_of_zeros():
    check(network("LSTM", extra={"P": np.zeros((1, 3 * HIDDEN))}), sequence())
