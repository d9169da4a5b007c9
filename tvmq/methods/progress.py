"""How far a long computation is, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimator", "Progress"]

PROBE = 512
"""Rows and columns of the matrix product that is timed to make a first guess."""


@dataclass(frozen=True)
class Progress:
    """A moment of a computation.

    Attributes
    ----------
    layer : str
        The layer that is worked on.
    fraction : float
        Of the estimated time that has passed, 0 to 1.
    seconds_left : float
        Estimated.
    """

    layer: str
    fraction: float
    seconds_left: float


class Estimator:
    """Estimates the time of planned work from the speed of the work that is done.

    Parameters
    ----------
    planned : mapping of str to float
        Floating-point operations of each kind of work.
    precision : mapping of str to str
        The element type that each kind computes in, for a first guess of its speed.
    report : callable, optional
        Called with a :class:`Progress` after every piece of work.
    """

    def __init__(
        self,
        planned: Mapping[str, float],
        precision: Mapping[str, str],
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        self.planned = dict(planned)
        self.done = dict.fromkeys(planned, 0.0)
        self.seconds = dict.fromkeys(planned, 0.0)
        self._probed = {kind: _product_speed(precision[kind]) for kind in planned} if report is not None else {}
        self._report = report

    def finished(self, kind: str, operations: float, seconds: float, layer: str) -> None:
        """Count a piece of work and report."""
        self.done[kind] += operations
        self.seconds[kind] += seconds
        if self._report is None:
            return
        left = self.seconds_left()
        passed = sum(self.seconds.values())
        self._report(Progress(layer, passed / max(passed + left, 1e-9), left))

    def seconds_left(self) -> float:
        """Estimated time of what is planned and not done."""
        return sum(
            max(0.0, self.planned[kind] - self.done[kind]) / self._speed(kind)
            for kind in self.planned
            if self.planned[kind] > self.done[kind]
        )

    def _speed(self, kind: str) -> float:
        """Operations per second: as probed, until a twentieth of the work tells better."""
        if self.done[kind] < 0.05 * self.planned[kind] or not self.seconds[kind]:
            return self._probed[kind]
        return self.done[kind] / self.seconds[kind]


def _product_speed(dtype: str) -> float:
    """Operations per second of a matrix product."""
    a = np.ones((PROBE, PROBE), dtype)
    a @ a
    start = time.perf_counter()
    a @ a
    return 2.0 * PROBE**3 / (time.perf_counter() - start)
