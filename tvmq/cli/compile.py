"""``tvmq compile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, byte_size, progress
from tvmq.cli.arrays import read_arrays

__all__ = ["compile_command"]


@answers
def compile_command(
    source: Annotated[Path, typer.Argument(help="The network: an .onnx or .tvmq file.", metavar="SOURCE")],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="NAME", help="What to compile for; may be repeated. [default: host]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write. [default: SOURCE's name with .tvmq, in this folder]"),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check after every pass that the network still computes the same.")
    ] = False,
    debug_dir: Annotated[
        Path | None, typer.Option("--debug-dir", help="Folder to leave every stage of the network in.")
    ] = None,
    check_inputs: Annotated[
        Path | None,
        typer.Option("--check-inputs", help="An .npz file of inputs for --verify and for the file's self-check."),
    ] = None,
    schedules: Annotated[
        Path | None,
        typer.Option(
            "--schedules",
            metavar="DIR",
            help="Folder of `tvmq tune --output`. [default: your own tuned schedules, and those that come with tvmq]",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Compile a network into a .tvmq file.

    Ends in a table of what each layer became, and why.
    """
    names = target or ["host"]
    for name in names:
        tvmq.get_target(name)  # a misspelt name should fail before the slow part
    path = output if output is not None else Path(f"{source.stem}.tvmq")
    if path.resolve() == source.resolve():
        raise typer.BadParameter(f"{path} is the source itself; name another file with -o")

    with progress(f"loading {source}"):
        model = tvmq.load(source)
        inputs = None if check_inputs is None else read_arrays(check_inputs, [spec.name for spec in model.inputs])
    with progress(f"compiling for {', '.join(names)}"):
        bundle = tvmq.compile(
            model, target=names, check_inputs=inputs, debug_dir=debug_dir, verify=verify, schedules=schedules
        )
        bundle.save(path)

    receipts = {name: bundle.report(name) for name in names}
    text = "\n\n".join([*map(str, receipts.values()), f"wrote {path} ({byte_size(path)})"])
    data = {
        "output": str(path),
        "bytes": path.stat().st_size,
        "receipts": {name: receipt.as_dict() for name, receipt in receipts.items()},
    }
    return Answer(data, text)
