"""Every error a user can meet, in one place.

A message names the file or the layer, says what is wrong, and says what to do next.  The command line prints it
as one line; Python users catch :class:`TvmqError` or one of its kinds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BoardError",
    "BundleError",
    "InputError",
    "ModelError",
    "RecordError",
    "TargetError",
    "ToolchainError",
    "TvmqError",
    "UnsupportedOperatorError",
    "nearest",
]


class TvmqError(Exception):
    """Base of all errors raised by tvmq on purpose."""


class ModelError(TvmqError):
    """A source file or module that cannot be turned into a model."""


class UnsupportedOperatorError(ModelError):
    """A network that contains an operator which tvmq cannot compile."""


class InputError(TvmqError, ValueError):
    """Arrays of the wrong number, shape or dtype, or a configuration value out of range."""


class BundleError(TvmqError):
    """A ``.tvmq`` file that is truncated, damaged, of another version, or built for another core."""


class BoardError(TvmqError):
    """A board that cannot be reached, that does not fit, or on which something went wrong."""


class RecordError(TvmqError):
    """A file of tuned schedules that is damaged, or a place where none can be written."""


class TargetError(TvmqError):
    """An unknown target, or one that this machine cannot build for or run."""


class ToolchainError(TvmqError):
    """A compiler, linker or emulator that is missing; the message names the package to install."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A suggestion to append to an error message.

    Parameters
    ----------
    word : str
        What the user wrote.
    choices : iterable of str
        What would have been valid.

    Returns
    -------
    str
        ``"; did you mean 'x'?"``, or ``""`` when nothing is close.
    """
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
