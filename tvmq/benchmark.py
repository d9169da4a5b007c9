"""Measuring a compiled network: every function of it, the whole, and other engines beside it.

All contestants take turns in one process, on the same processors, in an order that moves on with every round; a ratio
is the median of the rounds' own ratios.  So whatever slows the machine down for a while slows all of them down.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmq import __version__
from tvmq.errors import InputError, TargetError, TvmqError
from tvmq.report.benchmark import BenchmarkReport, Contestant, FunctionTime, Series, kernel_kind
from tvmq.rivals.engines import Engine, build_rival, engines_of
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.pinning import choose_processors, pinned
from tvmq.runtime.profile import layers_of_calls
from tvmq.runtime.tensors import TensorSpec, check_inputs
from tvmq.target import get_target

if TYPE_CHECKING:
    from tvmq.model import Model

__all__ = ["bench", "processor_name", "sample_inputs", "set_threads"]

_THREADS_VARIABLE = "TVM_NUM_THREADS"
_BLOCK_SECONDS = 0.02
"""Time of one contestant in one round, at least one run."""
_MOST_RUNS = 200
_WARM_UP_RUNS = 2  # the others have emptied the caches
_SEED = 0

ProgressCallback = Callable[[str, float, float | None], None]


def set_threads(threads: int | None) -> int:
    """Start the threads that TVM's kernels run on; their number cannot change later.

    Parameters
    ----------
    threads : int or None
        ``None`` takes as many as TVM runs on already, or would by itself.

    Returns
    -------
    int
        Their number.

    Raises
    ------
    InputError
        If TVM has started another number already; or for less than one thread.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be 1 or more, not {threads}")
    import tvm.runtime

    if threads is None:
        return int(tvm.runtime.num_threads())
    before = os.environ.get(_THREADS_VARIABLE)
    os.environ[_THREADS_VARIABLE] = str(threads)
    running = int(tvm.runtime.num_threads())  # starts them if they are not running yet
    if running == threads:
        return running
    if before is None:
        del os.environ[_THREADS_VARIABLE]
    else:
        os.environ[_THREADS_VARIABLE] = before
    raise InputError(
        f"TVM runs on {running} thread(s) in this process and cannot change to {threads}; "
        f"set {_THREADS_VARIABLE}={threads} before Python starts"
    )


def sample_inputs(specs: Sequence[TensorSpec], batch: int | None = None) -> list[np.ndarray]:
    """Seeded random inputs of a network.

    Parameters
    ----------
    specs : sequence of TensorSpec
        What the network takes.
    batch : int, optional
        Samples; 1 by default where the batch is open.

    Returns
    -------
    list of numpy.ndarray
        Floats in [0, 1) in steps of 1/256, integers 0 to 9.

    Raises
    ------
    InputError
        If the network was made for another batch.
    """
    if batch is not None and batch < 1:
        raise InputError(f"batch must be 1 or more, not {batch}")
    for spec in specs:
        if batch is not None and not spec.dynamic and spec.shape and spec.shape[0] != batch:
            raise InputError(
                f"input '{spec.name}' is made for a batch of {spec.shape[0]}, not {batch}; leave the batch out, or "
                "export the network with an open batch"
            )
    random = np.random.default_rng(_SEED)
    arrays = []
    for spec in specs:
        shape = [(batch or 1) if size is None else size for size in spec.shape]
        if np.issubdtype(np.dtype(spec.dtype), np.floating):
            arrays.append((random.integers(0, 256, shape) / 256).astype(spec.dtype))
        else:
            arrays.append(random.integers(0, 10, shape).astype(spec.dtype))
    return arrays


def bench(
    network: Bundle | Model,
    inputs: Sequence[Any] | None = None,
    *,
    target: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    rounds: int = 20,
    rivals: str = "auto",
    rival_model: Model | None = None,
    progress: ProgressCallback | None = None,
) -> BenchmarkReport:
    """Measure a network on this machine, function by function, and other engines beside it.

    An interruption (Ctrl-C) ends the measurement and leaves the rounds that are done.

    Parameters
    ----------
    network : Bundle or Model
        A model is compiled first.
    inputs : sequence of array-like, optional
        One array per input; by default random, or the self-check's where no `batch` is asked for.
    target : str, optional
        Whose library to run; by default the one that fits this machine best.
    batch : int, optional
        Samples of random inputs.
    threads : int, optional
        Threads of every contestant; the process is held on as many processors meanwhile.  By default as many as TVM
        runs on; another number has to be set before TVM has run anything, with ``TVM_NUM_THREADS`` or here.
    rounds : int
        How often all contestants take their turn.
    rivals : str
        ``"auto"``: onnxruntime, OpenVINO and ncnn if installed; ``"none"``; or names of packages or engines with commas
        between them.
    rival_model : Model, optional
        What the rivals run, if not this network without its quantizers: such as the float network that one would
        deploy in its stead.  It has to take the same inputs.
    progress : callable, optional
        Called with a text, the fraction that is done, and the seconds left or ``None``.

    Returns
    -------
    BenchmarkReport
        ``str()`` of it is a table.

    Raises
    ------
    InputError
        If the inputs are not what the network takes, a number is out of range, or a rival is unknown or missing.
    BundleError
        If no library fits this machine, or `target`'s does not.
    ModelError
        If the model cannot be compiled.
    """
    if rounds < 1:
        raise InputError(f"rounds must be 1 or more, not {rounds}")
    if inputs is not None and batch is not None:
        raise InputError("give inputs or a batch, not both")
    engines, left_out = engines_of(rivals)
    threads = set_threads(threads)
    processors = choose_processors(threads)
    show = progress or (lambda text, fraction, left: None)
    with pinned(processors):
        show("compiling", 0.0, None)
        bundle = network if isinstance(network, Bundle) else _compiled(network, target, inputs, batch)
        target = bundle.default_target if target is None else target
        arrays = _inputs(bundle, inputs, batch)
        contestants = [_own(bundle, target, arrays)]
        show("preparing rivals", 0.0, None)
        others, reasons = _rivals(engines, bundle, rival_model or network, arrays, threads)
        rounds_done = _Rounds(bundle, target, arrays, [*contestants, *others], _clock(target), threads)
        interrupted = rounds_done.take(rounds, show)
    return _report(
        bundle,
        target,
        rounds_done,
        threads=threads,
        interrupted=interrupted,
        left_out={**left_out, **reasons},
        processors=processors,
    )


def _compiled(model: Model, target: str | None, inputs: Sequence[Any] | None, batch: int | None) -> Bundle:
    from tvmq.compiler import compile

    given = sample_inputs(model.inputs, batch) if inputs is None else inputs
    return compile(model, target or "host", check_inputs=given)


def _inputs(bundle: Bundle, inputs: Sequence[Any] | None, batch: int | None) -> list[np.ndarray]:
    if inputs is not None:
        return check_inputs(bundle.inputs, inputs)
    return bundle.check_inputs if batch is None and bundle.check_inputs else sample_inputs(bundle.inputs, batch)


def _batch(arrays: Sequence[np.ndarray]) -> int:
    return len(arrays[0]) if arrays and arrays[0].ndim else 1


@dataclass(frozen=True)
class _Contestant:
    """What takes its turn; ``run()`` runs the network once."""

    name: str
    version: str
    settings: str
    run: Callable[[], object]


@dataclass(frozen=True)
class _Turn:
    """Seconds of one run: median and minimum of the clock on the wall, and the mean time that processors worked."""

    median: float
    minimum: float
    cpu: float


def _turn(run: Callable[[], object], runs: int) -> _Turn:
    for _ in range(_WARM_UP_RUNS):
        run()
    seconds = []
    cpu = time.process_time()
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return _Turn(median(seconds), min(seconds), (time.process_time() - cpu) / runs)


def _own(bundle: Bundle, target: str, arrays: Sequence[np.ndarray]) -> _Contestant:
    return _Contestant("tvmq", __version__, "", bundle.bound(*arrays, target=target))


def _rivals(
    engines: Sequence[Engine], bundle: Bundle, source: Bundle | Model, arrays: Sequence[np.ndarray], threads: int
) -> tuple[list[_Contestant], dict[str, str]]:
    """The rivals that can run the network, and why the others cannot."""
    if not engines:
        return [], {}
    try:
        network, inputs = _float_network(bundle, source, arrays)
    except (TvmqError, ImportError) as error:
        return [], {engine.name: _reason(error) for engine in engines}
    from tvmq.rivals.forms import in_form

    forms: dict[str, Any] = {}
    found, reasons = [], {}
    for engine in engines:
        try:
            if engine.form not in forms:
                forms[engine.form] = in_form(engine.form, network, _calibration(inputs))
            rival = build_rival(engine, forms[engine.form], inputs, threads)
        except Exception as error:  # every engine has its own kinds of errors
            reasons[engine.name] = _reason(error)
            continue
        found.append(_Contestant(engine.name, rival.version, rival.settings, rival.run))
    return found, reasons


def _float_network(
    bundle: Bundle, source: Bundle | Model, arrays: Sequence[np.ndarray]
) -> tuple[Any, dict[str, np.ndarray]]:
    """The network as float ONNX, and inputs by name."""
    from tvmq.model import Model
    from tvmq.rivals.export import to_onnx

    model = Model.from_json(bundle.model_json) if isinstance(source, Bundle) else source
    network = to_onnx(model, _batch(arrays))
    names = [item.name for item in network.graph.input]
    return network, dict(zip(names, check_inputs(model.inputs, arrays), strict=True))


def _calibration(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The inputs, and the same with their samples' elements reversed: ranges matter little for speed."""
    return [inputs, {name: np.ascontiguousarray(array[..., ::-1]) for name, array in inputs.items()}]


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _clock(target: str) -> Callable[[], float] | None:
    """What measures the clock; None where TVM has no compiler to make it with."""
    try:
        from tvmq.clock import Clock

        return Clock(get_target(target)).hertz
    except (ImportError, AttributeError, TargetError):
        return None


class _Rounds:
    """Measurements of completed rounds."""

    def __init__(
        self,
        bundle: Bundle,
        target: str,
        arrays: Sequence[np.ndarray],
        contestants: Sequence[_Contestant],
        clock: Callable[[], float] | None,
        threads: int,
    ) -> None:
        self.bundle, self.target, self.arrays = bundle, target, arrays
        self.contestants = contestants
        self.clock = clock
        # On one thread, what counts is the time that the processor worked; several have no common clock of that kind.
        self.stopwatch = time.thread_time if threads == 1 else time.perf_counter
        self.turns: dict[str, list[_Turn]] = {item.name: [] for item in contestants}
        self.hertz: list[float] = []
        self.calls: list[list[tuple[str, float]]] = []

    @property
    def done(self) -> int:
        return len(self.calls)

    def take(self, rounds: int, show: ProgressCallback) -> bool:
        """Take turns; whether that was interrupted after a round at least."""
        runs = {item.name: _runs(_turn(item.run, 1).median) for item in self.contestants}
        start = time.perf_counter()
        for index in range(rounds):
            left = (time.perf_counter() - start) / index * (rounds - index) if index else None
            show(f"round {index + 1} of {rounds}", index / rounds, left)
            try:
                self._take_one(index, runs)
            except KeyboardInterrupt:
                if not self.done:
                    raise
                return True
        return False

    def _take_one(self, index: int, runs: dict[str, int]) -> None:
        """One round, kept as a whole or not at all."""
        first = index % len(self.contestants)
        order = [*self.contestants[first:], *self.contestants[:first]]
        hertz = None if self.clock is None else self.clock()
        turns = {item.name: _turn(item.run, runs[item.name]) for item in order}
        # As many runs as were timed: the caches should be as warm.
        own_runs = runs[self.contestants[0].name]
        calls = self.bundle.call_times(*self.arrays, repeat=own_runs, target=self.target, clock=self.stopwatch)
        for name, turn in turns.items():
            self.turns[name].append(turn)
        if hertz is not None:
            self.hertz.append(hertz)
        self.calls.append(calls)


def _runs(seconds: float) -> int:
    """Runs that fill a contestant's turn."""
    return max(1, min(_MOST_RUNS, int(_BLOCK_SECONDS / max(seconds, 1e-9))))


def _report(
    bundle: Bundle,
    target: str,
    rounds: _Rounds,
    *,
    threads: int,
    interrupted: bool,
    left_out: dict[str, str],
    processors: list[int],
) -> BenchmarkReport:
    own, *rivals = [_measured(item, rounds) for item in rounds.contestants]
    clock = Series(tuple(rounds.hertz)) if rounds.hertz else None
    batch = _batch(rounds.arrays)
    return BenchmarkReport(
        network=str(bundle.manifest["name"]),
        target=target,
        batch=batch,
        threads=threads,
        functions=_functions(bundle, target, rounds, batch, None if clock is None else clock.median * threads),
        own=own,
        rivals=tuple(rivals),
        left_out=left_out,
        clock_hertz=clock,
        rounds=rounds.done,
        interrupted=interrupted,
        exact=None if not bundle.check_inputs else not bundle.check(target),
        accuracy=bundle.manifest.get("accuracy"),
        machine=_machine(processors),
        versions=_versions(bundle, rivals),
        command=" ".join(sys.argv),
    )


def _measured(item: _Contestant, rounds: _Rounds) -> Contestant:
    """A contestant with its times and, if it is not tvmq itself, its ratios."""
    own, turns = rounds.turns[rounds.contestants[0].name], rounds.turns[item.name]
    ratio = cpu_ratio = None
    if turns is not own:
        ratio = Series(tuple(turn.median / base.median for turn, base in zip(turns, own, strict=True)))
        cpu_ratio = Series(tuple(turn.cpu / base.cpu for turn, base in zip(turns, own, strict=True)))
    return Contestant(
        name=item.name,
        version=item.version,
        settings=item.settings,
        seconds=Series(tuple(turn.median for turn in turns)),
        cpu_seconds=Series(tuple(turn.cpu for turn in turns)),
        fastest=min(turn.minimum for turn in turns),
        ratio=ratio,
        cpu_ratio=cpu_ratio,
    )


def _functions(
    bundle: Bundle, target: str, rounds: _Rounds, batch: int, cycles_per_second: float | None
) -> tuple[FunctionTime, ...]:
    names = [name for name, _ in rounds.calls[0]]
    seconds = [median(calls[index][1] for calls in rounds.calls) for index in range(len(names))]
    limits = _limits(target)
    lines = []
    for name, time_, layer in zip(names, seconds, layers_of_calls(names, bundle.layers(target)), strict=True):
        if layer is None:
            lines.append(FunctionTime(name, time_))
            continue
        macs = layer["macs"] * batch
        share = None
        if limits is not None and cycles_per_second is not None and time_ > 0:
            share = macs / (time_ * cycles_per_second * _limit(layer, limits))
        lines.append(
            FunctionTime(
                name,
                time_,
                layer["name"],
                layer["operator"],
                layer["kernel"],
                layer["weight_bits"],
                layer["activation_bits"],
                macs,
                share,
            )
        )
    return tuple(lines)


def _limits(target: str) -> dict[str, float] | None:
    try:
        return get_target(target).mac_per_cycle
    except TargetError:
        return None  # the file's target is not one of this installation's


def _limit(layer: Any, limits: dict[str, float]) -> float:
    """Multiply-accumulates per cycle that a layer's kernel cannot exceed."""
    kind = kernel_kind(layer["kernel"])
    if kind == "table":
        return limits[f"table{layer['activation_bits']}"]
    pairs = layer["weight_bits"] * layer["activation_bits"] if kind == "binary" else 1
    return limits[kind] / pairs


def _machine(processors: list[int]) -> dict[str, Any]:
    return {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "processors": processors,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    """Model name as ``/proc/cpuinfo`` gives it, with family and model where there are such numbers."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name


def _versions(bundle: Bundle, rivals: Sequence[Contestant]) -> dict[str, str]:
    versions = {"tvmq": __version__, "tvm": str(bundle.manifest.get("tvm", "?")), "python": platform.python_version()}
    return versions | {item.name.split()[0]: item.version for item in rivals}
