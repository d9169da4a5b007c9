"""How long the quantization of each weight will take, from trials of a little of its work.

Formulas of operations do not tell: a product of tall matrices, a step of a walk, an elementwise layer and the copy of
windows run at paces that differ by a factor of a hundred, on every machine in another way.  So

* one sample runs through the network, and what its layers see is gathered;
* one block of a walk, over as many rows and neurons as the real one has, is walked on random data;
* one million weights are handled as those of a layer are, apart from the walk: copied, transposed, their median found.

Both forms of the walk (see :mod:`tvmq.methods.gpfq`) take their steps block by block, all blocks alike; only the
products of the Gram form grow with the number of earlier inputs, and these are large square products, whose pace is
that of any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tvmq.methods.alphabets import equispaced_alphabet, median_radius
from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.gpfq_layer import SEARCHED_NEURONS, TRIED_CONSTANTS, GatheredData, GramData
from tvmq.methods.layerwise import SideBySide
from tvmq.methods.linear_layers import LayerUse, SharedWeight, transposed

__all__ = ["NO_SECONDS", "Seconds", "expected_seconds"]

TRIED_INPUTS = 128
"""Inputs of a walk that is tried: two blocks of one form, one of the other."""
PROBE = 512
"""Rows and columns of the matrix product that is timed."""
HANDLED = 1024
"""Rows and columns of the weight that is handled."""


@dataclass(frozen=True)
class Seconds:
    """What a weight is expected to take.

    Attributes
    ----------
    forward : float
        Running both networks from the weight before it.
    sums : float
        Gathering what its neurons see, and adding up Gram matrices.
    walks : float
        The walks, those of the search for the constant included.
    """

    forward: float
    sums: float
    walks: float


NO_SECONDS = Seconds(0.0, 0.0, 0.0)


def expected_seconds(
    networks: SideBySide,
    weights: Sequence[SharedWeight],
    config: GPFQ,
    rows: Mapping[SharedWeight, int],
    gathers: Mapping[SharedWeight, bool],
    gather: Callable[[LayerUse, np.ndarray], None],
) -> dict[SharedWeight, Seconds]:
    """Try a little of the work of each weight.

    Parameters
    ----------
    networks : SideBySide
        Before its first step.
    weights : sequence of SharedWeight
        Those to quantize, in the order of their first use.
    config : GPFQ
    rows : mapping of SharedWeight to int
        Rows of calibration data of each.
    gathers : mapping of SharedWeight to bool
        Whether its data is gathered, and not summed up to Gram matrices.
    gather : callable
        Copies what a layer sees on some samples.

    Returns
    -------
    dict of SharedWeight to Seconds
    """
    networks.try_sample(gather)  # the first run compiles operators and touches memory for the first time
    trial = networks.try_sample(gather)
    product = _product_seconds()
    expected, before = {}, 0.0
    for weight in weights:
        first, last = (trial.elapsed[use.position] for use in (weight.uses[0], weight.uses[-1]))
        copies = sum(trial.gathering[use.variable] for use in weight.uses)
        sums = 2 * networks.samples * copies
        if not gathers[weight]:
            sums += 4.0 * rows[weight] * weight.inputs**2 * weight.groups * product
        expected[weight] = Seconds(
            forward=2 * networks.samples * (last - before),
            sums=sums,
            walks=_walk_seconds(weight, config, rows[weight], gathers[weight], product),
        )
        before = first
    return expected


def _walk_seconds(weight: SharedWeight, config: GPFQ, rows: int, gathers: bool, product: float) -> float:
    neurons = weight.neurons // weight.groups
    searched = min(neurons, max(1, SEARCHED_NEURONS // weight.groups))
    tried = TRIED_CONSTANTS if config.constant == "search" else 0
    inputs = min(weight.inputs, TRIED_INPUTS)
    block = _block_seconds(inputs, neurons, rows, gathers, config)
    if tried:
        block += tried * _block_seconds(inputs, searched, rows, gathers, config)
    products = 0.0 if gathers else 8.0 * weight.inputs**2 * (neurons + tried * searched) * product
    return weight.groups * (weight.inputs / inputs * block + products) + weight.weight.size * _handling_seconds()


@lru_cache(maxsize=256)
def _block_seconds(inputs: int, neurons: int, rows: int, gathers: bool, config: GPFQ) -> float:
    """Of the walk of a few inputs, on random data."""
    random = np.random.default_rng(0)
    # The steps of the Gram form do not depend on the number of rows.
    count = rows if gathers else min(rows, 2 * inputs)
    analog = random.standard_normal((1, inputs, count), np.float32)
    data: GatheredData | GramData = GatheredData(inputs, count) if gathers else GramData(inputs, 1)
    data.add(analog, analog + np.float32(0.1))
    weight = random.standard_normal((inputs, neurons))
    radius = median_radius(weight, 2.0, per_channel=config.radius == "channel")
    alphabet = equispaced_alphabet(config.levels, radius)
    return _fastest(lambda: data.walk(0, weight, alphabet, None))


@lru_cache(maxsize=1)
def _handling_seconds() -> float:
    """Of a weight, around its walk."""
    weight = np.random.default_rng(0).standard_normal((HANDLED, HANDLED), np.float32)

    def handle() -> None:
        median_radius(weight.T, 1.0)
        transposed(transposed(weight, np.float64), np.float32)

    return _fastest(handle) / weight.size


@lru_cache(maxsize=1)
def _product_seconds() -> float:
    """Of a floating-point operation in a large product of float64 matrices."""
    a = np.ones((PROBE, PROBE))
    return _fastest(lambda: a @ a) / (2.0 * PROBE**3)


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of a call, the faster of two."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
