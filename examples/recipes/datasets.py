"""MNIST and CIFAR-10 from the files in which they are published."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_TEST = ("test_batch.bin",)
CIFAR10_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Examples:
    """Images ``uint8[n, channels, height, width]`` and their labels ``int64[n]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Examples:
        """Some of the images, with their labels."""
        return Examples(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Examples:
        """The same on a device."""
        return Examples(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[Examples]:
        """Cut into batches, the last one possibly smaller."""
        return (self[start : start + size] for start in range(0, len(self), size))


def load_mnist(folder: Path) -> tuple[Examples, Examples]:
    """Training and test set of MNIST."""
    check_files(folder, MNIST_FILES, "the four original MNIST files, still gzipped")
    images, labels, test_images, test_labels = (_read_idx(folder / name) for name in MNIST_FILES)
    return _examples(images[:, None], labels), _examples(test_images[:, None], test_labels)


def load_cifar10(folder: Path) -> tuple[Examples, Examples]:
    """Training and test set of CIFAR-10."""
    check_files(folder, CIFAR10_TRAIN + CIFAR10_TEST, "the files of CIFAR-10's binary version")
    return _read_cifar10(folder, CIFAR10_TRAIN), _read_cifar10(folder, CIFAR10_TEST)


def check_files(folder: Path, names: tuple[str, ...], what: str) -> None:
    """End the process with the names of missing files, and with ``what`` to put there."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        sys.exit(f"error: {folder} lacks {', '.join(missing)}; put {what} there")


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def _read_idx(path: Path) -> np.ndarray:
    """A gzipped idx file of unsigned bytes: magic 0 0 8 rank, big-endian sizes, then the values."""
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


def _read_cifar10(folder: Path, names: tuple[str, ...]) -> Examples:
    """Records of a label and 32 rows of 32 pixels of each of three colours."""
    records = []
    for name in names:
        content = np.fromfile(folder / name, np.uint8)
        if len(content) == 0 or len(content) % CIFAR10_RECORD:
            sys.exit(f"error: {folder / name} is damaged: {len(content)} bytes are not whole images; fetch it again")
        records.append(content.reshape(-1, CIFAR10_RECORD))
    rows = np.concatenate(records)
    if rows[:, 0].max() > 9:
        sys.exit(f"error: {folder} holds labels above 9: it is not CIFAR-10")
    return _examples(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0])
