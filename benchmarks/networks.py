"""Whole low-bit networks against the float and int8 networks that one would deploy in their stead.

    python benchmarks/networks.py resnet18 w1a1
    python benchmarks/networks.py vgg_small w1a2 --stem binary --rounds 30

Ours runs ResNet-18 (224x224), VGG-small (32x32), an MLP of 784-4096-4096-4096-10 or four 3x3 convolutions in a row
(64 channels at 56x56, or 256 at 14x14, float images in and out) with random low-bit weights, and
must equal the golden executor bit for bit before anything is timed.  The rivals run the ordinary network of the same
sizes, with ReLUs and foldable batch norms, in onnxruntime fp32, int8 and (the MLP) with 2-bit weights, in OpenVINO int8
and in ncnn int8.  These are *different networks*: this compares speed, not accuracy.

All take turns in one process on one processor.  On a machine that does other things too, compare CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BITS = {"w1a1": (1, 1), "w1a2": (1, 2), "w2a2": (2, 2)}
"""Bits of weights and of activations."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="resnet18, vgg_small, mlp_1, mlp_256, stack_56 or stack_14")
    parser.add_argument("bits", choices=BITS)
    parser.add_argument(
        "--stem", choices=("int8", "binary", "float", "low-bit"), default="int8", help="weights of the first layer"
    )
    parser.add_argument("--head", choices=("int8", "binary", "float"), default="int8", help="weights of the last layer")
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rivals", default="auto")
    parser.add_argument("--save", type=Path, help="a .tvmq file to leave the compiled network in")
    parser.add_argument("--output", type=Path, help="JSON file [default: results/networks_<network>_<bits>.json]")
    return parser.parse_args()


def main() -> None:
    """Build, verify, measure, print the table and write the JSON file."""
    options = arguments()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, which only builds the networks
    from low_bit_networks import NETWORKS, Recipe, build, pixels, plain

    import tvmq

    if options.network not in NETWORKS:
        sys.exit(f"unknown network '{options.network}'; choose from {', '.join(NETWORKS)}")
    shape, batch = NETWORKS[options.network].shape, NETWORKS[options.network].batch
    x = pixels(shape, batch)
    weight_bits, activation_bits = BITS[options.bits]
    recipe = Recipe(activation_bits, weight_bits, options.stem, options.head)
    name = f"{options.network} {options.bits}, {recipe.stem} stem, {recipe.head} head"
    model = dataclasses.replace(tvmq.load(build(options.network, recipe), (x,)), name=name)
    bundle = tvmq.compile(model, options.target, check_inputs=[x.numpy()])
    differences = bundle.check(options.target)  # against Model.run
    if differences:
        sys.exit(f"{name}: {differences[0]}")
    if options.save is not None:
        bundle.save(options.save)
    report = tvmq.bench(
        bundle,
        target=options.target,
        threads=options.threads,
        rounds=options.rounds,
        rivals=options.rivals,
        rival_model=tvmq.load(plain(options.network), (x,)),
    )
    print(report)
    write(options, report.as_dict())


def write(options: argparse.Namespace, result: dict) -> None:
    """The result as JSON, completely or not at all."""
    usual = (options.stem, options.head) == ("int8", "int8")
    suffix = "" if usual else f"_{options.stem}_stem_{options.head}_head"
    path = options.output or RESULTS / f"networks_{options.network}_{options.bits}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
