"""Running a compiled library in this process."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from tvmq.errors import BundleError, InputError
from tvmq.runtime.timing import Timing, measure

__all__ = ["Executor"]

_MAIN = "main"


class Executor:
    """A compiled network, loaded.

    It needs TVM's runtime only, not its compiler, and may be used from several threads, one run at a time.

    Parameters
    ----------
    path : path-like
        A library that ``tvm.compile(...).export_library(...)`` wrote.  The file may be removed afterwards.

    Raises
    ------
    BundleError
        If there is no such file, or it is not a compiled network for this machine.
    """

    def __init__(self, path: str | Path) -> None:
        import tvm.runtime  # costs seconds

        path = Path(path).resolve()
        if not path.is_file():
            raise BundleError(f"{path}: no such library")
        try:
            self._library = tvm.runtime.load_module(str(path))
            self._machine = self._new_machine()
            self._main = self._machine[_MAIN]
        except (RuntimeError, ValueError, AttributeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise BundleError(f"{path}: not a compiled network for this machine ({reason})") from None
        # The virtual machine keeps its registers in one place.
        self._lock = threading.Lock()

    @classmethod
    def from_bytes(cls, library: bytes) -> Executor:
        """Load a library that is in memory.

        Parameters
        ----------
        library : bytes
            The content of the ``.so`` file.

        Returns
        -------
        Executor

        Raises
        ------
        BundleError
            If it is not a compiled network for this machine.
        """
        # The loader wants a file, but keeps what it has mapped when the file goes: so none is ever left behind.
        with tempfile.TemporaryDirectory(prefix="tvmq-") as folder:
            path = Path(folder) / "network.so"
            path.write_bytes(library)
            return cls(path)

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Run the network once.

        Parameters
        ----------
        *inputs : numpy.ndarray
            One array per input, in the shape and element type that the network was compiled for.

        Returns
        -------
        list of numpy.ndarray
            One new array per output.

        Raises
        ------
        InputError
            For anything but numpy arrays, or another number of them than the network takes.
        """
        tensors = self._tensors(inputs)
        with self._lock:
            return _arrays(self._main(*tensors))

    def bound(self, *inputs: np.ndarray) -> Callable[[], object]:
        """The network with its inputs in place, for measurements that have their own way of counting time.

        Parameters
        ----------
        *inputs : numpy.ndarray
            As for :meth:`run`; copied here.

        Returns
        -------
        callable
            Runs the network once, without copying inputs or outputs.

        Raises
        ------
        InputError
            As for :meth:`run`.
        """
        tensors = self._tensors(inputs)

        def run() -> object:
            with self._lock:
                return self._main(*tensors)

        return run

    def time(self, *inputs: np.ndarray, repeat: int = 30) -> Timing:
        """Time whole runs, without the copies of inputs and outputs.

        Parameters
        ----------
        *inputs : numpy.ndarray
            As for :meth:`run`.
        repeat : int
            Number of timed runs, after a few that are not.

        Returns
        -------
        Timing
            In seconds.

        Raises
        ------
        InputError
            As for :meth:`run`, or if ``repeat`` is below 1.
        """
        tensors = self._tensors(inputs)
        with self._lock:
            return measure(lambda: self._main(*tensors), repeat)

    def call_times(
        self, *inputs: np.ndarray, repeat: int = 10, clock: Callable[[], float] = perf_counter
    ) -> list[tuple[str, float]]:
        """Time every kernel of the network, in the order in which they run.

        Parameters
        ----------
        *inputs : numpy.ndarray
            As for :meth:`run`.
        repeat : int
            Number of timed runs, after one that is not.
        clock : callable
            Gives seconds, such as :func:`time.thread_time`, which stands still while other processes run.

        Returns
        -------
        list of (str, float)
            Symbol of the kernel's PrimFunc and its median seconds; a kernel that several layers share comes once per
            layer.

        Raises
        ------
        InputError
            As for :meth:`run`, or if ``repeat`` is below 1.
        """
        if repeat < 1:
            raise InputError(f"repeat must be 1 or more, not {repeat}")
        tensors = self._tensors(inputs)
        # An instrument cannot be taken off again, and costs time on every call: it gets a machine of its own.
        machine = self._new_machine()
        recorder = _Recorder(clock)
        machine.set_instrument(recorder)
        main = machine[_MAIN]
        runs = []
        with self._lock:
            for _ in range(repeat + 1):
                recorder.calls = []
                main(*tensors)
                runs.append(recorder.calls)
        timed = runs[1:]
        return [(calls[0][0], median(seconds for _, seconds in calls)) for calls in zip(*timed, strict=True)]

    def function_times(self, *inputs: np.ndarray, repeat: int = 10) -> dict[str, float]:
        """Time every kernel of the network, by name.

        Parameters
        ----------
        *inputs : numpy.ndarray
            As for :meth:`run`.
        repeat : int
            Number of timed runs, after one that is not.

        Returns
        -------
        dict of str to float
            Seconds that one run of the network spends in each PrimFunc: the sum over its calls of their medians.

        Raises
        ------
        InputError
            As for :meth:`run`, or if ``repeat`` is below 1.
        """
        totals: dict[str, float] = {}
        for name, seconds in self.call_times(*inputs, repeat=repeat):
            totals[name] = totals.get(name, 0.0) + seconds
        return totals

    def _new_machine(self) -> Any:
        import tvm.runtime
        from tvm.runtime import vm

        return vm.VirtualMachine(self._library, tvm.runtime.cpu())

    def _tensors(self, inputs: tuple[np.ndarray, ...]) -> list[Any]:
        import tvm.runtime

        # TVM crashes on an array that is not one of its own tensors.
        for position, array in enumerate(inputs):
            if not isinstance(array, np.ndarray):
                raise InputError(f"input {position} is a {type(array).__name__}, not a numpy array")
        arity = self._machine.module["get_function_arity"](_MAIN)
        if len(inputs) != arity:
            raise InputError(f"the network takes {arity} input(s), but {len(inputs)} were given")
        return [tvm.runtime.tensor(np.require(array, requirements="C")) for array in inputs]


class _Recorder:
    """Called by the virtual machine before and after every function that it calls."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.calls: list[tuple[str, float]] = []
        self._clock = clock
        self._starts: list[float] = []

    def __call__(self, function: object, name: str, before: bool, result: object, *arguments: object) -> int:
        if name.startswith("vm."):  # the machine's own bookkeeping, such as allocating storage
            return 0
        if before:
            self._starts.append(self._clock())
        else:
            self.calls.append((str(name), self._clock() - self._starts.pop()))
        return 0


def _arrays(result: Any) -> list[np.ndarray]:
    import tvm.runtime

    tensors = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [tensor.numpy() for tensor in tensors]
