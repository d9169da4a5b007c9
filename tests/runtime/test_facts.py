"""What boards say about themselves: the script, and the function that reads its answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import tvmq
from tests.boards import PI_3, PI_4, PI_4_32, PI_5, ROCK_5, ZERO, ZERO_2, Board
from tvmq.errors import BoardError
from tvmq.machine import this_machine
from tvmq.runtime.facts import Clock, Conditions, conditions_of, facts_of, facts_of_this_machine, parse_facts
from tvmq.runtime.fitting import fitting_target, needed_glibc
from tvmq.runtime.ssh import Address, Connection

PROBE = Path(tvmq.__file__).parent / "runtime" / "probe.sh"

# As a Raspberry Pi 4 with a weak power supply and Python answers.
ANSWER_PI_4 = """\
machine=aarch64
kernel=6.6.31+rpt-rpi-v8
bits=64
glibc=glibc 2.36
model=Raspberry Pi 4 Model B Rev 1.4
system=Debian GNU/Linux 12 (bookworm)
cpuinfo=processor\t: 0
cpuinfo=Features\t: fp asimd evtstrm crc32 cpuid
cpuinfo=CPU implementer\t: 0x41
cpuinfo=CPU part\t: 0xd08
cpuinfo=processor\t: 1
cpuinfo=Features\t: fp asimd evtstrm crc32 cpuid
cpuinfo=CPU implementer\t: 0x41
cpuinfo=CPU part\t: 0xd08
online=0-1
usable=2
threads=1
memory_total=3884288 kB
memory_free=3401234 kB
disk_free=/dev/root       30000000 9000000  20000000      31% /
home=/home/pi
venv=python==3.11.2 apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1 numpy==2.4.0
python=3.11.2
clock=600000 1800000 ondemand
clock=600000 1800000 ondemand
throttled=throttled=0x50005
temperature=temp=61.8'C
load=0.52 0.58 0.59 1/233 4021
probe=done
"""
# As an older system without vcgencmd, cpufreq, and much else answers.
ANSWER_BARE = """\
Linux board 4.9
machine=armv7l
cpuinfo=processor\t: 0
cpuinfo=model name\t: ARMv7 Processor rev 4 (v7l)
cpuinfo=Features\t: half thumb neon vfpv4 crc32
cpuinfo=CPU implementer\t: 0x41
cpuinfo=CPU part\t: 0xd03
temperature=48312
probe=done
"""


def test_a_raspberry_pi_4():
    facts = parse_facts(ANSWER_PI_4, "board")
    assert (facts.machine.arch, facts.machine.core, facts.cores) == ("aarch64", "cortex-a72", ("cortex-a72",) * 2)
    assert facts.machine.flags == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    assert (facts.model, facts.hardware, facts.glibc) == ("Raspberry Pi 4 Model B Rev 1.4", "aarch64", (2, 36))
    assert (facts.usable, facts.online, facts.threads) == (2, 2, "1")
    assert (facts.memory_total, facts.memory_free) == (3884288 * 1024, 3401234 * 1024)
    assert (facts.disk_free, facts.home, facts.python) == (20000000 * 1024, "/home/pi", "3.11.2")
    assert facts.packages is not None and facts.packages["apache-tvm-ffi"] == "0.1.14.post1"
    assert facts.conditions == Conditions((Clock(600000, 1800000, "ondemand"),) * 2, 0x50005, 61.8, 0.52)
    assert (facts.conditions.throttled_now, facts.conditions.throttled_since_start) == (5, 5)
    assert facts.processor == "2 × cortex-a72"


def test_a_board_that_says_little():
    facts = parse_facts(ANSWER_BARE, "board")
    assert (facts.machine.arch, facts.machine.core, facts.usable, facts.online) == ("armv7l", "cortex-a53", 1, 1)
    assert facts.model == "ARMv7 Processor rev 4 (v7l)"
    assert facts.conditions == Conditions(temperature=48.312)
    nothing = (facts.glibc, facts.packages, facts.python, facts.memory_free, facts.disk_free, facts.home, facts.threads)
    assert nothing == (None,) * 7


@pytest.mark.parametrize(
    "text", ["", "machine=aarch64\n", ANSWER_PI_4.replace("probe=done\n", ""), "Welcome to Windows"]
)
def test_half_an_answer_is_none(text):
    with pytest.raises(BoardError, match="board: does not describe itself; tvmq needs a Linux system with a shell"):
        parse_facts(text, "board")


@pytest.mark.parametrize("text", ["VCHI initialization failed", "Can't open device file: /dev/vcio", "throttled="])
def test_vcgencmd_may_refuse(text):
    facts = parse_facts(f"throttled={text}\ntemperature=\nprobe=done\n", "board")
    assert facts.conditions == Conditions()


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Run the script as it runs on a board, without the way there."""

    def answer(model):
        board = Board("", tmp_path, tmp_path, None)
        board.become(model)
        monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        environment = {**os.environ, "HOME": str(board.home), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        done = subprocess.run(["sh", str(PROBE)], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return parse_facts(done.stdout, "board")

    return answer


@pytest.mark.parametrize(
    ("model", "arch", "processor", "target"),
    [
        (PI_3, "aarch64", "4 × cortex-a53", "raspberry-pi-3"),
        (PI_4, "aarch64", "4 × cortex-a72", "raspberry-pi-4"),
        (PI_5, "aarch64", "4 × cortex-a76", "raspberry-pi-5"),
        (ZERO_2, "aarch64", "4 × cortex-a53", "raspberry-pi-zero-2"),
        (PI_4_32, "armv7l", "4 × cortex-a72", "raspberry-pi-3-32"),
        (ROCK_5, "aarch64", "4 × cortex-a55 + 4 × cortex-a76", "raspberry-pi-5"),
        (ZERO, "armv6l", "1 × arm1176jzf-s", None),
    ],
    ids=["3", "4", "5", "zero 2", "4 with 32 bits", "big.LITTLE", "zero"],
)
def test_boards(ask, model, arch, processor, target):
    facts = ask(model)
    assert (facts.machine.arch, facts.processor, facts.model) == (arch, processor, model.name)
    found = fitting_target(facts)
    assert (None if found is None else found.name) == target
    assert facts.usable == facts.online == len(model.parts)
    assert facts.system == "Debian GNU/Linux 12 (bookworm)"
    assert facts.disk_free == 20000000 * 1024
    assert len(facts.conditions.clocks) == len(model.parts)
    assert facts.conditions.throttled == (None if model.vcgencmd is None else 0)
    assert facts.conditions.load == 0.02


def test_this_machine():
    facts = facts_of_this_machine()
    assert (facts.machine.arch, facts.machine.flags) == (this_machine().arch, this_machine().flags)
    assert facts.disk_free is not None and facts.memory_free is not None and facts.glibc is not None


def test_over_ssh(board):
    with Connection(Address.parse(board.address)) as connection:
        assert facts_of(connection).model == "Raspberry Pi 4 Model B Rev 1.4"
        board.program("vcgencmd", "echo throttled=0x4; echo temp=81.2")
        now = conditions_of(connection)
    assert (now.throttled_now, now.governors, len(now.clocks)) == (4, ["performance"], 4)


def test_the_c_library_that_a_program_needs():
    assert needed_glibc(b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.17\0GLIBCXX_3.4\0") == (2, 34)
    assert needed_glibc(b"none") == (0, 0)
