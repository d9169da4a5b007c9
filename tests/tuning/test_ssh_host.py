"""Tuning on a board behind ssh: the ssh server is real, and the board is this machine."""

from __future__ import annotations

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
from tvmq.tuning import ssh_host, tune_kernels
from tvmq.tuning.journal import Journal, user_trials
from tvmq.tuning.places import host_of
from tvmq.tuning.search import Search
from tvmq.tuning.ssh_host import SshHost


@pytest.fixture
def ready(board):
    """This machine, with the interpreter of the tests as its Python runtime."""
    board.become(None)
    python = board.home / "tvmq-python" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return board


@pytest.fixture
def host(ready, target):
    found = host_of(ready.address, target)
    assert isinstance(found, SshHost)
    yield found
    found.close()


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


def test_a_kernel_is_tuned_there(ready, host, task, target, tmp_path):
    """Records say under which conditions they were measured; nothing is left on the board."""
    ready.program("vcgencmd", 'case "$1" in get_throttled) echo throttled=0x0 ;; *) echo "temp=51.2\'C" ;; esac')
    kernel = task()
    (tuned,) = tune_kernels([kernel], target, trials=3, host=host, output=tmp_path).kernels
    assert tuned.record.trials == 3
    (record,) = read_records(next(tmp_path.rglob("conv2d.json")))
    assert record.about["host"].startswith(host.description.split(",")[0])
    assert (record.about["temperature"], record.about["throttling"]) == ("51 °C", "none")
    assert record.about["governor"] and record.about["clock"]
    journal = Journal(user_trials() / next(user_trials().iterdir()).name, kernel.key.text, {})
    assert journal.path.exists()
    assert len(servers(ready)) >= 1
    host.close()
    wait_until(lambda: not servers(ready) and not ready.sessions())
    assert not (ready.home / "tvmq").exists()


def test_throttled_measurements_are_taken_again(ready, host, task, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_host, "ASKING_SECONDS", 0.01)
    states = ready.home / "states"
    states.write_text("0x0\n0x4\n0x0\n0x40000\n0x40000\n")  # throttled meanwhile, recovered; meanwhile again; calm
    one = f"head -n 1 {states}; sed -i '1{{$!d}}' {states}"
    ready.program("vcgencmd", f'[ "$1" = get_throttled ] || exit; {one}')
    search = Search(task(), host, Journal(tmp_path, "k", {}))
    host._ask()
    assert search.default_times().seconds > 0
    assert host.conditions()["throttling"] == "2 measurements discarded"
    assert host.failure is None


def test_a_board_that_stays_throttled(ready, host, task, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_host, "ASKING_SECONDS", 0.01)
    monkeypatch.setattr(ssh_host, "COOLING_SECONDS", 0.2)
    ready.program("vcgencmd", "echo throttled=0x1")
    search = Search(task(), host, Journal(tmp_path, "k", {}))
    with pytest.raises(BoardError) as error:
        search.default_times()
    assert "stays throttled for 0.2 seconds (under-voltage: use the board's own power supply" in str(error.value)
    assert str(error.value).endswith("what was measured is kept, and the same command goes on there")


@pytest.mark.parametrize("end", ["server", "connection"])
def test_what_is_lost_meanwhile_is_one_error_and_no_trial(ready, host, task, target, tmp_path, end):
    """Killed in the middle of a measurement; the next run goes on with the trials of this one."""
    kernel = task(size=8, channels=128)

    def kill(moment):
        if moment.trial < 8:
            return
        if end == "server":
            for process in servers(ready):
                os.kill(process, signal.SIGKILL)
        else:
            ready.cut()

    with pytest.raises(BoardError) as error:
        tune_kernels([kernel], target, trials=20, host=host, output=tmp_path, progress=kill)
    text = {"server": "the server that measures kernels was ended on the board", "connection": "connection was lost"}
    assert text[end] in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("what was measured is kept, and the same command goes on there")
    host.close()
    wait_until(lambda: not servers(ready))

    again = host_of(ready.address, target)
    try:
        (tuned,) = tune_kernels([kernel], target, trials=9, host=again, output=tmp_path).kernels
    finally:
        again.close()
    assert (tuned.resumed, tuned.record.trials) == (8, 9)


def test_a_kernel_that_crashes_is_one_point_less(ready, host, task, tmp_path):
    """It takes the process of its session along, not the server."""
    search = Search(task(), host, Journal(tmp_path, "k", {}))
    measured = host.times
    library = Path(host._folder.name) / "crash.so"
    source = "__attribute__((constructor)) static void crash(void) { *(volatile int *)0 = 0; }"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)], input=source, text=True, check=True)
    with pytest.raises(RuntimeError):
        measured(library, [], 1, lambda: True)
    assert host.failure is None
    assert search.default_times().seconds > 0


def test_an_interruption_ends_the_server(ready, tmp_path):
    """The real thing, as a process: Ctrl-C while it measures."""
    network = Path(tvmq.__file__).parents[1] / "examples" / "mnist" / "mnist-binary.onnx"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tvmq.__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-m", "tvmq.cli", "tune", str(network), "--on", ready.address, "--trials", "1000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "state").rglob("*.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert servers(ready)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), error
    assert error.startswith("tvmq: interrupted at kernel 1 of 4 after ")
    wait_until(lambda: not servers(ready) and not ready.sessions())


def test_a_target_for_another_core(board):
    board.become(PI_3)
    with pytest.raises(TargetError) as error:
        host_of(board.address, get_target("raspberry-pi-4"))
    assert "target 'raspberry-pi-4' is for cortex-a72, and the board's core is cortex-a53" in str(error.value)
    assert str(error.value).endswith("tune it with --target raspberry-pi-3")


def test_a_board_without_python(board):
    board.become(PI_4)
    with pytest.raises(BoardError, match="the Python runtime is not ready .* run there: python3 -m venv"):
        host_of(board.address, get_target("raspberry-pi-4"))
    wait_until(lambda: not board.sessions())


def test_a_server_that_does_not_start(ready, target):
    python = ready.home / "tvmq-python" / "bin" / "python"
    asked = f'case "$2" in *metadata*) exec {sys.executable} "$@" ;; esac'
    python.write_text(f'#!/bin/sh\n{asked}\necho "no tvm" >&2; exit 1\n')
    with pytest.raises(BoardError, match="the server that measures kernels does not start: no tvm"):
        SshHost(target, Address.parse(ready.address))
