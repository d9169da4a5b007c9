"""What all commands have in common: how they answer, and how they fail."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmq.errors import TvmqError
from tvmq.report.table import duration

__all__ = ["Answer", "Debug", "Json", "answers", "byte_size", "progress", "progress_bar", "text_table"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class Answer:
    """What a command found out.

    Attributes
    ----------
    data : dict or list
        For ``--json``.
    text : str
        For people.
    failure : str or None
        Why the command failed all the same; the answer is printed first.
    """

    data: dict[str, Any] | list[Any]
    text: str
    failure: str | None = None


def answers(command: Callable[..., Answer]) -> Callable[..., None]:
    """Turn a function that returns an :class:`Answer` into a command that prints it.

    Errors become one line on standard error and exit status 1.  The function's own ``json`` and ``debug`` parameters
    are read here, so every command has to have both.

    Parameters
    ----------
    command : callable
        A function with the signature of the command.

    Returns
    -------
    callable
        The command for typer, with the same signature.
    """

    @functools.wraps(command)
    def run(*args: Any, json: bool, debug: bool, **options: Any) -> None:
        try:
            # Whatever a library prints on the way must not get into the JSON.
            with _plain_warnings(), contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
                answer = command(*args, json=json, debug=debug, **options)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            _fail(_message(error, debug))
        _print(answer, json)
        if answer.failure is not None:
            _fail(answer.failure)

    return run


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print a warning that is meant for the user as one line, without the place in the code that it came from."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            print(f"tvmq: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _print(answer: Answer, as_json: bool) -> None:
    print(json.dumps(answer.data, indent=2, ensure_ascii=False) if as_json else answer.text, flush=True)


def _fail(message: str) -> None:
    print(f"tvmq: error: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(1)


def _message(error: Exception, debug: bool) -> str:
    """One line; an error that tvmq did not raise on purpose says what kind it is and how to see more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, TvmqError):
        return " ".join(lines)
    kind = type(error).__name__
    text = f"{kind}: {lines[0]}" if lines else kind
    return text if debug else f"{text} (use --debug for the traceback)"


@contextlib.contextmanager
def progress(doing: str) -> Iterator[None]:
    """Show on standard error what takes its time, while it does, if a person is watching.

    Parameters
    ----------
    doing : str
        Such as ``"compiling for raspberry-pi-4"``.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(doing):
        yield


@contextlib.contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[str, float, float | None], None]]:
    """Show on standard error how far a long command is, if a person is watching.

    Parameters
    ----------
    doing : str
        Such as ``"quantizing"``, until the first update.

    Yields
    ------
    callable
        Takes a text, the fraction that is done, 0 to 1, and the seconds that are left, or None.
    """
    if not sys.stderr.isatty():
        yield lambda text, fraction, seconds_left: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # Layer names may have brackets, which are markup to rich.
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:3.0f} %")]
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=1.0, left="")

        def update(text: str, fraction: float, seconds_left: float | None) -> None:
            left = "" if seconds_left is None else f"{duration(seconds_left)} left"
            bar.update(task, description=text, completed=fraction, left=left)

        yield update


def text_table(rows: list[list[str]]) -> str:
    """Left-aligned columns, the first row being the header.

    Parameters
    ----------
    rows : list of list of str
        All of the same length.

    Returns
    -------
    str
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def byte_size(path: Path) -> str:
    """The size of a file, for people.

    Parameters
    ----------
    path : pathlib.Path
        An existing file.

    Returns
    -------
    str
        Such as ``"23.4 kB"``.
    """
    size = path.stat().st_size
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"
