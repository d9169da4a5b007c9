from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tvmq.errors import InputError
from tvmq.methods import QNN, LQNets
from tvmq.nn import clip_weights, diverged_layer, estimate_statistics, parameter_groups, prepare, squared_hinge_loss


def small_network() -> nn.Module:
    return prepare(
        nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)),
        QNN(last_layer="quantized"),
    )


def test_clipping_bounds_latent_weights_and_nothing_else():
    net = small_network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(-3.0)
        net[0].weight[0] = 2.0
        net[0].weight[1] = 0.5
    clip_weights(net)
    assert net[0].weight[0].eq(1.0).all()
    assert net[0].weight[1].eq(0.5).all()
    assert net[0].weight[2].eq(-1.0).all()
    assert net[3].weight.eq(-1.0).all()
    assert net[1].weight.eq(-3.0).all()
    assert net[3].bias.eq(-3.0).all()
    assert net[0].weight.requires_grad


def test_learning_rates_follow_the_fans():
    net = small_network()
    groups = parameter_groups(net, lr=0.01)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    assert rates[id(net[0].weight)] == pytest.approx(0.01 / math.sqrt(1.5 / (2 * 9 + 4 * 9)))
    assert rates[id(net[3].weight)] == pytest.approx(0.01 / math.sqrt(1.5 / (16 + 3)))
    assert {rates[id(net[1].weight)], rates[id(net[1].bias)], rates[id(net[3].bias)]} == {0.01}


def test_an_optimiser_accepts_shared_weights_once():
    shared = nn.Linear(4, 4, bias=False)
    net = prepare(nn.Sequential(shared, shared), QNN())
    groups = parameter_groups(net, lr=0.1)
    assert [len(group["params"]) for group in groups] == [1]
    torch.optim.Adam(groups)


@pytest.mark.parametrize("helper", [clip_weights, lambda module: parameter_groups(module, 0.1)])
def test_an_unprepared_network_is_refused(helper):
    with pytest.raises(InputError, match="Linear contains no quantized layer"):
        helper(nn.Linear(2, 2))


def test_squared_hinge_loss_is_its_definition():
    scores = torch.tensor([[2.0, -0.5, -3.0], [0.0, 0.5, 1.0]], requires_grad=True)
    loss = squared_hinge_loss(scores, torch.tensor([0, 1], dtype=torch.uint8))
    # First row: 0, (1 - 0.5)^2, 0.  Second row: 1, (1 - 0.5)^2, (1 + 1)^2.
    assert loss.item() == pytest.approx((0.25 + 1 + 0.25 + 4) / 6)
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[0.0, 1.0, 0.0], [2.0, -1.0, 4.0]]) / 6)


def test_a_binary_network_learns():
    torch.manual_seed(0)
    x = torch.rand(256, 16)
    labels = (x[:, :8].sum(1) > x[:, 8:].sum(1)).long()
    net = prepare(nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.Linear(64, 2), nn.BatchNorm1d(2)), QNN())
    optimizer = torch.optim.Adam(parameter_groups(net, 1e-2))
    for _ in range(100):
        optimizer.zero_grad()
        squared_hinge_loss(net(x), labels).backward()
        optimizer.step()
        clip_weights(net)
    accuracy = (net.eval()(x).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.9
    assert all(layer.weight.abs().max() <= 1 for layer in (net[0], net[2]))


@pytest.mark.parametrize("config", [QNN(weights=2), QNN(weights="ternary"), LQNets(first_layer="quantized")])
def test_weights_of_other_levels_are_neither_clipped_nor_scaled(config):
    net = prepare(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), config)
    with torch.no_grad():
        net[0].weight.fill_(5.0)
    clip_weights(net)
    assert net[0].weight.eq(5.0).all()
    assert [group["lr"] for group in parameter_groups(net, lr=0.1)] == [0.1]


def test_the_layer_that_diverged_is_named():
    net = small_network()
    x = torch.rand(2, 2, 4, 4)
    assert diverged_layer(net, x) is None
    with torch.no_grad():
        net[1].running_var[2] = math.inf
    assert diverged_layer(net, x) == "1"
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = math.nan
    assert diverged_layer(net, x) == "0"
    assert net.training and net[1].training


def test_inputs_that_overflow_are_found_in_the_layer_that_makes_them():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    assert diverged_layer(net, torch.tensor([[math.nan]])) == "0"


def test_statistics_are_those_of_units_that_are_not_drawn():
    torch.manual_seed(1)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), nn.BatchNorm1d(3)]
    net = prepare(nn.Sequential(*layers), QNN(stochastic=True))
    x = torch.rand(40, 6)
    for _ in range(5):
        net(x)
    weights = [parameter.clone() for parameter in net.parameters()]
    estimate_statistics(net, x.split(10))
    assert net.training and net[1].training and net[1].momentum == 0.1
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), weights, strict=True))
    net.eval()
    sums = net[0](x)
    torch.testing.assert_close(net[1].running_mean, sums.mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([part.var(0) for part in sums.split(10)]).mean(0))
    # The second one saw signs of values that the first one had scaled by each batch's own statistics.
    assert net[3].num_batches_tracked == 4
