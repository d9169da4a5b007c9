"""The ``.tvmq`` file: a compiled network for one or more targets, with everything needed to run and to check it.

It is a zip file with a ``manifest.json``, the quantized module (``model.json``), one library per target, and inputs
with the outputs that they must give.  A file that was quantized but not yet compiled has no targets and no inputs.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import re
import uuid
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmq.errors import BundleError, nearest
from tvmq.machine import Machine, architecture_of, this_machine
from tvmq.runtime.executor import Executor
from tvmq.runtime.tensors import TensorSpec, check_inputs
from tvmq.runtime.timing import Timing

if TYPE_CHECKING:
    from tvmq.report.receipt import Receipt

__all__ = ["FORMAT", "Bundle", "load_bundle"]

FORMAT = 1
_MANIFEST = "manifest.json"
_MODEL = "model.json"
_HOST = "host"
_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ZIP_SIGNATURE = b"PK\x03\x04"
# The earliest that a zip file can hold: equal bundles are equal files.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


@dataclass(eq=False)  # arrays do not compare to one truth
class Bundle:
    """A compiled network.

    Parameters
    ----------
    manifest : dict
        ``name``, ``inputs``, ``outputs``, ``tvmq`` and ``tvm`` versions, ``targets`` (of each name its ``triple``,
        ``mcpu`` and ``required_cpu_flags``) and ``layers`` (of each target a list of layers); ``quantization`` (a row
        per layer) if tvmq quantized the network.  The bundle works on a copy, and adds ``format``, ``hashes`` and each
        target's ``library`` and ``sha256``.
    model_json : str
        The quantized module, as ``tvm.ir.save_json`` wrote it.
    libraries : dict of str to bytes
        Of each target the content of its ``.so`` file; empty for a network that is not compiled yet.
    check_inputs, check_outputs : list of numpy.ndarray
        Inputs, and the outputs that they must give; both may be empty.
    path : pathlib.Path, optional
        The file that the bundle was loaded from or saved to, for messages.

    Raises
    ------
    BundleError
        If the parts do not belong together.
    InputError
        If the self-check's inputs are not what the network takes.
    """

    manifest: dict[str, Any]
    model_json: str = field(repr=False)
    libraries: dict[str, bytes] = field(repr=False)
    check_inputs: list[np.ndarray] = field(repr=False, default_factory=list)
    check_outputs: list[np.ndarray] = field(repr=False, default_factory=list)
    path: Path | None = None
    _executors: dict[str, Executor] = field(default_factory=dict, init=False, repr=False)
    _default: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Complete the manifest, after a look at whether the parts belong together."""
        self.manifest = copy.deepcopy(self.manifest)
        missing = [key for key in ("name", "inputs", "outputs", "targets", "layers") if key not in self.manifest]
        if missing:
            raise self._error(f"its manifest has no '{missing[0]}'; compile the network again")
        names = set(self.manifest["targets"])
        if names != set(self.libraries) or (self.manifest["layers"] and not names):
            raise self._error("its manifest and its libraries name different targets; compile the network again")
        for name, entry in self.manifest["targets"].items():
            self._complete_target(name, entry)
        if self.check_inputs:
            check_inputs(self.inputs, self.check_inputs)
        if len(self.check_outputs) != (len(self.outputs) if self.check_inputs else 0):
            raise self._error(f"its self-check has {len(self.check_outputs)} outputs; compile the network again")
        self.manifest["format"] = FORMAT
        self.manifest["hashes"] = {name: _sha256(content) for name, content in self._members().items()}

    def _complete_target(self, name: str, entry: dict[str, Any]) -> None:
        if not _TARGET_NAME.fullmatch(name):
            raise self._error(f"target name '{name}' is not made of letters, digits, '.', '_' and '-'")
        missing = [key for key in ("triple", "mcpu", "required_cpu_flags") if key not in entry]
        if missing:
            raise self._error(f"its target '{name}' has no '{missing[0]}'; compile the network again")
        entry["library"] = _library_member(name)
        entry["sha256"] = _sha256(self.libraries[name])

    def __repr__(self) -> str:
        """Name, file and targets."""
        place = f", path='{self.path}'" if self.path is not None else ""
        return f"Bundle(name='{self.manifest['name']}', targets={self.targets}{place})"

    @property
    def targets(self) -> list[str]:
        """The targets that the network was compiled for."""
        return list(self.manifest["targets"])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the network takes."""
        return tuple(TensorSpec(**spec) for spec in self.manifest["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the network gives."""
        return tuple(TensorSpec(**spec) for spec in self.manifest["outputs"])

    @property
    def default_target(self) -> str:
        """The target whose library fits this machine best.

        Raises
        ------
        BundleError
            If none does.
        """
        self.require_compiled()
        return self._best(this_machine())

    def require_compiled(self) -> None:
        """Look whether there is anything to run.

        Raises
        ------
        BundleError
            If the network is not compiled yet.
        """
        if not self.libraries:
            file = self.path or Path("net.tvmq")
            command = f"tvmq compile {file} --target host -o {file.stem}-host.tvmq"
            raise self._error(f"it has no library yet; compile it with `{command}`")

    def layers(self, target: str) -> list[dict[str, Any]]:
        """What became of every layer.

        Parameters
        ----------
        target : str
            One of :attr:`targets`.

        Returns
        -------
        list of dict
            ``name``, ``operator``, bits, ``kernel``, ``reason``, sizes and costs, in the order of execution.

        Raises
        ------
        BundleError
            If the network was not compiled for ``target``.
        """
        self._entry(target)
        return copy.deepcopy(self.manifest["layers"].get(target, []))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ``.tvmq`` file.

        Equal bundles give equal files.  A file of that name is replaced at once or not at all.

        Parameters
        ----------
        path : path-like
            Where to.

        Raises
        ------
        BundleError
            If the file cannot be written.
        """
        path = Path(path)
        content = self._zip()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
        finally:
            temporary.unlink(missing_ok=True)
        self.path = path

    def run(self, *arrays: Any, target: str | None = None) -> list[np.ndarray]:
        """Run the network on this machine.

        Parameters
        ----------
        *arrays : array-like
            One array per input; see :attr:`inputs`.
        target : str, optional
            Whose library to run; by default the one that fits this machine best.

        Returns
        -------
        list of numpy.ndarray
            One array per output.

        Raises
        ------
        InputError
            If the arrays are not what the network takes.
        BundleError
            If no library fits this machine, or ``target``'s does not.
        """
        self.require_compiled()
        checked = check_inputs(self.inputs, arrays)
        return self._executor(target).run(*checked)

    def run_emulated(self, target: str, *arrays: Any) -> list[np.ndarray]:
        """Run the network on an emulated core, through the runner that needs no Python.

        Parameters
        ----------
        target : str
            One of :attr:`targets`, of which tvmq knows an emulator.
        *arrays : array-like
            As for :meth:`run`.

        Returns
        -------
        list of numpy.ndarray
            One array per output.

        Raises
        ------
        InputError
            If the arrays are not what the network takes.
        TargetError
            If there is no emulator for ``target``.
        ToolchainError
            If the emulator or a compiler is not installed.
        BundleError
            If the file has no library for ``target``, or the library uses instructions that its core lacks.
        """
        from tvmq.runtime.emulator import run_emulated
        from tvmq.target import get_target

        self._entry(target)
        checked = check_inputs(self.inputs, arrays)
        return run_emulated(self.libraries[target], get_target(target), checked)

    def time(self, *arrays: Any, repeat: int = 30, target: str | None = None) -> Timing:
        """Time whole runs on this machine, without the copies of inputs and outputs.

        Parameters
        ----------
        *arrays : array-like
            As for :meth:`run`; without any, the self-check's.
        repeat : int
            Number of timed runs, after a few that are not.
        target : str, optional
            As for :meth:`run`.

        Returns
        -------
        Timing
            In seconds.

        Raises
        ------
        InputError
            If the arrays are not what the network takes, or ``repeat`` is below 1.
        BundleError
            If no library fits this machine, or ``target``'s does not.
        """
        self.require_compiled()
        checked = check_inputs(self.inputs, arrays or self.check_inputs)
        return self._executor(target).time(*checked, repeat=repeat)

    def bound(self, *arrays: Any, target: str | None = None) -> Callable[[], object]:
        """The network with its inputs in place, for measurements that have their own way of counting time.

        Parameters
        ----------
        *arrays, target
            As for :meth:`time`.

        Returns
        -------
        callable
            Runs the network once on this machine, without copying inputs or outputs.

        Raises
        ------
        InputError, BundleError
            As for :meth:`time`.
        """
        self.require_compiled()
        return self._executor(target).bound(*check_inputs(self.inputs, arrays or self.check_inputs))

    def call_times(
        self,
        *arrays: Any,
        repeat: int = 10,
        target: str | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> list[tuple[str, float]]:
        """Time every function that a run calls, on this machine, in the order in which they run.

        Parameters
        ----------
        *arrays, repeat, target
            As for :meth:`time`.
        clock : callable
            Gives seconds, such as :func:`time.thread_time`, which stands still while other processes run.

        Returns
        -------
        list of (str, float)
            Name of the function and its median seconds.

        Raises
        ------
        InputError, BundleError
            As for :meth:`time`.
        """
        self.require_compiled()
        checked = check_inputs(self.inputs, arrays or self.check_inputs)
        return self._executor(target).call_times(*checked, repeat=repeat, clock=clock)

    def check(self, target: str | None = None) -> list[str]:
        """Run the self-check's inputs on this machine and compare the outputs bit for bit.

        Parameters
        ----------
        target : str, optional
            As for :meth:`run`.

        Returns
        -------
        list of str
            What differs; empty when all is well.

        Raises
        ------
        BundleError
            If the file has no self-check, or no library fits this machine, or ``target``'s does not.
        """
        self.require_compiled()
        if not self.check_inputs:
            raise self._error("it has no self-check inputs; compile the network with check_inputs")
        return self.mismatches(self.run(*self.check_inputs, target=target))

    def mismatches(self, outputs: Sequence[np.ndarray]) -> list[str]:
        """Compare outputs for the self-check's inputs with what they must be.

        Parameters
        ----------
        outputs : sequence of numpy.ndarray
            From any machine.

        Returns
        -------
        list of str
            What differs; empty when all is well.
        """
        if len(outputs) != len(self.check_outputs):
            return [f"{len(outputs)} outputs instead of {len(self.check_outputs)}"]
        pairs = zip(self.outputs, self.check_outputs, outputs, strict=True)
        found = [_difference(spec.name, expected, actual) for spec, expected, actual in pairs]
        return [difference for difference in found if difference is not None]

    def report(self, target: str | None = None) -> Receipt:
        """What became of every layer, with times where a library can run here.

        Parameters
        ----------
        target : str, optional
            One of :attr:`targets`; by default the one that fits this machine best, otherwise the first.

        Returns
        -------
        Receipt
            ``str()`` of it is a table.

        Raises
        ------
        BundleError
            If the network was not compiled for ``target``.
        """
        from tvmq.report.receipt import receipt

        self.require_compiled()
        here = self._fitting(this_machine())
        if target is None:
            target = here[0] if here else self.targets[0]
        self._entry(target)
        measured = self._layer_times(target) if target in here and self.check_inputs else None
        return receipt(self.manifest, target, measured)

    def _layer_times(self, target: str) -> dict[str, float]:
        """Measured seconds by layer name, of the layers whose kernel runs exactly as often as layers name it."""
        calls: dict[str, list[float]] = defaultdict(list)
        for function, seconds in self._executor(target).call_times(*self.check_inputs):
            calls[function].append(seconds)
        layers: dict[str, list[str]] = defaultdict(list)
        for layer in self.manifest["layers"].get(target, []):
            layers[layer.get("function")].append(layer["name"])
        return {
            name: seconds
            for function, names in layers.items()
            if len(names) == len(calls[function])
            for name, seconds in zip(names, calls[function], strict=True)
        }

    def _executor(self, target: str | None) -> Executor:
        """The loaded library of a target; of the best one for ``None``.  What fits is looked up once."""
        target = self._default if target is None else target
        if target in self._executors:
            return self._executors[target]
        machine = this_machine()
        name = self._best(machine) if target is None else target
        obstacle = _obstacle(self._entry(name), machine)
        if obstacle is not None:
            raise self._error(f"its library for '{name}' {obstacle}; {_remedy(name)}")
        if target is None:
            self._default = name
        if name not in self._executors:
            self._executors[name] = Executor.from_bytes(self.libraries[name])
        return self._executors[name]

    def _best(self, machine: Machine) -> str:
        fitting = self._fitting(machine)
        if fitting:
            return fitting[0]
        held = ", ".join(f"{name} ({architecture_of(entry['triple'])})" for name, entry in self._entries().items())
        raise self._error(
            f"no library fits this machine ({machine.arch}; the file holds: {held}); run it with `--on qemu` or on "
            "the board, or compile it for this machine with `tvmq compile --target host`"
        )

    def _fitting(self, machine: Machine) -> list[str]:
        """The targets whose libraries run on a machine, the best first."""
        fitting = [name for name, entry in self._entries().items() if _obstacle(entry, machine) is None]

        def rank(name: str) -> tuple[bool, bool, int, str]:
            entry = self.manifest["targets"][name]
            # A library for this very core, then the one that uses the most of it.
            return name != _HOST, entry["mcpu"] != machine.core, -len(entry["required_cpu_flags"]), name

        return sorted(fitting, key=rank)

    def _entries(self) -> Mapping[str, dict[str, Any]]:
        return self.manifest["targets"]

    def _entry(self, target: str) -> dict[str, Any]:
        self.require_compiled()
        entries = self._entries()
        if target in entries:
            return entries[target]
        hint = nearest(target, entries)
        raise self._error(
            f"it holds no library for target '{target}' (it holds: {', '.join(entries)}){hint}; "
            f"compile it with `tvmq compile --target {target}`"
        )

    def _error(self, problem: str) -> BundleError:
        if self.path is not None:
            return BundleError(f"{self.path}: {problem}")
        return BundleError(f"network '{self.manifest.get('name', '?')}': {problem}")

    def _members(self) -> dict[str, bytes]:
        """Every member of the file but the manifest."""
        members = {_MODEL: self.model_json.encode()}
        members |= {_library_member(name): library for name, library in self.libraries.items()}
        for kind, arrays in (("input", self.check_inputs), ("output", self.check_outputs)):
            members |= {f"check/{kind}_{number}.npy": _npy(array) for number, array in enumerate(arrays)}
        return members

    def _zip(self) -> bytes:
        # Arrays are mutable: what is saved is what is there now.
        members = self._members()
        self.manifest["hashes"] = {name: _sha256(content) for name, content in members.items()}
        manifest = json.dumps(self.manifest, indent=1, ensure_ascii=False, allow_nan=False)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {_MANIFEST: manifest.encode(), **members}.items():
                info = zipfile.ZipInfo(name, _TIMESTAMP)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                archive.writestr(info, content)
        return buffer.getvalue()


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a ``.tvmq`` file.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        If there is no such file, or it is truncated, damaged, of another format version or no ``.tvmq`` file at all.
    """
    path = Path(path)
    members = _read_members(path)
    if _MANIFEST not in members:
        raise BundleError(f"{path}: not a .tvmq file, as it has no {_MANIFEST}; make one with `tvmq compile`")
    manifest = _parse_manifest(path, members.pop(_MANIFEST))
    _verify(path, manifest["hashes"], members)
    try:
        return Bundle(
            manifest=manifest,
            model_json=members[_MODEL].decode(),
            libraries={name: members[_library_member(name)] for name in manifest["targets"]},
            check_inputs=_load_arrays(members, "input"),
            check_outputs=_load_arrays(members, "output"),
            path=path,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{path}: its manifest is damaged ({error}); copy or compile it again") from None


def _read_members(path: Path) -> dict[str, bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; check the name, or make it with `tvmq compile -o {path}`") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check the name and its permissions") from None
    if not content.startswith(_ZIP_SIGNATURE):
        raise BundleError(f"{path}: not a .tvmq file, as it is not a zip file; make one with `tvmq compile`")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError):
        raise BundleError(f"{path}: truncated or damaged; copy or download it again, or compile it again") from None


def _parse_manifest(path: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{path}: its {_MANIFEST} is damaged ({error}); copy or compile it again") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        remedy = "install a newer tvmq" if newer else "compile it again with this tvmq"
        raise BundleError(f"{path}: has format version {version}, and this tvmq reads {FORMAT}; {remedy}")
    for key in ("hashes", "targets"):
        if not isinstance(manifest.get(key), dict):
            raise BundleError(f"{path}: its {_MANIFEST} has no '{key}'; copy or compile it again")
    return manifest


def _verify(path: Path, hashes: Mapping[str, str], members: Mapping[str, bytes]) -> None:
    for name in hashes:
        if name not in members:
            raise BundleError(f"{path}: its member {name} is missing; copy or compile it again")
    for name, content in members.items():
        if hashes.get(name) != _sha256(content):
            raise BundleError(
                f"{path}: its member {name} is not what was saved (hash mismatch); copy or compile it again"
            )


def _load_arrays(members: Mapping[str, bytes], kind: str) -> list[np.ndarray]:
    count = sum(name.startswith(f"check/{kind}_") for name in members)
    names = [f"check/{kind}_{number}.npy" for number in range(count)]
    return [np.load(io.BytesIO(members[name]), allow_pickle=False) for name in names]


def _obstacle(entry: Mapping[str, Any], machine: Machine) -> str | None:
    return machine.obstacle(entry["triple"], entry["required_cpu_flags"])


def _remedy(target: str) -> str:
    if target == _HOST:
        return "compile it again on this machine with `tvmq compile --target host`"
    return "run it with `--on qemu`, or compile it for this machine with `tvmq compile --target host`"


def _library_member(target: str) -> str:
    return f"libraries/{target}.so"


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.require(array, requirements="C"), allow_pickle=False)
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _difference(name: str, expected: np.ndarray, actual: np.ndarray) -> str | None:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return f"output '{name}' is {_kind(actual)} instead of {_kind(expected)}"
    both_nan = (expected != expected) & (actual != actual)
    unequal = (actual != expected) & ~both_nan
    count = int(np.count_nonzero(unequal))
    if count == 0:
        return None
    largest = np.max(np.abs(actual[unequal].astype("float64") - expected[unequal].astype("float64")))
    return f"output '{name}': {count} of {expected.size} values differ, by up to {largest:.3g}"
