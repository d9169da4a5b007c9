"""Random networks: what is folded means what the network means, and what is compiled equals what is folded.

Hypothesis grows one network per example, so that a network that fails shrinks to a small one.  It often repeats a
network or changes choices that no node uses; what counts is the number of different networks.

They search for mistakes of the passes.  LLVM optimizes those of one seed as it does for users; what it makes of every
kernel is a matter of ``tests/kernels``.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tvmq.target import get_target

from .checks import Tally, check
from .generator import Drawn, Network, Seeded, evaluate, grow
from .unoptimized import unoptimized

SEEDS = 4
NETWORKS = 50
"""Of each seed: two hundred in all."""
EXAMPLES = 200


@st.composite
def random_networks(draw) -> Network:
    return grow(Drawn(lambda low, high: draw(st.integers(low, high))))


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize("start", range(SEEDS))
def test_random_networks(start):
    tally = Tally()
    target = unoptimized("host") if start else get_target("host")

    @seed(start)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(network=random_networks())
    def run(network: Network) -> None:
        if network.digest() not in tally.digests and tally.networks < NETWORKS:
            check([network], tally, target)

    run()
    assert tally.networks == NETWORKS
    assert tally.packed >= 0.7 * tally.layers
    assert tally.undecided <= 0.1 * tally.networks


@pytest.mark.parametrize("number", range(20))
def test_the_generator_is_a_function_of_its_seed(number):
    one, other = grow(Seeded(number)), grow(Seeded(number))
    assert repr(one) == repr(other)
    for first, second in zip(evaluate(one)[0], evaluate(other)[0], strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_generator_reaches_every_kind_of_node_and_quantizer():
    nodes = [node for number in range(300) for node in grow(Seeded(number)).nodes]
    kinds = {node.kind for node in nodes}
    assert {"add", "concat", "average_pool", "max_pool", "dense", "flatten", "batch_norm", "tanh"} <= kinds
    forms = {node.attributes["form"] for node in nodes if node.kind == "quantizer"}
    uniform = {"sign", "greater", "descending", "three", "unsigned", "signed", "floor", "odd"}
    assert forms == uniform | {"learned", "uneven"}
    assert any(node.kind == "conv" and node.attributes["groups"] > 1 for node in nodes)
