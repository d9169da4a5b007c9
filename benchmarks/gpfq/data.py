"""MNIST and CIFAR-10 as uint8 tensors in memory, and their normalisation.

Networks expect normalised inputs: ``(pixels / 255 - mean) / std`` for every channel, in float32.
`Images.inputs` does that.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MOSAIC = (25, 40)
"""Rows and columns of images in one CIFAR-10 mosaic."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes
    ----------
    pixels : Tensor
        ``uint8[n, 784]`` for MNIST; ``uint8[n, 3, 32, 32]``, channels last in memory, for CIFAR-10.
    labels : Tensor
        ``int64[n]``, 0 to 9.
    mean, std : tuple of float
        Of each channel, with pixels in [0, 1].
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Images:
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])

    def inputs(self) -> Tensor:
        """What the network reads: the pixels, normalised, as float32 of the same shape."""
        shape = (-1, *[1] * (self.pixels.dim() - 2))
        mean = torch.tensor(self.mean).view(shape)
        std = torch.tensor(self.std).view(shape)
        return (self.pixels.float() / 255 - mean) / std


def mnist(folder: Path, split: str) -> Images:
    """MNIST from the original ``*-ubyte.gz`` files.

    Parameters
    ----------
    folder : Path
        Holds ``train-images-idx3-ubyte.gz`` and the three other files.
    split : str
        ``"train"`` (60,000 images) or ``"test"`` (10,000).

    Returns
    -------
    Images
        Pixels ``uint8[n, 784]``.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    pixels = idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return Images(torch.from_numpy(pixels.reshape(len(pixels), -1)), long(labels), (0.1307,), (0.3081,))


def cifar10(folder: Path, split: str) -> Images:
    """CIFAR-10 from the standard binary files, or from lossless WebP mosaics.

    Parameters
    ----------
    folder : Path
        Holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``; or ``train_00.webp``...,
        ``test_00.webp``..., mosaics of 25 rows of 40 images, and ``train_index.npz`` and ``test_index.npz`` with an
        array ``label``.
    split : str
        ``"train"`` (50,000 images) or ``"test"`` (10,000).

    Returns
    -------
    Images
        Pixels ``uint8[n, 3, 32, 32]``.
    """
    mosaics = (folder / f"{split}_index.npz").exists()
    pixels, labels = (cifar10_mosaics if mosaics else cifar10_binary)(folder, split)
    # Only the view is channels first: convolutions run faster on channels-last memory.
    view = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return Images(view, long(labels), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


LOADERS: dict[str, Callable[[Path, str], Images]] = {"mnist-mlp": mnist, "cifar10-cnn": cifar10}
"""The data set of each network."""


def idx(path: Path) -> np.ndarray:
    """A uint8 array in the idx format, of the shape that the file states."""
    data = bytearray(gzip.decompress(existing(path).read_bytes()))
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(tuple(shape))


def cifar10_binary(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``uint8[n, 32, 32, 3]`` and labels ``uint8[n]`` of the standard files."""
    names = [f"data_batch_{part}.bin" for part in range(1, 6)] if split == "train" else ["test_batch.bin"]
    rows = np.concatenate([np.fromfile(existing(folder / name), np.uint8).reshape(-1, 1 + 3072) for name in names])
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


def cifar10_mosaics(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``uint8[n, 32, 32, 3]`` and labels of the mosaics."""
    from PIL import Image

    labels = np.load(folder / f"{split}_index.npz")["label"]
    rows, columns = MOSAIC
    parts = []
    for part in range(len(labels) // (rows * columns)):
        with Image.open(existing(folder / f"{split}_{part:02d}.webp")) as mosaic:
            tiles = np.asarray(mosaic.convert("RGB")).reshape(rows, 32, columns, 32, 3)
        parts.append(tiles.swapaxes(1, 2).reshape(-1, 32, 32, 3))
    return np.concatenate(parts), labels


def long(labels: np.ndarray) -> Tensor:
    """Labels as ``int64[n]``."""
    return torch.from_numpy(labels.astype(np.int64))


def existing(path: Path) -> Path:
    """The path, if there is such a file."""
    if not path.exists():
        raise SystemExit(f"{path} is missing")
    return path
