from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tvmq.rivals.calibration import largest_magnitudes


def test_of_all_samples_and_all_tensors():
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "twice", "y")]
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"]), helper.make_node("Relu", ["twice"], ["y"])]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[2:], value_info=tensors[1:2])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = network.SerializeToString()
    samples = [{"x": np.array([[1, -3]], np.float32)}, {"x": np.array([[2, 1]], np.float32)}]
    assert largest_magnitudes(network, samples) == {"x": 3, "twice": 6, "y": 4}
    assert network.SerializeToString() == before
    onnx.checker.check_model(network)
