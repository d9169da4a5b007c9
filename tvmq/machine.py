"""What the processor that we run on can execute, and whether a library fits it."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "architecture_of", "largest_core", "this_machine"]

_CPUINFO = Path("/proc/cpuinfo")
# The 32-bit ARM triples that LLVM knows all run on the same Debian architecture.
_ARCHITECTURES = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64", "arm": "armv7l"}
# "CPU part" of cores made by Arm, from the slowest to the fastest.
_ARM_CORES = {
    "0xb76": "arm1176jzf-s",
    "0xc07": "cortex-a7",
    "0xd04": "cortex-a35",
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
    "0xd0d": "cortex-a77",
    "0xd41": "cortex-a78",
}
_ARM_IMPLEMENTER = "0x41"


@dataclass(frozen=True)
class Machine:
    """A processor as its operating system describes it.

    Attributes
    ----------
    arch : str
        ``"x86_64"``, ``"aarch64"``, ``"armv7l"`` or another name of a machine.
    flags : frozenset of str
        The instruction set extensions that ``/proc/cpuinfo`` lists.
    core : str or None
        LLVM's name of the core, for the Arm cores we know.
    """

    arch: str
    flags: frozenset[str] = frozenset()
    core: str | None = None

    @classmethod
    def from_cpuinfo(cls, text: str, arch: str) -> Machine:
        """Read the text of ``/proc/cpuinfo``.

        Parameters
        ----------
        text : str
            The file's text; only the first processor of each key counts.
        arch : str
            The architecture of the programs on that machine.

        Returns
        -------
        Machine
        """
        fields: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        flags = frozenset((fields.get("flags") or fields.get("Features") or "").split())
        arm = fields.get("CPU implementer") == _ARM_IMPLEMENTER
        core = _ARM_CORES.get(fields.get("CPU part", "").lower()) if arm else None
        return cls(architecture_of(arch), flags, core)

    def obstacle(self, triple: str, required_cpu_flags: Iterable[str]) -> str | None:
        """Why a library cannot run here.

        Parameters
        ----------
        triple : str
            The library's platform.
        required_cpu_flags : iterable of str
            The extensions that it uses.

        Returns
        -------
        str or None
            A clause such as ``"needs avx512bw, which this processor lacks"``, or ``None`` when it can run.
        """
        arch = architecture_of(triple)
        if arch != self.arch:
            return f"is for {arch}, and this is {self.arch}"
        missing = sorted(set(required_cpu_flags) - self.flags)
        if missing:
            return f"needs {', '.join(missing)}, which this processor lacks"
        return None


def architecture_of(triple: str) -> str:
    """The architecture that a triple, or an operating system's name for it, stands for.

    Parameters
    ----------
    triple : str
        For example ``"aarch64-linux-gnu"`` or ``"AMD64"``.

    Returns
    -------
    str
        ``"x86_64"``, ``"aarch64"``, ``"armv7l"``, or the first word of an unknown triple.
    """
    word = triple.lower().split("-")[0] if not triple.lower().startswith("x86-64") else "x86-64"
    if word.startswith(("armv7", "armv8")):
        return "armv7l"
    return _ARCHITECTURES.get(word, word)


def largest_core(cores: Iterable[str]) -> str | None:
    """The core that work runs on where a processor has slow and fast ones.

    Parameters
    ----------
    cores : iterable of str
        LLVM's names, as in :attr:`Machine.core`.

    Returns
    -------
    str or None
        The fastest that we know; None if we know none.
    """
    found = set(cores)
    known = [core for core in _ARM_CORES.values() if core in found]
    return known[-1] if known else None


def this_machine() -> Machine:
    """The machine that this process runs on.

    Returns
    -------
    Machine
        Without flags where there is no ``/proc/cpuinfo``.
    """
    arch = architecture_of(platform.machine())
    # A 32-bit system on a 64-bit kernel calls itself aarch64, but its processes load 32-bit libraries.
    if arch == "aarch64" and struct.calcsize("P") == 4:
        arch = "armv7l"
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return Machine.from_cpuinfo(text, arch)
