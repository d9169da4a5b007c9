"""Targets: what the compiler has to know about a core, read from ``targets/*.toml``.

Adding a board is adding a file; nothing here names one.  ``host`` is the exception: it is the file that fits the
machine this runs on, found from what the kernel says about the processor.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmq.errors import TargetError, nearest
from tvmq.machine import this_machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import tvm

__all__ = [
    "ARM_TABLE_LAYOUT",
    "TABLE_LAYOUTS",
    "Target",
    "data_folder",
    "get_target",
    "host_target",
    "list_targets",
    "load_target",
]

ARCHITECTURES = ("x86_64", "aarch64", "armv7l")
DOTS = {"vpdpbusd": ("x86_64",), "vpmaddubsw": ("x86_64",), "sdot": ("aarch64",), "smull": ("aarch64", "armv7l")}
"""Instructions for products of bytes, and the architectures that have them."""
ARM_DOT_LANES = 16
"""Output channels that a dot product of ARM computes at once: four vectors."""
POPCOUNTS = ("vpopcntdq", "pshufb", "cnt", "vcnt")
KERNEL_KINDS = ("binary", "int8", "float32")
TABLE_KINDS = ("table1", "table2", "table3", "table4")
"""Products of one-bit weights by lookups in tables, by the bits of activations; not every core has kernels for them."""
TABLE_LAYOUTS = ((8, 32), (8, 64), (32, 16))
"""Bits of a word, and output channels of a vector of such words, whose bits are looked up at once."""

ARM_TABLE_LAYOUT = (8, 16)
"""The same of 64-bit ARM, where the bits are those of five channels."""

LANES_KIND = "binary_lanes"
"""Binary products with lanes of output channels, where the core's kernels can also put vectors along the depth."""
PIPELINES = ("in-order", "out-of-order")
CACHE_FACTS = (
    "line_bytes",
    "level1_bytes",
    "level1_ways",
    "level1_miss_cycles",
    "level2_bytes",
    "level2_ways",
    "level2_miss_cycles",
)

HOST = "host"


@dataclass(frozen=True)
class Target:
    """One core that networks can be compiled for.

    Attributes
    ----------
    name, description : str
        What the command line calls it, and a line for people.
    kind : str
        ``"cpu"``.
    arch : str
        ``"x86_64"``, ``"aarch64"`` or ``"armv7l"``.
    triple, mcpu : str
        LLVM's names of the platform and of the core.
    cores : int
        Cores that a kernel may use in parallel.
    word_bits : int
        Bits of one packed word: 8 where bytes are counted, 32 where the vector unit counts 32-bit lanes itself.
    lanes : int
        Output channels in one vector register.
    popcount : str
        The instruction that counts bits: ``"vpopcntdq"``, ``"pshufb"``, ``"cnt"`` or ``"vcnt"``.
    mac_per_cycle : dict of str to float
        Issue limit in multiply-accumulates per cycle and core of each kernel kind (``"binary"`` is 1 bit times 1 bit,
        ``"table2"`` is 1 bit times 2 bits by lookups in tables, where the core has such a kernel).  ``"binary_lanes"``
        says that ``"binary"`` is of vectors along the depth, and what lanes of output channels reach.
    dot : str or None
        The instruction that multiplies bytes and adds four products to 32 bits: ``"vpdpbusd"``, ``"vpmaddubsw"`` (with
        others), ``"sdot"``, ``"smull"`` (with others), or none that kernels know; then all products are of bit planes.
    features : tuple of str
        LLVM features beyond those of ``mcpu``, such as ``"+neon"``.
    float_abi : str or None
        ``"hard"`` or ``"soft"`` on 32-bit ARM.
    required_cpu_flags : tuple of str
        Flags of ``/proc/cpuinfo`` without which a library for this target must not be loaded.
    cross_compiler, cross_package : str or None
        C++ compiler that links for this target on a machine of another architecture, and the Debian package it is in.
    qemu, qemu_cpu, sysroot : str or None
        User-mode emulator, the core it is told to be, and where it finds the target's C library.
    mca_core : str or None
        llvm-mca's model that is nearest to the core, for tuning without one.
    pipeline : str
        ``"in-order"`` or ``"out-of-order"``: whether computing goes on while memory is waited for.
    caches : dict of str to float
        The data caches that a core sees: sizes, ways, and the cycles that a line takes from the next level.  Empty
        where they are not known.
    board : str or None
        For ``host``, the name of the file that it was read from; ``None`` where that is `name`.

    Raises
    ------
    TargetError
        If a field has a value that no kernel could work with.
    """

    name: str
    description: str
    kind: str
    arch: str
    triple: str
    mcpu: str
    cores: int
    word_bits: int
    lanes: int
    popcount: str
    mac_per_cycle: dict[str, float] = field(hash=False)
    dot: str | None = None
    features: tuple[str, ...] = ()
    float_abi: str | None = None
    required_cpu_flags: tuple[str, ...] = ()
    cross_compiler: str | None = None
    cross_package: str | None = None
    qemu: str | None = None
    qemu_cpu: str | None = None
    sysroot: str | None = None
    mca_core: str | None = None
    pipeline: str = "out-of-order"
    caches: dict[str, float] = field(default_factory=dict, hash=False)
    board: str | None = None

    def __post_init__(self) -> None:
        """Reject values that would only fail later, inside a kernel."""
        self._one_of("kind", ("cpu",))
        self._one_of("arch", ARCHITECTURES)
        self._one_of("popcount", POPCOUNTS)
        self._one_of("dot", (None, *(name for name, places in DOTS.items() if self.arch in places)))
        self._one_of("word_bits", (8, 32))
        self._one_of("lanes", (16, 32, 64))
        self._one_of("float_abi", (None, "hard", "soft"))
        self._one_of("pipeline", PIPELINES)
        if self.caches and set(self.caches) != set(CACHE_FACTS):
            raise self._error("caches", f"must give {', '.join(CACHE_FACTS)}, or nothing")
        for name, value in self.caches.items():
            if not value > 0:
                raise self._error(f"caches.{name}", f"must be above 0, not {value}")
        if self.cores < 1:
            raise self._error("cores", f"must be 1 or more, not {self.cores}")
        kinds = set(self.mac_per_cycle)
        if not kinds.issuperset(KERNEL_KINDS) or not kinds.issubset((*KERNEL_KINDS, LANES_KIND, *TABLE_KINDS)):
            tables = f"{LANES_KIND} and {TABLE_KINDS[0]} to {TABLE_KINDS[-1]}"
            raise self._error(
                "mac_per_cycle", f"must give {', '.join(KERNEL_KINDS)}, may give {tables}, and nothing else"
            )
        if kinds.intersection(TABLE_KINDS) and not self._has_tables:
            layouts = ", or ".join(f"word_bits {bits} and lanes {lanes}" for bits, lanes in TABLE_LAYOUTS)
            raise self._error(
                "mac_per_cycle",
                f"may give tables only for aarch64 with lanes {ARM_TABLE_LAYOUT[1]}, or for x86_64 with {layouts}, the "
                "last one with dot vpdpbusd",
            )
        if LANES_KIND in kinds and (self.arch == "x86_64" or (self.word_bits, self.lanes) != (8, 16)):
            raise self._error("mac_per_cycle", f"may give {LANES_KIND} only for ARM with word_bits 8 and lanes 16")
        for kernel, value in self.mac_per_cycle.items():
            if not value > 0:
                raise self._error(f"mac_per_cycle.{kernel}", f"must be above 0, not {value}")

    @property
    def _has_tables(self) -> bool:
        """Whether there are kernels that look sums up in tables."""
        layout = (self.word_bits, self.lanes)
        if self.arch == "aarch64":
            return layout == ARM_TABLE_LAYOUT
        if self.arch != "x86_64" or layout not in TABLE_LAYOUTS:
            return False
        return self.word_bits == 8 or self.dot == "vpdpbusd"

    @property
    def dot_lanes(self) -> int:
        """Output channels whose sums, integers of 32 bits, a dot product adds to at once."""
        return self.word_bits * self.lanes // 32 if self.arch == "x86_64" else ARM_DOT_LANES

    def _one_of(self, name: str, allowed: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            choices = ", ".join(repr(choice) for choice in allowed if choice is not None)
            raise self._error(name, f"must be one of {choices}, not {value!r}")

    def _error(self, name: str, problem: str) -> TargetError:
        return TargetError(f"target '{self.name}': field '{name}' {problem}")

    def tvm_target(self) -> tvm.target.Target:
        """The same core as TVM describes it.

        Returns
        -------
        tvm.target.Target
            An ``llvm`` target, with the ``arm_cpu`` key on ARM.
        """
        import tvm

        config: dict[str, Any] = {
            "kind": "llvm",
            "keys": ["cpu"] if self.arch == "x86_64" else ["arm_cpu", "cpu"],
            "mtriple": self.triple,
            "mcpu": self.mcpu,
            "num-cores": self.cores,  # MetaSchedule refuses a CPU target without it
        }
        if self.features:
            config["mattr"] = list(self.features)
        if self.arch == "armv7l":
            # NEON flushes denormal floats to zero there; LLVM must not turn scalar comparisons into NEON ones.
            config["cl-opt"] = ["-vectorize-slp:bool=0"]
        if self.float_abi is not None:
            config["mfloat-abi"] = self.float_abi
        return tvm.target.Target(config)


def data_folder(name: str) -> Path:
    """The folder of files that travel beside the code.

    Parameters
    ----------
    name : str
        ``"targets"`` or ``"schedules"``.

    Returns
    -------
    pathlib.Path
        ``tvmq/<name>`` of an installed wheel, or the sibling of the package in a source tree.

    Raises
    ------
    TargetError
        If neither exists.
    """
    package = Path(__file__).resolve().parent
    for root in (package, package.parent):
        folder = root / name
        if folder.is_dir():
            return folder
    raise TargetError(f"no folder '{name}' in or beside {package}: the installation is incomplete; install tvmq again")


def list_targets() -> list[Target]:
    """Every target, the machine itself first.

    Returns
    -------
    list of Target
        ``host`` (left out where no target fits this machine), then the files of ``targets/`` by name.

    Raises
    ------
    TargetError
        If a file of ``targets/`` is not valid.
    """
    boards = [load_target(path) for path in _board_files()]
    try:
        return [host_target(), *boards]
    except TargetError:
        return boards


def get_target(name: str) -> Target:
    """The target of a name.

    Parameters
    ----------
    name : str
        ``"host"``, or the name of a file of ``targets/`` without ``.toml``.

    Returns
    -------
    Target

    Raises
    ------
    TargetError
        If there is no such target, its file is not valid, or ``host`` is asked for on a machine that none fits.
    """
    if name == HOST:
        return host_target()
    files = {path.stem: path for path in _board_files()}
    if name not in files:
        hint = nearest(name, [HOST, *files]) or f"; known targets: {', '.join([HOST, *files])}"
        raise TargetError(f"unknown target '{name}'{hint}")
    return load_target(files[name])


def host_target() -> Target:
    """The target of the machine this runs on.

    The core's own file where the processor is a known one, otherwise the fastest file whose flags the processor has.
    Using a file, and not whatever LLVM calls the processor, keeps to instructions whose presence was checked:
    virtual machines often hide some that their processor's name implies.

    Returns
    -------
    Target
        The fitting file under the name ``host``, with this machine's number of cores.

    Raises
    ------
    TargetError
        If no file fits, or the machine does not describe its processor in ``/proc/cpuinfo``.
    """
    machine = this_machine()
    arch, flags, core = machine.arch, machine.flags, machine.core
    boards = [load_target(path) for path in _board_files()]
    fitting = [board for board in boards if board.arch == arch and flags.issuperset(board.required_cpu_flags)]
    if not fitting:
        raise TargetError(
            f"no target fits this machine ({arch}, {_missing_flags(boards, arch, flags)}); name a --target"
        )
    # More required flags mean a newer core, and so the faster kernels; the name keeps the choice stable between equals.
    best = min(fitting, key=lambda board: (board.mcpu != core, -len(board.required_cpu_flags), board.name))
    description = _read_toml(data_folder("targets") / f"{HOST}.toml").get("description")
    if not isinstance(description, str):
        raise TargetError(f"{HOST}.toml: field 'description' is missing or not text")
    return dataclasses.replace(
        best,
        name=HOST,
        board=best.name,
        description=f"{description} (as {best.name})",
        cores=_host_cores(),
        cross_compiler=None,
        cross_package=None,
        qemu=None,
        qemu_cpu=None,
        sysroot=None,
    )


def load_target(path: Path) -> Target:
    """Read one file of ``targets/``.

    Parameters
    ----------
    path : pathlib.Path
        A TOML file; its name without ``.toml`` is the target's name.

    Returns
    -------
    Target

    Raises
    ------
    TargetError
        If the file is not TOML, or a field is missing, unknown, of the wrong type or out of range.
    """
    values = _read_toml(path)
    known = {item.name: item for item in dataclasses.fields(Target) if item.name not in ("name", "board")}
    for key, value in values.items():
        if key not in known:
            raise TargetError(f"{path}: unknown field '{key}'{nearest(key, known)}")
        values[key] = _checked(path, key, value, str(known[key].type))
    for key, item in known.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in values:
            raise TargetError(f"{path}: field '{key}' is missing")
    try:
        return Target(name=path.stem, **values)
    except TargetError as error:
        raise TargetError(f"{path}: {error}") from None


def _checked(path: Path, key: str, value: object, annotation: str) -> object:
    """``value`` as the type of its field, or an error that names the file and the field."""
    kind = annotation.removesuffix(" | None")
    # bool is an int to Python, but `cores = true` is a slip.
    if kind == "str" and isinstance(value, str):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind == "dict[str, float]" and isinstance(value, dict) and all(_is_number(item) for item in value.values()):
        return {name: float(item) for name, item in value.items()}
    expected = {"str": "text", "int": "a whole number", "tuple[str, ...]": "a list of texts"}
    raise TargetError(f"{path}: field '{key}' must be {expected.get(kind, 'a table of numbers')}, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TargetError(f"{path}: not valid TOML: {error}") from None


def _board_files() -> list[Path]:
    return sorted(path for path in data_folder("targets").glob("*.toml") if path.stem != HOST)


def _missing_flags(boards: list[Target], arch: str, flags: frozenset[str]) -> str:
    """Why no file fits: the shortest list of flags that the processor would have needed."""
    missing = [set(board.required_cpu_flags) - flags for board in boards if board.arch == arch]
    if not missing:
        return "an architecture without a file in targets/"
    shortest = min(missing, key=lambda needed: (len(needed), sorted(needed)))
    return f"its processor lacks {', '.join(sorted(shortest))}"


def _host_cores() -> int:
    # The cores this process may use: in a container that can be fewer than the machine has.
    return len(os.sched_getaffinity(0))
