from __future__ import annotations

import pytest

from tvmq.errors import InputError
from tvmq.runtime.timing import Timing, measure


def test_summary_of_known_seconds():
    timing = Timing.from_seconds([4.0, 1.0, 2.0, 3.0, 5.0])
    assert timing == Timing(median=3.0, minimum=1.0, maximum=5.0, spread=2.0 / 3.0, repeat=5)
    assert str(timing) == "3000.000 ms (spread 67 %, 5 runs)"


def test_measure_warms_up_first():
    calls = []
    timing = measure(lambda: calls.append(1), repeat=4)
    assert timing.repeat == 4
    assert len(calls) > 4


@pytest.mark.parametrize("repeat", [0, -1])
def test_measure_needs_a_run(repeat):
    with pytest.raises(InputError, match="repeat must be 1 or more"):
        measure(lambda: None, repeat=repeat)


@pytest.mark.parametrize(
    ("median", "minimum", "maximum", "spread"), [(1, 2, 3, 0), (3, 1, 2, 0), (2, -1, 3, 0), (2, 1, 3, -1)]
)
def test_impossible_numbers_are_refused(median, minimum, maximum, spread):
    with pytest.raises(InputError, match="not a timing"):
        Timing(median, minimum, maximum, spread, 1)
