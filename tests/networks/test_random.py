"""Random networks: what is folded means what the network means, and what is compiled equals what is folded.

Each example is one module of several networks, since starting a compilation costs as much as two layers of kernels.
"""

from __future__ import annotations

import numpy as np
import pytest

from .checks import Tally, check
from .generator import Seeded, evaluate, grow

NETWORKS_PER_EXAMPLE = 8


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize("first", range(0, 216, NETWORKS_PER_EXAMPLE))
def test_random_networks(first):
    tally = Tally()
    check([grow(Seeded([1, first + index])) for index in range(NETWORKS_PER_EXAMPLE)], tally)
    assert tally.networks == NETWORKS_PER_EXAMPLE


@pytest.mark.parametrize("seed", range(20))
def test_the_generator_is_a_function_of_its_seed(seed):
    one, other = grow(Seeded(seed)), grow(Seeded(seed))
    assert repr(one) == repr(other)
    for first, second in zip(evaluate(one)[0], evaluate(other)[0], strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_generator_reaches_every_kind_of_node_and_quantizer():
    nodes = [node for seed in range(300) for node in grow(Seeded(seed)).nodes]
    kinds = {node.kind for node in nodes}
    assert {"add", "concat", "average_pool", "max_pool", "dense", "flatten", "batch_norm", "tanh"} <= kinds
    forms = {node.attributes["form"] for node in nodes if node.kind == "quantizer"}
    assert forms == {"sign", "greater", "descending", "three", "unsigned", "signed", "floor", "odd"}
    assert any(node.kind == "conv" and node.attributes["groups"] > 1 for node in nodes)
