from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import tvmq
from tvmq.cli import app
from tvmq.errors import BundleError, ModelError
from tvmq.report import receipt

COMMANDS = ["bench", "bundle", "compile", "deploy", "doctor", "inspect", "quantize", "run", "targets", "tune"]

LAYER = {
    "name": "conv1",
    "operator": "conv2d",
    "weight_bits": 1,
    "activation_bits": 1,
    "kernel": "bitserial",
    "reason": "5.3x int8",
    "macs": 1000,
    "bytes_float": 320,
    "bytes_packed": 10,
    "function": "fused_conv1",
    "predicted_cycles": 300.0,
    "seconds": None,
}


class FakeBundle:
    """Doubles its input; remembers how it was called."""

    def __init__(self, targets=("host", "raspberry-pi-4"), check_inputs=None, messages=()):
        self.check_inputs = [np.ones((1, 2), np.float32)] if check_inputs is None else check_inputs
        self.messages = list(messages)
        self.calls = []
        entry = {"triple": "t", "mcpu": "m", "required_cpu_flags": ["avx2"], "library": "l", "sha256": "s"}
        self.manifest = {
            "format": 1,
            "tvmq": "0.1.0",
            "tvm": "0.27.0.post1",
            "name": "net",
            "inputs": [{"name": "x", "shape": [None, 2], "dtype": "float32"}],
            "outputs": [{"name": "y", "shape": [None, 2], "dtype": "float32"}],
            "targets": {name: entry for name in targets},
            "layers": {name: [LAYER] for name in targets},
        }

    def save(self, path):
        Path(path).write_bytes(b"bundle")

    def require_compiled(self):
        pass

    def report(self, target):
        return receipt(self.manifest, target)

    def run(self, *arrays, target=None):
        self.calls.append(("run", target))
        return [2 * array for array in arrays]

    def run_emulated(self, target, *arrays):
        self.calls.append(("run_emulated", target))
        return [2 * array for array in arrays]

    def mismatches(self, outputs):
        np.testing.assert_array_equal(outputs[0], 2 * self.check_inputs[0])
        return self.messages


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def replace(monkeypatch):
    """Put something else in place of a public function, without loading the real one."""

    def put(**functions):
        for name, function in functions.items():
            monkeypatch.setitem(vars(tvmq), name, function)

    return put


@pytest.fixture
def bundle(replace):
    made = FakeBundle()
    replace(load_bundle=lambda path: made)
    return made


@pytest.fixture
def compiled(replace):
    """What ``compile`` was called with."""
    seen = {}
    model = SimpleNamespace(inputs=(SimpleNamespace(name="x"),))

    def load(source):
        seen["source"] = source
        print("a library chatters")
        return model

    def compile(given, target, **options):
        assert given is model
        seen.update(options, target=target)
        return FakeBundle(target)

    replace(load=load, compile=compile)
    return seen


def tvmq_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failed(result) -> str:
    """The one line of a failed command."""
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("tvmq: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("tvmq: error: ").strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    result = tvmq_command(command, "--help")
    assert result.exit_code == 0
    assert f"Example: tvmq {command}" in result.stdout
    assert "--json" in result.stdout and "--debug" in result.stdout


def test_overall_help_lists_the_commands():
    result = tvmq_command("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"  {command} " in result.stdout


def test_version():
    assert tvmq_command("--version").stdout == f"tvmq {tvmq.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compile"],
        ["compress", "net.onnx"],
        ["compile", "net.onnx", "--level", "3"],
        ["run", "net.tvmq", "--on", "moon"],
        ["run", "net.tvmq", "--check", "--input", "x.npz"],
        ["compile", "net.tvmq"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    result = tvmq_command(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_compile(compiled):
    result = tvmq_command("compile", "models/lenet.onnx", "--target", "host", "--target", "raspberry-pi-4")
    assert result.exit_code == 0, result.output
    assert compiled == {
        "source": Path("models/lenet.onnx"),
        "target": ["host", "raspberry-pi-4"],
        "check_inputs": None,
        "debug_dir": None,
        "verify": False,
        "schedules": None,
    }
    assert Path("lenet.tvmq").read_bytes() == b"bundle"
    assert "net on host" in result.stdout and "net on raspberry-pi-4" in result.stdout
    assert result.stdout.endswith("wrote lenet.tvmq (0.0 kB)\n")


def test_compile_options(compiled):
    np.savez("x.npz", other=np.zeros(3), x=np.full((1, 2), 7, np.float32))
    result = tvmq_command(
        "compile", "net.onnx", "-o", "out.tvmq", "--verify", "--debug-dir", "stages", "--check-inputs", "x.npz"
    )
    assert result.exit_code == 0, result.output
    assert (compiled["target"], compiled["verify"], compiled["debug_dir"]) == (["host"], True, Path("stages"))
    np.testing.assert_array_equal(compiled["check_inputs"], [[[7, 7]]])
    assert Path("out.tvmq").exists() and not Path("net.tvmq").exists()


def test_compile_json_is_all_there_is_on_standard_output(compiled):
    result = tvmq_command("compile", "net.onnx", "--json")
    data = json.loads(result.stdout)
    assert (data["output"], data["bytes"]) == ("net.tvmq", 6)
    assert data["receipts"]["host"]["totals"]["bytes_packed"] == 10
    assert "a library chatters" in result.stderr


def test_compile_checks_the_targets_before_the_slow_part(compiled):
    result = tvmq_command("compile", "net.onnx", "--target", "raspbery-pi-4")
    assert failed(result) == "unknown target 'raspbery-pi-4'; did you mean 'raspberry-pi-4'?"
    assert compiled == {}


def test_error_raised_on_purpose_is_one_line(replace):
    def load(source):
        raise ModelError(f"{source}: no such file;\n  check the path")

    replace(load=load)
    result = tvmq_command("compile", "net.onnx", "--json")
    assert failed(result) == "net.onnx: no such file; check the path"
    assert result.stdout == ""


def test_warnings_are_one_line_each(compiled, replace):
    plain = tvmq.compile

    def compile(*arguments, **options):
        warnings.warn("layer 'fc': int8 could be faster", UserWarning, stacklevel=2)
        warnings.warn("some library is old", DeprecationWarning, stacklevel=2)
        return plain(*arguments, **options)

    replace(compile=compile)
    result = tvmq_command("compile", "net.onnx")
    assert result.exit_code == 0, result.output
    assert result.stderr == "tvmq: warning: layer 'fc': int8 could be faster\n"


def test_unexpected_error_points_to_debug(replace):
    def load(source):
        raise RuntimeError("Check failed: lanes == 16\nStack trace:\n  0: ...")

    replace(load=load)
    assert failed(tvmq_command("compile", "net.onnx")) == (
        "RuntimeError: Check failed: lanes == 16 (use --debug for the traceback)"
    )
    result = tvmq_command("compile", "net.onnx", "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("tvmq: error: RuntimeError: Check failed: lanes == 16\n")


def test_run_with_input_and_output(bundle):
    np.savez("x.npz", x=np.array([[1, 2]], np.float32))
    result = tvmq_command("run", "net.tvmq", "--input", "x.npz", "--output", "y.npz")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load("y.npz")["y"], np.array([[2, 4]], np.float32))
    assert result.stdout == "y  float32 1x2  2, 4\nwrote y.npz\n"
    assert bundle.calls == [("run", None)]
    assert sorted(path.name for path in Path().iterdir()) == ["x.npz", "y.npz"]


def test_run_without_input_uses_the_self_check(bundle):
    result = tvmq_command("run", "net.tvmq", "--target", "host", "--json")
    data = json.loads(result.stdout)
    assert data["outputs"] == [{"name": "y", "shape": [1, 2], "dtype": "float32", "values": [[2.0, 2.0]]}]
    assert bundle.calls == [("run", "host")]


def test_run_without_any_input(replace):
    replace(load_bundle=lambda path: FakeBundle(check_inputs=[]))
    assert "give some with --input x.npz" in failed(tvmq_command("run", "net.tvmq"))


def test_run_on_qemu_finds_the_only_foreign_target(bundle):
    assert tvmq_command("run", "net.tvmq", "--on", "qemu").exit_code == 0
    assert bundle.calls == [("run_emulated", "raspberry-pi-4")]


def test_run_on_qemu_wants_a_choice_between_several(replace):
    replace(load_bundle=lambda path: FakeBundle(("raspberry-pi-3", "raspberry-pi-4")))
    message = failed(tvmq_command("run", "net.tvmq", "--on", "qemu"))
    assert message.endswith("choose with --target: raspberry-pi-3, raspberry-pi-4")


def test_run_on_qemu_without_a_foreign_target(replace):
    replace(load_bundle=lambda path: FakeBundle(("host", "x86-avx2")))
    assert "no target that can be emulated" in failed(tvmq_command("run", "net.tvmq", "--on", "qemu"))


@pytest.mark.parametrize(("on", "call"), [("host", ("run", None)), ("qemu", ("run_emulated", "raspberry-pi-4"))])
def test_check_passes(bundle, on, call):
    result = tvmq_command("run", "net.tvmq", "--check", "--on", on)
    assert (result.exit_code, result.stdout) == (0, "net.tvmq: self-check passed\n")
    assert bundle.calls == [call]


def test_check_fails(replace):
    replace(load_bundle=lambda path: FakeBundle(messages=["y differs in 3 of 10 values", "z too"]))
    result = tvmq_command("run", "net.tvmq", "--check", "--json")
    assert failed(result) == "net.tvmq: self-check failed: y differs in 3 of 10 values (and 1 more)"
    assert json.loads(result.stdout)["check"] == "failed"


def test_inspect(bundle):
    Path("net.tvmq").write_bytes(b"x" * 2500)
    result = tvmq_command("inspect", "net.tvmq")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:4] == [
        "net.tvmq (2.5 kB): net, written by tvmq 0.1.0",
        "input   x  float32 batchx2",
        "output  y  float32 batchx2",
        "target  host (t, m; needs avx2)",
    ]
    assert "net on host" in lines and "net on raspberry-pi-4" in lines


def test_inspect_one_target(bundle):
    Path("net.tvmq").write_bytes(b"x")
    data = json.loads(tvmq_command("inspect", "net.tvmq", "--target", "host", "--json").stdout)
    assert list(data["receipts"]) == ["host"]
    assert data["inputs"][0]["name"] == "x"
    assert "did you mean" in failed(tvmq_command("inspect", "net.tvmq", "--target", "hots"))


def test_damaged_file(replace):
    def load_bundle(path):
        raise BundleError(f"{path}: not a .tvmq file")

    replace(load_bundle=load_bundle)
    for command in ("run", "inspect"):
        assert failed(tvmq_command(command, "x.tvmq")) == "x.tvmq: not a .tvmq file"


def test_targets():
    result = tvmq_command("targets")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["target", "core", "description"]
    names = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert names == [target.name for target in tvmq.targets()]


def test_targets_json():
    data = json.loads(tvmq_command("targets", "--json").stdout)
    pi = next(entry for entry in data if entry["name"] == "raspberry-pi-4")
    assert (pi["mcpu"], pi["lanes"]) == ("cortex-a72", 16)


@pytest.mark.parametrize(
    ("arguments", "status", "where", "text"),
    [
        (["--help"], 0, "stdout", "Usage: tvmq"),
        (["targets"], 0, "stdout", "raspberry-pi-4"),
        (["compile", "net.onnx", "--target", "pi-4"], 1, "stderr", "tvmq: error: unknown target 'pi-4'"),
        (["compile"], 2, "stderr", "Missing argument 'SOURCE'"),
    ],
)
def test_as_a_process(arguments, status, where, text):
    root = Path(tvmq.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "tvmq.cli", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert text in getattr(done, where)
    assert "Traceback" not in done.stderr
