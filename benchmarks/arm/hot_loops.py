"""Binary multiply-accumulates per cycle of the loops that reduce a binary convolution, in llvm-mca's models.

    python benchmarks/arm/hot_loops.py
    python benchmarks/arm/hot_loops.py raspberry-pi-3 --bits w1a2 --save

The convolution is kernels.py's "conv 14 256 256": 3x3, 256 to 256 channels, 14x14.  It runs under qemu, which counts
its blocks and must give the golden executor's output.  A loop are the instructions from where a branch goes back to up
to that branch, if no other such branch is in between.  Of every loop with popcounts of 128 bits that ran, llvm-mca
models its body alone, round after round: a round costs (T(n2) - T(n1)) / (n2 - n1) cycles, for 100 and 200 rounds.  The
rate is that of all those loops together, each as often as it ran.  It knows no caches.

Larq Compute Engine's figures are its assembly's inner loop in the same models: 4096 products in 111 instructions,
T(100) / 100, which is also printed for ours.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import re
import sys
from collections import defaultdict
from dataclasses import dataclass

from blocks import INSTRUCTION_BYTES, Block
from cycles import block_cycles, disassemble
from functions import Code
from kernels import BITS, MACS, RESULTS, network, write
from ours import OwnRun, run_ours

import tvmq
from tvmq.target import Target, get_target

SHAPE = ("conv", "14", "256", "256")
TARGETS = ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5")
LARQ = {"cortex-a53": 30.8, "cortex-a72": 85.2, "cortex-a76": 85.2}
"""Products per cycle."""
ROUNDS = (100, 200)
_BACK = re.compile(r"(?:b\.\w+|cbn?z \w+,|tbn?z \w+, #\d+,|b) #-(\d+)")


@dataclass(frozen=True)
class Loop:
    """Instructions that run round after round.

    Attributes
    ----------
    body : Block
    rounds : float
        How often they ran.
    products : int
        Of bits, in one round.
    """

    body: Block
    rounds: float
    products: int


def main() -> None:
    """Compile, count, model, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=TARGETS, help="64-bit Raspberry Pis")
    parser.add_argument("--bits", choices=BITS, default="w1a1")
    parser.add_argument("--save", action="store_true", help="write results/arm_hot_loops_<bits>.json")
    options = parser.parse_args()
    results = {name: measured(get_target(name), options.bits) for name in options.targets}
    if options.save:
        write(
            RESULTS / f"arm_hot_loops_{options.bits}.json",
            {"command": "python " + " ".join(sys.argv), "cores": results},
        )


def measured(core: Target, bits: str) -> dict:
    """The loops of one core, printed."""
    options = argparse.Namespace(network=SHAPE, bits=bits, kernel=3, stride=1)
    module, x = network(options)
    run = run_ours(tvmq.load(module, (x,)), core, x.numpy())
    found, products = reducing_loops(run)
    few, many = (block_cycles([loop.body for loop in found], core.mcpu, rounds) for rounds in ROUNDS)
    rows = []
    for loop in found:
        totals = [rounds * cycles[loop.body] for rounds, cycles in zip(ROUNDS, (few, many), strict=True)]
        rows.append(
            {
                "instructions": loop.body.size,
                "products": loop.products,
                "rounds": loop.rounds,
                "cycles": (totals[1] - totals[0]) / (ROUNDS[1] - ROUNDS[0]),
                "cycles_of_100_rounds": totals[0],
            }
        )
    rate = _rate(rows, "cycles", 1)
    report = {
        "core": core.mcpu,
        "share_of_products": sum(row["products"] * row["rounds"] for row in rows) / products,
        "products_per_cycle": rate,
        "products_per_cycle_of_100_rounds": _rate(rows, "cycles_of_100_rounds", ROUNDS[0]),
        "larq_products_per_cycle_of_100_rounds": LARQ[core.mcpu],
        "loops": rows,
    }
    show(core.name, report)
    return report


def _rate(rows: list[dict], cycles: str, rounds: int) -> float:
    counted = sum(row["products"] * row["rounds"] for row in rows)
    return counted / sum(row[cycles] / rounds * row["rounds"] for row in rows)


def reducing_loops(run: OwnRun) -> tuple[list[Loop], float]:
    """Innermost loops with popcounts of 128 bits, most rounds first; and all products of bits of the library."""
    blocks = {block: count for block, count in run.total.items() if count > 0}
    texts = disassemble(list(blocks))
    products = sum(count * _products(texts[block]) for block, count in blocks.items())
    rounds: dict[tuple[int, int], float] = defaultdict(float)
    for block, count in blocks.items():
        branch, address = _BACK.fullmatch(texts[block][-1]), run.code.find(block)
        if branch is not None and address is not None:
            end = address + len(block.code)
            rounds[end - INSTRUCTION_BYTES - int(branch[1]), end] += count
    found = [
        _loop(run.code, start, end, count)
        for (start, end), count in rounds.items()
        if not any(start <= other and last <= end for other, last in rounds if (other, last) != (start, end))
    ]
    found = [loop for loop in found if loop.products]
    return sorted(found, key=lambda loop: loop.rounds, reverse=True), products


def _loop(code: Code, start: int, end: int, count: float) -> Loop:
    body = code.block(start, end)
    return Loop(body, count, _products(disassemble([body])[body]))


def _products(lines: list[str]) -> int:
    return MACS * sum(line.startswith("cnt ") and ".16b" in line for line in lines)


def show(name: str, report: dict) -> None:
    """The loops and their rate."""
    print(f"{name}, {report['core']}: {report['share_of_products']:.1%} of all products of bits are in these loops")
    for row in report["loops"]:
        print(
            f"  {row['rounds']:9.0f} x {row['instructions']} instructions, {row['products']} products, "
            f"{MACS * row['instructions'] / row['products']:.3f} instructions per {MACS}, {row['cycles']:.2f} cycles: "
            f"{row['products'] / row['cycles']:.2f} per cycle"
        )
    print(
        f"  {report['products_per_cycle']:.2f} per cycle; of 100 rounds "
        f"{report['products_per_cycle_of_100_rounds']:.2f}, Larq {report['larq_products_per_cycle_of_100_rounds']}"
    )


if __name__ == "__main__":
    main()
