"""What keeps a board, or this machine, from running networks well, and what to do about it.

:func:`diagnose` is a pure function of what the board says about itself; every finding comes with its remedy.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tvmq.machine import this_machine
from tvmq.runtime.facts import Facts, facts_of, facts_of_this_machine
from tvmq.runtime.fitting import fitting_target
from tvmq.runtime.python_runtime import mismatches, needed_versions, pip_command
from tvmq.runtime.ssh import Address, Connection
from tvmq.target import list_targets

__all__ = ["THROTTLING", "Diagnosis", "Finding", "diagnose", "doctor"]

THROTTLING = (
    ("under-voltage", "use the board's own power supply, and a short cable"),
    ("the clock is capped", "use the board's own power supply, and cool the processor"),
    ("the processor is throttled", "cool the processor: a heat sink, a fan, an open case"),
    ("the soft temperature limit is reached", "cool the processor: a heat sink, a fan, an open case"),
)
"""What the bits of ``vcgencmd get_throttled`` mean, from the lowest, and what to do."""
_OLDEST_GLIBC = (2, 34)
"""What programs need that were linked on Debian 12 or Ubuntu 22.04, or later ones."""
_HOT = 75.0
"""Degrees Celsius: the boards slow down at 80."""
_SLOW_CLOCK = 0.95
_SPARE_DISK = 50 << 20
_SPARE_MEMORY = 64 << 20
_PYTHON_MEMORY = 256 << 20
"""An interpreter with TVM's runtime takes half of it."""
_BUSY = 0.25
"""Processes that want to run, per processor."""
_BROKEN_FFI = (0, 1, 15)
_OLDEST_PYTHON = (3, 11)
"""TVM has no wheels for ARM and older ones."""
_PERFORMANCE = "performance"
_SET_GOVERNOR = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"

FINE, ADVICE, PROBLEM = "fine", "advice", "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    level : str
        ``"fine"``, ``"advice"`` where it could be better, ``"problem"`` where networks cannot run.
    subject : str
        What it is about, in a word or two.
    text : str
        What was found.
    remedy : str or None
        What to do; None where all is well.
    """

    level: str
    subject: str
    text: str
    remedy: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings about a board; ``str()`` is a list for people.

    Attributes
    ----------
    place : str
        The board's address, or ``"this machine"``.
    target : str or None
        What to compile for; None if nothing fits.
    findings : tuple of Finding
    """

    place: str
    target: str | None
    findings: tuple[Finding, ...]

    @property
    def failure(self) -> str | None:
        """Why no network can run there; None if one can."""
        problems = [finding for finding in self.findings if finding.level == PROBLEM]
        if not problems:
            return None
        first = problems[0]
        return f"{self.place}: networks cannot run there: {first.text}; {first.remedy}"

    def as_dict(self) -> dict[str, Any]:
        """The diagnosis as plain lists, dictionaries and texts.

        Returns
        -------
        dict
        """
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        width = max(len(finding.subject) for finding in self.findings)
        lines = [f"{self.place}"]
        for finding in self.findings:
            mark = {FINE: " ", ADVICE: "!", PROBLEM: "x"}[finding.level]
            lines.append(f"{mark} {finding.subject:{width}}  {finding.text}")
            if finding.remedy is not None:
                lines.append(f"  {'':{width}}  -> {finding.remedy}")
        return "\n".join(lines)


def doctor(address: str | None = None) -> Diagnosis:
    """Look whether a board, or this machine, is ready for networks.

    Parameters
    ----------
    address : str, optional
        The board: ``ssh://user@host:port``, or less of it; by default this machine.

    Returns
    -------
    Diagnosis

    Raises
    ------
    InputError
        If the address is none.
    BoardError
        If the board cannot be reached, or is no Linux.
    """
    if address is None:
        facts = facts_of_this_machine()
        # A container may hide flags from /proc that the process has, not the other way round: what counts is ours.
        return diagnose(dataclasses.replace(facts, machine=this_machine()), "this machine", local=True)
    with Connection(Address.parse(address)) as connection:
        return diagnose(facts_of(connection), str(connection.address))


def diagnose(facts: Facts, place: str, local: bool = False) -> Diagnosis:
    """Judge what a board says about itself.

    Parameters
    ----------
    facts : Facts
    place : str
        Whose they are.
    local : bool
        Whether they are this machine's, whose Python and TVM are those that run this.

    Returns
    -------
    Diagnosis
    """
    looks: list[Callable[[Facts], Iterable[Finding]]] = [
        _board,
        _core,
        _width,
        _dot_product,
        _governor,
        _clock,
        _throttling,
        _temperature,
        _glibc,
        _own_python if local else _python,
        _processors,
        _load,
        _memory,
        _disk,
    ]
    target = fitting_target(facts)
    findings = tuple(finding for look in looks for finding in look(facts))
    return Diagnosis(place, None if target is None else target.name, findings)


def _board(facts: Facts) -> Iterator[Finding]:
    parts = [facts.model or "unknown model", facts.system or "unknown system", f"kernel {facts.kernel or '?'}"]
    yield Finding(FINE, "board", ", ".join(parts))


def _core(facts: Facts) -> Iterator[Finding]:
    target = fitting_target(facts)
    what = f"{facts.processor}, {'32' if facts.machine.arch == 'armv7l' else '64'}-bit system"
    if target is None:
        remedy = "use another board; `tvmq targets` lists those that tvmq knows"
        what = f"{facts.processor}, {facts.machine.arch} system"
        yield Finding(PROBLEM, "core", f"{what}: no target of tvmq fits", remedy)
    elif facts.machine.core is not None and target.mcpu != facts.machine.core:
        text = f"{what}: compile with --target {target.name}, which is scheduled for {target.mcpu}"
        yield Finding(ADVICE, "core", text, "a file in targets/ for this core would make its kernels faster")
    else:
        yield Finding(FINE, "core", f"{what}: compile with --target {target.name}")


def _width(facts: Facts) -> Iterator[Finding]:
    if facts.machine.arch != "armv7l" or not _has_64_bits(facts):
        return
    text = "32 bits on a 64-bit processor: half of the vector registers are idle, and TVM has no Python there"
    yield Finding(ADVICE, "system", text, "install the 64-bit Raspberry Pi OS")


def _has_64_bits(facts: Facts) -> bool:
    """Also a kernel of 32 bits may run on a core of 64: then a target of that architecture names the core."""
    cores = {target.mcpu for target in list_targets() if target.arch == "aarch64"}
    return facts.hardware == "aarch64" or facts.machine.core in cores


def _dot_product(facts: Facts) -> Iterator[Finding]:
    if facts.machine.arch != "aarch64" or "asimddp" in facts.machine.flags:
        return
    text = "no dot-product instructions: layers of 8 bits run at a quarter of the rate that a Raspberry Pi 5 has"
    yield Finding(ADVICE, "dot product", text, "quantize to 1 or 2 bits, which do not need them")


def _governor(facts: Facts) -> Iterator[Finding]:
    governors = facts.conditions.governors
    if not governors:
        return
    text = f"the clock's governor is {', '.join(governors)}"
    if governors == [_PERFORMANCE]:
        yield Finding(FINE, "governor", text)
    else:
        yield Finding(ADVICE, "governor", f"{text}: times vary, most of all the first ones", _SET_GOVERNOR)


def _clock(facts: Facts) -> Iterator[Finding]:
    clocks = facts.conditions.clocks
    if not clocks:
        return
    text = ", ".join(dict.fromkeys(f"{clock.current // 1000} of {clock.highest // 1000} MHz" for clock in clocks))
    slow = [clock for clock in clocks if clock.current < _SLOW_CLOCK * clock.highest]
    if slow and facts.conditions.governors == [_PERFORMANCE]:
        yield Finding(ADVICE, "clock", f"{text}, although nothing should hold it back", "see throttling, and cool it")
    else:
        yield Finding(FINE, "clock", text)


def _throttling(facts: Facts) -> Iterator[Finding]:
    conditions = facts.conditions
    if conditions.throttled is None:
        return
    for bit, (text, remedy) in enumerate(THROTTLING):
        if conditions.throttled_now >> bit & 1:
            yield Finding(ADVICE, "throttling", f"{text} now", remedy)
        elif conditions.throttled_since_start >> bit & 1:
            yield Finding(ADVICE, "throttling", f"since the board started, at some time {text}", remedy)
    if conditions.throttled == 0:
        yield Finding(FINE, "throttling", "none since the board started")


def _temperature(facts: Facts) -> Iterator[Finding]:
    celsius = facts.conditions.temperature
    if celsius is None:
        return
    text = f"{celsius:.0f} °C"
    if celsius < _HOT:
        yield Finding(FINE, "temperature", text)
    else:
        yield Finding(ADVICE, "temperature", f"{text}: the processor slows down at 80", THROTTLING[-1][1])


def _glibc(facts: Facts) -> Iterator[Finding]:
    if facts.glibc is None:
        remedy = "use a system with glibc, such as Raspberry Pi OS"
        yield Finding(PROBLEM, "C library", "no glibc", remedy)
        return
    text = f"glibc {facts.glibc[0]}.{facts.glibc[1]}"
    if facts.glibc >= _OLDEST_GLIBC:
        yield Finding(FINE, "C library", text)
    else:
        needed = ".".join(map(str, _OLDEST_GLIBC))
        remedy = "install the current Raspberry Pi OS, or compile on a machine whose system is as old"
        yield Finding(ADVICE, "C library", f"{text}: programs that are linked on Debian 12 need {needed}", remedy)


def _python(facts: Facts) -> Iterator[Finding]:
    if facts.machine.arch == "armv7l":
        text = "TVM has none for 32-bit systems; tvmq deploy does not need it, tvmq tune does"
        yield Finding(ADVICE, "Python", text, "install a 64-bit system to tune on this board")
        return
    problems = mismatches(facts.packages)
    if not problems:
        versions = ", ".join(f"{name} {version}" for name, version in (facts.packages or {}).items())
        yield Finding(FINE, "Python", f"~/tvmq-python has {versions}")
        return
    text = f"{', '.join(problems)} ({_interpreter(facts)}): only needed for tvmq tune and --runtime python"
    remedy = pip_command(facts.packages)
    if _numbers(facts.python or "")[:2] < _OLDEST_PYTHON:
        remedy = f"install a system with Python {'.'.join(map(str, _OLDEST_PYTHON))} or later, then there: {remedy}"
    yield Finding(ADVICE, "Python", text, remedy)


def _own_python(facts: Facts) -> Iterator[Finding]:
    versions = needed_versions()
    text = f"Python {platform.python_version()}, " + ", ".join(f"{name} {found}" for name, found in versions.items())
    if _numbers(versions["apache-tvm-ffi"])[:3] < _BROKEN_FFI:
        yield Finding(FINE, "Python", text)
        return
    broken = ".".join(map(str, _BROKEN_FFI))
    remedy = f"pip install 'apache-tvm-ffi<{broken}'"
    yield Finding(PROBLEM, "Python", f"{text}: from {broken} on apache-tvm-ffi crashes when it compiles", remedy)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _interpreter(facts: Facts) -> str:
    return f"python3 is {facts.python}" if facts.python else "there is no python3"


def _processors(facts: Facts) -> Iterator[Finding]:
    text = f"{facts.usable} of {facts.online} processors"
    if facts.usable < facts.online:
        remedy = "start tvmq outside of the container, cpuset or taskset that holds the others back"
        yield Finding(ADVICE, "threads", f"only {text} may be used", remedy)
    elif facts.threads is not None and facts.threads != str(facts.usable):
        text = f"TVM_NUM_THREADS or OMP_NUM_THREADS says {facts.threads}, and there are {facts.usable} processors"
        yield Finding(ADVICE, "threads", text, "unset it, unless you mean it")
    else:
        yield Finding(FINE, "threads", text)


def _load(facts: Facts) -> Iterator[Finding]:
    load = facts.conditions.load
    if load is not None and load > _BUSY * facts.usable:
        text = f"other programs keep {load:.1f} of {facts.usable} processors busy: times mean little"
        yield Finding(ADVICE, "load", text, "end them before measuring; `top` shows them")


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory_free is None:
        return
    text = f"{_megabytes(facts.memory_free)} free"
    if facts.memory_free < _SPARE_MEMORY:
        yield Finding(ADVICE, "memory", text, "end other programs, or switch the desktop off with `sudo raspi-config`")
    elif facts.memory_free < _PYTHON_MEMORY:
        yield Finding(ADVICE, "memory", f"{text}: little for Python", "deploy with --runtime cpp, which takes 20 MB")
    else:
        yield Finding(FINE, "memory", text)


def _disk(facts: Facts) -> Iterator[Finding]:
    if facts.disk_free is None:
        return
    text = f"{_megabytes(facts.disk_free)} free in the home folder"
    if facts.disk_free < _SPARE_DISK:
        yield Finding(ADVICE, "disk", text, "delete something; `sudo apt clean` helps at once")
    else:
        yield Finding(FINE, "disk", text)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 10e9 else f"{count / 1e9:.0f} GB"
