"""A picture of a benchmark: where the time of the network goes, and other engines beside it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from tvmq.errors import InputError
from tvmq.report.benchmark import CAVEAT, BenchmarkReport

__all__ = ["check_chart", "draw_benchmark"]

_KINDS = (".png", ".svg", ".pdf")

_MOST_BARS = 30
_LAYER_COLOUR, _BETWEEN_COLOUR, _RIVAL_COLOUR = "#1f6f8b", "#e08e45", "#8a8a8a"


def check_chart(path: str | os.PathLike[str]) -> None:
    """Look whether :func:`draw_benchmark` can draw, before anything is measured.

    Parameters
    ----------
    path : path-like
        What it is to write.

    Raises
    ------
    InputError
        If matplotlib is not installed, or the file's ending is none of a picture.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a chart needs matplotlib; install it with: pip install 'tvmq[benchmarks]'")
    if Path(path).suffix.lower() not in _KINDS:
        raise InputError(f"{path}: not a kind of picture that can be drawn; choose one of {', '.join(_KINDS)}")


def draw_benchmark(report: BenchmarkReport, path: str | os.PathLike[str]) -> None:
    """Write a bar chart.

    Parameters
    ----------
    report : BenchmarkReport
    path : path-like
        An image; its ending says which kind (``.png``, ``.svg``, ``.pdf``).  Replaced at once or not at all.

    Raises
    ------
    InputError
        As for :func:`check_chart`, or if the file cannot be written.
    """
    check_chart(path)
    from matplotlib.figure import Figure

    bars = _function_bars(report)
    figure = Figure(figsize=(12, 2.5 + 0.25 * max(len(bars), 6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_functions(left, bars)
    _draw_engines(right, report)
    figure.suptitle(f"{report.network} on {report.target}, batch {report.batch}, {report.threads} thread(s)")
    figure.supxlabel(CAVEAT, fontsize=7)
    _write(figure, Path(path))


def _function_bars(report: BenchmarkReport) -> list[tuple[str, float, str]]:
    """Label, milliseconds and colour, the longest first; what is short is put together."""
    seconds: dict[tuple[str, str], float] = {}
    for item in report.functions:
        colour = _BETWEEN_COLOUR if item.layer is None else _LAYER_COLOUR
        key = (item.layer or item.function, colour)
        seconds[key] = seconds.get(key, 0.0) + item.seconds
    ordered = sorted(
        ((name, 1e3 * value, colour) for (name, colour), value in seconds.items()), key=lambda bar: -bar[1]
    )
    rest = ordered[_MOST_BARS:]
    if not rest:
        return ordered
    return [*ordered[:_MOST_BARS], (f"{len(rest)} others", sum(bar[1] for bar in rest), _RIVAL_COLOUR)]


def _draw_functions(axes: Any, bars: list[tuple[str, float, str]]) -> None:
    axes.barh([bar[0] for bar in bars], [bar[1] for bar in bars], color=[bar[2] for bar in bars])
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("ms")
    axes.set_title("by function: layers blue, between layers orange", fontsize=9)


def _draw_engines(axes: Any, report: BenchmarkReport) -> None:
    """The engines' times: on one thread CPU time, which a busy machine changes little."""
    one_thread = report.threads == 1
    engines = [report.own, *report.rivals]
    names = [engine.name for engine in engines]
    series = [engine.cpu_seconds if one_thread else engine.seconds for engine in engines]
    ratios = [engine.cpu_ratio if one_thread else engine.ratio for engine in engines]
    medians = [1e3 * item.median for item in series]
    lower = [1e3 * (item.median - item.quartiles[0]) for item in series]
    upper = [1e3 * (item.quartiles[1] - item.median) for item in series]
    axes.barh(names, medians, color=[_LAYER_COLOUR, *[_RIVAL_COLOUR] * len(report.rivals)])
    _draw_parts(axes, report, names[0], medians[0])
    axes.errorbar(medians, names, xerr=[lower, upper], fmt="none", ecolor="black", capsize=3)
    for name, value, ratio in zip(names, medians, ratios, strict=True):
        text = f" {value:.3g} ms" if ratio is None else f" {value:.3g} ms, {ratio.median:.2f}×"
        axes.annotate(text, (value, name), xytext=(0, 6), textcoords="offset points", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    kind = "CPU time" if one_thread else "time"
    axes.set_xlabel(f"ms of {kind}: median and quartiles of the rounds")
    axes.set_title("whole network", fontsize=9)


def _draw_parts(axes: Any, report: BenchmarkReport, name: str, whole: float) -> None:
    """Which part of our bar is between layers."""
    total = report.seconds_in_layers + report.seconds_between_layers
    if total:
        part = whole * report.seconds_between_layers / total
        axes.barh([name], [part], left=[whole - part], color=_BETWEEN_COLOUR)


def _write(figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, dpi=120)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: the chart cannot be written ({error.strerror}); choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)
