from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tvmq
from tvmq.bitplanes import BitPlanes
from tvmq.nn import qem
from tvmq.nn.lqnets import LearnedActivation, LearnedWeight


def error(x, basis, codes):
    levels, _ = qem.sorted_levels(basis, codes)
    return ((x - qem.nearest_levels(x, qem.thresholds_between(levels), levels)) ** 2).sum(1)


def iterate(x, basis, codes, ridge):
    levels, order = qem.sorted_levels(basis, codes)
    counts, sums = qem.level_statistics(x, qem.thresholds_between(levels))
    return qem.fitted_basis(counts, sums, codes[order], basis, ridge)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 300),
    st.sampled_from([qem.WEIGHT_RIDGE, qem.ACTIVATION_RIDGE]),
)
def test_the_error_never_increases(seed, bits, signed, count, ridge):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, count, generator=generator, dtype=torch.float64)
    if not signed:
        x = x.relu()
    # Negative and unsorted bases, too.
    basis = torch.randn(3, bits, generator=generator, dtype=torch.float64)
    codes = qem.code_table(bits, signed, x)
    before = error(x, basis, codes)
    for _ in range(8):
        basis = iterate(x, basis, codes, ridge)
        after = error(x, basis, codes)
        assert (after <= before + 1e-9).all()
        before = after


def test_a_basis_of_one_number_is_the_mean_magnitude_after_one_iteration():
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = qem.code_table(1, True, x)
    basis = iterate(x, torch.full((4, 1), 0.3, dtype=torch.float64), codes, qem.WEIGHT_RIDGE)
    torch.testing.assert_close(basis[:, 0], x.abs().mean(1), rtol=1e-6, atol=0)


def test_codes_follow_the_order_of_the_levels_and_not_of_the_numbers():
    basis = torch.tensor([[1.0, 2.0, 2.5], [2.0, -1.0, 0.5]])
    codes = qem.code_table(3, False, basis)
    levels, order = qem.sorted_levels(basis, codes)
    assert levels[0].tolist() == [0.0, 1.0, 2.0, 2.5, 3.0, 3.5, 4.5, 5.5]
    assert order[0].tolist() == [0, 1, 2, 4, 3, 5, 6, 7]
    for row in range(2):
        torch.testing.assert_close(codes[order[row]] @ basis[row], levels[row])


def test_statistics_are_sums_over_the_values_of_each_level():
    x = torch.randn(5, 700, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    thresholds = torch.tensor([-0.5, 0.1, 0.9]).double().repeat(5, 1)
    counts, sums = qem.level_statistics(x, thresholds)
    number = torch.searchsorted(thresholds, x)
    for level in range(4):
        torch.testing.assert_close(counts[:, level], (number == level).sum(1).double())
        torch.testing.assert_close(sums[:, level], torch.where(number == level, x, 0.0).sum(1))


def test_a_value_on_a_threshold_takes_the_lower_level():
    x = torch.tensor([[0.0, 0.5, 1.0]])
    assert qem.nearest_levels(x, torch.tensor([[0.5]]), torch.tensor([[0.0, 1.0]])).tolist() == [[0.0, 0.0, 1.0]]
    counts, _ = qem.level_statistics(x, torch.tensor([[0.5]]))
    assert counts.tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_training_and_evaluation_take_the_same_levels(bits):
    torch.manual_seed(2)
    weight, x = torch.randn(6, 5, 3, 3) * 0.1, torch.randn(4, 7).relu()
    for quantizer, values in ((LearnedWeight(bits, weight), weight), (LearnedActivation(bits), x)):
        for _ in range(3):
            quantizer(values)
        frozen = quantizer.basis.clone()
        in_eval = quantizer.eval()(values)
        assert torch.equal(quantizer.basis, frozen)
        assert torch.equal(quantizer.train()(values), in_eval)
        quantizer(2 * values)
        assert not torch.equal(quantizer.basis, frozen)


def test_values_of_zero_are_a_level_and_do_no_harm():
    quantizer = LearnedActivation(2)
    assert quantizer(torch.zeros(3, 4)).eq(0).all()
    assert torch.isfinite(quantizer.basis).all()
    weight = torch.zeros(2, 3, 1, 1)
    learned = LearnedWeight(2, weight)
    learned(weight)
    assert torch.isfinite(learned.basis).all()


def test_gradients_stop_at_the_highest_level_only():
    quantizer = LearnedActivation(2)
    top = quantizer.levels[0, -1].item()
    x = torch.tensor([-1.0, 0.0, top, top * 1.001], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 0.0]
    signed = LearnedActivation(2, signed=True)
    y = torch.tensor([-2 * signed.levels[0, -1].item(), 0.0], requires_grad=True)
    signed(y).sum().backward()
    assert y.grad.tolist() == [0.0, 1.0]


def test_what_is_learned_travels_with_the_state():
    torch.manual_seed(3)
    net = tvmq.prepare(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), tvmq.LQNets())
    for _ in range(4):
        net(torch.rand(8, 4))
    copy = tvmq.prepare(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), tvmq.LQNets())
    copy.load_state_dict(net.state_dict())
    x = torch.rand(8, 4)
    assert torch.equal(copy(x), net(x))
    assert torch.equal(copy.eval()(x), net.eval()(x))


class Network(nn.Module):
    """Two low-bit convolutions with a residual sum, between a float stem and a float head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm0 = nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm0(self.stem(x)))
        x = torch.relu(self.norm1(self.conv1(x)) + x)
        return self.head(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))


def trained(config, steps=12):
    torch.manual_seed(5)
    net = tvmq.prepare(Network(), config)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(torch.randn(8, 3, 9, 9)), torch.randint(0, 5, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.mark.filterwarnings("ignore:layer .* fewer bits would be faster")
@pytest.mark.parametrize(
    "config",
    [
        tvmq.LQNets(weights=1, activations=2),
        tvmq.LQNets(weights=2, activations=2),
        tvmq.LQNets(weights=3, activations=3),
        tvmq.QNN(weights=2, activations=2, signed=False, first_layer="float", last_layer="float"),
        tvmq.QNN(weights="ternary", activations=3, first_layer="float", last_layer="float"),
        tvmq.QNN(weights=1, activations=3, rounding="log", signed=False, first_layer="float", last_layer="float"),
    ],
    ids=str,
)
def test_a_trained_network_is_compiled_as_it_was_trained(config):
    net = trained(config)
    x = torch.randn(6, 3, 9, 9)
    model = tvmq.load(net, (x,))
    golden = model.run(x.numpy())[0]
    with torch.no_grad():
        np.testing.assert_allclose(golden, net(x).numpy(), rtol=1e-4, atol=1e-5)
    bundle = tvmq.compile(model)
    np.testing.assert_array_equal(bundle.run(x.numpy())[0], golden)
    rows = {row["name"]: row for row in bundle.layers("host")}
    assert rows["conv1"]["kernel"].startswith(("bitserial", "int8"))
    assert rows["conv2"]["kernel"].startswith(("bitserial", "int8"))


def test_encodings_are_those_that_were_learned():
    net = trained(tvmq.LQNets(weights=2, activations=2))
    with torch.no_grad():
        weight = net.conv1.quantized_weight("weight").numpy()
    found = BitPlanes.of_weights(weight)
    np.testing.assert_allclose(found.dense(), weight, rtol=1e-6, atol=1e-8)
    levels = net.conv1.weight_quantizer.levels.numpy()
    assert all(set(row.ravel()) <= set(known) for row, known in zip(weight, levels, strict=True))


def test_it_trains_when_compiled_by_torch():
    # A batch norm and a ReLU are what the backward pass computes again, and the quantizer behind them with them.
    torch.manual_seed(6)
    layers = [nn.Linear(8, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 128), nn.Linear(128, 2)]
    net = tvmq.prepare(nn.Sequential(*layers), tvmq.LQNets())
    plain = tvmq.prepare(nn.Sequential(*layers), tvmq.LQNets())
    plain.load_state_dict(net.state_dict())
    fast = torch.compile(net, backend="aot_eager_decomp_partition", fullgraph=True)
    for step in range(3):
        x = torch.rand(16, 8)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            for module in (fast, plain):
                module.zero_grad()
                module(x).square().sum().backward()
        for one, other in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
            with torch.no_grad():
                one -= 0.01 * one.grad
                other -= 0.01 * other.grad
    torch.testing.assert_close(net[3].weight_quantizer.basis, plain[3].weight_quantizer.basis)
    torch.testing.assert_close(net[3].input_quantizer.basis, plain[3].input_quantizer.basis)
    assert net[3].input_quantizer.steps == 3
