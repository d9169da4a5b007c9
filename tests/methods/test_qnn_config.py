from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from tvmq.errors import InputError
from tvmq.methods import QNN


def test_the_defaults_are_the_papers():
    config = QNN()
    assert (config.weights, config.activations) == (1, 1)
    assert (config.first_layer, config.last_layer) == ("input8", "quantized")
    assert config.skip == ()
    assert not config.stochastic
    assert config.gradients is None


@pytest.mark.parametrize("first_layer", ["float", "input8", "quantized"])
@pytest.mark.parametrize("last_layer", ["float", "quantized"])
def test_legal_values_are_accepted(first_layer, last_layer):
    config = QNN(first_layer=first_layer, last_layer=last_layer, skip=["conv1"], stochastic=True)
    assert (config.first_layer, config.last_layer, config.skip) == (first_layer, last_layer, ("conv1",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": 9}, r"weights=9 is not supported; use 'ternary' or 1 to 8 \(bits\)"),
        ({"weights": 0}, "weights=0 is not supported"),
        ({"weights": "binary"}, "weights='binary' is not supported"),
        ({"weights": True}, "weights=True is not supported"),
        ({"activations": 32}, r"activations=32 is not supported; use None or 1 to 8 \(bits\)"),
        ({"gradients": 2.0}, r"gradients=2.0 is not supported; use None or 1 to 8 \(bits\)"),
        ({"gradients": 1, "rounding": "log"}, "gradients=1 has no powers of two to choose from"),
        ({"rounding": "floor"}, "rounding='floor' is not supported; use one of 'linear', 'log'"),
        ({"signed": 0}, "signed=0 is not supported; use True or False"),
        ({"first_layer": "int8"}, "first_layer='int8' is not supported; use one of 'float', 'input8', 'quantized'"),
        ({"first_layer": ["float"]}, r"first_layer=\['float'\] is not supported"),
        ({"last_layer": "input8"}, "last_layer='input8' is not supported; use one of 'float', 'quantized'"),
        ({"skip": "conv1"}, "skip='conv1' is not supported; use a tuple"),
        ({"skip": (1,)}, "skip=.* is not supported; use a tuple"),
        ({"stochastic": 1}, "stochastic=1 is not supported; use True or False"),
    ],
)
def test_illegal_values_are_refused_with_the_legal_ones(fields, message):
    with pytest.raises(InputError, match=message):
        QNN(**fields)


def test_a_configuration_cannot_change_after_its_check():
    with pytest.raises(FrozenInstanceError):
        QNN().weights = 2


def test_a_configuration_needs_no_torch():
    code = "import sys; import tvmq.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
