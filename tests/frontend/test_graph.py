"""ONNX graphs that are not sound, and those that only look so."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmq import golden
from tvmq.errors import ModelError
from tvmq.frontend import load

FLOAT = TensorProto.FLOAT


def node(operator: str, inputs: str, outputs: str, name: str = "") -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=name)


def network(*nodes: onnx.NodeProto, outputs: str = "y", constants: str = "") -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2])],
        [helper.make_tensor_value_info(output, FLOAT, [1, 2]) for output in outputs.split()],
        [numpy_helper.from_array(np.ones((1, 2), np.float32), name) for name in constants.split()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def error(proto: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as raised:
        load(proto)
    text = str(raised.value)
    assert text.startswith("'net'") and "\n" not in text
    return text


def test_nodes_in_another_order_than_they_run_in():
    nodes = [
        node("Add", "a b", "y"),
        node("Relu", "x", "a"),
        node("Mul", "a c", "b"),
        node("Constant", "", "c"),
    ]
    nodes[3].attribute.append(helper.make_attribute("value_floats", [2.0, -1.0]))
    proto = network(*nodes)
    before = proto.SerializeToString()
    x = np.array([[3, 4]], np.float32)
    np.testing.assert_array_equal(golden.interpret(load(proto).module, [x])[0], [[9, 0]])
    assert proto.SerializeToString() == before


def test_cycle():
    text = error(network(node("Add", "x b", "a", "first"), node("Relu", "a", "b", "second"), node("Neg", "b", "y")))
    assert "cycle through node 'first', node 'second'" in text
    text = error(network(node("Add", "x y", "y")))
    assert "cycle through the Add node that computes 'y'" in text


def test_input_that_nothing_computes():
    text = error(network(node("Add", "x weight", "y", "sum")))
    assert "node 'sum' reads 'weight'" in text
    assert "the Add node that computes 'y' reads 'weight'" in error(network(node("Add", "x weight", "y")))


def test_output_that_nothing_computes():
    assert "output 'z' is not connected" in error(network(node("Relu", "x", "y"), outputs="y z"))


def test_names_that_are_given_twice():
    twice = network(node("Relu", "x", "y", "first"), node("Neg", "x", "y", "second"))
    assert "both node 'first' and node 'second' compute 'y'" in error(twice)
    assert "both node 'split' and node 'split' compute 'y'" in error(network(node("Split", "x", "y y", "split")))
    assert "output 'y' is listed 2 times" in error(network(node("Relu", "x", "y"), outputs="y y"))
    assert "node 'late' computes 'x', which is an input" in error(network(node("Relu", "x", "x", "late"), outputs="x"))
    assert "node 'late' computes 'w'" in error(network(node("Relu", "x", "w", "late"), outputs="w", constants="w"))
    assert "initializer 'w' is listed 2 times" in error(network(node("Add", "x w", "y"), constants="w w"))


def test_error_inside_a_converter_of_tvm_names_the_node(capfd):
    assert "node 'bad'" in error(network(node("Relu", "x", "a"), node("MatMul", "a a", "y", "bad")))
    assert capfd.readouterr() == ("", "")  # nothing but the error
