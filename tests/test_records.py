"""Records of tuned schedules: files, merging, and looking up."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

import tvmq
from tvmq.errors import RecordError
from tvmq.records import Key, Record, RecordBook, file_name, read_records, user_folder, write_records
from tvmq.target import get_target

BOARD = get_target("raspberry-pi-4")
TRAITS = {"kernel": "3x3", "weight_planes": 1}


@pytest.fixture(autouse=True)
def no_records_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def key(width: int = 14, channels: int = 256, threads: int = 1, **traits: int | str) -> Key:
    return Key("conv2d", {"width": width, "channels": channels}, {**TRAITS, **traits}, {"threads": threads})


def record(of: Key | None = None, microseconds: float = 40.0, tile: int = 7, **fields: object) -> Record:
    values: dict = {
        "key": key() if of is None else of,
        "knobs": {"tile": tile},
        "default_knobs": {"tile": 2},
        "microseconds": microseconds,
        "default_microseconds": 50.0,
        "spread": 0.01,
        "trials": 64,
        "about": {"host": "a board", "date": "2026-11-21"},
    }
    return Record(**{**values, **fields})


def book(*records: Record) -> RecordBook:
    return RecordBook({item.key.text: item for item in records})


def test_what_is_written_is_read(tmp_path):
    records = [record(), record(key(28, 128)), record(key(weight_planes=2))]
    (path,) = write_records(tmp_path, BOARD, records)
    assert path == tmp_path / "raspberry-pi-4" / "conv2d.json"
    assert {item.key.text: item for item in read_records(path)} == book(*records).records
    assert [item.name for item in path.parent.iterdir()] == ["conv2d.json"]


def test_files_do_not_depend_on_the_order_of_writing(tmp_path):
    records = [record(), record(key(28, 128)), record(key(weight_planes=2))]
    (together,) = write_records(tmp_path / "a", BOARD, records)
    for item in reversed(records):
        (alone,) = write_records(tmp_path / "b", BOARD, [item])
    assert together.read_text() == alone.read_text()


def test_a_field_is_one_line(tmp_path):
    (path,) = write_records(tmp_path, BOARD, [record()])
    assert '      "knobs": { "tile": 7 },' in path.read_text().splitlines()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_better_record_stays(tmp_path, order):
    records = [record(microseconds=40.0, tile=7), record(microseconds=35.0, tile=5)]
    for index in order:
        (path,) = write_records(tmp_path, BOARD, [records[index]])
    assert read_records(path) == [records[1]]


def test_times_of_different_days_are_compared_by_their_speedup():
    slow_clock = record(microseconds=80.0, default_microseconds=120.0)
    assert slow_clock.beats(record(microseconds=40.0)) and not record(microseconds=40.0).beats(slow_clock)
    assert slow_clock.speedup == 1.5


def test_a_default_that_got_better_is_compared_by_time():
    before = record(microseconds=40.0)
    after = record(microseconds=38.0, default_microseconds=39.0, default_knobs={"tile": 4})
    assert after.beats(before) and not before.beats(after)


def test_a_later_measurement_of_the_same_knobs_stays(tmp_path):
    write_records(tmp_path, BOARD, [record(microseconds=30.0)])
    (path,) = write_records(tmp_path, BOARD, [record(microseconds=41.0)])
    assert read_records(path)[0].microseconds == 41.0


def test_host_has_the_folder_of_its_file(monkeypatch):
    host = dataclasses.replace(BOARD, name="host", board="raspberry-pi-4")
    assert file_name(host) == file_name(BOARD) == "raspberry-pi-4"
    assert file_name(get_target("host")) in {path.stem for path in tvmq.target.data_folder("targets").glob("*.toml")}


def test_user_folder(tmp_path, monkeypatch):
    assert user_folder() == tmp_path / "data" / "tvmq" / "schedules"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", ignored)
        assert user_folder() == tmp_path / ".local" / "share" / "tvmq" / "schedules"


def test_the_users_records_go_before_shipped_ones_and_a_named_folder_before_both(tmp_path, monkeypatch):
    monkeypatch.setattr("tvmq.records.data_folder", lambda _: tmp_path / "shipped")
    write_records(tmp_path / "shipped", BOARD, [record(tile=1), record(key(28))])
    assert RecordBook.of(BOARD).exact(key()).knobs == {"tile": 1}
    write_records(user_folder(), BOARD, [record(tile=2, microseconds=45.0)])
    assert RecordBook.of(BOARD).exact(key()).knobs == {"tile": 2}
    write_records(tmp_path / "mine", BOARD, [record(tile=3, microseconds=46.0)])
    assert RecordBook.of(BOARD, tmp_path / "mine").exact(key()).knobs == {"tile": 3}
    assert RecordBook.of(BOARD, tmp_path / "mine").exact(key(28)) is not None
    assert RecordBook.of(get_target("raspberry-pi-5")).exact(key()) is None


def test_a_named_folder_has_to_exist(tmp_path):
    with pytest.raises(RecordError, match="no such folder of schedules"):
        RecordBook.of(BOARD, tmp_path / "nothing")


def test_distance():
    assert key().distance(key()) == 0
    assert key().distance(key(7, 512)) == key(7, 512).distance(key()) == 2
    assert key().distance(key(threads=64)) == 0.5 and key().distance(key(28, threads=2)) == 1.5
    assert key().distance(key(weight_planes=2)) == math.inf
    assert key().distance(Key("other", key().shape, key().traits, key().details)) == math.inf
    assert key().distance(Key("conv2d", {"channels": 256}, TRAITS, key().details)) == math.inf


def test_nearest_shapes_in_order():
    records = [record(key(7, 512)), record(key(14, 128)), record(key(14, 64, weight_planes=2)), record(key(224, 3))]
    assert [item.key.shape["channels"] for item in book(*records).nearest(key())] == [128, 512]
    assert book(record()).nearest(key()) == []  # that is the record itself


def change(field: str, value: object):
    def apply(content: dict) -> None:
        content["records"][1][field] = value

    return apply


@pytest.mark.parametrize(
    "damage, message",
    [
        (change("knobs", {"tile": 0}), "record 2: 'knobs' must be 1 or more"),
        (change("knobs", {"tile": True}), "record 2: 'knobs' must be a table of whole numbers"),
        (change("knobs", {"other": 1}), "record 2: 'knobs' and 'default_knobs' must have the same names"),
        (change("shape", {"width": 0}), "record 2: 'shape' must be 1 or more"),
        (change("traits", [1]), "record 2: 'traits' must be a table of whole numbers and texts"),
        (change("details", {"threads": None}), "record 2: 'details' must be a table of whole numbers and texts"),
        (change("about", {"date": 1}), "record 2: 'about' must be a table of texts"),
        (change("microseconds", "fast"), "record 2: 'microseconds' must be a number, not 'fast'"),
        (change("microseconds", -1.0), "record 2: 'microseconds' must be above 0"),
        (change("default_microseconds", math.inf), "record 2: 'default_microseconds' must be above 0"),
        (change("spread", math.nan), "record 2: 'spread' must be 0 or more"),
        (change("trials", 1.5), "record 2: 'trials' must be a number"),
        (change("trials", 0), "record 2: 'trials' must be 1 or more"),
        (change("speed", 1), "record 2: unknown field 'speed'"),
        (lambda content: content["records"][1].pop("spread"), "record 2: 'spread' is missing"),
        (lambda content: content["records"].insert(1, "x"), "record 2: not a table of fields"),
        (lambda content: content.update(format=2), "written in format 2"),
        (lambda content: content.update(kernel="dense"), "'kernel' must be the file's name 'conv2d'"),
        (lambda content: content.pop("records"), "not a file of tuned schedules"),
    ],
)
def test_damaged_records_are_named(tmp_path, damage, message):
    (path,) = write_records(tmp_path, BOARD, [record(), record(key(28))])
    content = json.loads(path.read_text())
    damage(content)
    damaged = json.dumps(content)
    path.write_text(damaged)
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    with pytest.raises(RecordError):
        write_records(tmp_path, BOARD, [record(tile=5)])
    assert path.read_text() == damaged  # nothing was overwritten


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "records": [', b"\xff\xfe", b"[]"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "conv2d.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"conv2d\.json: not"):
        read_records(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file/raspberry-pi-4: cannot be written \(Not a directory\)"):
        write_records(tmp_path / "file", BOARD, [record()])


def test_shipped_records_are_valid():
    for folder in tvmq.target.data_folder("schedules").iterdir():
        if folder.is_dir():
            assert folder.name in {target.name for target in tvmq.targets()}
            for path in folder.iterdir():
                for item in read_records(path):
                    assert item.speedup >= 1 and set(item.about) >= {"date", "host", "tvmq", "tvm"}
