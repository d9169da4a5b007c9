"""MetaSchedule's builder and results where everything happens in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import PyRunnerFuture

__all__ = ["Alive", "Builder", "Done", "reason_of"]

Alive = Callable[[], bool]
"""False once the user wants to stop."""


@derived_object
class Builder(PyBuilder):
    """Builds in this process; what `build` returns is where the runner finds the library."""

    def __init__(self, build: Callable[[tirx.PrimFunc], str], alive: Alive) -> None:
        super().__init__()
        self.build_one, self.alive = build, alive

    def build(self, build_inputs: Any) -> Any:
        """All candidates of a round."""
        return [self.one(item.mod["main"]) for item in build_inputs]

    def one(self, candidate: tirx.PrimFunc) -> Any:
        """One candidate."""
        if not self.alive():
            return BuilderResult(None, "interrupted")
        try:
            return BuilderResult(self.build_one(candidate), None)
        except Exception as error:  # a schedule that TVM or LLVM rejects is one point less, not the end
            return BuilderResult(None, reason_of(error))


@derived_object
class Done(PyRunnerFuture):
    """A result that is there."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def done(self) -> bool:
        """It is."""
        return True

    def result(self) -> Any:
        """The value."""
        return self.value


def reason_of(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
