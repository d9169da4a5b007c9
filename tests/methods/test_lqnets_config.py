from __future__ import annotations

import pytest

from tvmq.errors import InputError
from tvmq.methods import LQNets


def test_the_defaults_are_the_papers():
    config = LQNets()
    assert (config.weights, config.activations) == (2, 2)
    assert (config.first_layer, config.last_layer, config.skip) == ("float", "float", ())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": 5}, r"LQNets: weights=5 is not supported; use 1 to 4 \(bits\)"),
        ({"weights": "ternary"}, "weights='ternary' is not supported"),
        ({"weights": None}, "weights=None is not supported"),
        ({"weights": True}, "weights=True is not supported"),
        ({"activations": 0}, r"activations=0 is not supported; use None or 1 to 4 \(bits\)"),
        ({"first_layer": "int8"}, "first_layer='int8' is not supported; use one of 'float', 'input8', 'quantized'"),
        ({"last_layer": "input8"}, "last_layer='input8' is not supported; use one of 'float', 'quantized'"),
        ({"skip": "conv1"}, "skip='conv1' is not supported; use a tuple"),
    ],
)
def test_illegal_values_are_refused_with_the_legal_ones(fields, message):
    with pytest.raises(InputError, match=message):
        LQNets(**fields)
