"""What must hold for any network: folded means what the network means, and every later stage equals folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

import tvmq
from tvmq.golden import interpret
from tvmq.target import Target, get_target
from tvmq.transform import fold, lowering_passes

from .generator import DECIDED, Network, evaluate, to_module

TOLERANCE = 1e-4
"""Of float32 against float64, relative to the largest value of an output."""


@dataclass
class Tally:
    """What a run of checks did.

    Attributes
    ----------
    digests : set of str
        Of the networks that passed: one that is drawn twice counts once.
    layers, packed : int
        Their convolutions and linear layers, and how many of those were packed.
    undecided : int
        Networks that differ from float64 where a value lies so close to a threshold that both levels are right.
    """

    digests: set[str] = field(default_factory=set)
    layers: int = 0
    packed: int = 0
    undecided: int = 0

    @property
    def networks(self) -> int:
        """How many different networks passed."""
        return len(self.digests)


def check(
    networks: Sequence[Network], tally: Tally, target: Target, lowered: Sequence[str] = ("raspberry-pi-4",)
) -> None:
    """Run every stage of some networks, as one module, and compare.

    Parameters
    ----------
    networks : sequence of Network
    tally : Tally
        Added to if all is well.
    target : Target
        Compiled for, and run on this machine.
    lowered : sequence of str
        Targets for which only the packed kernels' references are run.

    Raises
    ------
    AssertionError
        With the network and the stage.
    """
    model = tvmq.Model.from_module(to_module(networks), "random")
    arrays = [network.data for network in networks]
    golden = model.run(*arrays)
    undecided = _check_meaning(networks, golden)
    for name in lowered:
        module = fold(model.module)
        for item in lowering_passes(get_target(name)):
            module = item(module)
        _compare(networks, golden, interpret(module, arrays), f"lowered for {name}")
    bundle = tvmq.compile(model, target, check_inputs=arrays)
    _compare(networks, golden, bundle.run(*arrays, target=target.name), f"compiled for {target.name}")
    rows = bundle.layers(target.name)
    tally.digests.update(network.digest() for network in networks)
    tally.undecided += undecided
    tally.layers += len(rows)
    tally.packed += sum(row["kernel"].startswith(("bitserial", "int8")) for row in rows)


def _owners(networks: Sequence[Network]) -> list[tuple[Network, int]]:
    return [(network, output) for network in networks for output in network.outputs]


def _compare(
    networks: Sequence[Network], expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], stage: str
) -> None:
    for (network, output), one, other in zip(_owners(networks), expected, actual, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape, f"{stage}: {other.dtype}{other.shape}\n{network}"
        different = int(np.sum(one != other))
        assert different == 0, f"{stage}: {different} of {one.size} elements of output {output} differ\n{network}"


def _check_meaning(networks: Sequence[Network], golden: Sequence[np.ndarray]) -> int:
    """Compare with float64; the number of undecided networks."""
    remaining, undecided = iter(golden), 0
    for network in networks:
        expected, margin = evaluate(network)
        worst = 0.0
        for value in expected:
            actual = next(remaining)
            assert actual.shape == value.shape, f"golden: {actual.shape}, not {value.shape}\n{network}"
            worst = max(worst, float(np.abs(actual - value).max() / max(1.0, np.abs(value).max())))
        if worst > TOLERANCE and margin < DECIDED:
            undecided += 1
            continue
        assert worst <= TOLERANCE, f"golden: off by {worst:.2g}, nearest threshold {margin:.2g}\n{network}"
    return undecided
