"""Tuning on a board behind ssh: the ssh server is real, and the board is this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tvmq
from tests.boards import PI_3, PI_4
from tvmq.errors import BoardError, TargetError
from tvmq.records import read_records
from tvmq.runtime.ssh import Address
from tvmq.target import get_target
from tvmq.tuning import search, ssh_host, tune_kernels
from tvmq.tuning.journal import Journal
from tvmq.tuning.places import host_of
from tvmq.tuning.search import Search
from tvmq.tuning.ssh_host import SshHost


def install_python(board) -> None:
    """Make the board this machine, with the interpreter of the tests as its Python runtime."""
    board.become(None)
    python = board.home / "tvmq-python" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)


@pytest.fixture(scope="module")
def host(ssh_server):
    """A board whose server has started, for all tests that leave it alive: starting takes seconds."""
    install_python(ssh_server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{ssh_server.client / 'bin'}:{os.environ['PATH']}")
        found = host_of(ssh_server.address, dataclasses.replace(get_target("host"), cores=1))
        assert isinstance(found, SshHost)
        yield found
        found.close()


@pytest.fixture
def ready(board):
    install_python(board)
    return board


@pytest.fixture
def few(monkeypatch):
    """Small rounds, and short finals."""
    monkeypatch.setattr(search, "BATCH", 2)
    monkeypatch.setattr(search, "FINALISTS", 1)
    monkeypatch.setattr(search, "FINAL_ROUNDS", 5)


def servers(board) -> list[int]:
    """Processes on the board that run its Python."""
    home = f"HOME={board.home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"kernel" in command and b"TVM_USE_RUNTIME_LIB=1" in environment and home in environment:
            found.append(int(folder.name))
    return found


def wait_until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_kernel_is_tuned_there(ssh_server, host, task, tmp_path, few):
    """Records say under which conditions they were measured; no file is left on the board."""
    ssh_server.program("vcgencmd", 'case "$1" in get_throttled) echo throttled=0x0 ;; *) echo "temp=51.2\'C" ;; esac')
    (tuned,) = tune_kernels([task()], host.target, trials=1, host=host, output=tmp_path).kernels
    assert tuned.record.trials == 1 and host.failure is None
    (record,) = read_records(next(tmp_path.rglob("conv2d.json")))
    assert record.about["host"] == host.description
    assert (record.about["temperature"], record.about["throttling"]) == ("51 °C", "none")
    assert record.about["governor"] and record.about["clock"]
    assert servers(ssh_server)
    assert not (ssh_server.home / "tvmq").exists()


def test_throttled_measurements_are_taken_again(ssh_server, host, task, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_host, "ASKING_SECONDS", 0.01)
    states = ssh_server.home / "states"
    states.write_text("0x0\n0x4\n0x0\n0x40000\n0x40000\n")  # throttled meanwhile, recovered; meanwhile again; calm
    one = f"head -n 1 {states}; sed -i '1{{$!d}}' {states}"
    ssh_server.program("vcgencmd", f'[ "$1" = get_throttled ] || exit; {one}')
    found = Search(task(), host, Journal(tmp_path, "k", {}))
    host._ask()
    assert found.default_times().seconds > 0
    assert host.conditions()["throttling"] == "2 measurements discarded"
    assert host.failure is None


def test_a_board_that_stays_throttled(ssh_server, host, task, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_host, "ASKING_SECONDS", 0.01)
    monkeypatch.setattr(ssh_host, "COOLING_SECONDS", 0.2)
    ssh_server.program("vcgencmd", "echo throttled=0x1")
    found = Search(task(), host, Journal(tmp_path, "k", {}))
    with pytest.raises(BoardError) as error:
        found.default_times()
    assert "stays throttled for 0.2 seconds (under-voltage: use the board's own power supply" in str(error.value)
    assert str(error.value).endswith("what was measured is kept, and the same command goes on there")
    host.failure = None  # the next test finds a calm board
    ssh_server.program("vcgencmd", "echo throttled=0x0")
    host._ask()


@pytest.mark.parametrize("end", ["server", "connection"])
def test_what_is_lost_meanwhile_is_one_error_and_no_trial(ready, task, target, tmp_path, few, end):
    """Killed in the middle of a measurement; the next run goes on with the trials of this one."""
    kernel = task()
    others = set(servers(ready)), set(ready.sessions())  # of the board that the other tests share

    def kill(moment):
        if moment.trial == (2 if end == "server" else 0):
            victims = set(ready.sessions()) - others[1] if end == "connection" else set(servers(ready)) - others[0]
            for process in victims:
                os.kill(process, signal.SIGKILL)

    host = host_of(ready.address, target)
    with pytest.raises(BoardError) as error:
        tune_kernels([kernel], target, trials=20, host=host, output=tmp_path, progress=kill)
    host.close()
    text = {"server": "the server that measures kernels was ended on the board", "connection": "connection was lost"}
    assert text[end] in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("what was measured is kept, and the same command goes on there")
    wait_until(lambda: set(servers(ready)) <= others[0])
    if end == "connection":
        return
    with contextlib.closing(host_of(ready.address, target)) as again:
        (tuned,) = tune_kernels([kernel], target, trials=3, host=again, output=tmp_path).kernels
    assert (tuned.resumed, tuned.record.trials) == (2, 3)


def test_a_kernel_that_crashes_is_one_point_less(host, task, tmp_path):
    """It takes the process of its session along, not the server."""
    found = Search(task(), host, Journal(tmp_path, "k", {}))
    library = Path(host._folder.name) / "crash.so"
    source = "__attribute__((constructor)) static void crash(void) { *(volatile int *)0 = 0; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=source, text=True, check=True)
    with pytest.raises(RuntimeError):
        host.times(library, [], 1, lambda: True)
    assert host.failure is None
    assert found.default_times().seconds > 0


def test_an_interruption_ends_the_server(ready, model, few):
    """Ctrl-C while it measures."""
    alive = []

    def interrupt(moment):
        if not alive:
            alive.extend(servers(ready))
            os.kill(os.getpid(), signal.SIGINT)

    before = set(servers(ready))
    with pytest.raises(KeyboardInterrupt):
        tvmq.tune(model, on=ready.address, trials=4, progress=interrupt)
    assert set(alive) > before
    wait_until(lambda: set(servers(ready)) <= before)


def test_a_target_for_another_core(board):
    board.become(PI_3)
    with pytest.raises(TargetError) as error:
        host_of(board.address, get_target("raspberry-pi-4"))
    assert "target 'raspberry-pi-4' is for cortex-a72, and the board's core is cortex-a53" in str(error.value)
    assert str(error.value).endswith("tune it with --target raspberry-pi-3")


def test_a_board_without_python(board):
    board.become(PI_4)
    before = set(board.sessions())
    with pytest.raises(BoardError, match=r"the Python runtime is not ready .* run there: python3 -m venv"):
        host_of(board.address, get_target("raspberry-pi-4"))
    wait_until(lambda: set(board.sessions()) <= before)


def test_a_server_that_does_not_start(ready, target):
    python = ready.home / "tvmq-python" / "bin" / "python"
    asked = f'case "$2" in *metadata*) exec {sys.executable} "$@" ;; esac'
    python.write_text(f'#!/bin/sh\n{asked}\necho "no tvm" >&2; exit 1\n')
    with pytest.raises(BoardError, match="the server that measures kernels does not start: no tvm"):
        SshHost(target, Address.parse(ready.address))
