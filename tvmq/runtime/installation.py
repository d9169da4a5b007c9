"""A compiled network with all that it needs on a board, put there and run there.

What is sent is one archive: the program (``tvmq-run``, or TVM's Python runtime with the few files of tvmq that it
takes), the library, the self-check, and two scripts.  The board unpacks it into a folder of its own, compares the
checksums, and only then says that it is there.  ``board.sh`` does that, and describes the folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from tvmq.errors import BoardError
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.facts import Facts
from tvmq.runtime.fitting import needed_glibc, platform_target
from tvmq.runtime.python_runtime import package_files, require_python_runtime, run_script
from tvmq.runtime.ssh import Connection
from tvmq.runtime.timing import Timing
from tvmq.runtime.toolchain import build_runner

__all__ = ["RUNTIMES", "Outcome", "Part", "contents", "send"]

RUNTIMES = ("cpp", "python")
_SCRIPT = Path(__file__).resolve().parent / "board.sh"
_LIST = "SHA256SUMS"
_ILLEGAL_INSTRUCTION = 128 + signal.SIGILL
_KILLED = 128 + signal.SIGKILL
_SPARE_BYTES = 4 << 20
"""Space beyond the files themselves: blocks are larger than small files, and the self-check writes its outputs."""
_RUN_CPP = """\
#!/bin/sh
# Runs the network: ~/tvmq/{name}/run.sh --input x.npy --output-prefix y [--repeat N]
here=$(dirname "$0")
exec env TVM_NUM_THREADS="${{TVM_NUM_THREADS:-{threads}}}" "$here/tvmq-run" "$here/network.so" "$@"
"""
_CHECK = """\
#!/bin/sh
# Runs the network on its self-check's inputs, and compares with the outputs that were right when it was installed.
here=$(dirname "$0")
made=$(mktemp -d) || exit
trap 'rm -rf "$made"' EXIT
"$here/run.sh" {inputs} --output-prefix "$made/output" >/dev/null || exit
for expected in "$here"/check/output*.npy; do
    cmp "$expected" "$made/${{expected##*/}}" || {{ echo "self-check failed" >&2; exit 1; }}
done
echo "self-check passed"
"""


@dataclass(frozen=True)
class Outcome:
    """What a run on a board gave.

    Attributes
    ----------
    outputs : list of numpy.ndarray
        One array per output of the network.
    timing : Timing
        Of the timed runs, in seconds, on the board.
    """

    outputs: list[np.ndarray] = field(repr=False)
    timing: Timing


@cache
def _script() -> str:
    return _SCRIPT.read_text(encoding="utf-8")


def contents(
    bundle: Bundle, target: str, facts: Facts, place: str, arrays: Sequence[np.ndarray], name: str, runtime: str
) -> dict[str, bytes]:
    """Everything that one library needs on a board.

    Parameters
    ----------
    bundle : Bundle
    target : str
        Whose library.
    facts : Facts
        Of the board.
    place : str
        The board, for messages.
    arrays : sequence of numpy.ndarray
        Inputs to run the network on.
    name : str
        What the installation is called.
    runtime : str
        One of `RUNTIMES`.

    Returns
    -------
    dict of str to bytes
        By name; programs end in ``.sh`` or are called ``tvmq-run``.

    Raises
    ------
    BoardError
        If the board has too little space, too old a C library, or not the Python runtime.
    ToolchainError
        If the runner cannot be built.
    """
    entry = bundle.manifest["targets"][target]
    core = platform_target(target, entry["triple"])
    threads = min(core.cores, facts.usable)
    files = {"network.so": bundle.libraries[target]}
    if runtime == "python":
        require_python_runtime(facts, place)
        files |= package_files()
        files["run.sh"] = run_script(name, threads).encode()
    else:
        files["tvmq-run"] = build_runner(core).read_bytes()
        files["run.sh"] = _RUN_CPP.format(name=name, threads=threads).encode()
    for number, array in enumerate(arrays):
        files[f"check/input{number}.npy"] = _npy(array)
    inputs = " ".join(f'--input "$here/check/input{number}.npy"' for number in range(len(arrays)))
    files["check.sh"] = _CHECK.format(inputs=inputs).encode()
    _require_glibc(files, facts, place)
    _require_space(files, facts, place)
    return files


def _require_glibc(files: Mapping[str, bytes], facts: Facts, place: str) -> None:
    programs = [content for name, content in files.items() if name in ("tvmq-run", "network.so")]
    needed = max(map(needed_glibc, programs))
    if facts.glibc is not None and needed > facts.glibc:
        old, new = (".".join(map(str, version)) for version in (facts.glibc, needed))
        raise BoardError(
            f"{place}: has glibc {old}, and what this machine builds needs {new}; install a newer system on the board, "
            "or build on a machine whose system is as old"
        )


def _require_space(files: Mapping[str, bytes], facts: Facts, place: str) -> None:
    needed = sum(map(len, files.values())) + _SPARE_BYTES
    if facts.disk_free is not None and facts.disk_free < needed:
        free = f"{facts.disk_free / 1e6:.1f} MB"
        raise BoardError(
            f"{place}: no space left: {free} are free in the home folder, and {needed / 1e6:.1f} MB are needed; delete "
            "something there"
        )


class Part:
    """Files that are on a board, in a folder of their own.

    Parameters
    ----------
    connection : Connection
    identity : str
        The folder's name.
    """

    def __init__(self, connection: Connection, identity: str) -> None:
        self.connection, self.identity = connection, identity

    def run(self, inputs: int, repeat: int) -> Outcome:
        """Run the network there on the inputs that were sent.

        Parameters
        ----------
        inputs : int
            How many the network takes.
        repeat : int
            Timed runs.

        Returns
        -------
        Outcome

        Raises
        ------
        BoardError
            If it fails, or the connection is lost.
        """
        output = self._do("check", str(inputs), str(repeat))
        report, _, archive = output.partition(b"\n")
        try:
            seconds = json.loads(report)["seconds"]
            with tarfile.open(fileobj=io.BytesIO(archive)) as members:
                names = sorted(members.getnames(), key=lambda name: int("".join(filter(str.isdigit, name))))
                arrays = [np.load(io.BytesIO(_content(members, name)), allow_pickle=False) for name in names]
        except (ValueError, KeyError, TypeError, tarfile.TarError):
            raise BoardError(f"{self.connection.address}: the run left no outputs; try again") from None
        return Outcome(arrays, Timing.from_seconds(seconds))

    def install(self, name: str) -> None:
        """Make this the installation of a name; from then on it stays.

        Parameters
        ----------
        name : str

        Raises
        ------
        BoardError
            If it cannot be, or the connection is lost.
        """
        self._do("install", name)

    def _do(self, action: str, *arguments: str) -> bytes:
        return command(self.connection, action, self.identity, *arguments)


@contextlib.contextmanager
def send(connection: Connection, files: Mapping[str, bytes]) -> Iterator[Part]:
    """Send files to a board; what was not installed is removed afterwards.

    Parameters
    ----------
    connection : Connection
    files : mapping of str to bytes
        See :func:`contents`.

    Yields
    ------
    Part

    Raises
    ------
    BoardError
        If they do not fit there, or the connection is lost.
    """
    identity = uuid.uuid4().hex[:12]
    command(connection, "unpack", identity, send=_archive(files))
    try:
        yield Part(connection, identity)
    finally:
        # Where the connection is lost there is nothing more to do: the next one clears up.
        with contextlib.suppress(BoardError):
            command(connection, "remove", identity)


def command(connection: Connection, action: str, *arguments: str, send: bytes = b"") -> bytes:
    """Do one of the things of ``board.sh``.

    Parameters
    ----------
    connection : Connection
    action, *arguments : str
    send : bytes
        Its standard input.

    Returns
    -------
    bytes
        Its standard output.

    Raises
    ------
    BoardError
        If it fails, or the connection is lost.
    """
    answered = connection.run(_script(), action, *arguments, send=send)
    if answered.status == 0:
        return answered.output
    place = connection.address
    if "No space left" in answered.errors:
        raise BoardError(f"{place}: no space left on the board; delete something there, and try again")
    if answered.status == _ILLEGAL_INSTRUCTION:
        raise BoardError(f"{place}: the library uses instructions that the board's core lacks; compile it again for it")
    if answered.status == _KILLED:
        raise BoardError(f"{place}: the board ended the program, probably for lack of memory; end other programs there")
    raise BoardError(f"{place}: {answered.reason.removeprefix('tvmq: ').removeprefix('tvmq-run: ')}")


def _archive(files: Mapping[str, bytes]) -> bytes:
    """All files, and their checksums at the end."""
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in {**files, _LIST: sums.encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = int(time.time())
            info.mode = 0o755 if name == "tvmq-run" or name.endswith(".sh") else 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file")
    return file.read()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.require(array, requirements="C"), allow_pickle=False)
    return buffer.getvalue()
