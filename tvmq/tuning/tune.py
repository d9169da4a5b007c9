"""Tuning the kernels of a network one after another, and keeping what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from tvmq import __version__
from tvmq.errors import BoardError, InputError, RecordError
from tvmq.model import Model
from tvmq.records import COSTS, SIMULATED, Record, file_name, read_records, user_folder, write_records
from tvmq.report.table import table
from tvmq.target import Target, get_target
from tvmq.tuning.hosts import Host
from tvmq.tuning.journal import Journal, user_trials
from tvmq.tuning.places import host_of
from tvmq.tuning.search import Search, require_cost_model
from tvmq.tuning.tasks import Task, network_tasks

__all__ = ["TuneProgress", "TuneResult", "TunedKernel", "tune", "tune_kernels"]

TRIALS = 64
"""Trials per kernel unless the user says otherwise: most of what there is to find."""
MINOR_SHARE = 0.05
"""Share of the tuned kernels' time below which a kernel gets fewer trials."""
MINOR_TRIALS = 4
"""Such a kernel gets one of so many trials."""
DISTURBED_SPREAD = 0.1
"""Spread above which small differences mean nothing."""
SIMULATION_NOTE = (
    "simulated costs, as cycles at 1 GHz: they rank schedules and are no times of a board; "
    "tune there to measure the best five"
)
CANDIDATES = 5
"""Schedules of a simulation that are kept to be measured."""
FINAL_SECONDS = 3.0
"""A first guess of the time that a kernel takes beside its trials."""


@dataclass(frozen=True)
class TuneProgress:
    """A moment of tuning.

    Attributes
    ----------
    kernel : str
        What is tuned, in a few words.
    number, count : int
        Which of how many kernels.
    trial, trials : int
        How many of its trials are done, and are planned.
    resumed : int
        How many of them an earlier run has done.
    best_ratio : float or None
        Its best time so far divided by that of its default; None before the first trial.
    default_seconds : float
        Time of its default.
    fraction : float
        Of all trials, 0 to 1.
    seconds_left : float
        Estimated, for all kernels.
    """

    kernel: str
    number: int
    count: int
    trial: int
    trials: int
    resumed: int
    best_ratio: float | None
    default_seconds: float
    fraction: float
    seconds_left: float


@dataclass(frozen=True)
class TunedKernel:
    """What became of one kernel.

    Attributes
    ----------
    title : str
        The kernel in a few words.
    runs : int
        How often the network runs it.
    record : Record
        Its best schedule; the default's knobs where nothing was faster for certain.
    resumed : int
        Trials of earlier runs that this one went on from.
    known : bool
        Whether an earlier run had tuned it, so that nothing was measured.
    """

    title: str
    runs: int
    record: Record
    resumed: int = 0
    known: bool = False

    @property
    def improved(self) -> bool:
        """Whether something is faster than the default."""
        return dict(self.record.knobs) != dict(self.record.default_knobs)


@dataclass(frozen=True)
class TuneResult:
    """What tuning found; ``str()`` is a table.

    Attributes
    ----------
    target : str
        Name of the target.
    kernels : tuple of TunedKernel
        Those that take most time first.
    files : tuple of str
        Where the records are.
    """

    target: str
    kernels: tuple[TunedKernel, ...]
    files: tuple[str, ...]

    @property
    def microseconds(self) -> float:
        """Time of all tuned kernels in one run of the network, as tuned."""
        return sum(kernel.runs * kernel.record.microseconds for kernel in self.kernels)

    @property
    def default_microseconds(self) -> float:
        """The same with the analytic schedules."""
        return sum(kernel.runs * kernel.record.default_microseconds for kernel in self.kernels)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain lists, dictionaries, numbers and texts.

        Returns
        -------
        dict
            ``target``, ``files``, ``microseconds``, ``default_microseconds`` and ``kernels``.
        """
        kernels = [
            {
                "title": kernel.title,
                "runs": kernel.runs,
                "improved": kernel.improved,
                "known": kernel.known,
                "resumed": kernel.resumed,
                "kernel": kernel.record.key.kernel,
                **kernel.record.as_dict(),
            }
            for kernel in self.kernels
        ]
        return {
            "target": self.target,
            "files": list(self.files),
            "microseconds": self.microseconds,
            "default_microseconds": self.default_microseconds,
            "kernels": kernels,
        }

    def __str__(self) -> str:
        if not self.kernels:
            return f"nothing to tune for {self.target}: the network has no kernel with knobs"
        header = ["kernel", "runs", "default", "tuned", "speed-up", "trials", "schedule"]
        rows = [_row(kernel) for kernel in self.kernels]
        total = ["total", "", _time(self.default_microseconds), _time(self.microseconds)]
        total += [_speedup(self.default_microseconds / self.microseconds), "", ""]
        lines = table(header, rows, {"runs", "default", "tuned", "speed-up", "trials"}, total)
        disturbed = sum(kernel.record.spread > DISTURBED_SPREAD for kernel in self.kernels)
        if disturbed:
            lines += ["", f"other programs disturbed the times of {disturbed} of {len(rows)} kernels: see --again"]
        if any(kernel.record.is_simulated for kernel in self.kernels):
            lines += ["", SIMULATION_NOTE]
        return "\n".join(lines)


def _row(kernel: TunedKernel) -> list[str]:
    record = kernel.record
    knobs = " ".join(f"{name}={value}" for name, value in record.knobs.items())
    note = " (tuned before)" if kernel.known else ""
    return [
        kernel.title,
        str(kernel.runs),
        _time(record.default_microseconds),
        _time(record.microseconds),
        _speedup(record.speedup),
        str(record.trials),
        (knobs if kernel.improved else "the default is the fastest") + note,
    ]


def _time(microseconds: float) -> str:
    return f"{microseconds:,.1f} µs"


def _speedup(ratio: float) -> str:
    return f"{ratio:.3f}x"


def tune(
    model: Model,
    target: str | Target = "host",
    *,
    trials: int = TRIALS,
    on: str = "host",
    output: str | os.PathLike[str] | None = None,
    again: bool = False,
    progress: Callable[[TuneProgress], None] | None = None,
) -> TuneResult:
    """Search the schedules of a network's kernels, and keep them where :func:`tvmq.compile` looks them up.

    Every trial is timed in turns with the analytic schedule, and a schedule is only kept if it is faster than that by
    more than its times scatter.  Trials are kept as they are made: an interrupted or killed run goes on where it
    stopped when it is started again.

    Parameters
    ----------
    model : Model
    target : str or Target
        What to tune for.
    trials : int
        Schedules to measure for each distinct kernel; kernels that take less than a twentieth of the time get a
        quarter.
    on : str
        Where to measure: ``"host"``; ``"simulate"`` for a model of the core, where there is no board;
        ``"ssh://user@host:port"`` for a board; or ``"tracker://address:port/key"`` for machines that are registered at
        a tracker of TVM.  TVM's remote calls are not protected in any way: on a board they are reached through ssh
        only, and trackers should be.
    output : path-like, optional
        Folder of records; default: the user's own, which :func:`tvmq.compile` reads by itself.
    again : bool
        Measure what is already tuned once more.
    progress : callable, optional
        Called with a :class:`TuneProgress` after every few trials.

    Returns
    -------
    TuneResult

    Raises
    ------
    InputError
        If `model` is no model, `trials` is below 1, or `on` is not a place.
    TargetError
        For an unknown target, or one that cannot be measured there.
    ToolchainError
        If xgboost or a compiler is missing, or nothing could be measured.
    BoardError
        If the board cannot be reached, or is lost meanwhile; what was measured is kept.
    RecordError
        If records cannot be read or written.
    KeyboardInterrupt
        After an interruption; what was measured is kept.
    """
    if not isinstance(model, Model):
        raise InputError(f"tune takes a tvmq.Model (from tvmq.load), not {type(model).__name__}")
    core = get_target(target) if isinstance(target, str) else target
    _check(trials)
    if on == "host":
        # A kernel that is cut for more threads than will run it is the wrong one to measure.
        core = dataclasses.replace(core, cores=min(core.cores, tvm.runtime.num_threads()))
    host = host_of(on, core)
    try:
        core = host.target
        tasks = network_tasks(model, core)
        return tune_kernels(tasks, core, trials=trials, host=host, output=output, again=again, progress=progress)
    finally:
        host.close()


def tune_kernels(
    tasks: Sequence[Task],
    core: Target,
    *,
    trials: int = TRIALS,
    host: Host | None = None,
    output: str | os.PathLike[str] | None = None,
    again: bool = False,
    progress: Callable[[TuneProgress], None] | None = None,
) -> TuneResult:
    """Search the schedules of kernels, whatever network they are of.

    Parameters
    ----------
    tasks : sequence of Task
        Distinct kernels, all for `core`.
    core : Target
    trials, output, again, progress
        See :func:`tune`.
    host : Host, optional
        Where to measure; default: here.

    Returns
    -------
    TuneResult

    Raises
    ------
    InputError, TargetError, ToolchainError, RecordError, KeyboardInterrupt
        See :func:`tune`.
    """
    _check(trials)
    require_cost_model()
    place = host if host is not None else host_of("host", core)
    folder = user_folder() if output is None else Path(output)
    _require_writable(folder)
    with _stoppable() as wanted:

        def alive() -> bool:
            return wanted() and place.failure is None

        return _Session(tasks, core, trials, place, folder, again, progress, alive).run()


def _check(trials: int) -> None:
    if trials < 1:
        raise InputError(f"trials must be 1 or more, not {trials}")


class _Session:
    """One call of :func:`tune_kernels`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        core: Target,
        trials: int,
        host: Host,
        folder: Path,
        again: bool,
        progress: Callable[[TuneProgress], None] | None,
        alive: Callable[[], bool],
    ) -> None:
        self.core, self.host, self.folder, self.again, self.progress = core, host, folder, again, progress
        self.alive = alive
        self.about = _about(host)
        records = _known(folder / file_name(core))
        # What was simulated is no reason not to measure.
        self.simulated = {} if host.simulates else {text: item for text, item in records.items() if item.is_simulated}
        known = {} if again else {text: item for text, item in records.items() if text not in self.simulated}
        self.known = {task.key.text: known[task.key.text] for task in tasks if task.key.text in known}
        self.searches = {task.key.text: self._search(task) for task in tasks}
        self.default_seconds = {text: self._default_seconds(text) for text in self.searches}
        self.order = sorted(self.searches, key=lambda text: -self._network_seconds(text))
        self.budgets = {text: self._budget(text, trials) for text in self.order}
        self.resumed = {text: len(search.journal.trials) for text, search in self.searches.items()}
        self.started, self.measured = time.monotonic(), 0

    def _search(self, task: Task) -> Search:
        default = json.dumps(task.kind.default(task.function, task.target), sort_keys=True)
        comparable = {name: value for name, value in self.about.items() if name != "date"}
        folder = user_trials() / file_name(self.core) / (SIMULATED if self.host.simulates else "")
        journal = Journal(folder, task.key.text, {**comparable, "default": default})
        if self.again:
            journal.forget()
        text = task.key.text
        promising = self.simulated[text].candidates if text in self.simulated else ()
        points = [dict(point) for point in promising]
        return Search(task, self.host, journal, self.alive, lambda: self._report(text), promising=points)

    def _default_seconds(self, text: str) -> float:
        if not self.alive():
            raise self._end()
        if text in self.known:
            return 1e-6 * self.known[text].default_microseconds
        return self.searches[text].default_times().default_seconds

    def _network_seconds(self, text: str) -> float:
        return self.default_seconds[text] * self.searches[text].task.count

    def _budget(self, text: str, trials: int) -> int:
        share = self._network_seconds(text) / sum(map(self._network_seconds, self.searches))
        wanted = trials if share >= MINOR_SHARE else max(1, trials // MINOR_TRIALS)
        return min(wanted, len(self.searches[text].points))

    def _is_done(self, text: str) -> bool:
        return text in self.known and self.known[text].trials >= self.budgets[text]

    def run(self) -> TuneResult:
        place = self.folder / file_name(self.core)
        kernels, files = [], {str(place / f"{record.key.kernel}.json") for record in self.known.values()}
        for text in self.order:
            task = self.searches[text].task
            if self._is_done(text):
                kernels.append(TunedKernel(task.title, task.count, self.known[text], known=True))
                continue
            record = self._tuned(text)
            files.update(map(str, write_records(self.folder, self.core, [record])))
            kernels.append(TunedKernel(task.title, task.count, record, self.resumed[text]))
        return TuneResult(self.core.name, tuple(kernels), tuple(sorted(files)))

    def _tuned(self, text: str) -> Record:
        search = self.searches[text]
        self._report(text)
        search.run(self.budgets[text])
        best = search.finals() if self.alive() else None
        if not self.alive():
            raise self._end()
        knobs, times = best if best is not None else (search.points[0], search.default_times())
        default_seconds = times.default_seconds
        return Record(
            key=search.task.key,
            knobs=knobs,
            default_knobs=search.points[0],
            # The ratio is the median of neighbours, which is steadier than the ratio of the medians.
            microseconds=1e6 * default_seconds * (times.ratio if best is not None else 1.0),
            default_microseconds=1e6 * default_seconds,
            spread=times.spread,
            trials=len(search.journal.trials),
            about={**self.about, **self.host.conditions()},
            candidates=search.finalists(CANDIDATES) if self.host.simulates else (),
        )

    def _end(self) -> BaseException:
        """Why it ends before the end."""
        return KeyboardInterrupt() if self.host.failure is None else BoardError(self.host.failure)

    def _report(self, text: str) -> None:
        if self.progress is None:
            return
        done = {name: len(search.journal.trials) for name, search in self.searches.items()}
        left = {name: 0 if self._is_done(name) else max(0, self.budgets[name] - done[name]) for name in self.order}
        new = sum(done[name] - self.resumed[name] for name in self.order)
        seconds = (time.monotonic() - self.started) / new if new else 0.5
        planned = sum(self.budgets.values())
        journal = self.searches[text].journal
        ratios = [trial.ratio for trial in journal.trials if trial.ratio is not None]
        self.progress(
            TuneProgress(
                kernel=self.searches[text].task.title,
                number=self.order.index(text) + 1,
                count=len(self.order),
                trial=min(done[text], self.budgets[text]),
                trials=self.budgets[text],
                resumed=self.resumed[text],
                best_ratio=min(ratios, default=None),
                default_seconds=self.default_seconds[text],
                fraction=1 - sum(left.values()) / planned,
                seconds_left=seconds * sum(left.values()) + FINAL_SECONDS * sum(map(bool, left.values())),
            )
        )


def _known(folder: Path) -> dict[str, Record]:
    records = [record for path in sorted(folder.glob("*.json")) for record in read_records(path)]
    return {record.key.text: record for record in records}


def _about(host: Host) -> Mapping[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        "host": host.description,
        **({COSTS: SIMULATED} if host.simulates else {}),
        "tvmq": __version__,
        "tvm": tvm.__version__,
        "xgboost": importlib.import_module("xgboost").__version__,
    }


def _require_writable(folder: Path) -> None:
    """A long search should not end in a file that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{folder}: cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise RecordError(f"{folder}: cannot be written to; name another folder with --output")


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Turn an interruption into an answer: no exception may pass through the C++ frames of MetaSchedule."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: True
        return
    before = signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    try:
        yield lambda: not stopped
    finally:
        signal.signal(signal.SIGINT, before)
