"""Time of a step of LQ-Nets' quantization error minimization on 1.18 million weights, one core.

    OMP_NUM_THREADS=1 python benchmarks/quantization_error.py --output benchmarks/results/quantization_error.json

The weights are those of a 3×3 convolution from 256 to 512 channels.  A step finds the level of every weight, solves for
the best basis of each output channel and moves the average, as every step of training does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch

from tvmq.machine import this_machine
from tvmq.nn.lqnets import LearnedWeight

SHAPE = (512, 256, 3, 3)
ROUNDS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight = torch.randn(SHAPE) * 0.03
    rows = []
    for bits in (1, 2, 3, 4):
        quantizer = LearnedWeight(bits, weight)
        values = weight.flatten(1)
        quantizer.learn(values)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            quantizer.learn(values)
            seconds.append(time.perf_counter() - start)
        quartiles = statistics.quantiles(seconds, n=4)
        rows.append(
            {"bits": bits, "milliseconds": round(1e3 * quartiles[1], 3), "minimum": round(1e3 * min(seconds), 3)}
        )
        rows[-1]["quartiles"] = [round(1e3 * quartiles[0], 3), round(1e3 * quartiles[2], 3)]
        print(f"{bits} bits: {rows[-1]['milliseconds']:.2f} ms ({rows[-1]['minimum']:.2f} at best)")
    if options.output:
        command = shlex.join(["python", *sys.argv])
        result = {"command": command, "processor": this_machine().core, "torch": str(torch.__version__), "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
