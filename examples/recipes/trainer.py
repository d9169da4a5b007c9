"""The training loop that all recipes for images share.

Every epoch ends in a checkpoint, so that a run can be stopped at any time and continued with ``--resume``.  A run ends
with the network compiled for this machine, and with its accuracy on the whole test set beside torch's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Examples
from torch import Tensor, nn

import tvmq
from tvmq.nn import clip_weights, diverged_layer

EVALUATED = 500
"""Images that are run at a time outside of training."""


@dataclass(frozen=True)
class Recipe:
    """What differs between the networks.

    Attributes
    ----------
    name : str
        Of the network; the compiled file is named after it.
    settings : dict
        All that decides about the result; a checkpoint of other settings is refused.
    network : nn.Module
        Prepared for training, with the seed set before.
    optimizer : torch.optim.Optimizer
    loss : callable
        Of scores and labels.
    as_input : callable
        Bytes to what the network reads.
    augment : callable
        Bytes of a batch, varied for training.
    batch : int
        Images of a step.
    held_out : int
        Of the training images, how many choose the epoch; with 0 it is the last one.
    """

    name: str
    settings: dict[str, Any]
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    as_input: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor], Tensor]
    batch: int
    held_out: int


def parser(description: str, epochs: int) -> argparse.ArgumentParser:
    """The options that all recipes have."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--data", type=Path, required=True, help="folder with the data set's original files")
    result.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and compiled network")
    result.add_argument("--epochs", type=int, default=epochs, help=f"passes over the data; default: {epochs}")
    result.add_argument("--images", type=int, default=None, help="train on so many images only; default: all")
    result.add_argument("--seed", type=int, default=1)
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    result.add_argument("--threads", type=int, default=1, help="processor cores to use (another number, other bits)")
    result.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    return result


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and set up torch as it says."""
    parsed = options.parse_args(arguments)
    for name in ("epochs", "images", "threads"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            options.error(f"--{name} {value}: at least 1 is needed")
    parsed.command = shlex.join(["python", sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)])
    torch.set_num_threads(parsed.threads)
    torch.manual_seed(parsed.seed)
    return parsed


def train(recipe: Recipe, train_set: Examples, test_set: Examples, options: argparse.Namespace) -> dict[str, Any]:
    """Train, compile and evaluate; the log, which is in ``training.json`` too."""
    if options.images is not None:
        train_set = train_set[: options.images]
    if len(train_set) - recipe.held_out < recipe.batch:
        sys.exit(
            f"error: --images {len(train_set)} are too few: {recipe.held_out} are held out, a batch has {recipe.batch}"
        )
    training = Training(recipe, options)
    held_out = len(train_set) - recipe.held_out
    try:
        training.run(train_set[:held_out], train_set[held_out:])
    except KeyboardInterrupt:
        print(f"stopped; continue with --resume from {training.checkpoint_path}", file=sys.stderr)
        sys.exit(130)
    training.finish(test_set)
    return training.log


class Training:
    """The network, its optimiser and all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, options: argparse.Namespace) -> None:
        self.recipe, self.options = recipe, options
        self.device = torch.device(options.device)
        self.network = recipe.network
        self.folder: Path = options.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint_path = self.folder / "checkpoint.pt"
        self.best_path = self.folder / "best.pt"
        settings = {**recipe.settings, "epochs": options.epochs, "seed": options.seed, "images": options.images}
        self.log: dict[str, Any] = {
            "command": options.command,
            "network": recipe.name,
            "settings": settings,
            "hardware": hardware(self.device, options.threads),
            "torch": str(torch.__version__),
            "best_epoch": 0,
            "curve": [],
        }

    def run(self, train_set: Examples, validation_set: Examples) -> None:
        """Train for all epochs that are left."""
        epochs = self.options.epochs
        # Per step and down to zero: with steady weights the batch norms' statistics settle.
        steps = epochs * (len(train_set) // self.recipe.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.recipe.optimizer, steps)
        if self.options.resume:
            self.load(schedule)
        curve = self.log["curve"]
        for epoch in range(len(curve) + 1, epochs + 1):
            start = time.perf_counter()
            loss = self.train_epoch(train_set, schedule)
            row = {"epoch": epoch, "loss": round(loss, 5)}
            if len(validation_set):
                row["validation_accuracy"] = round(self.accuracy(validation_set), 5)
            row["seconds"] = round(time.perf_counter() - start, 1)
            curve.append(row)
            self.save(schedule)
            left = float(np.mean([entry["seconds"] for entry in curve])) * (epochs - epoch)
            validation = f"validation {row['validation_accuracy']:.2%}  " if len(validation_set) else ""
            print(
                f"epoch {epoch}/{epochs}  loss {loss:.4f}  {validation}"
                f"{row['seconds']:.0f} s, {left / 60:.0f} min left",
                flush=True,
            )

    def train_epoch(self, train_set: Examples, schedule: torch.optim.lr_scheduler.LRScheduler) -> float:
        """One pass over the shuffled images; the mean loss."""
        recipe = self.recipe
        self.network.train()
        shuffled = train_set[torch.randperm(len(train_set))]
        total, batches = torch.zeros((), device=self.device), len(train_set) // recipe.batch
        # Full batches only: batch norm cannot train on the single image that might be left over.
        for batch in shuffled[: batches * recipe.batch].batches(recipe.batch):
            images = recipe.as_input(recipe.augment(batch.images.to(self.device)))
            loss = recipe.loss(self.network(images), batch.labels.to(self.device))
            if not torch.isfinite(loss):
                self.stop_diverged(images)
            recipe.optimizer.zero_grad()
            loss.backward()
            recipe.optimizer.step()
            clip_weights(self.network)
            schedule.step()
            total += loss.detach()
        return total.item() / batches

    def stop_diverged(self, images: Tensor) -> None:
        """Give up; the checkpoint of the last epoch stays."""
        layer = diverged_layer(self.network, images) or "the loss itself"
        epoch = len(self.log["curve"])
        kept = f"the checkpoint of epoch {epoch} is kept in {self.checkpoint_path}" if epoch else "nothing was written"
        sys.exit(f"error: training diverged in {layer}: values are NaN or infinite; {kept}; lower the learning rate")

    def save(self, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Write log and checkpoint, and the network if it is the one to keep."""
        curve = self.log["curve"]
        accuracies = [entry.get("validation_accuracy", 0.0) for entry in curve]
        # Of equally good epochs the latest: its learning rate is the smallest.
        if accuracies[-1] >= max(accuracies):
            self.log["best_epoch"] = len(curve)
            write(self.best_path, lambda path: torch.save(self.network.state_dict(), path))
        checkpoint = {
            "network": self.network.state_dict(),
            "optimizer": self.recipe.optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": torch.get_rng_state(),
            "log": self.log,
        }
        if self.device.type == "cuda":
            checkpoint["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write(self.checkpoint_path, lambda path: torch.save(checkpoint, path))
        write_json(self.folder / "training.json", self.log)

    def load(self, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Continue where the checkpoint was written, under the same settings."""
        if not self.checkpoint_path.is_file():
            sys.exit(f"error: {self.checkpoint_path} does not exist; start without --resume")
        checkpoint = torch.load(self.checkpoint_path, weights_only=True, map_location=self.device)
        log, own = checkpoint["log"], {"network": self.recipe.name, **self.log["settings"]}
        theirs = {"network": log["network"], **log["settings"]}
        for name, value in own.items():
            if theirs.get(name) != value:
                sys.exit(
                    f"error: {self.checkpoint_path} was made with {name}={theirs.get(name)}, this run has {value}; "
                    "resume with the same settings, or choose another --out"
                )
        self.network.load_state_dict(checkpoint["network"])
        self.recipe.optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        torch.set_rng_state(checkpoint["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["random_cuda"].cpu(), self.device)
        self.log["curve"], self.log["best_epoch"] = log["curve"], log["best_epoch"]

    def finish(self, test_set: Examples) -> None:
        """Compile the best network for this machine, and see what both make of the test set."""
        self.network.load_state_dict(torch.load(self.best_path, weights_only=True, map_location=self.device))
        in_torch = self.scores(test_set)
        network = self.network.cpu().eval()
        example = self.recipe.as_input(test_set.images[:1])
        bundle = tvmq.compile(tvmq.load(network, (example,), name=self.recipe.name, dynamic_batch=True), "host")
        path = self.folder / f"{self.recipe.name}.tvmq"
        bundle.save(path)
        as_built = torch.cat(
            [
                torch.from_numpy(bundle.run(self.recipe.as_input(batch.images).contiguous().numpy())[0])
                for batch in test_set.batches(EVALUATED)
            ]
        )
        in_torch = in_torch.cpu()
        self.log["test_accuracy"] = share(in_torch.argmax(1) == test_set.labels)
        self.log["test_accuracy_as_built"] = share(as_built.argmax(1) == test_set.labels)
        self.log["other_class_than_torch"] = int((as_built.argmax(1) != in_torch.argmax(1)).sum())
        self.log["bytes_as_built"] = path.stat().st_size
        write_json(self.folder / "training.json", self.log)
        print(
            f"test accuracy {self.log['test_accuracy']:.2%} in torch, {self.log['test_accuracy_as_built']:.2%} "
            f"as built (epoch {self.log['best_epoch']}); wrote {path}"
        )

    @torch.no_grad()
    def scores(self, examples: Examples) -> Tensor:
        """What the network says in eval mode."""
        self.network.eval()
        batches = examples.batches(EVALUATED)
        return torch.cat([self.network(self.recipe.as_input(batch.images.to(self.device))) for batch in batches])

    def accuracy(self, examples: Examples) -> float:
        """Share of the images whose label has the highest score."""
        return share(self.scores(examples).argmax(1).cpu() == examples.labels)


def share(right: Tensor) -> float:
    """Share of the true ones."""
    return round(right.double().mean().item(), 5)


def shifted(images: Tensor, largest: int) -> Tensor:
    """Move every image by up to ``largest`` pixels in both directions, filling with zeros."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (largest,) * 4)
    offsets = torch.randint(0, 2 * largest + 1, (2, count, 1)).to(images.device)
    rows = (offsets[0] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offsets[1] + torch.arange(width, device=images.device))[:, None, None, :]
    samples = torch.arange(count, device=images.device)[:, None, None, None]
    planes = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[samples, planes, rows, columns]


def mirrored(images: Tensor) -> Tensor:
    """Turn every second image, at random, left to right."""
    turned = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
    return torch.where(turned, images.flip(3), images)


def hardware(device: torch.device, threads: int) -> str:
    """What the training runs on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "")
    return f"{name or platform.machine()}, {threads} threads"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Write to a temporary name and rename, so that an interrupted run never leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    writer(temporary)
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON."""
    write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))
