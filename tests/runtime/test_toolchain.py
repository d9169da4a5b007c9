from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tvmq.errors import ToolchainError
from tvmq.runtime import toolchain
from tvmq.runtime.toolchain import (
    OWN_SOURCES,
    build_runner,
    build_runtime,
    cached_runner,
    export_library,
    find_compiler,
    link_library,
)
from tvmq.target import get_target


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tvmq"


@pytest.fixture
def counted_builds(own_cache, monkeypatch) -> list[str]:
    """Replace the half minute of compiling by one file."""
    builds: list[str] = []

    def build(compiler, folder, progress):
        builds.append(compiler)
        progress(1, 1)
        built = folder / "built"
        built.mkdir()
        (built / "tvmq-run").write_text("built")
        (built / "libtvmq.so").write_text("built too")
        return built

    monkeypatch.setattr(toolchain, "_build", build)
    return builds


def test_cross_compiler_of_a_board():
    assert find_compiler(get_target("raspberry-pi-4")).endswith("/aarch64-linux-gnu-g++")
    assert find_compiler(get_target("raspberry-pi-3-32")).endswith("/arm-linux-gnueabihf-g++")


def test_host_compiler_of_this_machine():
    assert Path(find_compiler(get_target("host"))).name == "g++"


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("raspberry-pi-4", r"g\+\+-aarch64-linux-gnu"),
        ("raspberry-pi-3-32", r"g\+\+-arm-linux-gnueabihf"),
        ("host", r"g\+\+"),
    ],
)
def test_missing_compiler_names_its_package(monkeypatch, tmp_path, name, package):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ToolchainError, match=f"target '{name}': compiler .* is not installed.*apt-get install {package}`"
    ):
        find_compiler(get_target(name))


def test_target_that_names_no_compiler():
    target = dataclasses.replace(get_target("raspberry-pi-4"), cross_compiler=None)
    with pytest.raises(ToolchainError, match="'raspberry-pi-4' names no compiler for aarch64"):
        find_compiler(target)


def test_linker_reports_what_the_compiler_says(tmp_path):
    link = link_library(get_target("host"))
    with pytest.raises(ToolchainError, match=r"target 'host': cannot link: g\+\+: .*absent\.o"):
        link(str(tmp_path / "net.so"), [str(tmp_path / "absent.o")])


def test_exported_library_needs_no_c_plus_plus(float_network, tmp_path):
    target = get_target("raspberry-pi-4")
    path = tmp_path / "net.so"
    path.write_bytes(float_network.library(target))
    listing = subprocess.run(["readelf", "-hd", str(path)], capture_output=True, text=True, check=True).stdout
    assert "AArch64" in listing
    assert "libstdc++" not in listing
    assert "libgcc_s" not in listing


def test_export_goes_through_the_target_s_linker():
    target = get_target("raspberry-pi-3-32")

    class Executable:
        def export_library(self, path, fcompile):
            fcompile(path, ["-x", "c++", "/dev/null"])

    assert export_library(Executable(), target)[:5] == b"\x7fELF\x01"  # 32-bit


@pytest.mark.parametrize("build", [build_runner, build_runtime])
def test_what_runs_networks_needs_nothing_but_the_c_library(build, runner_cache):
    path = build(get_target("host"))
    listing = subprocess.run(["readelf", "-dW", str(path)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", listing))
    assert "libc.so.6" in needed
    assert needed <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize(("name", "megabytes"), [("raspberry-pi-4", 1.85), ("raspberry-pi-3-32", 1.30)])
@pytest.mark.parametrize("build", [build_runner, build_runtime])
def test_what_runs_networks_is_small(build, name, megabytes, runner_cache):
    assert build(get_target(name)).stat().st_size <= megabytes * 1e6


@pytest.mark.parametrize("build", [build_runner, build_runtime])
def test_what_runs_networks_does_not_say_where_it_was_built(build, runner_cache):
    path = build(get_target("raspberry-pi-4"))
    content = path.read_bytes()
    assert str(path.parents[1]).encode() not in content
    assert b"site-packages" not in content


def test_changed_source_of_tvm_is_named(own_cache, monkeypatch):
    monkeypatch.setattr(toolchain, "_MOVED", ("function.cc", "not in it", "anything"))
    with pytest.raises(ToolchainError, match=r"cannot build the runner: function\.cc of TVM's wheel is another one"):
        build_runner(get_target("host"))


def test_runtime_exports_what_networks_and_c_programs_call(runner_cache):
    path = build_runtime(get_target("raspberry-pi-4"))
    listing = subprocess.run(
        ["readelf", "--dyn-syms", "-W", str(path)], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1] for line in listing.splitlines() if " GLOBAL DEFAULT " in line and " UND " not in line}
    declared = set(re.findall(r"\b(tvmq_\w+)\(", (OWN_SOURCES / "tvmq.h").read_text(encoding="utf-8")))
    assert declared <= exported
    assert "TVMFFIErrorSetRaisedFromCStrParts" in exported
    assert all(name.startswith(("tvmq_", "TVMFFI", "TVMBackend")) for name in exported)


def test_cache_follows_xdg_and_home(monkeypatch, tmp_path):
    target = get_target("host")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cached_runner(target).parent.parent == tmp_path / "cache" / "tvmq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cached_runner(target).parent.parent == tmp_path / ".cache" / "tvmq"


def test_cores_of_one_platform_share_a_runner():
    assert cached_runner(get_target("raspberry-pi-4")) == cached_runner(get_target("raspberry-pi-5"))
    assert cached_runner(get_target("raspberry-pi-4")) != cached_runner(get_target("raspberry-pi-3-32"))


def test_key_changes_with_sources_flags_and_versions(monkeypatch):
    target = get_target("host")
    original = cached_runner(target)
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "_COMPILE_FLAGS", (*toolchain._COMPILE_FLAGS, "-g"))
        assert cached_runner(target) != original
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "9.9")
        assert cached_runner(target) != original
    with monkeypatch.context() as patch:
        read_bytes = Path.read_bytes
        patch.setattr(Path, "read_bytes", lambda path: read_bytes(path) + b"// changed")
        assert cached_runner(target) != original
    assert cached_runner(target) == original


def test_runner_is_built_once(counted_builds, own_cache):
    seen = []
    first = build_runner(get_target("raspberry-pi-4"), lambda done, total: seen.append((done, total)))
    second = build_runner(get_target("raspberry-pi-5"))
    assert first == second
    assert first.read_text() == "built"
    assert len(counted_builds) == 1
    assert seen == [(1, 1)]
    assert {path.name for path in own_cache.iterdir()} == {first.parent.name, f"{first.parent.name}.lock"}


def test_runner_and_runtime_are_built_together(counted_builds):
    target = get_target("raspberry-pi-4")
    assert build_runtime(target).read_text() == "built too"
    assert build_runner(target).parent == build_runtime(target).parent
    assert len(counted_builds) == 1


def test_two_builders_build_once(counted_builds):
    target = get_target("host")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: build_runner(target), range(4)))
    assert len(paths) == 1
    assert len(counted_builds) == 1


def test_failed_build_leaves_nothing_and_can_be_repeated(counted_builds, own_cache, monkeypatch):
    target = get_target("host")
    with monkeypatch.context() as patch:

        def fail(compiler, folder, progress):
            (folder / "half").write_text("half")
            raise ToolchainError("no")

        patch.setattr(toolchain, "_build", fail)
        with pytest.raises(ToolchainError):
            build_runner(target)
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]
    assert build_runner(target).read_text() == "built"


def test_compiler_error_stops_the_build(own_cache, monkeypatch):
    monkeypatch.setattr(toolchain, "_COMPILE_FLAGS", ("-std=c++99",))
    with pytest.raises(ToolchainError, match=r"cannot build the runner: g\+\+: .*-std=c\+\+99"):
        build_runner(get_target("host"))
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]


def test_missing_source_is_named(own_cache, monkeypatch):
    monkeypatch.setattr(toolchain, "_FFI_SOURCES", ("gone.cc",))
    with pytest.raises(ToolchainError, match=r"TVM's wheel has no gone\.cc"):
        build_runner(get_target("host"))


def test_missing_package_is_named(own_cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match="the package 'tvm' is not installed"):
        build_runner(get_target("host"))
