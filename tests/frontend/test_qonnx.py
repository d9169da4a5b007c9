"""QONNX's quantizers, against their definitions written in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmq import golden
from tvmq.errors import ModelError, UnsupportedOperatorError
from tvmq.frontend import load
from tvmq.model import Model, module_bindings
from tvmq.transform import RecognizeQuantizers, fold

DOMAINS = ["qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"]
FLOAT = TensorProto.FLOAT


def half(x: np.ndarray, up: bool) -> np.ndarray:
    """Rounding to the nearest integer with halves away from zero, or towards it."""
    magnitude = np.floor(np.abs(x) + 0.5) if up else np.ceil(np.abs(x) - 0.5)
    return np.sign(x) * magnitude


ROUNDINGS = {
    "ROUND": np.round,
    "HALF_EVEN": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": lambda x: half(x, True),
    "HALF_DOWN": lambda x: half(x, False),
}


def quant(
    x: Any, scale: Any, zero_point: Any, bits: int, signed: int = 1, narrow: int = 0, rounding_mode: str = "ROUND"
) -> np.ndarray:
    scale, zero_point = np.float32(scale), np.float32(zero_point)
    if signed:
        low, high = -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    else:
        low, high = 0, 2**bits - 1 - narrow
    y = np.float32(x) / scale + zero_point
    if bits == 1 and signed:
        y = np.where(y >= 0, np.float32(1), np.float32(-1))
    else:
        y = ROUNDINGS[rounding_mode.upper()](np.minimum(np.maximum(y, np.float32(low)), np.float32(high)))
    return (y - zero_point) * scale


class Graph:
    """An ONNX graph under construction."""

    def __init__(self, domain: str = DOMAINS[0]) -> None:
        self.domain = domain
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: Any, name: str = "") -> str:
        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(self, operator: str, *inputs: Any, domain: str | None = None, **attributes: Any) -> str:
        """Add a node of the domain; numbers become initializers."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = f"tensor_{len(self.nodes)}"
        domain = self.domain if domain is None else domain
        name = attributes.pop("name", f"{operator}_{len(self.nodes)}")
        self.nodes.append(helper.make_node(operator, names, [output], name=name, domain=domain, **attributes))
        return output

    def standard(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        return self.node(operator, *inputs, domain="", **attributes)

    def proto(self, output: str, shape: Any = (6, 5), inputs: dict[str, Any] | None = None) -> onnx.ModelProto:
        inputs = {"x": shape} | (inputs or {})
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(name, FLOAT, sizes) for name, sizes in inputs.items()],
            [helper.make_tensor_value_info(output, FLOAT, None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(self.domain, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def numbers(shape: tuple[int, ...] = (6, 5), seed: int = 0) -> np.ndarray:
    """Random numbers, among them exact halves."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=shape).astype(np.float32) * 3
    halves = generator.integers(-9, 9, size=shape).astype(np.float32) / 2
    return np.where(generator.random(shape) < 0.5, values, halves)


def run(model: Model, x: np.ndarray) -> np.ndarray:
    return golden.interpret(model.module, [x])[0]


def operators(module: Any) -> list[str]:
    return [getattr(getattr(binding.value, "op", None), "name", "") for binding in module_bindings(module["main"])]


def check(graph: Graph, output: str, expected: np.ndarray, x: np.ndarray, codes: bool = True) -> Model:
    """Load, and compare as loaded and with the quantizers as codes; ``codes``: all of it is one quantizer."""
    model = load(graph.proto(output, x.shape))
    np.testing.assert_array_equal(run(model, x), expected)
    recognized = RecognizeQuantizers()(model.module)
    assert (operators(recognized) == ["tvmq.quantize", "tvmq.dequantize", ""]) == codes
    np.testing.assert_allclose(golden.interpret(recognized, [x])[0], expected, rtol=1e-6)
    return model


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("operator", ["Quant", "IntQuant"])
def test_domains_and_names(domain, operator):
    graph = Graph(domain)
    x = numbers()
    check(graph, graph.node(operator, "x", 0.5, 0.0, 3.0), quant(x, 0.5, 0, 3), x)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
def test_ranges(bits, signed, narrow):
    graph = Graph()
    x = numbers() * 3
    output = graph.node("Quant", "x", 0.3, 0.0, bits, signed=signed, narrow=narrow)
    levels = 1 if (bits, signed, narrow) == (1, 0, 1) else 2
    check(graph, output, quant(x, 0.3, 0, bits, signed, narrow), x, codes=levels > 1)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("signed", [0, 1])
def test_roundings(mode, signed):
    graph = Graph()
    x = numbers()
    output = graph.node("Quant", "x", 1.0, 0.0, 4, signed=signed, rounding_mode=mode.lower())
    # Roundings that look at the sign are no chain of operations, except where there are no negative numbers.
    chain = not signed or mode in ("ROUND", "HALF_EVEN", "CEIL", "FLOOR")
    check(graph, output, quant(x, 1, 0, 4, signed, rounding_mode=mode), x, codes=chain)


def test_zero_points():
    x = numbers()
    for zero_point, bits in ((3.0, 4), (1.0, 1), (0.5, 2)):
        graph = Graph()
        output = graph.node("Quant", "x", 0.7, zero_point, bits, signed=int(bits == 1))
        expected = quant(x, 0.7, zero_point, bits, int(bits == 1))
        np.testing.assert_array_equal(run(load(graph.proto(output, x.shape)), x), expected)


def test_many_bits_leave_nothing_but_the_grid():
    graph = Graph()
    x = numbers()
    check(graph, graph.node("Quant", "x", 0.125, 0.0, 32), quant(x, 0.125, 0, 32), x, codes=False)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1, 1)])
def test_scalars_of_every_shape(shape):
    graph = Graph()
    x = numbers((2, 3, 2, 2))
    rank = x.ndim - len(shape)
    assert rank >= 0
    output = graph.node("Quant", "x", np.full(shape, 0.5), np.zeros(shape), np.full(shape, 2.0))
    check(graph, output, quant(x, 0.5, 0, 2), x)
    assert run(load(graph.proto(output, x.shape)), x).shape == x.shape


def test_scale_per_channel_of_an_activation():
    graph = Graph()
    x = numbers((2, 3, 2, 2))
    scale = np.array([0.5, 0.25, 1], np.float32).reshape(1, 3, 1, 1)
    check(graph, graph.node("Quant", "x", scale, 0.0, 4), quant(x, scale, 0, 4), x, codes=False)


def test_bipolar_quant():
    graph = Graph()
    x = numbers()
    x[0, 0] = -0.0
    check(graph, graph.node("BipolarQuant", "x", 0.7), np.where(x >= 0, np.float32(0.7), np.float32(-0.7)), x)


def trunc(x: np.ndarray, scale: float, bits: int, output_bits: int, rounding: str) -> np.ndarray:
    integers = np.round(x / np.float32(scale))
    return ROUNDINGS[rounding](integers / np.float32(2 ** (bits - output_bits))) * np.float32(scale)


@pytest.mark.parametrize("rounding", ["FLOOR", "ROUND", "CEIL"])
def test_trunc_of_the_first_version(rounding):
    x = quant(numbers() * 9, 0.5, 0, 6)
    graph = Graph()
    output = graph.node("Trunc", "x", 0.5, 0.0, 6, 4, rounding_mode=rounding)
    check(graph, output, trunc(x, 0.5, 6, 4, rounding), x, codes=False)
    graph = Graph()
    quantized = graph.node("Quant", "x", 0.5, 0.0, 6)
    check(
        graph, graph.node("Trunc", quantized, 0.5, 0.0, 6, 4, rounding_mode=rounding), trunc(x, 0.5, 6, 4, rounding), x
    )


def test_trunc_of_the_second_version():
    x = numbers() * 20
    graph = Graph()
    output = graph.node("Trunc", "x", 0.5, 4.0, 8, 2.0, 4, signed=0)
    integers = np.round(x / np.float32(0.5) + 4)
    expected = (np.floor(np.clip(integers / 4, 0, 15)) - np.float32(1)) * np.float32(2)
    check(graph, output, expected, x)


def brevitas(activation: str) -> tuple[Graph, str, dict[str, np.ndarray]]:
    """A network as Brevitas writes it: convolutions and a linear layer, weights and activations quantized."""
    generator = np.random.default_rng(1)
    arrays = {
        "features.0.weight": generator.normal(size=(4, 3, 3, 3)),
        "features.3.weight": generator.normal(size=(5, 4, 3, 3)),
        "head.weight": generator.normal(size=(3, 20)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    # Powers of two, so that sums of floats are exact: a sign of a sum of 0 must not depend on rounding.
    scales = np.exp2(np.round(np.log2(np.abs(arrays["features.3.weight"]).max((1, 2, 3), keepdims=True) / 3)))
    graph = Graph("onnx.brevitas")
    for name, array in arrays.items():
        graph.constant(array, name)

    def activated(tensor: str) -> str:
        if activation == "bipolar":
            return graph.node("BipolarQuant", tensor, [0.5])
        if activation == "signed":
            return graph.node("Quant", graph.standard("Tanh", tensor), 0.25, 0.0, 3.0, signed=1, narrow=1)
        return graph.node("Quant", graph.standard("Relu", tensor), 0.5, 0.0, 4.0, signed=0, narrow=0)

    x = graph.node("Quant", "x", 0.125, 0.0, 8.0, signed=1, narrow=0, rounding_mode="ROUND")
    first = graph.node("BipolarQuant", "features.0.weight", np.float32(0.125))
    x = activated(graph.standard("Conv", x, first, name="/features/features.0/Conv"))
    second = graph.node("Quant", "features.3.weight", scales, 0.0, 3.0, signed=1, narrow=1)
    x = activated(graph.standard("Conv", x, second, name="/features/features.3/Conv"))
    head = graph.node("Quant", "head.weight", np.float32(0.25), 0.0, 2.0, signed=1, narrow=1)
    x = graph.standard("Flatten", x)
    output = graph.standard("Gemm", x, head, np.ones(3), transB=1, name="/head/Gemm")
    arrays = {
        "features.0": np.where(arrays["features.0.weight"] >= 0, np.float32(0.125), np.float32(-0.125)),
        "features.3": quant(arrays["features.3.weight"], scales, 0, 3, 1, 1),
        "head": quant(arrays["head.weight"], 0.25, 0, 2, 1, 1),
    }
    return graph, output, arrays


@pytest.mark.parametrize("activation", ["bipolar", "signed", "unsigned"])
def test_networks_of_brevitas(activation):
    graph, output, weights = brevitas(activation)
    model = load(graph.proto(output, ("N", 3, 6, 6)))
    assert [layer.name for layer in model.layers()] == ["features.0", "features.3", "head"]
    bindings = {binding.var.name: binding.value for binding in module_bindings(model.module["main"])}
    for layer, expected in weights.items():
        weight = bindings[layer].args[1].value.numpy()
        np.testing.assert_array_equal(weight if weight.ndim == 4 else weight.T, expected)
    module = fold(model.module)
    assert operators(RecognizeQuantizers()(model.module)).count("tvmq.quantize") == 3
    x = numbers((2, 3, 6, 6), seed=4)
    np.testing.assert_allclose(golden.interpret(module, [x])[0], run(model, x), atol=1e-4)


def test_scale_that_the_graph_computes():
    graph = Graph()
    x = numbers()
    scale = graph.standard("Div", np.float32(3), np.float32(7))
    check(graph, graph.node("Quant", "x", scale, 0.0, 4), quant(x, np.float32(3) / np.float32(7), 0, 4), x)


def error_of(kind: type[Exception], graph: Graph, output: str, **options: Any) -> str:
    with pytest.raises(kind) as raised:
        load(graph.proto(output, **options))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_operator_of_the_same_name_in_another_domain():
    graph = Graph("com.example")
    text = error_of(UnsupportedOperatorError, graph, graph.node("Quant", "x", 0.5, 0.0, 3.0))
    assert "com.example.Quant" in text and "'Quant_0'" in text
    graph = Graph()
    text = error_of(UnsupportedOperatorError, graph, graph.node("MultiThreshold", "x", [0.5]))
    assert "'MultiThreshold_0'" in text and "BipolarQuant" in text


@pytest.mark.parametrize(
    ("inputs", "attributes", "words"),
    [
        (("x", 0.5, 0.0, 0.0), {}, "bit width is 0"),
        (("x", 0.5, 0.0, 33.0), {}, "bit width is 33"),
        (("x", 0.5, 0.0, 2.5), {}, "bit width is 2.5"),
        (("x", 0.5, 0.0, np.nan), {}, "bit width is nan"),
        (("x", 0.5, 0.0, [2.0, 3.0]), {}, "one number"),
        (("x", 0.0, 0.0, 2.0), {}, "scale is zero"),
        (("x", np.inf, 0.0, 2.0), {}, "scale is not finite"),
        (("x", 0.5, np.nan, 2.0), {}, "zero point is not finite"),
        (("x", [0.5, 1.0], 0.0, 2.0), {}, "does not fit"),
        (("x", np.ones((1, 1, 5)) / 2, 0.0, 2.0), {}, "does not fit"),
        (("x", 0.5, 0.0), {}, "bit width, is missing"),
        (("x", "", 0.0, 2.0), {}, "scale, is missing"),
        (("x", "scale", 0.0, 2.0), {}, "scale must be a constant"),
        (("x", 0.5, "scale", 2.0), {}, "zero point must be a constant"),
        (("x", 0.5, 0.0, "scale"), {}, "bit width must be a constant"),
        (("x", 0.5, 0.0, 2.0), {"signed": 2}, "'signed' is 2"),
        (("x", 0.5, 0.0, 2.0), {"narrow": 0.5}, "'narrow' is 0.5"),
        (("x", 0.5, 0.0, 2.0), {"rounding_mode": "FLOR"}, "did you mean 'FLOOR'"),
        (("x", 0.5, 0.0, 2.0), {"rounding_mode": 1}, "must be a text"),
        (("x", 0.5, 0.0, "absent"), {}, "reads 'absent'"),
    ],
)
def test_malformed_quant(inputs, attributes, words):
    graph = Graph()
    output = graph.node("Quant", *inputs, name="/act/Quant", **attributes)
    text = error_of(ModelError, graph, output, inputs={"scale": ()})
    assert words in text and "'/act/Quant'" in text


def test_malformed_bipolar_quant_and_trunc():
    graph = Graph()
    assert "scale is zero" in error_of(ModelError, graph, graph.node("BipolarQuant", "x", 0.0))
    graph = Graph()
    assert "larger than the input's" in error_of(ModelError, graph, graph.node("Trunc", "x", 0.5, 0.0, 4, 6))
    graph = Graph()
    assert "different signs" in error_of(ModelError, graph, graph.node("Trunc", "x", 0.5, 0.0, 4, -1.0, 2))


def test_node_without_a_name_is_told_by_its_output():
    graph = Graph()
    text = error_of(ModelError, graph, graph.node("Quant", "x", 0.5, 0.0, 0.0, name=""))
    assert "the Quant node that computes 'tensor_0'" in text


def test_tensor_that_is_not_float32():
    graph = Graph()
    integers = graph.standard("Cast", "x", to=TensorProto.INT32)
    assert "int32" in error_of(ModelError, graph, graph.node("Quant", integers, 0.5, 0.0, 2.0))


def test_weight_that_is_an_input_of_the_network():
    graph = Graph()
    weight = graph.node("Quant", "weight", 0.5, 0.0, 2.0, name="weight_quant")
    output = graph.standard("Conv", "x", weight, name="conv")
    text = error_of(ModelError, graph, output, shape=(1, 2, 4, 4), inputs={"weight": (3, 2, 3, 3)})
    assert "'weight_quant'" in text and "'conv'" in text and "'weight' is no initializer" in text
