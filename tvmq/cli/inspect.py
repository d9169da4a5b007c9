"""``tvmq inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, byte_size
from tvmq.report import quantization_report

__all__ = ["inspect_command"]


@answers
def inspect_command(
    file: Annotated[Path, typer.Argument(help="A .tvmq file.", metavar="NET.tvmq")],
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME", help="Which of the file's targets. [default: all of them]")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show what is in a .tvmq file.

    Its inputs, outputs and targets, how each layer was quantized, and what it became.
    """
    bundle = tvmq.load_bundle(file)
    manifest = bundle.manifest
    names = [target] if target is not None else list(manifest["targets"])
    receipts = {name: bundle.report(name) for name in names}
    quantization = quantization_report(manifest)
    data = {
        **{key: manifest[key] for key in ("name", "format", "tvmq", "tvm", "inputs", "outputs", "targets")},
        "quantization": None if quantization is None else quantization.as_dict(),
        "receipts": {name: receipt.as_dict() for name, receipt in receipts.items()},
    }
    lines = [
        f"{file} ({byte_size(file)}): {manifest['name']}, written by tvmq {manifest['tvmq']}",
        *(f"input   {_tensor(spec)}" for spec in manifest["inputs"]),
        *(f"output  {_tensor(spec)}" for spec in manifest["outputs"]),
        *(f"target  {name} ({_core(entry)})" for name, entry in manifest["targets"].items()),
        *([] if manifest["targets"] else ["target  none yet; compile it with `tvmq compile`"]),
    ]
    reports = [*([] if quantization is None else [quantization]), *receipts.values()]
    return Answer(data, "\n\n".join(["\n".join(lines), *map(str, reports)]))


def _tensor(spec: dict[str, Any]) -> str:
    shape = "x".join("batch" if size is None else str(size) for size in spec["shape"]) or "scalar"
    return f"{spec['name']}  {spec['dtype']} {shape}"


def _core(entry: dict[str, Any]) -> str:
    flags = entry["required_cpu_flags"]
    return f"{entry['triple']}, {entry['mcpu']}" + (f"; needs {' '.join(flags)}" if flags else "")
