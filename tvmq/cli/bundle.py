"""``tvmq bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, progress

__all__ = ["bundle_command"]


@answers
def bundle_command(
    file: Annotated[Path, typer.Argument(help="A compiled .tvmq file.", metavar="NET.tvmq")],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Which of the file's targets. [default: the only one]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="The folder to write. [default: NET-TARGET, here]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that this command wrote before.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write a folder to copy to a device by hand.

    It has the network, a runtime with an interface in C (no Python), an example program, a benchmark, a self-check, a
    Makefile and a README.md that says what is what.
    """
    bundle = tvmq.load_bundle(file)
    name = target or bundle.only_target()
    path = output or Path(f"{file.stem}-{name}")
    with progress(f"building for {name}, which takes a minute the first time"):
        written = bundle.save_folder(path, target=name, force=force)
    text = (
        f"wrote {written.path}: network {written.network_bytes / 1e6:.2f} MB, runtime and programs "
        f"{written.runtime_bytes / 1e6:.2f} MB\n"
        f"copy it with `scp -r {written.path} USER@DEVICE:`, and run ./check there"
    )
    return Answer(written.as_dict(), text)
