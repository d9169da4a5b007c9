"""Train a binarized network on MNIST and export it as ONNX.

All four layers have binary weights and binary inputs, but for the first, which reads 8-bit pixels as bit planes.

    python examples/mnist/train.py --data DIR --epochs 30 --out DIR [--resume]

Every epoch ends in a checkpoint, so that a run can be stopped at any time and continued with --resume.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shlex
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvmq.methods import QNN
from tvmq.nn import clip_weights, freeze, parameter_groups, prepare

FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
BATCH = 100
LEARNING_RATE = 1e-3
LARGEST_SHIFT = 2
SAMPLES = 200


class Network(nn.Module):
    """Three convolutions and a linear layer, in float; ``prepare`` makes it binary.

    Every layer is followed by an optional max pool, a batch norm and, but for the last, a hardtanh, whose sign the
    next layer takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(128)
        self.output = nn.Linear(128 * 7 * 7, 10)
        self.norm4 = nn.BatchNorm1d(10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``[batch, 10]`` of images ``[batch, 1, 28, 28]`` in [0, 1]."""
        x = F.hardtanh(self.norm1(F.max_pool2d(self.conv1(image), 2)))
        x = F.hardtanh(self.norm2(F.max_pool2d(self.conv2(x), 2)))
        x = F.hardtanh(self.norm3(self.conv3(x)))
        return self.norm4(self.output(x.flatten(1)))


@dataclass(frozen=True)
class Digits:
    """Images ``uint8[n, 1, 28, 28]`` and their labels ``int64[n]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Digits:
        """Some of the images, with their labels."""
        return Digits(self.images[rows], self.labels[rows])

    def batches(self, size: int) -> Iterator[Digits]:
        """Cut into batches, the last one possibly smaller."""
        return (self[start : start + size] for start in range(0, len(self), size))


def main(arguments: list[str] | None = None) -> None:
    """Train, export and verify."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    train_set, test_set = load_mnist(options.data)
    # The last twelfth of the training images (5,000) chooses the epoch; the test images only measure the result.
    held_out = len(train_set) // 12
    training = Training(options, command_line(arguments))
    try:
        training.run(train_set[:-held_out], train_set[-held_out:])
    except KeyboardInterrupt:
        print(f"stopped; best network so far: {training.best_path}; continue with --resume", file=sys.stderr)
        sys.exit(130)
    network = training.best_network()
    export(network, test_set, options.out, training.log)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST .gz files")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and exported network")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use (another number, other bits)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs {options.epochs}: at least 1 is needed")
    return options


def command_line(arguments: list[str] | None) -> str:
    """The command as it could be typed again."""
    return shlex.join(["python", sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)])


# --- data ------------------------------------------------------------------------------------------------------------


def load_mnist(folder: Path) -> tuple[Digits, Digits]:
    """Read training and test set from the original files."""
    missing = [name for name in FILES.values() if not (folder / name).is_file()]
    if missing:
        sys.exit(f"error: {folder} lacks {', '.join(missing)}; put the four original MNIST files there, still gzipped")
    arrays = {key: read_idx(folder / name) for key, name in FILES.items()}
    return (
        digits(arrays["train_images"], arrays["train_labels"]),
        digits(arrays["test_images"], arrays["test_labels"]),
    )


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes: magic 0 0 8 rank, big-endian sizes, then the values."""
    try:
        content = gzip.decompress(path.read_bytes())
        zero, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        sys.exit(f"error: {path} is damaged ({error}); fetch it again")
    if (zero, kind) != (0, 8):
        sys.exit(f"error: {path} is not an idx file of unsigned bytes; put the original MNIST file there")
    return values


def digits(images: np.ndarray, labels: np.ndarray) -> Digits:
    """Images with a channel axis, labels as class numbers."""
    return Digits(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def as_float(images: Tensor) -> Tensor:
    """Pixels in [0, 1], which is all the normalisation there is: the network sees multiples of 1/255."""
    # Channels last makes convolutions on a processor about a third faster.
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def shifted(images: Tensor) -> Tensor:
    """Move every image by up to ``LARGEST_SHIFT`` pixels in both directions, filling with black."""
    count, _, height, width = images.shape
    padded = F.pad(images, (LARGEST_SHIFT,) * 4)
    offsets = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, count, 1))
    rows = (offsets[0] + torch.arange(height))[:, :, None]
    columns = (offsets[1] + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns].unsqueeze(1)


# --- training --------------------------------------------------------------------------------------------------------


class Training:
    """The network, its optimiser and all that a checkpoint holds."""

    def __init__(self, options: argparse.Namespace, command: str) -> None:
        torch.manual_seed(options.seed)
        self.epochs: int = options.epochs
        self.resume: bool = options.resume
        self.network = prepare(Network(), QNN()).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(parameter_groups(self.network, LEARNING_RATE))
        self.checkpoint_path: Path = options.out / "checkpoint.pt"
        self.best_path: Path = options.out / "best.pt"
        self.log_path: Path = options.out / "training.json"
        self.log: dict[str, Any] = {
            "command": command,
            "seed": options.seed,
            "threads": options.threads,
            "torch": str(torch.__version__),
            "epochs": options.epochs,
            "best_epoch": 0,
            "curve": [],
        }
        options.out.mkdir(parents=True, exist_ok=True)

    def run(self, train_set: Digits, validation_set: Digits) -> None:
        """Train for all epochs that are left."""
        # Per step, not per epoch, and down to zero: with steady weights the batch norms' statistics settle.
        steps = self.epochs * (len(train_set) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        if self.resume:
            self.load_checkpoint(schedule)
        curve = self.log["curve"]
        for epoch in range(len(curve) + 1, self.epochs + 1):
            start = time.perf_counter()
            loss = self.train_epoch(train_set, schedule)
            correct = accuracy(self.network, validation_set)
            seconds = time.perf_counter() - start
            curve.append(
                {
                    "epoch": epoch,
                    "loss": round(loss, 5),
                    "validation_accuracy": round(correct, 5),
                    "seconds": round(seconds, 1),
                }
            )
            self.save(schedule)
            left = np.mean([entry["seconds"] for entry in curve]) * (self.epochs - epoch)
            print(
                f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  validation {correct:.2%}  "
                f"{seconds:.0f} s, {left / 60:.0f} min left",
                flush=True,
            )

    def train_epoch(self, train_set: Digits, schedule: torch.optim.lr_scheduler.LRScheduler) -> float:
        """One pass over the shuffled, shifted images; the mean loss."""
        self.network.train()
        shuffled = train_set[torch.randperm(len(train_set))]
        total, batches = 0.0, len(train_set) // BATCH
        # Full batches only: batch norm cannot train on the single image that might be left over.
        for batch in shuffled[: batches * BATCH].batches(BATCH):
            scores = self.network(as_float(shifted(batch.images)))
            loss = F.cross_entropy(scores, batch.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            clip_weights(self.network)
            schedule.step()
            total += loss.item()
        return total / batches

    def save(self, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Write log and checkpoint, and the network if it is the best so far."""
        curve = self.log["curve"]
        accuracies = [entry["validation_accuracy"] for entry in curve]
        # Of equally good epochs the latest: its learning rate is the smallest.
        is_best = accuracies[-1] >= max(accuracies)
        if is_best:
            self.log["best_epoch"] = len(curve)
            write(self.best_path, lambda path: torch.save(self.network.state_dict(), path))
        checkpoint = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": torch.get_rng_state(),
            "log": self.log,
        }
        write(self.checkpoint_path, lambda path: torch.save(checkpoint, path))
        write_json(self.log_path, self.log)

    def load_checkpoint(self, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Continue where the checkpoint was written, under the same settings."""
        if not self.checkpoint_path.is_file():
            sys.exit(f"error: {self.checkpoint_path} does not exist; start without --resume")
        checkpoint = torch.load(self.checkpoint_path, weights_only=True)
        for setting in ("epochs", "seed"):
            if checkpoint["log"][setting] != self.log[setting]:
                sys.exit(
                    f"error: {self.checkpoint_path} was started with --{setting} {checkpoint['log'][setting]}; "
                    f"resume with the same"
                )
        self.network.load_state_dict(checkpoint["network"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        torch.set_rng_state(checkpoint["random"])
        self.log = checkpoint["log"]

    def best_network(self) -> nn.Module:
        """The network of the epoch with the best validation accuracy."""
        self.network.load_state_dict(torch.load(self.best_path, weights_only=True))
        return self.network


@torch.no_grad()
def predictions(network: nn.Module, images: Tensor) -> Tensor:
    """The scores ``float32[n, 10]`` in eval mode."""
    network.eval()
    return torch.cat([network(as_float(batch)) for batch in images.split(1000)])


def accuracy(network: nn.Module, examples: Digits) -> float:
    """Share of the images whose label has the highest score, in eval mode."""
    return (predictions(network, examples.images).argmax(1) == examples.labels).double().mean().item()


# --- export ----------------------------------------------------------------------------------------------------------


def export(network: nn.Module, test_set: Digits, folder: Path, log: dict[str, Any]) -> None:
    """Write the ONNX file and the sample images, and record how both runtimes do on the test set."""
    model_path = folder / "mnist-binary.onnx"
    write(model_path, lambda path: export_onnx(network, path))
    write(folder / "samples.npz", lambda path: save_samples(test_set[:SAMPLES], path))

    in_torch = predictions(network, test_set.images)
    in_onnxruntime = run_onnx(model_path, test_set.images)
    labels = test_set.labels
    log["test_accuracy"] = round((in_torch.argmax(1) == labels).double().mean().item(), 5)
    log["onnxruntime"] = {
        "version": onnxruntime.__version__,
        "test_accuracy": round((in_onnxruntime.argmax(1) == labels).double().mean().item(), 5),
        "other_class_than_torch": int((in_onnxruntime.argmax(1) != in_torch.argmax(1)).sum()),
        "largest_score_difference": float((in_onnxruntime - in_torch).abs().max()),
    }
    write_json(folder / "training.json", log)
    print(f"test accuracy {log['test_accuracy']:.2%} (epoch {log['best_epoch']}); wrote {model_path}")


def export_onnx(network: nn.Module, path: Path) -> None:
    """Export with constant binary weights, for any batch size."""
    deployable = freeze(network).to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        # The exporter that replaces this one needs another package (onnxscript); the graph would be no better.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Folding is said to be unsafe for a network that goes on training; this one does not.
        warnings.filterwarnings("ignore", "It is recommended that constant folding be turned off")
        torch.onnx.export(
            deployable,
            (torch.zeros(1, 1, 28, 28),),
            str(path),
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
            opset_version=17,
            # PRESERVE (the mode stays eval) keeps the exporter from merging the batch norm behind conv3 into its
            # weights, which would make them real again.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=True,
            dynamo=False,
        )


def save_samples(samples: Digits, path: Path) -> None:
    """Write images as bytes (divide by 255 before use) and labels."""
    with path.open("wb") as file:
        np.savez_compressed(file, images=samples.images.numpy(), labels=samples.labels.numpy().astype(np.uint8))


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """The scores ``float32[n, 10]`` from onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batches = [session.run(None, {"image": (batch.float() / 255).numpy()})[0] for batch in images.split(1000)]
    return torch.from_numpy(np.concatenate(batches))


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Write to a temporary name and rename, so that an interrupted run never leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    writer(temporary)
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON."""
    write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))


if __name__ == "__main__":
    main()
