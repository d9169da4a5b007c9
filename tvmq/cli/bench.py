"""``tvmq bench``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tvmq
from tvmq.cli.answer import Answer, Debug, Json, answers, progress, progress_bar
from tvmq.cli.arrays import read_arrays
from tvmq.errors import InputError

if TYPE_CHECKING:
    from tvmq.model import Model
    from tvmq.report.benchmark import BenchmarkReport
    from tvmq.runtime.bundle import Bundle

__all__ = ["bench_command"]

_CALIBRATED = Path("my-core.toml")


@answers
def bench_command(
    source: Annotated[
        Path | None,
        typer.Argument(help="A .tvmq file, or an .onnx file, which is compiled first.", metavar="NET"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="NAME", help="Which of the file's targets. [default: the one that fits]"),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--input", help="An .npz or .npy file of inputs. [default: the file's self-check, or random]"),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Samples of random inputs.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads, each held on a processor.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often all take their turn.")] = 20,
    rivals: Annotated[
        str,
        typer.Option(
            "--rivals",
            metavar="auto|none|NAMES",
            help="Engines to run beside: onnxruntime,openvino,ncnn, or what is there.",
        ),
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .json file to write, or the .toml file of a calibration.")
    ] = None,
    chart: Annotated[Path | None, typer.Option("--chart", help="A picture to write, such as bench.png.")] = None,
    calibrate_target: Annotated[
        bool,
        typer.Option(
            "--calibrate-target", help="Measure what this machine's core reaches, and write a file for targets/."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the .toml file of a calibration.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure a network on this machine, layer by layer, beside other engines.

    Or measure the machine: `tvmq bench --calibrate-target -o my-core.toml`.
    """
    if calibrate_target:
        if source is not None or inputs is not None or chart is not None:
            raise typer.BadParameter("--calibrate-target measures the machine; leave out NET, --input and --chart")
        return _calibrate(target or "host", output or _CALIBRATED, force)
    if source is None:
        raise typer.BadParameter("name a .tvmq or .onnx file, or use --calibrate-target")
    if inputs is not None and batch is not None:
        raise typer.BadParameter("--input has its own batch; leave out --batch")
    from tvmq.benchmark import set_threads  # loads TVM
    from tvmq.report.benchmark_chart import check_chart, draw_benchmark

    if chart is not None:
        check_chart(chart)
    for path in filter(None, (output, chart)):
        _require_writable(path)
    set_threads(threads)  # loading may run something
    network, names = _network(source, target)
    arrays = None if inputs is None else read_arrays(inputs, names)
    report = _measured(network, arrays, target, batch, threads, rounds, rivals)
    lines = [str(report)]
    if output is not None:
        _write(output, report.to_json() + "\n")
        lines.append(f"wrote {output}")
    if chart is not None:
        draw_benchmark(report, chart)
        lines.append(f"wrote {chart}")
    return Answer(report.as_dict(), "\n".join(lines))


def _network(source: Path, target: str | None) -> tuple[Bundle | Model, list[str]]:
    """What to measure, and the names of its inputs."""
    if source.suffix.lower() == ".tvmq":
        bundle = tvmq.load_bundle(source)
        if bundle.targets:
            return bundle, [spec.name for spec in bundle.inputs]
    if target is not None:
        tvmq.get_target(target)  # a misspelt name should fail before the slow part
    with progress(f"loading {source}"):
        model = tvmq.load(source)
    return model, [spec.name for spec in model.inputs]


def _measured(
    network: Bundle | Model, arrays: Any, target: str | None, batch: int | None, threads: int, rounds: int, rivals: str
) -> BenchmarkReport:
    with progress_bar("measuring") as show:
        return tvmq.bench(
            network,
            arrays,
            target=target,
            batch=batch,
            threads=threads,
            rounds=rounds,
            rivals=rivals,
            progress=show,
        )


def _calibrate(target: str, path: Path, force: bool) -> Answer:
    from tvmq.benchmark import processor_name, set_threads
    from tvmq.kernel_rates import calibrated, check_destination, kernel_rates, write_target
    from tvmq.machine import this_machine
    from tvmq.runtime.pinning import choose_processors, pinned
    from tvmq.target import data_folder

    check_destination(path, force)
    core = tvmq.get_target(target)
    obstacle = this_machine().obstacle(core.triple, core.required_cpu_flags)
    if obstacle is not None:
        raise InputError(f"target '{target}' {obstacle}; leave out --target to measure this machine")
    processors = choose_processors(1)
    set_threads(1)
    with pinned(processors), progress_bar("measuring") as show:
        rates = kernel_rates(core, progress=show)
    written = write_target(calibrated(core, rates, processor_name()), path, rates, force)
    measured = {rate.kind for rate in rates}
    lines = [f"{rate.kind}: {rate.mac_per_cycle:.1f} MAC/cycle in {rate.workload}" for rate in rates]
    lines += [
        f"{kind}: not measured, as tvmq has no kernel of that kind yet; {value:g} MAC/cycle is kept from '{target}'"
        for kind, value in written.mac_per_cycle.items()
        if kind not in measured
    ]
    lines.append(f"wrote {path}; in {data_folder('targets')} it becomes target '{written.name}'")
    data = {
        "output": str(path),
        "mac_per_cycle": written.mac_per_cycle,
        "measured": [{"kind": r.kind, "workload": r.workload, "mac_per_cycle": r.mac_per_cycle} for r in rates],
    }
    return Answer(data, "\n".join(lines))


def _require_writable(path: Path) -> None:
    """A long measurement should not end in a file that cannot be written."""
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written; name a file in a folder that exists and can be written to")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
