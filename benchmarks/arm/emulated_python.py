"""A Python for aarch64 with other engines, in a folder, to run under qemu.

Debian's Python is extracted, not installed: nothing of it runs before qemu does.  The engines are their own wheels for
aarch64 from PyPI, laid out by this machine's pip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from blocks import cache_folder

__all__ = ["WHEELS", "environment", "prefix", "python"]

WHEELS = ("numpy==2.4.6", "onnxruntime==1.31.1", "ncnn==1.0.20261020", "MNN==3.6.1")
_RELEASE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_PACKAGES = ("python3-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1", "zlib1g", "libc-bin")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_PARTS = {"cortex-a53": ("0xd03", ""), "cortex-a72": ("0xd08", ""), "cortex-a76": ("0xd0b", " fphp asimdhp asimddp")}
"""Numbers of cores, and features beyond those of ARMv8.0."""


def python() -> Path:
    """The interpreter."""
    return _root() / "usr" / "bin" / "python3.11"


def environment() -> dict[str, str]:
    """Its variables: where the engines are, and one thread."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS")}
    return {"PYTHONPATH": str(_site()), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", **threads}


def prefix(cpu: str) -> Path:
    """What qemu shows to programs of a core instead of this machine's files.

    That is the other system, and files from which some engines read what the core can do: they would find this
    machine's processor there, and crash.
    """
    part, more = _PARTS[cpu]
    folder = cache_folder() / f"prefix-{cpu}"
    if folder.exists():
        return folder
    temporary = _empty(folder.with_name(f"{folder.name}.{os.getpid()}"))
    for item in _root().iterdir():
        if item.name not in ("proc", "sys", "tmp", "dev"):
            (temporary / item.name).symlink_to(item)
    about = {"implementer": "0x41", "architecture": "8", "variant": "0x0", "part": part, "revision": "3"}
    lines = ["processor\t: 0", "BogoMIPS\t: 108.00", f"Features\t: {_FEATURES}{more}"]
    lines += [f"CPU {name}\t: {value}" for name, value in about.items()]
    (temporary / "proc").mkdir()
    (temporary / "proc" / "cpuinfo").write_text("\n".join(lines) + "\n")
    processors = temporary / "sys" / "devices" / "system" / "cpu"
    processors.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (processors / name).write_text("0\n")
    temporary.rename(folder)
    return folder


def _root() -> Path:
    """The other system."""
    folder = cache_folder() / "debian"
    if not folder.exists():
        tool = shutil.which("mmdebstrap") or sys.exit("mmdebstrap is not installed: apt-get install mmdebstrap")
        temporary = _empty(folder.with_name(f"debian.{os.getpid()}"))
        options = ["--quiet", "--arch=arm64", "--variant=extract", f"--include={','.join(_PACKAGES)}"]
        subprocess.run([tool, *options, _RELEASE, str(temporary), _MIRROR], check=True)
        temporary.rename(folder)
    return folder


def _site() -> Path:
    """The engines."""
    folder = cache_folder() / "site"
    wanted = "\n".join(WHEELS)
    stamp = folder / "wheels.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        temporary = _empty(folder.with_name(f"site.{os.getpid()}"))
        options = [f"--platform={name}" for name in _PLATFORMS]
        options += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--no-deps", "--quiet"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(temporary), *WHEELS]
        subprocess.run(command, check=True)
        (temporary / "wheels.txt").write_text(wanted)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    return folder


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
