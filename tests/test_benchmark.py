"""Measuring real networks; nothing here asserts how long anything takes."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
import tvm
from torch import nn

import tvmq
from tvmq import benchmark
from tvmq.benchmark import sample_inputs, set_threads
from tvmq.errors import BundleError, InputError
from tvmq.report.benchmark_chart import draw_benchmark
from tvmq.runtime.tensors import TensorSpec


class Sign(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


@pytest.fixture(scope="module")
def model() -> tvmq.Model:
    """A binary convolution and a float linear layer."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=False)
    conv.weight.data = torch.where(conv.weight.data >= 0, 1.0, -1.0)
    net = nn.Sequential(Sign(), conv, nn.BatchNorm2d(32), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10))
    loaded = tvmq.load(net.eval(), (torch.rand(1, 16, 8, 8),))
    return dataclasses.replace(loaded, name="tiny")


@pytest.fixture(scope="module")
def bundle(model) -> tvmq.Bundle:
    return tvmq.compile(model)


@pytest.fixture(scope="module")
def report(bundle):
    moments = []
    found = tvmq.bench(bundle, rounds=3, rivals="onnxruntime", progress=lambda *moment: moments.append(moment))
    assert [text for text, _, _ in moments[-3:]] == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    return found


def test_every_function_of_the_network_is_there(bundle, report):
    calls = [name for name, _ in bundle.call_times(repeat=1)]
    assert [item.function for item in report.functions] == calls
    layers = [item for item in report.functions if item.layer is not None]
    rows = bundle.layers("host")
    assert [item.layer for item in layers] == [row["name"] for row in rows]
    assert [item.function for item in layers] == [row["function"] for row in rows]
    assert [item.macs for item in layers] == [row["macs"] for row in rows]
    assert len(calls) > len(rows)
    assert all(item.macs == 0 for item in report.functions if item.layer is None)


def test_times_add_up(report):
    parts = report.seconds_in_layers + report.seconds_between_layers
    assert parts == pytest.approx(sum(item.seconds for item in report.functions))
    assert all(item.seconds > 0 for item in report.functions)


def test_share_of_the_limit_follows_from_time_and_clock(report):
    core = tvmq.get_target("host")
    cycles = report.clock_hertz.median * report.threads
    binary, float_ = (item for item in report.functions if item.layer is not None)
    limits = core.mac_per_cycle
    kind = "table1" if binary.kernel == "bitserial table" else "binary"
    assert binary.limit_share == pytest.approx(binary.macs / (binary.seconds * cycles * limits[kind]))
    assert float_.limit_share == pytest.approx(float_.macs / (float_.seconds * cycles * limits["float32"]))


def test_the_limit_of_lookups_is_that_of_their_bits():
    limits = tvmq.get_target("x86-avx2").mac_per_cycle
    layer = {"kernel": "bitserial table", "weight_bits": 1, "activation_bits": 3}
    assert benchmark._limit(layer, limits) == limits["table3"]


def test_rivals_took_every_turn(report):
    assert [rival.name for rival in report.rivals] == ["onnxruntime fp32", "onnxruntime int8"]
    for rival in report.rivals:
        assert len(rival.seconds.values) == len(rival.ratio.values) == len(report.own.seconds.values) == 3
        assert rival.ratio.values[0] == rival.seconds.values[0] / report.own.seconds.values[0]
        assert rival.cpu_ratio.values[2] == rival.cpu_seconds.values[2] / report.own.cpu_seconds.values[2]
    reason = (
        "dense layers have 2% of the multiply-accumulates; 2-bit weights are for networks where they have at least 50%"
    )
    assert report.left_out == {"onnxruntime 2-bit weights": reason}


def test_result_says_where_it_comes_from(report):
    data = json.loads(report.to_json())
    assert (data["network"], data["target"], data["batch"], data["rounds"]) == ("tiny", "host", 1, 3)
    assert data["exact"] is True and data["interrupted"] is False
    assert set(data["versions"]) == {"tvmq", "tvm", "python", "onnxruntime"}
    assert set(data["machine"]) == {"processor", "architecture", "processors", "date"}
    assert len(data["machine"]["processors"]) == data["threads"] == tvm.runtime.num_threads()
    assert "tiny on host" in str(report)


def test_chart_of_a_measurement(report, tmp_path):
    draw_benchmark(report, tmp_path / "bench.svg")
    text = (tmp_path / "bench.svg").read_text()
    assert "<svg" in text


def test_processors_are_given_back(bundle):
    before = os.sched_getaffinity(0)
    tvmq.bench(bundle, rounds=1, rivals="none")
    assert os.sched_getaffinity(0) == before


def test_a_model_is_compiled_first(model):
    found = tvmq.bench(model, rounds=1, rivals="none")
    assert found.target == "host" and found.rounds == 1 and found.rivals == ()


def test_accuracy_of_the_file_is_shown(bundle):
    known = dataclasses.replace(bundle, manifest={**bundle.manifest, "accuracy": 0.875})
    found = tvmq.bench(known, rounds=1, rivals="none")
    assert found.as_dict()["accuracy"] == 0.875
    assert "accuracy of the low-bit network: 0.875" in str(found)


@pytest.mark.parametrize(("turn", "rounds"), [(2, 1), (3, 2)])
def test_an_interruption_leaves_the_rounds_that_are_done(bundle, monkeypatch, turn, rounds):
    turns = []
    take_one = benchmark._Rounds._take_one

    def interrupted(self, index, runs):
        turns.append(index)
        if len(turns) == turn:
            raise KeyboardInterrupt
        take_one(self, index, runs)

    monkeypatch.setattr(benchmark._Rounds, "_take_one", interrupted)
    found = tvmq.bench(bundle, rounds=5, rivals="none")
    assert (found.rounds, found.interrupted) == (rounds, True)
    assert len(found.own.seconds.values) == rounds


def test_an_interruption_in_the_first_round_is_one(bundle, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark._Rounds, "_take_one", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tvmq.bench(bundle, rounds=5, rivals="none")


def test_a_network_that_cannot_be_exported_leaves_rivals_out():
    class Cumulative(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, 1)

    found = tvmq.bench(tvmq.load(Cumulative(), (torch.rand(1, 4),)), rounds=1, rivals="onnxruntime")
    assert not found.rivals
    assert set(found.left_out) == {"onnxruntime fp32", "onnxruntime int8", "onnxruntime 2-bit weights"}
    assert "relax.cumsum" in found.left_out["onnxruntime fp32"]
    assert "left out: layer '" in str(found)


def test_another_network_for_the_rivals(bundle, model):
    torch.manual_seed(0)
    plain = tvmq.load(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)).eval(), (torch.rand(1, 16, 8, 8),))
    found = tvmq.bench(bundle, rounds=1, rivals="onnxruntime", rival_model=plain)
    assert [rival.name for rival in found.rivals] == [
        *("onnxruntime fp32", "onnxruntime int8", "onnxruntime 2-bit weights"),
    ]


def test_ncnn_takes_its_turn(bundle):
    pytest.importorskip("ncnn")
    found = tvmq.bench(bundle, rounds=2, rivals="onnxruntime fp32,ncnn")
    assert [rival.name for rival in found.rivals] == ["onnxruntime fp32", "ncnn int8"]
    assert not found.left_out
    assert "ncnn" in found.versions
    assert found.rivals[1].settings.startswith("quantized as by ncnn2int8")
    assert found.rivals[1].settings.endswith(
        (" no Winograd, as the fastest", "F(2,3), as the fastest", "F(4,3), as the fastest")
    )


def test_what_ncnn_cannot_run_leaves_it_out_with_the_layer(bundle):
    pytest.importorskip("ncnn")
    plain = tvmq.load(nn.Sequential(nn.Conv2d(16, 4, 3, groups=2)).eval(), (torch.rand(1, 16, 8, 8),))
    found = tvmq.bench(bundle, rounds=1, rivals="ncnn", rival_model=plain)
    assert not found.rivals
    assert "Conv in this form cannot be written for ncnn" in found.left_out["ncnn int8"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rounds": 0}, InputError, "rounds must be 1 or more, not 0"),
        ({"threads": 0}, InputError, "threads must be 1 or more, not 0"),
        ({"threads": 999}, InputError, r"cannot change to 999; set TVM_NUM_THREADS=999 before Python starts"),
        ({"batch": 4}, InputError, r"input '.*' is made for a batch of 1, not 4"),
        ({"batch": 0}, InputError, "batch must be 1 or more, not 0"),
        ({"inputs": [np.zeros((1, 3, 8, 8), np.float32)]}, InputError, r"has shape \(1, 3, 8, 8\), but the network"),
        ({"inputs": [np.zeros((1, 16, 8, 8), np.float32)], "batch": 1}, InputError, "give inputs or a batch, not both"),
        ({"target": "raspberry-pi-4"}, BundleError, "it holds no library for target 'raspberry-pi-4'"),
        ({"rivals": "tensorrt"}, InputError, "unknown rival 'tensorrt'"),
    ],
)
def test_wrong_arguments(bundle, options, error, message):
    with pytest.raises(error, match=message):
        tvmq.bench(bundle, **{"rivals": "none", **options})


def test_refused_threads_leave_the_environment_alone(monkeypatch):
    monkeypatch.setenv("TVM_NUM_THREADS", "7")
    running = tvm.runtime.num_threads()
    with pytest.raises(InputError, match=f"TVM runs on {running} thread"):
        set_threads(running + 1)
    assert os.environ["TVM_NUM_THREADS"] == "7"
    assert set_threads(None) == running


def test_library_for_another_processor(bundle):
    entry = {**bundle.manifest["targets"]["host"], "required_cpu_flags": ["avx1024"]}
    other = dataclasses.replace(bundle, manifest={**bundle.manifest, "targets": {"host": entry}})
    with pytest.raises(BundleError, match="needs avx1024, which this processor lacks"):
        tvmq.bench(other, rivals="none", target="host")


def test_sample_inputs():
    specs = (TensorSpec("x", (None, 3), "float32"), TensorSpec("n", (None,), "int64"))
    for batch, size in ((None, 1), (5, 5)):
        x, n = sample_inputs(specs, batch)
        assert (x.shape, x.dtype, n.shape, n.dtype) == ((size, 3), np.float32, (size,), np.int64)
        np.testing.assert_array_equal(sample_inputs(specs, batch)[0], x)
        assert 0 <= x.min() and x.max() < 1
