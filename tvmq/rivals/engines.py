"""The engines that a network can be compared with, and how each is set up to be at its best on given threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tvmq.errors import InputError, nearest

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ENGINES", "Engine", "Rival", "build_rival", "engines_of"]

EXTRA = "tvmq[benchmarks]"


@dataclass(frozen=True)
class Engine:
    """One way to run a network.

    Attributes
    ----------
    name : str
        Such as ``"onnxruntime int8"``.
    package : str
        The Python package that has to be installed.
    form : str
        What it is given to run; one of :data:`tvmq.rivals.forms.FORMS`.
    settings : str
        How it is set up, for people.
    """

    name: str
    package: str
    form: str
    settings: str

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.package) is not None


_ONNXRUNTIME_SETTINGS = "all graph optimizations, inputs and outputs bound once"
_OPENVINO_SETTINGS = "LATENCY hint, one stream, float32 where not int8, inputs bound once"

ENGINES = (
    Engine("onnxruntime fp32", "onnxruntime", "float32", _ONNXRUNTIME_SETTINGS),
    Engine("onnxruntime int8", "onnxruntime", "int8", f"QDQ, U8S8, per channel; {_ONNXRUNTIME_SETTINGS}"),
    Engine(
        "onnxruntime 2-bit weights",
        "onnxruntime",
        "2-bit weights",
        f"MatMulNBits, blocks of 128, accuracy level 4 (int8 activations); {_ONNXRUNTIME_SETTINGS}",
    ),
    Engine("openvino int8", "openvino", "int8", f"the same QDQ network; {_OPENVINO_SETTINGS}"),
    Engine(
        "ncnn int8",
        "ncnn",
        "ncnn int8",
        "quantized as by ncnn2int8, dense layers as Gemm; packed layout, light mode, inputs copied once",
    ),
)


@dataclass(frozen=True)
class Rival:
    """An engine with a network loaded and its inputs bound.

    Attributes
    ----------
    engine : Engine
    version : str
        Of the package.
    settings : str
        The engine's, and what was chosen for this network.
    run : callable
        Runs the network once on the bound inputs.
    outputs : callable
        The outputs of the last run, as a list of arrays.
    """

    engine: Engine
    version: str
    settings: str
    run: Callable[[], object]
    outputs: Callable[[], list[np.ndarray]]


def engines_of(choice: str) -> tuple[list[Engine], dict[str, str]]:
    """The engines that a user asks for.

    Parameters
    ----------
    choice : str
        ``"none"``, ``"auto"`` (all that are installed), or names with commas between them: those of packages stand for
        all engines of the package.

    Returns
    -------
    (list of Engine, dict of str to str)
        What to run, and of each engine that ``"auto"`` leaves out the reason.

    Raises
    ------
    InputError
        For an unknown name, or one whose package is not installed.
    """
    if choice == "none":
        return [], {}
    if choice == "auto":
        missing = {
            engine.name: f"{engine.package} is not installed (pip install '{EXTRA}')"
            for engine in ENGINES
            if not engine.installed
        }
        return [engine for engine in ENGINES if engine.installed], missing
    packages = list(dict.fromkeys(engine.package for engine in ENGINES))
    named = [name.strip() for name in choice.split(",")]
    chosen = [engine for engine in ENGINES if engine.package in named or engine.name in named]
    for name in named:
        if not any(name in (engine.package, engine.name) for engine in ENGINES):
            known = ["auto", "none", *packages, *[engine.name for engine in ENGINES]]
            raise InputError(f"unknown rival '{name}'{nearest(name, known) or '; choose from ' + ', '.join(known)}")
    for engine in chosen:
        if not engine.installed:
            raise InputError(f"rival '{engine.package}' is not installed; install it with: pip install '{EXTRA}'")
    return chosen, {}


def build_rival(engine: Engine, network: Any, inputs: Mapping[str, np.ndarray], threads: int) -> Rival:
    """Load a network into an engine.

    Parameters
    ----------
    engine : Engine
    network : onnx.ModelProto or tvmq.rivals.ncnn_int8.NcnnNetwork
        In the engine's form.
    inputs : mapping of str to numpy.ndarray
        By name; they are bound once.
    threads : int
        How many the engine may use.

    Returns
    -------
    Rival
    """
    load = {"onnxruntime": _onnxruntime, "openvino": _openvino, "ncnn": _ncnn}[engine.package]
    run, outputs, *chosen = load(network, inputs, threads)
    run()  # whatever is lazy happens here, and an error comes now
    return Rival(engine, version(engine.package), "; ".join([engine.settings, *chosen]), run, outputs)


_Loaded = tuple[Any, ...]
"""What runs the network, what gives its outputs, and what was chosen, if anything."""


def _onnxruntime(network: Any, inputs: Mapping[str, np.ndarray], threads: int) -> _Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads wait busily for work, which is part of its speed; but not while others have their turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding), binding.copy_outputs_to_cpu


def _openvino(network: Any, inputs: Mapping[str, np.ndarray], threads: int) -> _Loaded:
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # the process is pinned already
    }
    compiled = core.compile_model(core.read_model(network.SerializeToString(), b""), "CPU", options)
    request = compiled.create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

    def outputs() -> list[Any]:
        return [request.get_tensor(port).data.copy() for port in compiled.outputs]

    return request.infer, outputs


def _ncnn(network: Any, inputs: Mapping[str, np.ndarray], threads: int) -> _Loaded:
    from tvmq.rivals.ncnn_engine import load_ncnn

    loaded = load_ncnn(network, inputs, threads)
    chosen = [f"{loaded.kind}, as the fastest"] if len(network.kinds) > 1 else []
    return loaded.run, loaded.outputs, *chosen
