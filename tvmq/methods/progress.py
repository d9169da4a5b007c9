"""How far a long computation is, and how long it will still take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Estimator", "Progress"]

TELLING = 0.05
"""Once so much of a kind of work is done, its own pace is better than what was expected."""


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
    """Corrects the expected time of planned work by the time of the work that is done.

    Parameters
    ----------
    expected : mapping of str to float
        Seconds that each kind of work is expected to take.
    report : callable, optional
        Called with a :class:`Progress` after every piece of work.
    """

    def __init__(self, expected: Mapping[str, float], report: Callable[[Progress], None] | None = None) -> None:
        self._expected = dict(expected)
        self._done = dict.fromkeys(expected, 0.0)
        self._passed = dict.fromkeys(expected, 0.0)
        self._report = report

    def finished(self, kind: str, expected: float, seconds: float, layer: str) -> None:
        """Count a piece of work and report.

        Parameters
        ----------
        kind : str
        expected, seconds : float
            What it was expected to take, and what it took.
        layer : str
            What it was done for.
        """
        self._done[kind] += expected
        self._passed[kind] += seconds
        if self._report is None:
            return
        left = self.seconds_left()
        passed = sum(self._passed.values())
        self._report(Progress(layer, passed / max(passed + left, 1e-9), left))

    def seconds_left(self) -> float:
        """Estimated time of what is planned and not done."""
        return sum(
            max(0.0, expected - self._done[kind]) * self._pace(kind) for kind, expected in self._expected.items()
        )

    def _pace(self, kind: str) -> float:
        """Seconds that a second of expected work takes."""
        if self._done[kind] < TELLING * self._expected[kind] or not self._done[kind]:
            return 1.0
        return self._passed[kind] / self._done[kind]
