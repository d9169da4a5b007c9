"""QuantizeLinear and DequantizeLinear, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmq import golden
from tvmq.errors import ModelError, UnsupportedOperatorError
from tvmq.frontend import load
from tvmq.model import Model, module_bindings
from tvmq.transform import RecognizeQuantizers

TYPES = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
}
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}


def tensor(name: str, values: Any, dtype: str = "float32") -> onnx.TensorProto:
    array = np.asarray(values)
    if dtype in ("int4", "uint4"):
        return helper.make_tensor(name, TYPES[dtype], array.shape, array.flatten().tolist())
    return numpy_helper.from_array(array.astype(dtype), name)


def network(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], shape: Any, output: str = "y", opset: int = 21
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(model: Model, x: np.ndarray) -> np.ndarray:
    return golden.interpret(model.module, [x])[0]


def reference(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # Each node as the standard defines it, not fused into integer kernels.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def operators(module: Any) -> list[str]:
    return [getattr(getattr(binding.value, "op", None), "name", "") for binding in module_bindings(module["main"])]


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random numbers, among them exact halves of 0.25, and some that saturate."""
    generator = np.random.default_rng(seed)
    halves = generator.integers(-200, 200, size=shape).astype(np.float32) / 8
    return np.where(generator.random(shape) < 0.5, generator.normal(size=shape).astype(np.float32) * 30, halves)


def pair(dtype: str, opset: int = 21, axis: int | None = None, zero_point: bool = True, **attributes: Any) -> list[Any]:
    names = ["s", "z"] if zero_point else ["s"]
    options = {} if axis is None else {"axis": axis}
    return [
        helper.make_node("QuantizeLinear", ["x", *names], ["q"], name="quantize", **options, **attributes),
        helper.make_node("DequantizeLinear", ["q", *names], ["y"], name="dequantize", **options),
    ]


@pytest.mark.parametrize("zero_point", [0, 3, "lowest"])
@pytest.mark.parametrize(("dtype", "opset"), [("int8", 13), ("uint8", 10), ("uint8", 21), ("int4", 21), ("uint4", 21)])
def test_activations_of_one_scale(dtype, opset, zero_point):
    zero_point = RANGES[dtype][0] if zero_point == "lowest" else zero_point
    x = numbers((64, 8))
    proto = network(pair(dtype), [tensor("s", 0.25), tensor("z", zero_point, dtype)], x.shape, opset=opset)
    model = load(proto)
    expected = reference(proto, x)
    np.testing.assert_array_equal(run(model, x), expected)
    recognized = RecognizeQuantizers()(model.module)
    assert operators(recognized) == ["tvmq.quantize", "tvmq.dequantize", ""]
    np.testing.assert_allclose(golden.interpret(recognized, [x])[0], expected, rtol=1e-6)


def test_activation_without_a_zero_point_and_with_a_scale_in_a_list():
    x = numbers((4, 8))
    proto = network(pair("uint8", zero_point=False), [tensor("s", [0.1])], x.shape)
    np.testing.assert_array_equal(run(load(proto), x), reference(proto, x))


def test_type_of_the_output_as_an_attribute():
    x = numbers((4, 8))
    nodes = pair("uint4", zero_point=False, output_dtype=TensorProto.UINT4)
    proto = network(nodes, [tensor("s", 0.5)], x.shape)
    np.testing.assert_array_equal(run(load(proto), x), reference(proto, x))
    assert run(load(proto), x).max() == 7.5


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_sixteen_bits(dtype):
    x = numbers((8, 8))
    proto = network(pair(dtype), [tensor("s", 0.01), tensor("z", 7, dtype)], x.shape)
    np.testing.assert_array_equal(run(load(proto), x), reference(proto, x))


@pytest.mark.parametrize("axis", [1, -3, None])
def test_activation_with_a_scale_per_channel(axis):
    x = numbers((2, 3, 4, 5))
    proto = network(pair("int8", axis=axis), [tensor("s", [0.5, 0.3, 2]), tensor("z", [0, 5, -7], "int8")], x.shape)
    np.testing.assert_array_equal(run(load(proto), x), reference(proto, x))


def quantized_layer(dtype: str, per_channel: bool, zero_points: bool, batch: Any = 2) -> onnx.ModelProto:
    """Convolution with a quantized input, weight and bias, as exporters write it."""
    generator = np.random.default_rng(2)
    low, high = RANGES[dtype]
    channels = 4
    scales = generator.uniform(0.01, 0.1, channels) if per_channel else np.array(0.05)
    zeros = generator.integers(low, high + 1, scales.shape) if zero_points else np.zeros(scales.shape)
    options = {"axis": 0} if per_channel else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["conv1.weight", "s", "z"], ["w"], **options),
        helper.make_node("DequantizeLinear", ["conv1.bias", "bs"], ["b"], **options),
        helper.make_node("Conv", ["xd", "w", "b"], ["c"], name="/conv1/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    tensors = [
        *(tensor("xs", 0.125), tensor("xz", 128, "uint8")),
        tensor("conv1.weight", generator.integers(low, high + 1, (channels, 3, 3, 3)), dtype),
        *(tensor("s", scales), tensor("z", zeros, dtype)),
        tensor("conv1.bias", generator.integers(-(2**30), 2**30, channels), "int32"),
        tensor("bs", scales * 1e-8),
    ]
    return network(nodes, tensors, [batch, 3, 6, 6])


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", RANGES)
def test_weights_and_biases(dtype, per_channel, zero_points):
    proto = quantized_layer(dtype, per_channel, zero_points, batch="N")
    model = load(proto)
    x = numbers((2, 3, 6, 6))
    np.testing.assert_allclose(run(model, x), reference(proto, x), rtol=1e-5, atol=1e-4)
    assert [layer.name for layer in model.layers()] == ["conv1"]
    weight = next(
        binding.value.args[1] for binding in module_bindings(model.module["main"]) if "conv1" in binding.var.name
    )
    # The weight itself, as onnxruntime computes it.
    dequantize = next(node for node in proto.graph.node if node.output[0] == "w")
    extended = network([dequantize, helper.make_node("Add", ["w", "x"], ["y"])], list(proto.graph.initializer), [1])
    np.testing.assert_array_equal(weight.value.numpy(), reference(extended, np.zeros(1, np.float32)))


@pytest.mark.parametrize(("dtype", "levels"), [("INT2", (-2, 1)), ("UINT2", (0, 3))])
def test_two_bits(dtype, levels):
    """Onnxruntime does not know these types; the definition is the same."""
    generator = np.random.default_rng(4)
    element = TensorProto.DataType.Value(dtype)
    codes = generator.integers(levels[0], levels[1] + 1, (8, 3))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    tensors = [
        tensor("s", 0.5),
        helper.make_tensor("z", element, [], [1]),
        helper.make_tensor("weight", element, codes.shape, codes.flatten().tolist()),
    ]
    x = numbers((2, 8))
    expected = ((np.clip(np.round(x / 0.5) + 1, *levels) - 1) * 0.5) @ ((codes - 1) * 0.5)
    np.testing.assert_allclose(run(load(network(nodes, tensors, [2, 8], opset=25)), x), expected, atol=1e-5)


def test_weight_that_is_quantized_in_the_graph():
    generator = np.random.default_rng(3)
    nodes = [
        helper.make_node("QuantizeLinear", ["fc.weight", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="/fc/MatMul"),
    ]
    tensors = [
        tensor("fc.weight", generator.normal(size=(8, 3))),
        tensor("s", [0.1, 0.2, 0.3]),
        tensor("z", [0] * 3, "int4"),
    ]
    proto = network(nodes, tensors, [2, 8])
    x = numbers((2, 8))
    model = load(proto)
    np.testing.assert_allclose(run(model, x), reference(proto, x), rtol=1e-5, atol=1e-5)
    assert [layer.name for layer in model.layers()] == ["fc"]


def test_scales_per_block():
    generator = np.random.default_rng(3)
    nodes = [
        helper.make_node("DequantizeLinear", ["fc.weight", "s"], ["w"], axis=0, block_size=4),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    tensors = [
        tensor("fc.weight", generator.integers(-8, 8, (8, 3)), "int4"),
        tensor("s", generator.uniform(0.1, 1, (2, 3))),
    ]
    proto = network(nodes, tensors, [2, 8])
    x = numbers((2, 8))
    np.testing.assert_allclose(run(load(proto), x), reference(proto, x), rtol=1e-5, atol=1e-4)


def test_integers_that_another_operator_reads():
    """Max pooling between the pair works on the integers."""
    nodes = pair("int8")
    nodes[1].input[0] = "p"
    nodes.insert(1, helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2], strides=[2, 2]))
    x = numbers((1, 2, 6, 6))
    proto = network(nodes, [tensor("s", 0.5), tensor("z", 0, "int8")], x.shape)
    np.testing.assert_array_equal(run(load(proto), x), reference(proto, x))


def test_scale_that_depends_on_the_input_is_left_to_tvm():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    x = numbers((4, 8))
    proto = network(nodes, [], x.shape)
    np.testing.assert_allclose(run(load(proto), x), reference(proto, x), atol=1e-4)


def error_of(kind: type[Exception], nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> str:
    with pytest.raises(kind) as raised:
        load(network(nodes, tensors, [2, 3]))
    text = str(raised.value)
    assert "'quantize'" in text or "'dequantize'" in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("scale", "attributes", "words"),
    [
        (0.0, {}, "scale is not positive"),
        ([0.5, 0.5], {}, "scale has 2 values"),
        ([[0.5, 0.5, 0.5]], {}, "does not fit"),
        ([0.5, 0.5, 0.5], {"axis": 2}, "'axis' is 2"),
        (np.float16(0.5), {}, "float16"),
    ],
)
def test_malformed_pairs(scale, attributes, words):
    scale = tensor("s", scale, "float16" if isinstance(scale, np.float16) else "float32")
    assert words in error_of(ModelError, pair("int8", **attributes), [scale, tensor("z", 0, "int8")])


def test_types_that_are_not_supported():
    floats = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    unsupported = UnsupportedOperatorError
    assert "float8" in error_of(unsupported, pair("int8"), [tensor("s", 0.5), floats])
    nodes = [
        helper.make_node("Cast", ["x"], ["q"], to=TensorProto.INT64),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="dequantize"),
    ]
    assert "int64" in error_of(unsupported, nodes, [tensor("s", 0.5)])
    nodes[0] = helper.make_node("Cast", ["x"], ["q"], to=TensorProto.INT32)
    nodes[1].input.append("z")
    assert "zero point 0" in error_of(ModelError, nodes, [tensor("s", 0.5), tensor("z", 1, "int32")])
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), *pair("int8")]
    nodes[1].input[0] = "h"
    assert "float16" in error_of(unsupported, nodes, [tensor("s", 0.5), tensor("z", 1, "int8")])
