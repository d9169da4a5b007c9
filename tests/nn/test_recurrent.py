from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tvmq.errors import InputError
from tvmq.nn import freeze
from tvmq.nn.recurrent import QuantizedGRU, QuantizedLSTM

KINDS = {nn.LSTM: QuantizedLSTM, nn.GRU: QuantizedGRU}
SHAPES = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "batch_first": True, "bias": False},
]
# So many levels that a tanh is hardly rounded.
FINE = tvmq.QNN(weights=8, activations=8, first_layer="quantized")


def state_of(kind, layers, batch, hidden):
    state = torch.rand(layers, batch, hidden) - 0.5
    return (state, torch.rand(layers, batch, hidden) - 0.5) if kind is nn.LSTM else state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_states_are_those_of_torch_but_for_rounding(kind, shape):
    torch.manual_seed(0)
    layer = kind(6, 5, **shape)
    quantized = tvmq.prepare(layer, FINE)
    assert type(quantized) is KINDS[kind]
    x = torch.rand(4, 4, 6) - 0.5
    expected, expected_state = layer(x)
    output, state = quantized(x)
    torch.testing.assert_close(output, expected, rtol=0, atol=0.02)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0.02)
    before = state_of(kind, expected_state[0].shape[0] if kind is nn.LSTM else len(expected_state), 4, 5)
    torch.testing.assert_close(quantized(x, before)[0], layer(x, before)[0], rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_only_operands_of_products_are_quantized(kind):
    torch.manual_seed(1)
    layer = kind(3, 4, bias=False)
    quantized = tvmq.prepare(layer, tvmq.QNN(weights=1, activations=1, first_layer="quantized"))
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.where(weight >= 0, 1.0, -1.0))
    x = torch.randn(1, 2, 3)
    # One step from a state of signs: torch's own layer on signs.
    state = torch.ones(1, 2, 4)
    states = (state, torch.rand(1, 2, 4)) if kind is nn.LSTM else state
    expected, _ = layer(torch.where(x >= 0, 1.0, -1.0), states)
    torch.testing.assert_close(quantized(x, states)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [FINE, tvmq.LQNets(first_layer="quantized", last_layer="quantized")], ids=str)
def test_a_recurrent_layer_learns(kind, config):
    torch.manual_seed(2)
    net = tvmq.prepare(kind(2, 8), config)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    losses = []
    for _ in range(40):
        x = torch.rand(6, 16, 2) * 2 - 1
        # The running mean of the first input.
        target = x[:, :, 0].cumsum(0) / torch.arange(1, 7)[:, None]
        loss = (net(x)[0][:, :, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


class Language(nn.Module):
    """A step of a language model: a state goes in and out."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.rnn, self.head = kind(32, 32), nn.Linear(32, 10)

    def forward(self, x, *state):
        output, after = self.rnn(x, state if len(state) == 2 else state[0])
        return (self.head(output[0]), *(after if isinstance(after, tuple) else (after,)))


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 4])
def test_a_step_is_compiled_as_it_is_in_torch(kind, bits):
    torch.manual_seed(3)
    config = tvmq.QNN(weights=bits, activations=bits, first_layer="quantized")
    net = tvmq.prepare(Language(kind), config).eval()
    x = torch.rand(3, 2, 32) * 2 - 1
    states = [torch.rand(1, 2, 32) * 2 - 1 for _ in range(2 if kind is nn.LSTM else 1)]
    arrays = [array.numpy() for array in (x, *states)]
    model = tvmq.load(net, (x, *states))
    golden = model.run(*arrays)
    with torch.no_grad():
        for one, expected in zip(golden, net(x, *states), strict=True):
            np.testing.assert_allclose(one, expected.numpy(), rtol=1e-4, atol=1e-5)
        for one, expected in zip(freeze(net)(x, *states), net(x, *states), strict=True):
            assert torch.equal(one, expected)
    bundle = tvmq.compile(model)
    for one, expected in zip(bundle.run(*arrays), golden, strict=True):
        np.testing.assert_array_equal(one, expected)
    assert all(row["kernel"].startswith(("bitserial", "int8")) for row in bundle.layers("host"))


class LastStep(nn.Module):
    """What an LSTM says after its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 32, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
def test_a_batch_can_stay_open():
    torch.manual_seed(5)
    net = tvmq.prepare(LastStep(), tvmq.QNN(weights=2, activations=2, first_layer="quantized")).eval()
    model = tvmq.load(net, (torch.rand(2, 3, 32),), dynamic_batch=True)
    bundle = tvmq.compile(model)
    for batch in (1, 5):
        x = torch.rand(batch, 3, 32) * 2 - 1
        golden = model.run(x.numpy())[0]
        np.testing.assert_array_equal(bundle.run(x.numpy())[0], golden)
        with torch.no_grad():
            np.testing.assert_allclose(golden, net(x).numpy(), rtol=1e-4, atol=1e-5)


def test_dropout_lies_between_layers_and_only_in_training():
    torch.manual_seed(4)
    net = tvmq.prepare(nn.LSTM(3, 4, num_layers=2, dropout=0.5), FINE)
    x = torch.rand(3, 2, 3)
    assert not torch.equal(net(x)[0], net(x)[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


def test_what_is_not_supported_is_refused():
    with pytest.raises(InputError, match="LSTM with proj_size=2 is not supported; use 0"):
        tvmq.prepare(nn.LSTM(3, 4, proj_size=2), FINE)
    with pytest.raises(InputError, match="expected a batch of sequences, 3-D, got a 2-D tensor"):
        tvmq.prepare(nn.GRU(3, 4), FINE)(torch.rand(5, 3))
