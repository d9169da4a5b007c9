"""Images from a folder, as a network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvmq.errors import InputError
from tvmq.runtime.tensors import TensorSpec

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageReader", "image_files"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, in the order of their names.

    Parameters
    ----------
    folder : pathlib.Path

    Returns
    -------
    list of pathlib.Path

    Raises
    ------
    InputError
        If there are none.
    """
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise InputError(f"{folder}: holds no images ({', '.join(sorted(_SUFFIXES))})")
    return files


class ImageReader:
    """Reads an image file into what a network takes.

    The image is converted to the network's number of channels, resized so that the network's frame just fits into it,
    cropped around the center, scaled to [0, 1], and normalised.

    Parameters
    ----------
    folder : pathlib.Path
        Where the images come from, for messages.
    inputs : sequence of TensorSpec
        What the network takes.
    mean, std : sequence of float, optional
        Subtracted from, and then divided into, the values of each channel: one number per channel, or one for all.

    Raises
    ------
    InputError
        If the network does not take images, ``mean`` or ``std`` have another number of channels, or Pillow is missing.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Sequence[TensorSpec],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        spec = inputs[0]
        fits = len(inputs) == 1 and len(spec.shape) == 4 and None not in spec.shape[1:]
        if not fits or spec.shape[1] not in _MODES or not np.issubdtype(np.dtype(spec.dtype), np.floating):
            takes = ", ".join(map(str, inputs))
            raise InputError(
                f"{folder}: images are for networks with one float input of shape (batch, 1, 3 or 4 channels, height, "
                f"width), but this network takes {takes}; give arrays instead"
            )
        try:
            from PIL import Image
        except ImportError:
            raise InputError(f"{folder}: images need Pillow; get it with: pip install 'tvmq[images]'") from None
        channels, height, width = (int(extent) for extent in spec.shape[1:] if extent is not None)
        self._library = Image
        self._channels, self._height, self._width = channels, height, width
        self._mean = self._per_channel("mean", mean, 0.0)
        self._std = self._per_channel("std", std, 1.0)

    def _per_channel(self, field: str, values: Sequence[float] | None, default: float) -> np.ndarray:
        values = (default,) if values is None else values
        if len(values) not in (1, self._channels):
            raise InputError(f"calibration: {len(values)} values of {field} for {self._channels} channels")
        return np.array(values, np.float32)[:, None, None]

    def __call__(self, file: Path) -> np.ndarray:
        """Read one image.

        Parameters
        ----------
        file : pathlib.Path

        Returns
        -------
        float32 array of shape (channels, height, width)

        Raises
        ------
        InputError
            If the file is not an image that Pillow can read, or has more than 8 bits per channel.
        """
        try:
            with self._library.open(file) as image:
                pixels = np.asarray(self._framed(image, file), np.float32)
        except InputError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
            raise InputError(f"{file}: cannot be read as an image ({error}); remove or replace it") from None
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return (planes / np.float32(255) - self._mean) / self._std

    def _framed(self, image: Image.Image, file: Path) -> Image.Image:
        """Resized so that the frame just fits, and cropped around the center."""
        if image.mode[0] in "IF":
            raise InputError(f"{file}: has more than 8 bits per channel; convert it, or give arrays instead")
        image = image.convert(_MODES[self._channels])
        scale = max(self._width / image.width, self._height / image.height)
        width = max(self._width, round(image.width * scale))
        height = max(self._height, round(image.height * scale))
        image = image.resize((width, height), self._library.Resampling.BILINEAR)
        left, top = (width - self._width) // 2, (height - self._height) // 2
        return image.crop((left, top, left + self._width, top + self._height))
