"""``tvmq.quantize``: one verb for every method that needs no training; the configuration says which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvmq.errors import InputError
from tvmq.methods.calibration import calibration_batches
from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.gpfq_network import quantize_network
from tvmq.methods.progress import Progress
from tvmq.model import Model

__all__ = ["quantize"]


def quantize(
    model: Model,
    config: GPFQ,
    calibration: Any,
    *,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    memory: int = 2 * 2**30,
) -> Model:
    """Quantize a trained network without training it.

    Parameters
    ----------
    model : Model
        From :func:`tvmq.load`; not changed.
    config : GPFQ
        The method and its settings.
    calibration : array, path or iterable
        Inputs like those that the network will see: an array (or one per input), a ``.npz`` or ``.npy`` file, a folder
        of images, or batches such as those of a torch ``DataLoader``; see
        :func:`tvmq.methods.calibration.calibration_batches`.  With ``torch.distributed`` initialised, this process'
        share of them.
    batch_size : int
        Samples that are run at a time.
    checkpoint : path, optional
        Folder to keep finished layers in.  A run that was interrupted resumes there at the layer it had reached.
    progress : callable, optional
        Called with a :class:`~tvmq.methods.progress.Progress` now and then.
    memory : int
        Bytes that activations may take in memory, and the most that a layer's gathered inputs may take; more goes
        to temporary files.

    Returns
    -------
    Model
        Its weights lie on the alphabets, and its activations pass through quantizers; ``quantization`` holds a row
        per quantized layer.

    Raises
    ------
    InputError
        For a configuration of another kind, layers that do not exist, or calibration data that does not fit.
    """
    if not isinstance(model, Model):
        raise InputError(f"quantize: expected a Model from tvmq.load, got {type(model).__name__}")
    if not isinstance(config, GPFQ):
        raise InputError(f"quantize: expected a configuration such as tvmq.GPFQ(), got {type(config).__name__}")
    batches = calibration_batches(calibration, model.inputs, batch_size)
    folder = None if checkpoint is None else Path(checkpoint)
    return quantize_network(model, config, batches, folder, progress, memory)
