"""`tvmq deploy`, `doctor` and `run --on ssh://` on the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import tvmq
from tests.boards import PI_4, ZERO, board, ssh_server  # noqa: F401  (fixtures)
from tvmq.cli import app
from tvmq.errors import BoardError
from tvmq.runtime.deploy import Deployment
from tvmq.runtime.timing import Timing

DONE = Deployment(
    "ssh://pi@board",
    "Raspberry Pi 4",
    "~/tvmq/net",
    "raspberry-pi-4",
    "cpp",
    2100000,
    Timing(2e-3, 1e-3, 3e-3, 0.02, 20),
    ("x",),
)


def command(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def replaced(monkeypatch):
    """Calls of tvmq.deploy, which answers at once."""
    calls = []

    def deploy(bundle, address, **options):
        calls.append({"bundle": bundle, "address": address, **options})
        return DONE

    monkeypatch.setattr(tvmq, "load_bundle", lambda path: f"loaded {path}")
    monkeypatch.setattr(tvmq, "deploy", deploy)
    return calls


def test_deploy(replaced):
    result = command("deploy", "net.tvmq", "pi@board", "--runtime", "python", "--name", "mine", "--target", "t")
    assert result.exit_code == 0, result.output
    assert replaced == [
        {"bundle": "loaded net.tvmq", "address": "pi@board", "runtime": "python", "name": "mine", "target": "t"}
    ]
    assert (
        "installed in ~/tvmq/net on ssh://pi@board (Raspberry Pi 4): raspberry-pi-4, cpp runtime, 2.1 MB"
        in result.stdout
    )
    assert "self-check passed; one run takes 2.000 ms (spread 2 %, 20 runs)" in result.stdout
    assert "  ~/tvmq/net/run.sh --input x.npy --output-prefix y\n" in result.stdout
    data = json.loads(command("deploy", "net.tvmq", "pi@board", "--json").stdout)
    assert (data["timing"]["median"], data["run"]) == (2e-3, DONE.run_command)


def test_deploy_fails_with_one_line(replaced, monkeypatch):
    def deploy(bundle, address, **options):
        raise BoardError("ssh://pi@board: no such host; check the name")

    monkeypatch.setattr(tvmq, "deploy", deploy)
    result = command("deploy", "net.tvmq", "pi@board")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "tvmq: error: ssh://pi@board: no such host; check the name\n"


@pytest.mark.parametrize(
    "words",
    [
        ["deploy", "net.tvmq"],
        ["deploy", "net.tvmq", "pi@board:99999"],
        ["deploy", "net.tvmq", "pi@board", "--runtime", "rust"],
        ["doctor", "a b"],
        ["doctor", "-oProxyCommand=true"],
        ["run", "net.tvmq", "--on", "ssh://"],
        ["run", "net.tvmq", "--on", "pi@board"],
    ],
)
def test_wrong_usage(words):
    result = command(*words)
    assert (result.exit_code, result.stdout) == (2, "")


def test_doctor(board):  # noqa: F811
    result = command("doctor", board.address)
    assert result.exit_code == 0, result.output
    assert "4 × cortex-a72, 64-bit system: compile with --target raspberry-pi-4" in result.stdout
    board.become(ZERO)
    result = command("doctor", board.address, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["target"] is None
    assert result.stderr.startswith(f"tvmq: error: {board.address}: networks cannot run there: ")
    assert result.stderr.count("\n") == 1


def test_run_on_a_board(monkeypatch):
    bundle = SimpleNamespace(
        manifest={"outputs": [{"name": "y"}]},
        check_inputs=[np.ones(2)],
        require_compiled=lambda: None,
        mismatches=lambda outputs: [] if outputs[0].tolist() == [2, 2] else ["wrong"],
    )

    def run_on_board(given, address, *arrays, target=None):
        assert (given, address, target) == (bundle, "ssh://pi@board:22", "raspberry-pi-4")
        return [array + 1 for array in arrays]

    monkeypatch.setattr(tvmq, "load_bundle", lambda path: bundle)
    monkeypatch.setattr(tvmq, "run_on_board", run_on_board)
    words = ("run", "net.tvmq", "--on", "ssh://pi@board:22", "--target", "raspberry-pi-4")
    assert command(*words, "--check").stdout == "net.tvmq: self-check passed\n"
    assert json.loads(command(*words, "--json").stdout)["on"] == "ssh://pi@board:22"
