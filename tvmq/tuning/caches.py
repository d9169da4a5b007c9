"""Two levels of data cache, simulated: how many lines come from the second level, and how many from behind it.

A set keeps the lines that were used last, and a line from memory goes to both levels.  Prefetchers and writing back are
left out: what is counted are lines that have to move, not the time that anybody waits for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Misses", "simulate"]


@dataclass(frozen=True)
class Misses:
    """Lines that are not where they are looked for.

    Attributes
    ----------
    level1, level2 : int
        Lines missing in the first level, and those of them that are missing in the second one too.
    """

    level1: int
    level2: int


class _Cache:
    """One level."""

    def __init__(self, size: int, ways: int, line_bytes: int) -> None:
        self.ways = ways
        # The order of a dictionary's keys is that of their use.
        self.sets: list[dict[int, None]] = [{} for _ in range(max(1, size // (ways * line_bytes)))]

    def touch(self, line: int) -> bool:
        """Use a line; whether it was there."""
        place = self.sets[line % len(self.sets)]
        if line in place:
            del place[line]
            place[line] = None
            return True
        if len(place) == self.ways:
            del place[next(iter(place))]
        place[line] = None
        return False


def simulate(trace: Iterable[np.ndarray], caches: Mapping[str, float]) -> Misses:
    """Run a trace twice, and count the second time: a network's kernels find their weights where they left them.

    Parameters
    ----------
    trace : iterable of numpy.ndarray
        Numbers of lines in the order of their use.
    caches : mapping of str to float
        Sizes and ways, as a target has them.

    Returns
    -------
    Misses
    """
    lines = [line for part in trace for line in part.tolist()]
    first, second = (
        _Cache(int(caches[f"{level}_bytes"]), int(caches[f"{level}_ways"]), int(caches["line_bytes"]))
        for level in ("level1", "level2")
    )
    misses = [0, 0]
    for is_counted in (False, True):
        for line in lines:
            if not first.touch(line):
                hit = second.touch(line)
                misses[0] += is_counted
                misses[1] += is_counted and not hit
    return Misses(*misses)
