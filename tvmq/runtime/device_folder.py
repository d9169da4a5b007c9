"""A folder to copy to a device by hand: a network, the runtime as a C library, and small programs that use it.

Nothing in it needs Python, and its programs need nothing but the device's C library.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.errors import BundleError
from tvmq.runtime.description import is_described
from tvmq.runtime.device_texts import main_program, readme
from tvmq.runtime.tensors import TensorSpec
from tvmq.runtime.toolchain import OWN_SOURCES, build_runtime, compile_program
from tvmq.target import Target

__all__ = ["DeviceFolder", "DeviceNetwork", "write_device_folder"]

_NETWORK = "net.so"
_RUNTIME = "libtvmq.so"
_CHECK = "check-data"
_PROGRAMS = ("main", "bench", "check")
# What is in every folder that this file writes: only such a one is ever replaced.
_SIGNS = (_NETWORK, _RUNTIME, "tvmq.h")
_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)\0")


@dataclass(frozen=True)
class DeviceNetwork:
    """One network for one target.

    Attributes
    ----------
    name : str
        Of the network.
    target : Target
        What it was compiled for.
    library : bytes
        The content of its ``.so`` file.
    inputs, outputs : tuple of TensorSpec
        What it takes and gives.
    check_inputs, check_outputs : list of numpy.ndarray
        Its self-check.

    Raises
    ------
    BundleError
        If there is no self-check, or the library was compiled by a version that did not describe libraries.
    """

    name: str
    target: Target
    library: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    check_inputs: Sequence[np.ndarray]
    check_outputs: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        """Find out what is missing before anything is built."""
        if not self.check_inputs:
            raise BundleError(f"network '{self.name}': it has no self-check inputs; compile it again")
        if not is_described(self.library):
            raise BundleError(
                f"network '{self.name}': its library for '{self.target.name}' was made by an older tvmq and does not "
                "say what it needs; compile it again"
            )


@dataclass(frozen=True)
class DeviceFolder:
    """What was written.

    Attributes
    ----------
    path : pathlib.Path
        The folder.
    target : str
        The target that it is for.
    files : dict of str to int
        Of each file, by its path in the folder, the size in bytes.
    """

    path: Path
    target: str
    files: dict[str, int]

    @property
    def network_bytes(self) -> int:
        """Size of the network's library."""
        return self.files[_NETWORK]

    @property
    def runtime_bytes(self) -> int:
        """Size of everything but the network and its self-check: what tvmq itself takes on the device."""
        check = sum(size for name, size in self.files.items() if name.startswith(f"{_CHECK}/"))
        return sum(self.files.values()) - self.network_bytes - check

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "output": str(self.path),
            "target": self.target,
            "network_bytes": self.network_bytes,
            "runtime_bytes": self.runtime_bytes,
            "files": self.files,
        }


def write_device_folder(network: DeviceNetwork, folder: Path, force: bool = False) -> DeviceFolder:
    """Write the folder, completely or not at all.

    Parameters
    ----------
    network : DeviceNetwork
        What will run.
    folder : pathlib.Path
        Where to; the folder that it is in has to exist.
    force : bool
        Replace a folder that was written by this function before.

    Returns
    -------
    DeviceFolder

    Raises
    ------
    BundleError
        If the folder exists already, or cannot be written.
    ToolchainError
        If the target's compiler is not installed, or reports an error.
    """
    _require_free(folder, force)
    runtime = build_runtime(network.target)
    try:
        with _replaced_at_once(folder) as temporary:
            _write_files(network, temporary, runtime, folder.name)
            sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in _files(temporary)}
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error.strerror or error}); choose another place") from None
    return DeviceFolder(folder, network.target.name, sizes)


def _require_free(folder: Path, force: bool) -> None:
    if not folder.parent.is_dir():
        raise BundleError(f"{folder}: there is no folder {folder.parent}; make it first")
    if not os.path.lexists(folder):
        return
    if not force:
        raise BundleError(f"{folder}: exists already; use --force to replace it, or name another folder")
    if folder.is_symlink() or not all((folder / name).is_file() for name in _SIGNS):
        raise BundleError(f"{folder}: was not written by `tvmq bundle`, so it is not replaced; name another folder")


@contextmanager
def _replaced_at_once(folder: Path) -> Iterator[Path]:
    """A new folder beside another, which takes its place in the end if all went well."""
    mark = uuid.uuid4().hex
    temporary, old = (folder.with_name(f".{folder.name}.{mark}.{suffix}") for suffix in ("tmp", "old"))
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_files(network: DeviceNetwork, folder: Path, runtime: Path, title: str) -> None:
    (folder / _NETWORK).write_bytes(network.library)
    shutil.copy(runtime, folder / _RUNTIME)
    shutil.copy(OWN_SOURCES / "tvmq.h", folder)
    for name in ("bench.c", "check.c", "Makefile"):
        shutil.copy(OWN_SOURCES / "device" / name, folder)
    (folder / "main.c").write_text(main_program(network.inputs, network.outputs), encoding="utf-8")
    for name in _PROGRAMS:
        compile_program(network.target, folder / f"{name}.c", folder / name, folder / _RUNTIME)
    (folder / _CHECK).mkdir()
    for kind, arrays in (("input", network.check_inputs), ("output", network.check_outputs)):
        for number, array in enumerate(arrays):
            (folder / _CHECK / f"{kind}_{number}.bin").write_bytes(np.require(array, requirements="C").tobytes())
    text = readme(network.name, title, network.target, network.inputs, network.outputs, _needed_glibc(folder))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _needed_glibc(folder: Path) -> str:
    """The oldest version of the C library that has everything which the folder's libraries and programs call."""
    contents = [path.read_bytes() for path in _files(folder) if path.name in (_NETWORK, _RUNTIME, *_PROGRAMS)]
    versions = [(int(major), int(minor)) for content in contents for major, minor in _GLIBC.findall(content)]
    return ".".join(map(str, max(versions)))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
