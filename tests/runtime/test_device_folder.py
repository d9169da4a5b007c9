"""The folder for a device: what is in it, and its programs on this machine and on emulated boards."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import tvmq
from tvmq.errors import BundleError, ToolchainError
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.emulator import emulator_command
from tvmq.runtime.tensors import TensorSpec
from tvmq.runtime.toolchain import OWN_SOURCES, export_library
from tvmq.target import get_target

INPUTS = (TensorSpec("an image */", (None, 3, 4, 4), "float32"), TensorSpec("offset", (), "int32"))
OUTPUTS = (TensorSpec("sums", (None, 3, 4, 4), "float32"), TensorSpec("count", (3,), "int64"))
LIMITS = {"raspberry-pi-4": 2.1e6, "raspberry-pi-3-32": 1.5e6}
"""Bytes of everything but the network and its self-check."""


@pytest.fixture(scope="module")
def executable():
    """Of each target: adds a scalar to any number of images, and returns a constant as well."""
    import tvm
    from tvm import relax

    batch = tvm.tirx.Var("batch", "int64")
    builder = relax.BlockBuilder()
    image = relax.Var("image", relax.TensorType((batch, 3, 4, 4), "float32"))
    offset = relax.Var("offset", relax.TensorType((), "int32"))
    with builder.function("main", [image, offset]):
        with builder.dataflow():
            sums = builder.emit(relax.op.add(image, relax.op.astype(offset, "float32")))
            count = builder.emit(relax.const(np.array([1, -2, 1 << 40], "int64"), "int64"))
            result = builder.emit_output(relax.Tuple([sums, count]))
        builder.emit_func_output(result)
    module = builder.get()
    return lambda target: tvm.compile(module, target.tvm_target())


@pytest.fixture(scope="module")
def make_bundle(executable):
    """A bundle of targets by name, with a self-check of two images."""
    images = np.arange(96, dtype="float32").reshape(2, 3, 4, 4) - 50

    def make(*names: str) -> Bundle:
        targets = [get_target(name) for name in names]
        return Bundle(
            manifest={
                "tvmq": "0.1.0",
                "tvm": "0.27.0.post1",
                "name": "adder",
                "inputs": [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in INPUTS],
                "outputs": [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in OUTPUTS],
                "targets": {
                    target.name: {
                        "triple": target.triple,
                        "mcpu": target.mcpu,
                        "required_cpu_flags": list(target.required_cpu_flags),
                    }
                    for target in targets
                },
                "layers": {},
            },
            model_json="{}",
            libraries={target.name: export_library(executable(target), target, INPUTS, OUTPUTS) for target in targets},
            check_inputs=[images, np.array(7, "int32")],
            check_outputs=[images + 7, np.array([1, -2, 1 << 40], "int64")],
        )

    return make


@pytest.fixture(scope="module")
def folder(make_bundle, runner_cache, tmp_path_factory) -> Path:
    """For this machine; not to be changed."""
    path = tmp_path_factory.mktemp("device") / "adder-host"
    make_bundle("host").save_folder(path)
    return path


@pytest.fixture(scope="module", params=LIMITS)
def board(request, make_bundle, runner_cache, tmp_path_factory):
    """Target, folder and what was said of it, of an emulated board."""
    path = tmp_path_factory.mktemp("device") / "adder"
    written = make_bundle(request.param).save_folder(path)
    return get_target(request.param), path, written


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def failed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_folder_holds_what_the_readme_says(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("net.so", "libtvmq.so", "tvmq.h", "main", "main.c", "bench", "bench.c", "check", "check.c"),
        *("check-data", "Makefile", "README.md"),
    }
    text = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.iterdir():
        assert f"`{path.name}" in text or path.name == "README.md"
    assert "cd adder-host" in text
    assert "glibc 2." in text


def test_example_prints_the_outputs(folder):
    result = run(folder, "./main")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "output_0: -43 -42 -41 -40 -39 -38 -37 -36 -35 -34 ...",
        "output_1: 1 -2 1.09951e+12",
    ]
    lines = (folder / "main.c").read_text(encoding="utf-8").splitlines()
    assert "static float input_0[48]; /* an image __[1][3][4][4] */" in lines
    assert len(lines) < 50


def test_check_passes_on_a_batch(folder):
    result = run(folder, "./check")
    assert (result.returncode, result.stdout) == (0, "check: passed, every value is the right one\n")


def test_check_finds_a_wrong_value(folder, tmp_path):
    copied = copy(folder, tmp_path)
    file = copied / "check-data" / "output_0.bin"
    values = np.fromfile(file, "float32")
    values[[3, 90]] += 1
    values.tofile(file)
    assert failed(run(copied, "./check")) == "check: output 'sums': 2 of 96 values differ\n"
    file.unlink()
    assert "check-data/output_0.bin: cannot be opened" in failed(run(copied, "./check"))


def copy(folder: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(folder), str(tmp_path)], check=True)
    return tmp_path / folder.name


def test_benchmark(folder):
    result = run(folder, "./bench", "-t", "2", "-n", "25")
    assert (result.returncode, result.stderr) == (0, "")
    assert "net.so for host, 25 runs after 3 untimed, 2 threads" in result.stdout
    times = result.stdout.split("median ")[1].split("memory")[0].split()
    fastest, median = float(times[3]), float(times[0])
    assert 0 < fastest <= median < 1000


@pytest.mark.parametrize("words", [["-t", "0"], ["-n", "3x"], ["-z"]])
def test_wrong_usage_of_the_benchmark(folder, words):
    assert run(folder, "./bench", *words).returncode == 2


def test_makefile_compiles_the_programs_again(folder, tmp_path):
    copied = copy(folder, tmp_path)
    (copied / "main.c").write_text((folder / "main.c").read_text().replace('printf("output_0:")', 'printf("sums:")'))
    result = run(copied, "make", "clean", "all", "CFLAGS=-O1 -Wall -Wextra -Werror -std=gnu99")
    assert result.returncode == 0, result.stderr
    assert run(copied, "./main").stdout.startswith("sums: -43 -42")
    assert run(copied, "./check").returncode == 0


def test_header_is_plain_c(tmp_path):
    (tmp_path / "a.c").write_text('#include "tvmq.h"\nint main(void) { return tvmq_last_error() == 0; }\n')
    command = ["gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{OWN_SOURCES}", "-fsyntax-only"]
    assert subprocess.run([*command, str(tmp_path / "a.c")], check=False).returncode == 0


def test_board_computes_the_same(board):
    target, path, _ = board
    prefix = emulator_command(target)
    result = run(path, *prefix, "./check", TVM_NUM_THREADS="2")
    assert (result.returncode, result.stderr) == (0, "")
    assert run(path, *prefix, "./main").stdout.startswith("output_0: -43 -42")


def test_folder_for_a_board_is_small(board):
    target, path, written = board
    assert written.runtime_bytes <= LIMITS[target.name]
    assert written.files["libtvmq.so"] == (path / "libtvmq.so").stat().st_size
    assert sum(written.files.values()) == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("board", ["raspberry-pi-4"], indirect=True)
def test_network_for_another_core_is_refused(board, make_bundle, tmp_path):
    target, path, _ = board
    newer = tmp_path / "newer.so"
    newer.write_bytes(make_bundle("raspberry-pi-5").libraries["raspberry-pi-5"])
    prefix = emulator_command(target)
    for program in ("check", "bench"):
        assert failed(run(path, *prefix, f"./{program}", str(newer))) == (
            f"{program}: library '{newer}' was compiled for raspberry-pi-5 and needs asimdhp, asimddp, which this "
            "processor lacks; compile the network for this board\n"
        )


# The interface as another language sees it, which loads the runtime for itself only.
class Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    )


FROM_PYTHON = """
import ctypes, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_device_folder import Tensor
tvmq = ctypes.CDLL(sys.argv[2] + "/libtvmq.so")
for name, result in {"open": ctypes.c_void_p, "target": ctypes.c_char_p, "last_error": ctypes.c_char_p,
                     "input": ctypes.POINTER(Tensor), "output": ctypes.POINTER(Tensor)}.items():
    getattr(tvmq, f"tvmq_{name}").restype = result
error = lambda: tvmq.tvmq_last_error().decode()
network = ctypes.c_void_p(tvmq.tvmq_open((sys.argv[2] + "/net.so").encode()))
assert network, error()

def described(get, number):
    t = get(network, number).contents
    return t.name.decode(), t.dtype.decode(), t.shape[:t.rank], t.bytes

assert tvmq.tvmq_target(network) == b"host"
assert (tvmq.tvmq_input_count(network), tvmq.tvmq_output_count(network)) == (2, 2)
assert described(tvmq.tvmq_input, 0) == ("an image */", "float32", [1, 3, 4, 4], 192)
assert described(tvmq.tvmq_input, 1) == ("offset", "int32", [], 4)
assert not tvmq.tvmq_input(network, 2) and not tvmq.tvmq_output(network, -1)
assert tvmq.tvmq_set_batch(network, ctypes.c_int64(0)) == -1 and "1 sample or more" in error()
assert tvmq.tvmq_set_batch(network, ctypes.c_int64(3)) == 0
assert described(tvmq.tvmq_output, 0) == ("sums", "float32", [3, 3, 4, 4], 576)
assert described(tvmq.tvmq_output, 1) == ("count", "int64", [3], 24)
assert tvmq.tvmq_set_threads(0) == -1 and "1 thread or more" in error()

images, offset = np.random.default_rng(0).random((3, 3, 4, 4), "float32"), np.array(9, "int32")
sums, count = np.zeros_like(images), np.zeros(3, "int64")
pointers = lambda *arrays: (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])
for _ in range(3):
    assert tvmq.tvmq_run(network, pointers(images, offset), pointers(sums, count)) == 0, error()
    np.testing.assert_array_equal(sums, images + np.float32(9))
    np.testing.assert_array_equal(count, [1, -2, 1 << 40])
tvmq.tvmq_close(network)
tvmq.tvmq_close(None)
assert not tvmq.tvmq_open(b"absent.so") and error() == "cannot open library 'absent.so'"
print("done")
"""


def test_interface_from_another_language(folder):
    result = run(folder, os.sys.executable, "-c", FROM_PYTHON, str(Path(__file__).parent), str(folder))
    assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr


def test_library_that_does_not_name_its_tensors(folder, float_library, tmp_path):
    (tmp_path / "plain.so").write_bytes(float_library)
    assert "does not say what its network takes and gives" in failed(run(folder, "./check", f"{tmp_path}/plain.so"))


def test_only_target_needs_no_name(make_bundle):
    bundle = make_bundle("host", "x86-avx2")
    with pytest.raises(BundleError, match="several targets; choose with --target: host, x86-avx2"):
        bundle.save_folder("folder")
    with pytest.raises(BundleError, match="holds no library for target 'raspberry-pi-4'"):
        bundle.save_folder("folder", target="raspberry-pi-4")


def test_missing_compiler_leaves_nothing(make_bundle, tmp_path, monkeypatch):
    bundle = make_bundle("raspberry-pi-4")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"compiler aarch64-linux-gnu-g\+\+ is not installed"):
        bundle.save_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_failure_on_the_way_leaves_nothing(make_bundle, runner_cache, tmp_path, monkeypatch):
    bundle = make_bundle("host")
    path = tmp_path / "folder"
    bundle.save_folder(path)
    before = (path / "README.md").read_text(encoding="utf-8")

    def fail(*arguments):
        raise ToolchainError("no")

    with monkeypatch.context() as patch:
        patch.setattr("tvmq.runtime.device_folder.compile_program", fail)
        with pytest.raises(ToolchainError):
            bundle.save_folder(path, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    assert (path / "README.md").read_text(encoding="utf-8") == before
    (path / "main").unlink()
    with pytest.raises(BundleError, match="exists already; use --force"):
        bundle.save_folder(path)
    bundle.save_folder(path, force=True)
    assert (path / "main").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_force_replaces_nothing_else(make_bundle, tmp_path):
    bundle = make_bundle("host")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").write_text("")
    (tmp_path / "link").symlink_to(other)
    for path in (other, tmp_path / "link", other / "holiday.jpg"):
        with pytest.raises(BundleError, match="was not written by `tvmq bundle`"):
            bundle.save_folder(path, force=True)
    with pytest.raises(BundleError, match="there is no folder"):
        bundle.save_folder(tmp_path / "absent" / "folder")


def test_library_of_an_older_version(make_bundle, tmp_path):
    bundle = make_bundle("host")
    bundle.libraries["host"] = bundle.libraries["host"].replace(b"\0tvmq_description\0", b"\0tvmq_descriptive\0")
    with pytest.raises(BundleError, match="made by an older tvmq"):
        bundle.save_folder(tmp_path / "folder")


def test_compiled_networks_name_their_tensors(runner_cache, tmp_path):
    """From the compiler to the board's program, with a batch of three."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    model = tvmq.load(net, (torch.zeros(3, 1, 3, 4),))
    bundle = tvmq.compile(model, target="raspberry-pi-4")
    bundle.save_folder(tmp_path / "net")
    prefix = emulator_command(get_target("raspberry-pi-4"))
    assert run(tmp_path / "net", *prefix, "./check").returncode == 0
