from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from tvmq.errors import InputError, ModelError, UnsupportedOperatorError
from tvmq.frontend import load


def message(error: type[Exception], source: object, *arguments: object, **options: object) -> str:
    """Message of the error that loading raises: one line."""
    with pytest.raises(error) as raised:
        load(source, *arguments, **options)
    text = str(raised.value)
    assert "\n" not in text
    return text


def graph_of(
    *nodes: onnx.NodeProto,
    shape: tuple[object, ...] = (1, 4),
    domain: str = "",
    output: tuple[object, ...] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_missing_path_and_folder(tmp_path: Path):
    assert "no such file" in message(ModelError, tmp_path / "absent.onnx")
    assert str(tmp_path) in message(ModelError, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93\x01\xff\xfe garbage \x00" * 20, b"hello, this is text\n" * 30])
def test_file_that_is_not_onnx(tmp_path: Path, content: bytes):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert str(path) in message(ModelError, path)


def test_truncated_onnx(tmp_path: Path):
    path = tmp_path / "net.onnx"
    path.write_bytes(graph_of(helper.make_node("Relu", ["x"], ["y"])).SerializeToString()[:-9])
    assert str(path) in message(ModelError, path)


def test_torch_file(tmp_path: Path):
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    text = message(ModelError, path)
    assert str(path) in text and "torch.load" in text


def test_damaged_tvmq(tmp_path: Path):
    path = tmp_path / "net.tvmq"
    path.write_bytes(b"not a zip")
    assert str(path) in message(ModelError, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.json", "{}")
    assert "not a serialised model" in message(ModelError, path)


def test_source_of_another_kind():
    assert "int" in message(InputError, 3)


def test_onnx_operator_that_is_not_supported():
    node = helper.make_node("Multinomial", ["x"], ["y"], name="dice")
    text = message(UnsupportedOperatorError, graph_of(node))
    assert "'Multinomial'" in text and "'dice'" in text and "'net'" in text


def test_onnx_operator_of_a_custom_domain_is_not_taken_for_the_standard_one():
    node = helper.make_node("Relu", ["x"], ["y"], name="odd", domain="com.example")
    text = message(UnsupportedOperatorError, graph_of(node, domain="com.example"))
    assert "com.example.Relu" in text and "'odd'" in text


def test_onnx_control_flow():
    def branch(operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(operator, TensorProto.FLOAT, (1, 4))
        return helper.make_graph([helper.make_node(operator, ["x"], [operator])], operator, [], [output])

    condition = helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0)
    to_bool = helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL)
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch("Relu"), else_branch=branch("Neg"))
    assert "'If'" in message(UnsupportedOperatorError, graph_of(condition, to_bool, node))


def test_onnx_open_dimension_other_than_the_batch():
    network = graph_of(helper.make_node("Relu", ["x"], ["y"]), shape=("N", 3, "height"))
    text = message(ModelError, network)
    assert "'x'" in text and "height" in text
    assert load(network, (np.zeros((2, 3, 5)),)).inputs[0].shape == (2, 3, 5)


def test_onnx_example_of_another_rank():
    network = graph_of(helper.make_node("Relu", ["x"], ["y"]))
    assert "dimensions" in message(InputError, network, (np.zeros(3),))
    assert "2 examples" in message(InputError, network, (np.zeros(3), np.zeros(3)))


def test_onnx_with_a_constant_batch_inside_cannot_be_opened():
    shape = helper.make_node("Constant", [], ["s"], value=helper.make_tensor("", TensorProto.INT64, [2], [1, 4]))
    network = graph_of(shape, helper.make_node("Reshape", ["x", "s"], ["y"]), shape=(1, 2, 2))
    assert load(network).outputs[0].shape == (1, 4)
    assert "batch" in message(ModelError, network, dynamic_batch=True)


def test_onnx_graph_that_cannot_be_imported():
    network = graph_of(helper.make_node("Gemm", ["x", "x"], ["y"], name="square"))
    text = message(ModelError, network)
    assert "'net' cannot be imported" in text and "'square'" in text


def test_torch_module_without_inputs():
    text = message(InputError, nn.Linear(2, 2))
    assert "Linear" in text and "inputs" in text


def test_torch_inputs_that_are_not_tensors():
    assert "tensors" in message(InputError, nn.Linear(2, 2), ("text",))


def test_torch_module_that_cannot_be_exported():
    class Depends(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    assert "'Depends' cannot be exported" in message(ModelError, Depends(), (torch.randn(2),))


def test_torch_shape_that_depends_on_data():
    class Nonzero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0]

    assert "'Nonzero'" in message(ModelError, Nonzero(), (torch.randn(4),))


def test_torch_module_with_a_fixed_batch():
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 6)

    x = torch.randn(2, 2, 3)
    assert load(Fixed(), (x,)).outputs[0].shape == (2, 6)
    assert "dynamic_batch" in message(ModelError, Fixed(), (x,), dynamic_batch=True)


def test_torch_operator_that_is_not_supported():
    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    text = message(UnsupportedOperatorError, nn.Sequential(nn.ReLU(), Layer()), (torch.randn(2),))
    assert "bessel_j0" in text and "'1'" in text


def export(module: nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.export.export(module, (x,))


def test_program_exported_in_training_mode():
    program = export(nn.BatchNorm1d(3).train(), torch.randn(4, 3))
    assert "training mode" in message(ModelError, program)


def test_program_with_a_fixed_batch():
    program = export(nn.Linear(3, 2), torch.randn(4, 3))
    assert "fixed batch" in message(ModelError, program, dynamic_batch=True)


def test_torch_poolings_that_would_come_out_wrong():
    x = torch.randn(1, 1, 6, 6)
    for pool in (nn.AvgPool2d(3, divisor_override=5), nn.AdaptiveMaxPool2d(4)):
        assert "pool2d" in message(UnsupportedOperatorError, pool, (x,))


def test_torch_index_that_would_come_out_wrong():
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, [0, 1], [1, 2]]

    assert "index" in message(UnsupportedOperatorError, Pairs(), (torch.randn(2, 3, 4),))
