from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tvmq
from tvmq.cli import app
from tvmq.errors import InputError
from tvmq.methods.calibration import Calibration

ROOT = Path(tvmq.__file__).parents[1]
MOMENT = SimpleNamespace(layer="features[0]", fraction=0.37, seconds_left=90.0)


def onnx_network() -> onnx.ModelProto:
    """Conv, ReLU, conv, ReLU, linear on images of 3×8×8."""
    random = np.random.default_rng(0)

    def parameter(name, *shape):
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / shape[-1], name)

    parameters = [
        parameter("w1", 8, 3, 3, 3),
        parameter("b1", 8),
        parameter("w2", 16, 8, 3, 3),
        parameter("b2", 16),
        parameter("w3", 256, 10),
        parameter("b3", 10),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        parameters,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def files():
    """``net.onnx`` and ``c.npz``."""
    onnx.save(onnx_network(), "net.onnx")
    images = np.random.default_rng(1).random((48, 3, 8, 8), np.float32)
    np.savez("c.npz", image=images)
    return images


class FakeModel:
    name = "net"
    quantization = ({"layer": "conv1", "inputs": 27, "neurons": 8, "weights": "ternary", "seconds": 1.5},)

    def save(self, path):
        Path(path).write_bytes(b"quantized")


@pytest.fixture
def replace(monkeypatch):
    def put(**functions):
        for name, function in functions.items():
            monkeypatch.setitem(vars(tvmq), name, function)

    return put


@pytest.fixture
def quantized(replace):
    """What ``quantize`` was called with."""
    Path("c.npz").write_bytes(b"calibration")
    seen = {}

    def quantize(model, config, calibration, *, batch_size, checkpoint, progress):
        assert model == "model"
        checkpoint.mkdir()
        (checkpoint / "layer").write_text("done")
        progress(MOMENT)
        seen.update(config=config, calibration=calibration, batch_size=batch_size, checkpoint=checkpoint)
        return FakeModel()

    replace(load=lambda source: "model", quantize=quantize)
    return seen


def tvmq_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failed(result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("tvmq: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("tvmq: error: ").strip()


# --- arguments ---


def test_defaults(quantized):
    result = tvmq_command("quantize", "models/net.onnx", "--calibration", "c.npz")
    assert result.exit_code == 0, result.output
    assert quantized == {
        "config": tvmq.GPFQ(),
        "calibration": Calibration(Path("c.npz")),
        "batch_size": 64,
        "checkpoint": Path("net-gpfq.tvmq.partial"),
    }
    assert Path("net-gpfq.tvmq").read_bytes() == b"quantized"
    assert sorted(path.name for path in Path().iterdir()) == ["c.npz", "net-gpfq.tvmq"]
    assert "net, quantized" in result.stdout and "conv1" in result.stdout
    assert "wrote net-gpfq.tvmq (0.0 kB); `tvmq compile net-gpfq.tvmq" in result.stdout
    assert result.stderr == ""


def test_all_options(quantized):
    Path("images").mkdir()
    options = (
        "--method gpfq --weights 2 --activations 3 --calibration images -o out/q.tvmq --batch-size 8 --samples 100 "
        "--mean 0.485,0.456,0.406 --std .5 --constant 2.5 --per-channel --bias-correction --first-layer float "
        "--last-layer float --skip layer1.* --skip fc --clip percentile"
    )
    Path("out").mkdir()
    result = tvmq_command("quantize", "net.onnx", *options.split())
    assert result.exit_code == 0, result.output
    assert quantized == {
        "config": tvmq.GPFQ(
            weights=2,
            activations=3,
            constant=2.5,
            radius="channel",
            bias_correction=True,
            first_layer="float",
            last_layer="float",
            skip=("layer1.*", "fc"),
            activation_clip="percentile",
        ),
        "calibration": Calibration(Path("images"), 100, (0.485, 0.456, 0.406), (0.5,)),
        "batch_size": 8,
        "checkpoint": Path("out/q.tvmq.partial"),
    }
    assert [path.name for path in Path("out").iterdir()] == ["q.tvmq"]


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (["--method", "qnn"], tvmq.QNN()),
        (["--method", "lqnets"], tvmq.LQNets()),
        (["--method", "gpfq", "--activations", "float"], tvmq.GPFQ()),
        (
            "--method lqnets --weights 3 --activations float --first-layer input8 --last-layer quantized".split(),
            tvmq.LQNets(weights=3, activations=None, first_layer="input8", last_layer="quantized"),
        ),
        (
            "--method qnn --weights ternary --activations 4 --rounding log --skip fc".split(),
            tvmq.QNN(weights="ternary", activations=4, rounding="log", skip=("fc",)),
        ),
    ],
)
def test_every_method_has_its_own_defaults(options, config, quantized):
    result = tvmq_command("quantize", "net.onnx", "--calibration", "c.npz", *options)
    assert result.exit_code == 0, result.output
    assert quantized["config"] == config
    assert Path(f"net-{options[1]}.tvmq").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method qnn --constant 2", "--constant is not for --method qnn"),
        ("--method lqnets --per-channel", "--per-channel is not for --method lqnets"),
        ("--method lqnets --no-bias-correction", "--bias-correction is not for --method lqnets"),
        ("--method qnn --clip max", "--clip is not for --method qnn"),
        ("--rounding log", "--rounding is not for --method gpfq"),
        ("--method qnn --activations two", "--activations takes a number of bits, or 'float'"),
    ],
)
def test_options_of_another_method(options, message, quantized):
    result = tvmq_command("quantize", "net.onnx", "--calibration", "c.npz", *options.split())
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.output
    assert quantized == {}


def test_json_is_all_there_is_on_standard_output(quantized, replace):
    plain = tvmq.quantize

    def quantize(*arguments, **options):
        print("a library chatters")
        return plain(*arguments, **options)

    replace(quantize=quantize)
    data = json.loads(tvmq_command("quantize", "net.onnx", "--calibration", "c.npz", "--json").stdout)
    assert (data["output"], data["bytes"]) == ("net-gpfq.tvmq", 9)
    assert data["quantization"]["layers"][0]["layer"] == "conv1"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["net.onnx"],
        ["net.onnx", "--calibration", "c.npz", "--method", "magic"],
        ["net.onnx", "--calibration", "c.npz", "--activations", "two"],
        ["net.onnx", "--calibration", "c.npz", "--batch-size", "0"],
        ["net.onnx", "--calibration", "c.npz", "--samples", "0"],
        ["net.onnx", "--calibration", "c.npz", "--mean", "0.5,grey"],
        ["net.onnx", "--calibration", "c.npz", "--std", "nan"],
        ["net.tvmq", "--calibration", "c.npz", "-o", "net.tvmq"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, quantized):
    result = tvmq_command("quantize", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert quantized == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lqnets", "--weights", "ternary"], "LQNets: weights='ternary' is not supported"),
        (["--method", "qnn", "--rounding", "up"], "QNN: rounding='up' is not supported"),
        (["--weights", "quaternary"], "GPFQ: weights='quaternary' is not supported"),
        (["--weights", "9"], "GPFQ: weights=9 is not supported"),
        (["--activations", "0"], "GPFQ: activations=0 is not supported"),
        (["--constant", "best"], "GPFQ: constant='best' is not supported; use 'search'"),
        (["--first-layer", "input9"], "GPFQ: first_layer='input9' is not supported"),
        (["--clip", "median"], "GPFQ: activation_clip='median' is not supported"),
        (["-o", "none/q.tvmq"], "none/q.tvmq: cannot be written"),
        (["--calibration", "none.npz"], "none.npz: no such file or folder"),
        (["--std", "0"], "calibration: std=(0.0,) is not supported; use positive numbers"),
    ],
)
def test_mistakes_are_found_before_the_slow_part(options, message, replace):
    def load(source):
        raise AssertionError("this was too late")

    replace(load=load)
    Path("c.npz").write_bytes(b"calibration")
    assert message in failed(tvmq_command("quantize", "net.onnx", "--calibration", "c.npz", *options))
    assert [path.name for path in Path().iterdir()] == ["c.npz"]


def test_an_error_keeps_what_is_done(quantized, replace):
    plain = tvmq.quantize

    def quantize(*arguments, **options):
        plain(*arguments, **options)
        raise InputError("batch 3: a bad sample")

    replace(quantize=quantize)
    assert failed(tvmq_command("quantize", "net.onnx", "--calibration", "c.npz")) == "batch 3: a bad sample"
    assert Path("net-gpfq.tvmq.partial/layer").exists() and not Path("net-gpfq.tvmq").exists()


def test_an_error_leaves_no_empty_folder(quantized, replace):
    def quantize(*arguments, checkpoint, **options):
        checkpoint.mkdir()
        raise InputError("calibration: there are no samples")

    replace(quantize=quantize)
    failed(tvmq_command("quantize", "net.onnx", "--calibration", "c.npz"))
    assert [path.name for path in Path().iterdir()] == ["c.npz"]


def test_interruption(quantized, replace):
    plain = tvmq.quantize

    def quantize(*arguments, **options):
        plain(*arguments, **options)
        raise KeyboardInterrupt

    replace(quantize=quantize)
    result = tvmq_command("quantize", "net.onnx", "--calibration", "c.npz")
    assert result.exit_code == 130
    assert result.stderr == (
        "tvmq: interrupted at layer 'features[0]' (37 %); the same command resumes there "
        "(what is done is kept in net-gpfq.tvmq.partial)\n"
    )
    assert result.stdout == ""


def test_interruption_before_anything_was_done(quantized, replace):
    def quantize(*arguments, **options):
        raise KeyboardInterrupt

    replace(quantize=quantize)
    result = tvmq_command("quantize", "net.onnx", "--calibration", "c.npz")
    assert (result.exit_code, result.stderr) == (130, "tvmq: interrupted before any layer was done\n")


# --- with a person watching ---


def test_progress_on_a_terminal():
    code = (
        "import time\n"
        "from tvmq.cli.answer import progress_bar\n"
        "with progress_bar('quantizing') as show:\n"
        "    show('features[0]', 0.37, 90.0); time.sleep(0.3)\n"
        "    show('features[1]', 0.5, None); time.sleep(0.3)\n"
    )
    terminal, inner = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, stderr=inner, stdout=subprocess.PIPE, timeout=60, check=True
        )
    finally:
        os.close(inner)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "features[0]" in shown and "37 %" in shown and "90.0 s left" in shown and "features[1]" in shown
    assert done.stdout == b""


# --- the whole way ---


def test_quantize_inspect_compile_run(files):
    result = tvmq_command(
        *("quantize", "net.onnx", "--weights", "ternary", "--activations", "2"),
        *("--calibration", "c.npz", "--batch-size", "20", "-o", "q.tvmq", "--json"),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["quantization"]["layers"]
    assert [row["layer"] for row in rows] == [layer.name for layer in tvmq.load("net.onnx").layers()]
    assert [(row["inputs"], row["neurons"]) for row in rows] == [(27, 8), (72, 16), (256, 10)]
    assert all(row["weights"] == "ternary" and row["levels"] == 3 for row in rows)
    assert all(0 < row["relative_error"] < 1 for row in rows)
    assert sorted(path.name for path in Path().iterdir()) == ["c.npz", "net.onnx", "q.tvmq"]

    inspected = tvmq_command("inspect", "q.tvmq")
    assert inspected.exit_code == 0, inspected.output
    assert "target  none yet" in inspected.stdout and "3 layers with" in inspected.stdout
    assert "compile it with `tvmq compile q.tvmq --target host -o" in failed(tvmq_command("run", "q.tvmq"))
    assert "has no library yet" in failed(tvmq_command("run", "q.tvmq", "--input", "c.npz"))
    assert "has no library yet" in failed(tvmq_command("run", "q.tvmq", "--on", "qemu"))
    assert "has no library yet" in failed(tvmq_command("inspect", "q.tvmq", "--target", "host"))

    compiled = tvmq_command("compile", "q.tvmq", "--target", "host", "-o", "q-host.tvmq", "--json")
    assert compiled.exit_code == 0, compiled.output
    layers = json.loads(compiled.stdout)["receipts"]["host"]["layers"]
    assert [layer["weight_bits"] for layer in layers] == [2, 2, 2]
    checked = tvmq_command("run", "q-host.tvmq", "--check")
    assert (checked.exit_code, checked.stdout) == (0, "q-host.tvmq: self-check passed\n")
    data = json.loads(tvmq_command("inspect", "q-host.tvmq", "--json").stdout)
    assert data["quantization"]["layers"] == rows and list(data["receipts"]) == ["host"]

    (expected,) = tvmq.load("q.tvmq").run(files)
    (scores,) = tvmq.load_bundle("q-host.tvmq").run(files)
    np.testing.assert_array_equal(scores, expected)
    (original,) = tvmq.load("net.onnx").run(files)
    assert np.linalg.norm(scores - original) < 0.9 * np.linalg.norm(original)


@pytest.mark.parametrize(("method", "column"), [("qnn", "1 bit "), ("lqnets", "2 bits")])
def test_other_methods_the_whole_way(method, column, files):
    result = tvmq_command("quantize", "net.onnx", "--method", method, "--calibration", "c.npz")
    assert result.exit_code == 0, result.output
    assert column in result.stdout and f"wrote net-{method}.tvmq" in result.stdout
    rows = tvmq.load(f"net-{method}.tvmq").quantization
    assert [row["layer"] for row in rows] == [layer.name for layer in tvmq.load("net.onnx").layers()][
        slice(None) if method == "qnn" else slice(1, 2)
    ]
    assert all(0 < row["relative_error"] < 1 for row in rows)
    assert not Path(f"net-{method}.tvmq.partial").exists()


def _interrupted_after_a_layer(command, environment, partial):
    """Send SIGINT when the first layer has been kept; the exit code and what was said."""
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not (partial.is_dir() and any(partial.iterdir())):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def test_interrupted_for_real(files):
    """Ctrl-C at any time: one line, and the same command gives what an uninterrupted one does."""
    command = [sys.executable, "-m", "tvmq.cli", "quantize", "net.onnx", "--calibration", "c.npz", "--activations", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    partial = Path("a.tvmq.partial")
    for _attempt in range(10):
        code, errors = _interrupted_after_a_layer([*command, "-o", "a.tvmq"], environment, partial)
        if code != 0:
            break
        Path("a.tvmq").unlink()  # it was done before the signal came
    assert code == 130, errors
    assert errors.count("\n") == 1 and errors.startswith("tvmq: interrupted ")
    for output in ("a.tvmq", "b.tvmq"):
        subprocess.run([*command, "-o", output], env=environment, check=True, capture_output=True, timeout=300)
    assert not partial.exists()
    (resumed,), (whole,) = (tvmq.load(output).run(files) for output in ("a.tvmq", "b.tvmq"))
    np.testing.assert_array_equal(resumed, whole)


def test_from_a_folder_of_images(files):
    image = pytest.importorskip("PIL.Image")
    Path("images").mkdir()
    for index, pixels in enumerate(np.random.default_rng(2).integers(0, 256, (6, 12, 10, 3), np.uint8)):
        image.fromarray(pixels).save(f"images/{index}.png")
    result = tvmq_command(
        *("quantize", "net.onnx", "--calibration", "images", "--samples", "5", "--constant", "2"),
        *("--mean", "0.5", "--std", "0.25,0.25,0.25", "--json"),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["quantization"]["layers"]
    assert rows[0]["rows"] == 5 * 8 * 8 and rows[0]["constant"] == 2.0
    Path("images/5.png").write_text("no image")
    message = failed(tvmq_command("quantize", "net.onnx", "--calibration", "images"))
    assert "images/5.png: cannot be read as an image" in message


def test_calibration_that_does_not_fit(files):
    np.savez("wrong.npz", picture=files, labels=np.zeros(48, int))
    message = failed(tvmq_command("quantize", "net.onnx", "--calibration", "wrong.npz"))
    assert message.startswith("wrong.npz: holds 'picture', 'labels', but no 'image'")
    files[17, 0, 0, 0] = np.nan
    np.savez("nan.npz", image=files)
    message = failed(tvmq_command("quantize", "net.onnx", "--calibration", "nan.npz", "--batch-size", "10"))
    assert message.startswith("batch 1, sample 7 (number 17 of all): NaN")
    assert not list(Path().glob("*.partial"))


def test_torchrun_shares_the_work(files):
    """Two processes write one file, with the weights that one process finds."""
    pytest.importorskip("torch")
    arguments = ["net.onnx", "--calibration", "c.npz", "--constant", "2", "--batch-size", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    alone, together = Path("alone.tvmq"), Path("together.tvmq")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tvmq.cli"]
    for command, path in (([sys.executable, "-m", "tvmq.cli"], alone), (launch, together)):
        done = subprocess.run(
            [*command, "quantize", *arguments, "-o", str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1
    inputs = np.ones((2, 3, 8, 8), np.float32)
    one, other = (tvmq.load(path) for path in (alone, together))
    np.testing.assert_allclose(one.run(inputs)[0], other.run(inputs)[0], rtol=1e-5)
    assert [row["rows"] for row in one.quantization] == [row["rows"] for row in other.quantization]
    assert not together.with_name("together.tvmq.partial").exists()
