"""Tuned schedules as plain data: reading, merging and looking up the files of ``schedules/``.

A record says which knobs a kernel ran fastest with, and what that was measured against.  It is named by meaning, not
by a hash of code: the *shape* (sizes that may lie near each other) and the *traits* (which have to be the same: bits,
window, epilogue, threads).  So records outlive changes of the code, and an unknown shape can take the knobs of a near
one.  Nothing here knows what a knob does; :mod:`tvmq.kernels.knobs` does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tvmq.errors import RecordError, TargetError
from tvmq.target import Target, data_folder

__all__ = [
    "COSTS",
    "SIMULATED",
    "Key",
    "Record",
    "RecordBook",
    "file_name",
    "read_records",
    "user_folder",
    "write_records",
]

FORMAT = 1
"""Version of the files."""
COSTS, SIMULATED = "costs", "simulated"
"""What a record's ``about`` says where nothing was measured."""
FARTHEST = 2.0
"""Distance up to which one kernel may take the other's knobs."""
DETAIL = 0.5
"""Distance of kernels that differ in one detail."""


@dataclass(frozen=True)
class Key:
    """What a kernel computes, as far as its schedule is concerned.

    Attributes
    ----------
    kernel : str
        Kind of kernel, such as ``"conv2d"``.
    shape : mapping of str to int
        Sizes, at least 1.
    traits : mapping of str to int or str
        What has to be equal for one kernel to be scheduled like another.
    details : mapping of str to int or str
        What may differ, though not for the best.
    """

    kernel: str
    shape: Mapping[str, int]
    traits: Mapping[str, int | str]
    details: Mapping[str, int | str]

    @cached_property
    def text(self) -> str:
        """The same text for equal keys; stable over runs."""
        parts = [self.kernel, dict(self.shape), dict(self.traits), dict(self.details)]
        return json.dumps(parts, sort_keys=True, separators=(",", ":"))

    def distance(self, other: Key) -> float:
        """How far a kernel is from another: 1 for every factor of two in a size; infinite for other traits."""
        same = self.kernel == other.kernel and dict(self.traits) == dict(other.traits)
        if not same or set(self.shape) != set(other.shape) or set(self.details) != set(other.details):
            return math.inf
        sizes = sum(abs(math.log2(size / other.shape[name])) for name, size in self.shape.items())
        return sizes + DETAIL * sum(value != other.details[name] for name, value in self.details.items())


@dataclass(frozen=True)
class Record:
    """The best known schedule of one kernel.

    Attributes
    ----------
    key : Key
        The kernel.
    knobs, default_knobs : mapping of str to int
        What was found, and the analytic schedule that it was measured against.  Equal where nothing beat that one.
    microseconds, default_microseconds : float
        Median times of the two, measured in turns.
    spread : float
        Interquartile range of the ratio of the two.
    trials : int
        Schedules that were measured.
    about : mapping of str to str
        Where, when and with which versions; ``"costs": "simulated"`` if times are costs of a model.
    candidates : sequence of mapping of str to int
        Of a simulated record, the best schedules, to be measured once there is a board.
    """

    key: Key
    knobs: Mapping[str, int]
    default_knobs: Mapping[str, int]
    microseconds: float
    default_microseconds: float
    spread: float
    trials: int
    about: Mapping[str, str]
    candidates: Sequence[Mapping[str, int]] = ()

    def __post_init__(self) -> None:
        """Reject numbers that no measurement gives."""
        for name in ("microseconds", "default_microseconds"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"'{name}' must be above 0, not {getattr(self, name)}")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"'spread' must be 0 or more, not {self.spread}")
        if self.trials < 1:
            raise ValueError(f"'trials' must be 1 or more, not {self.trials}")
        for name in ("knobs", "default_knobs"):
            if any(value < 1 for value in getattr(self, name).values()):
                raise ValueError(f"'{name}' must be 1 or more, not {dict(getattr(self, name))}")
        if any(size < 1 for size in self.key.shape.values()):
            raise ValueError(f"'shape' must be 1 or more, not {dict(self.key.shape)}")

    @property
    def speedup(self) -> float:
        """How many times faster than the analytic schedule."""
        return self.default_microseconds / self.microseconds

    @property
    def is_simulated(self) -> bool:
        """Whether nothing was measured."""
        return self.about.get(COSTS) == SIMULATED

    def beats(self, other: Record) -> bool:
        """Whether this is the better record of the same kernel.

        Times of different days are not comparable, speed-ups over the same schedule are.  Whatever was measured is
        better than what was simulated.
        """
        if self.is_simulated != other.is_simulated:
            return other.is_simulated
        if dict(self.default_knobs) == dict(other.default_knobs):
            return self.speedup > other.speedup
        return self.microseconds < other.microseconds

    def as_dict(self) -> dict[str, Any]:
        """The record as it stands in a file, without the kind of kernel, which the file has once."""
        return {
            "shape": dict(self.key.shape),
            "traits": dict(self.key.traits),
            "details": dict(self.key.details),
            "knobs": dict(self.knobs),
            "default_knobs": dict(self.default_knobs),
            "microseconds": round(self.microseconds, 3),
            "default_microseconds": round(self.default_microseconds, 3),
            "spread": round(self.spread, 4),
            "trials": self.trials,
            "about": dict(self.about),
            **({"candidates": [dict(point) for point in self.candidates]} if self.candidates else {}),
        }


@dataclass(frozen=True)
class RecordBook:
    """Records to look up.

    Attributes
    ----------
    records : mapping of str to Record
        By :attr:`Key.text`.
    """

    records: Mapping[str, Record]

    @classmethod
    def of(cls, target: Target, folder: str | os.PathLike[str] | None = None) -> RecordBook:
        """All records of a target: the user's before those that come with tvmq.

        Parameters
        ----------
        target : Target
        folder : path-like, optional
            A folder of records that goes before both, such as was given to ``tvmq tune --output``.

        Returns
        -------
        RecordBook

        Raises
        ------
        RecordError
            If a file is damaged, or ``folder`` does not exist.
        """
        if folder is not None and not Path(folder).is_dir():
            raise RecordError(f"{folder}: no such folder of schedules; `tvmq tune --output {folder}` makes one")
        folders = [*_shipped(), user_folder(), *([] if folder is None else [Path(folder)])]
        found: dict[str, Record] = {}
        for place in folders:
            for path in sorted((place / file_name(target)).glob("*.json")):
                found.update((record.key.text, record) for record in read_records(path))
        return cls(found)

    def exact(self, key: Key) -> Record | None:
        """The record of this very kernel."""
        return self.records.get(key.text)

    def nearest(self, key: Key) -> list[Record]:
        """Records of near kernels with the same traits, the nearest first."""
        near = [(key.distance(record.key), text) for text, record in self.records.items()]
        return [self.records[text] for distance, text in sorted(near) if 0 < distance <= FARTHEST]


def _shipped() -> Iterator[Path]:
    # A device that only runs networks may lack the folder.
    with contextlib.suppress(TargetError):
        yield data_folder("schedules")


def user_folder() -> Path:
    """Where the user's own records are.

    Returns
    -------
    pathlib.Path
        ``tvmq/schedules`` in ``$XDG_DATA_HOME``, by default ``~/.local/share``.
    """
    base = os.environ.get("XDG_DATA_HOME", "")
    # The specification of XDG says that relative paths are to be ignored.
    home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share"
    return home / "tvmq" / "schedules"


def file_name(target: Target) -> str:
    """The name of a target's folder: that of its file, also for ``host``.

    Parameters
    ----------
    target : Target

    Returns
    -------
    str
    """
    return target.board or target.name


def read_records(path: Path) -> list[Record]:
    """Read one file of records.

    Parameters
    ----------
    path : pathlib.Path
        ``<kernel>.json`` in a target's folder.

    Returns
    -------
    list of Record
        Where two are of the same kernel, the better one.

    Raises
    ------
    RecordError
        If the file is not what :func:`write_records` writes; the message names the file and the record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: not valid JSON ({error}); correct or delete the file") from None
    if not isinstance(content, dict) or not isinstance(content.get("records"), list):
        raise RecordError(f"{path}: not a file of tuned schedules; delete it")
    if content.get("format") != FORMAT:
        raise RecordError(
            f"{path}: written in format {content.get('format')!r}, this version of tvmq reads {FORMAT}; tune again"
        )
    if content.get("kernel") != path.stem:
        raise RecordError(f"{path}: 'kernel' must be the file's name {path.stem!r}, not {content.get('kernel')!r}")
    records = []
    for number, entry in enumerate(content["records"], 1):
        try:
            records.append(_record(path.stem, entry))
        except ValueError as error:
            raise RecordError(f"{path}: record {number}: {error}; correct or delete the record") from None
    return list(_best(records).values())


def write_records(folder: Path, target: Target, records: Iterable[Record]) -> list[Path]:
    """Add records to the files of a target; of two of the same kernel the better one stays.

    Parameters
    ----------
    folder : pathlib.Path
        With one folder per target, such as :func:`user_folder`; made if it does not exist.
    target : Target
    records : iterable of Record

    Returns
    -------
    list of pathlib.Path
        The files, each replaced at once or not at all.

    Raises
    ------
    RecordError
        If an existing file is damaged, or a file cannot be written.
    """
    new: dict[str, list[Record]] = {}
    for record in records:
        new.setdefault(record.key.kernel, []).append(record)
    place = folder / file_name(target)
    paths = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place):
            for kernel, mine in new.items():
                path = place / f"{kernel}.json"
                known = read_records(path) if path.exists() else []
                _write(path, _text(kernel, _best([*known, *mine])))
                paths.append(path)
    except OSError as error:
        raise RecordError(f"{error.filename or place}: cannot be written ({error.strerror})") from None
    return paths


def _best(records: Iterable[Record]) -> dict[str, Record]:
    best: dict[str, Record] = {}
    for record in records:
        known = best.get(record.key.text)
        # Of the same knobs the later measurement stays.
        again = known is not None and dict(known.knobs) == dict(record.knobs)
        if known is None or (again and known.is_simulated == record.is_simulated) or record.beats(known):
            best[record.key.text] = record
    return best


def _text(kernel: str, records: Mapping[str, Record]) -> str:
    """One line per field, so that files can be compared; dictionaries on one line."""
    ordered = [records[text].as_dict() for text in sorted(records)]
    text = json.dumps({"format": FORMAT, "kernel": kernel, "records": ordered}, indent=2, ensure_ascii=False)
    # Innermost dictionaries have no braces within.
    return re.sub(r"\{[^{}]*\}", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text) + "\n"


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process at a time reads, merges and writes; the folder itself is locked, so no file is left behind."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


_FIELDS = {
    "shape": int,
    "traits": (int, str),
    "details": (int, str),
    "knobs": int,
    "default_knobs": int,
    "about": str,
}
"""The dictionaries of a record and what their values are."""
_NUMBERS = ("microseconds", "default_microseconds", "spread", "trials")


def _record(kernel: str, entry: object) -> Record:
    """The record of one entry of a file, or a ValueError that says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError("not a table of fields")
    missing = [name for name in (*_FIELDS, *_NUMBERS) if name not in entry]
    if missing:
        raise ValueError(f"'{missing[0]}' is missing")
    unknown = sorted(set(entry) - {*_FIELDS, *_NUMBERS, "candidates"})
    if unknown:
        raise ValueError(f"unknown field '{unknown[0]}'")
    for name, kind in _FIELDS.items():
        if not isinstance(entry[name], dict) or not all(_is(value, kind) for value in entry[name].values()):
            words: dict[Any, str] = {int: "whole numbers", str: "texts"}
            raise ValueError(f"'{name}' must be a table of {words.get(kind, 'whole numbers and texts')}")
    for name in _NUMBERS:
        if not _is(entry[name], int if name == "trials" else (int, float)):
            raise ValueError(f"'{name}' must be a number, not {entry[name]!r}")
    if set(entry["knobs"]) != set(entry["default_knobs"]):
        raise ValueError("'knobs' and 'default_knobs' must have the same names")
    candidates = entry.get("candidates", [])
    if not isinstance(candidates, list) or not all(_is_point(point, entry["knobs"]) for point in candidates):
        raise ValueError("'candidates' must be a list of tables like 'knobs'")
    values = {name: entry[name] for name in ("knobs", "default_knobs", "about", *_NUMBERS)}
    key = Key(kernel, entry["shape"], entry["traits"], entry["details"])
    return Record(key=key, candidates=tuple(candidates), **values)


def _is_point(value: object, knobs: Mapping[str, int]) -> bool:
    """Whether this gives a number to each of the knobs."""
    return isinstance(value, dict) and set(value) == set(knobs) and all(_is(item, int) for item in value.values())


def _is(value: object, kind: Any) -> bool:
    # bool is an int to Python, but `true` is a slip.
    return isinstance(value, kind) and not isinstance(value, bool)
