"""Holding this process on some of the machine's processors while something is measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tvmq.errors import InputError

__all__ = ["choose_processors", "pinned"]

_SYSTEM = Path("/sys/devices/system/cpu")
_THREADS = Path("/proc/self/task")


def choose_processors(count: int) -> list[int]:
    """Processors to run on: of different cores, as long as there are enough.

    Parameters
    ----------
    count : int
        How many.

    Returns
    -------
    list of int
        Numbers of processors that this process may use.

    Raises
    ------
    InputError
        If it may use fewer.
    """
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(available):
        raise InputError(f"{count} threads, but this process may use 1 to {len(available)} processors")
    cores: dict[str, list[int]] = {}
    for processor in available:
        cores.setdefault(_core(processor), []).append(processor)
    # One of each core, then the second ones.
    ranked = sorted((position, first) for group in cores.values() for position, first in enumerate(group))
    return [processor for _, processor in ranked[:count]]


def _core(processor: int) -> str:
    """What the processors of one core have in common."""
    topology = _SYSTEM / f"cpu{processor}" / "topology"
    try:
        return f"{(topology / 'physical_package_id').read_text()}/{(topology / 'core_id').read_text()}"
    except OSError:
        return f"processor {processor}"


@contextlib.contextmanager
def pinned(processors: list[int]) -> Iterator[None]:
    """Hold all threads of this process on some processors, also those that start meanwhile.

    Parameters
    ----------
    processors : list of int
        See :func:`choose_processors`.
    """
    before = os.sched_getaffinity(0)
    _hold(set(processors))
    try:
        yield
    finally:
        _hold(before)


def _hold(processors: set[int]) -> None:
    for thread in _THREADS.iterdir():
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            os.sched_setaffinity(int(thread.name), processors)
