"""Register tiles: which one the costs of a family choose, and that it is in registers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tvmq.kernels.tiling import RegisterTile, fits_registers, register_tile


def layer(reference: SimpleNamespace, family: str, size: int, channels: int, **fields: Any) -> Any:
    shape = {"height": size, "width": size, "in_channels": channels, "out_channels": channels}
    return reference.make_workload(reference.families[family], **shape, **fields)


@pytest.mark.parametrize(
    ("size", "channels", "tile"),
    [(56, 64, (1, 3, 2)), (28, 128, (1, 1, 4)), (7, 512, (1, 1, 4))],
)
def test_avx2_spends_its_registers_on_vectors_of_weights(
    size: int, channels: int, tile: tuple[int, int, int], reference: SimpleNamespace
) -> None:
    """A broadcast costs an operation and a vector of weights none, in the first-level cache or in the second."""
    assert register_tile(layer(reference, "avx2", size, channels), size) == RegisterTile(*tile)


def test_slow_weights_are_shared_by_pixels(reference: SimpleNamespace) -> None:
    """Where updates are few operations, weights from the second-level cache are not worth a register tile of one."""
    for family in ("vpopcntdq", "aarch64"):
        tile = register_tile(layer(reference, family, 14, 512), 14)
        assert tile.rows * tile.columns > tile.vectors


@pytest.mark.parametrize("planes", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("size", [7, 14, 28, 56])
def test_tiles_are_in_registers(size: int, planes: tuple[int, int], cross: Any, reference: SimpleNamespace) -> None:
    workload = layer(reference, cross.name, size, 4 * 64, **reference.planes(*planes))
    assert fits_registers(workload, register_tile(workload, size))


@pytest.mark.parametrize(("channels", "accumulators"), [(64, 16), (128, 16), (4096, 28)])
def test_short_loops_leave_registers_to_the_epilogue(
    channels: int, accumulators: int, reference: SimpleNamespace
) -> None:
    """Saving accumulators around a loop of few words takes as long as its updates; around one of many it does not."""
    workload = layer(reference, "vpopcntdq", 28, channels)
    tile = register_tile(workload, 28)
    assert tile.rows * tile.columns * tile.vectors * workload.classes == accumulators
