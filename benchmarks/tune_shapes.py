"""Tune the kernels of well-known networks by their shapes, and check how good the search is.

    python benchmarks/tune_shapes.py --list
    python benchmarks/tune_shapes.py resnet18-w1a1 vgg-small-w1a1 --output schedules
    python benchmarks/tune_shapes.py --check "conv 3x3 14x14, 256 to 256, w1a1" --output benchmarks/results/tuning.json
    python benchmarks/tune_shapes.py resnet18-w1a1 --target raspberry-pi-4 --trials 24 --output schedules

The first form that has an output adds records to a folder, as ``tvmq tune`` does for the kernels of one network.  The
check tunes one kernel with few trials, then measures its whole space, and compares the two winners in turns.  Close
other programs; every trial is timed in turns with the analytic schedule, on as many threads as ``--cores`` says.

Other targets than the machine at hand are simulated, with the kernels of whole networks; other programs do not matter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

RESNET = ((56, 64), (28, 128), (14, 256), (7, 512))
"""Size of the image and channels of each stage of ResNet-18 and QuickNet."""
VGG_SMALL = ((32, 128, 128), (16, 128, 256), (16, 256, 256), (8, 256, 512), (8, 512, 512))
"""Size of the image, input and output channels of each binary layer."""
MOST_SAMPLES = 64
"""At once, of a network on a board."""
CHECK_TRIALS = 96
CHECK_ROUNDS = 81


def main() -> None:
    """Tune or check what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help="names of --list; default: all")
    parser.add_argument("--list", action="store_true", help="print the groups and their kernels")
    parser.add_argument("--check", metavar="KERNEL", help="a kernel of --list whose search is to be checked")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--target", default="host")
    parser.add_argument("--cores", type=int, help="default: 1, or as many as a target has that is simulated")
    parser.add_argument("--output", type=Path, help="folder of records, or the JSON file of --check")
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.cores or 1)

    core, groups = kernels(options)
    names = options.groups or list(groups)
    unknown = [name for name in names if name not in groups]
    if unknown:
        sys.exit(f"unknown group '{unknown[0]}'; there are {', '.join(groups)}")
    tasks = {name: list(groups[name]()) for name in names}
    if options.list:
        for name in names:
            print(name, *(f"{task.title}: {task.key.details['epilogue']}" for task in tasks[name]), sep="\n    ")
    elif options.check:
        check(options.check, [task for name in names for task in tasks[name]], core, options.output)
    else:
        tune(core, tasks, options)


def kernels(options: argparse.Namespace):
    """The core, and what gives the kernels of every group."""
    from tvmq.target import get_target

    core = get_target(options.target)
    if options.target == "host" or options.cores is not None:
        core = dataclasses.replace(core, cores=options.cores or 1)
    if options.target == "host":
        return core, {name: partial(iter, tasks) for name, tasks in shapes(core).items()}
    from low_bit_networks import NETWORKS

    names = {f"{name.replace('_', '-')}-w1a{bits}": (name, bits) for name in NETWORKS for bits in (1, 2)}
    groups = {name: partial(network, core, *arguments) for name, arguments in names.items()}
    return core, {**groups, "mnist": partial(example, core)}


def network(core, name: str, bits: int) -> list:
    """The kernels of a network of binary weights."""
    from low_bit_networks import NETWORKS, Recipe, build, pixels

    import tvmq
    from tvmq.tuning.tasks import network_tasks

    inputs = pixels(NETWORKS[name].shape, min(NETWORKS[name].batch, MOST_SAMPLES))
    return network_tasks(tvmq.load(build(name, Recipe(bits)), (inputs,)), core)


def example(core) -> list:
    """The kernels of examples/mnist."""
    import tvmq
    from tvmq.tuning.tasks import network_tasks

    path = Path(__file__).parents[1] / "examples" / "mnist" / "mnist-binary.onnx"
    return network_tasks(tvmq.load(path), core)


def shapes(core) -> dict:
    """Groups of kernels by their shapes."""
    groups = {}
    for bits in (1, 2):
        groups[f"resnet18-w1a{bits}"] = list(resnet18(core, bits))
        groups[f"quicknet-w1a{bits}"] = [
            task(core, size, channels, channels, bits, "shortcut, codes") for size, channels in RESNET
        ]
        groups[f"vgg-small-w1a{bits}"] = [task(core, *shape, bits, "codes") for shape in VGG_SMALL]
    groups["stems"] = list(stems(core))
    groups["mlp"] = [
        dense(core, samples, inputs, 4096, bits) for samples in (1, 256) for inputs, bits in ((784, 8), (4096, 1))
    ]
    return groups


def resnet18(core, bits: int) -> Iterator:
    """Convolutions between stages, within them, and of shortcuts, in the forms that networks give them."""
    for size, channels in RESNET:
        for epilogue in ("codes", "shortcut"):
            yield task(core, size, channels, channels, bits, epilogue)
    for size, channels in RESNET[:-1]:
        for epilogue in ("codes", "affine"):
            yield task(core, size, channels, 2 * channels, bits, epilogue, stride=2)
        yield task(core, size, channels, 2 * channels, bits, "shortcut", stride=2, kernel=1)


def stems(core) -> Iterator:
    """First layers of ResNet-18, whose result is a shortcut as well, and of VGG-small, of bytes times bytes."""
    for bits in (1, 2):
        for size, outputs, stride, kernel, epilogue in ((224, 64, 2, 7, "codes, store"), (32, 128, 1, 3, "codes")):
            low_bit = workload_of(task(core, size, 3, outputs, bits, epilogue, stride, kernel))
            yield convolution(core, of_bytes(core, low_bit, gathered=True))


def task(core, size: int, inputs: int, outputs: int, bits: int, epilogue: str, stride: int = 1, kernel: int = 3):
    """A convolution of binary weights, by lookups where the core's cost table prefers them."""
    from tvmq.transform.kernel_choice import rates

    padding = (kernel // 2,) * 4
    geometry = {"height": size, "width": size, "kernel": (kernel, kernel), "padding": padding}
    work = workload(core, inputs, outputs, bits, epilogue, strides=(stride, stride), **geometry)
    speed = rates(core, inputs, kernel**2, 1, bits, 0, outputs)
    return convolution(core, of_tables(work) if speed.table > max(speed.planes, speed.bytes) else work)


def dense(core, samples: int, inputs: int, outputs: int, bits: int):
    """A dense layer over some samples: of binary weights, or of bytes where activations have 8 bits."""
    geometry = {"height": 1, "width": 1, "kernel": (1, 1), "padding": (0,) * 4, "strides": (1, 1)}
    work = workload(core, inputs, outputs, bits, "codes", **geometry)
    return convolution(core, of_bytes(core, work, gathered=False) if bits == 8 else work, samples)


def of_bytes(core, work, gathered: bool):
    """The workload with products of bytes."""
    from tvmq.kernels.workload import Dot

    operands = Dot(activation_bits=8, weight_bits=8, pair_bound=2 * 255 * 127, gathered=gathered)
    planes = {"activation_planes": 1, "plane_class": ((0,),), "activation_multiplier": (0,), "class_multiplier": (1,)}
    return dataclasses.replace(work, combine="dot", lanes=core.dot_lanes, dot=operands, **planes)


def of_tables(work):
    """The workload with lookups in tables, for a next layer that has them too."""
    from tvmq.kernels.workload import Table, Thresholds

    window = work.kernel[0] * work.kernel[1] * work.in_channels
    table = Table(work.activation_planes, window * (2**work.activation_planes - 1))
    planes = {"activation_planes": 1, "plane_class": ((0,),), "activation_multiplier": (-1,), "class_multiplier": (2,)}
    epilogue = work.epilogue
    if isinstance(epilogue, Thresholds):
        epilogue = dataclasses.replace(epilogue, form="bytes")
    elif work.thresholds is not None:
        epilogue = dataclasses.replace(epilogue, thresholds=dataclasses.replace(work.thresholds, form="bytes"))
    return dataclasses.replace(work, combine="table", table=table, epilogue=epilogue, **planes)


def convolution(core, work, width: int | None = None):
    """What there is to tune about a workload."""
    from tvmq.kernels.conv2d import conv2d
    from tvmq.kernels.knobs import KINDS
    from tvmq.tuning.tasks import Task

    return Task(conv2d(work, 1, width), KINDS["conv2d"], core)


def workload_of(item):
    """The workload of a task."""
    from tvmq.kernels.conv2d import WORKLOAD_ATTRIBUTE
    from tvmq.kernels.workload import Conv2dWorkload

    return Conv2dWorkload.from_json(str(item.function.attrs[WORKLOAD_ATTRIBUTE]))


def workload(core, inputs: int, outputs: int, bits: int, epilogue: str, **geometry):
    """A convolution of +1 and -1 with `bits` planes of activations; "codes" have as many planes, at most two."""
    from tvmq.kernels.workload import Affine, Conv2dWorkload, Float, Thresholds

    planes = min(bits, 2)
    codes = Thresholds(2**planes - 1, tuple(range(2**planes)), planes)
    if bits > 2:  # the first layer of a binary network
        codes = Thresholds(1, (0, 1), 1)
    epilogues = {
        "codes": codes,
        "affine": Affine(),
        "shortcut": Float("affine", shortcut=True, store=True, thresholds=None),
        "codes, store": Float("affine", shortcut=False, store=True, thresholds=codes),
        "shortcut, codes": Float("affine", shortcut=True, store=True, thresholds=codes),
    }
    return Conv2dWorkload(
        in_channels=inputs,
        out_channels=outputs,
        dilation=(1, 1),
        activation_planes=bits,
        weight_planes=1,
        combine="xor",
        plane_class=tuple((plane,) for plane in range(bits)),
        class_multiplier=tuple(-(2**plane) for plane in range(bits)),
        activation_multiplier=(0,) * bits,
        row_classes=1,
        col_classes=1,
        word_bits=core.word_bits,
        lanes=core.lanes,
        epilogue=epilogues[epilogue],
        **geometry,
    )


def tune(core, groups: dict, options: argparse.Namespace) -> None:
    """Tune the groups in their order: one kernel after another, or a whole network where costs are simulated."""
    from tvmq.tuning import tune_kernels
    from tvmq.tuning.places import host_of

    is_here = options.target == "host"
    host = host_of("host" if is_here else "simulate", core)
    for name, tasks in groups.items():
        for items in [[item] for item in tasks] if is_here else [tasks]:
            started = time.monotonic()
            result = tune_kernels(items, core, trials=options.trials, host=host, output=options.output)
            note = "" if all(kernel.known for kernel in result.kernels) else f" in {time.monotonic() - started:.0f} s"
            if is_here:
                (kernel,) = result.kernels
                line = str(result).splitlines()[2]
                print(f"{name}: {line} (spread {kernel.record.spread:.3f}){note}", flush=True)
            else:
                print(f"{name}{note}", result, sep="\n", flush=True)


def check(title: str, tasks: list, core, output: Path | None) -> None:
    """Compare what few trials find with the best of all points."""
    from tvmq.tuning.hosts import LocalHost
    from tvmq.tuning.journal import Journal
    from tvmq.tuning.search import Search

    item = next((item for item in tasks if item.title == title), None)
    if item is None:
        sys.exit(f"no kernel '{title}'; --list prints them")
    with tempfile.TemporaryDirectory() as folder:
        search = Search(item, LocalHost(core), Journal(Path(folder), "check", {}))
        started = time.monotonic()
        search.run(CHECK_TRIALS)
        found = search.finals()
        seconds = time.monotonic() - started
        few = search.finalists(1)[0]
        search.run(len(search.points))
        best = search.finals()
        all_points = search.finalists(8)
    winner = found[0] if found is not None else search.points[0]
    rivals = [best[0] if best is not None else search.points[0], *all_points]
    times = Search(item, LocalHost(core), Journal(Path(folder), "final", {}), default=winner)
    ratios = [paired.ratio for paired in times.measure(rivals, CHECK_ROUNDS) if not isinstance(paired, str)]
    result = {
        "command": "python " + " ".join(sys.argv),
        "kernel": title,
        "points": len(search.points),
        "trials": CHECK_TRIALS,
        "seconds": round(seconds, 1),
        "found": winner,
        "found_before_finals": few,
        "speedup_over_default": 1.0 if found is None else round(1 / found[1].ratio, 4),
        "best_of_all_points": rivals[0],
        "time_of_best_over_found": round(min(ratios), 4),
    }
    print(json.dumps(result, indent=2))
    if output is not None:
        temporary = output.with_suffix(".part")
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        temporary.replace(output)


if __name__ == "__main__":
    main()
