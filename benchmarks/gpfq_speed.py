"""How long GPFQ takes for one layer, compared with the matrix products that it cannot do without.

    python benchmarks/gpfq_speed.py --output benchmarks/results/gpfq_speed.json

One thread, float64, random data, X different from X~.  Two layers: a dense layer 784 -> 500 with 25,000 samples, where
the products are the three of size m N^2 (X~^T X~, X~^T X and X^T X, as numpy computes them), and a convolution
256 -> 512 with 3x3 taps on 8,192 patches, where they are the three of size m N n of the residual form (X W, X~ Q,
X~^T U).  For the latter the products of the Gram form are timed as well.  Rounds alternate between the products and
GPFQ, so that a change of the machine's speed hits both; the ratio is the median of the rounds' ratios.

Memory is the peak of what numpy allocates for float32 arguments, these not included, divided by what the form needs in
float64: the Gram matrices (``2 N^2``, or ``N^2`` in a first layer), weights and errors; in the residual form the states
(``m n``), two blocks of columns (one in a first layer), weights and errors.  Every GPFQ run includes the measurement of
its error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.methods.alphabets import equispaced_alphabet
from tvmq.methods.gpfq import RESIDUAL_BLOCK, QuantizedWeights, quantize_weights

BYTES = 8


@dataclass(frozen=True)
class Layer:
    name: str
    samples: int
    inputs: int
    neurons: int
    letters: int
    method: str
    bound: str
    """Which products the time is compared with: "m N^2" or "m N n"."""
    same: bool = False
    """Whether X~ = X, as in a first layer."""
    limit: float | None = None


LAYERS = (
    Layer("dense 784x500", 25_000, 784, 500, 3, "auto", "m N^2", limit=2.5),
    Layer("dense 784x500, first layer", 25_000, 784, 500, 3, "auto", "m N^2", same=True),
    Layer("conv 3x3 256->512", 8_192, 2_304, 512, 3, "auto", "m N n", limit=2.5),
    Layer("conv 3x3 256->512, Gram form", 8_192, 2_304, 512, 3, "gram", "m N^2", limit=2.5),
)


def data(layer: Layer, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Weights, X and X~: activations after a ReLU, and the same with noise."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(-1, 1, (layer.inputs, layer.neurons))
    analog = rng.normal(size=(layer.samples, layer.inputs))
    if layer.same:
        return weight, np.maximum(analog, 0, out=analog), None
    quantized = np.maximum(analog + 0.2 * rng.normal(size=analog.shape), 0)
    return weight, np.maximum(analog, 0, out=analog), quantized


def products(layer: Layer, weight: np.ndarray, analog: np.ndarray, quantized: np.ndarray | None) -> None:
    """What no implementation can avoid; in a first layer a single product."""
    if layer.bound == "m N^2":
        if quantized is None:
            _ = analog.T @ analog
            return
        _ = quantized.T @ quantized
        _ = quantized.T @ analog
        _ = analog.T @ analog
        return
    state = analog @ weight
    state -= (analog if quantized is None else quantized) @ weight
    _ = (analog if quantized is None else quantized).T @ state


def general_products(analog: np.ndarray, quantized: np.ndarray) -> None:
    """Three products of size m N^2 without symmetry; numpy computes only half of X^T X."""
    for _ in range(3):
        _ = quantized.T @ analog


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def needed_bytes(layer: Layer, residual: bool) -> int:
    """The formula for the memory of a form (see the head of this file)."""
    weights = 2 * layer.inputs * layer.neurons
    if residual:
        return BYTES * (layer.samples * (layer.neurons + (1 if layer.same else 2) * RESIDUAL_BLOCK) + weights)
    return BYTES * ((1 if layer.same else 2) * layer.inputs**2 + weights)


def peak_bytes(layer: Layer, seed: int) -> int:
    """The most that numpy holds at once during a run, the arguments not included."""
    weight, analog, quantized = data(layer, seed)
    # What a network hands over; in float64 the weights would not even be copied.
    single = [None if array is None else array.astype(np.float32) for array in (weight, analog, quantized)]
    del weight, analog, quantized
    letters = equispaced_alphabet(layer.letters, 1.0)
    tracemalloc.start()
    quantize_weights(*single, alphabet=letters, method=layer.method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(values)), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def interleaved_times(layer: Layer, rounds: int, seed: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of every round, and the relative error of the layer."""
    weight, analog, quantized = data(layer, seed)
    letters = equispaced_alphabet(layer.letters, 1.0)

    def run() -> QuantizedWeights:
        return quantize_weights(weight, analog, quantized, alphabet=letters, method=layer.method)

    error = run().relative_error  # and pages and caches are there before anything is timed
    times: dict[str, list[float]] = {"products": [], "gpfq": [], "general products": []}
    for _ in range(rounds):
        times["products"].append(seconds(products, layer, weight, analog, quantized))
        times["gpfq"].append(seconds(run))
        if layer.bound == "m N^2" and quantized is not None:
            times["general products"].append(seconds(general_products, analog, quantized))
    return times, error


def measure(layer: Layer, rounds: int, seed: int) -> dict[str, Any]:
    residual = layer.method == "auto" and layer.bound == "m N n"
    times, error = interleaved_times(layer, rounds, seed)
    ratios = [a / b for a, b in zip(times["gpfq"], times["products"], strict=True)]
    peak, needed = peak_bytes(layer, seed), needed_bytes(layer, residual)
    row = {
        "layer": layer.name,
        "samples": layer.samples,
        "inputs": layer.inputs,
        "neurons": layer.neurons,
        "form": "residual" if residual else "gram",
        "compared_with": f"products of size {layer.bound}",
        "relative_error": round(error, 6),
        "seconds_gpfq": summary(times["gpfq"]),
        "seconds_products": summary(times["products"]),
        "ratio": summary(ratios),
        "limit": layer.limit,
        "peak_bytes": peak,
        "needed_bytes": needed,
        "memory_ratio": round(peak / needed, 3),
    }
    if times["general products"]:
        general = [a / b for a, b in zip(times["gpfq"], times["general products"], strict=True)]
        row["ratio_to_general_products"] = summary(general)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    rows = []
    for layer in LAYERS:
        row = measure(layer, arguments.rounds, arguments.seed)
        rows.append(row)
        print(
            f"{row['layer']:30s} {row['form']:8s} {row['seconds_gpfq']['median']:6.2f} s, "
            f"{row['ratio']['median']:.2f} ({row['ratio']['least']:.2f} .. {row['ratio']['most']:.2f}) times "
            f"{row['compared_with']}; memory {row['memory_ratio']:.2f} times the formula",
            flush=True,
        )
    result = {
        "what": "GPFQ of one layer, one thread, float64, in units of the matrix products it needs",
        "machine": platform.machine(),
        "processor": processor(),
        "numpy": np.__version__,
        "rounds": arguments.rounds,
        "within_limits": all(row["limit"] is None or row["ratio"]["median"] <= row["limit"] for row in rows)
        and all(row["memory_ratio"] <= 1.5 for row in rows),
        "layers": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def use_one_thread() -> None:
    """Start again with one thread for BLAS, which reads this only when it is loaded."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if any(os.environ.get(name) != value for name, value in limits.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})


def processor() -> str:
    """The model name that Linux reports, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
