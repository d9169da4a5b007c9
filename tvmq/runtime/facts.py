"""What a board, or this machine, says about itself: the answers of ``probe.sh``, read by a pure function."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tvmq.errors import BoardError
from tvmq.machine import Machine, architecture_of, largest_core
from tvmq.runtime.ssh import Connection

__all__ = ["Clock", "Conditions", "Facts", "conditions_of", "facts_of", "facts_of_this_machine", "parse_facts"]

_PROBE = Path(__file__).resolve().parent / "probe.sh"
_ARCHITECTURE_OF_32_BITS = {"aarch64": "armv7l", "x86_64": "i686"}
# Bits 0 to 3 of what `vcgencmd get_throttled` says are true now, the same bits above these since the board started.
_NOW, _SINCE_START = 0xF, 16


@dataclass(frozen=True)
class Clock:
    """The clock of one processor.

    Attributes
    ----------
    current, highest : int
        kHz.
    governor : str
        Who decides on it, such as ``"ondemand"`` or ``"performance"``.
    """

    current: int
    highest: int
    governor: str


@dataclass(frozen=True)
class Conditions:
    """What changes while something runs.

    Attributes
    ----------
    clocks : tuple of Clock
        Of each processor; empty where the system does not say.
    throttled : int or None
        The bits of ``vcgencmd get_throttled``; None where there is no such program, or it may not be used.
    temperature : float or None
        Degrees Celsius.
    load : float or None
        Processes that wanted to run, on average over a minute.
    """

    clocks: tuple[Clock, ...] = ()
    throttled: int | None = None
    temperature: float | None = None
    load: float | None = None

    @property
    def throttled_now(self) -> int:
        """The bits that are true now; 0 where unknown."""
        return (self.throttled or 0) & _NOW

    @property
    def throttled_since_start(self) -> int:
        """The bits that were true at some time since the board started; 0 where unknown."""
        return (self.throttled or 0) >> _SINCE_START & _NOW

    @property
    def governors(self) -> list[str]:
        """The governors in use, each once."""
        return sorted({clock.governor for clock in self.clocks})


@dataclass(frozen=True)
class Facts:
    """What a board is.

    Attributes
    ----------
    machine : Machine
        Of its programs: a 32-bit system on a 64-bit processor is ``armv7l``.  Its flags are those that all of its
        processors have, its core is the fastest.
    cores : tuple of (str or None)
        Of each processor; None where we do not know the part.
    hardware : str
        The architecture of its kernel.
    model, system, kernel : str or None
        Such as ``"Raspberry Pi 4 Model B Rev 1.4"``, ``"Debian GNU/Linux 12 (bookworm)"``, ``"6.6.31+rpt-rpi-v8"``.
    glibc : tuple of (int, int) or None
        Version of its C library.
    usable : int
        Processors that a program may use.
    online : int
        Processors that are there.
    threads : str or None
        What ``TVM_NUM_THREADS`` or ``OMP_NUM_THREADS`` say.
    memory_total, memory_free, disk_free : int or None
        Bytes; of the disk with the home folder.
    home : str or None
    python : str or None
        Version of ``python3``.
    packages : mapping of str to str, or None
        Versions of ``python`` and of packages in ``~/tvmq-python``; None where there is no such folder.
    conditions : Conditions
    """

    machine: Machine
    cores: tuple[str | None, ...]
    hardware: str
    model: str | None
    system: str | None
    kernel: str | None
    glibc: tuple[int, int] | None
    usable: int
    online: int
    threads: str | None
    memory_total: int | None
    memory_free: int | None
    disk_free: int | None
    home: str | None
    python: str | None
    packages: Mapping[str, str] | None
    conditions: Conditions

    @property
    def processor(self) -> str:
        """Its cores for people, such as ``"4 × cortex-a72"``."""
        unknown = f"unknown {self.machine.arch} core"
        names = [core or unknown for core in self.cores] or [unknown]
        return " + ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


@cache
def _script() -> str:
    return _PROBE.read_text(encoding="utf-8")


def facts_of(connection: Connection) -> Facts:
    """Ask a board.

    Parameters
    ----------
    connection : Connection

    Returns
    -------
    Facts

    Raises
    ------
    BoardError
        If the connection is lost, or what answers is no Linux.
    """
    answered = connection.run(_script())
    return parse_facts(answered.output.decode(errors="replace"), str(connection.address))


def conditions_of(connection: Connection) -> Conditions:
    """Ask a board for what changes.

    Parameters
    ----------
    connection : Connection

    Returns
    -------
    Conditions

    Raises
    ------
    BoardError
        If the connection is lost.
    """
    answered = connection.run(_script(), "state")
    return _conditions(_values(answered.output.decode(errors="replace"), str(connection.address)))


def facts_of_this_machine() -> Facts:
    """Ask this machine.

    Returns
    -------
    Facts

    Raises
    ------
    BoardError
        If it is no Linux.
    """
    done = subprocess.run(["sh", "-s"], input=_script().encode(), capture_output=True, check=False)
    return parse_facts(done.stdout.decode(errors="replace"), "this machine")


def parse_facts(text: str, place: str) -> Facts:
    """Read the answers of ``probe.sh``.

    Parameters
    ----------
    text : str
        Lines of key=value.
    place : str
        Whose they are, for messages.

    Returns
    -------
    Facts

    Raises
    ------
    BoardError
        If they do not come from ``probe.sh``, or not all of them.
    """
    values = _values(text, place)
    hardware = architecture_of(_last(values, "machine") or "unknown")
    arch = hardware if _last(values, "bits") != "32" else _ARCHITECTURE_OF_32_BITS.get(hardware, hardware)
    blocks = _processors("\n".join(values["cpuinfo"]))
    described = [Machine.from_cpuinfo(block, arch) for block in blocks]
    flags = [machine.flags for machine in described if machine.flags]
    cores = tuple(machine.core for machine in described)
    usable = _number(_last(values, "usable"))
    return Facts(
        machine=Machine(
            arch,
            frozenset.intersection(*flags) if flags else frozenset(),
            largest_core(core for core in cores if core is not None),
        ),
        cores=cores,
        hardware=hardware,
        model=_last(values, "model") or _model_name(values["cpuinfo"]),
        system=_last(values, "system"),
        kernel=_last(values, "kernel"),
        glibc=_version(_last(values, "glibc")),
        usable=usable or len(cores) or 1,
        online=_count(_last(values, "online")) or len(cores) or 1,
        threads=_last(values, "threads"),
        memory_total=_kilobytes(_last(values, "memory_total")),
        memory_free=_kilobytes(_last(values, "memory_free")),
        disk_free=_disk_free(_last(values, "disk_free")),
        home=_last(values, "home"),
        python=_last(values, "python"),
        packages=_packages(_last(values, "venv")),
        conditions=_conditions(values),
    )


def _values(text: str, place: str) -> Mapping[str, Sequence[str]]:
    values: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        key, found, value = line.partition("=")
        if found:
            values[key].append(value.strip())
    if values["probe"] != ["done"]:
        raise BoardError(f"{place}: does not describe itself; tvmq needs a Linux system with a shell there")
    return values


def _last(values: Mapping[str, Sequence[str]], key: str) -> str | None:
    return values[key][-1] if values[key] else None


def _processors(cpuinfo: str) -> list[str]:
    """The text of each processor."""
    return [block for block in re.split(r"(?m)^(?=processor\s*:)", cpuinfo) if block.startswith("processor")]


def _model_name(cpuinfo: Sequence[str]) -> str | None:
    names = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return names[0] if names else None


def _conditions(values: Mapping[str, Sequence[str]]) -> Conditions:
    clocks = [
        words for words in (text.split() for text in values["clock"]) if len(words) == len(("now", "most", "who"))
    ]
    throttled = re.search(r"0x[0-9a-fA-F]+", _last(values, "throttled") or "")
    return Conditions(
        clocks=tuple(Clock(int(now), int(most), who) for now, most, who in clocks if now.isdigit() and most.isdigit()),
        throttled=int(throttled[0], 16) if throttled else None,
        temperature=_temperature(_last(values, "temperature")),
        load=_load(_last(values, "load")),
    )


def _temperature(text: str | None) -> float | None:
    """``temp=48.3'C``, or thousandths of a degree."""
    if text is None:
        return None
    if text.lstrip("-").isdigit():
        return int(text) / 1e3
    match = re.search(r"-?\d+\.?\d*", text)
    return float(match[0]) if match else None


def _load(text: str | None) -> float | None:
    match = re.match(r"\d+\.\d+", text or "")
    return float(match[0]) if match else None


def _version(text: str | None) -> tuple[int, int] | None:
    match = re.search(r"(\d+)\.(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _count(text: str | None) -> int | None:
    """How many a list such as ``0-3,6`` has."""
    if text is None or not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        return None
    spans = [part.split("-") for part in text.split(",")]
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)


def _kilobytes(text: str | None) -> int | None:
    match = re.fullmatch(r"(\d+) kB", text or "")
    return 1024 * int(match[1]) if match else None


def _disk_free(text: str | None) -> int | None:
    """The fourth column of ``df -Pk``."""
    match = re.search(r"\s\d+\s+\d+\s+(\d+)\s+\d+%", text or "")
    return 1024 * int(match[1]) if match else None


def _packages(text: str | None) -> Mapping[str, str] | None:
    if text is None:
        return None
    pairs = (word.partition("==") for word in text.split())
    return {name: version for name, _, version in pairs}
