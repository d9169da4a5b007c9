"""On every emulated core, small networks give what the golden executor gives, bit for bit.

They are those of the tests of compiling and of bytes (but for those of eight bits times eight), the networks of codes,
and of those of learned bases one of every kind; not the random ones, those of the zoo, and modules of a few operators.

A library holds many of them, side by side: there is one run for each core.  LLVM optimizes none of it, which would
take most of the time; what LLVM optimizes is emulated kernel by kernel, and in a few networks of other tests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
import tvm
from torch import nn

import tvmq
from tests.networks.codes import CASES, network
from tests.networks.small import (
    Concat,
    Layers,
    LearnedBases,
    Residual,
    Shifted,
    Sign,
    codebooks,
    convnet,
    images,
    prepared,
    signs_of_a_basis,
    sums_with_an_offset,
)
from tests.networks.test_int8 import NETWORKS, Network
from tests.networks.unoptimized import unoptimized
from tvmq.build import build_library
from tvmq.runtime.emulator import run_emulated
from tvmq.transform import fold, lowering_passes, scheduling_passes

CORES = ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-3-32")


class Case(NamedTuple):
    """A model, its folded module, its inputs, and what the golden executor makes of them."""

    model: tvmq.Model
    folded: tvm.IRModule
    arrays: list[np.ndarray]
    golden: list[np.ndarray]


def case_of(model: tvmq.Model, arrays: list[np.ndarray]) -> Case:
    return Case(model, fold(model.module), arrays, model.run(*arrays))


class SideBySide(nn.Module):
    """Networks that know nothing of each other."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor] = []
        for part, x in zip(self.networks, inputs, strict=True):
            result = part(x)
            outputs.extend(result if isinstance(result, tuple) else [result])
        return tuple(outputs)


def torch_networks() -> list[tuple[nn.Module, torch.Tensor]]:
    """Each with its input."""
    torch.manual_seed(0)
    networks = [
        (prepared(convnet(3)), images(2, 3)),
        (prepared(convnet(), first_layer="quantized"), images(2) - 0.5),
        (prepared(convnet(), first_layer="float", last_layer="float"), images(2)),
        (prepared(convnet(), skip=("7",)), images(2)),
        (prepared(Residual()), images(2, 3)),
        (prepared(Concat()), images(2, 3)),
    ]
    networks += [(LearnedBases(w, a), torch.randn(2, 20, 6, 6)) for w, a in ((2, 1), (2, 2), (3, 3))]
    kinds = ((Sign(), signs_of_a_basis), (Shifted(2), sums_with_an_offset), (Shifted(2), codebooks))
    networks += [(Layers(*kind), torch.randn(1, 20, 9, 7)) for kind in kinds]
    networks += [(Network(*NETWORKS[name]), torch.rand(1, 3, 28, 28)) for name in ("w4a4", "signed", "eight-bit input")]
    return networks


@pytest.fixture(scope="module")
def from_torch() -> Case:
    networks, inputs = zip(*torch_networks(), strict=True)
    model = tvmq.load(SideBySide(list(networks)).eval(), inputs)
    return case_of(model, [x.numpy() for x in inputs])


@pytest.fixture(scope="module")
def of_codes() -> Case:
    random = np.random.default_rng(0)
    model = tvmq.Model.from_module(network(random, 2, CASES), "codes")
    arrays = [
        random.integers(0, 2**case.encoding.planes, spec.shape, dtype=np.uint8)
        for case, spec in zip(CASES, model.inputs, strict=True)
    ]
    return case_of(model, arrays)


@pytest.mark.parametrize("case", ["from_torch", "of_codes"])
@pytest.mark.parametrize("name", CORES)
def test_small_networks(name: str, case: str, runner_cache: None, request: pytest.FixtureRequest) -> None:
    core = unoptimized(name)
    model, module, arrays, golden = request.getfixturevalue(case)
    for item in (*lowering_passes(core), *scheduling_passes(core)):
        module = item(module)
    library = build_library(module, core, model.inputs, model.outputs)
    for spec, actual, expected in zip(model.outputs, run_emulated(library, core, arrays), golden, strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected, err_msg=spec.name)
