"""GPFQ of whole networks: what each layer sees, shared weights, interruption, several processes, and compiling."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tvmq.methods.alphabets import equispaced_alphabet, median_radius
from tvmq.methods.gpfq import quantize_weights
from tvmq.methods.linear_layers import apply_layer, columns, shared_weights

from .networks import Convolutions, Mlp, Recurrent, Shared, make

pytestmark = pytest.mark.filterwarnings("ignore:layer .* rows of calibration data")


def weights_of(model: tvmq.Model) -> dict[str, np.ndarray]:
    return {weight.name: weight.weight for weight in shared_weights(model)}


@pytest.mark.parametrize("kind", [Mlp, Convolutions, Shared, Recurrent])
def test_every_weight_lies_on_its_alphabet(kind):
    _, model, data = make(kind)
    quantized = tvmq.quantize(model, tvmq.GPFQ(weights=2, constant=2.0), data)
    before, after = weights_of(model), weights_of(quantized)
    assert len(quantized.quantization) == len(before)
    for row, (name, weight) in zip(quantized.quantization, before.items(), strict=True):
        letters = equispaced_alphabet(4, median_radius(weight.reshape(len(weight), -1).T, 2.0)).astype(np.float32)
        assert row["layer"] == name
        assert np.isin(after[name], letters).all()
        assert row["relative_error"] < 1


def test_layers_see_what_the_two_networks_compute():
    """The second and third layer of an MLP, quantized by hand on activations that torch computes."""
    network, model, data = make(Mlp)
    quantized = tvmq.quantize(model, tvmq.GPFQ(constant=2.5), data, batch_size=17)
    with torch.no_grad():
        x = torch.from_numpy(data)
        analog = present = x
        for name, activation in (
            ("fc1", lambda y: torch.relu(network.norm(y))),
            ("fc2", torch.relu),
            ("fc3", lambda y: y),
        ):
            layer = getattr(network, name)
            matrix = layer.weight.numpy().T.astype(np.float64)
            letters = equispaced_alphabet(3, median_radius(matrix, 2.5))
            expected = quantize_weights(matrix, analog.numpy(), present.numpy(), alphabet=letters)
            found = weights_of(quantized)[name]
            np.testing.assert_allclose(found, expected.weights.T.astype(np.float32), rtol=1e-6)
            row = next(row for row in quantized.quantization if row["layer"] == name)
            assert row["relative_error"] == pytest.approx(expected.relative_error, rel=1e-4)
            analog = activation(layer(analog))
            present = activation(present @ torch.from_numpy(found).T + layer.bias)


def test_columns_and_products_are_those_of_torch():
    network, model, _data = make(Convolutions)
    for weight in shared_weights(model):
        use = weight.uses[0]
        layer = getattr(network, weight.name)
        x = torch.randn(3, *(int(size) for size in list(use.call.args[0].ty.shape)[1:]))
        with torch.no_grad():
            expected = layer(x).numpy()
        if layer.bias is not None:
            expected = expected - layer.bias.detach().numpy().reshape(-1, *[1] * (expected.ndim - 2))
        np.testing.assert_allclose(apply_layer(use, x.numpy(), weight.weight), expected, atol=1e-5)
        if isinstance(layer, nn.Conv2d):
            unfolded = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            gathered = columns(use, x.numpy())
            assert gathered.shape[0] == layer.groups
            expected_columns = unfolded.numpy().transpose(1, 0, 2).reshape(gathered.shape)
            np.testing.assert_array_equal(gathered, expected_columns)
            some = np.array([0, 3])
            positions = unfolded.numpy()[:, :, some].transpose(1, 0, 2).reshape(*gathered.shape[:2], -1)
            np.testing.assert_array_equal(columns(use, x.numpy(), some), positions)


@pytest.mark.parametrize("kind", [Mlp, Convolutions, Shared, Recurrent])
def test_memory_and_batches_do_not_change_the_codes(kind):
    _, model, data = make(kind)
    config = tvmq.GPFQ(weights=2, activations=None, constant=2.0)
    one = weights_of(tvmq.quantize(model, config, data))
    spilled = weights_of(tvmq.quantize(model, config, data, memory=0))
    rebatched = weights_of(tvmq.quantize(model, config, data, batch_size=8))
    for name, weight in one.items():
        assert np.mean(spilled[name] != weight) <= 0.01, name  # Gram and residual form differ in rounding
        assert np.mean(rebatched[name] != weight) <= 0.01, name


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_quantized_activations_compile_to_packed_kernels(bits):
    _, model, data = make(Convolutions)
    quantized = tvmq.quantize(model, tvmq.GPFQ(weights="ternary", activations=bits), data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = tvmq.compile(quantized, "host", check_inputs=[data[:4]])
    for one, other in zip(quantized.run(data[:4]), bundle.run(data[:4]), strict=True):
        np.testing.assert_array_equal(one, other)
    kernels = {row["name"]: row["kernel"] for row in bundle.layers("host")}
    for name in ("stem", "dilated", "shortcut", "head"):
        assert kernels[name].startswith(("bitserial", "int8")), kernels


class Wide(nn.Module):
    """Layers that are large enough for packed weights: odd sizes, a stride, a dilation, a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 21, 3, padding=1)
        self.norm = nn.BatchNorm2d(21)
        self.strided = nn.Conv2d(21, 33, 3, stride=2, padding=1, bias=False)
        self.dilated = nn.Conv2d(33, 18, (1, 3), padding=(0, 2), dilation=2)
        self.grouped = nn.Conv2d(18, 18, 3, groups=3)
        self.tokens, self.head = nn.Linear(18, 40), nn.Linear(40, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.grouped(torch.relu(self.dilated(torch.relu(self.strided(x)))))
        return self.head(torch.relu(self.tokens(x.flatten(2).transpose(1, 2).contiguous())).mean(1))


@pytest.mark.parametrize("weights", ["ternary", 2, 3, 4])
def test_float_activations_compile_to_packed_weights(weights):
    torch.manual_seed(0)
    network = Wide().eval()
    data = torch.randn(24, 3, 9, 11)
    batch = torch.export.Dim("batch", min=1)
    model = tvmq.load(torch.export.export(network, (data[:4],), dynamic_shapes=({0: batch},)))
    quantized = tvmq.quantize(model, tvmq.GPFQ(weights=weights, radius="channel"), data.numpy())
    bundle = tvmq.compile(quantized, "host", check_inputs=[data[:4].numpy()], verify=True)
    for samples in (1, 3, 8):
        golden, compiled = quantized.run(data[:samples].numpy())[0], bundle.run(data[:samples].numpy())[0]
        np.testing.assert_array_equal(golden.view(np.int32), compiled.view(np.int32))
    rows = {row["name"]: row for row in bundle.layers("host")}
    bits = 2 if weights == "ternary" else weights
    for name in ("stem", "strided", "dilated", "tokens", "head"):
        operator = "dense" if name in ("tokens", "head") else "conv2d"
        assert (rows[name]["kernel"], rows[name]["weight_bits"]) == (f"weight-only {operator}", bits)
        assert rows[name]["activation_bits"] == 32 and "registers" in rows[name]["reason"]
        assert rows[name]["bytes_packed"] < rows[name]["bytes_float"] / 2.5
        assert rows[name]["function"] is not None and rows[name]["function"].startswith(name)
    assert rows["grouped"]["kernel"] == "float conv2d" and "grouped convolutions" in rows["grouped"]["reason"]


def test_small_layers_stay_float():
    _, model, data = make(Mlp)
    quantized = tvmq.quantize(model, tvmq.GPFQ(weights=2), data)
    rows = tvmq.compile(quantized, "host").layers("host")
    assert [row["kernel"] for row in rows] == ["weight-only dense", "weight-only dense", "float dense"]
    assert rows[-1]["reason"] == "its input is not quantized, and its weights are few"


def test_packed_weights_make_the_library_smaller():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(512, 768), nn.ReLU(), nn.Linear(768, 512)).eval()
    data = torch.randn(32, 512)
    model = tvmq.load(network, (data[:1],))
    quantized = tvmq.quantize(model, tvmq.GPFQ(), data.numpy(), batch_size=1)
    plain, packed = (tvmq.compile(item, "host") for item in (model, quantized))
    assert len(plain.libraries["host"]) - len(packed.libraries["host"]) > 0.9 * 4 * 2 * 512 * 768
    assert sum(row["bytes_packed"] for row in packed.layers("host")) < 4 * 2 * 512 * 768 / 15


def test_activation_error_is_walked_against():
    """The walk sees rounded inputs, so its weights differ from those of float activations."""
    _, model, data = make(Mlp, samples=512)
    plain = tvmq.quantize(model, tvmq.GPFQ(weights=4, constant=4.0), data)
    rounded = tvmq.quantize(model, tvmq.GPFQ(weights=4, activations=2, constant=4.0), data)
    assert (weights_of(plain)["fc2"] != weights_of(rounded)["fc2"]).any()
    assert [row["activations"] for row in rounded.quantization] == [8, 2, 2]
    assert [row["activations"] for row in plain.quantization] == [None] * 3


def test_search_and_options_lower_the_error():
    _, model, data = make(Convolutions, samples=200)
    errors = {
        name: [row["relative_error"] for row in tvmq.quantize(model, config, data).quantization]
        for name, config in {
            "poor": tvmq.GPFQ(constant=8.0),
            "search": tvmq.GPFQ(),
            "channel": tvmq.GPFQ(radius="channel"),
            "corrected": tvmq.GPFQ(bias_correction=True),
            "walk": tvmq.GPFQ(walk="channel"),
        }.items()
    }
    assert errors["search"][0] < errors["poor"][0]
    assert errors["search"][0] <= errors["walk"][0]
    assert errors["channel"][0] < errors["poor"][0]
    for row in tvmq.quantize(model, tvmq.GPFQ(), data).quantization[1:]:
        # (The stem sees white noise, on which no order of letters is better than another.)
        assert row["relative_error"] < row["scalar_relative_error"]


def test_bias_correction_removes_the_mean_error():
    network, model, data = make(Mlp, samples=256)
    config = {"constant": 2.0, "skip": ("fc2", "fc3")}
    with torch.no_grad():
        expected = network(torch.from_numpy(data)).numpy()
        means = {}
        for corrected in (False, True):
            quantized = tvmq.quantize(model, tvmq.GPFQ(bias_correction=corrected, **config), data)
            weight = torch.from_numpy(weights_of(quantized)["fc1"])
            error = torch.from_numpy(data) @ (network.fc1.weight - weight).T
            means[corrected] = error.mean(0).numpy()
            assert quantized.run(data)[0].shape == expected.shape
    corrections = [
        binding
        for block in quantized.module["main"].body.blocks
        for binding in block.bindings
        if binding.var.name == "fc1_correction"
    ]
    value = corrections[0].value.args[1].value.numpy().reshape(-1)
    np.testing.assert_allclose(value, means[True], atol=1e-5)


def test_first_last_and_skipped_layers_stay():
    _, model, data = make(Convolutions)
    quantized = tvmq.quantize(
        model, tvmq.GPFQ(first_layer="float", last_layer="float", skip=("dil*",), activations=2), data
    )
    before, after = weights_of(model), weights_of(quantized)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {"grouped", "depthwise", "shortcut"}


def test_patches_are_drawn_by_the_seed():
    _, model, data = make(Convolutions)
    rows = tvmq.quantize(model, tvmq.GPFQ(patches=5), data).quantization
    assert rows[0]["rows"] == 5 * len(data)
    same, other = (tvmq.quantize(model, tvmq.GPFQ(patches=5, seed=seed), data) for seed in (0, 1))
    first = tvmq.quantize(model, tvmq.GPFQ(patches=5), data)
    np.testing.assert_array_equal(weights_of(first)["grouped"], weights_of(same)["grouped"])
    assert (weights_of(same)["grouped"] != weights_of(other)["grouped"]).any()


class _Interrupt:
    """Raises at the first report from a layer."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(self, progress) -> None:
        assert 0 <= progress.fraction <= 1 and progress.seconds_left >= 0
        if progress.layer == self.layer:
            raise KeyboardInterrupt


def test_an_interrupted_run_resumes(tmp_path):
    _, model, data = make(Convolutions)
    config = tvmq.GPFQ(activations=2, bias_correction=True, patches=6)
    whole = tvmq.quantize(model, config, data)
    folder = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt):
        tvmq.quantize(model, config, data, checkpoint=folder, progress=_Interrupt("dilated"))
    assert len(list(folder.glob("layer-*.npz"))) == 3
    resumed_layers = []
    resumed = tvmq.quantize(
        model, config, data, checkpoint=folder, progress=lambda moment: resumed_layers.append(moment.layer)
    )
    assert set(resumed_layers) == {"dilated", "shortcut", "head"}
    for name, weight in weights_of(whole).items():
        np.testing.assert_array_equal(weights_of(resumed)[name], weight)
    np.testing.assert_array_equal(whole.run(data[:4])[0], resumed.run(data[:4])[0])
    with pytest.raises(tvmq.InputError, match=r"another config.*delete the folder"):
        tvmq.quantize(model, tvmq.GPFQ(activations=3), data, checkpoint=folder)
    with pytest.raises(tvmq.InputError, match="another calibration"):
        tvmq.quantize(model, config, data[:50], checkpoint=folder)


def test_a_zero_layer_stays_zero():
    network, _, data = make(Mlp)
    with torch.no_grad():
        network.fc2.weight.zero_()
    model = tvmq.load(network, torch.from_numpy(data[:4]))
    for weights in ("ternary", 2):
        quantized = tvmq.quantize(
            model, tvmq.GPFQ(weights=weights, radius="channel"), data[:4].repeat(8, 0), batch_size=4
        )
        found = weights_of(quantized)
        assert not found["fc2"].any()
        assert all(np.isfinite(weight).all() for weight in found.values())


def test_dead_inputs_are_counted():
    _, model, data = make(Mlp)
    data[:, 3:5] = 0
    row = tvmq.quantize(model, tvmq.GPFQ(weights=2), data).quantization[0]
    assert row["dead_inputs"] == 2


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        (tvmq.GPFQ(skip=("fc9",)), None, "skip pattern 'fc9' matches no layer"),
        (tvmq.GPFQ(skip=("*",)), None, "nothing to quantize"),
        (tvmq.GPFQ(), np.zeros((0, 20), np.float32), "no samples|empty"),
        (tvmq.GPFQ(), np.full((4, 20), np.nan, np.float32), "NaN"),
        (tvmq.GPFQ(), np.zeros((4, 21), np.float32), "20"),
        ("ternary", np.zeros((4, 20), np.float32), r"tvmq.GPFQ\(\)"),
    ],
)
def test_bad_input(config, data, message):
    _, model, calibration = make(Mlp)
    with pytest.raises(tvmq.InputError, match=message):
        tvmq.quantize(model, config, calibration if data is None else data)


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": 5},
        {"weights": "binary"},
        {"weights": True},
        {"activations": 0},
        {"activations": 9},
        {"first_layer": "int8"},
        {"constant": 0},
        {"constant": "best"},
        {"percentile": 20},
        {"patches": 0},
        {"seed": -1},
        {"skip": "conv1"},
        {"radius": "tensor"},
        {"walk": "tap"},
        {"activation_clip": "kl"},
        {"last_layer": "input8"},
    ],
)
def test_bad_configuration(fields):
    (name,) = fields
    with pytest.raises(tvmq.InputError, match=f"GPFQ: {name}=.*not supported; use"):
        tvmq.GPFQ(**fields)


@pytest.mark.filterwarnings("default:layer .* rows of calibration data")
def test_few_samples_are_warned_about():
    _, model, data = make(Mlp)
    with pytest.warns(UserWarning, match="layer 'fc1': 8 rows of calibration data for 20 inputs"):
        tvmq.quantize(model, tvmq.GPFQ(), data[:8])


def test_model_survives_a_round_trip():
    _, model, data = make(Mlp)
    quantized = tvmq.quantize(model, tvmq.GPFQ(activations=3), data)
    again = tvmq.Model.from_json(quantized.to_json())
    assert [dict(row) for row in again.quantization] == [dict(row) for row in quantized.quantization]
    np.testing.assert_array_equal(again.run(data[:4])[0], quantized.run(data[:4])[0])


class Sequence(nn.Module):
    """A linear layer over a transposed sequence, whose weight torch broadcasts to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(18, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mix(x.transpose(1, 2))).flatten(1))


def test_a_weight_that_is_broadcast_to_the_batch_stays_float():
    torch.manual_seed(0)
    x = torch.randn(40, 6, 3)
    batch = torch.export.Dim("batch", min=1)
    model = tvmq.load(torch.export.export(Sequence().eval(), (x[:2],), dynamic_shapes=({0: batch},)))
    quantized = tvmq.quantize(model, tvmq.GPFQ(activations=2, constant=2.0), x.numpy())
    assert "head" in [row["layer"] for row in quantized.quantization]
    assert quantized.run(x.numpy())[0].shape == (40, 4)
