"""A line that counts thresholds counts them at every integer."""

from __future__ import annotations

import numpy as np
import pytest

from tvmq.dialect import line_index
from tvmq.transform.fold_epilogues import ALWAYS, NEVER
from tvmq.transform.level_lines import LevelLines, level_lines


def staircase(count: int, step: float, channels: int, seed: int = 0) -> np.ndarray:
    """Thresholds of equal steps, each channel with its own step and offset."""
    random = np.random.default_rng(seed)
    steps = step * np.exp(random.normal(size=channels) / 3)
    offset = random.normal(size=channels) * step * count / 2
    levels = np.ceil((np.arange(1, count + 1)[:, None] - 0.5) * steps + offset).astype(np.int32)
    return np.stack([levels, levels - 5], axis=1)[:, None]


def counts(thresholds: np.ndarray, values: np.ndarray) -> np.ndarray:
    return (values[:, None, None, None] >= thresholds[:, None]).sum(axis=0)


def heights(lines: LevelLines, values: np.ndarray, count: int) -> np.ndarray:
    every = np.broadcast_to(values[:, None, None, None], (len(values), *lines.intercept.shape))
    return line_index(every, lines.slope, lines.intercept, count)


@pytest.mark.parametrize(
    ("count", "step", "arithmetic"),
    [(4, 0.3, "float32"), (7, 20, "float32"), (15, 100, "float32"), (255, 9, "float32"), (255, 400, "float64")],
)
def test_lines_count_like_comparisons(count, step, arithmetic):
    thresholds = staircase(count, step, 64)
    bound = int(2 * count * step) + 100
    lines = level_lines(thresholds, -bound, bound)
    assert lines is not None and lines.arithmetic == arithmetic
    values = np.unique(np.linspace(-bound, bound, 4001).astype(np.int64))
    np.testing.assert_array_equal(heights(lines, values, len(thresholds)), counts(thresholds, values))


def test_thresholds_that_every_value_reaches_or_none():
    thresholds = staircase(15, 10, 3)
    thresholds[..., 0], thresholds[..., 1] = NEVER, ALWAYS
    lines = level_lines(thresholds, -1000, 1000)
    assert lines is not None
    values = np.arange(-1000, 1001)
    np.testing.assert_array_equal(heights(lines, values, len(thresholds)), counts(thresholds, values))


def test_thresholds_beyond_the_range_do_not_bend_the_line():
    """Sums of XOR are never positive, so that the upper thresholds of a channel may be out of reach."""
    thresholds = 10 * np.arange(-10, 5, dtype=np.int32)[:, None, None, None]
    unreachable = np.where(thresholds > 0, NEVER, thresholds).astype(np.int32)
    assert level_lines(unreachable, -1000, 1000) is None
    lines = level_lines(unreachable, -1000, 0)
    assert lines is not None
    values = np.arange(-1000, 1)
    np.testing.assert_array_equal(heights(lines, values, 15), counts(unreachable, values))


@pytest.mark.parametrize("place", [0, 7, 14])
def test_uneven_steps_have_no_line(place):
    thresholds = 10 * np.arange(1, 16, dtype=np.int32)[:, None, None, None]
    assert level_lines(thresholds, -1000, 1000) is not None
    thresholds[place] += 2 if place == 14 else -2
    assert level_lines(thresholds, -1000, 1000) is None


def test_few_thresholds_are_compared():
    assert level_lines(staircase(3, 10, 4), -1000, 1000) is None
    assert level_lines(staircase(4, 10, 4), -1000, 1000) is not None
