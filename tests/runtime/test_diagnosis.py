"""What `tvmq doctor` makes of what boards say."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.boards import PI_4
from tests.runtime.test_facts import ANSWER_PI_4, ask  # noqa: F401  (a fixture)
from tvmq.machine import Machine
from tvmq.runtime.diagnosis import Diagnosis, diagnose, doctor
from tvmq.runtime.facts import Conditions, Facts, parse_facts
from tvmq.runtime.python_runtime import needed_versions

VERSIONS = needed_versions()
READY = {"python": "3.11.2", **VERSIONS}


def facts(**changes: object) -> Facts:
    """A Raspberry Pi 4 without any trouble, but for the changes."""
    calm = Conditions(throttled=0, temperature=45.0, load=0.0)
    found = dataclasses.replace(parse_facts(ANSWER_PI_4, "board"), conditions=calm, packages=READY, threads=None)
    return dataclasses.replace(found, **changes)


def finding(diagnosis: Diagnosis, subject: str):
    (found,) = [item for item in diagnosis.findings if item.subject == subject]
    return found


def test_a_board_without_trouble():
    diagnosis = diagnose(facts(), "board")
    assert (diagnosis.target, diagnosis.failure) == ("raspberry-pi-4", None)
    assert [item.subject for item in diagnosis.findings if item.level != "fine"] == ["dot product"]
    assert finding(diagnosis, "core").text == "2 × cortex-a72, 64-bit system: compile with --target raspberry-pi-4"
    text = str(diagnosis)
    assert text.startswith("board\n  board        Raspberry Pi 4 Model B Rev 1.4, Debian GNU/Linux 12")
    assert "\n! dot product  no dot-product instructions" in text
    assert json.loads(json.dumps(diagnosis.as_dict()))["target"] == "raspberry-pi-4"


def conditions(**changes: object) -> Conditions:
    return dataclasses.replace(facts().conditions, **changes)


A76 = frozenset({"fp", "asimd", "asimdhp", "asimddp"})


@pytest.mark.parametrize(
    ("changes", "subject", "text", "remedy"),
    [
        (
            {"conditions": parse_facts(ANSWER_PI_4, "").conditions},
            "governor",
            "governor is ondemand",
            "echo performance |",
        ),
        ({"conditions": conditions(temperature=79.0)}, "temperature", "79 °C", "heat sink"),
        ({"conditions": conditions(load=1.5)}, "load", "keep 1.5 of 2 processors busy", "`top`"),
        (
            {"glibc": (2, 31)},
            "C library",
            "glibc 2.31: programs that are linked on Debian 12 need 2.34",
            "current Rasp",
        ),
        (
            {"packages": None},
            "Python",
            "there is no ~/tvmq-python (python3 is 3.11.2)",
            "python3 -m venv ~/tvmq-python",
        ),
        (
            {"packages": {**READY, "apache-tvm": "0.26.0"}},
            "Python",
            f"apache-tvm 0.26.0 instead of {VERSIONS['apache-tvm']}",
            f"~/tvmq-python/bin/pip install apache-tvm=={VERSIONS['apache-tvm']}",
        ),
        (
            {"packages": {"python": "3.11.2"}},
            "Python",
            "apache-tvm is missing, apache-tvm-ffi is missing",
            "pip install",
        ),
        (
            {"packages": None, "python": "3.9.2"},
            "Python",
            "python3 is 3.9.2",
            "install a system with Python 3.11 or later",
        ),
        ({"usable": 1}, "threads", "only 1 of 2 processors may be used", "taskset"),
        ({"threads": "1"}, "threads", "says 1, and there are 2 processors", "unset it"),
        ({"memory_free": 100 << 20}, "memory", "105 MB free: little for Python", "--runtime cpp"),
        ({"memory_free": 10 << 20}, "memory", "10 MB free", "end other programs"),
        ({"disk_free": 10 << 20}, "disk", "10 MB free in the home folder", "delete something"),
        (
            {"machine": Machine("armv7l", frozenset({"neon", "vfpv4", "crc32"}), "cortex-a72")},
            "system",
            "32 bits",
            "64-bit",
        ),
        ({"machine": Machine("aarch64", A76, "cortex-a78")}, "core", "scheduled for cortex-a76", "targets/"),
    ],
)
def test_advice(changes, subject, text, remedy):
    diagnosis = diagnose(facts(**changes), "board")
    found = finding(diagnosis, subject)
    assert found.level == "advice" and diagnosis.failure is None
    assert text in found.text and remedy in found.remedy


@pytest.mark.parametrize(
    ("bits", "texts"),
    [
        (0x0, ["none since the board started"]),
        (0x1, ["under-voltage now"]),
        (0x50000, ["since the board started, at some time under-voltage", "at some time the processor is throttled"]),
        (0xE0008, ["the clock is capped", "the processor is throttled", "the soft temperature limit is reached now"]),
        (None, []),
    ],
)
def test_throttling(bits, texts):
    diagnosis = diagnose(facts(conditions=conditions(throttled=bits)), "board")
    found = [item for item in diagnosis.findings if item.subject == "throttling"]
    assert len(found) == len(texts)
    for item, text in zip(found, texts, strict=True):
        assert item.text.endswith(text) or text in item.text
        assert (item.remedy is None) == (bits == 0)


def test_a_clock_that_is_held_back():
    now = parse_facts(ANSWER_PI_4.replace("ondemand", "performance"), "").conditions
    found = finding(diagnose(facts(conditions=now), "board"), "clock")
    assert (found.level, found.text) == ("advice", "600 of 1800 MHz, although nothing should hold it back")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"machine": Machine("armv6l", frozenset({"vfp"}), None)}, "no target of tvmq fits; use another board"),
        ({"glibc": None}, "no glibc; use a system with glibc"),
    ],
)
def test_problems_are_failures(changes, text):
    failure = diagnose(facts(**changes), "board").failure
    assert failure is not None and failure.startswith("board: networks cannot run there: ") and text in failure


def test_the_system_decides_what_a_32_bit_board_gets(ask):  # noqa: F811
    diagnosis = diagnose(
        ask(dataclasses.replace(PI_4, machine="armv7l", bits="32", features="neon vfpv4 crc32")), "board"
    )
    assert diagnosis.target == "raspberry-pi-3-32"
    assert finding(diagnosis, "Python").level == "advice"


def test_this_machine():
    diagnosis = doctor()
    assert (diagnosis.place, diagnosis.failure) == ("this machine", None)
    assert VERSIONS["apache-tvm"] in finding(diagnosis, "Python").text


def test_a_python_that_would_crash(monkeypatch):
    monkeypatch.setattr(
        "tvmq.runtime.diagnosis.needed_versions", lambda: {**VERSIONS, "apache-tvm-ffi": "0.1.15.post2"}
    )
    assert "pip install 'apache-tvm-ffi<0.1.15'" in (doctor().failure or "")


def test_over_ssh(board):
    diagnosis = doctor(board.address)
    assert (diagnosis.place, diagnosis.target) == (board.address, "raspberry-pi-4")
