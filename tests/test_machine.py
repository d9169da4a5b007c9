from __future__ import annotations

import platform

import pytest

from tvmq.machine import Machine, architecture_of, this_machine

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
flags\t\t: fpu sse2 avx2 fma
bogomips\t: 5000

processor\t: 1
flags\t\t: fpu
"""
PI_4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd08
Hardware\t: BCM2835
"""


def test_x86_flags_are_read():
    machine = Machine.from_cpuinfo(X86, "x86_64")
    assert machine == Machine("x86_64", frozenset({"fpu", "sse2", "avx2", "fma"}), None)


def test_arm_features_and_core_are_read():
    machine = Machine.from_cpuinfo(PI_4, "arm64")
    assert machine.arch == "aarch64"
    assert machine.core == "cortex-a72"
    assert "asimd" in machine.flags


def test_part_numbers_of_other_makers_are_not_arm_cores():
    assert Machine.from_cpuinfo(PI_4.replace("0x41", "0x48"), "aarch64").core is None


def test_empty_text_gives_no_flags():
    assert Machine.from_cpuinfo("", "x86_64") == Machine("x86_64")


def test_library_that_fits_has_no_obstacle():
    assert Machine.from_cpuinfo(X86, "x86_64").obstacle("x86_64-linux-gnu", ["avx2", "fma"]) is None


def test_missing_flags_are_named():
    obstacle = Machine.from_cpuinfo(X86, "x86_64").obstacle("x86_64-linux-gnu", ["avx512bw", "avx2", "avx512f"])
    assert obstacle == "needs avx512bw, avx512f, which this processor lacks"


def test_other_architectures_are_named():
    obstacle = Machine.from_cpuinfo(X86, "x86_64").obstacle("aarch64-linux-gnu", [])
    assert obstacle == "is for aarch64, and this is x86_64"


@pytest.mark.parametrize(
    ("triple", "arch"),
    [
        ("x86_64-linux-gnu", "x86_64"),
        ("x86-64", "x86_64"),
        ("AMD64", "x86_64"),
        ("aarch64-linux-gnu", "aarch64"),
        ("arm64", "aarch64"),
        ("armv7l-linux-gnueabihf", "armv7l"),
        ("armv7a-linux-gnueabihf", "armv7l"),
        ("arm-linux-gnueabihf", "armv7l"),
        ("armv8l", "armv7l"),
        ("riscv64-linux-gnu", "riscv64"),
    ],
)
def test_names_of_architectures(triple, arch):
    assert architecture_of(triple) == arch


def test_32_bit_process_on_a_64_bit_kernel(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("struct.calcsize", lambda kind: 4)
    assert this_machine().arch == "armv7l"


def test_machine_without_cpuinfo(monkeypatch, tmp_path):
    monkeypatch.setattr("tvmq.machine._CPUINFO", tmp_path / "absent")
    assert this_machine() == Machine(architecture_of(platform.machine()))
