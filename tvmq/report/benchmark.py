"""What a benchmark found: time per function of a network, of the whole, and of other engines beside it.

Everything here is numbers and text that were measured elsewhere, so a result can be read, printed and drawn on a
machine that has none of the engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from tvmq.errors import InputError
from tvmq.report.table import count, percent, table

__all__ = ["CAVEAT", "BenchmarkReport", "Contestant", "FunctionTime", "Series", "kernel_kind"]

CAVEAT = (
    "A low-bit network is another network than the float or int8 one: the ratios compare speed, not accuracy, and mean "
    "something only beside the accuracy of both."
)
_OWN = "tvmq"


@dataclass(frozen=True)
class Series:
    """Seconds, or ratios, of one thing in every round.

    Attributes
    ----------
    values : tuple of float
        One per round, at least one.

    Raises
    ------
    InputError
        Without a value.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Bring the values to a tuple."""
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        if not self.values:
            raise InputError("a series needs at least one round")

    @property
    def median(self) -> float:
        """Of the rounds."""
        return median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The values that a quarter of the rounds lies below, and above."""
        low, high = np.percentile(self.values, (25, 75))
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """Interquartile range divided by the median; above about 0.1 the machine was busy with something else."""
        low, high = self.quartiles
        return (high - low) / self.median if self.median else 0.0

    def as_dict(self) -> dict[str, Any]:
        """``median``, ``minimum``, ``maximum``, ``quartiles``, ``spread`` and ``rounds`` (all values)."""
        return {
            "median": self.median,
            "minimum": min(self.values),
            "maximum": max(self.values),
            "quartiles": list(self.quartiles),
            "spread": self.spread,
            "rounds": list(self.values),
        }


@dataclass(frozen=True)
class FunctionTime:
    """One call of one function in a run of the network.

    Attributes
    ----------
    function : str
        Its name in the library.
    seconds : float
        Median over the rounds; on one thread CPU time, which a busy machine changes little.
    layer, operator, kernel : str or None
        The layer that it computes, what that is and by which kernel; ``None`` of functions between layers.
    weight_bits, activation_bits : int or None
    macs : int
        Multiply-accumulates of all samples of the batch; 0 between layers.
    limit_share : float or None
        Multiply-accumulates per cycle as a part of what the target's file says is the limit of this kind of kernel;
        ``None`` where limit or clock are not known.
    """

    function: str
    seconds: float
    layer: str | None = None
    operator: str | None = None
    kernel: str | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    macs: int = 0
    limit_share: float | None = None


@dataclass(frozen=True)
class Contestant:
    """An engine that took its turn in every round.

    Attributes
    ----------
    name : str
        ``"tvmq"`` or such as ``"onnxruntime int8"``.
    version, settings : str
        Of the engine.
    seconds : Series
        Of one run: in every round the median of a few.
    cpu_seconds : Series
        Time that the processors worked on one run, in every round the mean of a few.  Unlike ``seconds`` it does not
        contain time that other processes had; on several threads it is their sum.
    fastest : float
        Seconds of the fastest run of all.
    ratio, cpu_ratio : Series or None
        ``seconds`` and ``cpu_seconds`` of this engine divided by those of tvmq in the same round; ``None`` for tvmq
        itself.
    """

    name: str
    version: str
    settings: str
    seconds: Series
    cpu_seconds: Series
    fastest: float
    ratio: Series | None = None
    cpu_ratio: Series | None = None

    def as_dict(self) -> dict[str, Any]:
        """The contestant as plain data, seconds included."""
        return {
            "name": self.name,
            "version": self.version,
            "settings": self.settings,
            "seconds": self.seconds.as_dict(),
            "cpu_seconds": self.cpu_seconds.as_dict(),
            "fastest": self.fastest,
            "ratio": None if self.ratio is None else self.ratio.as_dict(),
            "cpu_ratio": None if self.cpu_ratio is None else self.cpu_ratio.as_dict(),
        }


@dataclass(frozen=True)
class BenchmarkReport:
    """A network measured on one target; ``str()`` is the table.

    Attributes
    ----------
    network, target : str
    batch, threads : int
    functions : tuple of FunctionTime
        In the order in which they run.
    own : Contestant
        The whole network, as tvmq runs it.
    rivals : tuple of Contestant
    left_out : dict of str to str
        Of each rival that is missing the reason.
    clock_hertz : Series or None
        Cycles per second that a chain of dependent additions saw, once per round.
    rounds : int
        That were completed.
    interrupted : bool
        Whether more were asked for.
    exact : bool or None
        Whether the library gave the outputs that it must give; ``None`` if nothing is known about them.
    accuracy : float, mapping or None
        Of the low-bit network, where its file says.
    machine, versions : dict
        Processor, processors used, date; version of everything that took part.
    command : str
        How it was called.
    """

    network: str
    target: str
    batch: int
    threads: int
    functions: tuple[FunctionTime, ...]
    own: Contestant
    rivals: tuple[Contestant, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    clock_hertz: Series | None = None
    rounds: int = 0
    interrupted: bool = False
    exact: bool | None = None
    accuracy: Any = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def processor_share(self) -> float | None:
        """The smallest part of its time that any contestant had its processor; ``None`` on several threads."""
        if self.threads > 1:
            return None
        return min(item.cpu_seconds.median / item.seconds.median for item in (self.own, *self.rivals))

    @property
    def seconds_in_layers(self) -> float:
        """Time in convolutions and matrix products."""
        return sum(item.seconds for item in self.functions if item.layer is not None)

    @property
    def seconds_between_layers(self) -> float:
        """Time in all other functions."""
        return sum(item.seconds for item in self.functions if item.layer is None)

    @property
    def seconds_whole(self) -> float:
        """Of one run of the network; on one thread CPU time, which a busy machine changes little."""
        return (self.own.cpu_seconds if self.threads == 1 else self.own.seconds).median

    @property
    def seconds_outside_functions(self) -> float:
        """Whole network minus all functions: the virtual machine, less what measuring each call costs."""
        return self.seconds_whole - self.seconds_in_layers - self.seconds_between_layers

    def as_dict(self) -> dict[str, Any]:
        """The result as plain lists, dictionaries, numbers and texts.

        Returns
        -------
        dict
            All attributes under their names, and ``totals``, in seconds.
        """
        return {
            "command": self.command,
            "network": self.network,
            "target": self.target,
            "batch": self.batch,
            "threads": self.threads,
            "rounds": self.rounds,
            "interrupted": self.interrupted,
            "exact": self.exact,
            "accuracy": self.accuracy,
            "note": CAVEAT,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "clock_hertz": None if self.clock_hertz is None else self.clock_hertz.as_dict(),
            "totals": {
                "whole": self.seconds_whole,
                "layers": self.seconds_in_layers,
                "between_layers": self.seconds_between_layers,
                "outside_functions": self.seconds_outside_functions,
                "macs": sum(item.macs for item in self.functions),
            },
            "functions": [asdict(item) for item in self.functions],
            "own": self.own.as_dict(),
            "rivals": [rival.as_dict() for rival in self.rivals],
            "left_out": dict(self.left_out),
        }

    def to_json(self) -> str:
        """:meth:`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        parts = [_title(self), *_function_table(self), "", *_contestant_table(self), ""]
        if self.processor_share is not None and self.processor_share < _BUSY:
            parts.append(
                "The machine was busy: other processes had the processor for up to "
                f"{percent(1 - self.processor_share)} of the time; compare CPU time, or measure again."
            )
        parts.append(CAVEAT)
        parts.append(f"accuracy of the low-bit network: {self.accuracy}" if self.accuracy is not None else _NO_ACCURACY)
        if self.exact is False:
            parts.append("the library does NOT give the outputs it must give: its times mean nothing")
        return "\n".join(parts)


_BUSY = 0.9
_NO_ACCURACY = "The file says nothing about the accuracy of the low-bit network."


def kernel_kind(kernel: str) -> str:
    """Which entry of a target's ``mac_per_cycle`` limits a kernel of a receipt.

    Parameters
    ----------
    kernel : str
        Such as ``"bitserial xor"``.

    Returns
    -------
    str
        ``"binary"`` (times the plane pairs), ``"table"`` (followed by the bits of activations), ``"int8"`` or
        ``"float32"``.
    """
    if kernel == "bitserial table":
        return "table"
    if kernel.startswith("bitserial"):
        return "int8" if "dot" in kernel.split() else "binary"
    return "int8" if kernel.startswith("int8") else "float32"


def _title(report: BenchmarkReport) -> str:
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    title = f"{report.network} on {report.target}: batch {report.batch}, {threads}, {report.rounds} rounds"
    if report.interrupted:
        title += " (interrupted)"
    if report.clock_hertz is not None:
        title += f", clock {report.clock_hertz.median / 1e9:.2f} GHz (spread {percent(report.clock_hertz.spread)})"
    return f"{title}\n"


_COLUMNS = ("layer", "kernel", "bits", "MACs", "time", "of time", "of limit")
_RIGHT = {
    *("MACs", "time", "of time", "of limit"),
    *("median", "spread", "fastest", "CPU time", "times tvmq", "in CPU time", "quartiles"),
}


def _function_table(report: BenchmarkReport) -> list[str]:
    total = report.seconds_in_layers + report.seconds_between_layers
    rows = [
        [
            item.layer or "",
            item.kernel or "",
            f"{_bits(item.weight_bits)}×{_bits(item.activation_bits)}",
            count(item.macs),
            _time(item.seconds),
            _share(item.seconds, total),
            percent(item.limit_share),
        ]
        for item in report.functions
        if item.layer is not None
    ]
    rows += [
        [
            f"{name} ×{len(times)}" if len(times) > 1 else name,
            "",
            "",
            "",
            _time(sum(times)),
            _share(sum(times), total),
            "",
        ]
        for name, times in _grouped(report.functions)
    ]
    macs = count(sum(item.macs for item in report.functions))
    layers, between = report.seconds_in_layers, report.seconds_between_layers
    totals = [
        ["convolution and dense kernels", "", "", macs, _time(layers), _share(layers, total), ""],
        ["other functions", "", "", "", _time(between), _share(between, total), ""],
    ]
    outside = report.seconds_outside_functions
    totals.append(["virtual machine, less cost of measuring", "", "", "", _time(outside), "", ""])
    name = "whole network, CPU time" if report.threads == 1 else "whole network"
    whole = [name, "", "", "", _time(report.seconds_whole), "", ""]
    lines = table(_COLUMNS, [*rows, *totals], _RIGHT, whole)
    # A rule between the functions and their sums.
    return [*lines[: 2 + len(rows)], lines[1], *lines[2 + len(rows) :]]


def _grouped(functions: Iterable[FunctionTime]) -> list[tuple[str, list[float]]]:
    """Functions between layers, by name, those that cost most first."""
    groups: dict[str, list[float]] = {}
    for item in functions:
        if item.layer is None:
            groups.setdefault(item.function, []).append(item.seconds)
    return sorted(groups.items(), key=lambda group: -sum(group[1]))


def _contestant_table(report: BenchmarkReport) -> list[str]:
    header = ("engine", "median", "spread", "fastest", "CPU time", "times tvmq", "in CPU time", "quartiles", "")
    rows: list[list[str]] = []
    for item in (report.own, *report.rivals):
        seconds = item.seconds
        cells = [_time(seconds.median), percent(seconds.spread), _time(item.fastest), _time(item.cpu_seconds.median)]
        ratios = ["", "", ""]
        if item.ratio is not None and item.cpu_ratio is not None:
            quartiles = "{:.2f} to {:.2f}".format(*item.cpu_ratio.quartiles)
            ratios = [f"{item.ratio.median:.2f}", f"{item.cpu_ratio.median:.2f}", quartiles]
        rows.append([item.name, *cells, *ratios, f"{item.version}; {item.settings}" if item.settings else item.version])
    rows += [[name, *[""] * 7, f"left out: {reason}"] for name, reason in report.left_out.items()]
    return table(header, rows, _RIGHT)


def _bits(bits: int | None) -> str:
    return "float" if bits is None or bits >= 32 else str(bits)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f} ms"


def _share(part: float, whole: float) -> str:
    return percent(part / whole if whole else None)
