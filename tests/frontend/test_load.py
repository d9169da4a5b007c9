from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tvmq import golden
from tvmq.frontend import load
from tvmq.model import LAYER_OPERATORS, Model, module_bindings


def run(model: Model, *arrays: np.ndarray) -> np.ndarray:
    return golden.interpret(model.module, list(arrays))[0]


def expected(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module(x).numpy()


def names(model: Model) -> list[str]:
    return [layer.name for layer in model.layers()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_source_computes_what_torch_does(case, to_onnx, dynamic):
    x = torch.randn(3, *case.shape)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.export.export(case.module, (x,), dynamic_shapes=shapes)
    models = {
        "module": load(case.module, (x,), dynamic_batch=dynamic),
        "program": load(program, dynamic_batch=dynamic),
        "onnx": load(to_onnx(case.module, (x,), dynamic), dynamic_batch=dynamic),
    }
    for source, model in models.items():
        assert names(model) == case.layers, source
        assert model.inputs[0].shape == (None if dynamic else 3, *case.shape)
        for samples in (x, x[:1]) if dynamic else (x,):
            np.testing.assert_allclose(
                run(model, samples.numpy()), expected(case.module, samples), atol=1e-5, rtol=0, err_msg=source
            )


def test_module_is_normal(case):
    model = load(case.module, (torch.randn(2, *case.shape),))
    bindings = module_bindings(model.module["main"])
    operators = {binding.value.op.name for binding in bindings if hasattr(binding.value, "op")}
    assert "relax.zeros_like" not in operators  # what max pooling with indices leaves behind
    weights = [binding.value.args[1] for binding in bindings if getattr(binding.value, "op", None) in LAYER_OPERATORS]
    assert all(type(weight).__name__ == "GenericConst" for weight in weights)
    assert len(model.module.functions) == 1
    assert len({binding.var.name for binding in bindings}) == len(bindings)


def test_model_keeps_its_weights_when_the_module_trains_on():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    x = torch.randn(2, 4)
    before = expected(module, x)
    model = load(module, (x,))
    with torch.no_grad():
        module[0].weight.add_(1)
        module[1].running_mean.add_(1)
    np.testing.assert_allclose(run(model, x.numpy()), before, atol=1e-6)


def test_training_module_is_exported_in_evaluation_mode_and_left_alone():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    x = torch.randn(5, 4)
    model = load(module, (x,))
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    np.testing.assert_allclose(run(model, x.numpy()), expected(module.eval(), x), atol=1e-6)


def test_shared_layer_gets_two_names(to_onnx):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    x = torch.randn(2, 4)
    for source in (Shared(), to_onnx(Shared(), (x,))):
        assert names(load(source, (x,))) == ["layer", "layer_2"]


def test_names_from_buffers_parametrizations_and_channels_last_weights():
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.randn(3, 2, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.kernel)

    class Sign(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return torch.sign(weight)

    module = nn.Sequential(Buffered(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 3, padding=1))
    torch.nn.utils.parametrize.register_parametrization(module[1], "weight", Sign())
    module = module.to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 2, 4, 4)
    model = load(module, (x,))
    assert names(model) == ["0", "1", "2"]
    np.testing.assert_allclose(run(model, x.numpy()), expected(module, x), atol=1e-5)


def test_layer_that_is_the_whole_network_is_named_after_its_operator():
    assert names(load(nn.Conv2d(1, 1, 1), (torch.randn(1, 1, 2, 2),))) == ["conv2d"]


def test_two_inputs_and_two_outputs(to_onnx):
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, x - y

    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    for source in (Two(), to_onnx(Two(), inputs, dynamic=True)):
        model = load(source, None if isinstance(source, onnx.ModelProto) else inputs, dynamic_batch=True)
        assert [spec.shape for spec in model.inputs] == [(None, 3)] * 2
        assert len(model.outputs) == 2
        outputs = golden.interpret(model.module, [value.numpy() for value in inputs])
        for output, reference in zip(outputs, Two()(*inputs), strict=True):
            np.testing.assert_array_equal(output, reference.numpy())


def test_batch_of_one_can_be_made_dynamic():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    model = load(module, torch.randn(1, 2, 3), dynamic_batch=True)
    x = torch.randn(4, 2, 3)
    np.testing.assert_allclose(run(model, x.numpy()), expected(module, x), atol=1e-6)


def onnx_network(batch: int | str | None, legacy_inputs: bool = False, node_name: str = "") -> onnx.ModelProto:
    """``Gemm`` of a weight named without a dot, and ``Clip`` with one bound only."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "W")
    low = numpy_helper.from_array(np.array(4, dtype=np.float32), "low")
    nodes = [helper.make_node("Gemm", ["x", "W"], ["y"], name=node_name), helper.make_node("Clip", ["y", "low"], ["z"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])]
    if legacy_inputs:
        inputs.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [3, 2]))
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, 2])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, [weight, low])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("legacy_inputs", [False, True])
@pytest.mark.parametrize("batch", [2, "N", None])
def test_onnx_batches_and_initializers_among_the_inputs(batch, legacy_inputs):
    model = load(onnx_network(batch, legacy_inputs))
    assert [(spec.name, spec.shape) for spec in model.inputs] == [("x", (2 if batch == 2 else None, 3))]
    assert [(spec.name, spec.shape) for spec in model.outputs] == [("z", (2 if batch == 2 else None, 2))]
    assert model.name == "small"
    x = np.array([[1, 0, 0], [0, 2, 1]], np.float32)
    np.testing.assert_array_equal(run(model, x), [[4, 4], [8, 11]])


def test_onnx_layer_takes_the_node_name_when_the_weight_has_none():
    assert names(load(onnx_network(1))) == ["W"]
    assert names(load(onnx_network(1, node_name="/head/head.fc/Gemm"))) == ["head.fc"]


def test_onnx_batch_can_be_opened_and_fixed():
    assert load(onnx_network(2), dynamic_batch=True).inputs[0].shape == (None, 3)
    assert load(onnx_network("N"), (np.zeros((5, 3)),)).inputs[0].shape == (5, 3)


def test_onnx_clip_is_the_operator_that_passes_recognise(to_onnx):
    model = load(to_onnx(nn.ReLU6(), (torch.randn(1, 2),)))
    assert [binding.value.op.name for binding in module_bindings(model.module["main"])[:-1]] == ["relax.clip"]


def test_files(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(onnx_network("N"), path)
    x = np.eye(3, dtype=np.float32)
    model = load(str(path), name="renamed")
    assert model.name == "renamed"
    assert load(path).name == "small"
    bundle = tmp_path / "small.tvmq"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("model.json", model.to_json())
        tensors = {"inputs": [{"name": "x"}], "outputs": [{"name": "scores"}]}
        archive.writestr("manifest.json", json.dumps({"name": "small", **tensors}))
    again = load(bundle)
    assert (again.name, again.inputs, again.outputs[0].name) == ("small", model.inputs, "scores")
    np.testing.assert_array_equal(run(again, x), run(model, x))


def test_loading_onnx_does_not_import_our_torch_half(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(onnx_network(1), path)
    code = "import sys; from tvmq.frontend import load; load(sys.argv[1]); print('tvmq.frontend.torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.AdaptiveMaxPool2d(1),
        nn.AdaptiveMaxPool2d((4, 2)),
    ],
    ids=str,
)
def test_poolings(pool):
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(run(load(pool, (x,)), x.numpy()), expected(pool, x), atol=1e-6)


@pytest.mark.parametrize(
    "index",
    [
        lambda x: x[:, -1],
        lambda x: x[..., -2],
        lambda x: x[:, [0, -1]],
        lambda x: x[:, -2:, ::2],
        lambda x: x[:, torch.tensor([[3], [-2]]), torch.tensor([0, -1, 1])],
    ],
    ids=["last", "inner", "list", "slice", "grid"],
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_indices_count_from_the_end_too(index, dynamic):
    class Index(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return index(x) * 1.0

    x = torch.randn(3, 4, 6)
    np.testing.assert_array_equal(run(load(Index(), (x,), dynamic_batch=dynamic), x.numpy()), index(x).numpy())


def test_indices_in_negative_numbers_that_are_computed():
    class Index(nn.Module):
        def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return x[:, index - 2]

    x, index = torch.randn(3, 4, 6), torch.tensor([0, 1, 2, 3, 4, 5])
    outputs = golden.interpret(load(Index(), (x, index)).module, [x.numpy(), index.numpy()])
    np.testing.assert_array_equal(outputs[0], Index()(x, index).numpy())
