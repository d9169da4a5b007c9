"""What a trial is worth."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import tirx

from tvmq.kernels.conv2d import conv2d
from tvmq.tuning.measure import CANDIDATE, DEFAULT, Paired, arguments_of, pair_times, random_array


def test_a_clock_that_drifts_changes_nothing():
    clock = np.linspace(1, 1.2, 20)
    times = np.stack([0.9e-5 * clock, 1e-5 * clock], axis=1).ravel()
    paired = Paired.from_times(times.tolist())
    assert paired.ratio == pytest.approx(0.9) and paired.spread == pytest.approx(0)
    assert paired.default_seconds == pytest.approx(1.1e-5)


@pytest.mark.parametrize("disturbed", [0, 1])
def test_rounds_in_which_another_process_had_the_core_are_left_out(disturbed):
    pairs = np.tile([0.9e-5, 1e-5], (9, 1))
    pairs[2:7, disturbed] *= 3
    paired = Paired.from_times(pairs.ravel().tolist())
    assert paired.ratio == pytest.approx(0.9) and paired.spread == pytest.approx(0)


def test_nobody_knows_the_spread_of_few_rounds():
    pairs = np.tile([1e-5, 1e-5], (7, 1))
    pairs[3:, 0] *= 2
    assert Paired.from_times(pairs.ravel().tolist()).spread == 1
    pairs[:4, 1] *= 2
    pairs[3:, 0] *= 2
    paired = Paired.from_times(pairs.ravel().tolist())  # no round is undisturbed
    assert paired.ratio == pytest.approx(1) and paired.spread == 1


def test_the_spread_is_that_of_the_ratios():
    ratios = np.linspace(0.9, 1.0, 21)
    pairs = np.stack([1e-5 * ratios, np.full(21, 1e-5)], axis=1)
    paired = Paired.from_times(pairs.ravel().tolist())
    assert paired.ratio == pytest.approx(0.95) and paired.spread == pytest.approx(0.05)


def test_arguments(task):
    function = task().function
    shapes = arguments_of(function)
    assert len(shapes) == 6 and shapes[0][0][:3] == (1, 4, 4) and shapes[2] == ((4,), "int32")
    workload = task().kind.key(function, task().target)
    assert workload.shape["width"] == 4


def test_what_is_open_is_one(task):
    from tvmq.kernels.workload import Conv2dWorkload

    workload = Conv2dWorkload.from_json(str(task().function.attrs["tvmq.workload"]))
    assert arguments_of(conv2d(workload, tirx.Var("n", "int64"))) == arguments_of(conv2d(workload, 1))


def test_values_of_arguments():
    words = random_array((64,), "uint32")
    assert words.dtype == np.uint32 and 0.4 < np.unpackbits(words.view(np.uint8)).mean() < 0.6
    assert not random_array((3, 4), "int32").any()  # a valid border class
    floats = random_array((5,), "float32")
    assert floats.dtype == np.float32 and (floats >= 0.5).all() and (floats < 1).all()


def test_times_are_taken_in_turns():
    calls = []

    class Library:
        def time_evaluator(self, name, device, number, repeat):
            def evaluate(*arguments):
                calls.append(name)
                return type("Result", (), {"results": [{CANDIDATE: 2e-3, DEFAULT: 1e-3}[name]]})

            return evaluate

    library = Library()
    times = pair_times({CANDIDATE: library, DEFAULT: library}, tvm.cpu(), [], 3)
    assert times == [2e-3, 1e-3] * 3
    assert calls[4:] == [CANDIDATE, DEFAULT, DEFAULT, CANDIDATE, CANDIDATE, DEFAULT]
    assert len(pair_times({CANDIDATE: library, DEFAULT: library}, tvm.cpu(), [], 3, lambda: False)) == 2
