"""Where kernels are built and timed: in this process, or on machines that a tracker of TVM lends out.

A host gives MetaSchedule its builder and its runner.  Its own ``LocalBuilder`` starts new processes for every round,
which takes longer than the round; building in this process takes a fifth of a second per kernel.  What runners return
are the times of candidate and default in turns (see :mod:`tvmq.tuning.measure`).
"""

from __future__ import annotations

import functools
import re
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tvm
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, PyRunner, PyRunnerFuture, RPCConfig, RPCRunner, RunnerResult

from tvmq.errors import InputError, TargetError, ToolchainError
from tvmq.machine import this_machine
from tvmq.runtime.toolchain import find_compiler, link_library
from tvmq.target import Target
from tvmq.tuning.measure import CANDIDATE, DEFAULT, pair_times, random_array

__all__ = ["Host", "LocalHost", "TrackerHost", "host_of"]

CONNECT_SECONDS = 10
SESSION_SECONDS = 60
"""Time that a lent machine has for one trial."""

Alive = Callable[[], bool]
"""False once the user wants to stop."""


class Host(Protocol):
    """A place where candidates are compared with the analytic default.

    Attributes
    ----------
    name : str
        As the user wrote it.
    """

    name: str

    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """A builder of MetaSchedule for candidates that are to be compared with the scheduled default."""

    def runner(self, rounds: int, alive: Alive) -> Any:
        """A runner of MetaSchedule whose results are `rounds` times of each of the two."""


def host_of(on: str, target: Target) -> Host:
    """The place that ``--on`` names.

    Parameters
    ----------
    on : str
        ``"host"`` or ``"tracker://address:port/key"``.
    target : Target
        What is tuned for.

    Returns
    -------
    Host

    Raises
    ------
    InputError
        For another text.
    TargetError
        If this machine cannot run what is built for ``target``.
    ToolchainError
        If a cross compiler or a package is missing, or no machine answers.
    """
    if on == "host":
        obstacle = this_machine().obstacle(target.triple, target.required_cpu_flags)
        if obstacle is not None:
            raise TargetError(
                f"target '{target.name}' {obstacle}; measure on such a machine with --on tracker://address:port/key"
            )
        return LocalHost(target)
    if on.startswith("ssh://") or on == "simulate":
        raise InputError(f"cannot tune on {on} yet; use host, or tracker://address:port/key")
    match = re.fullmatch(r"tracker://([^:/]+):(\d{1,5})/([\w.-]+)", on)
    if match is None:
        raise InputError(f"cannot tune on {on!r}; use host, or tracker://address:port/key")
    return TrackerHost(target, match[1], int(match[2]), match[3])


class LocalHost:
    """The process itself: nothing is started, copied or linked.

    Parameters
    ----------
    target : Target
    """

    name = "host"

    def __init__(self, target: Target) -> None:
        self._target = target
        self._built: dict[str, dict[str, Any]] = {}

    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """See :class:`Host`; the default is built once."""

        @functools.cache
        def default_library() -> Any:
            return _compiled({DEFAULT: default}, self._target).mod

        def build(candidate: tirx.PrimFunc) -> str:
            name = f"trial{len(self._built)}"
            candidate_library = _compiled({CANDIDATE: candidate}, self._target).mod
            self._built[name] = {CANDIDATE: candidate_library, DEFAULT: default_library()}
            return name

        return _Builder(build, alive)

    def runner(self, rounds: int, alive: Alive) -> Any:
        """See :class:`Host`."""
        return _LocalRunner(self._built, rounds, alive)


class TrackerHost:
    """Machines that run ``python -m tvm.exec.rpc_server`` and have registered at a tracker.

    Parameters
    ----------
    target : Target
    address, port, key : str, int, str
        Of the tracker, and the name under which its machines are registered.

    Raises
    ------
    ToolchainError
        If the linker for the target or a package is missing, or no machine is registered.
    """

    def __init__(self, target: Target, address: str, port: int, key: str) -> None:
        self.name = f"tracker://{address}:{port}/{key}"
        self._target = target
        _require_cloudpickle()
        find_compiler(target)
        self._config = RPCConfig(address, port, key, session_timeout_sec=SESSION_SECONDS)
        self._servers = self._count()
        if not self._servers:
            raise ToolchainError(
                f"{self.name}: no machine is registered as '{key}'; start one there with "
                f"`python -m tvm.exec.rpc_server --tracker {address}:{port} --key {key}`"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="tvmq-")
        self._count_built = 0
        self._runners: dict[int, Any] = {}

    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """See :class:`Host`; both functions travel in one library."""
        link = link_library(self._target)

        def build(candidate: tirx.PrimFunc) -> str:
            self._count_built += 1
            path = Path(self._folder.name) / f"trial{self._count_built}.so"
            _compiled({CANDIDATE: candidate, DEFAULT: default}, self._target).export_library(str(path), fcompile=link)
            return str(path)

        return _Builder(build, alive)

    def runner(self, rounds: int, alive: Alive) -> Any:
        """See :class:`Host`; several machines share the candidates, and worker processes serve all kernels."""
        if rounds not in self._runners:
            self._runners[rounds] = RPCRunner(
                self._config,
                EvaluatorConfig(number=1, repeat=rounds),
                f_alloc_argument=_allocate,
                f_run_evaluator=_evaluate,
                max_workers=self._servers,
            )
        return self._runners[rounds]

    def _count(self) -> int:
        from tvm import rpc

        try:
            # TVM itself would try for a minute.
            socket.create_connection((self._config.tracker_host, self._config.tracker_port), CONNECT_SECONDS).close()
            entries = rpc.connect_tracker(self._config.tracker_host, self._config.tracker_port).summary()["server_info"]
        except Exception as error:  # TVM raises RuntimeError, OSError, or classes of its own
            raise ToolchainError(f"{self.name}: no tracker answers there ({_reason(error)})") from None
        return sum(entry["key"] == f"server:{self._config.tracker_key}" for entry in entries)


def _compiled(functions: Mapping[str, tirx.PrimFunc], target: Target) -> Any:
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    return tvm.compile(module, target=target.tvm_target())


@derived_object
class _Builder(PyBuilder):
    """Builds in this process; what `build` returns is where the runner finds the library."""

    def __init__(self, build: Callable[[tirx.PrimFunc], str], alive: Alive) -> None:
        super().__init__()
        self.build_one, self.alive = build, alive

    def build(self, build_inputs: Any) -> Any:
        return [self.one(item.mod["main"]) for item in build_inputs]

    def one(self, candidate: tirx.PrimFunc) -> Any:
        if not self.alive():
            return BuilderResult(None, "interrupted")
        try:
            return BuilderResult(self.build_one(candidate), None)
        except Exception as error:  # a schedule that TVM or LLVM rejects is one point less, not the end
            return BuilderResult(None, _reason(error))


@derived_object
class _LocalRunner(PyRunner):
    """Times in this process."""

    def __init__(self, built: dict[str, dict[str, Any]], rounds: int, alive: Alive) -> None:
        super().__init__()
        self.built, self.rounds, self.alive = built, rounds, alive

    def run(self, runner_inputs: Any) -> Any:
        return [_Done(self.one(item)) for item in runner_inputs]

    def one(self, item: Any) -> Any:
        libraries = self.built.pop(str(item.artifact_path))
        if not self.alive():
            return RunnerResult(None, "interrupted")
        try:
            arguments = _tensors([info.as_json() for info in item.args_info], tvm.cpu())
            return RunnerResult(pair_times(libraries, tvm.cpu(), arguments, self.rounds, self.alive), None)
        except Exception as error:  # as above
            return RunnerResult(None, _reason(error))


@derived_object
class _Done(PyRunnerFuture):
    """A result that is there."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return self.value


def _tensors(args_info: Sequence[Any], device: Any) -> list[Any]:
    """Arguments as MetaSchedule describes them: ("TENSOR", data type, shape)."""
    return [
        tvm.runtime.tensor(random_array([int(size) for size in shape], str(dtype)), device)
        for _, dtype, shape in args_info
    ]


def _allocate(_session: Any, device: Any, args_info: Any, _repeat: int) -> list[Any]:
    """MetaSchedule's own arguments are random also where a kernel expects the number of a class."""
    return [_tensors(args_info, device)]


def _evaluate(_session: Any, library: Any, device: Any, config: Any, arguments: Any) -> list[float]:
    """Runs in a worker of MetaSchedule, and times on the machine that was lent."""
    return pair_times({CANDIDATE: library, DEFAULT: library}, device, arguments[0], config.repeat)


def _require_cloudpickle() -> None:
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        raise ToolchainError(
            "tuning over a tracker needs cloudpickle; `pip install 'tvmq[tune]'` installs it"
        ) from None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
