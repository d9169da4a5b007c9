"""Beside the vectors in ``tests/oracles/test_training.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tvmq.errors import InputError
from tvmq.nn import ShiftAdaMax, ShiftBatchNorm1d, ShiftBatchNorm2d, clip_weights, squared_hinge_loss
from tvmq.nn.estimators import ap2


def test_factors_in_eval_mode_are_powers_of_two():
    torch.manual_seed(0)
    norm = ShiftBatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.7, -3.1, 0.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    for _ in range(60):
        norm(5 + 3 * torch.randn(64, 3, 4, 4))
    torch.testing.assert_close(norm.running_mean, torch.full((3,), 5.0), rtol=0, atol=0.2)
    norm.eval()
    slope = norm(torch.ones(1, 3, 1, 1)) - norm(torch.zeros(1, 3, 1, 1))
    expected = ap2(norm.running_inverse) * torch.tensor([0.5, -4.0, 0.0])
    torch.testing.assert_close(slope.flatten(), expected, rtol=0, atol=1e-6)


def test_a_channel_of_an_image_is_normalised_as_a_feature_is():
    torch.manual_seed(1)
    x = torch.randn(4, 3, 2, 5)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 3)
    expected = ShiftBatchNorm1d(3)(rows).reshape(4, 2, 5, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(ShiftBatchNorm2d(3)(x), expected)


def test_tensors_of_another_rank_are_refused():
    with pytest.raises(InputError, match="ShiftBatchNorm2d: a 2-D tensor is not supported"):
        ShiftBatchNorm2d(3)(torch.rand(2, 3))


@pytest.mark.parametrize(("options", "message"), [({"lr": 0.0}, "lr=0.0"), ({"betas": (0.9, 1.0)}, "betas=")])
def test_an_optimiser_without_sense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ShiftAdaMax([nn.Parameter(torch.zeros(1))], **options)


def test_a_network_of_shifts_learns_and_is_compiled():
    torch.manual_seed(2)
    layers = [nn.Linear(16, 64), ShiftBatchNorm1d(64), nn.Linear(64, 2), ShiftBatchNorm1d(2)]
    net = tvmq.prepare(nn.Sequential(*layers), tvmq.QNN())
    optimizer = ShiftAdaMax(net.parameters(), lr=2.0**-6)
    x = torch.rand(256, 16)
    labels = (x[:, :8].sum(1) > x[:, 8:].sum(1)).long()
    for _ in range(120):
        optimizer.zero_grad()
        squared_hinge_loss(net(x), labels).backward()
        optimizer.step()
        clip_weights(net)
    net.eval()
    assert (net(x).argmax(1) == labels).float().mean() > 0.9
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model)
    np.testing.assert_array_equal(bundle.run(x.numpy())[0], model.run(x.numpy())[0])
    with torch.no_grad():
        np.testing.assert_allclose(model.run(x.numpy())[0], net(x).numpy(), rtol=1e-5, atol=1e-5)
    assert [row["kernel"].split()[0] for row in bundle.layers("host")] != ["float", "float"]
