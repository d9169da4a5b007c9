"""The processes that ``torchrun`` launched this one with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import distributed

__all__ = ["launched_processes"]


@contextlib.contextmanager
def launched_processes() -> Iterator[tuple[int, int]]:
    """Join the group of processes that the environment describes.

    Yields
    ------
    (int, int)
        Number of this process and how many there are.
    """
    distributed.init_process_group("gloo")
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()
