"""Does the network still compute the same after every pass?  The first difference, by pass, layer and element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from tvmq.build import build_library, stages_of
from tvmq.dialect import unpacked
from tvmq.errors import ModelError
from tvmq.golden import interpret
from tvmq.machine import this_machine
from tvmq.model import Model
from tvmq.runtime.executor import Executor
from tvmq.runtime.tensors import check_inputs
from tvmq.target import Target, get_target
from tvmq.transform import fold

__all__ = ["Difference", "Verification", "Verifier", "verify"]


@dataclass(frozen=True)
class Difference:
    """Where a stage first departs from the golden executor.

    Attributes
    ----------
    stage : str
        The pass after which the network differs, or ``"library"``.
    layer : str
        The first value, in order of execution, that differs.
    element : tuple of int
        Index of its first differing element, channels on axis 1.
    expected, actual : float
        That element.
    count, size : int
        Differing elements, and all elements, of that value.
    """

    stage: str
    layer: str
    element: tuple[int, ...]
    expected: float
    actual: float
    count: int
    size: int

    def __str__(self) -> str:
        """One line that says it all."""
        return (
            f"after {self.stage}: layer '{self.layer}' differs from the golden executor in {self.count} of {self.size} "
            f"elements, first at {list(self.element)}: {self.actual} instead of {self.expected}"
        )


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found; true if nothing differs.

    Attributes
    ----------
    target : str
    stages : tuple of str
        The passes after which the network was run, in order; ``"library"`` if the built one ran too.
    difference : Difference or None
    """

    target: str
    stages: tuple[str, ...]
    difference: Difference | None = None

    def __bool__(self) -> bool:
        """Whether all stages agree."""
        return self.difference is None

    def __str__(self) -> str:
        """One line."""
        if self.difference is not None:
            return str(self.difference)
        return f"{self.target}: equal to the golden executor after {len(self.stages)} stages ({', '.join(self.stages)})"


class Verifier:
    """Compares stages of one network with the golden executor on given samples.

    Parameters
    ----------
    model : Model
    samples : sequence of arrays
        One per input.
    """

    def __init__(self, model: Model, samples: Sequence[np.ndarray]) -> None:
        self.samples = list(samples)
        self.values: dict[str, np.ndarray] = {}
        self.outputs = interpret(fold(model.module), self.samples, self._remember(self.values))
        self.names = [spec.name for spec in model.outputs]

    @staticmethod
    def _remember(values: dict[str, np.ndarray]) -> Any:
        def observe(name: str, value: Any) -> None:
            if isinstance(value, np.ndarray):
                values[name] = value

        return observe

    def compare(self, stage: str, module: tvm.IRModule) -> Difference | None:
        """Run a module at any stage and compare its outputs; on a difference, find the first value that differs.

        Parameters
        ----------
        stage : str
            What to call it.
        module : tvm.IRModule

        Returns
        -------
        Difference or None
        """
        values: dict[str, np.ndarray] = {}
        outputs = interpret(module, self.samples, self._remember(values))
        if self.compare_outputs(stage, outputs) is None:
            return None
        for name, expected in self.values.items():
            if name in values:
                found = _difference(stage, name, expected, _like(expected, values[name]))
                if found is not None:
                    return found
        return self.compare_outputs(stage, outputs)

    def compare_outputs(self, stage: str, outputs: Sequence[np.ndarray]) -> Difference | None:
        """The first output that differs, or None."""
        for name, expected, actual in zip(self.names, self.outputs, outputs, strict=True):
            found = _difference(stage, name, expected, actual)
            if found is not None:
                return found
        return None

    def require(self, stage: str, module: tvm.IRModule) -> None:
        """Raise a ModelError if the module differs."""
        found = self.compare(stage, module)
        if found is not None:
            raise ModelError(f"{found}; this is a bug of tvmq, please report it with the network")


def _like(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """A value of a lowered module in the layout of the golden one: packed words become codes."""
    if actual.ndim != 5 or expected.dtype != np.uint8:
        return actual
    codes = unpacked(actual, expected.shape[1])
    return codes if expected.ndim == 4 else codes[0, :, 0, :].T


def _difference(stage: str, name: str, expected: np.ndarray, actual: np.ndarray) -> Difference | None:
    if expected.shape != actual.shape:
        return None  # another value under the same name
    differs = (expected != actual) & ~((expected != expected) & (actual != actual))
    if not differs.any():
        return None
    element = tuple(int(index) for index in np.argwhere(differs)[0])
    return Difference(
        stage,
        name,
        element,
        float(expected[element]),
        float(actual[element]),
        int(differs.sum()),
        expected.size,
    )


def verify(model: Model, samples: Sequence[Any], target: str | Target = "host") -> Verification:
    """Run the golden executor and the network after every pass, and name the first difference.

    Parameters
    ----------
    model : Model
    samples : sequence of arrays
        One array per input.
    target : str or Target
        Scheduled kernels and the library are only run if this machine can.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        If the samples do not fit the model.
    TargetError
        For an unknown target.
    """
    core = get_target(target) if isinstance(target, str) else target
    verifier = Verifier(model, check_inputs(model.inputs, samples))
    native = this_machine().obstacle(core.triple, core.required_cpu_flags) is None
    checked: list[str] = []
    module = model.module
    for stage in stages_of(model.module, core):
        module = stage.module
        if not stage.exact or not (stage.portable or native):
            continue
        checked.append(stage.name)
        difference = verifier.compare(stage.name, module)
        if difference is not None:
            return Verification(core.name, tuple(checked), difference)
    if not native:
        return Verification(core.name, tuple(checked))
    library = build_library(module, core, model.inputs, model.outputs)
    outputs = Executor.from_bytes(library).run(*verifier.samples)
    return Verification(core.name, (*checked, "library"), verifier.compare_outputs("library", outputs))
