from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmq.errors import BundleError, TargetError, ToolchainError
from tvmq.runtime.emulator import emulator_command, run_emulated
from tvmq.runtime.toolchain import OWN_SOURCES, export_library
from tvmq.target import get_target, list_targets

EMULATED = ("raspberry-pi-4", "raspberry-pi-3-32")


@pytest.mark.parametrize("name", EMULATED)
def test_float_network_gives_what_numpy_gives(name, float_network, runner_cache):
    target = get_target(name)
    outputs = run_emulated(float_network.library(target), target, float_network.arrays)
    assert len(outputs) == 2
    for output, expected in zip(outputs, float_network.expected, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EMULATED)
def test_integer_network_is_exact(name, integer_network, runner_cache):
    target = get_target(name)
    outputs = run_emulated(integer_network.library(target), target, integer_network.arrays)
    assert len(outputs) == 1
    np.testing.assert_array_equal(outputs[0], integer_network.expected[0], strict=True)


def half_precision_library(target) -> bytes:
    """Adds in float16, which a Cortex-A76 has instructions for and a Cortex-A72 has not."""
    builder = relax.BlockBuilder()
    data = relax.Var("x", relax.TensorType((64,), "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            half = builder.emit(relax.op.astype(data, "float16"))
            total = builder.emit(relax.op.add(half, half))
            result = builder.emit_output(relax.op.astype(total, "float32"))
        builder.emit_func_output(result)
    return export_library(tvm.compile(builder.get(), target.tvm_target()), target)


def test_library_for_a_newer_core_is_refused(runner_cache):
    newer, older = get_target("raspberry-pi-5"), get_target("raspberry-pi-4")
    x = np.arange(64, dtype="float32")
    library = half_precision_library(newer)
    np.testing.assert_array_equal(run_emulated(library, newer, [x])[0], 2 * x)
    message = r"compiled for raspberry-pi-5 and needs asimdhp, asimddp, which this processor lacks"
    with pytest.raises(BundleError, match=message):
        run_emulated(library, older, [x])


def test_library_for_a_newer_32_bit_core_is_refused(runner_cache):
    newer = get_target("raspberry-pi-3-32")
    older = dataclasses.replace(newer, qemu_cpu="cortex-a15")
    x = np.arange(64, dtype="float32")
    with pytest.raises(
        BundleError, match=r"compiled for raspberry-pi-3-32 and needs crc32, which this processor lacks"
    ):
        run_emulated(half_precision_library(newer), older, [x])


def test_instructions_that_the_target_forgot_to_name_are_found(runner_cache):
    newer, older = get_target("raspberry-pi-5"), get_target("raspberry-pi-4")
    library = half_precision_library(dataclasses.replace(newer, required_cpu_flags=()))
    with pytest.raises(BundleError, match="'raspberry-pi-4': the library uses instructions that core cortex-a72 lacks"):
        run_emulated(library, older, [np.arange(64, dtype="float32")])


def test_device_programs_know_every_flag_that_a_board_needs():
    source = (OWN_SOURCES / "processor.h").read_text(encoding="utf-8")
    needed = {flag for target in list_targets() if target.arch != "x86_64" for flag in target.required_cpu_flags}
    assert needed
    assert not {flag for flag in needed if f'"{flag}"' not in source}


def test_failed_run_says_why(float_network, runner_cache):
    target = get_target("raspberry-pi-4")
    library = float_network.library(target)
    with pytest.raises(BundleError, match=r"'raspberry-pi-4': the emulated run failed: .*the network has 1 inputs"):
        run_emulated(library, target, [])
    with pytest.raises(BundleError, match=r"the emulated run failed: .*holds numbers of type '<f8'"):
        run_emulated(library, target, [float_network.arrays[0].astype("float64")])


def test_library_of_another_architecture_says_so(float_library, float_network, runner_cache):
    with pytest.raises(BundleError, match=r"library '.*network\.so' is for x86_64, and this system is aarch64"):
        run_emulated(float_library, get_target("raspberry-pi-4"), float_network.arrays)


def test_command_names_core_and_system():
    command = emulator_command(get_target("raspberry-pi-4"))
    assert command[0].endswith("/qemu-aarch64-static")
    assert command[1:] == ["-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu"]


def test_target_without_an_emulator():
    with pytest.raises(TargetError, match="target 'x86-avx2' has no emulator"):
        emulator_command(get_target("x86-avx2"))


def test_missing_emulator_names_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"qemu-aarch64-static is not installed.*apt-get install qemu-user-static"):
        emulator_command(get_target("raspberry-pi-4"))


def test_missing_c_library_names_its_package(tmp_path):
    target = dataclasses.replace(get_target("raspberry-pi-4"), sysroot=str(tmp_path / "absent"))
    with pytest.raises(ToolchainError, match=r"absent is not installed.*apt-get install g\+\+-aarch64-linux-gnu"):
        emulator_command(target)
