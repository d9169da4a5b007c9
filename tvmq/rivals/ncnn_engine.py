"""Running a network in ncnn with its inputs copied once, by whichever of its kinds of convolution is the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmq.errors import ModelError
from tvmq.rivals.ncnn_int8 import DIRECT, WINOGRAD_23, WINOGRAD_43, NcnnNetwork

__all__ = ["LoadedNcnn", "load_ncnn", "load_ncnn_by"]

_TRIALS = 3


@dataclass(frozen=True)
class LoadedNcnn:
    """A network in ncnn.

    Attributes
    ----------
    run : callable
        Runs it once; returns ncnn's own arrays.
    kind : str
        How 3x3 convolutions of stride 1 are computed.
    """

    run: Callable[[], list[Any]]
    kind: str

    def outputs(self) -> list[np.ndarray]:
        """The outputs of one more run."""
        return [np.array(array) for array in self.run()]


def load_ncnn(network: NcnnNetwork, inputs: Mapping[str, np.ndarray], threads: int) -> LoadedNcnn:
    """Load a network in every way that its convolutions can be computed, and keep the fastest.

    Winograd's transforms save multiplications; where the processor has instructions for products of bytes, they often
    cost more than that.

    Parameters
    ----------
    network : NcnnNetwork
    inputs : mapping of str to numpy.ndarray
        By their names in the ONNX network: one image or a batch of vectors each.
    threads : int

    Returns
    -------
    LoadedNcnn

    Raises
    ------
    ModelError
        If ncnn does not take the network, or cannot run it.
    """
    loaded = [load_ncnn_by(kind, network, inputs, threads) for kind in network.kinds]
    return min(loaded, key=lambda item: _seconds(item.run)) if len(loaded) > 1 else loaded[0]


def _seconds(run: Callable[[], object]) -> float:
    """Of the fastest of a few runs after the first."""
    times = []
    for _ in range(1 + _TRIALS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def load_ncnn_by(kind: str, network: NcnnNetwork, inputs: Mapping[str, np.ndarray], threads: int) -> LoadedNcnn:
    """Load a network whose 3x3 convolutions of stride 1 are computed in one way.

    Parameters
    ----------
    kind : str
        One of the network's kinds.
    network, inputs, threads
        As for :func:`load_ncnn`.

    Returns
    -------
    LoadedNcnn

    Raises
    ------
    ModelError
        If ncnn does not take the network; :attr:`LoadedNcnn.run` raises it if it cannot run it.
    """
    import ncnn

    net = ncnn.Net()
    options = {
        "num_threads": threads,
        "use_vulkan_compute": False,
        "use_int8_inference": True,
        "use_packing_layout": True,
        "use_sgemm_convolution": True,
        "lightmode": True,
        "use_winograd_convolution": kind != DIRECT,
        "use_winograd23_convolution": kind == WINOGRAD_23,
        "use_winograd43_convolution": kind == WINOGRAD_43,
    }
    for name, value in options.items():
        setattr(net.opt, name, value)
    if net.load_param_mem(network.layers) != 0:
        raise ModelError("ncnn does not take the network")
    net.load_model_mem(network.kinds[kind])
    # An image has no axis for the batch.  The copies are ncnn's own: their rows are aligned as its kernels want them.
    arrays = {
        network.inputs[name]: ncnn.Mat(np.ascontiguousarray(array[0] if array.ndim == 4 else array)).clone()
        for name, array in inputs.items()
    }
    names = list(network.outputs.values())

    def run() -> list[Any]:
        extractor = net.create_extractor()
        for name, array in arrays.items():
            extractor.input(name, array)
        results = [extractor.extract(name) for name in names]
        if any(status != 0 for status, _ in results):
            raise ModelError("ncnn cannot run the network")
        return [array for _, array in results]

    return LoadedNcnn(run, kind)
