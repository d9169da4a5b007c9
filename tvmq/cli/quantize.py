"""``tvmq quantize``."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, byte_size, progress, progress_bar
from tvmq.errors import InputError
from tvmq.methods import GPFQ, QNN, LQNets
from tvmq.report import QuantizationReport

if TYPE_CHECKING:
    from tvmq.methods.progress import Progress

__all__ = ["quantize_command"]

_INTERRUPTED = 130  # as shells have it, and typer for the other commands


class Method(str, Enum):
    """How a network is quantized."""

    gpfq = "gpfq"
    qnn = "qnn"
    lqnets = "lqnets"


_CONFIGURATIONS: dict[Method, Any] = {Method.gpfq: GPFQ, Method.qnn: QNN, Method.lqnets: LQNets}
_OPTIONS = {
    "radius": "--per-channel",
    "activation_clip": "--clip",
    "constant": "--constant",
    "bias_correction": "--bias-correction",
    "rounding": "--rounding",
}
"""Those that not every method has, by the fields of configurations."""
_FLOAT = "float"


def _defaults(field: str) -> str:
    """What each method does without an option, for its help."""
    found = {method: getattr(kind, field) for method, kind in _CONFIGURATIONS.items()}
    values = {method: _FLOAT if value is None else value for method, value in found.items()}
    return "[default: " + ", ".join(f"{value} ({method.value})" for method, value in values.items()) + "]"


@answers
def quantize_command(
    source: Annotated[Path, typer.Argument(help="The network: an .onnx or .tvmq file.", metavar="SOURCE")],
    calibration: Annotated[
        Path,
        typer.Option(
            "--calibration",
            help="Inputs like those that the network will see: an .npz or .npy file, or a folder of images.",
        ),
    ],
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="'gpfq' makes up for errors by later weights, 'qnn' fits fixed levels, 'lqnets' levels of any values.",
        ),
    ] = Method.gpfq,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="BITS",
            help=f"Bits of a weight, or 'ternary' for -1, 0 and 1 (not lqnets). {_defaults('weights')}",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            "--activations",
            metavar="BITS",
            help=f"Bits of the layers' inputs, or 'float' to leave them so. {_defaults('activations')}",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file to write. [default: SOURCE's name with -METHOD.tvmq, in this folder]"
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, help="Samples that are run at a time, where the network leaves it open."),
    ] = 64,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Use the first so many samples only. [default: all]")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option("--mean", metavar="M,M,M", help="Of images in [0, 1]: subtracted from each channel. [default: 0]"),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            "--std", metavar="S,S,S", help="Of images in [0, 1]: what each channel is divided by. [default: 1]"
        ),
    ] = None,
    constant: Annotated[
        str | None,
        typer.Option(
            "--constant",
            metavar="C",
            help="Of gpfq: the largest level is so many times the median weight; 'search' finds the best for each "
            f"layer. [default: {GPFQ.constant}]",
        ),
    ] = None,
    per_channel: Annotated[
        bool, typer.Option("--per-channel", help="Of gpfq: scale each output channel by itself, not the whole layer.")
    ] = False,
    bias_correction: Annotated[
        bool | None,
        typer.Option(
            "--bias-correction/--no-bias-correction",
            help="Of gpfq: add the mean of the error that is left, as qnn and lqnets do. [default: no]",
        ),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            "--rounding",
            metavar="linear|log",
            help=f"Of qnn: equispaced levels, or powers of two. [default: {QNN.rounding}]",
        ),
    ] = None,
    first_layer: Annotated[
        str | None,
        typer.Option(
            "--first-layer",
            metavar="input8|quantized|float",
            help="'input8' rounds the first layer's input to 8 bits, 'float' leaves the layer as it is. "
            f"{_defaults('first_layer')}",
        ),
    ] = None,
    last_layer: Annotated[
        str | None,
        typer.Option(
            "--last-layer",
            metavar="quantized|float",
            help=f"'float' leaves the last layer as it is. {_defaults('last_layer')}",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="NAME", help="A layer to leave in float, or a pattern; may be repeated."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            metavar="mse|percentile|max",
            help=f"Of gpfq: what the largest level of an activation is. [default: {GPFQ.activation_clip}]",
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Quantize a trained network, without training, into a .tvmq file.

    The file has no library yet; `tvmq compile` takes it.  Ends in a table of how well each layer was quantized.  Layers
    that are done are kept in a folder beside the output, so that after an interruption the same command goes on there.
    Several processes share the work under `torchrun --nproc-per-node 4 -m tvmq.cli quantize ...`.

    With another method: `tvmq quantize net.onnx --method lqnets --weights 2 --activations 3 --calibration images/`, or
    `tvmq quantize net.onnx --method qnn --weights 4 --activations float --calibration inputs.npz`.
    """
    fields: dict[str, Any] = {
        "weights": None if weights is None else _number(weights, int),
        "constant": None if constant is None else _number(constant, float),
        "radius": "channel" if per_channel else None,
        "bias_correction": bias_correction,
        "rounding": rounding,
        "first_layer": first_layer,
        "last_layer": last_layer,
        "skip": tuple(skip) if skip else None,
        "activation_clip": clip,
    }
    chosen = {name: value for name, value in fields.items() if value is not None}
    if activations is not None:
        chosen["activations"] = _bits("--activations", activations)
    config = _configuration(method, chosen)
    path = output if output is not None else Path(f"{source.stem}-{method.value}.tvmq")
    if path.resolve() == source.resolve():
        raise typer.BadParameter(f"{path} is the source itself; name another file with -o")
    means, deviations = _numbers("--mean", mean), _numbers("--std", std)
    _require_writable(path)
    if not calibration.exists():
        raise InputError(f"{calibration}: no such file or folder; --calibration takes an .npz or .npy file or images")

    from tvmq.methods.calibration import Calibration  # loads numpy, which --help does without

    given = Calibration(calibration, samples, means, deviations)
    with progress(f"loading {source}"):
        model = tvmq.load(source)
    partial = path.with_name(f"{path.name}.partial")
    with _launched() as (rank, size), _resumable(partial) as reached, _shown(rank) as show:

        def update(moment: Progress) -> None:
            reached[:] = [moment]
            show(moment.layer, moment.fraction, moment.seconds_left)

        mine = replace(given, share=(rank, size))
        quantized = tvmq.quantize(model, config, mine, batch_size=batch_size, checkpoint=partial, progress=update)
        if rank:
            raise typer.Exit  # one process writes and speaks for all
        quantized.save(path)
    shutil.rmtree(partial, ignore_errors=True)

    report = QuantizationReport(quantized.quantization, quantized.name)
    data = {"output": str(path), "bytes": path.stat().st_size, "quantization": report.as_dict()}
    hint = f"`tvmq compile {path} --target NAME -o FILE` makes it run"
    return Answer(data, f"{report}\n\nwrote {path} ({byte_size(path)}); {hint}")


def _launched() -> contextlib.AbstractContextManager[tuple[int, int]]:
    """Number of this process and how many there are."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return contextlib.nullcontext((0, 1))
    from tvmq.nn.launched import launched_processes  # loads torch

    return launched_processes()


def _shown(rank: int) -> contextlib.AbstractContextManager[Callable[[str, float, float | None], None]]:
    """A progress bar, of the first process only."""
    return progress_bar("quantizing") if rank == 0 else contextlib.nullcontext(lambda *_: None)


@contextlib.contextmanager
def _resumable(partial: Path) -> Iterator[list[Progress]]:
    """Say on an interruption how to go on; gives a list to keep the last progress in."""
    reached: list[Progress] = []
    try:
        yield reached
    except KeyboardInterrupt:
        print(f"tvmq: {_interruption(reached, partial)}", file=sys.stderr, flush=True)
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        with contextlib.suppress(OSError):
            partial.rmdir()  # only if there is nothing in it


def _interruption(reached: list[Progress], partial: Path) -> str:
    if not partial.is_dir() or not any(partial.iterdir()):
        return "interrupted before any layer was done"
    place = (
        f"at layer '{reached[0].layer}' ({100 * reached[0].fraction:.0f} %)" if reached else "before the first layer"
    )
    return f"interrupted {place}; the same command resumes there (what is done is kept in {partial})"


def _configuration(method: Method, given: dict[str, Any]) -> Any:
    """The method's configuration, its own defaults where no option says otherwise."""
    kind = _CONFIGURATIONS[method]
    own = {field.name for field in dataclass_fields(kind)}
    for name in given:
        if name not in own:
            raise typer.BadParameter(f"{_OPTIONS[name]} is not for --method {method.value}")
    return kind(**given)


def _bits(option: str, text: str) -> int | None:
    """A number of bits; None for float."""
    if text == _FLOAT:
        return None
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{option} takes a number of bits, or {_FLOAT!r}") from None


def _number(text: str, kind: type[int] | type[float]) -> Any:
    """A number, or the word that stands in its place; the configuration knows which words there are."""
    try:
        return kind(text)
    except ValueError:
        return text


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise typer.BadParameter(f"{option} takes numbers with commas between them, such as 0.485,0.456,0.406")
    return values


def _require_writable(path: Path) -> None:
    """A long computation should not end in a file that cannot be written."""
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written; name a file in a folder that exists and can be written to")
