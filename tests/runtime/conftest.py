"""Two small networks, and what numpy makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tvm
from numpy.lib.stride_tricks import sliding_window_view
from tvm import relax

import tvmq
from tests.boards import board, ssh_server  # noqa: F401  (fixtures)
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.toolchain import build_runner, export_library
from tvmq.target import Target, get_target

EMULATED = ("raspberry-pi-4", "raspberry-pi-3-32")


@dataclass(frozen=True)
class Network:
    """A Relax module, an input, and the outputs that numpy computes."""

    module: tvm.IRModule
    arrays: list[np.ndarray]
    expected: list[np.ndarray]

    def library(self, target: Target) -> bytes:
        return export_library(tvm.compile(self.module, target.tvm_target()), target)


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3×3 convolution with padding 1, in the arithmetic of the arrays."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight)


@pytest.fixture(scope="session")
def float_network() -> Network:
    """conv2d, relu, dense; returns the activations and the scores."""
    random = np.random.default_rng(1)
    x = random.standard_normal((1, 3, 8, 8)).astype("float32")
    filters = random.standard_normal((4, 3, 3, 3)).astype("float32")
    matrix = random.standard_normal((256, 10)).astype("float32")

    builder = relax.BlockBuilder()
    data = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            hidden = builder.emit(relax.op.nn.conv2d(data, relax.const(filters), padding=1))
            hidden = builder.emit(relax.op.nn.relu(hidden))
            flat = builder.emit(relax.op.reshape(hidden, (1, 256)))
            scores = builder.emit(relax.op.matmul(flat, relax.const(matrix)))
            result = builder.emit_output(relax.Tuple([hidden, scores]))
        builder.emit_func_output(result)
    activations = np.maximum(convolve(x, filters), 0)
    return Network(builder.get(), [x], [activations, activations.reshape(1, 256) @ matrix])


@pytest.fixture(scope="session")
def integer_network() -> Network:
    """An int8 convolution and an addition of a second input; returns a single tensor."""
    random = np.random.default_rng(2)
    x = random.integers(-128, 128, (2, 5, 7, 7), dtype="int8")
    bias = random.integers(-1000, 1000, (2, 6, 7, 7), dtype="int32")
    filters = random.integers(-128, 128, (6, 5, 3, 3), dtype="int8")

    builder = relax.BlockBuilder()
    data = relax.Var("x", relax.TensorType(x.shape, "int8"))
    offset = relax.Var("bias", relax.TensorType(bias.shape, "int32"))
    with builder.function("main", [data, offset]):
        with builder.dataflow():
            sums = builder.emit(relax.op.nn.conv2d(data, relax.const(filters), padding=1, out_dtype="int32"))
            result = builder.emit_output(relax.op.add(sums, offset))
        builder.emit_func_output(result)
    return Network(builder.get(), [x, bias], [convolve(x.astype("int32"), filters.astype("int32")) + bias])


@pytest.fixture(scope="session")
def float_library(float_network: Network) -> bytes:
    return float_network.library(get_target("host"))


@pytest.fixture(scope="session")
def integer_library(integer_network: Network) -> bytes:
    return integer_network.library(get_target("host"))


@pytest.fixture(scope="session")
def host_runner(runner_cache: None) -> Path:
    return build_runner(get_target("host"))


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own, with the package under test and further environment variables."""

    def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(tvmq.__file__).parents[1]), **variables}
        command = [sys.executable, "-c", textwrap.dedent(script)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def make_bundle(float_network: Network, float_library: bytes) -> Callable[..., Bundle]:
    """Bundles of the float network; targets can be replaced."""

    def make(**targets: dict[str, object]) -> Bundle:
        host = {"triple": "x86_64-linux-gnu", "mcpu": "generic", "required_cpu_flags": []}
        host["triple"] = get_target("host").triple
        entries = targets or {"host": host}
        layer = {
            "operator": "conv2d",
            "weight_bits": 32,
            "activation_bits": 32,
            "kernel": "float",
            "reason": "a test",
            "macs": 6912,
            "bytes_float": 432,
            "bytes_packed": 432,
            "predicted_cycles": None,
            "seconds": None,
        }
        layers = [{**layer, "name": "conv1", "function": "conv2d"}, {**layer, "name": "fc", "function": "matmul"}]
        manifest = {
            "tvmq": "0.1.0",
            "tvm": tvm.__version__,
            "name": "tiny",
            "inputs": [{"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}],
            "outputs": [
                {"name": "activations", "shape": [1, 4, 8, 8], "dtype": "float32"},
                {"name": "scores", "shape": [1, 10], "dtype": "float32"},
            ],
            "targets": entries,
            "layers": {name: layers for name in entries},
        }
        return Bundle(
            manifest=manifest,
            model_json='{"a": 1}',
            libraries={name: float_library for name in entries},
            check_inputs=float_network.arrays,
            check_outputs=float_network.expected,
        )

    return make


@pytest.fixture(scope="session")
def board_bundle(integer_network: Network, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The integer network for emulated boards, saved; its self-check is exact."""
    targets = [get_target(name) for name in ("raspberry-pi-4", "raspberry-pi-3-32")]
    described = {
        target.name: {
            "triple": target.triple,
            "mcpu": target.mcpu,
            "required_cpu_flags": list(target.required_cpu_flags),
        }
        for target in targets
    }
    tensors = [("x", integer_network.arrays[0]), ("bias", integer_network.arrays[1])]
    (expected,) = integer_network.expected
    manifest = {
        "tvmq": "0.1.0",
        "tvm": tvm.__version__,
        "name": "integers",
        "inputs": [{"name": name, "shape": list(a.shape), "dtype": str(a.dtype)} for name, a in tensors],
        "outputs": [{"name": "y", "shape": list(expected.shape), "dtype": str(expected.dtype)}],
        "targets": described,
        "layers": {target.name: [] for target in targets},
    }
    bundle = Bundle(
        manifest=manifest,
        model_json="{}",
        libraries={target.name: integer_network.library(target) for target in targets},
        check_inputs=integer_network.arrays,
        check_outputs=integer_network.expected,
    )
    bundle.save(tmp_path_factory.mktemp("bundle") / "net.tvmq")
    return bundle
