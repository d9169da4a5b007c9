"""How large the tensors of a float network become on samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime

__all__ = ["largest_magnitudes"]


def largest_magnitudes(network: onnx.ModelProto, samples: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """The largest magnitude of every tensor that is not constant.

    Parameters
    ----------
    network : onnx.ModelProto
        Float, shapes inferred.
    samples : sequence of dict
        Inputs by name, one dictionary per run.

    Returns
    -------
    dict of str to float
        By the tensors' names, inputs included.
    """
    watched = copy.deepcopy(network)
    results = {item.name for item in watched.graph.output}
    watched.graph.output.extend(item for item in network.graph.value_info if item.name not in results)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    largest: dict[str, float] = {}
    for sample in samples:
        arrays = {**sample, **dict(zip(names, session.run(None, sample), strict=True))}
        for name, array in arrays.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(array).max(initial=0.0)))
    return largest
