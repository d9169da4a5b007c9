from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest

from tvmq import machine as machine_module
from tvmq.errors import TargetError
from tvmq.machine import this_machine
from tvmq.target import TABLE_KINDS, Target, data_folder, get_target, host_target, list_targets, load_target

BOARDS = [path.stem for path in sorted(data_folder("targets").glob("*.toml")) if path.stem != "host"]
VALID = (data_folder("targets") / "raspberry-pi-4.toml").read_text(encoding="utf-8")

A72_CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend to be another machine."""

    def become(arch: str, cpuinfo: str, pointer_bytes: int = 8) -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(cpuinfo, encoding="utf-8")
        monkeypatch.setattr(machine_module, "_CPUINFO", path)
        monkeypatch.setattr(platform, "machine", lambda: arch)
        monkeypatch.setattr(machine_module.struct, "calcsize", lambda _: pointer_bytes)

    return become


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "board.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_promised_boards_are_there():
    assert {
        "raspberry-pi-3",
        "raspberry-pi-3-32",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "raspberry-pi-zero-2",
        "x86-avx2",
        "x86-avx512",
        "x86-avx512-vpopcntdq",
    } <= set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_board_is_consistent(name):
    board = get_target(name)
    assert board.name == name
    # one packed word per lane fills the vector register
    register_bits = {"vpopcntdq": 512, "cnt": 128, "vcnt": 128, "pshufb": 512 if "avx512" in name else 256}
    assert board.word_bits * board.lanes == register_bits[board.popcount]
    assert board.mac_per_cycle["binary"] > board.mac_per_cycle["int8"] > board.mac_per_cycle["float32"]
    foreign = board.arch != "x86_64"
    for field in ("cross_compiler", "cross_package", "qemu", "qemu_cpu", "sysroot"):
        assert (getattr(board, field) is not None) == foreign, field


@pytest.mark.parametrize("name", BOARDS)
def test_tvm_accepts_the_board(name):
    board = get_target(name)
    config = board.tvm_target().attrs
    assert (config["mcpu"], config["mtriple"]) == (board.mcpu, board.triple)
    assert int(config["num-cores"]) == board.cores
    assert ("arm_cpu" in board.tvm_target().keys) == (board.arch != "x86_64")
    assert config.get("mfloat-abi") == board.float_abi


def test_word_size_of_the_kernel_families():
    assert (get_target("x86-avx512-vpopcntdq").word_bits, get_target("x86-avx512-vpopcntdq").lanes) == (32, 16)
    assert {get_target(name).word_bits for name in BOARDS if name != "x86-avx512-vpopcntdq"} == {8}


def test_targets_can_be_dictionary_keys():
    assert {get_target("raspberry-pi-4"): 1}[get_target("raspberry-pi-4")] == 1


def test_list_starts_with_this_machine():
    names = [board.name for board in list_targets()]
    assert names[0] == "host"
    assert sorted(names[1:]) == sorted(BOARDS)


def test_unknown_target_suggests_the_nearest():
    with pytest.raises(TargetError, match=r"unknown target 'raspberry-pi4'; did you mean 'raspberry-pi-4'\?"):
        get_target("raspberry-pi4")


def test_unknown_target_without_a_near_one_lists_all():
    with pytest.raises(TargetError, match=r"known targets: host, .*x86-avx2"):
        get_target("zzz")


@pytest.mark.parametrize("fields", [{"arch": "armv7l", "dot": None}, {"lanes": 32}])
def test_tables_of_arm_need_its_64_bits(fields):
    core = get_target("raspberry-pi-5")
    assert TABLE_KINDS[1] in core.mac_per_cycle
    rates = {kind: rate for kind, rate in core.mac_per_cycle.items() if kind != "binary_lanes"}
    with pytest.raises(
        TargetError, match="may give tables only for aarch64 with lanes 16, or for x86_64 with word_bits 8"
    ):
        dataclasses.replace(core, mac_per_cycle=rates, **fields)


def test_tables_of_words_of_32_bits_need_sums_of_four_bytes():
    core = get_target("x86-avx512-vpopcntdq")
    assert TABLE_KINDS[3] in core.mac_per_cycle
    with pytest.raises(TargetError, match="word_bits 32 and lanes 16, the last one with dot vpdpbusd"):
        dataclasses.replace(core, dot=None)


def test_host_is_a_file_whose_flags_this_machine_has():
    host = host_target()
    assert host.name == "host"
    assert this_machine().flags >= set(host.required_cpu_flags)
    assert (host.cross_compiler, host.qemu) == (None, None)
    assert host.cores >= 1


@pytest.mark.parametrize(
    ("flags", "like"),
    [
        ("sse avx2 fma", "x86-avx2"),
        ("avx2 fma avx512f avx512bw avx512vl avx512dq", "x86-avx512"),
        ("avx2 fma avx512f avx512bw avx512vl avx512dq avx512_vpopcntdq avx512_vnni avx512vbmi", "x86-avx512-vpopcntdq"),
        # Knights Mill counts bits, but lacks the byte and short-vector instructions
        ("avx2 fma avx512f avx512_vpopcntdq", "x86-avx2"),
    ],
)
def test_host_on_x86_follows_the_flags(machine, flags, like):
    machine("x86_64", f"processor\t: 0\nflags\t\t: {flags}\n")
    host, board = host_target(), get_target(like)
    assert like in host.description
    assert (host.mcpu, host.lanes, host.popcount) == (board.mcpu, board.lanes, board.popcount)
    assert host.mac_per_cycle == board.mac_per_cycle


def test_host_on_a_raspberry_pi_4(machine):
    machine("aarch64", A72_CPUINFO)
    assert host_target().mcpu == "cortex-a72"


def test_host_on_a_raspberry_pi_3(machine):
    machine("aarch64", A72_CPUINFO.replace("0xd08", "0xd03"))
    assert host_target().mcpu == "cortex-a53"


def test_host_on_an_unknown_arm_core_takes_what_its_flags_allow(machine):
    cpuinfo = "Features\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x61\nCPU part\t: 0x022\n"
    machine("arm64", cpuinfo)
    assert host_target().mcpu == "cortex-a76"
    machine("aarch64", cpuinfo.replace("asimdhp asimddp", ""))
    assert host_target().mcpu == "cortex-a53"


def test_host_under_a_32_bit_system_on_a_64_bit_kernel(machine):
    machine("aarch64", A72_CPUINFO.replace("fp asimd", "neon vfpv4"), pointer_bytes=4)
    host = host_target()
    assert (host.arch, host.float_abi, host.popcount) == ("armv7l", "hard", "vcnt")


def test_host_names_the_missing_flags(machine):
    machine("x86_64", "flags\t\t: sse2 fma\n")
    with pytest.raises(TargetError, match=r"\(x86_64, its processor lacks avx2\); name a --target"):
        get_target("host")
    assert "host" not in [board.name for board in list_targets()]


def test_host_of_an_architecture_without_files(machine):
    machine("riscv64", "isa\t: rv64gc\n")
    with pytest.raises(TargetError, match="riscv64"):
        host_target()


def test_load_valid(tmp_path):
    board = load_target(write(tmp_path, VALID))
    assert dataclasses.replace(board, name="raspberry-pi-4") == get_target("raspberry-pi-4")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lanes = 16", "", "board.toml: field 'lanes' is missing"),
        ("lanes = 16", "lanes = 16\nlane = 3", "board.toml: unknown field 'lane'; did you mean 'lanes'"),
        ("lanes = 16", "name = 'x'\nlanes = 16", "board.toml: unknown field 'name'"),
        ("lanes = 16", "lanes = '16'", "board.toml: field 'lanes' must be a whole number, not '16'"),
        ("lanes = 16", "lanes = true", "board.toml: field 'lanes' must be a whole number, not True"),
        ("lanes = 16", "lanes = 17", "board.toml: .*field 'lanes' must be one of 16, 32, 64, not 17"),
        ("cores = 4", "cores = 0", "board.toml: .*field 'cores' must be 1 or more"),
        ('"cortex-a72"', "72", "board.toml: field 'mcpu' must be text, not 72"),
        ('["asimd"]', '"asimd"', "board.toml: field 'required_cpu_flags' must be a list of texts"),
        ("int8 = 8.0", "int8 = 'fast'", "board.toml: field 'mac_per_cycle' must be a table of numbers"),
        ("int8 = 8.0", "", "board.toml: .*field 'mac_per_cycle' must give binary, int8, float32"),
        ("int8 = 8.0", "int8 = 8.0\ntable5 = 9.0", "board.toml: .*may give binary_lanes and table1 to table4, and no"),
        ("word_bits = 8", "word_bits = 32", "board.toml: .*may give binary_lanes only for ARM with word_bits 8 and"),
        ("int8 = 8.0", "int8 = 0", r"board.toml: .*field 'mac_per_cycle.int8' must be above 0"),
        ('arch = "aarch64"', 'arch = "arm64"', "board.toml: .*field 'arch' must be one of 'x86_64', 'aarch64'"),
        ("word_bits = 8", "word_bits = 16", "board.toml: .*field 'word_bits'"),
        ('popcount = "cnt"', 'popcount = "popcnt"', "board.toml: .*field 'popcount'"),
        ("lanes = 16", "lanes = ", "board.toml: not valid TOML"),
    ],
)
def test_bad_files_name_the_file_and_the_field(tmp_path, old, new, message):
    text = VALID.replace(old, new, 1)
    assert text != VALID
    with pytest.raises(TargetError, match=message):
        load_target(write(tmp_path, text))


def test_unreadable_file(tmp_path):
    with pytest.raises(TargetError, match=r"nowhere.toml: cannot be read"):
        load_target(tmp_path / "nowhere.toml")


def test_unknown_data_folder():
    with pytest.raises(TargetError, match="no folder 'recipes'"):
        data_folder("recipes")


def test_target_is_checked_however_it_is_made():
    with pytest.raises(TargetError, match="field 'float_abi'"):
        dataclasses.replace(get_target("raspberry-pi-4"), float_abi="medium")
    assert isinstance(get_target("raspberry-pi-4"), Target)
