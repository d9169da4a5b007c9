"""Two levels of cache against traces whose misses can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tvmq.tuning.caches import Misses, simulate

CACHES = {"line_bytes": 64, "level1_bytes": 512, "level1_ways": 2, "level2_bytes": 2048, "level2_ways": 4}
"""Eight lines in four sets, and 32 lines in eight sets."""


@pytest.mark.parametrize(
    ("lines", "misses"),
    [
        (range(8), Misses(0, 0)),  # all stay
        (range(12), Misses(12, 0)),  # three lines per set push each other out
        (range(33), Misses(33, 5)),  # in one set of the second level as well
        ([0, 4, 0, 8, 0], Misses(2, 0)),  # 0 is used more lately than 4 and 8
        ([0, 1, 0, 1], Misses(0, 0)),
    ],
)
def test_misses_of_the_second_run(lines, misses):
    assert simulate(np.array(list(lines), np.int32), CACHES) == misses
