"""What all recipes for images share: batches, accuracy, and what the compiled network makes of the test set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Examples
from options import parser
from run import Run, Task, write_json
from torch import Tensor, nn

import tvmq
from tvmq.nn import clip_weights, estimate_statistics

__all__ = ["COUNTED", "Recipe", "image_parser", "mirrored", "normalized", "shifted", "train"]

EVALUATED = 500
"""Images that are run at a time outside of training."""
COUNTED = 10_000
"""Images on which batch norms are told what signs, instead of drawn units, look like."""


@dataclass(frozen=True)
class Recipe:
    """What differs between the networks.

    Attributes
    ----------
    name : str
        Of the network; the compiled file is named after it.
    settings : dict
        Of the command line, all that decides about the result.
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
    counted : int
        Of the training images, on how many the statistics of batch norms are estimated after every epoch; with 0 they
        stay the running averages.  For units that are drawn while training.
    """

    name: str
    settings: dict[str, Any]
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    as_input: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor], Tensor]
    batch: int
    counted: int = 0


def image_parser(description: str, epochs: int | None, held_out: int) -> argparse.ArgumentParser:
    """The options of a recipe for images; ``held_out`` is what ``--held-out`` is by default."""
    options = parser(description, epochs)
    options.add_argument("--images", type=int, default=None, help="use so many training images only; default: all")
    options.add_argument(
        "--held-out",
        type=int,
        default=held_out,
        help="of them, so many are not trained on but choose the epoch; with 0 it is the last one, and the log shows "
        f"the test set's accuracy after every epoch; default: {held_out}",
    )
    return options


def train(recipe: Recipe, train_set: Examples, test_set: Examples, options: argparse.Namespace) -> dict[str, Any]:
    """Train, compile and evaluate; the log, which is in ``training.json`` too."""
    if options.images is not None:
        train_set = train_set[: options.images]
    fitted = len(train_set) - options.held_out
    if options.held_out < 0 or fitted < recipe.batch:
        sys.exit(
            f"error: of {len(train_set)} training images --held-out {options.held_out} leaves {fitted}, "
            f"but a batch has {recipe.batch}"
        )
    device = torch.device(options.device)
    fitted_set, held_out_set, test_set = (
        examples.to(device) for examples in (train_set[:fitted], train_set[fitted:], test_set)
    )
    figure = "validation_accuracy" if options.held_out else "test_accuracy"
    task = Images(recipe, options, fitted_set, held_out_set if options.held_out else test_set, figure)
    run = Run(task, options)
    run.train()
    finish(run, recipe, test_set)
    return run.log


class Images(Task):
    """Images, of which some tell after every epoch how well it goes; what, is named by ``figure``."""

    def __init__(
        self, recipe: Recipe, options: argparse.Namespace, fitted_set: Examples, seen_set: Examples, figure: str
    ) -> None:
        self.recipe, self.fitted_set, self.seen_set, self.figure = recipe, fitted_set, seen_set, figure
        self.name, self.network, self.optimizer = recipe.name, recipe.network, recipe.optimizer
        self.settings = {**recipe.settings, "images": options.images, "held_out": options.held_out}
        # Full batches only: batch norm cannot train on the single image that might be left over.
        self.steps = len(fitted_set) // recipe.batch

    def start_epoch(self) -> dict[str, Tensor]:
        """Shuffle."""
        return {"order": torch.randperm(len(self.fitted_set)).to(self.fitted_set.labels.device)}

    def loss(self, carried: dict[str, Tensor], step: int) -> Tensor:
        """Of the next images in their order."""
        recipe = self.recipe
        batch = self.fitted_set[carried["order"][step * recipe.batch : (step + 1) * recipe.batch]]
        self.inputs = (recipe.as_input(recipe.augment(batch.images)),)
        return recipe.loss(self.network(*self.inputs), batch.labels)

    def update(self) -> None:
        """Keep binary weights in their range."""
        self.optimizer.step()
        clip_weights(self.network)

    def evaluate(self) -> dict[str, float]:
        """The accuracy."""
        if self.recipe.counted:
            counted = self.fitted_set[: self.recipe.counted].batches(EVALUATED)
            estimate_statistics(self.network, (self.recipe.as_input(batch.images) for batch in counted))
        found = scores(self.network, self.recipe, self.seen_set).argmax(1)
        return {self.figure: share(found == self.seen_set.labels)}

    def score(self, row: dict[str, Any]) -> float:
        """The accuracy, if the images were held out to choose by it; test images choose nothing."""
        return row.get("validation_accuracy", 0.0)


def finish(run: Run, recipe: Recipe, test_set: Examples) -> None:
    """Compile the best network for this machine, and see what both make of the test set."""
    network, log = run.load_best(), run.log
    in_torch = scores(network, recipe, test_set).cpu()
    network, test_set = network.cpu().eval(), test_set.to(torch.device("cpu"))
    example = recipe.as_input(test_set.images[:1])
    bundle = tvmq.compile(tvmq.load(network, (example,), name=recipe.name, dynamic_batch=True), "host")
    path = run.folder / f"{recipe.name}.tvmq"
    bundle.save(path)
    inputs = (recipe.as_input(batch.images).contiguous().numpy() for batch in test_set.batches(EVALUATED))
    as_built = torch.cat([torch.from_numpy(bundle.run(images)[0]) for images in inputs])
    log["test_accuracy"] = share(in_torch.argmax(1) == test_set.labels)
    log["test_accuracy_as_built"] = share(as_built.argmax(1) == test_set.labels)
    log["other_class_than_torch"] = int((as_built.argmax(1) != in_torch.argmax(1)).sum())
    log["bytes_as_built"] = path.stat().st_size
    write_json(run.folder / "training.json", log)
    print(
        f"test accuracy {log['test_accuracy']:.2%} in torch, {log['test_accuracy_as_built']:.2%} as built "
        f"(epoch {log['best_epoch']}); wrote {path}"
    )


@torch.no_grad()
def scores(network: nn.Module, recipe: Recipe, examples: Examples) -> Tensor:
    """What the network says in eval mode."""
    network.eval()
    return torch.cat([network(recipe.as_input(batch.images)) for batch in examples.batches(EVALUATED)])


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


def normalized(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Bytes to numbers of mean 0 and standard deviation 1 in each colour; both are given in units of 255."""
    shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, deviation))
    return (images.float() / 255 - shift) / scale
