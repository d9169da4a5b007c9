"""The command line: parses arguments, calls the functions that Python users call, and prints what they return."""

from __future__ import annotations

import typer

import tvmq
from tvmq.cli.bench import bench_command
from tvmq.cli.bundle import bundle_command
from tvmq.cli.compile import compile_command
from tvmq.cli.deploy import deploy_command
from tvmq.cli.doctor import doctor_command
from tvmq.cli.inspect import inspect_command
from tvmq.cli.quantize import quantize_command
from tvmq.cli.run import run_command
from tvmq.cli.targets import targets_command
from tvmq.cli.tune import tune_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="tvmq",
    help="Quantize neural networks to a few bits, compile and run them.",
    epilog="Example: tvmq compile net.onnx --target raspberry-pi-4",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("compile", epilog="Example: tvmq compile net.onnx --target raspberry-pi-4 -o net.tvmq")(compile_command)
app.command(
    "quantize",
    epilog="Example: tvmq quantize net.onnx --weights ternary --activations 2 --calibration images/ -o net-gpfq.tvmq",
)(quantize_command)
app.command("run", epilog="Example: tvmq run net.tvmq --on ssh://pi@raspberrypi.local --check")(run_command)
app.command("tune", epilog="Example: tvmq tune net.onnx --target raspberry-pi-4 --on ssh://pi@raspberrypi.local")(
    tune_command
)
app.command("bundle", epilog="Example: tvmq bundle net.tvmq --target raspberry-pi-4 -o net-pi4")(bundle_command)
app.command("inspect", epilog="Example: tvmq inspect net.tvmq --target raspberry-pi-4")(inspect_command)
app.command("bench", epilog="Example: tvmq bench net.tvmq --rivals onnxruntime --chart bench.png")(bench_command)
app.command("deploy", epilog="Example: tvmq deploy net.tvmq pi@raspberrypi.local")(deploy_command)
app.command("doctor", epilog="Example: tvmq doctor ssh://pi@raspberrypi.local")(doctor_command)
app.command("targets", epilog="Example: tvmq targets --json")(targets_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tvmq {tvmq.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Quantize neural networks to a few bits, compile and run them."""


def main() -> None:
    """Run the command line; ends the process with 0 (done), 1 (failed) or 2 (wrong usage)."""
    app(prog_name="tvmq")
