"""Building one point and timing it in turns with the analytic default.

A clock that changes, and other work on the machine, slow both alike: what a trial is worth is the median of the ratios
of neighbouring times.  A round in which another process took the core away says nothing and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

__all__ = ["CANDIDATE", "DEFAULT", "SMALLEST_GAIN", "Paired", "arguments_of", "pair_times", "random_array"]

CANDIDATE, DEFAULT = "candidate", "default"
"""Names of the two functions that are compared."""
BLOCK_SECONDS = 1.5e-3
"""Time of the calls that are timed together: far above the clock's resolution, far below a scheduler's slice."""
MOST_CALLS = 2000
DISTURBED = 1.25
"""Times of a block above so many times its minimum were disturbed."""
FEWEST_ROUNDS = 4
"""Undisturbed rounds below which nobody knows how far times scatter."""
SMALLEST_GAIN = 0.01
"""Gains below this are not worth a record: another core of the kind, or a busier cache, eats them up."""
SEED = 0


@dataclass(frozen=True)
class Paired:
    """Times of a candidate and of the default, measured in turns.

    Attributes
    ----------
    ratio : float
        Median of the ratios of neighbouring times; below 1 where the candidate is faster.
    spread : float
        Interquartile range of the ratios; 1 where too few rounds were undisturbed.
    seconds, default_seconds : float
        Medians of one call.
    """

    ratio: float
    spread: float
    seconds: float
    default_seconds: float

    @classmethod
    def from_times(cls, times: Sequence[float]) -> Paired:
        """Summarise the times of one call of candidate, default, candidate, default, ...

        Parameters
        ----------
        times : sequence of float
            Seconds, at least one of each.

        Returns
        -------
        Paired
        """
        pairs = np.array(times).reshape(-1, 2)
        fastest = pairs.min(axis=0)
        calm = pairs[np.all(pairs <= DISTURBED * fastest, axis=1)]
        if not len(calm):
            calm = fastest[None]
        lower, ratio, upper = np.percentile(calm[:, 0] / calm[:, 1], (25, 50, 75))
        spread = float(upper - lower) if len(calm) >= FEWEST_ROUNDS else 1.0
        candidate, default = np.median(calm, axis=0)
        return cls(float(ratio), spread, float(candidate), float(default))


def arguments_of(function: tirx.PrimFunc) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and data types of the arguments of a function; what is open, such as a batch, is 1.

    Parameters
    ----------
    function : tirx.PrimFunc

    Returns
    -------
    list of (tuple of int, str)
    """
    return [
        (tuple(int(e) if isinstance(e, int | tirx.IntImm) else 1 for e in buffer.shape), str(buffer.dtype))
        for buffer in function.params
    ]


def random_array(shape: Sequence[int], dtype: str) -> np.ndarray:
    """Values for an argument: random words, and numbers that are valid wherever a position is asked for.

    Parameters
    ----------
    shape : sequence of int
    dtype : str

    Returns
    -------
    numpy.ndarray
        Zeros for signed integers, among which are the border classes of rows and columns; numbers in [0.5, 1) for
        floats, among which no denormal one slows anything down.
    """
    random = np.random.default_rng(SEED)
    kind = np.dtype(dtype)
    if kind.kind == "u":
        return random.integers(0, np.iinfo(kind).max, tuple(shape), kind, endpoint=True)
    if kind.kind == "f":
        return random.uniform(0.5, 1, tuple(shape)).astype(kind)
    return np.zeros(tuple(shape), kind)


def pair_times(
    libraries: Mapping[str, Any],
    device: Any,
    arguments: Sequence[Any],
    rounds: int,
    alive: Callable[[], bool] = lambda: True,
) -> list[float]:
    """Time two functions in turns.

    Parameters
    ----------
    libraries : mapping of str to tvm.runtime.Module
        For each of `CANDIDATE` and `DEFAULT` the library with the function of that name, here or on a remote machine.
    device : tvm.runtime.Device
        Of the same machine.
    arguments : sequence of tvm.runtime.Tensor
        On that device.
    rounds : int
        Times of each function.
    alive : callable
        Asked between rounds; False ends the measurement early.

    Returns
    -------
    list of float
        Seconds of one call: candidate, default, candidate, default, ...
    """

    def time(name: str, calls: int) -> float:
        evaluator = libraries[name].time_evaluator(name, device, number=calls, repeat=1)
        return float(evaluator(*arguments).results[0])

    calls = {}
    for name in (CANDIDATE, DEFAULT):
        time(name, 1)  # touches memory and wakes the threads
        calls[name] = max(1, min(MOST_CALLS, math.ceil(BLOCK_SECONDS / max(time(name, 1), 1e-9))))
    times: list[float] = []
    for index in range(rounds):
        if times and not alive():
            break
        order = (CANDIDATE, DEFAULT) if index % 2 == 0 else (DEFAULT, CANDIDATE)
        pair = {name: time(name, calls[name]) for name in order}
        times += [pair[CANDIDATE], pair[DEFAULT]]
    return times
