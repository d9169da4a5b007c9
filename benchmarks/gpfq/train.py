"""Train the float networks that GPFQ quantizes.

    python benchmarks/gpfq/train.py mnist-mlp --data DIR --output build/gpfq/mnist-mlp.pt
    python benchmarks/gpfq/train.py cifar10-cnn --data DIR --output build/gpfq/cifar10-cnn.pt

Writes the weights (a state dict; ``networks.load`` reads it) and, beside them, a JSON file with the accuracy after
every epoch.  Every epoch ends in a checkpoint, from which --resume continues to the same weights.  The weights are
those after the last epoch: the test images only measure.  To tune anything, use --hold-out, which measures on
training images instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from data import LOADERS, Images
from networks import NETWORKS
from torch import Tensor, nn

PADDING = 4
"""Pixels by which a random crop may move an image."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum 0.9 and one cycle of the learning rate."""

    epochs: int
    batch: int
    peak_learning_rate: float
    weight_decay: float
    label_smoothing: float
    crop_and_flip: bool
    bfloat16: bool
    """Autocast of forward and backward pass; weights and optimizer stay float32."""


RECIPES = {
    "mnist-mlp": Recipe(20, 128, 0.1, 5e-4, 0.0, crop_and_flip=False, bfloat16=False),
    "cifar10-cnn": Recipe(28, 128, 0.1, 5e-4, 0.1, crop_and_flip=True, bfloat16=True),
}


def main() -> None:
    """Read the command line and run."""
    options = parse()
    try:
        run(options)
    except KeyboardInterrupt:
        print("\nstopped; finished epochs are kept, continue with --resume", file=sys.stderr)
        sys.exit(130)


def run(options: argparse.Namespace) -> None:
    """Train, then write weights and JSON."""
    torch.set_num_threads(options.threads)
    train_set, measured = load_data(options)
    training = Training(options)
    training.train(train_set, measured)
    write(options.output, lambda path: torch.save(training.weights(), path))
    report = json.dumps(training.report(train_set, measured), indent=2) + "\n"
    write(options.output.with_suffix(".json"), lambda path: path.write_text(report))
    training.checkpoint.unlink()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--data", type=Path, required=True, help="folder with the data set")
    parser.add_argument("--output", type=Path, required=True, help="weights to write (.pt), with a .json beside them")
    parser.add_argument("--epochs", type=int, help="default: as in the recipe")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="processor cores (another number, other last bits)")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="measure on the last N training images")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint beside the output")
    options = parser.parse_args()
    if options.output.suffix != ".pt":
        parser.error("--output must end in .pt")
    return options


def load_data(options: argparse.Namespace) -> tuple[Images, Images]:
    """The images to train on, and the images that measure the accuracy."""
    load = LOADERS[options.network]
    train_set = load(options.data, "train")
    if not options.hold_out:
        return train_set, load(options.data, "test")
    return train_set[: -options.hold_out], train_set[-options.hold_out :]


class Training:
    """One run: network, optimizer, random numbers and the history so far.

    Attributes
    ----------
    history : list of dict
        One entry for each finished epoch.
    checkpoint : Path
        Where the state after the last finished epoch lies.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.recipe = RECIPES[options.network]
        self.epochs: int = options.epochs or self.recipe.epochs
        self.checkpoint: Path = options.output.with_suffix(".checkpoint")
        self.history: list[dict[str, float]] = []
        torch.manual_seed(options.seed)
        self.random = torch.Generator().manual_seed(options.seed)
        self.network = NETWORKS[options.network]().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=self.recipe.peak_learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=self.recipe.weight_decay,
        )

    def train(self, train_set: Images, measured: Images) -> None:
        """All epochs that are still to do."""
        # The last, smaller batch of an epoch is left out: the images are shuffled anew each time.
        steps = len(train_set) // self.recipe.batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, self.recipe.peak_learning_rate, total_steps=self.epochs * steps, pct_start=0.25
        )
        if self.options.resume:
            self.restore(schedule)
        pixels = padded(train_set.pixels) if self.recipe.crop_and_flip else train_set.pixels
        while len(self.history) < self.epochs:
            start = time.perf_counter()
            loss = self.epoch(pixels, train_set, schedule)
            accuracy = measure(self.network, measured)
            self.history.append(
                {
                    "epoch": len(self.history) + 1,
                    "loss": round(loss, 4),
                    "accuracy": round(accuracy, 4),
                    "seconds": round(time.perf_counter() - start, 1),
                }
            )
            self.save(schedule)
            print(self.progress(), flush=True)

    def epoch(self, pixels: Tensor, images: Images, schedule: torch.optim.lr_scheduler.OneCycleLR) -> float:
        """Train on all images once and return the mean loss."""
        self.network.train()
        losses = []
        for rows in self.shuffled(len(images)):
            crops = crop_and_flip(pixels[rows], self.random) if self.recipe.crop_and_flip else pixels[rows]
            batch = Images(crops, images.labels[rows], images.mean, images.std)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
                scores = self.network(batch.inputs())
            loss = F.cross_entropy(scores.float(), batch.labels, label_smoothing=self.recipe.label_smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if sys.stderr.isatty():
                print(f"\r{len(losses)} batches", end="\r", file=sys.stderr)
        return float(np.mean(losses))

    def shuffled(self, count: int) -> Iterator[Tensor]:
        """Rows ``int64[batch]`` of each batch of an epoch."""
        order = torch.randperm(count, generator=self.random)
        return (rows for rows in order.split(self.recipe.batch) if len(rows) == self.recipe.batch)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must share with the run that it continues."""
        return {
            "network": self.options.network,
            "seed": self.options.seed,
            "threads": self.options.threads,
            "hold_out": self.options.hold_out,
            "recipe": {**asdict(self.recipe), "epochs": self.epochs},
        }

    def save(self, schedule: torch.optim.lr_scheduler.OneCycleLR) -> None:
        """Write the checkpoint."""
        state = {
            "settings": self.settings(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": self.random.get_state(),
            "history": self.history,
        }
        write(self.checkpoint, lambda path: torch.save(state, path))

    def restore(self, schedule: torch.optim.lr_scheduler.OneCycleLR) -> None:
        """Read the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["settings"] != self.settings():
            raise SystemExit(f"{self.checkpoint} is from a run with other settings: {state['settings']}")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        self.random.set_state(state["random"])
        self.history = state["history"]

    def progress(self) -> str:
        """One line about the last epoch, with the time left."""
        last = self.history[-1]
        seconds = sum(entry["seconds"] for entry in self.history)
        left = seconds / len(self.history) * (self.epochs - len(self.history))
        return (
            f"epoch {last['epoch']}/{self.epochs}: loss {last['loss']:.4f}, accuracy {last['accuracy']:.4f}, "
            f"{last['seconds']:.1f} s, {left / 60:.1f} min left"
        )

    def weights(self) -> dict[str, Tensor]:
        """State dict in plain, contiguous memory."""
        return {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}

    def report(self, train_set: Images, measured: Images) -> dict[str, Any]:
        """What the JSON file says of the run."""
        return {
            "command": shlex.join(["python", *sys.argv]),
            **self.settings(),
            "training_images": len(train_set),
            "measured_on": f"{len(measured)} {'held-out training' if self.options.hold_out else 'test'} images",
            "accuracy": self.history[-1]["accuracy"],
            "seconds": round(sum(entry["seconds"] for entry in self.history), 1),
            "epochs": self.history,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }


def padded(pixels: Tensor) -> Tensor:
    """Images ``uint8[n, c, h, w]`` with a reflected border of `PADDING` on every side, channels last in memory."""
    border = [(0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)]
    return torch.from_numpy(np.pad(pixels.permute(0, 2, 3, 1).numpy(), border, mode="reflect")).permute(0, 3, 1, 2)


def crop_and_flip(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Cut each image at a random place of its padded form, and mirror half of them.

    Parameters
    ----------
    pixels : Tensor
        Padded images ``uint8[n, c, h + 8, w + 8]``.
    random : torch.Generator
        Source of the places and mirrorings.

    Returns
    -------
    Tensor
        ``uint8[n, c, h, w]``, channels last in memory.
    """
    count, _, height, width = pixels.shape
    rows = torch.arange(height - 2 * PADDING).expand(count, -1)
    columns = torch.arange(width - 2 * PADDING).expand(count, -1)
    mirrored = torch.rand(count, 1, generator=random) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    top, left = torch.randint(2 * PADDING + 1, (2, count, 1), generator=random)
    images = torch.arange(count).view(-1, 1, 1)
    crops = pixels.permute(0, 2, 3, 1)[images, (rows + top)[:, :, None], (columns + left)[:, None, :]]
    return crops.permute(0, 3, 1, 2)


@torch.no_grad()
def measure(network: nn.Module, images: Images) -> float:
    """Accuracy of the network in float32."""
    network.eval()
    correct = 0
    for start in range(0, len(images), 500):
        batch = images[start : start + 500]
        correct += int((network(batch.inputs()).argmax(1) == batch.labels).sum())
    return correct / len(images)


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under another name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    writer(temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
