"""Running a library for another core on this machine, through qemu and the C++ runner."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvmq.errors import BundleError, TargetError, ToolchainError
from tvmq.runtime.toolchain import build_runner
from tvmq.target import Target

__all__ = ["emulator_command", "run_emulated"]

_QEMU_PACKAGE = "qemu-user-static"
# qemu dies of the signal that stopped its guest, and a shell between us would report 128 + its number.
_ILLEGAL_INSTRUCTION = (-signal.SIGILL, 128 + signal.SIGILL)


def run_emulated(library: bytes, target: Target, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a compiled network on an emulated core.

    The emulator is told to be exactly the target's core, so that instructions which that core lacks are found here.
    Its times say nothing about the board's.

    Parameters
    ----------
    library : bytes
        The content of the ``.so`` file.
    target : Target
        What it was compiled for.
    arrays : sequence of numpy.ndarray
        One array per input of the network.

    Returns
    -------
    list of numpy.ndarray
        One array per output.

    Raises
    ------
    TargetError
        If the target names no emulator.
    ToolchainError
        If the emulator, the target's C library or its compiler is not installed.
    BundleError
        If the library uses instructions that the core lacks, or the run fails.
    """
    prefix = emulator_command(target)
    runner = build_runner(target)
    with tempfile.TemporaryDirectory(prefix="tvmq-") as folder:
        path = Path(folder)
        (path / "network.so").write_bytes(library)
        command = [*prefix, str(runner), str(path / "network.so"), "--output-prefix", str(path / "output")]
        for number, array in enumerate(arrays):
            np.save(path / f"input{number}.npy", np.require(array, requirements="C"))
            command += ["--input", str(path / f"input{number}.npy")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        _check(result, target)
        return [np.load(name, allow_pickle=False) for name in json.loads(result.stdout)["outputs"]]


def emulator_command(target: Target) -> list[str]:
    """The words in front of a program of the target that make it run here.

    Parameters
    ----------
    target : Target
        Whose core to emulate.

    Returns
    -------
    list of str
        For example ``qemu-aarch64-static -cpu cortex-a72 -L /usr/aarch64-linux-gnu``.

    Raises
    ------
    TargetError
        If the target names no emulator.
    ToolchainError
        If the emulator or the target's C library is not installed.
    """
    if target.qemu is None:
        raise TargetError(f"target '{target.name}' has no emulator; run it on a machine of its kind")
    emulator = shutil.which(target.qemu)
    if emulator is None:
        raise ToolchainError(
            f"target '{target.name}': emulator {target.qemu} is not installed; "
            f"install it with `apt-get install {_QEMU_PACKAGE}`"
        )
    command = [emulator]
    if target.qemu_cpu is not None:
        command += ["-cpu", target.qemu_cpu]
    if target.sysroot is None:
        return command
    if not Path(target.sysroot).is_dir():
        raise ToolchainError(
            f"target '{target.name}': its C library {target.sysroot} is not installed; "
            f"install it with `apt-get install {target.cross_package}`"
        )
    return [*command, "-L", target.sysroot]


def _check(result: subprocess.CompletedProcess[str], target: Target) -> None:
    if result.returncode == 0:
        return
    if result.returncode in _ILLEGAL_INSTRUCTION:
        core = target.qemu_cpu or target.mcpu
        raise BundleError(
            f"target '{target.name}': the library uses instructions that core {core} lacks; compile it again for "
            "this target"
        )
    lines = result.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"exit status {result.returncode}"
    raise BundleError(f"target '{target.name}': the emulated run failed: {reason}")
