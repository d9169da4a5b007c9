"""A board that is reached through ssh, as a place where kernels are timed.

TVM's remote calls are not protected: their server listens on the board's loopback device only, and is reached through
the ssh connection that also started it (see :mod:`tvmq.runtime.kernel_server`).  It ends with that connection.

A board that is too hot, or short of current, lowers its clock: times taken meanwhile are discarded and taken again
once it has recovered.
"""

from __future__ import annotations

import dataclasses
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm import rpc, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.runner import PyRunner, RunnerResult

from tvmq.errors import BoardError, TargetError
from tvmq.runtime.diagnosis import THROTTLING
from tvmq.runtime.facts import Conditions, Facts, conditions_of, facts_of
from tvmq.runtime.fitting import fitting_target, unfit
from tvmq.runtime.python_runtime import require_python_runtime
from tvmq.runtime.ssh import Address, Connection
from tvmq.runtime.toolchain import find_compiler
from tvmq.target import Target
from tvmq.tuning.hosts import SESSION_SECONDS, Host, file_builder, tensors
from tvmq.tuning.in_process import Alive, Done, reason_of
from tvmq.tuning.measure import CANDIDATE, DEFAULT, pair_times

__all__ = ["SshHost"]

_SERVER = Path(__file__).resolve().parents[1] / "runtime" / "kernel_server.py"
_START = """
exec env TVM_USE_RUNTIME_LIB=1 TVM_NUM_THREADS="$2" "$HOME/tvmq-python/bin/python" -c "$1"
"""
_STARTING_SECONDS = 60
"""An interpreter with TVM takes ten on the slowest board."""
_ENDING_SECONDS = 2
_ATTEMPTS = 3
"""Measurements of one candidate, of which the first ones were throttled."""
COOLING_SECONDS = 180
ASKING_SECONDS = 5
_GO_ON = "what was measured is kept, and the same command goes on there"


class SshHost(Host):
    """A board behind ssh; :meth:`close` ends everything that runs there.

    Parameters
    ----------
    target : Target
        What is tuned for.
    address : Address
        The board.

    Attributes
    ----------
    target : Target
        With no more threads than the board has processors.

    Raises
    ------
    BoardError
        If it cannot be reached, or lacks the Python runtime.
    TargetError
        If the target is for another core.
    ToolchainError
        If the linker for the target is missing.
    """

    def __init__(self, target: Target, address: Address) -> None:
        find_compiler(target)
        self.name = str(address)
        self._connection = Connection(address)
        try:
            facts = facts_of(self._connection)
            self._require_fit(target, facts)
            self.target = dataclasses.replace(target, cores=min(target.cores, facts.usable))
            self._description = f"{facts.model or 'a board'}, {facts.processor}"
            self._seen = [facts.conditions]
            self._discarded = 0
            self._folder = tempfile.TemporaryDirectory(prefix="tvmq-")
            self._key = secrets.token_hex(16)
            self._server = self._connection.start(_START, _SERVER.read_text(encoding="utf-8"), str(self.target.cores))
            self._port = self._connection.forward(self._server_port())
        except BaseException:
            self._connection.close()
            raise

    @property
    def description(self) -> str:
        """The board's model and processor."""
        return self._description

    def conditions(self) -> Mapping[str, str]:
        """Governor, clock, temperature and throttling, as they were seen between the measurements."""
        temperatures = [seen.temperature for seen in self._seen if seen.temperature is not None]
        clocks = [clock.current // 1000 for seen in self._seen for clock in seen.clocks]
        governors = sorted({name for seen in self._seen for name in seen.governors})
        found = {
            "governor": ", ".join(governors),
            "clock": _range(clocks, "MHz"),
            "temperature": _range([round(celsius) for celsius in temperatures], "°C"),
            "throttling": self._throttling(),
        }
        return {name: text or "unknown" for name, text in found.items()}

    def close(self) -> None:
        """End the server, and the connection."""
        self._connection.stop(self._server)
        self._connection.close()
        self._folder.cleanup()

    def builder(self, default: tirx.PrimFunc, alive: Alive) -> Any:
        """See :class:`Host`; both functions travel in one library."""
        return file_builder(default, self.target, Path(self._folder.name), alive)

    def runner(self, rounds: int, alive: Alive) -> Any:
        """See :class:`Host`."""
        return _Runner(self, rounds, alive)

    def times(self, library: Path, args_info: list[Any], rounds: int, alive: Alive) -> list[float]:
        """Time candidate and default in turns, while the board is not throttled.

        Parameters
        ----------
        library : pathlib.Path
            With both.
        args_info : list
            Their arguments, as MetaSchedule describes them.
        rounds : int
            Times of each.
        alive : callable
            False ends the measurement early.

        Returns
        -------
        list of float
            Seconds: candidate, default, candidate, default, ...

        Raises
        ------
        BoardError
            If the board is lost, or throttled all the time; :attr:`failure` says so from then on.
        RuntimeError
            If the candidate cannot be run.
        """
        for _ in range(_ATTEMPTS):
            before = self._calm(alive)
            times = self._session_times(library, args_info, rounds, alive)
            after = self._ask()
            newly = after.throttled_since_start & ~before.throttled_since_start
            if not after.throttled_now | newly:
                return times
            self._discarded += 1
        raise self._fail(f"is throttled in every measurement ({_causes(after.throttled_now | newly)}); {_GO_ON}")

    def _session_times(self, library: Path, args_info: list[Any], rounds: int, alive: Alive) -> list[float]:
        """In a session of its own, which ends with this call: the server takes one at a time."""
        try:
            session = rpc.connect("127.0.0.1", self._port, self._key, session_timeout=SESSION_SECONDS)
            session.upload(str(library))
            loaded, device = session.load_module(library.name), session.cpu(0)
            arguments = tensors(args_info, device)
            return pair_times({CANDIDATE: loaded, DEFAULT: loaded}, device, arguments, rounds, alive)
        except Exception as error:  # TVM raises RuntimeError, OSError, or classes of its own
            lost = self._lost()
            if lost is not None:
                raise self._fail(lost) from None
            raise RuntimeError(reason_of(error)) from None

    def _calm(self, alive: Alive) -> Conditions:
        """Wait until the board is not throttled."""
        deadline = time.monotonic() + COOLING_SECONDS
        while self._seen[-1].throttled_now and alive():
            if time.monotonic() > deadline:
                causes = _causes(self._seen[-1].throttled_now)
                raise self._fail(f"stays throttled for {COOLING_SECONDS} seconds ({causes}); {_GO_ON}")
            time.sleep(ASKING_SECONDS)
            self._ask()
        return self._seen[-1]

    def _ask(self) -> Conditions:
        try:
            self._seen.append(conditions_of(self._connection))
        except BoardError as error:
            self.failure = f"{error}; {_GO_ON}"
            raise
        return self._seen[-1]

    def _lost(self) -> str | None:
        """Why there is no server any more; None if there is one."""
        try:
            status = self._server.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        if status == 255:
            return f"the connection was lost while kernels were measured; {_GO_ON}"
        return f"the server that measures kernels was ended on the board, perhaps for lack of memory; {_GO_ON}"

    def _fail(self, text: str) -> BoardError:
        self.failure = f"{self.name}: {text}"
        return BoardError(self.failure)

    def _throttling(self) -> str:
        if all(seen.throttled is None for seen in self._seen):
            return "unknown"
        return f"{self._discarded} measurements discarded" if self._discarded else "none"

    def _require_fit(self, target: Target, facts: Facts) -> None:
        obstacle = unfit(target, facts)
        if obstacle is not None:
            best = fitting_target(facts)
            way = "tvmq knows no target for this board" if best is None else f"tune it with --target {best.name}"
            raise TargetError(f"{self.name}: target '{target.name}' {obstacle}; {way}")
        require_python_runtime(facts, self.name)

    def _server_port(self) -> int:
        """Give the server its key, and wait for its port."""
        line = self._connection.talk(self._server, f"{self._key}\n".encode(), _STARTING_SECONDS)
        if not line.strip().isdigit():
            raise BoardError(f"{self.name}: the server that measures kernels does not start: {line or 'no answer'}")
        return int(line)


@derived_object
class _Runner(PyRunner):
    """Times on the board, one candidate after another."""

    def __init__(self, host: SshHost, rounds: int, alive: Alive) -> None:
        super().__init__()
        self.host, self.rounds, self.alive = host, rounds, alive

    def run(self, runner_inputs: Any) -> Any:
        return [Done(self.one(item)) for item in runner_inputs]

    def one(self, item: Any) -> Any:
        library = Path(str(item.artifact_path))
        if not self.alive():
            return RunnerResult(None, "interrupted")
        try:
            arguments = [info.as_json() for info in item.args_info]
            return RunnerResult(self.host.times(library, arguments, self.rounds, self.alive), None)
        except Exception as error:  # what cannot run is one point less; what is lost is the host's failure
            return RunnerResult(None, reason_of(error))
        finally:
            library.unlink(missing_ok=True)


def _causes(bits: int) -> str:
    """What throttles, and what to do about it."""
    found = [(text, remedy) for bit, (text, remedy) in enumerate(THROTTLING) if bits >> bit & 1]
    return "; ".join(f"{text}: {remedy}" for text, remedy in found)


def _range(numbers: list[int], unit: str) -> str:
    if not numbers:
        return ""
    least, most = min(numbers), max(numbers)
    return f"{least} {unit}" if least == most else f"{least} to {most} {unit}"
