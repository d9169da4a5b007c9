"""Networks from torch to libraries: what runs equals the golden executor bit for bit, and torch closely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvmq
from tests.networks.small import Concat, Residual, convnet, images, prepared, randomize
from tvmq.errors import InputError, ModelError, TargetError, ToolchainError
from tvmq.machine import this_machine
from tvmq.target import get_target

X86 = ["x86-avx2", "x86-avx512", "x86-avx512-vpopcntdq"]
RUNNABLE = [
    name
    for name in X86
    if this_machine().obstacle(get_target(name).triple, get_target(name).required_cpu_flags) is None
]


def check(net: nn.Module, x: torch.Tensor, target: str, tolerance: float = 1e-5, verify: bool = False) -> tvmq.Bundle:
    """Bundle equals Model exactly, and Model equals torch closely.

    To verify says after which pass a difference begins; that there is one is found without.
    """
    model = tvmq.load(net, (x,))
    bundle = tvmq.compile(model, target, check_inputs=[x.numpy()], verify=verify)
    golden = model.run(x.numpy())[0]
    np.testing.assert_array_equal(bundle.run(x.numpy(), target=target)[0], golden)
    with torch.no_grad():
        np.testing.assert_allclose(golden, net(x).numpy(), atol=tolerance, rtol=tolerance)
    return bundle


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_binary_network_with_eight_bit_input(target, channels):
    bundle = check(prepared(convnet(channels)), images(3, channels), target, verify=channels == 3)
    rows = bundle.layers(target)
    assert [row["name"] for row in rows] == ["0", "4", "7", "11", "14"]
    assert [(row["weight_bits"], row["activation_bits"]) for row in rows] == [(1, 8), *[(1, 1)] * 4]
    assert rows[0]["kernel"] == f"int8 {get_target(target).dot}"
    assert all(row["kernel"].startswith("bitserial") for row in rows[1:])


def test_first_layer_by_sign():
    check(prepared(convnet(), first_layer="quantized"), images(2) - 0.5, "host")


def test_float_first_and_last_layer_stay_float():
    bundle = check(prepared(convnet(), first_layer="float", last_layer="float"), images(2), "host", 1e-4)
    rows = bundle.layers("host")
    limits = get_target("host").mac_per_cycle
    binary = "bitserial table" if limits.get("table1", 0) > limits["binary"] else "bitserial xor"
    assert [row["kernel"] for row in rows] == ["float conv2d", *[binary] * 3, "float dense"]
    assert rows[0]["reason"] == rows[-1]["reason"] == "its input is not quantized"


def test_skipped_layers_stay_float_between_packed_ones():
    bundle = check(prepared(convnet(), skip=("7",)), images(2), "host", 1e-4)
    assert [row["kernel"] for row in bundle.layers("host")][2] == "float conv2d"


@pytest.mark.parametrize("module, channels", [(Residual, 3), (Concat, 3)])
def test_branches(module, channels):
    check(prepared(module()), images(2, channels), "host", 1e-4, verify=True)


def test_a_network_with_nothing_to_quantize():
    module = randomize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(100, 3)))
    x = images(2)
    model = tvmq.load(module, (x,))
    bundle = tvmq.compile(model)
    np.testing.assert_allclose(bundle.run(x.numpy())[0], module(x).detach().numpy(), atol=1e-5)
    assert {row["kernel"] for row in bundle.layers("host")} == {"float conv2d", "float dense"}


def test_dynamic_batch():
    net = prepared(convnet())
    model = tvmq.load(net, (images(2),), dynamic_batch=True)
    bundle = tvmq.compile(model, verify=True)
    for batch in (1, 5):
        x = images(batch, seed=batch).numpy()
        np.testing.assert_array_equal(bundle.run(x)[0], model.run(x)[0])


def test_several_targets_in_one_bundle_and_a_round_trip(tmp_path):
    net, x = prepared(convnet()), images(1)
    bundle = tvmq.compile(tvmq.load(net, (x,)), ["host", "x86-avx2"])
    bundle.save(tmp_path / "net.tvmq")
    again = tvmq.load_bundle(tmp_path / "net.tvmq")
    assert again.targets == ["host", "x86-avx2"]
    for target in again.targets:
        assert again.check(target) == []
    reloaded = tvmq.load(tmp_path / "net.tvmq")
    np.testing.assert_array_equal(reloaded.run(x.numpy())[0], bundle.run(x.numpy())[0])


def test_debug_folder_has_the_module_after_every_pass(tmp_path):
    tvmq.compile(tvmq.load(prepared(convnet()), (images(1),)), debug_dir=tmp_path)
    names = [path.name for path in sorted((tmp_path / "host").iterdir())]
    assert names[0] == "00-source.py"
    lowered = next(name for name in names if "LowerBitserial" in name)
    assert "tvmq.bitserial_conv2d" in (tmp_path / "host" / lowered).read_text()


def test_report_has_a_time_and_a_reason_for_every_layer():
    report = tvmq.compile(tvmq.load(prepared(convnet()), (images(1),))).report()
    assert all(row.seconds and row.seconds > 0 and row.reason for row in report.layers)
    assert report.compression > 4


@pytest.mark.parametrize("target", ["raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-3-32"])
def test_raspberry_pi_binaries_under_emulation(target):
    x = images(2, 3)
    model = tvmq.load(prepared(convnet(3)), (x,))
    bundle = tvmq.compile(model, target, check_inputs=[x.numpy()])
    np.testing.assert_array_equal(bundle.run_emulated(target, x.numpy())[0], model.run(x.numpy())[0])


def test_unknown_target_before_any_work():
    model = tvmq.load(prepared(convnet()), (images(1),))
    with pytest.raises(TargetError, match="did you mean 'raspberry-pi-4'"):
        tvmq.compile(model, "rasberry-pi-4")


def test_a_torch_module_is_not_a_model():
    with pytest.raises(InputError, match=r"tvmq\.load"):
        tvmq.compile(convnet())


def test_check_inputs_of_the_wrong_shape():
    model = tvmq.load(prepared(convnet()), (images(1),))
    with pytest.raises(InputError, match="shape"):
        tvmq.compile(model, check_inputs=[np.zeros((1, 1, 5, 5), np.float32)])


def test_missing_cross_compiler_names_the_package(monkeypatch):
    model = tvmq.load(prepared(convnet()), (images(1),))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolchainError, match="apt-get install g\\+\\+-aarch64-linux-gnu"):
        tvmq.compile(model, "raspberry-pi-4")


def test_nan_in_a_batch_norm_names_the_layer():
    net = prepared(convnet())
    net[2].running_mean[3] = float("nan")
    model = tvmq.load(net, (images(1),))
    with pytest.raises(ModelError, match="layer '0'"):
        tvmq.compile(model)
