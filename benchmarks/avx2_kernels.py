"""Kernels for AVX2 beside kernels by hand: the share of a hand-written popcount, and whether tables would be faster.

    TVM_NUM_THREADS=1 python benchmarks/avx2_kernels.py --output benchmarks/results/avx2_kernels.json

All contestants take packed activations and return int32 sums with a bias, compared exactly, on one thread, in turn in
one process; figures are medians over rounds, with interquartile ranges.  One-bit activations are -1 and 1 (for tvmq's
kernels that read bytes 0 and 1, which takes the same time).  `avx2_kernels.c`, compiled by gcc for the
occasion, holds the kernels by hand; each runs with its fastest register tile.  Contestants are

    bitserial               tvmq's kernel of bit planes for x86-avx2
    bytes                   tvmq's kernel of bytes for x86-avx2 (vpmaddubsw), with a byte for every activation
    tables                  tvmq's kernel of lookups in tables for x86-avx2, from a byte for every activation
    popcount by hand        the same as bitserial, for one bit of activations
    tables by hand          weights of one bit, four at a time, index tables of partial sums
    tables by hand, ready   the same without making the tables, padding the image and summing the activations

Tables are made from bytes, one for each activation, or looked up by the planes of one- and two-bit activations.  A
ratio is the median over rounds of the time of the first divided by that of the second.  A call of tvmq's costs 0.06 us
more than one of C.

On a Zen 4, the compiled popcount reaches 95 to 100 % of the speed of the one by hand in 3x3 convolutions, and less
than 90 % only where the call is a quarter of the time.  Compiled tables reach 80 to 117 % of the speed of those by
hand in 3x3 convolutions and 79 to 96 % in dense layers over 64 samples, their making included.  They are faster than
the faster of the kernels of planes and of bytes: 1.2 to 1.4 times in 3x3 convolutions of one-bit activations, 2.2 to
2.7 times of two bits, 2.9 to 3.5 times of three and 2.8 to 3.3 times of four; in dense layers over 64 samples 1.0 to
1.3, 1.7 to 2.4, 2.5 to 3.4 and 2.4 to 3.2 times; over one sample of 1024 or more inputs 0.9 to 1.0, 1.7 to 1.9, 1.7
to 1.8 and 3.2 to 3.4 times.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")

import argparse
import ctypes
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm

import tvmq
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.packing import pack_activations, pack_bytes, pack_weight_bytes, pack_weights
from tvmq.kernels.schedule import default_knobs, schedule
from tvmq.kernels.workload import Conv2dWorkload, Dot, Integer, Table
from tvmq.machine import this_machine
from tvmq.target import get_target

CORE = dataclasses.replace(get_target("x86-avx2"), cores=1)
BLOCK_SECONDS = 0.004
"""Time of one contestant in one round, at least one call."""
TILES = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (3, 2), (4, 1), (4, 2), (6, 1), (7, 1), (8, 1))
"""Pixels and vectors of the kernels by hand."""
MOST_BYTE = 255
TABLE_BYTES = 128 * 1024
"""Tables of a band of rows, which should stay in the second-level cache."""
POPCOUNT, OFFSETS, TABLES = range(3)
"""Kinds of kernels by hand, as C numbers them."""
KINDS = ("popcount", "offsets", "tables")

Seconds = Callable[[int], float]
"""From a number of calls to the seconds of one."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution with zero padding that keeps the size of its image, or a dense layer over some samples."""

    rows: int
    columns: int
    in_channels: int
    out_channels: int
    kernel: int

    @property
    def name(self) -> str:
        if self.kernel == 1:
            return f"dense {self.columns}x{self.in_channels}x{self.out_channels}"
        return f"3x3 {self.rows}x{self.columns}x{self.in_channels}"

    @property
    def border(self) -> int:
        return self.kernel // 2

    @property
    def macs(self) -> int:
        return self.rows * self.columns * self.in_channels * self.out_channels * self.kernel**2


LAYERS = (
    *(Layer(size, size, channels, channels, 3) for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512))),
    *(Layer(1, samples, width, width, 1) for samples in (1, 64) for width in (256, 1024, 4096)),
)


def workload(layer: Layer, bits: int, form: str) -> Conv2dWorkload:
    """A layer of +-1 weights: +-1 activations as one plane, or unsigned ones of some bits as planes or as bytes."""
    if form == "tables":
        bound = min(layer.kernel**2 * layer.in_channels * (2**bits - 1), 2**16 - 1)
        fields: dict[str, Any] = {"combine": "table", "class_multiplier": (2,), "table": Table(bits, bound)}
        fields["activation_multiplier"] = (-1,)
    elif form == "bytes":
        fields = {"combine": "dot", "class_multiplier": (1,), "lanes": CORE.dot_lanes}
        fields["dot"] = Dot(bits, 1, 2 * (2**bits - 1))
    elif bits == 1:
        fields = {"combine": "xor", "class_multiplier": (-1,)}
    else:
        fields = {"combine": "and", "class_multiplier": tuple(2 << plane for plane in range(bits))}
        fields["activation_multiplier"] = tuple(-(1 << plane) for plane in range(bits))
        fields["plane_class"] = tuple((plane,) for plane in range(bits))
    planes = bits if form == "bitserial" else 1
    defaults: dict[str, Any] = {
        "plane_class": ((0,),),
        "activation_multiplier": (0,) * planes,
        "lanes": CORE.lanes,
    }
    return Conv2dWorkload(
        height=layer.rows,
        width=layer.columns,
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel=(layer.kernel, layer.kernel),
        strides=(1, 1),
        padding=(layer.border,) * 4,
        dilation=(1, 1),
        activation_planes=planes,
        weight_planes=1,
        row_classes=1,
        col_classes=1,
        word_bits=CORE.word_bits,
        epilogue=Integer(),
        **{**defaults, **fields},
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """Codes [C, H, W], weights [O, KH, KW, C] that are 0 for -1 and 1 for 1, a bias [O], and the sums [H, W, O]."""

    layer: Layer
    bits: int
    codes: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def random(cls, layer: Layer, bits: int) -> Case:
        random = np.random.default_rng(0)
        shape = (layer.out_channels, layer.kernel, layer.kernel, layer.in_channels)
        codes = random.integers(0, 2**bits, (layer.in_channels, layer.rows, layer.columns)).astype(np.uint8)
        weights = random.integers(0, 2, shape).astype(np.uint8)
        return cls(layer, bits, codes, weights, random.integers(-1000, 1000, layer.out_channels).astype(np.int32))

    def products(self) -> np.ndarray:
        """Sums of activations times +-1, in float32, which is exact here."""
        border = self.layer.border
        image = np.pad(self.codes, ((0, 0), (border, border), (border, border))).astype(np.float32)
        view = np.lib.stride_tricks.sliding_window_view(image, (self.layer.kernel,) * 2, axis=(1, 2))
        flat = view.transpose(1, 2, 3, 4, 0).reshape(self.layer.rows * self.layer.columns, -1)
        signs = 2 * self.weights.reshape(self.layer.out_channels, -1).astype(np.float32) - 1
        sums = (flat @ signs.T).astype(np.int32)
        return sums.reshape(self.layer.rows, self.layer.columns, -1)

    def sums(self, as_bytes: bool) -> np.ndarray:
        """What a contestant computes: the products, or for one plane minus the number of bits that differ."""
        if self.bits > 1 or as_bytes:
            return self.products() + self.bias
        # A bit that is not set differs from the weights that are: x ^ w = w - x (2 w - 1).
        return self.products() - self.set_weights() + self.bias

    def set_weights(self) -> np.ndarray:
        """Weights of +1 of every output channel."""
        return self.weights.reshape(len(self.bias), -1).sum(1, dtype=np.int32)

    def planes(self) -> np.ndarray:
        bits = np.stack([self.codes >> plane & 1 for plane in range(self.bits)]).astype(bool)
        return pack_activations(bits[:, None], CORE.word_bits)

    def packed_weights(self) -> np.ndarray:
        return pack_weights(self.weights[None].astype(bool), CORE.word_bits, CORE.lanes)


def compiled(case: Case, form: str) -> tuple[Seconds, np.ndarray, str]:
    """The kernel of tvmq for "bitserial", "bytes" or "tables", its result, and its register tile."""
    work = workload(case.layer, case.bits, form)
    module = tvm.compile(schedule(conv2d(work, 1), CORE), target=CORE.tvm_target()).mod
    weight, image = case.packed_weights(), case.planes()
    if form != "bitserial":
        image = pack_bytes(case.codes[None], work.in_words)
    if form == "bytes":
        signs = 2 * case.weights.astype(np.int8) - 1
        weight = pack_weight_bytes(signs, work.lanes, work.out_channels_padded, False)
    shape = (1, case.layer.rows, case.layer.columns, case.layer.out_channels)
    arrays = [image, weight, case.bias.reshape(1, 1, -1), np.zeros(shape, np.int32)]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    module["main"](*tensors)
    knobs = default_knobs(work, CORE)
    tile = f"{knobs.pixel_rows}x{knobs.pixel_tile} pixels, {knobs.channel_tile} vectors"

    def seconds(calls: int) -> float:
        return float(module.time_evaluator("main", tvm.cpu(), number=calls, repeat=1)(*tensors).mean)

    return seconds, tensors[-1].numpy()[0], tile


class Tile(ctypes.Structure):
    """``layer`` of avx2_kernels.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("image", "master", "weight", "bias", "window", "out")),
        *((name, ctypes.c_int32) for name in ("width", "pixels", "vectors", "runs", "length", "chunk")),
        *((name, ctypes.c_int32) for name in ("pixel_bytes", "row_bytes")),
    ]


class Convolution(ctypes.Structure):
    """``convolution`` of avx2_kernels.c."""

    _fields_ = [
        ("tile", Tile),
        *((name, ctypes.c_void_p) for name in ("input", "padded", "ready", "pixel_sums", "window_sums")),
        *((name, ctypes.c_int32) for name in ("rows", "columns", "border", "planes", "bytes")),
        *((name, ctypes.c_int32) for name in ("kernel", "kind", "band")),
    ]


def library() -> ctypes.CDLL:
    """avx2_kernels.c as gcc compiles it."""
    source = Path(__file__).with_suffix(".c")
    flags = ["-O3", "-mavx2", "-mfma", "-mpopcnt", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "avx2_kernels.so")
        subprocess.run(["gcc", *flags, str(source), "-o", output], check=True)
        loaded = ctypes.CDLL(output)
    loaded.seconds.restype = loaded.cycles_per_second.restype = ctypes.c_double
    return loaded


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on a cache line."""
    buffer = np.zeros(array.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    result = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def master_tables(bits: int) -> np.ndarray:
    """All tables [four bits of each plane][16]: bits that differ, or sums of the activations that an index selects."""
    words = np.arange(16**bits)[:, None, None]
    index, place = np.arange(16)[None, :, None], np.arange(4)
    code = sum((words >> 4 * plane + place & 1) << plane for plane in range(bits))
    chosen = index >> place & 1
    return ((chosen ^ code) if bits == 1 else chosen * code).sum(-1).astype(np.uint8)


class ByHand:
    """One kernel by hand on one case, and its buffers."""

    def __init__(self, code: ctypes.CDLL, case: Case, kind: int) -> None:
        layer, bits = case.layer, case.bits
        self.code, self.kind, self.pixels = code, kind, layer.rows * layer.columns
        self.sums_activations = bits > 1 or kind == TABLES
        packed = layer.in_channels // 8
        planes = 0 if kind == TABLES else bits
        image = case.codes.transpose(1, 2, 0) if kind == TABLES else case.planes()
        scale = {POPCOUNT: 1, OFFSETS: 4, TABLES: 32}[kind]
        rows, columns = layer.rows + 2 * layer.border, layer.columns + 2 * layer.border
        length = layer.kernel * packed
        most = MOST_BYTE // (8 * (2**bits - 1))
        buffers = {
            "input": image,
            "padded": np.zeros(rows * columns * (image.size // self.pixels), np.uint8),
            "ready": np.zeros(rows * columns * packed * scale, np.uint8),
            "pixel_sums": np.zeros(rows * columns, np.int32),
            "window_sums": np.zeros(self.pixels, np.int32),
            "weight": case.packed_weights(),
            "bias": case.bias - (case.set_weights() if bits == 1 and kind == TABLES else 0),
            "out": np.zeros((layer.rows, layer.columns, layer.out_channels), np.int32),
            "master": master_tables(bits) if kind == OFFSETS else np.zeros(16, np.uint8),
        }
        self.buffers = {name: aligned(np.ascontiguousarray(array)) for name, array in buffers.items()}
        at = {name: array.ctypes.data for name, array in self.buffers.items()}
        if not self.sums_activations:
            at["window_sums"] = None
        if kind == POPCOUNT:
            at["ready"] = at["padded"]
        tile = Tile(
            **{name: at[name] for name in ("master", "weight", "bias", "out")},
            image=at["ready"],
            window=at["window_sums"],
            width=layer.columns,
            pixels=self.pixels,
            vectors=layer.out_channels // 32,
            runs=layer.kernel,
            length=length,
            chunk=max(size for size in range(1, most + 1) if length % size == 0),
            pixel_bytes=packed * scale,
            row_bytes=packed * scale * columns,
        )
        self.call = Convolution(
            tile=tile,
            **{name: at[name] for name in ("input", "padded", "ready", "pixel_sums", "window_sums")},
            rows=layer.rows,
            columns=layer.columns,
            border=layer.border,
            planes=planes,
            bytes=image.shape[-1],
            kernel=layer.kernel,
            kind=kind,
            band=max(1, TABLE_BYTES // (packed * scale * columns) - 2 * layer.border),
        )

    def result(self, tile: tuple[int, int]) -> np.ndarray:
        """The sums [H, W, O]."""
        self.buffers["out"][...] = 0
        self.seconds(tile, True)(1)
        return self.buffers["out"].copy()

    def seconds(self, tile: tuple[int, int], with_preparation: bool) -> Seconds:
        kernel = getattr(self.code, "{}_{}x{}".format(KINDS[self.kind], *tile))
        return lambda calls: float(self.code.seconds(kernel, ctypes.byref(self.call), int(with_preparation), calls))

    def fastest(self, expected: np.ndarray) -> tuple[float, tuple[int, int]]:
        """The least time and the register tile that takes it; the results of all tiles must be right."""
        times = []
        for tile in TILES:
            if self.call.tile.vectors % tile[1] or tile[0] > self.pixels:
                continue
            if not np.array_equal(self.result(tile), expected):
                raise AssertionError(f"{KINDS[self.kind]} by hand with tile {tile} is wrong")
            run = self.seconds(tile, True)
            calls = max(1, int(BLOCK_SECONDS / 4 / run(1)))
            times.append((min(run(calls) for _ in range(5)), tile))
        return min(times)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and interquartile range in microseconds."""
    quartiles = statistics.quantiles(seconds, n=4)
    return {
        "median_us": round(1e6 * statistics.median(seconds), 3),
        "interquartile_range_us": round(1e6 * (quartiles[2] - quartiles[0]), 3),
    }


def compare(code: ctypes.CDLL, case: Case, rounds: int) -> dict[str, Any]:
    """All contestants on one layer with activations of some bits."""
    runs: dict[str, Seconds] = {}
    tiles: dict[str, str] = {}
    for name in ("bitserial", "bytes", "tables"):
        runs[name], result, tiles[name] = compiled(case, name)
        if not np.array_equal(result, case.sums(name != "bitserial")):
            raise AssertionError(f"{name} is wrong")
    kinds = {"tables by hand": [OFFSETS, TABLES] if case.bits <= 2 else [TABLES]}
    if case.bits == 1:
        kinds["popcount by hand"] = [POPCOUNT]
    for name, choices in kinds.items():
        hands = [ByHand(code, case, kind) for kind in choices]
        found = [hand.fastest(case.sums(False)) for hand in hands]
        (_, tile), hand = min(zip(found, hands, strict=True), key=lambda pair: pair[0])
        runs[name], tiles[name] = hand.seconds(tile, True), "{} pixels, {} vectors, {}".format(*tile, KINDS[hand.kind])
        if name == "tables by hand":
            runs["tables by hand, ready"] = hand.seconds(tile, False)
    counts = {name: max(1, int(BLOCK_SECONDS / run(2))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    clocks = []
    for index in range(rounds):
        clocks.append(code.cycles_per_second())
        for name in list(runs) if index % 2 else reversed(runs):
            times[name].append(runs[name](counts[name]))
    rows: dict[str, Any] = {name: {**summary(times[name]), "tile": tiles.get(name, "")} for name in runs}
    cycles = statistics.median(clocks)
    for row in rows.values():
        row["mac_per_cycle"] = round(case.layer.macs / (row["median_us"] * 1e-6 * cycles), 1)

    def ratio(first: str, second: str) -> float:
        pairs = zip(times[first], times[second], strict=True)
        return round(statistics.median(one / other for one, other in pairs), 3)

    ratios = {f"{rival} / tables by hand": ratio(rival, "tables by hand") for rival in ("bitserial", "bytes")}
    ratios |= {f"{rival} / tables": ratio(rival, "tables") for rival in ("bitserial", "bytes", "tables by hand")}
    if case.bits == 1:
        ratios["popcount by hand / bitserial"] = ratio("popcount by hand", "bitserial")
    return {"contestants": rows, "ratios": ratios, "clock_ghz": round(cycles / 1e9, 3)}


def main() -> None:
    """Measure and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4], help="bits of activations")
    parser.add_argument("--only", default="", help="measure the layers whose name contains this")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    code, results = library(), {}
    for layer in LAYERS:
        for bits in arguments.bits:
            if arguments.only not in layer.name:
                continue
            name = f"{layer.name}, w1a{bits}"
            results[name] = found = compare(code, Case.random(layer, bits), arguments.rounds)
            for contestant, row in found["contestants"].items():
                figures = f"{row['median_us']:10.2f} us {row['mac_per_cycle']:7.1f} MAC/cycle"
                print(f"{name:26s} {contestant:22s} {figures}  {row['tile']}")
            print(f"{name:26s} {found['ratios']}", flush=True)
    result = {
        "command": "python " + " ".join(sys.argv),
        "work": "one layer of one-bit weights, packed activations in, int32 sums out, one thread",
        "target": CORE.name,
        "rounds": arguments.rounds,
        "layers": results,
        "versions": {"tvmq": tvmq.__version__, "tvm": tvm.__version__},
        "processor": this_machine().core,
    }
    if arguments.output is None:
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    temporary.replace(arguments.output)


if __name__ == "__main__":
    main()
