"""What other engines execute for the ordinary network of the same sizes, on ARM cores that are not at hand.

    python benchmarks/arm/rivals.py stack_14
    python benchmarks/arm/rivals.py resnet18 --cores cortex-a76 --only ncnn

The networks are those of networks.py with ReLUs and folded batch norms, in float and int8.  Counts executed
instructions of one run under qemu, one thread, and cycles in llvm-mca's model of the core; engines choose their kernels
by the core's features, as on a board.  Outputs are compared with the float network in onnxruntime here.  Results are
added to those that the file has already, so that an engine can be measured again alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import emulated_python
import numpy as np
import onnx
import onnxruntime
from blocks import count_blocks, instructions, per_run
from cycles import MODELS, modelled_cycles
from low_bit_networks import NETWORKS, pixels, plain
from ncnn_float import to_ncnn_float

import tvmq
from tvmq.rivals.calibration import largest_magnitudes
from tvmq.rivals.export import to_onnx
from tvmq.rivals.int8 import quantize_int8
from tvmq.rivals.ncnn_int8 import DIRECT, WINOGRAD_23, WINOGRAD_43, NcnnNetwork, to_ncnn

RESULTS = Path(__file__).parents[1] / "results"
GUEST = Path(__file__).with_name("guest.py")
SAMPLES = 3
RUNS = 3
"""How many runs more the longer of two programs does."""
FLOAT16 = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")


@dataclass(frozen=True)
class Rival:
    """An engine with a network.

    Attributes
    ----------
    name : str
    network : dict
        What guest.py reads.
    cores : tuple of str
        Where it is measured.
    """

    name: str
    network: dict
    cores: tuple[str, ...] = field(default=tuple(MODELS))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[name for name in NETWORKS if name != "mlp_256"])
    parser.add_argument("--cores", nargs="+", choices=MODELS, default=["cortex-a72", "cortex-a76"])
    parser.add_argument("--only", default="", help="rivals whose names begin with this")
    parser.add_argument("--output", type=Path, help="JSON file [default: results/arm_rivals_<network>.json]")
    options = parser.parse_args()
    output = options.output or RESULTS / f"arm_rivals_{options.network}.json"

    x = pixels(NETWORKS[options.network].shape, NETWORKS[options.network].batch)
    float_network = to_onnx(tvmq.load(plain(options.network), (x,)))
    with tempfile.TemporaryDirectory(prefix="tvmq-") as name:
        folder = Path(name)
        np.save(folder / "input.npy", x.numpy())
        expected = reference(float_network, x.numpy())
        for rival in rivals(options.network, float_network, folder):
            for core in options.cores:
                if rival.name.startswith(options.only) and core in rival.cores:
                    add(output, options.network, core, rival.name, measure(rival, core, folder, expected))


def reference(network: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The output of the float network."""
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def rivals(name: str, network: onnx.ModelProto, folder: Path) -> Iterator[Rival]:
    """All engines with their files."""
    (entry,) = (item.name for item in network.graph.input)
    samples = [{entry: pixels(NETWORKS[name].shape, 1, seed).numpy()} for seed in range(1, 1 + SAMPLES)]
    yield from ncnn_rivals(network, largest_magnitudes(network, samples), folder)
    for kind, graph in (("int8", quantize_int8(network, samples, signed=True)), ("fp32", network)):
        path = folder / f"{kind}.onnx"
        onnx.save(graph, path)
        yield Rival(f"onnxruntime {kind}", {"engine": "onnxruntime", "model": str(path)})
    for kind, precision, cores in (("fp32", "high", tuple(MODELS)), ("fp16", "low", ("cortex-a76",))):
        files = {"source": str(folder / "fp32.onnx"), "model": str(folder / "fp32.mnn")}
        yield Rival(f"MNN {kind}", {"engine": "mnn", **files, "precision": precision}, cores)


def ncnn_rivals(network: onnx.ModelProto, magnitudes: dict[str, float], folder: Path) -> Iterator[Rival]:
    """Every way in which ncnn computes the network."""
    int8 = to_ncnn(network, magnitudes)
    for kind, weights in int8.kinds.items():
        options = {
            "use_winograd_convolution": kind != DIRECT,
            "use_winograd23_convolution": kind == WINOGRAD_23,
            "use_winograd43_convolution": kind == WINOGRAD_43,
        }
        yield Rival(f"ncnn int8, {kind}", ncnn_network(int8, weights, options, folder / f"ncnn-{kind}"))
    floats = to_ncnn_float(network)
    for bits, cores in ((32, tuple(MODELS)), (16, ("cortex-a76",))):
        options = {name: bits == 16 for name in FLOAT16}
        layers = ncnn_network(floats, floats.weights, options, folder / f"ncnn-fp{bits}")
        yield Rival(f"ncnn fp{bits}", layers, cores)


def ncnn_network(network: NcnnNetwork, weights: bytes, options: dict[str, bool], path: Path) -> dict:
    """The files of a network in ncnn."""
    layers, binary = Path(f"{path}.param"), Path(f"{path}.bin")
    layers.write_text(network.layers)
    binary.write_bytes(weights)
    (given,), (taken,) = network.inputs.values(), network.outputs.values()
    usual = {"num_threads": 1, "use_vulkan_compute": False, "lightmode": True}
    files = {"layers": str(layers), "weights": str(binary), "input": given, "output": taken}
    return {"engine": "ncnn", **files, "options": {**usual, **options}}


def measure(rival: Rival, core: str, folder: Path, expected: np.ndarray) -> dict[str, float]:
    """Instructions and cycles of one run, and how its output resembles the float network's."""
    (folder / "network.json").write_text(json.dumps(rival.network))
    arguments = [str(folder / name) for name in ("network.json", "input.npy", "output.npy")]
    command = [str(emulated_python.python()), str(GUEST), *arguments]
    system = (core, emulated_python.prefix(core), emulated_python.environment())
    if not Path(rival.network.get("model", GUEST)).exists():
        count_blocks([*command, "1"], *system)  # writes its model
    once, _ = count_blocks([*command, "1"], *system)
    more, _ = count_blocks([*command, str(1 + RUNS)], *system)
    counts = per_run(once, more, RUNS)
    result = np.load(folder / "output.npy").ravel().astype(np.float64)
    return {
        "instructions": round(instructions(counts)),
        "cycles": round(modelled_cycles(counts, core)),
        "correlation": round(float(np.corrcoef(result, expected.ravel())[0, 1]), 6),
    }


def add(path: Path, network: str, core: str, rival: str, figures: dict[str, float]) -> None:
    """Put figures into the file, and print them."""
    result = json.loads(path.read_text()) if path.exists() else {"network": network, "cores": {}}
    result["command"] = f"python benchmarks/arm/rivals.py {network}"
    result["versions"] = list(emulated_python.WHEELS)
    result["cores"].setdefault(core, {})[rival] = figures
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"{network:10} {core:11} {rival:30}", *(f"{name} {value:,}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
