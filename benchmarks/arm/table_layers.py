"""Lookups in tables beside bit planes and bytes: one layer of one-bit weights on an ARM core that is not at hand.

    python benchmarks/arm/table_layers.py --save
    python benchmarks/arm/table_layers.py --target raspberry-pi-4 --bits 4 --save

Every layer is compiled once for each kind of kernel, whatever the core's cost table prefers.  Its function pads the
image, makes the tables, sums the activations, and writes codes; all of that is counted: executed instructions under
qemu, and cycles in llvm-mca's model of the core, which knows no caches.  Outputs equal the golden executor's bit for
bit, or it stops.  Layers of the result that were measured before stay there where --only leaves them out.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass

import torch
from kernels import RESULTS, costs, network, write
from low_bit_networks import Recipe, pixels
from ours import run_ours

import tvmq
from tvmq.target import TABLE_KINDS, Target, get_target

KINDS = ("planes", "tables", "int8")
FASTEST = 1e6
"""Products per cycle of a kind that is to be chosen in any case."""
SLOWEST = 1e-3


@dataclass(frozen=True)
class Layer:
    """A convolution of a square image with zero padding of half its window."""

    size: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        stride = "" if self.stride == 1 else f"/{self.stride}"
        return f"{self.kernel}x{self.kernel}{stride} {self.size}x{self.size}, {self.inputs} to {self.outputs}"


LAYERS = (
    *(Layer(size, channels, channels) for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512))),
    Layer(56, 64, 256, kernel=1),
    Layer(14, 1024, 256, kernel=1),
    Layer(56, 64, 128, kernel=1, stride=2),
    Layer(1, 1024, 1024, kernel=1),  # what a dense layer is for one sample
)


def main() -> None:
    """Compile, count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="raspberry-pi-5", help="a 64-bit Raspberry Pi")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], help="of activations")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--save", action="store_true", help="write results/arm_table_layers_<target>.json")
    options = parser.parse_args()
    core = get_target(options.target)
    path = RESULTS / f"arm_table_layers_{core.name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["layers"] if options.only and path.exists() else {}
    for layer in (layer for layer in LAYERS if options.only in layer.name):
        for bits in options.bits:
            found = rows[f"{layer.name}, w1a{bits}"] = {}
            for kind in KINDS:
                row = found[kind] = measured(layer, bits, kind, core)
                print(
                    f"{layer.name:24} w1a{bits} {kind:6} {row['instructions'] / 1e6:8.3f} M instr "
                    f"{row['cycles'] / 1e6:7.3f} M cycles {row['macs_per_cycle']:6.1f} MAC/cycle",
                    flush=True,
                )
    if options.save:
        write(path, {"command": "python " + " ".join(sys.argv), "core": core.mcpu, "layers": rows})


def measured(layer: Layer, bits: int, kind: str, core: Target) -> dict:
    """What one layer costs with one kind of kernel."""
    module, x = one_pixel(layer, bits) if layer.size == 1 else image(layer, bits)
    run = run_ours(tvmq.load(module, (x,)), preferring(kind, core), x.numpy())
    (row,) = (row for row in costs(run, core)["functions"] if row["layers"])
    return {
        "macs": row["macs"],
        "instructions": row["instructions"],
        "cycles": row["cycles"],
        "macs_per_cycle": row["macs"] / row["cycles"],
    }


def image(layer: Layer, bits: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """The layer between two quantizers, and an input."""
    sizes = ("conv", str(layer.size), str(layer.inputs), str(layer.outputs))
    return network(argparse.Namespace(network=sizes, bits=f"w1a{bits}", kernel=layer.kernel, stride=layer.stride))


def one_pixel(layer: Layer, bits: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """The same without a normalization, which could not learn from one number."""
    torch.manual_seed(0)
    recipe = Recipe(bits, 1)
    net = torch.nn.Sequential(
        recipe.activation(), recipe.conv(layer.inputs, layer.outputs, layer.kernel), recipe.activation()
    )
    x = pixels((layer.inputs, 1, 1), 1) - 0.5
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x


def preferring(kind: str, core: Target) -> Target:
    """The core with a cost table by which one kind of kernel is always chosen."""
    speeds = {name: speed for name, speed in core.mac_per_cycle.items() if name not in TABLE_KINDS}
    speeds["int8"] = FASTEST if kind == "int8" else SLOWEST
    if kind == "tables":
        speeds |= dict.fromkeys(TABLE_KINDS, FASTEST)
    return dataclasses.replace(core, mac_per_cycle=speeds)


if __name__ == "__main__":
    main()
