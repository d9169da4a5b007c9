"""Our networks against the cheapest other engine on ARM cores that are not at hand, from results that are there.

    python benchmarks/arm/table.py

Reads what kernels.py and rivals.py wrote.  A ratio is the lowest of all rivals, by that measure, over ours: above 1,
ours is cheaper.  Instructions are counted; cycles are modelled without caches, memory or mispredicted branches.
Neither is time.
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
NETWORKS = ("stack_14", "vgg_small", "resnet18")
TARGETS = {"raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76"}
MEASURES = ("instructions", "cycles")
GOALS = {
    ("raspberry-pi-4", "w1a1"): ((3.5, 6.5), (2.6, 4.5), (2.4, 3.0)),
    ("raspberry-pi-4", "w1a2"): ((1.8, 3.4), (1.4, 2.4), (1.6, 2.2)),
    ("raspberry-pi-5", "w1a1"): ((2.0, 2.3), (1.5, 1.3), (1.8, 1.7)),
}
"""Ratios by instructions and by cycles that each network is meant to reach, in the order of the networks."""


def main() -> None:
    """Print a line for every result."""
    print(f"{'target':15} {'bits':4} {'network':10} {'measure':12} {'ours, M':>9} {'rival, M':>9}  ratio  goal  rival")
    for target, core in TARGETS.items():
        for bits in ("w1a1", "w1a2"):
            for index, network in enumerate(NETWORKS):
                for measure in MEASURES:
                    goals = GOALS.get((target, bits))
                    goal = goals[index][MEASURES.index(measure)] if goals else None
                    line = comparison(network, bits, target, core, measure)
                    if line is not None:
                        show(target, bits, network, measure, line, goal)


def comparison(network: str, bits: str, target: str, core: str, measure: str) -> tuple[float, float, str] | None:
    """What ours and the cheapest rival cost, and which that is; None where one of them was not measured."""
    ours = read(f"arm_kernels_{network}_{bits}_{target}.json")
    rivals = read(f"arm_rivals_{network}.json").get("cores", {}).get(core)
    if not ours or not rivals:
        return None
    cheapest = min(rivals, key=lambda name: rivals[name][measure])
    return ours[measure], rivals[cheapest][measure], cheapest


def show(
    target: str, bits: str, network: str, measure: str, line: tuple[float, float, str], goal: float | None
) -> None:
    """One line of the table."""
    ours, rival, name = line
    print(
        f"{target:15} {bits:4} {network:10} {measure:12} {ours / 1e6:9.2f} {rival / 1e6:9.2f} {rival / ours:6.2f} "
        f"{'' if goal is None else goal:>5}  {name}"
    )


def read(name: str) -> dict:
    """A result, empty if it is not there."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    main()
