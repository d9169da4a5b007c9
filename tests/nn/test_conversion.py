from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tvmq.errors import InputError
from tvmq.methods import QNN, LQNets
from tvmq.nn import QuantizedConv2d, QuantizedGRU, QuantizedLinear, QuantizedLSTM, freeze, prepare
from tvmq.nn.layers import QuantizedLayer
from tvmq.nn.lqnets import LearnedActivation, LearnedWeight
from tvmq.nn.quantizers import (
    BinaryActivation,
    BinaryWeight,
    EightBitInput,
    FloatActivation,
    LinearActivation,
    LinearWeight,
    LogActivation,
    LogWeight,
)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.norm1(self.conv1(x)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer1(self.norm(self.stem(image))).mean((2, 3)))


ALL = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "head"]


def quantized_names(module):
    return [name for name, child in module.named_modules() if isinstance(child, QuantizedLayer)]


def kinds(layer):
    return type(layer.weight_quantizer), type(layer.input_quantizer)


def test_every_layer_is_replaced_under_its_own_name():
    net = prepare(Network(), QNN())
    assert quantized_names(net) == ALL
    expected = [(BinaryWeight, EightBitInput)] + [(BinaryWeight, BinaryActivation)] * 5
    assert [kinds(net.get_submodule(name)) for name in ALL] == expected
    assert net.state_dict().keys() == Network().state_dict().keys()


def test_the_original_is_untouched():
    original = Network().eval()
    before = copy.deepcopy(original.state_dict())
    x = torch.rand(2, 1, 6, 6)
    expected = original(x)
    net = prepare(original, QNN())
    net(x).sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert quantized_names(original) == []
    assert all(parameter.grad is None for parameter in original.parameters())
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert torch.equal(original(x), expected)


def test_the_copy_is_trainable_and_starts_from_the_float_weights():
    original = Network().eval()
    net = prepare(original, QNN(stochastic=True))
    assert all(module.training for module in net.modules())
    assert torch.equal(net.stem.weight, original.stem.weight)
    assert net.head.input_quantizer.stochastic
    net(torch.rand(2, 1, 6, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("config", "left_in_float"),
    [
        (QNN(first_layer="float"), ["stem"]),
        (QNN(last_layer="float"), ["head"]),
        (QNN(skip=("layer1.*",)), ALL[1:5]),
        (QNN(skip=("*.conv2", "stem")), ["stem", "layer1.0.conv2", "layer1.1.conv2"]),
        (QNN(first_layer="float", skip=("stem",)), ["stem"]),
        (QNN(skip=("layer1.[0].conv1",)), ["layer1.0.conv1"]),
    ],
)
def test_layers_can_stay_in_float(config, left_in_float):
    net = prepare(Network(), config)
    assert quantized_names(net) == [name for name in ALL if name not in left_in_float]
    assert all(type(net.get_submodule(name)) in (nn.Conv2d, nn.Linear) for name in left_in_float)


def test_a_quantized_first_layer_takes_signs():
    assert kinds(prepare(Network(), QNN(first_layer="quantized")).stem)[1] is BinaryActivation


def test_the_layer_behind_a_skipped_first_one_is_not_the_first():
    assert kinds(prepare(Network(), QNN(skip=("stem",))).layer1[0].conv1)[1] is BinaryActivation


def test_a_lone_layer_is_a_network_too():
    layer = prepare(nn.Linear(3, 2), QNN())
    assert isinstance(layer, QuantizedLinear)
    assert isinstance(layer.input_quantizer, EightBitInput)


def test_a_shared_layer_stays_shared():
    shared = nn.Linear(4, 4)
    net = prepare(nn.Sequential(shared, nn.ReLU(), shared), QNN())
    assert isinstance(net[0], QuantizedLinear)
    assert net[0] is net[2]


def test_subclasses_keep_their_own_forward():
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    net = prepare(nn.Sequential(nn.Linear(2, 2), Doubled(2, 2)), QNN())
    assert quantized_names(net) == ["0"]
    assert type(net[1]) is Doubled


@pytest.mark.parametrize(
    ("module", "config", "message"),
    [
        (nn.Sequential(nn.ReLU()), QNN(), "Sequential contains no nn.Conv2d, nn.Linear, nn.LSTM or nn.GRU to quantize"),
        (Network(), QNN(skip=("layer2.*",)), r"skip pattern 'layer2\.\*' matches no layer; did you mean 'layer1\."),
        (Network(), QNN(skip=("head", "Stem")), "skip pattern 'Stem' matches no layer; did you mean 'stem'"),
        (Network(), QNN(skip=("*",)), "leave every layer in float"),
        (nn.Linear(2, 2), QNN(first_layer="float", last_layer="float"), "leave every layer in float"),
        (prepare(Network(), QNN()), QNN(), "Network is already prepared"),
        (Network(), "QNN", r"expected a configuration such as tvmq.QNN\(\) or tvmq.LQNets\(\), got str"),
    ],
)
def test_what_cannot_be_prepared_is_refused(module, config, message):
    with pytest.raises(InputError, match=message):
        prepare(module, config)


CONFIGS = [
    QNN(),
    QNN(first_layer="float"),
    QNN(last_layer="float", skip=("*.conv2",)),
    QNN(weights=3, activations=2),
    QNN(weights="ternary", activations=3, signed=False),
    QNN(weights=3, activations=3, rounding="log", gradients=6),
    QNN(weights=2, activations=None, gradients=1),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_training_and_evaluation_compute_the_same(config):
    torch.manual_seed(0)
    net = prepare(Network(), config)
    # Batch norms differ by design between the modes; everything else must not.
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(3, 1, 6, 6)
    trained = net(x)
    torch.testing.assert_close(trained, net.eval()(x), rtol=0, atol=0)


def test_an_evaluated_network_exports_as_plain_operators():
    torch.manual_seed(1)
    net = prepare(Network(), QNN()).eval()
    x = torch.rand(2, 1, 6, 6)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=0)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators == {
        "aten.mul.Tensor",
        "aten.add.Tensor",
        "aten.floor.default",
        "aten.clamp.default",
        "aten.ge.Scalar",
        "aten.where.Scalar",
        "aten.conv2d.default",
        "aten.batch_norm.default",
        "aten.mean.dim",
        "aten.linear.default",
    }


def test_a_frozen_network_holds_the_signs_and_computes_the_same():
    torch.manual_seed(2)
    net = prepare(Network(), QNN())
    before = copy.deepcopy(net.state_dict())
    frozen = freeze(net)
    x = torch.rand(2, 1, 6, 6)
    assert net.training
    assert not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for name in ALL:
        signs = torch.where(net.get_submodule(name).weight >= 0, 1.0, -1.0)
        assert torch.equal(frozen.get_submodule(name).weight, signs)
    assert torch.equal(frozen(x), net.eval()(x))
    program = torch.export.export(frozen, (x,))
    # Only the five binarized inputs are left to compare; the weights are constants.
    assert sum(str(node.target) == "aten.where.Scalar" for node in program.graph.nodes) == 5


def test_freezing_a_float_network_is_refused():
    with pytest.raises(InputError, match="Network contains no quantized layer; make one with"):
        freeze(Network())


@pytest.mark.parametrize(
    ("config", "weight", "activation"),
    [
        (QNN(weights=2, activations=4), LinearWeight, LinearActivation),
        (QNN(weights=4, activations=2, rounding="log"), LogWeight, LogActivation),
        (QNN(weights="ternary", activations=1, signed=False), LogWeight, LinearActivation),
        (QNN(activations=None), BinaryWeight, FloatActivation),
        (LQNets(weights=3, activations=2), LearnedWeight, LearnedActivation),
        (LQNets(activations=None), LearnedWeight, FloatActivation),
    ],
)
def test_the_configuration_decides_about_the_quantizers(config, weight, activation):
    layer = prepare(Network(), config).layer1[0].conv1
    assert kinds(layer) == (weight, activation)
    bits = 2 if config.weights == "ternary" else config.weights
    assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (bits, config.activations or 32)


def test_lq_nets_leaves_the_first_and_the_last_layer_in_float():
    assert quantized_names(prepare(Network(), LQNets())) == ALL[1:5]
    net = prepare(Network(), LQNets(first_layer="input8", last_layer="quantized"))
    assert quantized_names(net) == ALL
    assert kinds(net.stem) == (LearnedWeight, EightBitInput)


def test_recurrent_layers_are_replaced_too():
    net = nn.ModuleDict({"in": nn.Linear(3, 4), "lstm": nn.LSTM(4, 5), "gru": nn.GRU(5, 6), "out": nn.Linear(6, 2)})
    prepared = prepare(net, QNN(skip=("out",)))
    assert [type(layer) for layer in prepared.values()] == [QuantizedLinear, QuantizedLSTM, QuantizedGRU, nn.Linear]
    assert prepared.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("config", [*CONFIGS, LQNets(weights=2, activations=3)])
def test_every_frozen_network_computes_the_same(config):
    torch.manual_seed(4)
    net = prepare(Network(), config)
    x = torch.rand(3, 1, 6, 6)
    net(x).sum().backward()
    expected = net.eval()(x)
    torch.testing.assert_close(freeze(net)(x), expected, rtol=0, atol=0)


def test_convolutions_of_every_geometry_keep_it():
    for options in ({"kernel_size": (3, 2), "stride": 2, "padding": (1, 0)}, {"kernel_size": 3, "groups": 2}):
        layer = nn.Conv2d(4, 6, **options)
        quantized = prepare(layer, QNN(activations=None, first_layer="quantized"))
        assert isinstance(quantized, QuantizedConv2d)
        x = torch.randn(2, 4, 9, 8)
        with torch.no_grad():
            layer.weight.copy_(torch.where(layer.weight < 0, -1.0, 1.0))
            torch.testing.assert_close(quantized(x), layer(x), rtol=0, atol=0)
