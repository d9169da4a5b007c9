"""The shipped MNIST network on the full test set: accuracy as built, and equality with the golden executor.

    python benchmarks/mnist_exactness.py --data DIR --output benchmarks/results/mnist_exactness.json

DIR holds the original ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``.  Targets of this machine's
architecture run all images, others run ``--emulated`` images under qemu.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import tvm

import tvmq
from tvmq.machine import this_machine

NETWORK = Path(__file__).resolve().parent.parent / "examples" / "mnist" / "mnist-binary.onnx"
TARGETS = ["host", "x86-avx2", "x86-avx512", "x86-avx512-vpopcntdq", "raspberry-pi-4", "raspberry-pi-5"]
BATCH = 100


def idx(path: Path) -> np.ndarray:
    """An array in the idx format of the original files."""
    if not path.exists():
        raise SystemExit(f"{path} is missing; put the original MNIST test files there")
    data = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def scores(bundle: tvmq.Bundle, target: str, images: np.ndarray) -> np.ndarray:
    """Outputs of a built network, natively where that is possible."""
    core = tvmq.get_target(target)
    native = this_machine().obstacle(core.triple, core.required_cpu_flags) is None
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    if native:
        return np.concatenate([bundle.run(batch, target=target)[0] for batch in batches])
    return np.concatenate([bundle.run_emulated(target, batch)[0] for batch in batches])


def main() -> None:
    """Run and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the original test files")
    parser.add_argument("--emulated", type=int, default=500, help="images for targets that need qemu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    images = (idx(arguments.data / "t10k-images-idx3-ubyte.gz")[:, None] / np.float32(255)).astype(np.float32)
    labels = idx(arguments.data / "t10k-labels-idx1-ubyte.gz")

    model = tvmq.load(NETWORK)
    starts = range(0, len(images), BATCH)
    golden = np.concatenate([model.run(images[start : start + BATCH])[0] for start in starts])
    bundle = tvmq.compile(model, TARGETS)
    rows = {}
    for target in TARGETS:
        start = time.perf_counter()
        emulated = target.startswith("raspberry")
        count = arguments.emulated if emulated else len(images)
        outputs = scores(bundle, target, images[:count])
        rows[target] = {
            "images": count,
            "emulated": emulated,
            "differing_values": int(np.sum(outputs != golden[:count])),
            "accuracy": round(float(np.mean(outputs.argmax(1) == labels[:count])), 4),
        }
        print(f"{target}: {rows[target]} in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    result = {
        "command": "python " + " ".join(sys.argv),
        "network": "examples/mnist/mnist-binary.onnx",
        "golden_accuracy": round(float(np.mean(golden.argmax(1) == labels)), 4),
        "targets": rows,
        "versions": {"tvmq": tvmq.__version__, "tvm": tvm.__version__},
    }
    text = json.dumps(result, indent=2)
    if arguments.output is None:
        print(text)
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(arguments.output)


if __name__ == "__main__":
    main()
