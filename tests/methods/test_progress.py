"""The estimate of the time left: what was expected, corrected by what was seen."""

import numpy as np
import pytest

from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.layerwise import SideBySide
from tvmq.methods.linear_layers import columns, shared_weights
from tvmq.methods.progress import Estimator
from tvmq.methods.trials import expected_seconds

from .networks import Convolutions, make


def test_what_was_expected_counts_until_the_work_tells():
    moments = []
    estimator = Estimator({"walks": 100.0, "sums": 10.0}, moments.append)
    assert estimator.seconds_left() == 110.0
    estimator.finished("walks", 4.0, 40.0, "first")  # a twenty-fifth: too little to tell
    assert estimator.seconds_left() == 96.0 + 10.0
    estimator.finished("walks", 6.0, 10.0, "second")  # ten seconds of work took fifty
    assert estimator.seconds_left() == 90.0 * 5.0 + 10.0
    assert [moment.layer for moment in moments] == ["first", "second"]
    assert moments[-1].fraction == pytest.approx(50.0 / (50.0 + 460.0))


def test_work_beyond_the_plan_is_not_negative():
    estimator = Estimator({"walks": 1.0}, lambda moment: None)
    estimator.finished("walks", 2.0, 2.0, "layer")
    assert estimator.seconds_left() == 0.0


@pytest.mark.parametrize("gathered", [True, False])
def test_every_weight_is_tried_and_the_networks_stay_where_they_are(gathered):
    _, model, data = make(Convolutions)
    weights = shared_weights(model)
    networks = SideBySide(model, weights, [(data,)], 2**30)
    rows = {weight: len(data) * weight.uses[0].rows_per_sample for weight in weights}
    gathers = {weight: gathered and weight.groups == 1 for weight in weights}
    seen = []

    def gather(use, x):
        seen.append((use.variable.name, columns(use, x).shape))

    expected = expected_seconds(networks, weights, GPFQ(), rows, gathers, gather)
    assert list(expected) == weights
    assert all(seconds.walks > 0 and seconds.sums > 0 and seconds.forward >= 0 for seconds in expected.values())
    assert sum(seconds.forward for seconds in expected.values()) > 0
    assert {name for name, _ in seen} == {weight.name for weight in weights}
    assert len(seen) == 2 * len(weights)  # one sample, twice
    (first,) = next(networks.inputs(weights[0]))
    np.testing.assert_array_equal(first.analog, data)
    networks.close()
