"""``tvmq doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, progress
from tvmq.cli.board import checked_address

__all__ = ["doctor_command"]


@answers
def doctor_command(
    address: Annotated[
        str | None,
        typer.Argument(
            help="A board. [default: this machine]",
            metavar="[ssh://USER@HOST[:PORT]]",
            callback=checked_address,
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Look whether a board, or this machine, is ready for networks, and say what to do where it is not.

    Its core and the target to compile for, 32 or 64 bits, clock, throttling, C library, Python and TVM, processors,
    memory and disk. Nothing is changed there.
    """
    with progress(f"asking {address or 'this machine'}"):
        found = tvmq.doctor(address)
    return Answer(found.as_dict(), str(found), found.failure)
