"""The command line that all recipes have in common."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["parse", "parser"]

AT_LEAST_ONE = ("epochs", "threads", "images", "width", "hidden", "words")
"""Options of one recipe or another that count something."""


def parser(description: str, epochs: int | None) -> argparse.ArgumentParser:
    """The options that all recipes have; ``epochs`` is what ``--epochs`` is by default, None if that depends."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--data", type=Path, required=True, help="folder with the data set's original files")
    result.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and compiled network")
    default = "the paper's" if epochs is None else epochs
    result.add_argument("--epochs", type=int, default=epochs, help=f"passes over the data; default: {default}")
    result.add_argument("--seed", type=int, default=1, help="of all that is drawn at random; default: 1")
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    result.add_argument("--threads", type=int, default=1, help="processor cores to use (another number, other bits)")
    result.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    return result


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and set up torch as it says."""
    parsed = options.parse_args(arguments)
    for name in AT_LEAST_ONE:
        value = getattr(parsed, name, None)
        if value is not None and value < 1:
            options.error(f"--{name} {value}: at least 1 is needed")
    if parsed.device.startswith("cuda") and not torch.cuda.is_available():
        options.error(f"--device {parsed.device}: torch finds no CUDA device here; use --device cpu")
    parsed.command = shlex.join(["python", sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)])
    torch.set_num_threads(parsed.threads)
    torch.manual_seed(parsed.seed)
    return parsed
