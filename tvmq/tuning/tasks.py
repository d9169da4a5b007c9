"""Which kernels of a network can be tuned, and how often each of them runs."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx

from tvmq.build import stages_of
from tvmq.dialect import is_call
from tvmq.kernels.knobs import KernelKind, kind_of
from tvmq.model import Model, module_bindings
from tvmq.records import Key, RecordBook
from tvmq.target import Target

__all__ = ["Task", "network_tasks"]


@dataclass(frozen=True)
class Task:
    """One distinct kernel.

    Attributes
    ----------
    function : tirx.PrimFunc
        Unscheduled.
    kind : KernelKind
        What can be chosen about it.
    target : Target
        The core.
    count : int
        How often a network runs it.
    """

    function: tirx.PrimFunc
    kind: KernelKind
    target: Target
    count: int = 1

    @property
    def key(self) -> Key:
        """Its name in records."""
        return self.kind.key(self.function, self.target)

    @property
    def title(self) -> str:
        """A few words for people."""
        return self.kind.title(self.function)


def network_tasks(model: Model, target: Target) -> list[Task]:
    """The distinct kernels of a network that have knobs.

    Parameters
    ----------
    model : Model
    target : Target

    Returns
    -------
    list of Task
        In the order in which they run first.
    """
    *_, fused, _scheduled = stages_of(model.module, target, RecordBook({}))
    return _tasks(fused.module, target)


def _tasks(module: tvm.IRModule, target: Target) -> list[Task]:
    tasks: dict[str, Task] = {}
    for binding in module_bindings(module["main"]):
        if not is_call(binding.value, "relax.call_tir"):
            continue
        function = module[binding.value.args[0]]
        kind = kind_of(function)
        if kind is None:
            continue
        name = kind.key(function, target).text
        count = tasks[name].count + 1 if name in tasks else 1
        tasks[name] = Task(function, kind, target, count)
    return list(tasks.values())
