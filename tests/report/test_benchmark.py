from __future__ import annotations

import json

import pytest

from tvmq.errors import InputError
from tvmq.report.benchmark import CAVEAT, BenchmarkReport, Contestant, FunctionTime, Series, kernel_kind
from tvmq.report.benchmark_chart import draw_benchmark

PNG = b"\x89PNG\r\n\x1a\n"


def contestant(name: str, seconds: tuple[float, ...], cpu: tuple[float, ...] | None = None, own=None) -> Contestant:
    cpu = cpu or seconds
    ratio = None if own is None else Series(tuple(a / b for a, b in zip(seconds, own.seconds.values, strict=True)))
    cpu_ratio = None if own is None else Series(tuple(a / b for a, b in zip(cpu, own.cpu_seconds.values, strict=True)))
    return Contestant(name, "1.2", "one stream", Series(seconds), Series(cpu), min(seconds), ratio, cpu_ratio)


def report(**changes: object) -> BenchmarkReport:
    own = contestant("tvmq", (0.010, 0.012, 0.011))
    fields: dict[str, object] = {
        "network": "lenet",
        "target": "host",
        "batch": 2,
        "threads": 1,
        "functions": (
            FunctionTime("quantize", 0.001),
            FunctionTime("conv", 0.004, "conv1", "conv2d", "bitserial xor", 1, 1, 8_000_000, 0.5),
            FunctionTime("quantize", 0.002),
            FunctionTime("matmul", 0.002, "fc", "dense", "float", 32, 32, 1_000, None),
        ),
        "own": own,
        "rivals": (contestant("onnxruntime int8", (0.02, 0.03, 0.033), None, own),),
        "left_out": {"openvino int8": "openvino is not installed"},
        "clock_hertz": Series((3e9, 3.1e9)),
        "rounds": 3,
        "machine": {"processor": "a core"},
        "versions": {"tvmq": "0.1.0"},
        "command": "tvmq bench",
    }
    return BenchmarkReport(**{**fields, **changes})


def test_series():
    series = Series((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (series.median, series.quartiles, series.spread) == (3.0, (2.0, 4.0), 2 / 3)
    with pytest.raises(InputError, match="at least one round"):
        Series(())


def test_times_add_up():
    found = report()
    assert found.seconds_in_layers == pytest.approx(0.006)
    assert found.seconds_between_layers == pytest.approx(0.003)
    assert found.seconds_outside_functions == pytest.approx(0.002)
    totals = found.as_dict()["totals"]
    assert totals["layers"] + totals["between_layers"] + totals["outside_functions"] == pytest.approx(totals["whole"])
    assert totals["macs"] == 8_001_000


def test_json_holds_everything():
    data = json.loads(report().to_json())
    assert set(data) == {
        *("command", "network", "target", "batch", "threads", "rounds", "interrupted", "exact", "accuracy", "note"),
        *("machine", "versions", "clock_hertz", "totals", "functions", "own", "rivals", "left_out"),
    }
    assert data["rivals"][0]["ratio"]["rounds"] == [pytest.approx(value) for value in (2.0, 2.5, 3.0)]
    assert data["rivals"][0]["ratio"]["median"] == pytest.approx(2.5)
    assert data["own"]["ratio"] is None
    assert data["functions"][1]["layer"] == "conv1" and data["functions"][0]["layer"] is None
    assert data["clock_hertz"]["minimum"] == 3e9
    assert data["note"] == CAVEAT


def test_table():
    text = str(report())
    lines = text.splitlines()
    assert lines[0] == "lenet on host: batch 2, 1 thread, 3 rounds, clock 3.05 GHz (spread 1.6 %)"
    assert next(part for part in lines if part.startswith("conv1 ")).split() == (
        "conv1 bitserial xor 1×1 8.00 M 4.000 ms 44.4 % 50.0 %".split()
    )
    assert "float×float" in text
    assert next(part for part in lines if part.startswith("quantize ×2")).split()[2:] == "3.000 ms 33.3 %".split()
    assert next(part for part in lines if part.startswith("other functions")).endswith("3.000 ms   33.3 %")
    assert "2.50" in next(part for part in lines if part.startswith("onnxruntime int8"))
    assert next(part for part in lines if part.startswith("openvino int8")).endswith(
        "left out: openvino is not installed"
    )
    assert CAVEAT in lines
    assert "The file says nothing about the accuracy of the low-bit network." in lines


def test_table_says_what_is_unusual():
    assert "(interrupted)" in str(report(interrupted=True))
    assert "accuracy of the low-bit network: 0.91" in str(report(accuracy=0.91))
    assert "does NOT give the outputs it must give" in str(report(exact=False))
    assert "GHz" not in str(report(clock_hertz=None))


def test_a_busy_machine_is_mentioned_and_its_cpu_time_counts():
    own = contestant("tvmq", (0.02, 0.02), (0.01, 0.01))
    busy = report(own=own, rivals=())
    assert "other processes had the processor for up to 50.0 % of the time" in str(busy)
    assert busy.seconds_whole == 0.01
    several = report(own=own, rivals=(), threads=2)
    assert several.seconds_whole == 0.02
    assert "busy" not in str(several) and "busy" not in str(report())


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("bitserial xor", "binary"),
        ("bitserial and", "binary"),
        ("bitserial table", "table"),
        ("bitserial dot", "int8"),
        ("int8", "int8"),
        ("weight-only dense", "float32"),
        ("float", "float32"),
    ],
)
def test_kind_of_kernel(kernel, kind):
    assert kernel_kind(kernel) == kind


@pytest.mark.parametrize("changes", [{}, {"rivals": ()}, {"threads": 2}])
def test_chart_is_written(tmp_path, changes):
    path = tmp_path / "bench.png"
    draw_benchmark(report(**changes), path)
    assert path.read_bytes().startswith(PNG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.png"]


def test_chart_of_many_functions(tmp_path):
    many = tuple(FunctionTime(f"function{index}", 1e-4 * index) for index in range(60))
    draw_benchmark(report(functions=many), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing/bench.png", "the chart cannot be written"), ("bench.txt", "choose one of .png, .svg, .pdf")],
)
def test_chart_that_cannot_be_written(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        draw_benchmark(report(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_chart_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"a chart needs matplotlib; install it with: pip install 'tvmq\[benchmarks\]'"
    ):
        draw_benchmark(report(), tmp_path / "bench.png")
