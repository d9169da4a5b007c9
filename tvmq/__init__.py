"""Low-bit neural networks for Apache TVM.

The public face.  Every name is loaded on first use, so that ``import tvmq`` costs nothing and a device that only runs
networks never loads the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from types import ModuleType

    from tvmq import errors, nn, transform
    from tvmq.benchmark import bench
    from tvmq.compiler import compile
    from tvmq.errors import (
        BoardError,
        BundleError,
        InputError,
        ModelError,
        RecordError,
        TargetError,
        ToolchainError,
        TvmqError,
        UnsupportedOperatorError,
    )
    from tvmq.frontend import load
    from tvmq.methods.gpfq_config import GPFQ
    from tvmq.methods.lqnets import LQNets
    from tvmq.methods.qnn import QNN
    from tvmq.methods.quantize import quantize
    from tvmq.model import Model
    from tvmq.nn import prepare
    from tvmq.runtime.bundle import Bundle, load_bundle
    from tvmq.runtime.deploy import deploy
    from tvmq.runtime.diagnosis import doctor
    from tvmq.runtime.remote import run_on_board
    from tvmq.target import Target, get_target
    from tvmq.target import list_targets as targets
    from tvmq.transform.pipeline import pipeline
    from tvmq.tuning.tune import TuneResult, tune
    from tvmq.verification import verify

__all__ = [
    "GPFQ",
    "QNN",
    "BoardError",
    "Bundle",
    "BundleError",
    "InputError",
    "LQNets",
    "Model",
    "ModelError",
    "RecordError",
    "Target",
    "TargetError",
    "ToolchainError",
    "TuneResult",
    "TvmqError",
    "UnsupportedOperatorError",
    "__version__",
    "bench",
    "compile",
    "deploy",
    "doctor",
    "errors",
    "get_target",
    "load",
    "load_bundle",
    "nn",
    "pipeline",
    "prepare",
    "quantize",
    "run_on_board",
    "targets",
    "transform",
    "tune",
    "verify",
]

# public name -> (module, name there); "" is the module itself
_HOMES = {
    "GPFQ": ("tvmq.methods.gpfq_config", "GPFQ"),
    "LQNets": ("tvmq.methods.lqnets", "LQNets"),
    "QNN": ("tvmq.methods.qnn", "QNN"),
    "BoardError": ("tvmq.errors", "BoardError"),
    "Bundle": ("tvmq.runtime.bundle", "Bundle"),
    "BundleError": ("tvmq.errors", "BundleError"),
    "InputError": ("tvmq.errors", "InputError"),
    "Model": ("tvmq.model", "Model"),
    "ModelError": ("tvmq.errors", "ModelError"),
    "RecordError": ("tvmq.errors", "RecordError"),
    "Target": ("tvmq.target", "Target"),
    "TargetError": ("tvmq.errors", "TargetError"),
    "ToolchainError": ("tvmq.errors", "ToolchainError"),
    "TuneResult": ("tvmq.tuning.tune", "TuneResult"),
    "TvmqError": ("tvmq.errors", "TvmqError"),
    "UnsupportedOperatorError": ("tvmq.errors", "UnsupportedOperatorError"),
    "bench": ("tvmq.benchmark", "bench"),
    "compile": ("tvmq.compiler", "compile"),
    "deploy": ("tvmq.runtime.deploy", "deploy"),
    "doctor": ("tvmq.runtime.diagnosis", "doctor"),
    "errors": ("tvmq.errors", ""),
    "get_target": ("tvmq.target", "get_target"),
    "load": ("tvmq.frontend", "load"),
    "load_bundle": ("tvmq.runtime.bundle", "load_bundle"),
    "nn": ("tvmq.nn", ""),
    "pipeline": ("tvmq.transform.pipeline", "pipeline"),
    "prepare": ("tvmq.nn", "prepare"),
    "quantize": ("tvmq.methods.quantize", "quantize"),
    "run_on_board": ("tvmq.runtime.remote", "run_on_board"),
    "targets": ("tvmq.target", "list_targets"),
    "transform": ("tvmq.transform", ""),
    "tune": ("tvmq.tuning.tune", "tune"),
    "verify": ("tvmq.verification", "verify"),
}


def __getattr__(name: str) -> object:
    """Load a public name from the room it lives in (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tvmq' has no attribute '{name}'")
    home, attribute = _HOMES[name]
    module: ModuleType = importlib.import_module(home)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
