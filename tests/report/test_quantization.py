from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tvmq.report import QuantizationReport, quantization_report
from tvmq.report.table import byte_count, count, duration, percent, table


def row(layer: str, **changes: object) -> dict[str, object]:
    entry: dict[str, object] = {
        "layer": layer,
        "inputs": 784,
        "neurons": 500,
        "rows": 25_000,
        "weights": "ternary",
        "levels": 3,
        "radius": 0.123456,
        "constant": 2.5,
        "activations": 2,
        "activation_step": 0.25,
        "relative_error": 0.125,
        "scalar_relative_error": 0.5,
        "dead_inputs": 0,
        "method": "gram",
        "seconds": 2.25,
    }
    return {**entry, **changes}


ROWS = [
    row("fc1", activations=None, dead_inputs=67),
    row(
        "layer1.0.conv1",
        weights="2 bits",
        radius={"min": 0.01, "max": 1.5},
        activations=1,
        scalar_relative_error=None,
        seconds=100,
    ),
]


def test_text():
    assert str(QuantizationReport(ROWS, "net")).splitlines() == [
        "net, quantized",
        "",
        "layer           inputs  neurons   rows  weights     radius  acts    error  rounded  dead   time",
        "--------------  ------  -------  -----  -------  ---------  -----  ------  -------  ----  -----",
        "fc1                784      500  25000  ternary      0.123  float  12.5 %   50.0 %    67  2.2 s",
        "layer1.0.conv1     784      500  25000  2 bits   0.01..1.5  1 bit  12.5 %        -     0  2 min",
        "",
        "2 layers with 784.00 k weights quantized in 2 min; error is of a layer's output on the calibration data, "
        "rounded that of rounding each weight alone; dead inputs are zero on all calibration data",
    ]


def test_text_without_dead_inputs():
    assert "dead inputs" not in str(QuantizationReport([row("fc1")], "net"))
    assert "1 layer with 392.00 k weights quantized in 2.2 s" in str(QuantizationReport([row("fc1")], "net"))


def test_what_is_unknown_is_a_dash():
    text = str(QuantizationReport([{"layer": "fc1"}], "net"))
    assert text.splitlines()[4].split() == ["fc1", "-", "-", "-", "-", "-", "float", "-", "-", "-", "-"]
    assert QuantizationReport([row("fc1"), {"layer": "fc2"}]).seconds is None


def test_no_layers():
    assert str(QuantizationReport((), "net")) == "net, quantized\nno quantized layers"


def test_dictionary_and_json():
    report = QuantizationReport(ROWS, "net")
    assert report.as_dict() == {
        "network": "net",
        "layers": ROWS,
        "totals": {"weights": 784_000, "dead_inputs": 67, "seconds": pytest.approx(102.25)},
    }
    assert json.loads(report.to_json()) == report.as_dict()


def test_from_a_manifest():
    report = quantization_report({"name": "net", "quantization": ROWS})
    assert report is not None
    assert (report.title, list(report.rows)) == ("net", ROWS)
    assert quantization_report({"name": "net"}) is None


def test_needs_neither_tvm_nor_numpy():
    code = "import sys, tvmq.report.quantization; print('tvm' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_table():
    assert table(["a", "number"], [["xyz", "1"]], {"number"}, ["sum", "10"]) == [
        "a    number",
        "---  ------",
        "xyz       1",
        "---  ------",
        "sum      10",
    ]
    assert table(["a"], []) == ["a", "-"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0004, "0 ms"),
        (0.025, "25 ms"),
        (0.1, "0.1 s"),
        (99.9, "99.9 s"),
        (100, "2 min"),
        (3540, "59 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_other_numbers():
    assert (percent(None), percent(0.5)) == ("-", "50.0 %")
    assert (byte_count(9_999), byte_count(10_000), byte_count(10_000_000)) == ("9999 B", "10.0 kB", "10.0 MB")
    assert (count(999), count(1_000), count(2_500_000), count(10**9)) == ("999", "1.00 k", "2.50 M", "1.00 G")
