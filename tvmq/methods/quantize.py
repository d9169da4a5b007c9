"""``tvmq.quantize``: one verb for every method that needs no training; the configuration says which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvmq.errors import InputError
from tvmq.methods.calibration import calibration_batches
from tvmq.methods.fitted_network import fit_network
from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.gpfq_network import quantize_network
from tvmq.methods.layer_walk import Calibrated
from tvmq.methods.lqnets import LQNets
from tvmq.methods.progress import Progress
from tvmq.methods.qnn import QNN
from tvmq.model import Model

__all__ = ["quantize"]


def quantize(
    model: Model,
    config: GPFQ | QNN | LQNets,
    calibration: Any,
    *,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    memory: int = 2 * 2**30,
) -> Model:
    """Quantize a trained network without training it.

    Greedy path following, :class:`tvmq.GPFQ`, chooses each weight with regard to the errors of those before it.
    :class:`tvmq.QNN` and :class:`tvmq.LQNets` round each weight to the nearest level and choose the levels: a scale,
    respectively a basis, per output channel, and the levels of each layer's input, all with the smallest squared error;
    the mean of the error that is left is added to the layer's output.  They lose more than :func:`tvmq.prepare` with
    training would.

    Parameters
    ----------
    model : Model
        From :func:`tvmq.load`; not changed.
    config : GPFQ, QNN or LQNets
        The method and its settings.  Of QNN's, ``gradients`` and ``stochastic`` are about training and have no effect
        here, and whether activations have levels on both sides of zero follows the calibration data instead of
        ``signed``.  ``"input8"`` rounds the first layer's input to 8 bits over the range of the calibration data.
        With ``activations=None`` all inputs stay in float, the first too.
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
    if not isinstance(config, GPFQ | QNN | LQNets):
        raise InputError(
            f"quantize: expected a configuration, tvmq.GPFQ(), tvmq.QNN() or tvmq.LQNets(), got {type(config).__name__}"
        )
    batches = calibration_batches(calibration, model.inputs, batch_size)
    calibrated = Calibrated(batches, None if checkpoint is None else Path(checkpoint), progress, memory)
    if isinstance(config, GPFQ):
        return quantize_network(model, config, calibrated)
    return fit_network(model, config, calibrated)
