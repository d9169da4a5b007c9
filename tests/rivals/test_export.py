"""The exported network computes what the model computes, where the model has no quantizers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import tvmq
from tvmq.errors import UnsupportedOperatorError
from tvmq.rivals.export import to_onnx
from tvmq.rivals.int8 import quantize_int8


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.one(x), self.two(nn.functional.avg_pool2d(x, 3, 1, 1))], 1)
        first, rest = joined.split([3, 5], 1)
        return torch.sigmoid(first.mean((2, 3))) - rest.permute(0, 2, 3, 1)[..., 1:4].mean((1, 2))


NETWORKS = {
    "plain": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
            *(nn.Conv2d(8, 16, 3, dilation=2, padding=2, groups=2), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        ),
        (3, 24, 24),
    ),
    "pool before batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Hardtanh()),
        (3, 12, 12),
    ),
    "residual": (lambda: nn.Sequential(Residual(3, 8), Residual(8, 8), nn.AvgPool2d(2), nn.Flatten()), (3, 16, 16)),
    "branches": (Branches, (4, 6, 6)),
    "dense": (lambda: nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Tanh(), nn.Linear(30, 4)), (20,)),
    "activations": (
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Sigmoid(), nn.Linear(6, 6, bias=False), nn.Softmax(1)),
        (6,),
    ),
}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    make, shape = NETWORKS[name]
    net = make()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight)  # of both signs
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return net.eval(), torch.rand(2, *shape)


def run(exported: onnx.ModelProto, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def operators(exported: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in exported.graph.node)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_same_values_without_quantizers(name):
    net, x = network(name)
    model = tvmq.load(net, (x,))
    exported = to_onnx(model)
    expected = model.run(x.numpy())[0]
    np.testing.assert_allclose(run(exported, x.numpy()), expected, rtol=2e-5, atol=2e-6)
    assert [item.name for item in exported.graph.input] == [spec.name for spec in model.inputs]
    assert [item.name for item in exported.graph.output] == [spec.name for spec in model.outputs]


@pytest.mark.parametrize("batch", [1, 3])
def test_open_batch_becomes_a_number(batch):
    net, x = network("dense")
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    model = tvmq.load(program)
    array = np.random.default_rng(0).random((batch, 20)).astype(np.float32)
    np.testing.assert_allclose(run(to_onnx(model, batch), array), model.run(array)[0], rtol=2e-5, atol=2e-6)


def test_batch_norms_and_biases_are_folded():
    net, x = network("plain")
    found = operators(to_onnx(tvmq.load(net, (x,))))
    assert found["BatchNormalization"] == found["Add"] == 0
    assert (found["Conv"], found["Gemm"], found["Relu"], found["GlobalAveragePool"]) == (2, 1, 1, 1)


@pytest.mark.parametrize(("factor", "left"), [(1.5, 0), (-1.5, 1)])
def test_batch_norm_is_folded_through_a_max_pool_where_it_rises(factor, left):
    net, x = network("pool before batch norm")
    nn.init.constant_(net[2].weight, factor)
    model = tvmq.load(net, (x,))
    exported = to_onnx(model)
    assert operators(exported)["BatchNormalization"] == left
    np.testing.assert_allclose(run(exported, x.numpy()), model.run(x.numpy())[0], rtol=2e-5, atol=2e-6)


def test_a_product_that_is_read_twice_keeps_its_batch_norm_apart():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) * torch.relu(y)

    torch.manual_seed(0)
    net, x = Twice().eval(), torch.rand(1, 3, 4, 4)
    nn.init.normal_(net.norm.running_mean)
    model = tvmq.load(net, (x,))
    np.testing.assert_allclose(run(to_onnx(model), x.numpy()), model.run(x.numpy())[0], rtol=2e-5, atol=2e-6)


def test_quantizers_become_activation_functions():
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layers[0](torch.clamp(torch.round(x * 255), 0, 255) / 255)
            x = self.layers[1](torch.where(x >= 0, 1.0, -1.0))
            return self.layers[2](torch.clamp(torch.round(x * 2), 0, 3) * 0.5)

    torch.manual_seed(0)
    net, x = Quantized().eval(), torch.rand(1, 8)
    exported = to_onnx(tvmq.load(net, (x,)))
    assert [node.op_type for node in exported.graph.node] == ["Gemm", "Clip", "Gemm", "Relu", "Gemm", "Identity"]
    first, second, third = (layer.weight.detach() for layer in net.layers)
    expected = torch.relu(torch.clamp(x @ first.T, -1, 1) @ second.T) @ third.T
    np.testing.assert_allclose(run(exported, x.numpy()), expected.numpy(), rtol=2e-5, atol=2e-6)


def test_weights_that_are_computed_become_numbers():
    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.where(self.weight >= 0, 1.0, -1.0)

    net, x = Latent().eval(), torch.rand(2, 8)
    exported = to_onnx(tvmq.load(net, (x,)))
    assert [node.op_type for node in exported.graph.node] == ["Gemm", "Identity"]
    np.testing.assert_allclose(run(exported, x.numpy()), net(x).detach().numpy(), rtol=2e-5, atol=2e-6)


def test_unknown_operator_is_named():
    class Cumulative(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 1)

    model = tvmq.load(Cumulative(), (torch.rand(1, 4),))
    with pytest.raises(UnsupportedOperatorError, match=r"layer '.*': relax\.cumsum .* cannot be exported to ONNX"):
        to_onnx(model)


def test_int8_network_is_close_and_leaves_the_float_one_alone():
    net, x = network("plain")
    exported = to_onnx(tvmq.load(net, (x,)))
    before = exported.SerializeToString()
    int8 = quantize_int8(exported, [{exported.graph.input[0].name: x.numpy()}])
    assert exported.SerializeToString() == before
    found = operators(int8)
    assert found["QuantizeLinear"] >= 5 and found["DequantizeLinear"] >= 7
    scales = {node.input[1] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    shapes = {tuple(item.dims) for item in int8.graph.initializer if item.name in scales}
    assert {(8,), (16,)} <= shapes  # one scale per output channel
    float_result, int8_result = run(exported, x.numpy()).ravel(), run(int8, x.numpy()).ravel()
    cosine = float_result @ int8_result / np.linalg.norm(float_result) / np.linalg.norm(int8_result)
    assert cosine > 0.99
