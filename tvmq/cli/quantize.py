"""``tvmq quantize``."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, byte_size, progress, progress_bar
from tvmq.errors import InputError
from tvmq.methods.gpfq_config import GPFQ
from tvmq.report import QuantizationReport

if TYPE_CHECKING:
    from tvmq.methods.progress import Progress

__all__ = ["quantize_command"]

_INTERRUPTED = 130  # as shells have it, and typer for the other commands


class Method(str, Enum):
    """How a network is quantized."""

    gpfq = "gpfq"


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
    method: Annotated[Method, typer.Option("--method", help="How to quantize.")] = Method.gpfq,
    weights: Annotated[
        str, typer.Option("--weights", metavar="BITS", help="Bits of a weight, or 'ternary' for -1, 0 and 1.")
    ] = str(GPFQ.weights),
    activations: Annotated[
        int | None,
        typer.Option("--activations", metavar="BITS", help="Bits of the layers' inputs. [default: they stay float]"),
    ] = GPFQ.activations,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file to write. [default: SOURCE's name with -gpfq.tvmq, in this folder]"
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
        str,
        typer.Option(
            "--constant",
            metavar="C",
            help="The largest level is so many times the median weight; 'search' finds the best for each layer.",
        ),
    ] = str(GPFQ.constant),
    per_channel: Annotated[
        bool, typer.Option("--per-channel", help="Scale each output channel by itself, instead of the whole layer.")
    ] = GPFQ.radius == "channel",
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction/--no-bias-correction", help="Add the mean of the error that is left.")
    ] = GPFQ.bias_correction,
    first_layer: Annotated[
        str,
        typer.Option(
            "--first-layer",
            metavar="input8|quantized|float",
            help="'input8' rounds the first layer's input to 8 bits, 'float' leaves the layer as it is.",
        ),
    ] = GPFQ.first_layer,
    last_layer: Annotated[
        str,
        typer.Option("--last-layer", metavar="quantized|float", help="'float' leaves the last layer as it is."),
    ] = GPFQ.last_layer,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="NAME", help="A layer to leave in float, or a pattern; may be repeated."),
    ] = None,
    clip: Annotated[
        str,
        typer.Option("--clip", metavar="mse|percentile|max", help="What the largest level of an activation is."),
    ] = GPFQ.activation_clip,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Quantize a trained network, without training, into a .tvmq file.

    The file has no library yet; `tvmq compile` takes it.  Ends in a table of how well each layer was quantized.  Layers
    that are done are kept in a folder beside the output, so that after an interruption the same command goes on there.
    Several processes share the work under `torchrun --nproc-per-node 4 -m tvmq.cli quantize ...`.
    """
    config = tvmq.GPFQ(
        weights=_number(weights, int),
        activations=activations,
        constant=_number(constant, float),
        radius="channel" if per_channel else "layer",
        bias_correction=bias_correction,
        first_layer=first_layer,
        last_layer=last_layer,
        skip=tuple(skip or ()),
        activation_clip=clip,
    )
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
