"""How lookups in tables are scheduled: instructions in registers, and tables made in bands of rows.

The tables of a band of rows stay in the second-level cache while all output channels and taps read them.  Bands overlap
by the rows of a window, whose tables are made again.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx

from tvmq.kernels import arm_tables, x86_tables
from tvmq.kernels.quintets import table_strides
from tvmq.kernels.tables import joined_words, table_bytes, tables_of_word
from tvmq.kernels.workload import Conv2dWorkload, most_lookups

__all__ = ["place_lookups", "table_rows"]

_BAND_BYTES = 192 * 1024
"""Tables of one band of rows, beside which a second-level cache of 256 KiB has room for weights."""

_QUINTET_AXES = ("n", "y", "x", "group", "vector", "class", "lane", "kh", "kw", "index")
"""Of the block "accumulate" of quintets."""
_REDUCED = ("kh", "kw", "index")
_TABLES = 1
"""Place of the tables among what that block reads."""


def table_rows(workload: Conv2dWorkload, pixel_rows: int, channel_tiles: int, cores: int) -> int:
    """Output rows whose tables are made at once.

    Cores share the tables of all rows where there are enough tiles of channels for all of them, or only one row;
    otherwise each makes bands of its own.

    Parameters
    ----------
    workload : Conv2dWorkload
        With a table.
    pixel_rows : int
        Rows of a register tile, which divide those of the output.
    channel_tiles : int
        Register tiles of channels.
    cores : int
        Cores that work on the convolution.

    Returns
    -------
    rows : int
        A divisor of the rows of the output.
    """
    rows, pieces = workload.out_height, 1 if cores == 1 else 2 * cores
    if cores > 1 and channel_tiles >= pieces:
        return rows
    width = workload.width + workload.padding[1] + workload.padding[3]
    most = _BAND_BYTES // (width * table_bytes(workload))
    reach = workload.dilation[0] * (workload.kernel[0] - 1) + 1
    sizes = [size for size in range(pixel_rows, rows + 1, pixel_rows) if rows % size == 0]
    fitting = [
        size for size in sizes if (size - 1) * workload.strides[0] + reach <= most and rows // size >= min(pieces, rows)
    ]
    return max(fitting, default=sizes[0])


def place_lookups(
    sch: s_tir.Schedule, blocks: dict[str, Any], band: Any, tile: Any, workload: Conv2dWorkload, parallel: bool
) -> None:
    """The tables of a band of rows, and the reduction of one register tile.

    Parameters
    ----------
    sch : s_tir.Schedule
        In which the block "accumulate" is at its place.
    blocks : dict of str to SBlockRV
        By name.
    band, tile : LoopRV
        Over bands of rows, and over register tiles.
    workload : Conv2dWorkload
        With a table.
    parallel : bool
        Whether the making of tables is spread over threads.
    """
    if workload.has_quintets:  # half a pixel, since TVM cannot place a block that has no place in a dimension
        made_at_once, maker = table_bytes(workload) // 2, arm_tables.register_quintets(workload.weight_words // 2)
    else:
        made_at_once, maker = tables_of_word(workload.word_bits), x86_tables.register("table", workload.word_bits)
    # TVM can divide a block into an instruction's only before bands make its rows overlap.
    _, entries = sch.split(sch.get_loops(blocks["table"])[-1], [None, made_at_once])
    table = sch.blockize(entries)
    if workload.has_quintets:
        instructions = _place_quintets(sch, blocks["accumulate"], workload)
    elif workload.word_bits == 8:
        instructions = _place_octets(sch, blocks, tile, workload)
    else:
        instructions = _place_words(sch, blocks["accumulate"], workload)
    if workload.weight_words > 1:
        sch.compute_at(table, band, preserve_unit_loops=True)
    if parallel:
        *_, row, column, _ = sch.get_loops(table)
        sch.parallel(row if workload.out_height > 1 else column)
    # TVM loses track of a block when it becomes an instruction: those come last.
    for place, name in [(table, maker), *instructions]:
        sch.tensorize(place, name)


def _place_words(sch: s_tir.Schedule, block: Any, workload: Conv2dWorkload) -> list[tuple[Any, str]]:
    """The reduction by words of 32 bits, and the instruction of its lanes."""
    *spatial, lane, kh, kw, step, half, octet = _own(sch, block)
    sch.reorder(kh, kw, step, *spatial, lane, half, octet)
    for loop in spatial:
        sch.unroll(loop)
    sch.set_scope(block, 0, "local")
    *_, lanes = sch.get_loops(sch.decompose_reduction(block, kh))
    sch.vectorize(lanes)
    return [(lane, x86_tables.register("words", joined_words(workload)))]


def _place_quintets(sch: s_tir.Schedule, block: Any, workload: Conv2dWorkload) -> list[tuple[Any, str]]:
    """The reduction by indices of five bits in a register tile: all of it is one instruction."""
    loops = dict(zip(_QUINTET_AXES, sch.get_loops(block)[-len(_QUINTET_AXES) :], strict=True))
    extents = {axis: int(sch.get(loop).extent) for axis, loop in loops.items()}
    inside = [axis for axis in ("y", "x", "group", "lane", "kh", "kw", "index") if extents[axis] > 1]
    outside = [axis for axis in _QUINTET_AXES if axis not in inside]
    outside.sort(key=_REDUCED.__contains__)
    sch.reorder(*(loops[axis] for axis in (*outside, *inside)))
    for axis in outside:
        sch.unroll(loops[axis])
    tables = sch.get(block).reads[_TABLES].source
    has_rows = extents["kh"] > 1 or extents["y"] > 1
    first = next(axis for axis in (*outside, *inside) if axis in (*inside, *_REDUCED))
    start = sch.decompose_reduction(block, loops[first])
    *pixels, lane = sch.get_loops(start)[-sum(axis not in _REDUCED for axis in inside) :]
    for loop in pixels:
        sch.unroll(loop)
    sch.vectorize(lane)
    assert workload.table is not None
    tile = arm_tables.TableTile(
        rows=extents["y"],
        columns=extents["x"],
        vectors=extents["group"],
        kernel=workload.kernel,
        strides=table_strides(workload),
        dilation=workload.dilation,
        indices=workload.weight_words,
        pitch=int(tables.shape[2]) * table_bytes(workload) if has_rows else 0,
        most=most_lookups(workload.table.activation_bits),
    )
    return [(loops[inside[0]], arm_tables.register_lookups(tile))]


def _place_octets(
    sch: s_tir.Schedule, blocks: dict[str, Any], tile: Any, workload: Conv2dWorkload
) -> list[tuple[Any, str]]:
    """The reduction by words of 8 bits in a register tile, and the instructions of its lanes."""
    *spatial, lane = _own(sch, blocks["accumulate"])
    for loop in spatial:
        sch.unroll(loop)
    sch.set_scope(blocks["accumulate"], 0, "local")
    pairs, partial, nibble = blocks["pairs"], blocks["partial"], blocks["nibble"]
    sch.compute_at(pairs, tile, preserve_unit_loops=True)
    reduction, spatial = _outside(sch, pairs)
    if len(reduction) > 1:
        # Neighbouring columns of the window are neighbours in memory: one loop enters and leaves registers less often.
        reduction = [*reduction[:-2], sch.fuse(*reduction[-2:])]
    sch.compute_at(partial, reduction[-1], preserve_unit_loops=True)
    steps, positions = _outside(sch, partial)
    # LLVM unrolls the loop over bytes itself, after it reorders sums, which would take more registers than there are.
    sch.unroll(steps[-1])
    sch.compute_at(nibble, steps[-1], preserve_unit_loops=True)
    *front, nibbles = _own(sch, nibble)
    for loop in front:
        sch.unroll(loop)
    sch.vectorize(nibbles)
    sch.set_scope(nibble, 0, "local")
    for block, loops, zeros in ((pairs, spatial[:-2], reduction[0]), (partial, positions[:-1], steps[0])):
        for loop in loops:
            sch.unroll(loop)
        *_, parity, lanes = sch.get_loops(sch.decompose_reduction(block, zeros))
        sch.unroll(parity)
        sch.vectorize(lanes)
    places = {"interleave": lane, "pairs": spatial[-2], "lookup": positions[-1]}
    return [(place, x86_tables.register(kind, workload.lanes)) for kind, place in places.items()]


def _own(sch: s_tir.Schedule, block: Any) -> list[Any]:
    """The loops of a block's own variables."""
    return sch.get_loops(block)[-len(sch.get(block).iter_vars) :]


def _outside(sch: s_tir.Schedule, block: Any) -> tuple[list[Any], list[Any]]:
    """Put the reduction loops of a block, whose sums become local, outside its spatial ones; return both."""
    variables, own = sch.get(block).iter_vars, _own(sch, block)
    count = sum(variable.iter_type == tirx.IterVar.DataPar for variable in variables)
    spatial, reduction = own[:count], own[count:]
    sch.reorder(*reduction, *spatial)
    sch.set_scope(block, 0, "local")
    return reduction, spatial
