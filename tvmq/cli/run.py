"""``tvmq run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, progress
from tvmq.cli.arrays import read_arrays, write_arrays
from tvmq.errors import BundleError, InputError, TargetError
from tvmq.runtime.ssh import Address

if TYPE_CHECKING:
    import numpy as np

    from tvmq.runtime.bundle import Bundle

__all__ = ["run_command"]

_HOST, _QEMU = "host", "qemu"
_SHOWN = 8  # values of an output that are printed


@answers
def run_command(
    file: Annotated[Path, typer.Argument(help="A .tvmq file.", metavar="NET.tvmq")],
    inputs: Annotated[
        Path | None,
        typer.Option("--input", help="An .npz or .npy file of inputs. [default: the file's own self-check inputs]"),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="An .npz file to write the outputs to.")] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="host|qemu|ssh://USER@HOST[:PORT]",
            help="This machine, an emulator of the target's processor, or a board, where nothing is left behind.",
        ),
    ] = _HOST,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Which of the file's targets. [default: the one that fits]"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the self-check inputs and compare with the expected outputs.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Run a compiled network."""
    if check and (inputs is not None or output is not None):
        raise typer.BadParameter("--check uses the file's own inputs and outputs; leave out --input and --output")
    _check_place(on)
    bundle = tvmq.load_bundle(file)
    bundle.require_compiled()
    arrays = _inputs(bundle, inputs)
    if on == _HOST:
        with progress("running on this machine"):
            results = bundle.run(*arrays, target=target)
    elif on == _QEMU:
        target = target or _emulated_target(bundle)
        with progress(f"running on an emulated {target}"):
            results = bundle.run_emulated(target, *arrays)
    else:
        with progress(f"running on {on}"):
            results = tvmq.run_on_board(bundle, on, *arrays, target=target)
    if check:
        return _check_answer(file, bundle.mismatches(results))

    names = [spec["name"] for spec in bundle.manifest["outputs"]]
    outputs = [_described(name, array, output is None) for name, array in zip(names, results, strict=True)]
    data: dict[str, Any] = {"on": on, "target": target, "outputs": outputs}
    lines = [_shown(name, array) for name, array in zip(names, results, strict=True)]
    if output is not None:
        write_arrays(output, names, results)
        data["output"] = str(output)
        lines.append(f"wrote {output}")
    return Answer(data, "\n".join(lines))


def _check_place(on: str) -> None:
    """A slip in the name of a place is wrong usage."""
    if on in (_HOST, _QEMU):
        return
    try:
        if not on.startswith("ssh://"):
            raise InputError(f"'{on}' is none of host, qemu and ssh://user@host")
        Address.parse(on)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--on") from None


def _emulated_target(bundle: Bundle) -> str:
    """The only target of the file for which an emulator is known."""
    names = [name for name in bundle.manifest["targets"] if tvmq.get_target(name).qemu is not None]
    if len(names) == 1:
        return names[0]
    if not names:
        raise TargetError("the file has no target that can be emulated; compile it with --target raspberry-pi-4 too")
    raise TargetError(f"the file has several targets that can be emulated; choose with --target: {', '.join(names)}")


def _inputs(bundle: Bundle, path: Path | None) -> list[np.ndarray]:
    if path is not None:
        return read_arrays(path, [spec["name"] for spec in bundle.manifest["inputs"]])
    if not bundle.check_inputs:
        raise BundleError("the file has no self-check inputs; give some with --input x.npz")
    return list(bundle.check_inputs)


def _check_answer(file: Path, messages: list[str]) -> Answer:
    if not messages:
        return Answer({"check": "passed", "messages": []}, f"{file}: self-check passed")
    failure = f"{file}: self-check failed: {messages[0]}"
    if len(messages) > 1:
        failure += f" (and {len(messages) - 1} more)"
    return Answer({"check": "failed", "messages": messages}, "\n".join(messages), failure)


def _described(name: str, array: np.ndarray, with_values: bool) -> dict[str, Any]:
    described = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
    return {**described, "values": array.tolist()} if with_values else described


def _shown(name: str, array: np.ndarray) -> str:
    values = ", ".join(f"{value:.6g}" for value in array.ravel()[:_SHOWN].tolist())
    more = ", ..." if array.size > _SHOWN else ""
    shape = "x".join(map(str, array.shape)) or "scalar"
    return f"{name}  {array.dtype} {shape}  {values}{more}"
