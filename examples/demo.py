"""Compile a binary network for this machine and for a Raspberry Pi 4, run both, and compare them bit by bit.

The Raspberry Pi is emulated, so its results are real and its times are not.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

import tvmq

EXAMPLE = Path(__file__).resolve().parent / "mnist"
BOARD = "raspberry-pi-4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("mnist-binary.tvmq"), help="the file to write")
    output = parser.parse_args().output

    with np.load(EXAMPLE / "samples.npz") as samples:
        images, labels = samples["images"].astype(np.float32) / np.float32(255), samples["labels"]
    missing = missing_tools(tvmq.get_target(BOARD))
    targets = ["host"] if missing else ["host", BOARD]

    print(f"compiling mnist-binary.onnx for {' and '.join(targets)} ...", flush=True)
    model = tvmq.load(EXAMPLE / "mnist-binary.onnx")
    bundle = tvmq.compile(model, target=targets, check_inputs=[images[:1]])
    bundle.save(output)
    for target in targets:
        print(f"\n{bundle.report(target)}")

    (scores,) = bundle.run(images, target="host")
    timing = bundle.time(images[:1], target="host")
    print(f"\non this machine: {accuracy(scores, labels)}, {timing.median * 1e6:.0f} µs per image")
    if missing:
        print(f"\n{BOARD} was left out: {' and '.join(missing)} not installed; install with")
        print("    scripts/install-cross-tools.sh aarch64")
    else:
        compare_with_board(bundle, images, labels, scores)
    print(f"\nwrote {output}; look at it with: tvmq inspect {output}")


def compare_with_board(bundle: tvmq.Bundle, images: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
    """Run on the emulated board, and end the program if its results are not those of this machine."""
    print(f"running on an emulated {BOARD} (the first time, its runner is built: about a minute) ...", flush=True)
    (emulated,) = bundle.run_emulated(BOARD, images)
    print(f"on an emulated {BOARD}: {accuracy(emulated, labels)}")
    different = int(np.count_nonzero(emulated != scores))
    if different:
        raise SystemExit(f"{different} of {scores.size} scores differ between the two")
    print(f"all {scores.size} scores are equal, bit for bit")


def accuracy(scores: np.ndarray, labels: np.ndarray) -> str:
    correct = int(np.count_nonzero(scores.argmax(axis=1) == labels))
    return f"{correct} of {len(labels)} digits right"


def missing_tools(target: tvmq.Target) -> list[str]:
    return [tool for tool in (target.cross_compiler, target.qemu) if tool is not None and shutil.which(tool) is None]


if __name__ == "__main__":
    main()
