"""Known architectures from torch to libraries: equal to the golden executor bit for bit, and to torch closely.

The golden executor folds chains of batch norms and quantizers in float64, torch runs them in the type of the module.
So the torch reference runs in float64, where both mean the same up to some 1e-15.  What is left are the values that
the network computes in float32 (a float first layer, float shortcuts); one of those would have to come within 1e-7 of
a threshold to change a level.  Seeds are fixed, so that this happens always or never; it does not happen in the
networks below, and so logits agree as closely as float32 can say them.  A wrong level anywhere would show: a random
network damps nothing, and logits would differ by the order of their own size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tvmq.target import Target, get_target

from .alphabets import ALPHABETS, PLANES
from .quantized import EightBitInput, QuantizedConv2d, QuantizedLinear
from .unoptimized import unoptimized
from .zoo import SETTINGS, ZOO, Recipe, build, calibrate, lenet, pixels

HOST = get_target("host")

# First and last layers differ between the settings, so that all four combinations are met.
ENDS = {
    "w1a1": ("quantized", "quantized"),
    "w1a2": ("float", "float"),
    "w2a2": ("quantized", "float"),
    "ternary-a2": ("float", "quantized"),
}
LARGE = ["resnet18", "vgg16", "alexnet", "googlenet", "densenet121", "mobilenetv2"]
OTHERS = [
    ("resnet50", "w2a2"),
    ("preactivation_resnet", "w1a1"),
    ("preactivation_resnet", "ternary-a2"),
    ("lenet", "w1a1"),
    ("lenet", "w1a2"),
    ("mlp", "w1a1"),
    ("mlp", "ternary-a2"),
    ("lstm", "w2a2"),
]


def torch_reference(net: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The network in float64; its quantizers make constants of the default type."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            return net.double()(x.double()).numpy()
    finally:
        torch.set_default_dtype(default)
        net.float()


def quantized_layers(net: nn.Module) -> list[str]:
    """Names of the quantized layers, with dots as underscores: how rows spell names is a test of its own."""
    quantized = (QuantizedConv2d, QuantizedLinear)
    return [name.replace(".", "_") for name, module in net.named_modules() if isinstance(module, quantized)]


def packed_rows(bundle: tvmq.Bundle, target: str) -> list[dict]:
    rows = [{**row, "name": row["name"].replace(".", "_")} for row in bundle.layers(target)]
    return [row for row in rows if row["kernel"].startswith(("bitserial", "int8"))]


def check_packed(bundle: tvmq.Bundle, target: str, net: nn.Module, weight_bits: int, activation_bits: int) -> None:
    """Exactly the quantized layers are packed, each once, with the planes that their alphabets need."""
    rows = packed_rows(bundle, target)
    expected = quantized_layers(net)
    missing = sorted(set(expected) - {row["name"] for row in rows})
    assert not missing, f"{len(missing)} of {len(expected)} quantized layers are not packed: {missing}"
    assert sorted(row["name"] for row in rows) == sorted(expected)
    eight = any(isinstance(module, EightBitInput) for module in net.modules())
    for row in rows:
        first = eight and row["name"] == expected[0]
        assert (row["weight_bits"], row["activation_bits"]) == (weight_bits, 8 if first else activation_bits), row


def check_runs(net: nn.Module, shape: tuple[int, ...], target: Target = HOST) -> tvmq.Bundle:
    """Bundle equals Model exactly, Model equals torch closely, and the input matters."""
    images = [pixels(shape, 1, seed) for seed in (2, 3)]
    model = tvmq.load(net, (images[0],))
    bundle = tvmq.compile(model, target, check_inputs=[images[0].numpy()])
    outputs = [model.run(image.numpy())[0] for image in images]
    assert not np.array_equal(*outputs)
    for image, golden in zip(images, outputs, strict=True):
        run = bundle.run if target.name == "host" else lambda x: bundle.run_emulated(target.name, x)
        np.testing.assert_array_equal(run(image.numpy())[0], golden)
        np.testing.assert_allclose(golden, torch_reference(net, image), atol=2e-5, rtol=2e-5)
    return bundle


def entry(name: str, setting: str) -> tuple[nn.Module, tuple[int, ...]]:
    return build(name, setting, *ENDS[setting]), ZOO[name].shape


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("name", LARGE)
def test_large_network(name, turn):
    """Two settings of each network, and so each setting in three networks of all kinds.

    LLVM optimizes one setting of each; the passes do the same whether it does or not.
    """
    setting = list(SETTINGS)[(LARGE.index(name) + 2 * turn) % len(SETTINGS)]
    optimized = turn == 0
    net, shape = entry(name, setting)
    bundle = check_runs(net, shape, HOST if optimized else unoptimized("host"))
    weights, bits = SETTINGS[setting]
    check_packed(bundle, "host", net, PLANES[weights], bits)


@pytest.mark.parametrize("name, setting", OTHERS)
def test_other_network(name, setting):
    net, shape = entry(name, setting)
    bundle = check_runs(net, shape)
    weights, bits = SETTINGS[setting]
    if name != "lstm":
        check_packed(bundle, "host", net, PLANES[weights], bits)
        return
    # Unrolled: every step is a layer of its own; that of the first state, a constant, is computed while compiling.
    rows = packed_rows(bundle, "host")
    assert len(rows) == 2 * ZOO[name].shape[0] - 1
    assert {row["weight_bits"] for row in rows} == {PLANES[weights]}


def test_rows_have_the_names_of_the_layers():
    net, shape = entry("alexnet", "w1a1")
    model = tvmq.load(net, (pixels(shape, 1),))
    names = [layer.name for layer in model.layers()]
    assert "5.1" in names
    assert [row["name"] for row in tvmq.compile(model).layers("host")] == names


@pytest.mark.parametrize("alphabet, bits", [(alphabet, 1 + index % 4) for index, alphabet in enumerate(ALPHABETS)])
def test_every_alphabet_in_lenet(alphabet, bits):
    shape = ZOO["lenet"].shape
    torch.manual_seed(0)
    net = calibrate(lenet(Recipe(alphabet, bits)), shape)
    check_packed(check_runs(net, shape), "host", net, PLANES[alphabet], bits)


@pytest.mark.parametrize("name, setting", [("resnet18", "w2a2"), ("alexnet", "ternary-a2")])
def test_under_emulation(name, setting):
    net, shape = entry(name, setting)
    bundle = check_runs(net, shape, get_target("raspberry-pi-4"))
    weights, bits = SETTINGS[setting]
    check_packed(bundle, "raspberry-pi-4", net, PLANES[weights], bits)
