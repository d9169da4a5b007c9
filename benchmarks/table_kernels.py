"""Lookups in tables beside bit planes: one layer of one-bit weights, with its epilogue, by either kernel.

    TVM_NUM_THREADS=1 python benchmarks/table_kernels.py --output benchmarks/results/table_kernels.json

Both kernels compute the same codes from the same codes with the same thresholds on one thread, and the results are
compared exactly.  Kernels of planes read and write bit planes, lookups read and write bytes; padding the image, making
the tables, summing the activations, and packing are parts of the time.  They take turns in one process; a ratio is the
median over rounds of the time of planes divided by that of tables.  Layers of an output file that were measured before
stay there, so that a long list can be measured in pieces with ``--only``.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

import tvmq
from tvmq.benchmark import processor_name
from tvmq.clock import Clock
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.packing import pack_activations, pack_bytes, pack_weights, unpack_activations
from tvmq.kernels.schedule import default_knobs, schedule
from tvmq.kernels.workload import Conv2dWorkload, Table, Thresholds
from tvmq.target import Target, get_target

BLOCK_SECONDS = 0.004
"""Time of one kernel in one round, at least one call."""

Seconds = Callable[[int], float]
"""From a number of calls to the seconds of one."""


@dataclass(frozen=True)
class Layer:
    """A convolution with zero padding that keeps the size of its image, or a dense layer over some samples."""

    rows: int
    columns: int
    in_channels: int
    out_channels: int
    kernel: int

    @property
    def name(self) -> str:
        if self.rows == 1:
            return f"dense {self.columns}x{self.in_channels}x{self.out_channels}"
        channels = f"{self.in_channels}" + ("" if self.kernel > 1 else f" to {self.out_channels}")
        return f"{self.kernel}x{self.kernel} {self.rows}x{self.columns}x{channels}"

    @property
    def macs(self) -> int:
        return self.rows * self.columns * self.in_channels * self.out_channels * self.kernel**2


LAYERS = (
    *(Layer(size, size, channels, channels, 3) for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512))),
    *(Layer(size, size, *channels, 1) for size, channels in ((56, (64, 256)), (14, (256, 1024)), (14, (1024, 256)))),
    *(Layer(1, samples, 4096, 4096, 1) for samples in (1, 256)),
)


def workload(core: Target, layer: Layer, bits: int, tables: bool) -> Conv2dWorkload:
    """A layer of +-1 weights and unsigned activations of some bits, as the compiler makes it of either kind."""
    border = layer.kernel // 2
    if tables:
        table = Table(bits, min(layer.kernel**2 * layer.in_channels * (2**bits - 1), 2**16 - 1))
        fields: dict[str, Any] = {"combine": "table", "table": table, "plane_class": ((0,),)}
        fields |= {"class_multiplier": (2,), "activation_multiplier": (-1,)}
    else:
        fields = {"combine": "xor", "plane_class": tuple((plane,) for plane in range(bits))}
        fields["class_multiplier"] = tuple(-(1 << plane) for plane in range(bits))
        fields["activation_multiplier"] = (0,) * bits
    return Conv2dWorkload(
        height=layer.rows,
        width=layer.columns,
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel=(layer.kernel, layer.kernel),
        strides=(1, 1),
        padding=(border,) * 4,
        dilation=(1, 1),
        activation_planes=1 if tables else bits,
        weight_planes=1,
        row_classes=1,
        col_classes=1,
        word_bits=core.word_bits,
        lanes=core.lanes,
        epilogue=Thresholds(2**bits - 1, tuple(range(2**bits)), bits, "bytes" if tables else "planes"),
        **fields,
    )


@dataclass(frozen=True)
class Case:
    """Codes [C, H, W], bits of weights [O, KH, KW, C] that are 0 for -1, and thresholds [T, O] on the sums."""

    layer: Layer
    bits: int
    codes: np.ndarray
    weights: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def random(cls, layer: Layer, bits: int) -> Case:
        random = np.random.default_rng(0)
        shape = (layer.out_channels, layer.kernel, layer.kernel, layer.in_channels)
        codes = random.integers(0, 2**bits, (layer.in_channels, layer.rows, layer.columns)).astype(np.uint8)
        deviation = (layer.kernel**2 * layer.in_channels * np.mean(np.arange(2**bits) ** 2)) ** 0.5
        thresholds = np.sort(random.normal(0, deviation, (2**bits - 1, layer.out_channels)), axis=0)
        return cls(layer, bits, codes, random.random(shape) < 0.5, thresholds.astype(np.int32))

    def arguments(self, work: Conv2dWorkload) -> list[np.ndarray]:
        """Packed activations, packed weights and thresholds."""
        thresholds = self.thresholds
        if work.combine == "xor":  # a bit that is not set differs from the weights that are: x ^ w = w - x (2 w - 1)
            set_weights = self.weights.reshape(len(self.weights), -1).sum(1, dtype=np.int32)
            thresholds = thresholds - (2**self.bits - 1) * set_weights
        weight = pack_weights(self.weights[None], work.word_bits, work.lanes)
        if work.table is not None:
            image = pack_bytes(self.codes[None], work.in_words)
        else:
            planes = np.stack([self.codes >> plane & 1 for plane in range(self.bits)]).astype(bool)
            image = pack_activations(planes[:, None], work.word_bits)
        return [image, weight, thresholds[:, None, None, :]]


def codes_of(packed: np.ndarray, work: Conv2dWorkload) -> np.ndarray:
    """Written codes as [C, H, W]."""
    if work.writes_bytes:
        return packed[0, :, :, 0, : work.out_channels].transpose(2, 0, 1)
    planes = unpack_activations(packed, work.out_channels)[:, 0]
    return np.sum([plane.astype(np.uint8) << index for index, plane in enumerate(planes)], axis=0)


def compiled(core: Target, case: Case, tables: bool) -> tuple[Seconds, np.ndarray, str]:
    """A kernel, its result, and its register tile."""
    work = workload(core, case.layer, case.bits, tables)
    function: Any = schedule(conv2d(work, 1), core)
    module = tvm.compile(function, target=core.tvm_target()).mod
    output = function.params[-1].ty
    out = np.zeros([int(size) for size in output.shape], str(output.dtype))
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in (*case.arguments(work), out)]
    module["main"](*tensors)
    knobs = default_knobs(work, core)
    tile = f"{knobs.pixel_rows}x{knobs.pixel_tile} pixels, {knobs.channel_tile} vectors, {knobs.row_tile} rows"

    def seconds(calls: int) -> float:
        return float(module.time_evaluator("main", tvm.cpu(), number=calls, repeat=1)(*tensors).mean)

    return seconds, codes_of(tensors[-1].numpy(), work), tile


def compare(core: Target, layer: Layer, bits: int, rounds: int) -> dict[str, Any]:
    """Both kernels on one layer with activations of some bits."""
    case, clock = Case.random(layer, bits), Clock(core)
    found = {name: compiled(core, case, name == "tables") for name in ("planes", "tables")}
    if not np.array_equal(found["planes"][1], found["tables"][1]):
        raise AssertionError(f"{layer.name}, w1a{bits}: the kernels differ")
    runs = {name: seconds for name, (seconds, _, _) in found.items()}
    counts = {name: max(1, int(BLOCK_SECONDS / run(2))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    clocks = []
    for index in range(rounds):
        clocks.append(clock.hertz())
        for name in list(runs) if index % 2 else reversed(runs):
            times[name].append(runs[name](counts[name]))
    rows: dict[str, Any] = {}
    for name, seconds in times.items():
        quartiles = statistics.quantiles(seconds, n=4)
        rows[name] = {
            "median_us": round(1e6 * statistics.median(seconds), 2),
            "interquartile_range_us": round(1e6 * (quartiles[2] - quartiles[0]), 2),
            "mac_per_cycle": round(layer.macs / (statistics.median(seconds) * statistics.median(clocks)), 1),
            "tile": found[name][2],
        }
    ratios = [planes / tables for planes, tables in zip(times["planes"], times["tables"], strict=True)]
    rows["planes / tables"] = round(statistics.median(ratios), 3)
    return rows


def main() -> None:
    """Measure and print, and write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="x86-avx512-vpopcntdq")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4], help="bits of activations")
    parser.add_argument("--only", default="", help="measure the layers whose name contains this")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    core, layers = dataclasses.replace(get_target(arguments.target), cores=1), {}
    if arguments.output is not None and arguments.output.exists():
        layers = json.loads(arguments.output.read_text(encoding="utf-8"))["layers"]
    for layer in (layer for layer in LAYERS if arguments.only in layer.name):
        for bits in arguments.bits:
            found = layers[f"{layer.name}, w1a{bits}"] = compare(core, layer, bits, arguments.rounds)
            for name in ("planes", "tables"):
                row = found[name]
                figures = f"{row['median_us']:10.2f} us {row['mac_per_cycle']:7.1f} MAC/cycle  {row['tile']}"
                print(f"{layer.name:22s} w1a{bits} {name:7s} {figures}")
            print(f"{layer.name:22s} w1a{bits} planes / tables {found['planes / tables']}", flush=True)
    result = {
        "command": "python " + " ".join(sys.argv),
        "work": "one layer of one-bit weights, packed codes to packed codes, one thread",
        "target": core.name,
        "rounds": arguments.rounds,
        "layers": layers,
        "versions": {"tvmq": tvmq.__version__, "tvm": tvm.__version__},
        "processor": processor_name(),
    }
    if arguments.output is None:
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    temporary.replace(arguments.output)


if __name__ == "__main__":
    main()
