"""Wall-clock times of repeated runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from tvmq.errors import InputError

__all__ = ["Timing", "measure", "run_seconds"]

# The first runs touch memory for the first time, start the threads and wake the clock up.
_WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Timing:
    """Times of one piece of work that was run several times.

    Attributes
    ----------
    median, minimum, maximum : float
        Seconds.
    spread : float
        Interquartile range divided by the median: how far the middle half of the runs lies apart.  Above about 0.1
        the machine was busy with something else, and small differences mean nothing.
    repeat : int
        Number of runs.

    Raises
    ------
    InputError
        If the numbers cannot belong to a measurement.
    """

    median: float
    minimum: float
    maximum: float
    spread: float
    repeat: int

    def __post_init__(self) -> None:
        """Reject numbers in an impossible order."""
        if self.repeat < 1:
            raise InputError(f"repeat must be 1 or more, not {self.repeat}")
        if not 0 <= self.minimum <= self.median <= self.maximum or not self.spread >= 0:
            raise InputError(f"not a timing: minimum {self.minimum}, median {self.median}, maximum {self.maximum}")

    @classmethod
    def from_seconds(cls, seconds: list[float]) -> Timing:
        """Summarise the times of single runs.

        Parameters
        ----------
        seconds : list of float
            One number per run.

        Returns
        -------
        Timing

        Raises
        ------
        InputError
            If there is no run.
        """
        if not seconds:
            raise InputError("repeat must be 1 or more, not 0")
        lower, median, upper = np.percentile(seconds, (25, 50, 75))
        spread = (upper - lower) / median if median else 0.0
        return cls(float(median), min(seconds), max(seconds), float(spread), len(seconds))

    def __str__(self) -> str:
        """``0.412 ms (spread 2 %, 30 runs)``."""
        return f"{self.median * 1e3:.3f} ms (spread {self.spread:.0%}, {self.repeat} runs)".replace("%", " %")


def measure(call: Callable[[], object], repeat: int) -> Timing:
    """Time a function.

    Parameters
    ----------
    call : callable
        What to time; it is also called a few times beforehand, untimed.
    repeat : int
        Number of timed calls.

    Returns
    -------
    Timing

    Raises
    ------
    InputError
        If ``repeat`` is below 1.
    """
    return Timing.from_seconds(run_seconds(call, repeat))


def run_seconds(call: Callable[[], object], repeat: int) -> list[float]:
    """The times of single runs.

    Parameters
    ----------
    call : callable
        What to time; it is also called a few times beforehand, untimed.
    repeat : int
        Number of timed calls.

    Returns
    -------
    list of float
        Seconds, in the order of the calls.

    Raises
    ------
    InputError
        If ``repeat`` is below 1.
    """
    if repeat < 1:
        raise InputError(f"repeat must be 1 or more, not {repeat}")
    for _ in range(_WARM_UP_RUNS):
        call()
    seconds = []
    for _ in range(repeat):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return seconds
