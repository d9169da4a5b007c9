"""The C++ runner, on this machine and on emulated boards."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tvmq.runtime.toolchain import link_library
from tvmq.target import get_target


@pytest.fixture
def run(host_runner, tmp_path):
    """Run the runner in an empty folder."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(host_runner), *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return call


@pytest.fixture
def float_files(tmp_path, float_network, float_library) -> tuple[Path, Path]:
    library, data = tmp_path / "net.so", tmp_path / "x.npy"
    library.write_bytes(float_library)
    np.save(data, float_network.arrays[0])
    return library, data


def assert_fails(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("tvmq-run: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_float_network_with_two_outputs(run, float_files, float_network, tmp_path):
    library, data = float_files
    result = run(library, "--input", data, "--output-prefix", "y")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report["outputs"] == ["y0.npy", "y1.npy"]
    assert len(report["seconds"]) == 1
    assert "calls" not in report
    for name, expected in zip(report["outputs"], float_network.expected, strict=True):
        output = np.load(tmp_path / name)
        assert output.dtype == expected.dtype
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_integer_network_with_two_inputs_and_a_single_tensor(run, integer_network, integer_library, tmp_path):
    (tmp_path / "net.so").write_bytes(integer_library)
    for name, array in zip(("x", "bias"), integer_network.arrays, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    # A name without a slash is a file here, not in the system's folders.
    result = run("net.so", "--input", "x.npy", "--input", "bias.npy", "--output-prefix", "y")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["outputs"] == ["y0.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "y0.npy"), integer_network.expected[0], strict=True)


def test_repeat_and_profile(run, float_files):
    library, data = float_files
    report = json.loads(run(library, "--input", data, "--output-prefix", "y", "--repeat", 4, "--profile").stdout)
    assert len(report["seconds"]) == 4
    assert all(0 < seconds < 1 for seconds in report["seconds"])
    names = [call["function"] for call in report["calls"]]
    assert names.index("conv2d") < names.index("relu") < names.index("matmul")
    assert not any(name.startswith("vm.") for name in names)
    assert all(0 < call["seconds"] < 1 for call in report["calls"])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_npy_files(run, float_files, float_network, tmp_path, version):
    library, data = float_files
    with data.open("wb") as file:
        np.lib.format.write_array(file, float_network.arrays[0], version=version)
    result = run(library, "--input", data, "--output-prefix", "y")
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y1.npy"), float_network.expected[1], rtol=1e-4, atol=1e-4)


def test_report_is_json_whatever_the_files_are_called(run, float_files, tmp_path):
    library, data = float_files
    prefix = 'a "quoted" \\ name\nin two lines'
    report = json.loads(run(library, "--input", data, "--output-prefix", prefix).stdout)
    assert report["outputs"] == [f"{prefix}0.npy", f"{prefix}1.npy"]
    assert (tmp_path / f"{prefix}1.npy").exists()


def test_help_has_an_example(run):
    result = run("--help")
    assert result.returncode == 0
    assert "example:" in result.stdout
    assert "--profile" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no library was given"),
        (["net.so"], "--output-prefix is missing"),
        (["net.so", "--input"], "--input needs a value"),
        (["net.so", "--wrong"], "unknown option '--wrong'"),
        (["net.so", "other.so"], "unexpected argument 'other.so'"),
        (["net.so", "--output-prefix", "y", "--repeat", "0"], "--repeat needs a number of 1 or more, not '0'"),
        (["net.so", "--output-prefix", "y", "--repeat", "3x"], "--repeat needs a number of 1 or more, not '3x'"),
        (["net.so", "--output-prefix", "y"], "the network has 1 inputs, but 0 were given"),
        (["absent.so", "--output-prefix", "y"], "cannot open library 'absent.so'"),
        (["x.npy", "--output-prefix", "y"], "library 'x.npy' is not a .so file"),
        (["net.so", "--output-prefix", "y", "--input", "absent.npy"], "cannot open input file 'absent.npy'"),
        (["net.so", "--output-prefix", "absent/y", "--input", "x.npy"], "cannot write output file 'absent/y0.npy'"),
    ],
)
def test_errors_are_one_line(run, float_files, words, message):
    assert_fails(run(*words), message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 3, 8, 8), "float64"), "holds numbers of type '<f8'"),
        (np.zeros((1, 3, 8, 8), ">f4"), "holds numbers of type '>f4'"),
        (np.zeros((1, 3, 8, 8), [("a", "<f4")]), "holds more than plain numbers"),
        (np.zeros((1, 3, 8, 8), "float32", order="F"), "is in Fortran order"),
        (np.zeros((1, 3, 8, 9), "float32"), "Error"),
        (np.zeros((3, 8, 8), "float32"), "Error"),
        (np.zeros((1, 3, 8, 8), "int32"), "Error"),
        (np.float32(1), "Error"),
    ],
)
def test_arrays_that_the_network_does_not_take(run, float_files, array, message):
    library, data = float_files
    np.save(data, array)
    assert_fails(run(library, "--input", data, "--output-prefix", "y"), message)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is not a .npy file"),
        (lambda content: b"PK" + content[2:], "is not a .npy file"),
        (lambda content: content[:9], "has a damaged header"),
        (lambda content: content[:60], "is truncated"),
        (lambda content: content[:-1], "is truncated"),
        (lambda content: content + b"x", "has more bytes than its shape says"),
        (lambda content: content.replace(b"'shape'", b"'shame'"), "has a damaged header"),
        (lambda content: content.replace(b"(1, 3", b"(1,-3"), "has a negative extent"),
    ],
)
def test_damaged_npy_files(run, float_files, damage, message):
    library, data = float_files
    data.write_bytes(damage(data.read_bytes()))
    assert_fails(run(library, "--input", data, "--output-prefix", "y"), message)


def test_file_that_is_no_library(run, tmp_path):
    (tmp_path / "net.so").write_bytes(b"something else")
    assert_fails(run("net.so", "--output-prefix", "y"), "file 'net.so' is no library, or not all of one")


@pytest.mark.parametrize("size", [0, 40, 2000, -1])
def test_library_that_is_cut_off(run, float_files, size):
    library, data = float_files
    library.write_bytes(library.read_bytes()[:size])
    assert_fails(run(library, "--input", data, "--output-prefix", "y"), "is no library, or not all of one")


def test_library_that_is_no_network(run, tmp_path):
    link_library(get_target("host"))(str(tmp_path / "net.so"), ["-x", "c++", "/dev/null"])
    assert_fails(run("net.so", "--output-prefix", "y"), "library 'net.so' holds no network of this version of tvmq")


def test_library_that_needs_another_processor_is_refused(run, float_network, tmp_path):
    target = dataclasses.replace(get_target("host"), name="my-core", required_cpu_flags=("fpu", "sse9", "amx-more"))
    (tmp_path / "net.so").write_bytes(float_network.library(target))
    message = "library 'net.so' was compiled for my-core and needs sse9, amx-more, which this processor lacks"
    assert_fails(run("net.so", "--output-prefix", "y"), message)


def test_library_of_another_architecture_is_refused(run, float_network, tmp_path):
    (tmp_path / "net.so").write_bytes(float_network.library(get_target("raspberry-pi-4")))
    message = "library 'net.so' is for aarch64, and this system is x86_64"
    assert_fails(run("net.so", "--output-prefix", "y"), message)
