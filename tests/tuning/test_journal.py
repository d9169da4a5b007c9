"""Trials outlive the process that made them."""

from __future__ import annotations

import json

import pytest

from tvmq.errors import RecordError
from tvmq.tuning.journal import Journal, Trial, user_trials

TRIALS = [
    Trial({"tile": 1}, 1.0, 2e-6, 2e-6),
    Trial({"tile": 2}, None, None, None),
    Trial({"tile": 3}, 0.5, 1e-6, 2e-6),
]
ABOUT = {"tvmq": "0.1.0", "host": "a board"}


def written(folder, trials=TRIALS) -> Journal:
    journal = Journal(folder, "kernel", ABOUT)
    for trial in trials:
        journal.add(trial)
    return journal


def test_trials_are_found_again(tmp_path):
    written(tmp_path)
    assert Journal(tmp_path, "kernel", ABOUT).trials == TRIALS
    assert Journal(tmp_path, "another", ABOUT).trials == []


def test_nothing_is_written_before_the_first_trial(tmp_path):
    Journal(tmp_path / "new", "kernel", ABOUT)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_torn_line_is_dropped_and_the_next_one_is_not(tmp_path, kept):
    path = written(tmp_path).path
    before, last = path.read_text().rstrip().rsplit("\n", 1)
    path.write_text(f"{before}\n{last[: min(kept, len(last) - 1)]}")
    journal = Journal(tmp_path, "kernel", ABOUT)
    assert journal.trials == TRIALS[:2]
    journal.add(TRIALS[0])
    assert Journal(tmp_path, "kernel", ABOUT).trials == [*TRIALS[:2], TRIALS[0]]


def test_a_torn_header_starts_again(tmp_path):
    path = written(tmp_path, TRIALS[:1]).path
    path.write_text(path.read_text()[:9])
    assert written(tmp_path).trials == TRIALS
    assert Journal(tmp_path, "kernel", ABOUT).trials == TRIALS


@pytest.mark.parametrize("line", ["{}", "[]", "1", '{"knobs": {"tile": 1}, "ratio": 1.0}'])
def test_a_line_that_is_no_trial_is_dropped(tmp_path, line):
    with written(tmp_path).path.open("a") as file:
        file.write(line + "\n")
    assert Journal(tmp_path, "kernel", ABOUT).trials == TRIALS


def test_another_version_or_machine_starts_again(tmp_path):
    written(tmp_path)
    assert Journal(tmp_path, "kernel", {**ABOUT, "tvmq": "0.2.0"}).trials == []
    journal = Journal(tmp_path, "kernel", {**ABOUT, "host": "another"})
    journal.add(TRIALS[2])
    assert Journal(tmp_path, "kernel", {**ABOUT, "host": "another"}).trials == TRIALS[2:]


def test_forget(tmp_path):
    journal = written(tmp_path)
    journal.forget()
    assert journal.trials == [] and not journal.path.exists()
    journal.add(TRIALS[0])
    assert Journal(tmp_path, "kernel", ABOUT).trials == TRIALS[:1]


def test_every_line_is_json(tmp_path):
    header, *lines = [json.loads(line) for line in written(tmp_path).path.read_text().splitlines() if line]
    assert header == {"key": "kernel", **ABOUT}
    assert lines[0] == {"knobs": {"tile": 1}, "ratio": 1.0, "seconds": 2e-6, "default_seconds": 2e-6}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be"):
        written(tmp_path / "file")


def test_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert user_trials() == tmp_path / "tvmq" / "trials"
