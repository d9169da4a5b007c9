"""Processes that train together learn the basis that one process would learn on all of their data."""

from __future__ import annotations

import os
import socket

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import tvmq

PROCESSES = 2
STEPS = 3


def network():
    torch.manual_seed(7)
    return tvmq.prepare(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)), tvmq.LQNets())


def samples(step):
    return torch.rand(16, 6, generator=torch.Generator().manual_seed(step))


def descend(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.05 * parameter.grad


def train_one_of_many(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    net = network()
    parallel = DistributedDataParallel(net)
    for step in range(STEPS):
        parallel.zero_grad()
        parallel(samples(step).chunk(PROCESSES)[rank]).square().mean().backward()
        descend(net)
    torch.save(net.state_dict(), os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_statistics_of_all_processes_agree_with_those_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(train_one_of_many, (port, str(tmp_path)), nprocs=PROCESSES)
    alone = network()
    for step in range(STEPS):
        alone.zero_grad()
        alone(samples(step)).square().mean().backward()
        descend(alone)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0)
        torch.testing.assert_close(states[0][name], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(states[0]["1.input_quantizer.basis"], network()[1].input_quantizer.basis)
