from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from typer.testing import CliRunner

import tvmq
from tvmq import kernel_rates
from tvmq.cli import app
from tvmq.kernel_rates import KernelRate


def tvmq_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def bench(*arguments):
    return tvmq_command("bench", *arguments, "--threads", tvm.runtime.num_threads())


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "tiny.tvmq"
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    tvmq.compile(tvmq.load(net, (torch.rand(2, 8),))).save(path)
    return path


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def failure(result) -> str:
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("tvmq: error: "), result.stderr
    return lines[0]


def test_table(network):
    result = bench(network, "--rounds", 2, "--rivals", "none")
    assert result.exit_code == 0, result.output
    assert "batch 2" in result.stdout and "2 rounds" in result.stdout
    assert "convolution and dense kernels" in result.stdout
    assert "compare speed, not accuracy" in result.stdout


def test_json_files_and_chart(network):
    result = bench(
        network, "--rounds", 1, "--rivals", "onnxruntime", "-o", "bench.json", "--chart", "bench.png", "--json"
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data == json.loads(Path("bench.json").read_text())
    assert [rival["name"] for rival in data["rivals"]] == [
        *("onnxruntime fp32", "onnxruntime int8", "onnxruntime 2-bit weights"),
    ]
    assert Path("bench.png").stat().st_size > 1000
    assert sorted(os.listdir()) == ["bench.json", "bench.png"]


def test_given_inputs(network):
    np.savez("x.npz", x=np.ones((2, 8), np.float32))
    assert bench(network, "--rounds", 1, "--rivals", "none", "--input", "x.npz").exit_code == 0


def test_onnx_is_compiled_first():
    torch.onnx.export(nn.Linear(8, 4), (torch.rand(1, 8),), "net.onnx", dynamo=False)
    result = bench("net.onnx", "--rounds", 1, "--rivals", "none")
    assert result.exit_code == 0, result.output
    assert "net on host: batch 1" in result.stdout


def test_a_file_without_a_library_is_compiled_first():
    model = tvmq.load(nn.Linear(8, 4), (torch.rand(1, 8),))
    model.save("net.tvmq")
    assert bench("net.tvmq", "--rounds", 1, "--rivals", "none").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "raspberry-pi-4"], "it holds no library for target 'raspberry-pi-4'"),
        (["--rivals", "onnxrun"], "unknown rival 'onnxrun'; did you mean 'onnxruntime'?"),
        (["--batch", "3"], "is made for a batch of 2, not 3"),
        (["--input", "missing.npz"], "missing.npz: cannot be read"),
        (["-o", "missing/bench.json"], "missing/bench.json: cannot be written"),
        (["--chart", "bench.txt"], "bench.txt: not a kind of picture that can be drawn"),
        (["--chart", "missing/bench.png"], "missing/bench.png: cannot be written"),
    ],
)
def test_failures_are_one_line(network, options, message):
    assert message in failure(bench(network, "--rounds", "1", "--rivals", "none", *options))


def test_input_of_another_shape(network):
    np.savez("x.npz", x=np.ones((2, 9), np.float32))
    message = failure(bench(network, "--rivals", "none", "--input", "x.npz"))
    assert "has shape (2, 9), but the network takes" in message


def test_missing_rival_names_the_extra(network, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "install it with: pip install 'tvmq[benchmarks]'" in failure(bench(network, "--rivals", "openvino"))


def test_library_for_another_machine(network):
    tvmq.compile(tvmq.load(network), "raspberry-pi-4").save("pi.tvmq")
    assert "no library fits this machine" in failure(bench("pi.tvmq", "--rivals", "none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a .tvmq or .onnx file"),
        (["net.tvmq", "--calibrate-target"], "leave out NET"),
        (["net.tvmq", "--input", "x.npz", "--batch", "2"], "leave out --batch"),
        (["net.tvmq", "--rounds", "0"], "--rounds"),
    ],
)
def test_wrong_usage(arguments, message):
    result = tvmq_command("bench", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_threads_that_have_started_cannot_change(network):
    running = tvm.runtime.num_threads()
    message = failure(tvmq_command("bench", network, "--threads", running + 1))
    assert f"TVM runs on {running} thread(s) in this process and cannot change to {running + 1}" in message


def test_a_process_takes_the_threads_it_is_told(network):
    environment = {key: value for key, value in os.environ.items() if key != "TVM_NUM_THREADS"}
    root = str(Path(tvmq.__file__).parents[1])
    command = [sys.executable, "-m", "tvmq.cli", "bench", network, "--rounds", "1", "--rivals", "none", "--json"]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": root}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["threads"] == 1


@pytest.fixture
def rates(monkeypatch):
    """Calibration without the measurement, which has a test of its own."""
    found = [KernelRate("binary", "a convolution", 123.4), KernelRate("float32", "another", 5.5)]
    monkeypatch.setattr(kernel_rates, "kernel_rates", lambda core, progress: found)
    monkeypatch.setattr("tvmq.benchmark.set_threads", lambda threads: threads)


def test_calibration_writes_a_target(rates):
    result = tvmq_command("bench", "--calibrate-target", "-o", "my-core.toml")
    assert result.exit_code == 0, result.output
    assert "binary: 123.4 MAC/cycle in a convolution" in result.stdout
    assert "int8: not measured" in result.stdout
    assert "it becomes target 'my-core'" in result.stdout
    assert tvmq.target.load_target(Path("my-core.toml")).mac_per_cycle["binary"] == 123.0


def test_calibration_replaces_nothing_unless_forced(rates):
    Path("my-core.toml").write_text("mine")
    assert "exists already" in failure(tvmq_command("bench", "--calibrate-target"))
    assert Path("my-core.toml").read_text() == "mine"
    data = json.loads(tvmq_command("bench", "--calibrate-target", "--force", "--json").stdout)
    assert data["output"] == "my-core.toml"
    assert data["mac_per_cycle"]["float32"] == 5.5


def test_calibration_of_another_machine(rates):
    message = failure(tvmq_command("bench", "--calibrate-target", "--target", "raspberry-pi-4"))
    assert "is for aarch64" in message
