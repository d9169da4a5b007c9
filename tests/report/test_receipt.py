from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tvmq.errors import BundleError, TargetError
from tvmq.report import receipt


def layer(name: str, **changes: object) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": name,
        "operator": "conv2d",
        "weight_bits": 1,
        "activation_bits": 1,
        "kernel": "bitserial",
        "reason": "5.3x int8",
        "macs": 3_000_000,
        "bytes_float": 32_000,
        "bytes_packed": 1_000,
        "function": f"fused_{name}",
        "predicted_cycles": 300.0,
        "seconds": None,
    }
    return {**entry, **changes}


@pytest.fixture
def manifest():
    stem = layer(
        "conv1",
        weight_bits=32,
        activation_bits=32,
        kernel="float",
        reason="first layer",
        macs=1_000_000,
        bytes_float=4_000,
        bytes_packed=4_000,
        predicted_cycles=100.0,
    )
    return {"name": "net", "layers": {"host": [stem, layer("layer1.0.conv1")], "raspberry-pi-4": []}}


def test_totals(manifest):
    bill = receipt(manifest, "host")
    assert (bill.bytes_float, bill.bytes_packed) == (36_000, 5_000)
    assert bill.compression == pytest.approx(7.2)
    assert (bill.macs, bill.low_bit_macs) == (4_000_000, 3_000_000)
    assert bill.predicted_cycles == 400
    assert bill.seconds is None


def test_share_is_of_predicted_cycles_without_times(manifest):
    bill = receipt(manifest, "host")
    assert bill.share_of == "predicted cycles"
    assert [line.share for line in bill.layers] == [0.25, 0.75]


def test_share_is_of_the_measured_time_where_all_is_measured(manifest):
    bill = receipt(manifest, "host", {"conv1": 3e-4, "layer1.0.conv1": 1e-4})
    assert bill.share_of == "measured time"
    assert [line.share for line in bill.layers] == pytest.approx([0.75, 0.25])
    assert bill.seconds == pytest.approx(4e-4)


def test_one_missing_time_falls_back_to_the_prediction(manifest):
    bill = receipt(manifest, "host", {"conv1": 3e-4})
    assert bill.share_of == "predicted cycles"
    assert bill.layers[0].seconds == 3e-4
    assert bill.seconds is None


def test_measured_times_precede_those_of_the_manifest(manifest):
    for entry in manifest["layers"]["host"]:
        entry["seconds"] = 1.0
    assert receipt(manifest, "host").seconds == 2
    assert receipt(manifest, "host", {"conv1": 0.5}).seconds == 1.5


def test_without_any_number_there_is_no_share(manifest):
    for entry in manifest["layers"]["host"]:
        entry["predicted_cycles"] = None
    bill = receipt(manifest, "host")
    assert bill.share_of is None
    assert [line.share for line in bill.layers] == [None, None]
    assert "share is of" not in str(bill)


def test_text(manifest):
    assert str(receipt(manifest, "host", {"conv1": 3e-4, "layer1.0.conv1": 1e-4})).splitlines() == [
        "net on host",
        "",
        "layer           bits         kernel       float  packed      time   share  why",
        "--------------  -----------  ---------  -------  ------  --------  ------  -----------",
        "conv1           float×float  float       4000 B  4000 B  300.0 µs  75.0 %  first layer",
        "layer1.0.conv1  1×1          bitserial  32.0 kB  1000 B  100.0 µs  25.0 %  5.3x int8",
        "--------------  -----------  ---------  -------  ------  --------  ------  -----------",
        "total                                   36.0 kB  5000 B  400.0 µs",
        "",
        "1 of 2 layers run at 4 bits or fewer (75.0 % of 4.00 M multiply-accumulates); "
        "parameters 7.2x smaller than float32; share is of measured time",
    ]


def test_text_shows_a_dash_for_an_unknown_time(manifest):
    row = str(receipt(manifest, "host")).splitlines()[4]
    assert row.split() == [
        "conv1",
        "float×float",
        "float",
        "4000",
        "B",
        "4000",
        "B",
        "-",
        "25.0",
        "%",
        "first",
        "layer",
    ]


def test_eight_bit_activations_are_not_low_bit(manifest):
    manifest["layers"]["host"] = [layer("conv1", activation_bits=8)]
    bill = receipt(manifest, "host")
    assert bill.low_bit_macs == 0
    assert "1×8" in str(bill)


def test_network_without_weights(manifest):
    bill = receipt(manifest, "raspberry-pi-4")
    assert str(bill) == "net on raspberry-pi-4\nno layers with weights"
    assert bill.compression is None
    assert bill.seconds is None


def test_json_is_the_dictionary(manifest):
    bill = receipt(manifest, "host")
    assert json.loads(bill.to_json()) == bill.as_dict()
    assert bill.as_dict()["totals"]["bytes_packed"] == 5_000
    assert bill.as_dict()["layers"][1]["name"] == "layer1.0.conv1"


def test_other_target_names_those_that_there_are(manifest):
    with pytest.raises(TargetError, match=r"'raspberry-pi-5' \(compiled for: host, raspberry-pi-4\); did you mean"):
        receipt(manifest, "raspberry-pi-5")


def test_incomplete_layer(manifest):
    del manifest["layers"]["host"][1]["macs"]
    with pytest.raises(BundleError, match=r"layer 'layer1.0.conv1' has no 'macs'"):
        receipt(manifest, "host")


def test_needs_no_tvm():
    code = "import sys, tvmq.report; print('tvm' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
