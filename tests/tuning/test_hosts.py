"""Where kernels are measured: here, and on a machine behind a tracker (on the loopback device)."""

from __future__ import annotations

import builtins
import os
import sys
import time

import pytest

from tvmq.errors import InputError, TargetError, ToolchainError
from tvmq.target import get_target
from tvmq.tuning.hosts import LocalHost, TrackerHost
from tvmq.tuning.journal import Journal
from tvmq.tuning.places import host_of
from tvmq.tuning.search import Search


@pytest.mark.parametrize(
    "on",
    [
        "",
        "Host",
        "localhost",
        "tracker://",
        "tracker://a:1",
        "tracker://a/k",
        "tracker://a:x/k",
        "tracker://a:1/",
        "tracker://a:1/k/l",
        "http://a:1/k",
    ],
)
def test_what_is_no_place(target, on):
    with pytest.raises(
        InputError, match=r"cannot tune on '.*'; use host, simulate, ssh://user@host, or tracker://address:port/key"
    ):
        host_of(on, target)


def test_a_target_that_cannot_run_here():
    with pytest.raises(
        TargetError, match=r"target 'raspberry-pi-4' is for aarch64.*--on ssh://user@host or tracker://"
    ):
        host_of("host", get_target("raspberry-pi-4"))


def test_no_tracker(target):
    with pytest.raises(ToolchainError, match=r"tracker://127\.0\.0\.1:1/k: no tracker answers there"):
        host_of("tracker://127.0.0.1:1/k", target)


def test_a_missing_package_is_explained(target, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name == "cloudpickle":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ToolchainError, match=r"needs cloudpickle; `pip install 'tvmq\[tune\]'`"):
        host_of("tracker://127.0.0.1:1/k", target)


def test_this_machine(target, task, tmp_path):
    kernel = task()
    search = Search(kernel, host_of("host", target), Journal(tmp_path, "k", {}))
    assert isinstance(search.host, LocalHost)
    times = search.default_times()
    assert 0.5 < times.ratio < 2 and 1e-8 < times.seconds < 1e-2
    search.run(3)
    assert [trial.ratio is not None for trial in search.journal.trials] == [True] * 3


@pytest.fixture
def tracker():
    """A tracker and one machine, both reachable from this computer only."""
    from tvm import rpc
    from tvm.rpc.server import Server
    from tvm.rpc.tracker import Tracker

    tracker = Tracker(host="127.0.0.1", port=9190, port_end=9290)
    server = Server(
        host="127.0.0.1", port=9300, port_end=9400, key="board", tracker_addr=("127.0.0.1", tracker.port), silent=True
    )
    client, deadline = rpc.connect_tracker("127.0.0.1", tracker.port), time.monotonic() + 60
    while not any(entry["key"] == "server:board" for entry in client.summary()["server_info"]):
        assert time.monotonic() < deadline, "the machine did not register"
        time.sleep(0.1)
    yield f"tracker://127.0.0.1:{tracker.port}"
    server.terminate()
    tracker.terminate()


def test_a_machine_behind_a_tracker(tracker, target, task, tmp_path, monkeypatch):
    with pytest.raises(ToolchainError, match=r"no machine is registered as 'other'; start one there with `python -m"):
        host_of(f"{tracker}/other", target)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers import tvmq from where we did
    host = host_of(f"{tracker}/board", target)
    assert isinstance(host, TrackerHost)
    search = Search(task(), host, Journal(tmp_path, "k", {}))
    search.run(2)
    assert [trial.ratio is not None for trial in search.journal.trials] == [True] * 2
    assert all(1e-8 < trial.seconds < 1e-2 for trial in search.journal.trials)
