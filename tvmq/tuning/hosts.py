"""Where kernels are built and timed: in this process, in a model, or on machines that a tracker of TVM lends out.

A host gives MetaSchedule its builder and its runner.  Its own ``LocalBuilder`` starts new processes for every round,
which takes longer than the round; building in this process takes a fifth of a second per kernel.  What runners return
are the times of candidate and default in turns (see :mod:`tvmq.tuning.measure`).
"""

from __future__ import annotations

import abc
import contextlib
import functools
import platform
import socket
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, PyRunner, RPCConfig, RPCRunner, RunnerResult

from tvmq.errors import ToolchainError
from tvmq.kernels.knobs import Knobs
from tvmq.runtime.toolchain import find_compiler, link_library
from tvmq.target import Target
from tvmq.tuning.in_process import Alive, Builder, Done, reason_of
from tvmq.tuning.measure import CANDIDATE, DEFAULT, SMALLEST_GAIN, Paired, pair_times, random_array

__all__ = ["Finalist", "Host", "LocalHost", "TrackerHost", "compiled", "file_builder", "tensors"]

CONNECT_SECONDS = 10
SESSION_SECONDS = 60
"""Time that a lent machine has for one trial."""


@dataclass(frozen=True)
class Finalist:
    """A schedule that is better than the default for certain.

    Attributes
    ----------
    knobs : dict of str to int
    function : tirx.PrimFunc
        The scheduled kernel.
    times : Paired
    """

    knobs: Knobs
    function: tirx.PrimFunc
    times: Paired


class Host(abc.ABC):
    """A place where candidates are compared with the analytic default.

    Attributes
    ----------
    name : str
        As the user wrote it.
    target : Target
        What is tuned for, with as many threads as run there.
    failure : str or None
        Why nothing can be measured there any more; None while it can.
    smallest_gain : float
        Relative differences below this are worth nothing.
    simulates : bool
        Whether results are costs of a model instead of times.
    """

    name: str
    target: Target
    failure: str | None = None
    smallest_gain: float = SMALLEST_GAIN
    simulates: bool = False

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What it is, for the records."""

    @abc.abstractmethod
    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """A builder of MetaSchedule for candidates that are to be compared with the scheduled default."""

    @abc.abstractmethod
    def runner(self, rounds: int, alive: Alive) -> Any:
        """A runner of MetaSchedule whose results are `rounds` times of each of the two."""

    def best(self, found: Sequence[Finalist]) -> Finalist:
        """The one to keep of some schedules that are all better than the default.

        Parameters
        ----------
        found : sequence of Finalist
            At least one.

        Returns
        -------
        Finalist
        """
        return min(found, key=lambda finalist: finalist.times.ratio)

    def conditions(self) -> Mapping[str, str]:
        """Under which conditions it was measured so far, for the records."""
        return {}

    def close(self) -> None:  # noqa: B027  (most places have nothing to end)
        """End whatever runs there."""


class LocalHost(Host):
    """The process itself: nothing is started, copied or linked.

    Parameters
    ----------
    target : Target
    """

    name = "host"

    def __init__(self, target: Target) -> None:
        self.target = target
        self._built: dict[str, dict[str, Any]] = {}

    @property
    def description(self) -> str:
        """The processor's name."""
        return _processor()

    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """See :class:`Host`; the default is built once."""

        @functools.cache
        def default_library() -> Any:
            return compiled({DEFAULT: default}, self.target).mod

        def build(candidate: tirx.PrimFunc) -> str:
            name = f"trial{len(self._built)}"
            candidate_library = compiled({CANDIDATE: candidate}, self.target).mod
            self._built[name] = {CANDIDATE: candidate_library, DEFAULT: default_library()}
            return name

        return Builder(build, alive)

    def runner(self, rounds: int, alive: Alive) -> Any:
        """See :class:`Host`."""
        return _LocalRunner(self._built, rounds, alive)


class TrackerHost(Host):
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
        self.target = target
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
        self._runners: dict[int, Any] = {}

    @property
    def description(self) -> str:
        """The key, as several machines may have it."""
        return f"a machine registered as '{self._config.tracker_key}'"

    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """See :class:`Host`; both functions travel in one library."""
        return file_builder(default, self.target, Path(self._folder.name), alive)

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
            raise ToolchainError(f"{self.name}: no tracker answers there ({reason_of(error)})") from None
        return sum(entry["key"] == f"server:{self._config.tracker_key}" for entry in entries)


def compiled(functions: Mapping[str, tirx.PrimFunc], target: Target) -> Any:
    """Build functions.

    Parameters
    ----------
    functions : mapping of str to tirx.PrimFunc
        Scheduled, by the names that they are to have.
    target : Target

    Returns
    -------
    tvm.runtime.Executable
    """
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    return tvm.compile(module, target=target.tvm_target())


def file_builder(default: tirx.PrimFunc, target: Target, folder: Path, alive: Alive) -> Any:
    """A builder of libraries that travel to another machine.

    Parameters
    ----------
    default : tirx.PrimFunc
        The scheduled default, which is in every library beside the candidate.
    target : Target
    folder : pathlib.Path
        Where the libraries are left.
    alive : callable
        False ends the search.

    Returns
    -------
    Builder

    Raises
    ------
    ToolchainError
        If the linker for the target is missing.
    """
    link = link_library(target)

    def build(candidate: tirx.PrimFunc) -> str:
        path = folder / f"trial-{uuid.uuid4().hex}.so"  # builders of several kernels share a folder
        compiled({CANDIDATE: candidate, DEFAULT: default}, target).export_library(str(path), fcompile=link)
        return str(path)

    return Builder(build, alive)


@derived_object
class _LocalRunner(PyRunner):
    """Times in this process."""

    def __init__(self, built: dict[str, dict[str, Any]], rounds: int, alive: Alive) -> None:
        super().__init__()
        self.built, self.rounds, self.alive = built, rounds, alive

    def run(self, runner_inputs: Any) -> Any:
        return [Done(self.one(item)) for item in runner_inputs]

    def one(self, item: Any) -> Any:
        libraries = self.built.pop(str(item.artifact_path))
        if not self.alive():
            return RunnerResult(None, "interrupted")
        try:
            arguments = tensors([info.as_json() for info in item.args_info], tvm.cpu())
            return RunnerResult(pair_times(libraries, tvm.cpu(), arguments, self.rounds, self.alive), None)
        except Exception as error:  # as above
            return RunnerResult(None, reason_of(error))


def tensors(args_info: Sequence[Any], device: Any) -> list[Any]:
    """Arguments with random values.

    Parameters
    ----------
    args_info : sequence
        As MetaSchedule describes them: ("TENSOR", data type, shape).
    device : tvm.runtime.Device
        Where they are to be.

    Returns
    -------
    list of tvm.runtime.Tensor
    """
    return [
        tvm.runtime.tensor(random_array([int(size) for size in shape], str(dtype)), device)
        for _, dtype, shape in args_info
    ]


def _allocate(_session: Any, device: Any, args_info: Any, _repeat: int) -> list[Any]:
    """MetaSchedule's own arguments are random also where a kernel expects the number of a class."""
    return [tensors(args_info, device)]


def _evaluate(_session: Any, library: Any, device: Any, config: Any, arguments: Any) -> list[float]:
    """Runs in a worker of MetaSchedule, and times on the machine that was lent."""
    return pair_times({CANDIDATE: library, DEFAULT: library}, device, arguments[0], config.repeat)


def _processor() -> str:
    """The processor's name as the kernel knows it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _require_cloudpickle() -> None:
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        raise ToolchainError(
            "tuning over a tracker needs cloudpickle; `pip install 'tvmq[tune]'` installs it"
        ) from None
