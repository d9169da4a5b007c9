from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from tvmq.errors import InputError, ModelError
from tvmq.frontend import load
from tvmq.model import Model
from tvmq.runtime.tensors import TensorSpec, check_inputs

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def module_of(batch: int | None = None, as_tuple: bool = True) -> tvm.IRModule:
    """``relu(x · WEIGHT)`` and, beside it, a product of two activations, which is no layer."""
    size = tvm.tirx.Var("n", "int64") if batch is None else batch
    x = relax.Var("x", relax.TensorType((size, 3), "float32"))
    fc = relax.DataflowVar("head.fc", relax.TensorType((size, 2), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.normalize(op.matmul(x, relax.const(WEIGHT)))
            builder.emit_normalized(relax.VarBinding(fc, value))
            y = builder.emit(op.nn.relu(fc))
            gram = builder.emit(op.matmul(y, op.permute_dims(y)))
            result = builder.emit_output(relax.Tuple([y, gram]) if as_tuple else y)
        builder.emit_func_output(result)
    return builder.get()


X = np.array([[1, 0, -1], [0, 1, 1]], np.float32)


def test_specs_are_read_off_the_module():
    model = Model.from_module(module_of(), "net", output_names=["y", "gram"])
    assert model.inputs == (TensorSpec("x", (None, 3), "float32"),)
    assert model.outputs == (TensorSpec("y", (None, 2), "float32"), TensorSpec("gram", (None, None), "float32"))
    assert model.dynamic_batch
    assert not Model.from_module(module_of(2), "net").dynamic_batch
    assert [spec.name for spec in Model.from_module(module_of(2, as_tuple=False), "net").outputs] == ["output_0"]


def test_layers_and_text():
    model = Model.from_module(module_of(), "net")
    assert model.layers() == [("head.fc", "matmul", (3, 2))]
    text = str(model)
    assert "net" in text and "head.fc" in text and "3 × 2" in text and "x: float32[batch, 3]" in text


@pytest.mark.parametrize("as_tuple", [True, False])
def test_run(as_tuple):
    model = Model.from_module(module_of(as_tuple=as_tuple), "net")
    outputs = model.run(X)
    assert len(outputs) == (2 if as_tuple else 1)
    np.testing.assert_array_equal(outputs[0], np.maximum(X @ WEIGHT, 0))
    np.testing.assert_array_equal(model.run(X.tolist())[0], outputs[0])


def test_run_checks_its_inputs():
    model = Model.from_module(module_of(), "net")
    with pytest.raises(InputError, match="takes 1 input"):
        model.run()
    with pytest.raises(InputError, match=r'astype\("float32"\)'):
        model.run(X.astype(np.float64))


def test_json_round_trip():
    model = Model.from_module(module_of(), "net", ["picture"], ["y", "gram"])
    again = Model.from_json(model.to_json())
    assert (again.name, again.inputs, again.outputs) == (model.name, model.inputs, model.outputs)
    assert again.layers() == model.layers()
    tvm.ir.assert_structural_equal(again.module, model.module, map_free_vars=True)
    assert again.to_json() == model.to_json()
    np.testing.assert_array_equal(again.run(X)[0], model.run(X)[0])


ROWS = ({"layer": "head.fc", "radius": {"min": 0.5, "max": 1.0}, "activations": None},)


def test_quantization_travels_with_the_model(tmp_path):
    model = Model.from_module(module_of(2), "net", ["picture"], ["y", "gram"], ROWS)
    assert model.quantization == ROWS and model.quantization[0] is not ROWS[0]
    assert Model.from_json(model.to_json()).quantization == ROWS
    model.save(tmp_path / "net.tvmq")
    assert load(tmp_path / "net.tvmq").quantization == ROWS
    assert load(tmp_path / "net.tvmq", name="other").quantization == ROWS
    plain = Model.from_module(module_of(2), "net")
    assert plain.quantization == () and "quantization" not in plain.to_json()


def test_saved_model_is_the_same_network(tmp_path):
    model = Model.from_module(module_of(), "net", ["picture"], ["y", "gram"])
    model.save(tmp_path / "net.tvmq")
    again = load(tmp_path / "net.tvmq")
    assert (again.name, again.inputs, again.outputs) == (model.name, model.inputs, model.outputs)
    np.testing.assert_array_equal(again.run(X)[0], model.run(X)[0])


@pytest.mark.parametrize("rows", [({"radius": np.float32(1)},), ({"error": float("nan")},), ("row",)])
def test_quantization_must_be_plain_data(rows):
    with pytest.raises(ModelError, match="model 'net': its quantization is not plain data"):
        Model.from_module(module_of(2), "net", quantization=rows)


def test_json_of_a_bare_module_takes_default_names():
    model = Model.from_json(tvm.ir.save_json(module_of(2)))
    assert (model.name, [spec.name for spec in model.outputs]) == ("model", ["output_0", "output_1"])


@pytest.mark.parametrize("text", ["", "{}", "not json", "[1, 2"])
def test_json_of_something_else(text):
    with pytest.raises(ModelError):
        Model.from_json(text)


def test_models_that_do_not_fit_together():
    with pytest.raises(ModelError, match="main"):
        Model.from_module(tvm.IRModule({}), "net")
    with pytest.raises(ModelError, match="2 input"):
        Model.from_module(module_of(), "net", ["a", "b"])
    with pytest.raises(ModelError, match="0 inputs for 1"):
        Model(module_of(), "net", (), ())
    spec = TensorSpec("x", (None, 3), "float32")
    with pytest.raises(ModelError, match="1 outputs for 2"):
        Model(module_of(), "net", (spec,), (spec,))


SPECS = [TensorSpec("x", (None, 3), "float32"), TensorSpec("y", (None,), "int32")]
FLOATS, INTEGERS = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)


def test_inputs_come_out_contiguous_and_equal():
    given = np.arange(6, dtype=np.float32).reshape(3, 2).T
    x, y = check_inputs(SPECS, [given, [1, 2]])
    assert x.flags.c_contiguous and y.dtype == np.int32
    np.testing.assert_array_equal(x, given)
    scalar = check_inputs([TensorSpec("s", (), "float32")], [1.5])[0]
    assert (scalar.shape, scalar.dtype, float(scalar)) == ((), np.float32, 1.5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([FLOATS], "takes 2 input"),
        ([FLOATS.astype(np.float64), INTEGERS], r'\.astype\("float32"\)'),
        ([FLOATS, INTEGERS.astype(np.int64)], "'y' is int64"),
        ([FLOATS[0], INTEGERS], r"\(3,\)"),
        ([np.zeros((2, 4), np.float32), INTEGERS], r"x: float32\[batch, 3\]"),
        ([FLOATS, INTEGERS[:1]], "disagree about the batch"),
        ([FLOATS[:0], INTEGERS[:0]], "empty"),
        ([[[1, 2], [3]], INTEGERS], "'x' is not an array"),
        ([["a", "b", "c"], INTEGERS], "'x' is not an array"),
        ([np.array(["a"]), INTEGERS], "network takes float32"),
        ([None, INTEGERS], "network takes float32"),
    ],
)
def test_inputs_that_do_not_fit(arrays, message):
    with pytest.raises(InputError, match=message):
        check_inputs(SPECS, arrays)


def test_tensor_specs_are_validated():
    assert TensorSpec("x", [None, 3], "float32") == SPECS[0]
    for arguments in (("", (1,), "float32"), ("x", (-1,), "float32"), ("x", (1,), "float31")):
        with pytest.raises(InputError):
            TensorSpec(*arguments)
