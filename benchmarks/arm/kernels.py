"""What the kernels of a low-bit network cost on an ARM core that is not at hand, function by function.

    python benchmarks/arm/kernels.py stack_14 w1a1 --target raspberry-pi-4
    python benchmarks/arm/kernels.py conv 14 256 256 w1a1 --target raspberry-pi-5 --loops 3
    python benchmarks/arm/kernels.py resnet18 w1a2 --save

Either a network of networks.py, or one convolution with its size, input and output channels (3x3, stride 1, padding 1;
--kernel and --stride change that) between two quantizers, as in the middle of a network.  Counts executed instructions
under qemu, and of 64-bit targets cycles in llvm-mca's model of the core.  Outputs equal the golden executor's bit for
bit, or it stops.
--loops prints the hottest blocks of the dear functions; "products of bits" are 128 per cnt, so w1a2 has twice its MACs.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from blocks import Block, instructions
from cycles import block_cycles, disassemble, modelled_cycles
from low_bit_networks import NETWORKS, Recipe, build, pixels
from ours import OwnRun, run_ours

import tvmq
from tvmq.target import Target, get_target

RESULTS = Path(__file__).parents[1] / "results"
BITS = {"w1a1": (1, 1), "w1a2": (1, 2), "w1a3": (1, 3), "w1a4": (1, 4), "w2a2": (2, 2)}
"""Bits of weights and of activations."""
MACS = 128
"""What costs are given per: the bits of a register."""
LEAST_SHARE = 0.05
"""Functions below this share of all instructions are printed without their loops."""
UNMODELLED = "llvm-mca has no model of this core with 32-bit instructions"


def main() -> None:
    """Compile, count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="+", help=f"{', '.join(NETWORKS)}; or conv SIZE INPUTS OUTPUTS")
    parser.add_argument("bits", choices=BITS)
    parser.add_argument("--kernel", type=int, default=3, help="size of the window of conv")
    parser.add_argument("--stride", type=int, default=1, help="of conv")
    parser.add_argument("--target", default="raspberry-pi-4", help="a Raspberry Pi")
    parser.add_argument("--loops", type=int, default=0, help="hottest loops to print of each function")
    parser.add_argument("--save", action="store_true", help="write results/arm_kernels_<network>_<bits>_<target>.json")
    options = parser.parse_args()

    core = get_target(options.target)
    if options.loops and not is_modelled(core):
        parser.error(f"--loops: {UNMODELLED}")
    module, x = network(options)
    run = run_ours(tvmq.load(module, (x,)), core, x.numpy())
    report = costs(run, core)
    show(report)
    for row in report["functions"] if options.loops else ():
        if row["instructions"] >= LEAST_SHARE * report["instructions"]:
            loops(row["function"], run.counts[row["function"]], core, options.loops)
    if options.save:
        path = RESULTS / f"arm_kernels_{'_'.join(options.network)}_{options.bits}_{core.name}.json"
        write(path, {"command": "python " + " ".join(sys.argv), "target": core.name, **report})


def network(options: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network, and an input."""
    weight_bits, activation_bits = BITS[options.bits]
    recipe = Recipe(activation_bits, weight_bits)
    name, *sizes = options.network
    if name != "conv" and name in NETWORKS and not sizes:
        return build(name, recipe), pixels(NETWORKS[name].shape, NETWORKS[name].batch)
    if name != "conv" or len(sizes) != 3:
        sys.exit(f"give one of {', '.join(NETWORKS)}; or conv SIZE INPUTS OUTPUTS")
    size, inputs, outputs = map(int, sizes)
    torch.manual_seed(0)
    convolution = recipe.conv(inputs, outputs, options.kernel, stride=options.stride, padding=options.kernel // 2)
    norm = torch.nn.BatchNorm2d(outputs, momentum=1.0)
    net = torch.nn.Sequential(recipe.activation(), convolution, norm, recipe.activation())
    x = pixels((inputs, size, size), 1) - 0.5
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x


def costs(run: OwnRun, core: Target) -> dict:
    """Instructions and cycles of every function, dearest first, and of all; cycles are None where there is no model."""
    layers = defaultdict(list)
    for layer in run.layers:
        layers[layer.function].append(layer)
    functions = [
        {
            "function": name,
            "layers": [layer.name for layer in layers[name]],
            "macs": sum(layer.macs for layer in layers[name]),
            "instructions": round(instructions(counts)),
            "cycles": round(modelled_cycles(counts, core.mcpu)) if is_modelled(core) else None,
        }
        for name, counts in run.counts.items()
        if round(instructions(counts)) > 0
    ]
    functions.sort(key=lambda row: row["cycles"] or row["instructions"], reverse=True)
    return {
        "macs": sum(row["macs"] for row in functions),
        "instructions": sum(row["instructions"] for row in functions),
        "cycles": sum(row["cycles"] for row in functions) if is_modelled(core) else None,
        **({} if is_modelled(core) else {"no_cycles": UNMODELLED}),
        "functions": functions,
    }


def is_modelled(core: Target) -> bool:
    """Whether llvm-mca has a model of the core."""
    return core.arch == "aarch64"


def show(report: dict) -> None:
    """The table."""
    print(f"{'function':56} {'layers':>6} {'M MAC':>8} {'M instr':>9} {'/128 MAC':>8} {'M cycles':>9} {'MAC/cycle':>9}")
    for row in [*report["functions"], {"function": "all", "layers": [], **report}]:
        per_register = MACS * row["instructions"] / row["macs"] if row["macs"] else None
        cycles = row["cycles"]
        rate = row["macs"] / cycles if row["macs"] and cycles else None
        print(
            f"{row['function'][:56]:56} {len(row['layers']) or '':>6} {row['macs'] / 1e6 or 0:8.2f} "
            f"{row['instructions'] / 1e6:9.3f} {'' if per_register is None else f'{per_register:.2f}':>8} "
            f"{'' if cycles is None else f'{cycles / 1e6:.3f}':>9} {'' if rate is None else f'{rate:.1f}':>9}"
        )
    if "no_cycles" in report:
        print(report["no_cycles"])


def loops(name: str, counts: dict[Block, float], core: Target, most: int) -> None:
    """The blocks of a function that run most, with their code."""
    total = instructions(counts)
    hottest = sorted(counts, key=lambda block: counts[block] * block.size, reverse=True)[:most]
    cycles, texts = block_cycles(hottest, core.mcpu), disassemble(hottest)
    for block in hottest:
        share = counts[block] * block.size / total
        print(f"\n{name}: {share:.0%} of it, {counts[block]:.0f} x {block.size} instructions, ", end="")
        print(f"{cycles.get(block, float('nan')):.1f} cycles", end="")
        counted = sum(line.startswith("cnt ") and ".16b" in line for line in texts[block])
        print(f", {counted * MACS / cycles[block]:.1f} products of bits per cycle" if counted else "")
        print(*(f"    {line}" for line in texts[block]), sep="\n")


def write(path: Path, result: dict) -> None:
    """The result as JSON, completely or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
