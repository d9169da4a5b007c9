"""One float network in the forms that engines run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from tvmq.rivals.ncnn_int8 import NcnnNetwork

__all__ = ["FORMS", "in_form"]

Samples = Sequence[dict[str, "np.ndarray"]]


def in_form(form: str, network: onnx.ModelProto, samples: Samples) -> onnx.ModelProto | NcnnNetwork:
    """A network in the form that an engine takes.

    Parameters
    ----------
    form : str
        One of :data:`FORMS`.
    network : onnx.ModelProto
        Float, batch norms folded, shapes inferred.
    samples : sequence of dict
        Inputs by name; they show how large activations become.

    Returns
    -------
    onnx.ModelProto or NcnnNetwork

    Raises
    ------
    UnsupportedOperatorError
        If the network does not exist in that form.
    ImportError
        If onnxruntime, which measures activations, is not installed.
    """
    return _WRITERS[form](network, samples)


def _float32(network: onnx.ModelProto, _samples: Samples) -> onnx.ModelProto:
    return network


def _int8(network: onnx.ModelProto, samples: Samples) -> onnx.ModelProto:
    from tvmq.rivals.int8 import quantize_int8

    return quantize_int8(network, samples)


def _two_bit_weights(network: onnx.ModelProto, _samples: Samples) -> onnx.ModelProto:
    from tvmq.rivals.two_bit_weights import with_two_bit_weights

    return with_two_bit_weights(network)


def _ncnn_int8(network: onnx.ModelProto, samples: Samples) -> NcnnNetwork:
    from tvmq.rivals.calibration import largest_magnitudes
    from tvmq.rivals.ncnn_int8 import to_ncnn

    return to_ncnn(network, largest_magnitudes(network, samples))


_WRITERS: dict[str, Callable[[onnx.ModelProto, Samples], Any]] = {
    "float32": _float32,
    "int8": _int8,
    "2-bit weights": _two_bit_weights,
    "ncnn int8": _ncnn_int8,
}
FORMS = tuple(_WRITERS)
