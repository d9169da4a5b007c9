"""Small kernels, a small network, and a host whose times are made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
import tvm
from torch import nn
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerResult

import tvmq
from tests.boards import board, ssh_server  # noqa: F401  (fixtures)
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.depth import depth_of
from tvmq.kernels.knobs import KINDS, Knobs
from tvmq.kernels.workload import DEPTH_LANES, Conv2dWorkload, Dot, Thresholds, dot_form
from tvmq.target import Target, get_target
from tvmq.tuning.hosts import Host
from tvmq.tuning.tasks import Task

DEFAULT_SECONDS = 1e-5


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def target() -> Target:
    return dataclasses.replace(get_target("host"), cores=1)


@pytest.fixture
def task(target) -> Callable[..., Task]:
    """A 3x3 convolution of `size` x `size` x `channels`: binary; on ARM also along the depth, or of bytes."""

    def make(size: int = 4, channels: int = 64, count: int = 1, target: Target = target, form: str = "lanes") -> Task:
        workload = Conv2dWorkload(
            height=size,
            width=size,
            in_channels=channels,
            out_channels=channels,
            kernel=(3, 3),
            strides=(1, 1),
            padding=(1, 1, 1, 1),
            dilation=(1, 1),
            activation_planes=1,
            weight_planes=1,
            combine="xor",
            plane_class=((0,),),
            class_multiplier=(-1,),
            activation_multiplier=(0,),
            row_classes=2,
            col_classes=2,
            word_bits=target.word_bits,
            lanes=target.lanes,
            epilogue=Thresholds(1, (0, 1), 1),
        )
        if form == "depth":
            depth = depth_of(-(-channels // 8), target.arch)
            workload = dataclasses.replace(workload, lanes=DEPTH_LANES, depth=depth)
        if form == "bytes":
            dot = Dot(8, 8, pair_bound=2 * 255 * 127, form=dot_form(target.dot))
            workload = dataclasses.replace(workload, combine="dot", dot=dot, lanes=target.dot_lanes)
        return Task(conv2d(workload, 1), KINDS["conv2d"], target, count)

    return make


@pytest.fixture
def model() -> tvmq.Model:
    """Two binary convolutions, of which the second runs twice."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 64, 3, padding=1)]
    for _ in range(2):
        layers += [nn.BatchNorm2d(64), nn.Hardtanh(), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    network = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.Hardtanh(), nn.Flatten(), nn.Linear(64 * 36, 4))
    config = tvmq.QNN(weights=1, activations=1)
    return tvmq.load(tvmq.prepare(network.eval(), config).eval(), (torch.zeros(1, 1, 6, 6),))


class FakeHost(Host):
    """Times of a formula instead of a machine.

    Parameters
    ----------
    task : Task
    ratio : callable
        From knobs to the time in units of the default's; None where the point cannot be built.
    """

    name = "host"
    description = "a formula"

    def __init__(self, task: Task, ratio: Callable[[Mapping[str, int]], float | None]) -> None:
        self.ratio, self.target = ratio, task.target
        self.measured: list[Knobs] = []
        points = task.kind.space(task.function, task.target)
        self.points = {self.text(task.kind.apply(task.function, task.target, point)): point for point in points}

    @staticmethod
    def text(function: tvm.tirx.PrimFunc) -> str:
        return function.without_attr("global_symbol").script()

    def builder(self, default, alive):
        return FakeBuilder(self)

    def runner(self, rounds, alive):
        return FakeRunner(rounds)


@derived_object
class FakeBuilder(PyBuilder):
    def __init__(self, host):
        super().__init__()
        self.host = host

    def build(self, build_inputs):
        return [self.one(self.host.points[FakeHost.text(item.mod["main"])]) for item in build_inputs]

    def one(self, point):
        self.host.measured.append(point)
        ratio = self.host.ratio(point)
        return BuilderResult(None, "LLVM refuses") if ratio is None else BuilderResult(repr(float(ratio)), None)


@derived_object
class FakeRunner(PyRunner):
    def __init__(self, rounds):
        super().__init__()
        self.rounds = rounds

    def run(self, runner_inputs):
        return [FakeFuture(float(item.artifact_path), self.rounds) for item in runner_inputs]


@derived_object
class FakeFuture(PyRunnerFuture):
    def __init__(self, ratio, rounds):
        super().__init__()
        self.ratio, self.rounds = ratio, rounds

    def done(self):
        return True

    def result(self):
        return RunnerResult([DEFAULT_SECONDS * self.ratio, DEFAULT_SECONDS] * self.rounds, None)


@pytest.fixture
def fake_host() -> type[FakeHost]:
    return FakeHost
