from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tvmq
from tvmq.cli import app
from tvmq.errors import BundleError
from tvmq.runtime.device_folder import DeviceFolder


class FakeBundle:
    def __init__(self, *targets):
        self.targets = targets

    def only_target(self):
        if len(self.targets) > 1:
            raise BundleError("net.tvmq: several targets; choose with --target: a, b")
        return self.targets[0]

    def save_folder(self, path, *, target, force):
        if path.exists() and not force:
            raise BundleError(f"{path}: exists already; use --force")
        path.mkdir(exist_ok=True)
        return DeviceFolder(path, target, {"net.so": 300_000, "libtvmq.so": 1_750_000, "check-data/input_0.bin": 5000})


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words, targets=("raspberry-pi-4",)):
        monkeypatch.setitem(vars(tvmq), "load_bundle", lambda path: FakeBundle(*targets))
        return CliRunner().invoke(app, ["bundle", *words])

    return run


def test_folder_is_named_after_network_and_target(command):
    result = command("models/net.tvmq")
    assert result.exit_code == 0, result.output
    assert Path("net-raspberry-pi-4").is_dir()
    assert result.stdout == (
        "wrote net-raspberry-pi-4: network 0.30 MB, runtime and programs 1.75 MB\n"
        "copy it with `scp -r net-raspberry-pi-4 USER@DEVICE:`, and run ./check there\n"
    )


def test_json(command):
    data = json.loads(command("net.tvmq", "--target", "b", "-o", "out", "--json", targets=("a", "b")).stdout)
    assert (data["output"], data["target"]) == ("out", "b")
    assert (data["network_bytes"], data["runtime_bytes"]) == (300_000, 1_750_000)
    assert data["files"]["check-data/input_0.bin"] == 5000


@pytest.mark.parametrize(
    ("words", "message"),
    [(["net.tvmq"], "choose with --target: a, b"), (["net.tvmq", "--target", "a", "-o", "."], "use --force")],
)
def test_errors_are_one_line(command, words, message):
    result = command(*words, targets=("a", "b"))
    assert result.exit_code == 1
    assert result.stderr.startswith("tvmq: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert command("net.tvmq", "--target", "a", "-o", ".", "--force", targets=("a", "b")).exit_code == 0
