"""Two levels of data cache, simulated: how many lines come from the second level, and how many from behind it.

A set keeps the lines that were used last, and a line from memory goes to both levels.  Prefetchers and writing back are
left out: what is counted are lines that have to move, not the time that anybody waits for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.script import tirx as T

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
    """One level.

    Parameters
    ----------
    size, ways, line_bytes : int
    """

    def __init__(self, size: int, ways: int, line_bytes: int) -> None:
        # In every set the lines that were used last stand first.
        self.lines = tvm.runtime.tensor(np.full((max(1, size // (ways * line_bytes)), ways), -1, np.int32))

    def missing(self, trace: np.ndarray) -> np.ndarray:
        """Use lines one after another; those that were not there."""
        found, count = tvm.runtime.tensor(np.empty_like(trace)), tvm.runtime.tensor(np.zeros(1, np.int64))
        _compiled()(tvm.runtime.tensor(trace), self.lines, found, count)
        return found.numpy()[: int(count.numpy()[0])]


def simulate(trace: np.ndarray, caches: Mapping[str, float]) -> Misses:
    """Run a trace twice, and count the second time: a network's kernels find their weights where they left them.

    Parameters
    ----------
    trace : numpy.ndarray
        Numbers of lines, int32, in the order of their use.
    caches : mapping of str to float
        Sizes and ways, as a target has them.

    Returns
    -------
    Misses
    """
    first, second = (
        _Cache(int(caches[f"{level}_bytes"]), int(caches[f"{level}_ways"]), int(caches["line_bytes"]))
        for level in ("level1", "level2")
    )
    for _ in range(2):
        behind_first = first.missing(trace)
        behind_second = second.missing(behind_first)
    return Misses(len(behind_first), len(behind_second))


@functools.cache
def _compiled() -> Callable[..., None]:
    """The function below for this machine."""
    module = tvm.IRModule({"main": _missing.with_attr("global_symbol", "main")})
    run: Callable[..., None] = tvm.compile(module, target=tvm.target.Target({"kind": "llvm"}))["main"]
    return run


@T.prim_func(s_tir=True, private=True)
def _missing(trace_handle: T.handle, cache_handle: T.handle, missing_handle: T.handle, count_handle: T.handle) -> None:
    """Look lines up and move them to the front of their sets."""
    length, sets, ways = T.int64(), T.int64(), T.int64()
    trace = T.match_buffer(trace_handle, (length,), "int32")
    cache = T.match_buffer(cache_handle, (sets, ways), "int32")
    missing = T.match_buffer(missing_handle, (length,), "int32")
    count = T.match_buffer(count_handle, (1,), "int64")
    place = T.alloc_buffer((1,), "int64", scope="local")
    for position in range(length):
        place[0] = T.int64(0)
        while place[0] < ways and cache[T.int64(trace[position]) % sets, place[0]] != trace[position]:
            place[0] = place[0] + T.int64(1)
        if place[0] == ways:
            missing[count[0]] = trace[position]
            count[0] = count[0] + T.int64(1)
            place[0] = ways - T.int64(1)
        while place[0] > T.int64(0):
            cache[T.int64(trace[position]) % sets, place[0]] = cache[
                T.int64(trace[position]) % sets, place[0] - T.int64(1)
            ]
            place[0] = place[0] - T.int64(1)
        cache[T.int64(trace[position]) % sets, T.int64(0)] = trace[position]
