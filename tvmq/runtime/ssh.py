"""A connection to a board through the system's own ``ssh`` program.

One connection is opened and shared by everything that is sent (ssh's ControlMaster), so keys, aliases and jump hosts
of the user's ssh configuration work as they do for ``ssh`` itself.  Nothing is ever asked: a password or an unknown
host key is an error that says what to do once.  Whatever goes wrong is a :class:`~tvmq.errors.BoardError` of one line.
"""

from __future__ import annotations

import contextlib
import re
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tvmq.errors import BoardError, InputError, ToolchainError

__all__ = ["Address", "Answered", "Connection"]

CONNECT_SECONDS = 10
_OPENING_SECONDS = 40
"""Until the remote shell says that it is there: names are looked up, and a small board is slow to log in."""
_CLOSING_SECONDS = 5
_SSH_FAILED = 255
# A board that loses its power says nothing: it is asked every five seconds, and given up after three times.
_OPTIONS = (
    "-T",
    "-o BatchMode=yes",
    f"-o ConnectTimeout={CONNECT_SECONDS}",
    "-o ServerAliveInterval=5",
    "-o ServerAliveCountMax=3",
    "-o LogLevel=ERROR",
    # Whatever the user has configured for working there by hand.
    "-o ControlPersist=no",
    "-o RemoteCommand=none",
    "-o PermitLocalCommand=no",
)
_ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"(?::(?P<port>\d{1,5}))?/?"
)
_SCHEME = "ssh://"
_LARGEST_PORT = 65535
# What ssh writes, and what to do about it; {user_host} is the address as ssh takes it.
_CAUSES = (
    ("Could not resolve hostname", "no such host; check the name, or use the board's IP address"),
    ("Connection refused", "no ssh server answers there; switch ssh on with `sudo raspi-config` on the board"),
    ("timed out", "does not answer; check that the board is on, and in the same network"),
    ("No route to host", "cannot be reached; check that the board is on, and in the same network"),
    ("Network is unreachable", "cannot be reached; check the network of this machine"),
    (
        "IDENTIFICATION HAS CHANGED",
        "is not the machine it was (its host key has changed); if you installed it anew, forget the old key with "
        "`ssh-keygen -R {known_host}`",
    ),
    (
        "Host key verification failed",
        "its host key is not known here yet; run `ssh {command}` once, and compare the fingerprint",
    ),
    (
        "Permission denied",
        "does not accept your key, and passwords are not asked for; copy the key there once with "
        "`ssh-copy-id {command}`, or unlock it with `ssh-add`",
    ),
)


@dataclass(frozen=True)
class Address:
    """Where a board is.

    Attributes
    ----------
    host : str
        A name, an IP address, or an alias of the user's ssh configuration.
    user : str or None
        Who to be there; ``None`` leaves it to ssh.
    port : int or None
        Of the ssh server; ``None`` leaves it to ssh.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __post_init__(self) -> None:
        """Reject ports that do not exist."""
        if self.port is not None and not 1 <= self.port <= _LARGEST_PORT:
            raise InputError(f"port {self.port} is not between 1 and {_LARGEST_PORT}")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Parameters
        ----------
        text : str
            ``ssh://user@host:port``, ``user@host``, or less of it; an IPv6 address in brackets.

        Returns
        -------
        Address

        Raises
        ------
        InputError
            For another text.
        """
        match = _ADDRESS.fullmatch(text.removeprefix(_SCHEME))
        if match is None:
            raise InputError(f"'{text}' is not the address of a board; write ssh://user@host or ssh://user@host:port")
        port = None if match["port"] is None else int(match["port"])
        return cls(match["host"].strip("[]"), match["user"], port)

    @property
    def words(self) -> list[str]:
        """The words by which ``ssh`` finds the board."""
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*port, self.host if self.user is None else f"{self.user}@{self.host}"]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"{_SCHEME}{user}{host}" + ("" if self.port is None else f":{self.port}")


@dataclass(frozen=True)
class Answered:
    """What a remote script left.

    Attributes
    ----------
    status : int
        Its exit status.
    output : bytes
        What it wrote on standard output.
    errors : str
        What it wrote on standard error.
    """

    status: int
    output: bytes
    errors: str

    @property
    def reason(self) -> str:
        """The last line of the errors."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}"


class Connection:
    """An open connection to a board, until :meth:`close` or the end of the ``with``.

    The processes on the board that it started end with it, also when this process is killed: their standard input
    ends, or nobody reads their output any more.

    Parameters
    ----------
    address : Address
        The board.

    Raises
    ------
    BoardError
        If it cannot be reached or does not let us in.
    ToolchainError
        If ``ssh`` is not installed.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        ssh = shutil.which("ssh")
        if ssh is None:
            raise ToolchainError("ssh is not installed; install it with `apt-get install openssh-client`")
        # A control socket's path may not be long, so it is not in a folder of the user's choice.
        self._folder = tempfile.TemporaryDirectory(prefix="tvmq-")
        self._ssh = [ssh, *shlex.split(" ".join(_OPTIONS)), "-S", str(Path(self._folder.name) / "ssh")]
        self._master = self._open()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and everything that runs through it."""
        _end(self._master)
        self._folder.cleanup()

    def run(self, script: str, *arguments: str, send: bytes = b"") -> Answered:
        """Run a shell script on the board.

        Parameters
        ----------
        script : str
            For ``sh``.
        *arguments : str
            Its ``$1``, ``$2``, ...
        send : bytes
            Its standard input.

        Returns
        -------
        Answered
            With any exit status.

        Raises
        ------
        BoardError
            If the connection is lost.
        """
        # A login shell may greet; what counts comes after the mark.
        mark = uuid.uuid4().hex
        command = self._command([f"echo {mark}\n{script}", *arguments])
        done = subprocess.run(command, input=send, capture_output=True, check=False, start_new_session=True)
        _, found, output = done.stdout.partition(f"{mark}\n".encode())
        errors = done.stderr.decode(errors="replace")
        if done.returncode == _SSH_FAILED or not found:
            raise self._lost(errors)
        return Answered(done.returncode, output, errors)

    def start(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a shell script on the board that runs until its standard input ends.

        Parameters
        ----------
        script, *arguments : str
            As for :meth:`run`.

        Returns
        -------
        subprocess.Popen
            The ``ssh`` process, with pipes; end it with :meth:`stop`.
        """
        return self._popen(self._command([script, *arguments]))

    def talk(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> str:
        """Write a line to what :meth:`start` started, and read the line that it answers.

        Parameters
        ----------
        process : subprocess.Popen
        line : bytes
            With its end.
        seconds : float
            To wait for the answer.

        Returns
        -------
        str
            The answer; what it wrote on standard error if it has ended instead; empty if it says nothing in time.

        Raises
        ------
        BoardError
            If the connection is lost.
        """
        assert process.stdin is not None and process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line)
        found = _read_until(process, b"\n", time.monotonic() + seconds)
        if found:
            return found.split(b"\n")[0].decode(errors="replace")
        if found is None:
            return ""
        errors = process.stderr.read().decode(errors="replace")
        if process.wait() == _SSH_FAILED:
            raise self._lost(errors)
        return Answered(process.returncode, b"", errors).reason

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End what :meth:`start` started, by ending its standard input.

        Parameters
        ----------
        process : subprocess.Popen
        """
        _end(process)

    def forward(self, port: int) -> int:
        """Make a port of the board's loopback device reachable here, on the loopback device only.

        Parameters
        ----------
        port : int
            The board's.

        Returns
        -------
        int
            This machine's.

        Raises
        ------
        BoardError
            If ssh cannot do it.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            here = int(free.getsockname()[1])
        words = ["-O", "forward", "-L", f"127.0.0.1:{here}:127.0.0.1:{port}", *self.address.words]
        done = subprocess.run([*self._ssh, *words], capture_output=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise self._lost(done.stderr.decode(errors="replace"))
        return here

    def _command(self, words: Sequence[str]) -> list[str]:
        script, *arguments = words
        remote = " ".join(shlex.quote(word) for word in ("sh", "-c", script, "tvmq", *arguments))
        # Without its master a command would open a connection of its own, and so hide that ours is lost.
        return [*self._ssh, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", *self.address.words, remote]

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        # Ctrl-C is for us: what runs on the board is ended in order.  Without a buffer, as select sees none.
        return subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)

    def _open(self) -> subprocess.Popen[bytes]:
        """The process that holds the connection.  It ends when its input does, so it cannot outlive us."""
        mark = uuid.uuid4().hex
        master = self._popen(
            [
                *self._ssh,
                "-M",
                "-o",
                "ClearAllForwardings=yes",
                *self.address.words,
                f"echo {mark}; exec cat >/dev/null",
            ]
        )
        try:
            greeting = _read_until(master, mark.encode(), time.monotonic() + _OPENING_SECONDS)
            if greeting is None:
                master.kill()
                raise BoardError(f"{self.address}: does not log us in within {_OPENING_SECONDS} seconds")
            if not greeting:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    master.wait(_CLOSING_SECONDS)
                raise self._unreachable(_errors_so_far(master))
        except BaseException:
            _end(master)
            self._folder.cleanup()
            raise
        return master

    def _unreachable(self, errors: str) -> BoardError:
        for text, cause in _CAUSES:
            if text in errors:
                command = " ".join(self.address.words)
                known = self.address.host if self.address.port is None else f"[{self.address.host}]:{self.address.port}"
                return BoardError(f"{self.address}: {cause.format(command=command, known_host=shlex.quote(known))}")
        return self._lost(errors)

    def _lost(self, errors: str) -> BoardError:
        # Where it was not this command that failed, but the connection, the master knows why.
        with contextlib.suppress(AttributeError, subprocess.TimeoutExpired):
            self._master.wait(1)
            errors = _errors_so_far(self._master)
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        detail = f" ({lines[-1]})" if lines else ""
        return BoardError(f"{self.address}: the connection was lost{detail}; try again once the board is back")


def _read_until(process: subprocess.Popen[bytes], mark: bytes, deadline: float) -> bytes | None:
    """Output up to a mark; empty if it ends before, None if nothing comes in time."""
    assert process.stdout is not None
    found = b""
    while mark not in found:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = process.stdout.read(4096)
        if not part:
            return b""
        found += part
    return found


def _errors_so_far(process: subprocess.Popen[bytes]) -> str:
    """What it has written on standard error, of which a proxy that outlives ssh would keep the end away."""
    assert process.stderr is not None
    found = b""
    while select.select([process.stderr], [], [], 0)[0]:
        part = process.stderr.read(4096)
        if not part:
            break
        found += part
    return found.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(_CLOSING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
