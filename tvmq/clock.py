"""The clock of the core, measured: cycles per second that a chain of dependent additions sees.

A number is added to the register and another one exclusive-ored with it, in turn.  Each step needs the result of the
one before, and takes one cycle on every core that we know; no compiler can shorten the chain, as the two operations do
not mix.  So steps per second are cycles per second, less what the core spent on other processes.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T

from tvmq.target import Target

__all__ = ["Clock"]

_TURNS = 1 << 14
_UNROLLED = 16
STEPS = 2 * _TURNS * _UNROLLED
"""Cycles of one measurement: a fraction of a millisecond."""


@T.prim_func(s_tir=True)
def _chain(operands: T.handle, result: T.handle) -> None:
    T.func_attr({"tirx.noalias": True})
    given = T.match_buffer(operands, (2,), "uint32")
    end = T.match_buffer(result, (1,), "uint32")
    state = T.sblock_alloc_buffer((1,), "uint32", scope="local")
    state[0] = T.uint32(1)
    for _turn in T.serial(_TURNS):
        for _step in T.unroll(_UNROLLED):
            state[0] = T.bitwise_xor(state[0] + given[0], given[1])
    end[0] = state[0]


class Clock:
    """Measures the clock of the core that it is called on.

    Parameters
    ----------
    core : Target
        A target that this machine can run.
    """

    def __init__(self, core: Target) -> None:
        self._run: Any = tvm.compile(_chain, target=core.tvm_target())["_chain"]
        self._operands = tvm.runtime.tensor(np.array([0x9E3779B9, 0x7F4A7C15], np.uint32))
        self._end = tvm.runtime.tensor(np.zeros(1, np.uint32))
        self.hertz()  # the first call is slower

    def hertz(self) -> float:
        """Cycles per second, now."""
        start = perf_counter()
        self._run(self._operands, self._end)
        return STEPS / (perf_counter() - start)

    def end(self) -> int:
        """What the last chain ended in, which proves that it was run."""
        return int(self._end.numpy()[0])
