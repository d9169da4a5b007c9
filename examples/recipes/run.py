"""A run of training: its epochs, its checkpoints and its log, whatever is trained.

A run can be stopped at any time.  Ctrl-C lets the step at hand finish and writes a checkpoint, in the middle of an
epoch too; ``--resume`` continues there, and on a processor ends in the very bits of a run that was never stopped.

Before anything is written, every parameter and buffer is checked: a binary network may well go on with weights that
are NaN, because a comparison with NaN is merely false.  A checkpoint is therefore always a good one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvmq.nn import diverged_layer

__all__ = ["Run", "Task", "write_json"]

PROGRESS_SECONDS = 60
"""Between two lines about the same epoch."""


class Task(ABC):
    """What is trained, and how.

    Attributes
    ----------
    name : str
        Of the network; the compiled file is named after it.
    settings : dict
        All that decides about the result, but epochs and seed; a checkpoint of other settings is refused.
    network : nn.Module
    optimizer : torch.optim.Optimizer
    steps : int
        Of the optimiser in an epoch.
    inputs : tuple of Tensor
        What the network read last.
    """

    name: str
    settings: dict[str, Any]
    network: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    inputs: tuple[Tensor, ...] = ()

    @abstractmethod
    def start_epoch(self) -> dict[str, Tensor]:
        """What the steps of an epoch hand on to each other, such as the order of the examples."""

    @abstractmethod
    def loss(self, carried: dict[str, Tensor], step: int) -> Tensor:
        """The loss of a step; changes what is carried."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures after an epoch, by their names in the log."""

    @abstractmethod
    def score(self, row: dict[str, Any]) -> float:
        """How good an epoch was, from its row in the log; the best is kept, and of equal ones the last."""

    @abstractmethod
    def update(self) -> None:
        """Change the weights, given their gradients."""


class Run:
    """A task in a folder.

    Attributes
    ----------
    log : dict
        Also in ``training.json``.
    """

    def __init__(self, task: Task, options: argparse.Namespace) -> None:
        self.task, self.options = task, options
        self.device = torch.device(options.device)
        # Per step and down to zero: with steady weights the batch norms' statistics settle.
        steps = options.epochs * task.steps
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(task.optimizer, steps)
        self.folder: Path = options.out
        self.checkpoint_path, self.best_path = self.folder / "checkpoint.pt", self.folder / "best.pt"
        # Of the epoch at hand: its steps so far, their loss and seconds, and what they carry.
        self.part: dict[str, Any] | None = None
        self.log: dict[str, Any] = {
            "command": options.command,
            "network": task.name,
            "settings": {**task.settings, "epochs": options.epochs, "seed": options.seed},
            "hardware": hardware(self.device, options.threads),
            "torch": str(torch.__version__),
            "best_epoch": 0,
            "curve": [],
        }

    def train(self) -> None:
        """Train for all epochs that are left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.options.resume:
            self.load()
        elif self.checkpoint_path.exists():
            sys.exit(f"error: {self.checkpoint_path} exists; continue that run with --resume, or choose another --out")
        with deferred_interrupt() as stop:
            for epoch in range(len(self.log["curve"]) + 1, self.options.epochs + 1):
                self.train_epoch(epoch, stop)

    def train_epoch(self, epoch: int, stop: threading.Event) -> None:
        """Train for an epoch, or for the rest of one, evaluate, and write a checkpoint."""
        task, start = self.task, time.perf_counter()
        if self.part is None:
            total = torch.zeros((), device=self.device)
            self.part = {"step": 0, "seconds": 0.0, "total": total, "carried": task.start_epoch()}
        part = self.part
        start -= part["seconds"]
        reported = part["seconds"]
        task.network.train()
        while part["step"] < task.steps:
            part["total"] += self.step(part)
            part["step"] += 1
            part["seconds"] = time.perf_counter() - start
            if stop.is_set():
                self.stop()
            if part["seconds"] - reported > PROGRESS_SECONDS:
                reported = part["seconds"]
                self.print_progress(epoch, part)
        row = {"epoch": epoch, "loss": round(part["total"].item() / task.steps, 5), **task.evaluate()}
        row["seconds"] = round(time.perf_counter() - start, 1)
        self.log["curve"].append(row)
        self.part = None
        self.keep_if_best()
        self.save()
        self.print_epoch(row)
        if stop.is_set():
            self.stop()

    def step(self, part: dict[str, Any]) -> Tensor:
        """Update the weights once; the loss before."""
        task = self.task
        loss = task.loss(part["carried"], part["step"])
        if not torch.isfinite(loss):
            self.give_up(broken_layer(task.network) or diverged_layer(task.network, *task.inputs) or "the loss itself")
        task.optimizer.zero_grad()
        loss.backward()
        task.update()
        self.schedule.step()
        return loss.detach()

    def keep_if_best(self) -> None:
        """Write the network if it is the best so far."""
        self.check()
        curve = self.log["curve"]
        scores = [self.task.score(row) for row in curve]
        # Of equally good epochs the latest: its learning rate is the smallest.
        if scores[-1] >= max(scores):
            self.log["best_epoch"] = len(curve)
            write(self.best_path, lambda path: torch.save(self.task.network.state_dict(), path))

    def save(self) -> None:
        """Write log and checkpoint."""
        self.check()
        checkpoint = {
            "network": self.task.network.state_dict(),
            "optimizer": self.task.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "part": self.part,
            "log": self.log,
        }
        if self.device.type == "cuda":
            checkpoint["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write(self.checkpoint_path, lambda path: torch.save(checkpoint, path))
        write_json(self.folder / "training.json", self.log)

    def load(self) -> None:
        """Continue where the checkpoint was written, under the same settings."""
        path = self.checkpoint_path
        if not path.is_file():
            sys.exit(f"error: {path} does not exist; start without --resume")
        try:
            checkpoint = torch.load(path, weights_only=True, map_location=self.device)
            log = checkpoint["log"]
        except Exception as error:  # torch raises anything, and its messages fill pages
            sys.exit(f"error: {path} is not a checkpoint of this recipe ({type(error).__name__}); choose another --out")
        own, theirs = ({"network": each["network"], **each["settings"]} for each in (self.log, log))
        for name in [*own, *(theirs.keys() - own.keys())]:
            if theirs.get(name) != own.get(name):
                sys.exit(
                    f"error: {path} was made with {name}={theirs.get(name)}, this run has {own.get(name)}; "
                    "resume with the same settings, or choose another --out"
                )
        if (self.device.type == "cuda") != ("random_cuda" in checkpoint):
            sys.exit(f"error: {path} was made on {log['hardware']}, not on {self.device}; resume there")
        self.task.network.load_state_dict(checkpoint["network"])
        self.task.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        torch.set_rng_state(checkpoint["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["random_cuda"].cpu(), self.device)
        self.part = checkpoint["part"]
        self.log["curve"], self.log["best_epoch"] = log["curve"], log["best_epoch"]

    def load_best(self) -> nn.Module:
        """The network of the best epoch."""
        self.task.network.load_state_dict(torch.load(self.best_path, weights_only=True, map_location=self.device))
        return self.task.network

    def stop(self) -> None:
        """End the process, to be continued."""
        self.save()
        print(f"stopped; continue with --resume from {self.checkpoint_path}", file=sys.stderr)
        sys.exit(130)

    def check(self) -> None:
        """Give up if a value of the network is NaN or infinite."""
        broken = broken_layer(self.task.network)
        if broken is not None:
            self.give_up(broken)

    def give_up(self, layer: str) -> None:
        """End the process; what was written last stays."""
        kept = f"the last good checkpoint is kept in {self.checkpoint_path}"
        if not self.checkpoint_path.exists():
            kept = "no checkpoint was written yet"
        sys.exit(f"error: training diverged in {layer}: values are NaN or infinite; {kept}; lower the learning rate")

    def print_epoch(self, row: dict[str, Any]) -> None:
        """A line for an epoch."""
        epochs = self.options.epochs
        seconds = float(np.mean([entry["seconds"] for entry in self.log["curve"]]))
        figures = "  ".join(f"{name.replace('_', ' ')} {row[name]:.5g}" for name in row if name not in _NO_FIGURES)
        left = seconds * (epochs - row["epoch"]) / 60
        print(f"epoch {row['epoch']}/{epochs}  {figures}  {row['seconds']:.0f} s, {left:.0f} min left", flush=True)

    def print_progress(self, epoch: int, part: dict[str, Any]) -> None:
        """A line within an epoch."""
        step, steps = part["step"], self.task.steps
        left = part["seconds"] / step * (steps - step) / 60
        loss = part["total"].item() / step
        print(f"epoch {epoch}  step {step}/{steps}  loss {loss:.5g}  {left:.0f} min left in this epoch", flush=True)


_NO_FIGURES = ("epoch", "seconds")


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Let Ctrl-C, or the end that a scheduler of jobs announces, set an event; a second one raises."""
    stop = threading.Event()

    def note(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def broken_layer(network: nn.Module) -> str | None:
    """The first layer with a parameter or buffer that is NaN or infinite."""
    for name, layer in network.named_modules():
        values = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        if any(value.is_floating_point() and not torch.isfinite(value).all() for value in values):
            return name or type(layer).__name__
    return None


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
