"""Installing a compiled network on a board, so that it runs there without tvmq."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from tvmq.errors import BoardError, BundleError, InputError
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.facts import facts_of
from tvmq.runtime.fitting import choose_library
from tvmq.runtime.installation import RUNTIMES, command, contents, send
from tvmq.runtime.ssh import Address, Connection
from tvmq.runtime.timing import Timing

__all__ = ["Deployment", "deploy"]

_REPEAT = 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Deployment:
    """A network that was installed; ``str()`` says how to run it.

    Attributes
    ----------
    address : str
        The board.
    board : str
        What it is.
    folder : str
        Where the network is, such as ``"~/tvmq/net"``.
    target : str
        Whose library it is.
    runtime : str
        ``"cpp"`` or ``"python"``.
    bytes : int
        Size of all that was sent.
    timing : Timing
        Of one run of the network there, in seconds.
    inputs : tuple of str
        Names of the network's inputs.
    """

    address: str
    board: str
    folder: str
    target: str
    runtime: str
    bytes: int
    timing: Timing
    inputs: tuple[str, ...]

    @property
    def run_command(self) -> str:
        """What to run on the board, with files in place of the inputs."""
        inputs = " ".join(f"--input {re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.npy" for name in self.inputs)
        return f"{self.folder}/run.sh {inputs} --output-prefix y"

    def as_dict(self) -> dict[str, Any]:
        """The deployment as plain dictionaries, numbers and texts.

        Returns
        -------
        dict
        """
        return {**dataclasses.asdict(self), "run": self.run_command, "check": f"{self.folder}/check.sh"}

    def __str__(self) -> str:
        return "\n".join(
            [
                f"installed in {self.folder} on {self.address} ({self.board}): {self.target}, {self.runtime} runtime, "
                f"{self.bytes / 1e6:.1f} MB",
                f"self-check passed; one run takes {self.timing}",
                "",
                "on the board:",
                f"  {self.run_command}",
                f"  {self.folder}/check.sh",
            ]
        )


def deploy(
    bundle: Bundle, address: str, *, name: str | None = None, runtime: str = "cpp", target: str | None = None
) -> Deployment:
    """Install a network on a board, after its self-check has passed there.

    The installation is replaced at once or not at all: until the self-check has passed, and whenever something fails
    or the connection is cut, the one that was there before stays.

    Parameters
    ----------
    bundle : Bundle
        A compiled network with a self-check.
    address : str
        The board: ``ssh://user@host:port``, or less of it.
    name : str, optional
        The network is installed in ``~/tvmq/NAME``; by default the file's name.
    runtime : str
        ``"cpp"`` for a runner that needs nothing on the board, ``"python"`` for TVM's Python runtime.
    target : str, optional
        Whose library to install; by default the one that fits the board best.

    Returns
    -------
    Deployment

    Raises
    ------
    InputError
        If an argument is none of those.
    BundleError
        If the network is not compiled, or has no self-check.
    BoardError
        If the board cannot be reached, nothing fits it, or the self-check fails there.
    ToolchainError
        If the runner cannot be built.
    """
    where = Address.parse(address)
    if runtime not in RUNTIMES:
        raise InputError(f"runtime must be {' or '.join(RUNTIMES)}, not '{runtime}'")
    name = name if name is not None else _default_name(bundle)
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' is not a name of letters, digits, '.', '_' and '-'")
    bundle.require_compiled()
    if not bundle.check_inputs:
        raise BundleError(f"{bundle.path or name}: it has no self-check inputs; compile the network with check_inputs")
    with Connection(where) as connection:
        return _install(bundle, connection, name, runtime, target)


def _install(bundle: Bundle, connection: Connection, name: str, runtime: str, target: str | None) -> Deployment:
    place, facts = str(connection.address), facts_of(connection)
    chosen = choose_library(bundle, facts, place, target)
    files = contents(bundle, chosen, facts, place, bundle.check_inputs, name, runtime)
    command(connection, "installable", name)
    with send(connection, files) as part:
        outcome = part.run(len(bundle.check_inputs), _REPEAT)
        problems = bundle.mismatches(outcome.outputs)
        if problems:
            raise BoardError(f"{place}: self-check failed, nothing was installed: {problems[0]}")
        part.install(name)
    return Deployment(
        address=place,
        board=facts.model or facts.processor,
        folder=f"~/tvmq/{name}",
        target=chosen,
        runtime=runtime,
        bytes=sum(map(len, files.values())),
        timing=outcome.timing,
        inputs=tuple(spec.name for spec in bundle.inputs),
    )


def _default_name(bundle: Bundle) -> str:
    text = bundle.path.stem if bundle.path is not None else str(bundle.manifest["name"])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "network"
