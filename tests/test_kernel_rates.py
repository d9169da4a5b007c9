"""The clock, and a core's cost table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tvmq
from tvmq import kernel_rates
from tvmq.clock import STEPS, Clock
from tvmq.errors import TargetError
from tvmq.kernel_rates import CASES, KernelRate, calibrated, check_destination, write_target
from tvmq.kernels.conv2d import WORKLOAD_ATTRIBUTE
from tvmq.kernels.workload import Conv2dWorkload
from tvmq.target import KERNEL_KINDS, LANES_KIND, TABLE_KINDS, load_target

RATES = [KernelRate("binary", "a", 100.04), KernelRate("binary", "b", 300.4), KernelRate("float32", "c", 7.77)]


@pytest.fixture(scope="module")
def host():
    return tvmq.get_target("host")


def test_clock_runs_its_whole_chain(host):
    clock = Clock(host)
    assert clock.hertz() > 0
    state = 1
    for _ in range(STEPS // 2):
        state = ((state + 0x9E3779B9) & 0xFFFFFFFF) ^ 0x7F4A7C15
    assert clock.end() == state


def test_every_kind_of_kernel_is_measured(host, monkeypatch):
    monkeypatch.setattr(kernel_rates, "SHAPES", ((4, 32),))
    monkeypatch.setattr(kernel_rates, "DENSE_SIZE", 32)
    monkeypatch.setattr(kernel_rates, "_BLOCK_SECONDS", 1e-4)
    moments = []
    rates = kernel_rates.kernel_rates(host, rounds=2, progress=lambda *moment: moments.append(moment))
    assert {rate.kind for rate in rates} == set(host.mac_per_cycle)
    assert set(CASES) == {*KERNEL_KINDS, LANES_KIND, *TABLE_KINDS}
    assert all(rate.mac_per_cycle > 0 for rate in rates)
    assert [text for text, _, _ in moments] == [f"{rate.kind}: {rate.workload}" for rate in rates]


def test_lookups_are_measured_where_a_core_has_them(monkeypatch):
    monkeypatch.setattr(kernel_rates, "SHAPES", ((4, 32),))
    *cores, without = (
        tvmq.get_target(name) for name in ("x86-avx2", "x86-avx512", "x86-avx512-vpopcntdq", "raspberry-pi-4")
    )
    for bits, kind in enumerate(TABLE_KINDS, 1):
        for core in cores:
            (case,) = CASES[kind](core)
            workload = Conv2dWorkload.from_json(str(case.function.attrs[WORKLOAD_ATTRIBUTE]))
            assert (case.kind, workload.table.activation_bits) == (kind, bits)
            assert (workload.word_bits, workload.lanes) == (core.word_bits, core.lanes)
        assert list(CASES[kind](without)) == []


def test_the_best_rate_of_a_kind_counts(host):
    core = calibrated(host, RATES, "a core")
    assert core.mac_per_cycle == {**host.mac_per_cycle, "binary": 300.0, "float32": 7.77}
    assert dataclasses.replace(core, mac_per_cycle=host.mac_per_cycle, description=host.description) == host
    assert core.description == "a core, measured"


@pytest.mark.parametrize("name", ["host", "raspberry-pi-4", "raspberry-pi-3-32", "x86-avx2"])
def test_a_written_target_reads_back(name, tmp_path):
    core = calibrated(tvmq.get_target(name), RATES, 'a "processor"')
    path = tmp_path / "my-core.toml"
    written = write_target(core, path, RATES)
    assert written == load_target(path) == dataclasses.replace(core, name="my-core", board=None)
    text = path.read_text()
    assert "#   binary: 300.4 in b\n" in text
    kept = ", ".join(kind for kind in core.mac_per_cycle if kind not in ("binary", "float32"))
    assert "# Not measured" in text and f"but as given before: {kept}." in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["my-core.toml"]


def test_a_written_target_is_listed(tmp_path, monkeypatch, host):
    write_target(calibrated(host, RATES, "a core"), tmp_path / "my-core.toml", RATES)
    monkeypatch.setattr("tvmq.target.data_folder", lambda name: tmp_path)
    assert tvmq.get_target("my-core").mac_per_cycle["binary"] == 300.0


def test_a_file_is_not_replaced_by_accident(host, tmp_path):
    path = tmp_path / "my-core.toml"
    path.write_text("mine")
    with pytest.raises(TargetError, match="exists already; choose another name, or replace it with --force"):
        write_target(host, path, RATES)
    assert path.read_text() == "mine"
    write_target(host, path, RATES, force=True)
    assert load_target(path).mac_per_cycle == host.mac_per_cycle


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("host.toml", "not a name for a target's file"),
        ("core.json", "not a name for a target's file"),
        (".toml", "not a name for a target's file"),
        ("missing/core.toml", "its folder does not exist"),
    ],
)
def test_bad_destinations(tmp_path, name, message):
    with pytest.raises(TargetError, match=message):
        check_destination(tmp_path / name)


def test_random_arguments_cover_the_type():
    array = kernel_rates._random(np.random.default_rng(0), [1000], np.dtype("uint32"))
    assert array.dtype == np.uint32 and array.max() > 2**31


def test_both_forms_of_binary_products_are_measured_where_a_core_has_them():
    core = tvmq.get_target("raspberry-pi-4")
    along, across = (list(CASES[kind](core)) for kind in ("binary", LANES_KIND))
    assert [case.workload for case in along] == [case.workload for case in across]
    forms = [
        [Conv2dWorkload.from_json(str(case.function.attrs[WORKLOAD_ATTRIBUTE])).depth for case in cases]
        for cases in (along, across)
    ]
    assert [depth.step for depth in forms[0]] == [8, 16]
    assert forms[1] == [None, None]
    assert not list(CASES[LANES_KIND](tvmq.get_target("x86-avx2")))
