"""Register tiles: how many pixels and channel vectors one pass of the inner loop computes.

The inner loop loads N vectors of weights, broadcasts one word of each of M pixels, and updates M * N accumulators per
class.  The best tile fits in the registers, spreads loads and broadcasts over many updates, keeps its weights in the
first-level cache, and wastes few pixels at the right border.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvmq.kernels import arm_dot, depth
from tvmq.kernels.arm_table_assembly import MOST_SUMS
from tvmq.kernels.tables import joined_words
from tvmq.kernels.workload import Conv2dWorkload

__all__ = ["RegisterTile", "fits_registers", "register_tile"]

FIRST_LEVEL_CACHE = 20 * 1024
"""Bytes of weights that stay in the first-level cache of every core in question, beside the activations."""


@dataclass(frozen=True)
class RegisterTile:
    """Shape of one register tile.

    Attributes
    ----------
    rows, columns : int
        Output pixels.
    vectors : int
        Vectors of output channels.
    """

    rows: int
    columns: int
    vectors: int


@dataclass(frozen=True)
class _Costs:
    """Instructions of the inner loop of a family."""

    registers: int
    temporaries: int
    update: float
    broadcast: float
    load: float
    streaming: float = 1.0
    """What a vector of weights costs beside its load where weights come from the second-level cache."""


_LOOP = 2.0
"""Instructions of the loop itself."""
_ROOMY = 26
"""Vector registers up to which accumulators stay in registers.  The epilogue wants its constants there too; where they
do not fit LLVM saves all accumulators before the innermost loop and restores them after it."""
_SAVE = 6.0
"""Instructions that saving and restoring an accumulator cost: stacks are not aligned to vectors, so that both cross
cache lines."""


def _costs(workload: Conv2dWorkload, registers: int | None) -> _Costs:
    """Registers and instruction counts, which follow from the lanes: 16 words of 32 bits, or 16, 32, 64 bytes."""
    if _is_signed(workload):
        # Four vectors of sums, of weights, and for a whole chunk a load of activations; `smull` has to spread those.
        updates = 4 if workload.dot is not None and workload.dot.form == "signed" else 12
        return _Costs(registers or 32, 0, update=updates, broadcast=0.25 if updates == 4 else 1.25, load=2)
    if workload.dot is not None and workload.word_bits == 32:
        # A dot product instruction; loads and broadcasts run beside it.
        return _Costs(32, 0, update=1, broadcast=0.1, load=0.1)
    if workload.dot is not None:
        # The halves of weights and activations, and their mask.
        return _Costs(32 if workload.lanes == 16 else 16, 4 if workload.lanes == 8 else 6, 3, 0.5, 0.5)
    if workload.table is not None and workload.word_bits == 32:
        # Two lookups and sums; two loads of tables; the nibbles of two vectors.  A table, a number that is looked up,
        # ones, a mask, and the tables' places take registers; so do nibbles and sums of bytes, see `_registers`.
        return _Costs(32, 5, update=4, broadcast=1, load=3.5)
    if workload.has_quintets:
        # A lookup and a sum; the two registers of a table; a vector of indices.
        return _Costs(registers or 32, 0, update=2, broadcast=1, load=0.5)
    if workload.table is not None:
        # Two lookups and sums; two tables, which are in the second-level cache; two times the nibbles of a vector.
        # Their mask and the number that is looked up take registers too, and of 32 registers those of both halves.
        most, temporaries = (32, 3) if workload.lanes == 64 else (16, 2)
        return _Costs(most, temporaries, update=4, broadcast=3, load=4)
    if workload.word_bits == 32:
        return _Costs(registers or 32, 2, update=3, broadcast=0, load=0.5)
    if workload.depth is not None:
        most = registers or depth.instruction_set(workload.depth).registers
        return _Costs(most, 0, update=3, broadcast=1, load=1)  # see tvmq.kernels.depth for what is in a step
    if workload.lanes == 16:
        return _Costs(registers or 32, 3, update=3, broadcast=1, load=0.5)
    # The two lookup constants and the nibbles of pshufb take registers as well.
    # They are so many operations that loads of weights, operands of the exclusive or, hide among them.
    most = registers or (32 if workload.lanes == 64 else 16)
    return _Costs(most, 6, update=8, broadcast=1, load=0.25, streaming=0.25)


def register_tile(
    workload: Conv2dWorkload, out_width: Any, registers: int | None = None, divides: Any = None
) -> RegisterTile:
    """The register tile with the lowest estimated cost per output.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    out_width : int or PrimExpr
        Columns of the output; symbolic for a dynamic batch of a dense layer.
    registers : int, optional
        Vector registers of the core, if fewer than the lanes suggest.
    divides : int, optional
        Columns that a function computes; the columns of the tile must divide them.

    Returns
    -------
    tile : RegisterTile
        At least one pixel and one channel group; its rows divide the rows of the output.
    """
    costs = _costs(workload, registers)
    group = workload.group_channels // workload.lanes
    smallest = RegisterTile(1, 1, group)
    tiles = [tile for tile in _candidates(workload, out_width, divides) if _fits(workload, tile, costs)]
    return min(tiles or [smallest], key=lambda tile: (_cost(workload, tile, costs, out_width), tile.vectors))


def fits_registers(workload: Conv2dWorkload, tile: RegisterTile, registers: int | None = None) -> bool:
    """Whether the accumulators of a tile and the operands of one step have a register each.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    tile : RegisterTile
        The tile.
    registers : int, optional
        See `register_tile`.

    Returns
    -------
    fits : bool
    """
    return _fits(workload, tile, _costs(workload, registers))


def _candidates(workload: Conv2dWorkload, out_width: Any, divides: Any) -> Iterator[RegisterTile]:
    group = workload.group_channels // workload.lanes
    groups = workload.out_channels_padded // workload.group_channels
    widest = min(out_width, 16) if isinstance(out_width, int) else 4
    for columns in range(1, widest + 1):
        if isinstance(divides, int) and divides % columns:
            continue
        # Two rows of gathered windows would not stay in the first-level cache.
        for rows in (1,) if workload.dot is not None and workload.dot.gathered else (1, 2):
            if workload.out_height % rows:
                continue
            for factor in range(1, groups + 1):
                if groups % factor == 0:
                    yield RegisterTile(rows, columns, factor * group)


def _is_signed(workload: Conv2dWorkload) -> bool:
    return workload.dot is not None and workload.dot.form != "mixed"


def _fits(workload: Conv2dWorkload, tile: RegisterTile, costs: _Costs) -> bool:
    if workload.dot is not None and _is_signed(workload):
        # A row of pixels is one instruction to a schedule; two, or two vectors, would not share their loads in time.
        return tile.vectors == tile.rows == 1 and tile.columns <= arm_dot.most_columns(
            workload.dot.form, 16 if costs.registers == 16 else 32
        )
    if workload.has_quintets:
        return tile.rows * tile.columns * tile.vectors <= MOST_SUMS
    return _registers(workload, tile, costs) <= costs.registers


def _registers(workload: Conv2dWorkload, tile: RegisterTile, costs: _Costs) -> int:
    if workload.depth is not None:
        return depth.registers(workload, tile.rows * tile.columns, tile.vectors)
    if workload.table is not None and costs.registers == 32:
        nibbles = 2 if workload.word_bits == 8 else 2 * joined_words(workload) + 1  # and a sum of bytes
        return _accumulators(workload, tile) + tile.vectors * nibbles + costs.temporaries
    operands = tile.vectors * workload.weight_planes + (1 if costs.broadcast else 0)
    return _accumulators(workload, tile) + operands + costs.temporaries


def _accumulators(workload: Conv2dWorkload, tile: RegisterTile) -> int:
    sums = tile.rows * tile.columns * tile.vectors * workload.classes
    if workload.table is not None and workload.word_bits == 8 and workload.table.activation_bits > 3:
        # Sums of bytes are so short that those of 16 bits, which take two registers, had better stay there as well.
        return 3 * sums
    return sums


def _saved(workload: Conv2dWorkload, tile: RegisterTile, costs: _Costs) -> float:
    """Instructions per step of the innermost loop that save and restore accumulators around it."""
    is_tight = workload.word_bits == 32 and _registers(workload, tile, costs) > _ROOMY
    if not is_tight or workload.table is not None:  # constants wait beside the many registers of nibbles
        return 0.0
    return _SAVE * _accumulators(workload, tile) / _innermost_steps(workload)


def _innermost_steps(workload: Conv2dWorkload) -> int:
    """Steps of the innermost loop: words, or four bytes each, of a pixel or of a gathered window."""
    if workload.dot is None:
        return workload.in_words
    taps = workload.kernel[0] * workload.kernel[1] if workload.dot.gathered else 1
    return -(-workload.in_words * taps // 4)


def _instructions(workload: Conv2dWorkload, tile: RegisterTile, costs: _Costs) -> float:
    """Instructions of one step of the innermost loop."""
    pixels = tile.rows * tile.columns
    if workload.depth is not None:
        return depth.instructions(workload, pixels, tile.vectors) * workload.weight_planes
    updates = pixels * tile.vectors * workload.activation_planes * workload.weight_planes
    return (
        updates * costs.update
        + pixels * workload.activation_planes * costs.broadcast
        + tile.vectors * workload.weight_planes * costs.load
        + _saved(workload, tile, costs)
        + _LOOP
    )


def _cost(workload: Conv2dWorkload, tile: RegisterTile, costs: _Costs, out_width: Any) -> float:
    waste = 1.0
    if isinstance(out_width, int):
        waste = -(-out_width // tile.columns) * tile.columns / out_width
    kernel_h, kernel_w = workload.kernel
    words = kernel_h * kernel_w * workload.in_words * workload.weight_planes
    weights = words * tile.vectors * workload.lanes * workload.word_bits // 8
    # Weights that leave the first-level cache are read again for every tile of pixels.
    streaming = costs.streaming * tile.vectors * workload.weight_planes if weights > FIRST_LEVEL_CACHE else 0
    pixels = tile.rows * tile.columns
    return waste * (_instructions(workload, tile, costs) + streaming) / (pixels * tile.vectors)
