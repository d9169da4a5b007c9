"""Does the error of GPFQ fall with the width of a layer as the theory says?

    python benchmarks/gpfq_theory.py --output benchmarks/results/gpfq_theory.json \\
        --figure benchmarks/results/gpfq_theory.png

Lybrand and Saab (2021) prove that for Gaussian data the relative error ``||X w - X q|| / ||X w||`` of a first layer
with N inputs and m samples falls like ``sqrt(m / N)`` up to logarithms, while that of rounding every weight to the
nearest letter (MSQ) does not depend on N.  Here X is Gaussian, w uniform in [-1, 1], the letters are equispaced in
[-1, 1]; the error is the median over the neurons, and over the repetitions.  The slopes are those of straight lines
through the logarithms of the errors for ``N >= 4 m``.  The picture needs matplotlib, everything else only numpy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.methods.alphabets import equispaced_alphabet
from tvmq.methods.gpfq import quantize_weights, scalar_quantize

ALPHABETS = {"ternary": 3, "2 bits": 4, "3 bits": 8, "4 bits": 16}
EXPECTED = {"GPFQ": -0.5, "MSQ": 0.0}
TOLERANCE = 0.03


def errors(samples: int, width: int, arguments: argparse.Namespace, repetition: int) -> dict[str, dict[str, float]]:
    """Median relative error of every alphabet, by GPFQ and by rounding."""
    rng = np.random.default_rng([arguments.seed, samples, width, repetition])
    inputs = rng.normal(size=(samples, width))
    weight = rng.uniform(-1, 1, (width, arguments.neurons))
    output = np.linalg.norm(inputs @ weight, axis=0)
    found = {}
    for name, levels in ALPHABETS.items():
        letters = equispaced_alphabet(levels, 1.0)
        rounded = np.linalg.norm(inputs @ (weight - scalar_quantize(weight, letters)[0]), axis=0) / output
        walked = quantize_weights(weight, inputs, alphabet=letters).relative_errors
        found[name] = {"GPFQ": float(np.median(walked)), "MSQ": float(np.median(rounded))}
    return found


def curves(samples: int, widths: list[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """For one m: a curve per alphabet and method, with its slope."""
    table = [
        [errors(samples, width, arguments, repetition) for repetition in range(arguments.repetitions)]
        for width in widths
    ]
    steep = [i for i, width in enumerate(widths) if width >= 4 * samples]
    rows = []
    for alphabet in ALPHABETS:
        for method, expected in EXPECTED.items():
            values = [float(np.median([found[alphabet][method] for found in row])) for row in table]
            slope = float(np.polyfit(np.log([widths[i] for i in steep]), np.log([values[i] for i in steep]), 1)[0])
            rows.append(
                {
                    "samples": samples,
                    "alphabet": alphabet,
                    "method": method,
                    "relative_error": {
                        str(width): round(value, 6) for width, value in zip(widths, values, strict=True)
                    },
                    "slope": round(slope, 4),
                    "expected_slope": expected,
                    "within_tolerance": abs(slope - expected) <= TOLERANCE,
                }
            )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel per m; lines for GPFQ, dashes for MSQ, a dotted line of slope -1/2."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    all_samples = sorted({row["samples"] for row in rows})
    figure, axes = pyplot.subplots(1, len(all_samples), figsize=(4.2 * len(all_samples), 4), sharey=True, squeeze=False)
    for axis, samples in zip(axes[0], all_samples, strict=True):
        for row in (row for row in rows if row["samples"] == samples):
            widths = [int(width) for width in row["relative_error"]]
            axis.loglog(
                widths,
                list(row["relative_error"].values()),
                "o-" if row["method"] == "GPFQ" else "--",
                color=f"C{list(ALPHABETS).index(row['alphabet'])}",
                markersize=3,
                label=row["alphabet"] if row["method"] == "GPFQ" else None,
            )
        far = np.array([w for w in widths if w >= 4 * samples])
        axis.loglog(far, 0.7 * np.sqrt(samples / far), "k:", label="slope −1/2")
        axis.set_title(f"m = {samples} samples")
        axis.set_xlabel("inputs N")
    axes[0][0].set_ylabel("relative error (MSQ dashed)")
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--widths", type=int, nargs="+", default=[2**i for i in range(6, 14)])
    parser.add_argument("--neurons", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()

    began = time.perf_counter()
    rows = []
    for samples in arguments.samples:
        rows += curves(samples, sorted(arguments.widths), arguments)
        for row in rows[-2 * len(ALPHABETS) :]:
            print(f"m = {samples:4d}  {row['alphabet']:8s} {row['method']:5s} slope {row['slope']:+.3f}", flush=True)
    result = {
        "what": "median relative error of one layer, Gaussian inputs, uniform weights; slopes for N >= 4 m",
        "neurons": arguments.neurons,
        "repetitions": arguments.repetitions,
        "seed": arguments.seed,
        "tolerance": TOLERANCE,
        "all_within_tolerance": all(row["within_tolerance"] for row in rows),
        "seconds": round(time.perf_counter() - began, 1),
        "curves": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.figure:
        draw(rows, arguments.figure)
    print(f"all within {TOLERANCE}: {result['all_within_tolerance']}")


if __name__ == "__main__":
    main()
