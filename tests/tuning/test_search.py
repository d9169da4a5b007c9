"""The search, with times that are made up: what it finds, what it skips, and what it keeps."""

from __future__ import annotations

import builtins
import math

import pytest

from tvmq.errors import ToolchainError
from tvmq.tuning.journal import Journal, Trial
from tvmq.tuning.search import Search, require_cost_model


def distance(point, best) -> float:
    return sum(abs(math.log2(point[name] / best[name])) for name in best)


@pytest.fixture
def search(task, fake_host, tmp_path):
    def make(ratio, of=None, **options):
        kernel = of or task()
        host = fake_host(kernel, ratio)
        return Search(kernel, host, Journal(tmp_path, kernel.key.text, {}), **options), host

    return make


def test_all_of_a_small_space_is_measured(search):
    found, host = search(lambda point: 1.0)
    found.run(10_000)
    texts = [tuple(point.items()) for point in host.measured]
    assert len(texts) == len(set(texts)) == len(found.points) == len(found.journal.trials)


def test_a_needle_is_found_in_a_part_of_the_space(search, task):
    kernel = task(size=8, channels=128)
    points = kernel.kind.space(kernel.function, kernel.target)
    best = points[2 * len(points) // 3]
    found, _ = search(lambda point: 0.8 + 0.05 * distance(point, best), kernel)
    assert len(points) > 60
    found.run(48)
    assert len(found.journal.trials) == 48
    assert min(trial.ratio for trial in found.journal.trials) < 0.8 * 1.03
    knobs, paired = found.finals()
    assert paired.ratio < 0.8 * 1.03 and paired.seconds < paired.default_seconds
    assert knobs in points


def test_the_number_of_trials_is_kept_to(search):
    found, host = search(lambda point: 1.0)
    found.run(11)
    assert len(found.journal.trials) == len(host.measured) == 11


def test_a_second_search_goes_on_where_the_first_stopped(search):
    ratio = {"value": 0.9}
    first, _ = search(lambda point: ratio["value"])
    first.run(5)
    second, host = search(lambda point: ratio["value"])
    second.run(9)
    assert len(host.measured) == 4
    knobs = [tuple(trial.knobs.items()) for trial in second.journal.trials]
    assert len(knobs) == len(set(knobs)) == 9


def test_what_cannot_be_built_is_a_trial_and_never_the_best(search):
    found, _ = search(lambda point: None if point["pixel_tile"] == 1 else 0.5 + 0.1 * point["pixel_tile"])
    found.run(10_000)
    failed = [trial for trial in found.journal.trials if trial.ratio is None]
    assert failed and all(trial.knobs["pixel_tile"] == 1 for trial in failed)
    knobs, _ = found.finals()
    assert knobs["pixel_tile"] == 2


@pytest.mark.parametrize("ratio", [1.0, 0.995])
def test_nothing_is_kept_that_is_not_clearly_faster_than_the_default(search, ratio):
    found, _ = search(lambda point: ratio)
    found.run(6)
    assert found.finals() is None


def test_the_finals_decide_and_not_a_lucky_trial(search):
    found, _ = search(lambda point: 1.1)
    lucky = [Trial(point, 0.5, 0.5e-5, 1e-5) for point in found.points[1:4]]
    for trial in lucky:
        found.journal.add(trial)
    assert found.finals() is None


def test_a_default_that_cannot_be_measured_ends_the_search(search):
    found, _ = search(lambda point: None)
    with pytest.raises(ToolchainError, match="conv 3x3 4x4, 64 to 64, w1a1: could not be measured on host: LLVM"):
        found.default_times()


def test_an_interrupted_round_is_no_trial(search):
    alive = {"value": True}

    def ratio(point):
        alive["value"] = False
        return 1.0

    found, host = search(ratio, alive=lambda: alive["value"])
    found.run(20)
    assert host.measured and found.journal.trials == []


def test_trials_of_points_that_are_no_longer_in_the_space_do_no_harm(search):
    found, _ = search(lambda point: 1.0)
    found.journal.add(Trial({"pixel_tile": 99}, 2.0, 2e-5, 1e-5))
    found.run(4)
    assert len(found.journal.trials) == 4


def test_a_missing_cost_model_is_explained(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name == "xgboost":
            raise ImportError(name)
        return original(name, *arguments, **options)

    require_cost_model()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ToolchainError, match=r"tuning needs xgboost; install it with `pip install 'tvmq\[tune\]'`"):
        require_cost_model()
