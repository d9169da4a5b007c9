"""Compilers on this machine: linking libraries for other cores, and building what runs them without Python.

That is the runner, one executable that contains TVM's runtime, and the same runtime as a shared library for programs in
C.  Both are built from the sources inside the installed wheels of TVM.  Those lack six small headers, which are in
``cpp/shims``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvmq.errors import ToolchainError
from tvmq.machine import this_machine
from tvmq.runtime.description import describe, description_source
from tvmq.runtime.tensors import TensorSpec
from tvmq.target import Target

__all__ = [
    "OWN_SOURCES",
    "build_runner",
    "build_runtime",
    "cached_runner",
    "compile_program",
    "export_library",
    "find_compiler",
    "link_library",
]

OWN_SOURCES = Path(__file__).resolve().parent / "cpp"
"""The folder of the sources that are compiled for devices."""

_RUNNER = "tvmq-run"
_RUNTIME = "libtvmq.so"
_RUNTIME_SOURCES = (
    "cpu_device_api.cc",
    "device_api.cc",
    "file_utils.cc",
    "logging.cc",
    "memory/memory_manager.cc",
    "module.cc",
    "tensor.cc",
    "thread_pool.cc",
    "threading_backend.cc",
    "vm/builtin.cc",
    "vm/bytecode.cc",
    "vm/executable.cc",
    "vm/vm.cc",
    "workspace_pool.cc",
)
# Without container.cc, which has Python's access to lists and maps: a ninth of all code.
_FFI_SOURCES = (
    "backtrace.cc",
    "custom_allocator.cc",
    "dtype.cc",
    "error.cc",
    "extra/env_c_api.cc",
    "extra/env_context.cc",
    "extra/json_parser.cc",
    "extra/json_writer.cc",
    "extra/library_module.cc",
    "extra/library_module_dynamic_lib.cc",
    "extra/library_module_system_lib.cc",
    "extra/module.cc",
    "function.cc",
    "init_once.cc",
    "object.cc",
    "tensor.cc",
)
# A network's bytes are copied while it is loaded, of which the first copy is needed no longer: it becomes the second.
_MOVED = ("extra/library_module.cc", "Bytes(module_bytes)", "Bytes(std::move(module_bytes))")
_COMPILE_FLAGS = (
    "-std=c++17",
    "-Os",
    "-w",
    "-DNDEBUG",
    "-DTVM_FFI_USE_LIBBACKTRACE=0",
    "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0",
    "-ffunction-sections",
    "-fdata-sections",
    "-fPIC",
    "-fvisibility=hidden",
)
_FILE_NAMES = "-ffile-prefix-map"
# The C++ library travels inside, as the device's own may be older.  Memory that becomes read-only after relocation
# would start at a page of its own, which on 64-bit ARM may have 64 kB: a hole of that size in the file.
_LINK_FLAGS = ("-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections", "-Wl,-z,norelro", "-s")
_RUNTIME_FLAGS = ("-shared", f"-Wl,-soname,{_RUNTIME}", "-Wl,-z,defs")
_SYSTEM_LIBRARIES = ("-ldl", "-lpthread")
_LIBRARY_FLAGS = ("-shared", "-fPIC", "-static-libgcc", "-Wl,--as-needed", "-Wl,-z,norelro", "-s")
# The compiler's driver is that of C++, but programs need nothing of that language.
_PROGRAM_FLAGS = ("-O2", "-Wall", "-Wl,--as-needed", "-Wl,-z,norelro", "-Wl,-rpath,$ORIGIN", "-s")
_HOST_COMPILER = "g++"
# Of all that compiler and linker write, the line that says what is wrong.
_TELLING_LINE = re.compile("(?<!collect2: )error: |undefined reference|cannot find")


def find_compiler(target: Target) -> str:
    """The C++ compiler that links for a target.

    Parameters
    ----------
    target : Target
        What to link for.

    Returns
    -------
    str
        Its path.

    Raises
    ------
    ToolchainError
        If it is not installed; the message names the Debian package.
    """
    native = target.arch == this_machine().arch
    names = [name for name in (target.cross_compiler, _HOST_COMPILER if native else None) if name is not None]
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    if not names:
        raise ToolchainError(
            f"target '{target.name}' names no compiler for {target.arch} on a machine that is {this_machine().arch}; "
            "set cross_compiler and cross_package in its file"
        )
    package = _HOST_COMPILER if native else target.cross_package
    raise ToolchainError(
        f"target '{target.name}': compiler {names[-1]} is not installed; install it with `apt-get install {package}`"
    )


def link_library(target: Target) -> Callable[[str, Sequence[str]], None]:
    """The linker of a target, for ``export_library(path, fcompile=...)``.

    Parameters
    ----------
    target : Target
        What to link for.

    Returns
    -------
    callable
        Takes the library to write and the object files that belong in it; raises :class:`ToolchainError` when the
        compiler reports an error.

    Raises
    ------
    ToolchainError
        If the compiler is not installed.
    """
    compiler = find_compiler(target)

    def link(output: str, objects: Sequence[str]) -> None:
        _call([compiler, *_LIBRARY_FLAGS, "-o", output, *objects], f"target '{target.name}': cannot link")

    return link


def export_library(
    executable: Any, target: Target, inputs: Sequence[TensorSpec] = (), outputs: Sequence[TensorSpec] = ()
) -> bytes:
    """Link a compiled network into a library that says what it needs, takes and gives.

    Parameters
    ----------
    executable : tvm.runtime.Executable
        What ``tvm.compile`` returned.
    target : Target
        What it was compiled for.
    inputs, outputs : sequence of TensorSpec
        What the network takes and gives.  The C interface can only open a library that names them.

    Returns
    -------
    bytes
        The content of the ``.so`` file.

    Raises
    ------
    ToolchainError
        If the compiler is not installed, or reports an error.
    """
    link = link_library(target)
    with tempfile.TemporaryDirectory(prefix="tvmq-") as folder:
        path = Path(folder) / "network.so"
        description = Path(folder) / "description.cc"
        description.write_text(description_source(describe(target, inputs, outputs)), encoding="ascii")
        executable.export_library(
            str(path), fcompile=lambda output, objects: link(output, [*objects, str(description)])
        )
        return path.read_bytes()


def compile_program(target: Target, source: Path, output: Path, runtime: Path) -> None:
    """Compile and link a C program that runs networks.

    Parameters
    ----------
    target : Target
        Where it will run.
    source, output : pathlib.Path
        The C file, and the executable to write.  It looks for the runtime in the folder that it is in itself.
    runtime : pathlib.Path
        From :func:`build_runtime`.

    Raises
    ------
    ToolchainError
        If the compiler is not installed, or reports an error.
    """
    words = [find_compiler(target), *_PROGRAM_FLAGS, f"-I{OWN_SOURCES}", "-o", str(output)]
    words += ["-x", "c", str(source), "-x", "none", f"-L{runtime.parent}", f"-l:{runtime.name}"]
    _call(words, f"target '{target.name}': cannot compile {source.name}")


def cached_runner(target: Target) -> Path:
    """Where the runner of a target is kept, built or not.

    Parameters
    ----------
    target : Target
        Whose platform to look for.

    Returns
    -------
    pathlib.Path
        A file in ``$XDG_CACHE_HOME/tvmq`` (``~/.cache/tvmq``); its name holds the platform and a hash of everything
        that the executable is made from.

    Raises
    ------
    ToolchainError
        If the compiler or a source is missing.
    """
    return _cache_folder() / f"{target.triple}-{_fingerprint(find_compiler(target))}" / _RUNNER


def build_runner(target: Target, progress: Callable[[int, int], None] | None = None) -> Path:
    """The runner of a target, built unless it has been before.

    A build takes about half a minute of processor time and is kept, with :func:`build_runtime`'s library, for every
    target of the same platform.

    Parameters
    ----------
    target : Target
        The platform to build for.
    progress : callable, optional
        Called with the number of compiled files and their total, after each.

    Returns
    -------
    pathlib.Path
        The executable, stripped; see ``tvmq-run --help`` for its options.

    Raises
    ------
    ToolchainError
        If the compiler or a source is missing, or the compiler reports an error.
    """
    return _built_folder(target, progress) / _RUNNER


def build_runtime(target: Target, progress: Callable[[int, int], None] | None = None) -> Path:
    """The runtime of a target as a shared library with the interface of ``tvmq.h``, built unless it has been before.

    Parameters
    ----------
    target, progress
        As for :func:`build_runner`.

    Returns
    -------
    pathlib.Path
        ``libtvmq.so``, stripped.

    Raises
    ------
    ToolchainError
        As for :func:`build_runner`.
    """
    return _built_folder(target, progress) / _RUNTIME


def _built_folder(target: Target, progress: Callable[[int, int], None] | None) -> Path:
    """The folder of runner and runtime, complete from the moment on in which it exists."""
    path = cached_runner(target).parent
    if path.exists():
        return path
    compiler = find_compiler(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")):
        if path.exists():  # another process built it while we waited
            return path
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as folder:
            built = _build(compiler, Path(folder), progress or (lambda done, total: None))
            os.replace(built, path)
    return path


def _build(compiler: str, folder: Path, progress: Callable[[int, int], None]) -> Path:
    """Compile and link both; the folder that they are in."""
    shared, runner, interface = _lay_out_sources(folder)
    problem = "cannot build the runner"
    _compile(compiler, [*shared, runner, interface], problem, progress)
    built = folder / "built"
    built.mkdir()
    # The networks' libraries call back into the runtime, so its C functions are exported.
    runner_flags = [f"-Wl,--dynamic-list={OWN_SOURCES / 'exports.txt'}"]
    runtime_flags = [*_RUNTIME_FLAGS, f"-Wl,--version-script={OWN_SOURCES / 'runtime.map'}"]
    for name, own, flags in ((_RUNNER, runner, runner_flags), (_RUNTIME, interface, runtime_flags)):
        inputs = [str(source.with_suffix(".o")) for source in (*shared, own)]
        _call([compiler, *_LINK_FLAGS, *flags, "-o", str(built / name), *inputs, *_SYSTEM_LIBRARIES], problem)
    return built


def _compile(compiler: str, sources: Sequence[Path], problem: str, progress: Callable[[int, int], None]) -> None:
    """Compile sources beside each other, into object files that are beside them."""
    includes = [
        OWN_SOURCES / "shims" / "include",
        _package("tvm") / "include",
        _package("tvm_ffi") / "include",
        _package("tvm_ffi") / "3rdparty" / "dlpack" / "include",
    ]
    # Messages name their source files: by the same names wherever these were while they were compiled.
    roots = [sources[0].parent, _package("tvm").parent, OWN_SOURCES]
    flags = [*_COMPILE_FLAGS, *(f"{_FILE_NAMES}={path}/=" for path in roots), *(f"-I{path}" for path in includes)]
    commands = [[compiler, *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))] for source in sources]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(_call, command, problem) for command in commands]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _lay_out_sources(folder: Path) -> tuple[list[Path], Path, Path]:
    """Copy TVM's runtime beside our headers, because it includes them as ``"../support/..."``.

    Gives what to compile: the sources that all have in common, the runner's and the C interface's.
    """
    copied = folder / "src" / "runtime"
    omitted = shutil.ignore_patterns("extra", "rpc", "hexagon")
    shutil.copytree(_package("tvm") / "src" / "runtime", copied, ignore=omitted)
    shutil.copytree(OWN_SOURCES / "shims" / "src" / "support", folder / "src" / "support")
    interface_sources = folder / "ffi"
    shutil.copytree(_package("tvm_ffi") / "src" / "ffi", interface_sources)
    shared = [
        _join_sources(folder / "runtime.cc", copied, _RUNTIME_SOURCES),
        _join_sources(folder / "ffi.cc", interface_sources, _FFI_SOURCES),
    ]
    _replace_in(interface_sources, *_MOVED)
    runner = _join_sources(folder / "runner.cc", OWN_SOURCES, ("runner.cc",))
    interface = _join_sources(folder / "tvmq.cc", OWN_SOURCES, ("tvmq.cc",))
    return shared, runner, interface


def _join_sources(joined: Path, folder: Path, names: Sequence[str]) -> Path:
    """One file that includes others: compiled one by one, they would spend half of the time on the same headers."""
    for name in names:
        if not (folder / name).is_file():
            raise ToolchainError(f"cannot build the runner: TVM's wheel has no {name}; install apache-tvm again")
    joined.write_text("".join(f'#include "{folder / name}"\n' for name in names))
    return joined


def _replace_in(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ToolchainError(f"cannot build the runner: {name} of TVM's wheel is another one; install tvmq again")
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")


def _package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ToolchainError(f"cannot build the runner: the package '{name}' is not installed")
    return Path(spec.submodule_search_locations[0])


def _fingerprint(compiler: str) -> str:
    digest = hashlib.sha256()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    versions = [importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")]
    flags = [*_COMPILE_FLAGS, *_LINK_FLAGS, *_RUNTIME_FLAGS, *_SYSTEM_LIBRARIES]
    parts = [*versions, *_RUNTIME_SOURCES, *_FFI_SOURCES, *_MOVED, _FILE_NAMES, *flags]
    for part in [version, *(text.encode() for text in parts)]:
        digest.update(part + b"\0")
    compiled = [path for path in OWN_SOURCES.rglob("*") if path.is_file() and path.parent.name != "device"]
    for path in sorted(compiled):
        digest.update(str(path.relative_to(OWN_SOURCES)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tvmq"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system gives back even when this process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _call(command: Sequence[str], problem: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return
    lines = result.stderr.splitlines()
    telling = [line for line in lines if _TELLING_LINE.search(line)] or lines
    reason = telling[0].strip() if telling else f"exit status {result.returncode}"
    raise ToolchainError(f"{problem}: {Path(command[0]).name}: {reason}")
