"""Trials that are done, in a file that only grows: what an interrupted run resumes from.

The first line says what was measured where and by which version; every other line is one trial.  A line that a killed
process left half written is dropped.  The trials of another version or machine are not comparable: such a file is
started again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmq.errors import RecordError
from tvmq.kernels.knobs import Knobs

__all__ = ["Journal", "Trial", "user_trials"]


@dataclass(frozen=True)
class Trial:
    """One measured point.

    Attributes
    ----------
    knobs : dict of str to int
        The point.
    ratio : float or None
        Its time divided by that of the default, measured in turns; None where it could not be built or run.
    seconds : float or None
        Its time.
    default_seconds : float or None
        The default's, in the same turns.
    """

    knobs: Knobs = field(hash=False)
    ratio: float | None
    seconds: float | None
    default_seconds: float | None


class Journal:
    """The trials of one kernel.

    Parameters
    ----------
    folder : pathlib.Path
        Of a target; made with the first trial.
    key : str
        The text of the kernel's key.
    about : mapping of str to str
        What has to be equal for trials to be comparable.

    Attributes
    ----------
    trials : list of Trial
        Those of the file, then those added.
    """

    def __init__(self, folder: Path, key: str, about: Mapping[str, str]) -> None:
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.path = folder / f"{name}.jsonl"
        self._header = {"key": key, **about}
        header, *lines = self._lines() or [None]
        found = [_trial(line) for line in lines] if header == self._header else []
        self.trials = [trial for trial in found if trial is not None]
        self._fresh = header != self._header

    def _lines(self) -> list[Any]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be read ({error.strerror})") from None
        lines = []
        for line in filter(None, text.splitlines()):
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # torn when its writer was killed; that trial is measured again
        return lines

    def add(self, trial: Trial) -> None:
        """Keep a trial, also if the process dies with the next instruction.

        Raises
        ------
        RecordError
            If the file cannot be written.
        """
        self.trials.append(trial)
        lines = [self._header] if self._fresh else []
        lines.append(dataclasses.asdict(trial))
        # A torn line has no end, and would take this one with it: so lines also begin with an end.
        text = "".join(f"\n{json.dumps(line, separators=(',', ':'))}\n" for line in lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w" if self._fresh else "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be written ({error.strerror})") from None
        self._fresh = False

    def forget(self) -> None:
        """Delete the file and start with no trials."""
        self.path.unlink(missing_ok=True)
        self.trials, self._fresh = [], True


def user_trials() -> Path:
    """Where trials are kept: ``tvmq/trials`` in ``$XDG_STATE_HOME``, by default ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return home / "tvmq" / "trials"


def _trial(line: Any) -> Trial | None:
    names = {item.name for item in dataclasses.fields(Trial)}
    return Trial(**line) if isinstance(line, dict) and set(line) == names else None
