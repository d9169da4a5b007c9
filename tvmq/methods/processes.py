"""Several processes that work on one network: what they sum and share out.

Each process sees its own part of the calibration data.  Sums over the data are added up over the processes, so that all
hold the same numbers; then each takes its share of the neurons, and the results are put together.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np

__all__ = ["Processes", "current_processes"]


class Processes:
    """What processes do together; here, with this process alone.

    Attributes
    ----------
    rank, size : int
        Number of this process, and how many there are.
    """

    rank = 0
    size = 1

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Sum over the processes, elementwise."""
        return array

    def maximum(self, array: np.ndarray) -> np.ndarray:
        """Largest over the processes, elementwise."""
        return array

    def concatenate(self, array: np.ndarray, counts: list[int]) -> np.ndarray:
        """The parts of all processes, one after the other along axis 0.

        Parameters
        ----------
        array : float64 array
            The part of this process.
        counts : list of int
            The length of every process' part.

        Returns
        -------
        numpy.ndarray
        """
        return array

    def columns(self, array: np.ndarray, counts: list[int]) -> np.ndarray:
        """The columns of all processes, side by side: as :meth:`concatenate`, along axis 1."""
        return self.concatenate(np.ascontiguousarray(array.T), counts).T if self.size > 1 else array

    def fingerprint(self, digest: str) -> str:
        """One fingerprint of the hexadecimal digests of all processes."""
        if self.size == 1:
            return digest
        mine = np.frombuffer(bytes.fromhex(digest), np.uint8).astype(np.float64)
        every = self.concatenate(mine, [len(mine)] * self.size)
        return hashlib.sha256(every.astype(np.uint8).tobytes()).hexdigest()


class TorchProcesses(Processes):
    """The processes of an initialised ``torch.distributed`` group, for example those of ``torchrun``.

    Parameters
    ----------
    torch : module
        Passed in, since torch is not needed for anything else here.
    """

    def __init__(self, torch: Any) -> None:
        self._torch, self._distributed = torch, torch.distributed
        distributed = torch.distributed
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def sum(self, array: np.ndarray) -> np.ndarray:
        return self._reduce(array, self._distributed.ReduceOp.SUM)

    def maximum(self, array: np.ndarray) -> np.ndarray:
        return self._reduce(array, self._distributed.ReduceOp.MAX)

    def concatenate(self, array: np.ndarray, counts: list[int]) -> np.ndarray:
        # Parts of one length, since not every backend gathers others.
        padded = np.zeros((max(counts), *array.shape[1:]))
        padded[: len(array)] = array
        parts = [self._torch.empty(padded.shape, dtype=self._torch.float64) for _ in counts]
        self._distributed.all_gather(parts, self._torch.from_numpy(padded))
        return np.concatenate([part.numpy()[:count] for part, count in zip(parts, counts, strict=True)])

    def _reduce(self, array: np.ndarray, operation: Any) -> np.ndarray:
        tensor = self._torch.from_numpy(np.array(array, np.float64))
        self._distributed.all_reduce(tensor, operation)
        return tensor.numpy()


def current_processes() -> Processes:
    """The group of ``torch.distributed``, if the program has initialised one; else this process alone."""
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return TorchProcesses(torch)
    return Processes()
