"""``tvmq tune``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, progress, progress_bar
from tvmq.report.table import duration

if TYPE_CHECKING:
    from tvmq.tuning import TuneProgress, TuneResult

__all__ = ["tune_command"]

_INTERRUPTED = 130  # as shells have it, and typer for the other commands


@answers
def tune_command(
    source: Annotated[Path, typer.Argument(help="The network: an .onnx or .tvmq file.", metavar="SOURCE")],
    target: Annotated[str, typer.Option("--target", metavar="NAME", help="What to tune for.")] = "host",
    trials: Annotated[
        int,
        typer.Option(
            "--trials",
            min=1,
            help="Schedules to measure for each distinct kernel; kernels that take less than a twentieth of the time "
            "get a quarter.",
        ),
    ] = 64,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="host|simulate|ssh://USER@HOST[:PORT]|tracker://ADDRESS:PORT/KEY",
            help="Where to measure: here; in a model of the core (simulate), which needs no board, ranks schedules and "
            "keeps the best five for a later run on one; on a board; or on machines that are registered at a tracker "
            "of TVM. Whoever reaches TVM's server can run anything there: on a board it listens on 127.0.0.1 only, is "
            "reached through ssh only, and ends with this command. Let trackers listen on 127.0.0.1 only, too.",
        ),
    ] = "host",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Folder of tuned schedules to add to; `tvmq compile --schedules DIR` uses it. [default: your own, "
            "which `tvmq compile` uses by itself]",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what is already tuned once more.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Search faster schedules for the kernels of a network, by measuring them.

    Every trial is timed in turns with the schedule that the kernel has anyway, and only what is faster for certain is
    kept: tuning never makes a network slower, and never changes its results. Kernels are tuned one after another, those
    that take most time first. Ctrl-C or a crash loses nothing: the same command goes on where it stopped. Tuning takes
    about half a second per trial; close other programs, which disturb the times.

    A board needs TVM's Python runtime; `tvmq doctor ssh://USER@HOST` says how to install it. Times that were taken
    while the board was throttled are discarded, and taken again once it has recovered.

    To contribute what you found: clone the repository of tvmq, run this command with --output schedules in the clone,
    commit the file schedules/TARGET/conv2d.json that it writes, and open a pull request with it. The file says by
    itself what was measured where and with which versions.
    """
    tvmq.get_target(target)  # a misspelt name should fail before the slow part
    with progress(f"loading {source}"):
        model = tvmq.load(source)
    with _explained() as reached, progress_bar("preparing") as show:

        def update(moment: TuneProgress) -> None:
            if moment.resumed and not any(known.number == moment.number for known in reached):
                _note(f"{moment.kernel}: going on after {moment.resumed} trials of an earlier run")
            reached.append(moment)
            show(_line(moment), moment.fraction, moment.seconds_left)

        result = tvmq.tune(model, target=target, trials=trials, on=on, output=output, again=again, progress=update)
    return Answer(result.as_dict(), f"{result}{_where(result, output)}")


def _line(moment: TuneProgress) -> str:
    default = 1e6 * moment.default_seconds
    best = "" if moment.best_ratio is None else f", best {moment.best_ratio * default:.1f} µs"
    return (
        f"kernel {moment.number} of {moment.count}, {moment.kernel}: trial {moment.trial} of {moment.trials}{best}, "
        f"default {default:.1f} µs"
    )


def _where(result: TuneResult, output: Path | None) -> str:
    if not result.kernels:
        return ""
    option = "" if output is None else f" --schedules {output}"
    known = sum(kernel.known for kernel in result.kernels)
    before = f"; {known} of {len(result.kernels)} kernels were tuned before, --again repeats them" if known else ""
    return f"\n\nrecords in {', '.join(result.files)}{before}; `tvmq compile SOURCE{option}` uses them"


def _note(text: str) -> None:
    print(f"tvmq: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _explained() -> Iterator[list[TuneProgress]]:
    """Say on an interruption how to go on; gives a list to keep the progress in."""
    reached: list[TuneProgress] = []
    try:
        yield reached
    except KeyboardInterrupt:
        _note(_interruption(reached))
        raise typer.Exit(_INTERRUPTED) from None


def _interruption(reached: list[TuneProgress]) -> str:
    if not reached:
        return "interrupted before the first trial"
    last = reached[-1]
    return (
        f"interrupted at kernel {last.number} of {last.count} after {last.trial} of its trials, about "
        f"{duration(last.seconds_left)} before the end; the same command goes on there"
    )
