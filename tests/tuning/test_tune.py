"""Tuning a network on this machine: records, interruptions, and results that stay the same."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tvmq
from tvmq.errors import InputError, RecordError
from tvmq.records import RecordBook, read_records, user_folder
from tvmq.tuning import tune_kernels
from tvmq.tuning.journal import user_trials

SCRIPT = """
import dataclasses, sys
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.knobs import KINDS
from tvmq.kernels.workload import Conv2dWorkload
from tvmq.target import get_target
from tvmq.tuning import tune_kernels
from tvmq.tuning.tasks import Task

core = dataclasses.replace(get_target("host"), cores=1)
workload = Conv2dWorkload.from_json(sys.stdin.read())
task = Task(conv2d(workload, 1), KINDS["conv2d"], core)
tune_kernels([task], core, trials=int(sys.argv[1]), progress=lambda moment: print(moment.trial, flush=True))
"""


def test_a_network(model, tmp_path):
    moments = []
    result = tvmq.tune(model, trials=3, output=tmp_path / "schedules", progress=moments.append)
    assert max(kernel.runs for kernel in result.kernels) == 2  # the two convolutions are one kernel
    (file,) = result.files
    board = tvmq.get_target("host").board
    assert Path(file) == tmp_path / "schedules" / board / "conv2d.json"
    records = read_records(Path(file))
    assert {item.key.text for item in records} == {kernel.record.key.text for kernel in result.kernels}
    for item in records:
        assert 1 <= item.trials <= 3 and item.microseconds <= item.default_microseconds
        assert set(item.about) == {"date", "host", "tvmq", "tvm", "xgboost"}
    assert json.loads(json.dumps(result.as_dict()))["kernels"][0]["trials"] == result.kernels[0].record.trials
    assert max(item.trials for item in records) == 3
    assert "speed-up" in str(result) and result.kernels[0].title in str(result)
    fractions = [moment.fraction for moment in moments]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert moments[-1].number == moments[-1].count == len(result.kernels)

    again = tvmq.tune(model, trials=3, output=tmp_path / "schedules")
    assert all(kernel.known for kernel in again.kernels) and again.files == result.files
    more = tvmq.tune(model, trials=4, output=tmp_path / "schedules")
    gone_on = [kernel for kernel in more.kernels if not kernel.known]  # the others have no fourth point
    assert gone_on and all((kernel.resumed, kernel.record.trials) == (3, 4) for kernel in gone_on)

    before, after = tvmq.compile(model), tvmq.compile(model, schedules=tmp_path / "schedules")
    count = sum(kernel.runs for kernel in result.kernels)
    assert after.report("host").schedules["tuned"] == count
    assert f"schedules: {count} tuned" in str(after.report("host"))
    image = np.random.default_rng(0).standard_normal((1, 1, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(after.run(image)[0], before.run(image)[0])
    np.testing.assert_array_equal(after.run(image)[0], model.run(image)[0])


def test_records_of_the_user_are_used_without_asking(model):
    tvmq.tune(model, trials=1)
    assert tvmq.compile(model).report("host").schedules["default"] == 0


def test_a_damaged_file_of_records_ends_compiling(model):
    folder = user_folder() / tvmq.get_target("host").board
    folder.mkdir(parents=True)
    (folder / "conv2d.json").write_text("{")
    with pytest.raises(RecordError, match=r"conv2d\.json: not valid JSON"):
        tvmq.compile(model)
    with pytest.raises(RecordError, match=r"conv2d\.json: not valid JSON"):
        tvmq.tune(model, trials=1)


def test_wrong_arguments(model, target, tmp_path):
    with pytest.raises(InputError, match=r"tune takes a tvmq\.Model"):
        tvmq.tune("net.onnx")
    with pytest.raises(InputError, match="trials must be 1 or more, not 0"):
        tvmq.tune(model, trials=0)
    with pytest.raises(InputError, match="cannot tune on 'here'"):
        tvmq.tune(model, on="here")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="file: cannot be made"):
        tvmq.tune(model, output=tmp_path / "file")


def test_nothing_to_tune(target, tmp_path):
    result = tune_kernels([], target, output=tmp_path)
    assert result.kernels == () and str(result).startswith("nothing to tune for host")


def test_disturbed_times_are_told(task, target, tmp_path, fake_host):
    kernel = task()
    result = tune_kernels([kernel], target, trials=2, host=fake_host(kernel, lambda point: 1.0), output=tmp_path)
    assert "disturbed" not in str(result)
    (tuned,) = result.kernels
    noisy = dataclasses.replace(tuned, record=dataclasses.replace(tuned.record, spread=0.2))
    assert "disturbed the times of 1 of 1 kernels: see --again" in str(dataclasses.replace(result, kernels=(noisy,)))


def test_minor_kernels_get_fewer_trials(task, target, tmp_path, fake_host):
    kernels = [task(size=4, count=99), task(size=5)]
    host = fake_host(kernels[0], lambda point: 1.0)
    host.points.update(fake_host(kernels[1], lambda point: 1.0).points)
    result = tune_kernels(kernels[::-1], target, trials=8, host=host, output=tmp_path)
    assert [(kernel.runs, kernel.record.trials) for kernel in result.kernels] == [(99, 8), (1, 2)]


def test_again_measures_again(task, target, tmp_path, fake_host):
    kernel = task()
    host = fake_host(kernel, lambda point: 1.0)
    tune_kernels([kernel], target, trials=3, host=host, output=tmp_path)
    host.measured.clear()
    tune_kernels([kernel], target, trials=3, host=host, output=tmp_path)
    assert host.measured == []
    tune_kernels([kernel], target, trials=3, host=host, output=tmp_path, again=True)
    assert len(host.measured) > 3


def test_an_interruption_keeps_trials_and_finished_kernels(task, target, fake_host):
    kernels = [task(size=5, count=9), task(size=4)]
    host = fake_host(kernels[0], lambda point: 1.0)
    host.points.update(fake_host(kernels[1], lambda point: 1.0).points)

    def interrupt(moment):
        if moment.number == 2 and moment.trial:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tune_kernels(kernels, target, trials=12, host=host, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    book = RecordBook.of(target)
    assert book.exact(kernels[0].key) is not None and book.exact(kernels[1].key) is None

    host.measured.clear()
    resumed = tune_kernels(kernels, target, trials=12, host=host)
    first, second = resumed.kernels
    assert first.known and not second.known and second.resumed == 8
    assert RecordBook.of(target).exact(kernels[1].key) is not None


def test_a_killed_run_goes_on_where_it_stopped(task):
    text = str(task().function.attrs["tvmq.workload"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tvmq.__file__).parents[1]), *sys.path])}

    def start(trials: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(trials)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(text)
        process.stdin.close()
        return process

    killed = start(1000)
    assert [killed.stdout.readline() for _ in range(2)] == ["0\n", "8\n"]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (journal,) = user_trials().rglob("*.jsonl")
    kept = len([line for line in journal.read_text().splitlines() if line]) - 1
    assert kept >= 8
    assert not list(user_folder().rglob("*.json"))

    resumed = start(kept + 2)
    counts = [int(line) for line in resumed.stdout.read().split()]
    assert resumed.wait() == 0
    assert counts[0] == kept and counts[-1] == kept + 2
    (path,) = user_folder().rglob("*.json")
    assert read_records(path)[0].trials == kept + 2
