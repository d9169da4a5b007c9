"""A layer in tvmq and in onnxruntime with its arrays bound once, and how their times are summarised."""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import tvm
from tvm import relax

__all__ = ["bound", "onnxruntime_call", "summary"]


def bound(library: bytes, array: np.ndarray) -> Callable[[], object]:
    """The network in a library with its input bound once, as onnxruntime's is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.so"
        path.write_bytes(library)
        run = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())["main"]
    x = tvm.runtime.tensor(array)
    return lambda: run(x)


def onnxruntime_call(layer: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """The float layer in onnxruntime, with its input and output bound once."""
    buffer = io.BytesIO()
    torch.onnx.export(layer, (x,), buffer, dynamo=False, input_names=["x"], output_names=["y"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x.numpy())
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and interquartile range in microseconds."""
    quartiles = statistics.quantiles(seconds, n=4)
    return {
        "median_us": round(1e6 * statistics.median(seconds), 1),
        "interquartile_range_us": round(1e6 * (quartiles[2] - quartiles[0]), 1),
    }
