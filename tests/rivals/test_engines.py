from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tvmq.errors import InputError
from tvmq.rivals.engines import ENGINES, build_rival, engines_of
from tvmq.rivals.forms import FORMS


@pytest.fixture
def installed(monkeypatch):
    """Pretend that just these packages are installed."""

    def only(*packages: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in packages else None)

    return only


def doubling() -> onnx.ModelProto:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_onnxruntime_runs_on_bound_inputs():
    x = np.array([[1, 2, 3]], np.float32)
    engine = next(engine for engine in ENGINES if engine.name == "onnxruntime fp32")
    rival = build_rival(engine, doubling(), {"x": x}, 1)
    rival.run()
    np.testing.assert_array_equal(rival.outputs()[0], 2 * x)
    assert rival.version.count(".") >= 1
    assert rival.settings == engine.settings


def test_every_engine_has_a_form():
    assert {engine.form for engine in ENGINES} == set(FORMS)


def test_auto_takes_what_is_there_and_says_what_is_not(installed):
    installed("onnxruntime")
    found, missing = engines_of("auto")
    assert [engine.name for engine in found] == ["onnxruntime fp32", "onnxruntime int8", "onnxruntime 2-bit weights"]
    assert missing == {
        f"{name} int8": f"{name} is not installed (pip install 'tvmq[benchmarks]')" for name in ("openvino", "ncnn")
    }


def test_none():
    assert engines_of("none") == ([], {})


def test_by_name(installed):
    installed("onnxruntime", "openvino", "ncnn")
    assert [engine.name for engine in engines_of("openvino")[0]] == ["openvino int8"]
    assert [engine.name for engine in engines_of("ncnn,onnxruntime fp32")[0]] == ["onnxruntime fp32", "ncnn int8"]
    assert [engine.name for engine in engines_of("onnxruntime 2-bit weights")[0]] == ["onnxruntime 2-bit weights"]
    assert len(engines_of("onnxruntime, openvino, ncnn")[0]) == len(ENGINES)


def test_a_named_rival_must_be_installed(installed):
    installed("onnxruntime")
    with pytest.raises(InputError, match=r"rival 'openvino' is not installed; install it with: pip install 'tvmq\[b"):
        engines_of("onnxruntime,openvino")
    with pytest.raises(InputError, match=r"rival 'ncnn' is not installed"):
        engines_of("ncnn int8")


def test_unknown_rival():
    with pytest.raises(InputError, match="unknown rival 'opnvino'; did you mean 'openvino'"):
        engines_of("opnvino")
