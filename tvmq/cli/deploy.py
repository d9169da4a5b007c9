"""``tvmq deploy``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, progress
from tvmq.cli.board import checked_address

__all__ = ["deploy_command"]


class Runtime(str, Enum):
    """What runs the network on the board."""

    cpp = "cpp"
    python = "python"


@answers
def deploy_command(
    file: Annotated[Path, typer.Argument(help="A compiled .tvmq file.", metavar="NET.tvmq")],
    address: Annotated[
        str, typer.Argument(help="The board.", metavar="USER@HOST[:PORT]", callback=checked_address, show_default=False)
    ],
    runtime: Annotated[
        Runtime,
        typer.Option(
            "--runtime",
            help="A runner that needs nothing on the board, or TVM's Python runtime, which has to be installed there.",
        ),
    ] = Runtime.cpp,
    name: Annotated[
        str | None, typer.Option("--name", help="Install in ~/tvmq/NAME on the board. [default: the file's name]")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Which of the file's targets. [default: the board's]"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Install a compiled network on a board, over ssh.

    The board's processor is read first, and a library for another core is refused. The network then runs its self-check
    there; only if that passes it becomes ~/tvmq/NAME, at once: whatever fails before leaves the installation that was
    there, also when the connection or the power is cut. Keys, aliases and jump hosts are those of your ssh; passwords
    are not asked for, so copy your key there once with `ssh-copy-id USER@HOST`.
    """
    bundle = tvmq.load_bundle(file)
    with progress(f"installing on {address}"):
        done = tvmq.deploy(bundle, address, name=name, runtime=runtime.value, target=target)
    return Answer(done.as_dict(), str(done))
