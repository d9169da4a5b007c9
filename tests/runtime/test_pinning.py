from __future__ import annotations

import os
import threading

import pytest

from tvmq.errors import InputError
from tvmq.runtime import pinning
from tvmq.runtime.pinning import choose_processors, pinned


def test_a_process_is_held_and_let_go():
    before = os.sched_getaffinity(0)
    chosen = choose_processors(1)
    seen = []
    with pinned(chosen):
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        assert os.sched_getaffinity(0) == set(chosen)
    assert seen == [set(chosen)]
    assert os.sched_getaffinity(0) == before


def test_it_is_let_go_after_an_error():
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), pinned(choose_processors(1)):
        raise KeyError
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_too_many_threads_are_refused(count):
    with pytest.raises(InputError, match=rf"{count} threads, but this process may use 1 to \d+ processors"):
        choose_processors(count)


def test_different_cores_come_first(monkeypatch, tmp_path):
    for processor, core in enumerate([0, 0, 1, 1]):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "core_id").write_text(f"{core}\n")
        (folder / "physical_package_id").write_text("0\n")
    monkeypatch.setattr(pinning, "_SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert choose_processors(2) == [0, 2]
    assert choose_processors(3) == [0, 2, 1]
