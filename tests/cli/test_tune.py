"""``tvmq tune`` on the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tvmq
from tvmq.cli import app
from tvmq.errors import ToolchainError
from tvmq.records import Key, Record
from tvmq.tuning import TunedKernel, TuneProgress, TuneResult

NETWORK = Path(tvmq.__file__).parents[1] / "examples" / "mnist" / "mnist-binary.onnx"
RECORD = Record(
    Key("conv2d", {"width": 4}, {"kernel": "3x3"}, {"threads": 1}),
    {"tile": 2},
    {"tile": 1},
    4.0,
    5.0,
    0.01,
    64,
    {"host": "a board"},
)
RESULT = TuneResult("host", (TunedKernel("conv 3x3", 2, RECORD),), ("records/conv2d.json",))


def moment(**fields: object) -> TuneProgress:
    values: dict = {
        "kernel": "conv 3x3",
        "number": 2,
        "count": 5,
        "trial": 24,
        "trials": 64,
        "resumed": 0,
        "best_ratio": 0.8,
        "default_seconds": 5e-6,
        "fraction": 0.3,
        "seconds_left": 90.0,
    }
    return TuneProgress(**{**values, **fields})


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def tuned(monkeypatch):
    """Calls of tvmq.tune, which answers at once."""
    calls = []

    def tune(model, **options):
        calls.append({"model": model, **options})
        options["progress"](moment())
        return RESULT

    monkeypatch.setattr(tvmq, "load", lambda source: f"loaded {source}")
    monkeypatch.setattr(tvmq, "tune", tune)
    return calls


def command(*arguments: str):
    return CliRunner().invoke(app, ["tune", *arguments])


def test_options(tuned):
    result = command("net.onnx", "--target", "raspberry-pi-4", "--trials", "7", "--on", "tracker://a:1/k", "--again")
    assert result.exit_code == 0, result.stderr
    (call,) = tuned
    assert {name: call[name] for name in ("model", "target", "trials", "on", "again", "output")} == {
        "model": "loaded net.onnx",
        "target": "raspberry-pi-4",
        "trials": 7,
        "on": "tracker://a:1/k",
        "again": True,
        "output": None,
    }
    assert "tile=2" in result.stdout and "1.250x" in result.stdout
    assert "records in records/conv2d.json; `tvmq compile SOURCE` uses them" in result.stdout


def test_output_is_named_in_the_hint(tuned):
    assert "`tvmq compile SOURCE --schedules mine` uses them" in command("net.onnx", "--output", "mine").stdout
    assert tuned[0]["output"] == Path("mine")


def test_json(tuned):
    answer = json.loads(command("net.onnx", "--json").stdout)
    assert answer["target"] == "host" and answer["default_microseconds"] == 10 and answer["microseconds"] == 8
    assert answer["kernels"][0]["knobs"] == {"tile": 2} and answer["kernels"][0]["improved"]


def test_known_kernels_are_counted(tuned, monkeypatch):
    known = TuneResult("host", (TunedKernel("conv 3x3", 2, RECORD, known=True),), ("conv2d.json",))
    monkeypatch.setattr(tvmq, "tune", lambda model, **options: known)
    text = command("net.onnx").stdout
    assert "1 of 1 kernels were tuned before, --again repeats them" in text and "(tuned before)" in text


def test_resuming_is_said_once(monkeypatch, tuned):
    def tune(model, **options):
        for trial in (24, 32):
            options["progress"](moment(resumed=24, trial=trial))
        return RESULT

    monkeypatch.setattr(tvmq, "tune", tune)
    assert command("net.onnx").stderr.count("conv 3x3: going on after 24 trials of an earlier run") == 1


@pytest.mark.parametrize("before, message", [(0, "before the first trial"), (1, "at kernel 2 of 5 after 24 of its")])
def test_an_interruption_says_how_to_go_on(monkeypatch, tuned, before, message):
    def tune(model, **options):
        for _ in range(before):
            options["progress"](moment())
        raise KeyboardInterrupt

    monkeypatch.setattr(tvmq, "tune", tune)
    result = command("net.onnx")
    assert result.exit_code == 130 and f"interrupted {message}" in result.stderr


def test_errors_are_one_line(monkeypatch, tuned):
    def tune(model, **options):
        raise ToolchainError("tuning needs xgboost")

    monkeypatch.setattr(tvmq, "tune", tune)
    result = command("net.onnx")
    assert (result.exit_code, result.stderr) == (1, "tvmq: error: tuning needs xgboost\n")
    assert command("net.onnx", "--target", "raspberry").stderr.startswith("tvmq: error: unknown target 'raspberry'")
    assert command("net.onnx", "--trials", "0").exit_code == 2


def test_help_says_how_to_contribute():
    text = re.sub(r"\s+", " ", command("--help").stdout)
    for part in ("--output schedules", "schedules/TARGET/conv2d.json", "pull request", "through ssh only"):
        assert part in text


def test_a_bad_place_is_an_error_before_any_trial():
    result = command(str(NETWORK), "--on", "ssh://pi@board:0")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "port 0 is not between 1 and 65535" in result.stderr
    result = command(str(NETWORK), "--on", "pi@board")
    assert "cannot tune on 'pi@board'; use host, simulate, ssh://user@host, or tracker://" in result.stderr


def test_ctrl_c(tmp_path):
    """The real thing: interrupted between two rounds, the same command goes on."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tvmq.__file__).parents[1]), *sys.path])}
    arguments = [sys.executable, "-m", "tvmq.cli", "tune", str(NETWORK), "--trials"]
    process = subprocess.Popen(
        [*arguments, "1000"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "state").rglob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)  # whatever runs beside it needs the processor
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert out == "" and re.match(r"tvmq: interrupted at kernel 1 of 4 after \d+ of its trials, about .* before", error)
    (journal,) = (tmp_path / "state").rglob("*.jsonl")
    assert len([json.loads(line) for line in journal.read_text().splitlines() if line]) > 1
