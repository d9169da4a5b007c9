"""Networks for ncnn: their form, and what ncnn computes with them where it is installed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import tvmq
from tvmq.errors import UnsupportedOperatorError
from tvmq.rivals.calibration import largest_magnitudes
from tvmq.rivals.export import to_onnx
from tvmq.rivals.ncnn_int8 import NcnnNetwork, to_ncnn


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


NETWORKS = {
    "residual": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, (5, 3), (2, 1), (2, 1)), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
            *(Residual(16, 24, 1), Residual(24, 20, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 32)),
        ),
        (1, 3, 32, 24),
    ),
    "pool before activation": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU6()),
            *(nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.Linear(8 * 7 * 7, 40), nn.Hardtanh(), nn.Linear(40, 20)),
        ),
        (1, 3, 16, 16),
    ),
    "dense, one": (lambda: nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 30), nn.Softmax(1)), (1, 100)),
    "dense, many": (lambda: nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 30), nn.Softmax(1)), (7, 100)),
    "without numbers": (lambda: nn.Sequential(nn.Hardtanh(), nn.ReLU()), (1, 4, 5, 6)),
}


def exported(net: nn.Module, *shape: int) -> onnx.ModelProto:
    return to_onnx(tvmq.load(net.eval(), (torch.rand(*shape),)), shape[0])


def written(name: str) -> tuple[onnx.ModelProto, NcnnNetwork, dict[str, np.ndarray]]:
    torch.manual_seed(2)
    make, shape = NETWORKS[name]
    network = exported(make(), *shape)
    sample = {network.graph.input[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    return network, to_ncnn(network, largest_magnitudes(network, [sample])), sample


def layers(network: NcnnNetwork) -> list[tuple[str, dict[int, str]]]:
    """Kinds of the layers, and their parameters."""
    result = []
    for line in network.layers.splitlines()[2:]:
        kind, _name, inputs, outputs, *rest = line.split()
        parameters = [item.split("=") for item in rest[int(inputs) + int(outputs) :]]
        result.append((kind, {int(key): value for key, value in parameters}))
    return result


def test_activations_go_into_convolutions_and_results_between_them_are_int8():
    found = layers(written("residual")[1])
    assert [kind for kind, _ in found] == [
        *("Input", "Convolution", "Pooling", "Split"),
        *("Convolution", "Convolution", "Convolution", "BinaryOp", "ReLU", "Split"),
        *("Convolution", "Convolution", "Convolution", "BinaryOp", "ReLU"),
        *("Pooling", "Reshape", "Gemm"),
    ]
    convolutions = [parameters for kind, parameters in found if kind == "Convolution"]
    assert [parameters.get(9) for parameters in convolutions] == ["1", "1", None, None, "1", None, None]
    assert [parameters[8] for parameters in convolutions] == ["2", "102", "2", "2", "102", "2", "2"]


def test_activations_go_before_maxima_too():
    found = layers(written("pool before activation")[1])
    assert [kind for kind, _ in found] == [
        *("Input", "Convolution", "Pooling", "Convolution", "Pooling", "Reshape", "Gemm", "Clip", "Gemm"),
    ]
    assert found[1][1][9] == "1"
    assert found[3][1][-23310] == "2,0.000000e+00,6.000000e+00"


def test_winograd_43_has_smaller_weights():
    _, network, _ = written("pool before activation")
    assert len(network.weights) == len(network.winograd_43_weights)
    first = 4 + 16 * 27  # behind the tag; its bias and two kinds of factors follow
    for weights, most in ((network.weights, 127), (network.winograd_43_weights, 31)):
        magnitudes = np.abs(np.frombuffer(weights[4:first], np.int8).reshape(16, 27).astype(int)).max(1)
        assert set(magnitudes) == {most}
    _, network, _ = written("dense, one")
    assert network.weights == network.winograd_43_weights


@pytest.mark.parametrize("name", list(NETWORKS))
def test_ncnn_computes_what_onnxruntime_computes(name):
    pytest.importorskip("ncnn")
    from tvmq.rivals.ncnn_engine import load_ncnn, load_ncnn_by

    network, translated, sample = written(name)
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, sample)[0].ravel()
    for kind in translated.kinds:
        (found,) = load_ncnn_by(kind, translated, sample, 1).outputs()
        assert np.corrcoef(found.ravel(), expected)[0, 1] > 0.99, kind
    (found,) = load_ncnn(translated, sample, 1).outputs()
    assert np.corrcoef(found.ravel(), expected)[0, 1] > 0.99


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), (1, 4, 8, 8), "layer '.*': Conv in this form cannot be written for ncnn"),
        (nn.Sigmoid(), (1, 4), "layer '.*': Sigmoid in this form cannot be written for ncnn"),
        (nn.MaxPool2d(2, ceil_mode=True), (1, 4, 7, 7), "MaxPool in this form"),
        (nn.Flatten(2), (1, 4, 7, 7), "Reshape in this form"),
        (nn.Softmax(0), (3, 4), "Softmax in this form"),
        (nn.Linear(7, 3, bias=False), (1, 4, 7, 7), "Reshape in this form"),
        (nn.Conv2d(4, 4, 3), (2, 4, 8, 8), r"ncnn takes one image or a batch of vectors, not \[2, 4, 8, 8\]"),
    ],
)
def test_what_has_no_counterpart_is_named(net, shape, message):
    network = exported(net, *shape)
    magnitudes = largest_magnitudes(network, [{network.graph.input[0].name: np.ones(shape, np.float32)}])
    with pytest.raises(UnsupportedOperatorError, match=message):
        to_ncnn(network, magnitudes)


def test_a_product_with_an_image_is_none_of_a_matrix():
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 7, 7]) for name in "xy"]
    weight = numpy_helper.from_array(np.ones((7, 7), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", tensors[:1], tensors[1:], [weight])
    with pytest.raises(UnsupportedOperatorError, match="layer 'y': MatMul in this form cannot be written for ncnn"):
        to_ncnn(helper.make_model(graph), {"x": 1.0, "y": 1.0})
