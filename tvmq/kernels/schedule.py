"""Schedules of the kernels, in the manner of dlight: a function in, a scheduled function out.

The convolution has one loop nest for every family.  From the outside in: image, row tile, channel tile, row, pixel
tile; then the reduction; innermost the register tile (pixels x vectors x classes, unrolled) and the lanes.  The
epilogue of a register tile follows its reduction, so the accumulators never leave the registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import s_tir, tirx

from tvmq.kernels import arm, arm_dot, x86
from tvmq.kernels.arm_depth import DEPTHS
from tvmq.kernels.conv2d import (
    KERNEL_ATTRIBUTE,
    MOST_CONDITIONS,
    WORKLOAD_ATTRIBUTE,
    tiled_width,
    vector_piece,
)
from tvmq.kernels.depth import unrolled_steps
from tvmq.kernels.depth_schedule import place_depths, schedule_spread
from tvmq.kernels.float_planes import schedule_float_planes
from tvmq.kernels.float_products import schedule_float_product
from tvmq.kernels.gather import register_gather
from tvmq.kernels.layout import schedule_channels_first
from tvmq.kernels.packing import PACKING_LANES
from tvmq.kernels.table_schedule import place_lookups, table_rows
from tvmq.kernels.tiling import RegisterTile, register_tile
from tvmq.kernels.workload import Conv2dWorkload

__all__ = [
    "Conv2dKnobs",
    "TargetLike",
    "apply_knobs",
    "default_knobs",
    "function_knobs",
    "schedule",
    "vector_registers",
]


_UNROLLED_CODES = 256
"""Codes of one window up to which their copy is unrolled, so that their positions are constants."""
_PARALLEL_MACS = 4_000_000
"""Binary multiply-accumulates below which waking other threads costs more than it saves."""
_UNROLLED_WORDS = 16
"""Words of one pixel up to which the sum of their popcounts is unrolled."""
_UNROLLED_UPDATES = 48
"""Updates of accumulators in the body of a loop over words, unless one word has more."""
_EPILOGUE = ("number", "addend", "store_number", "code", "mask", "word", "store_word", "byte", "store_byte")
"""Stages that follow the reduction; the first one that a workload has covers whole tiles."""
_ONE_WORD = ("x86.movemask.8x8", "arm.addv.8x8", "arm.vpadd.8x8")
"""Instructions that pack a vector of as many lanes as a word has bits."""
_MIN_PIECE = 4
"""Channels of a vector below which moving them one by one is as good."""
_POOL_LANES = {"uint8": 64, "uint32": 16}
"""Words that one vector of the pooling kernel holds at most."""
_FLOAT_POOL_LANES = 16
"""Channels that one vector of the pooling kernel of floats holds at most."""
_UNROLLED_TAPS = 9
"""Taps of a window of floats up to which they are unrolled."""
_SPREAD_STEPS = 1 << 15
"""Innermost steps from which a kernel that is not a product is spread over threads: those of some microseconds."""
_FEWEST_TASKS = 4
"""Steps of a loop from which it is spread over threads."""
_MOST_TASKS = 16
"""Pieces that a loop over all elements is spread in, at most."""
_VECTOR_STEPS = 64
"""Elements of whole vectors of any core."""
_UNROLLED_CHANNELS = 8
"""Bytes of a pixel up to which packing them is unrolled."""


class TargetLike(Protocol):
    """What a schedule asks about a core; `tvmq.target.Target` has it."""

    @property
    def arch(self) -> str:
        """One of "x86_64", "aarch64", "armv7l"."""

    @property
    def popcount(self) -> str:
        """One of "vpopcntdq", "pshufb", "cnt", "vcnt"."""

    @property
    def lanes(self) -> int:
        """Output channels per vector."""

    @property
    def word_bits(self) -> int:
        """Bits of a packed word."""

    @property
    def features(self) -> tuple[str, ...]:
        """LLVM feature names."""

    @property
    def dot(self) -> str | None:
        """The instruction for products of bytes: "vpdpbusd", "vpmaddubsw", "sdot", "smull", or none."""


@dataclass(frozen=True)
class Conv2dKnobs:
    """Choices of one convolution schedule; none of them changes the result.

    Attributes
    ----------
    pixel_tile : int
        Output columns in registers; divides the width that the function computes.
    pixel_rows : int
        Output rows in registers; divides the rows of the output.
    channel_tile : int
        Vectors of output channels in registers; a multiple of the vectors of a word.
    row_tile : int
        Output rows that reuse one channel tile of weights.
    unroll_words : int
        Words of the reduction that are unrolled.
    pack : str
        How bits become words: "scalar", or the name of a family's instruction.
    parallel : bool
        Whether row and channel tiles are spread over threads.
    vector_float : bool
        Whether float32 arithmetic is vectorised; NEON of 32-bit ARM flushes denormal numbers, its scalar unit does not.
    dot : str
        How bytes are multiplied: "scalar", or the name of a family's instruction.
    depth : str
        How vectors along the depth are counted: "scalar", or the name of a family's instruction.
    """

    pixel_tile: int
    pixel_rows: int
    channel_tile: int
    row_tile: int
    unroll_words: int = 1
    pack: str = "scalar"
    parallel: bool = False
    vector_float: bool = True
    dot: str = "scalar"
    depth: str = "scalar"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.pixel_tile, self.pixel_rows, self.channel_tile, self.row_tile, self.unroll_words) < 1:
            raise ValueError(f"tiles must be positive: {self}")
        if self.pack not in ("scalar", *x86.PACKS, *arm.PACKS):
            raise ValueError(f"unknown pack {self.pack!r}")
        if self.dot not in ("scalar", *x86.DOTS, *arm_dot.DOTS):
            raise ValueError(f"unknown dot product {self.dot!r}")
        if self.depth not in ("scalar", *DEPTHS):
            raise ValueError(f"unknown instruction along the depth {self.depth!r}")


def default_knobs(workload: Conv2dWorkload, target: TargetLike) -> Conv2dKnobs:
    """The analytic schedule: as many accumulators as fit in the registers.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    target : TargetLike
        The core.

    Returns
    -------
    knobs : Conv2dKnobs
        A point that every tuning search starts from.
    """
    return _knobs(workload, target, workload.out_width, tiled_width(workload, workload.out_width))


def function_knobs(function: tirx.PrimFunc, target: TargetLike) -> Conv2dKnobs:
    """The analytic schedule of a function, whose width may differ from its workload's.

    Parameters
    ----------
    function : tirx.PrimFunc
        From `tvmq.kernels.conv2d.conv2d`.
    target : TargetLike
        The core.

    Returns
    -------
    knobs : Conv2dKnobs
        What `schedule` applies.
    """
    workload = Conv2dWorkload.from_json(str(function.attrs[WORKLOAD_ATTRIBUTE]))
    width = _integer(function.params[-1].shape[2])
    return _knobs(workload, target, width, tiled_width(workload, width))


def _knobs(workload: Conv2dWorkload, target: TargetLike, out_width: Any, computed: Any) -> Conv2dKnobs:
    registers = vector_registers(workload, target)
    tile = register_tile(workload, out_width, registers, computed)
    columns = out_width if isinstance(out_width, int) else workload.out_width  # samples, where a layer is dense
    macs = _plane_macs(workload) // workload.out_width * columns
    cores = getattr(target, "cores", 1) if macs >= _PARALLEL_MACS else 1
    channel_tiles = workload.out_channels_padded // workload.lanes // tile.vectors
    gathered = workload.dot is not None and workload.dot.gathered
    row_tile = tile.rows if gathered else _row_tile(workload.out_height, tile.rows, channel_tiles, cores)
    if workload.table is not None:
        row_tile = table_rows(workload, tile.rows, channel_tiles, cores)
    return Conv2dKnobs(
        pixel_tile=tile.columns,
        pixel_rows=tile.rows,
        channel_tile=tile.vectors,
        row_tile=row_tile,
        unroll_words=_unrolled_words(workload, tile),
        pack=_pack(target, workload.word_bits, workload.lanes),
        parallel=cores > 1,
        vector_float=target.arch != "armv7l",
        dot=_dot(workload, target),
        depth=arm.depth(workload, target.arch, getattr(target, "mcpu", "")),
    )


def vector_registers(workload: Conv2dWorkload, target: TargetLike) -> int | None:
    """Vector registers that a register tile may use.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    target : TargetLike
        The core.

    Returns
    -------
    count : int or None
        None for as many as the lanes suggest.
    """
    if target.arch == "x86_64":
        return None
    return arm.vector_registers(target.arch, getattr(target, "mcpu", ""), workload.depth is not None)


def _unrolled_words(workload: Conv2dWorkload, tile: RegisterTile) -> int:
    """Words in the body of the innermost loop where a step of it is short, and counts vectors of 32-bit words."""
    if workload.depth is not None:
        return unrolled_steps(workload, tile.rows * tile.columns)
    if workload.reads_bytes or workload.word_bits != 32:
        return 1
    updates = tile.rows * tile.columns * tile.vectors * workload.activation_planes * workload.weight_planes
    return _divisor(workload.in_words, max(1, _UNROLLED_UPDATES // updates))


def _dot(workload: Conv2dWorkload, target: TargetLike) -> str:
    if workload.dot is None or target.dot is None:
        return "scalar"
    if workload.dot.form != "mixed":
        return arm_dot.dot(target.dot, workload.dot.pair_bound, target.arch)
    return x86.dot(target.dot, workload.lanes, workload.dot.pair_bound)


def _plane_macs(workload: Conv2dWorkload) -> int:
    return workload.macs * workload.activation_planes * workload.weight_planes


def _pack(target: TargetLike, word_bits: int, lanes: int) -> str:
    if target.arch == "x86_64":
        return x86.pack(word_bits, lanes)
    return arm.pack(word_bits, lanes, target.arch)


def _row_tile(rows: int, pixel_rows: int, channel_tiles: int, cores: int) -> int:
    """Rows per piece of work: all of them, or so few that every core gets two pieces."""
    if cores == 1 or channel_tiles >= 2 * cores:
        return rows
    sizes = [size for size in range(pixel_rows, rows + 1, pixel_rows) if rows % size == 0]
    enough = [size for size in sizes if rows // size * channel_tiles >= 2 * cores]
    return max(enough, default=min(sizes))


def apply_knobs(function: tirx.PrimFunc, knobs: Conv2dKnobs) -> tirx.PrimFunc:
    """Schedule a convolution.

    Parameters
    ----------
    function : tirx.PrimFunc
        From `tvmq.kernels.conv2d.conv2d`.
    knobs : Conv2dKnobs
        The schedule.

    Returns
    -------
    scheduled : tirx.PrimFunc
        The same function as loops, marked as scheduled.
    """
    workload = Conv2dWorkload.from_json(str(function.attrs[WORKLOAD_ATTRIBUTE]))
    sch = s_tir.Schedule(function)
    _schedule_conv2d(sch, workload, knobs)
    return _finish(sch)


def schedule(function: tirx.PrimFunc, target: TargetLike) -> tirx.PrimFunc | None:
    """Schedule a tvmq kernel with its defaults.

    Parameters
    ----------
    function : tirx.PrimFunc
        Any function.
    target : TargetLike
        The core.

    Returns
    -------
    scheduled : tirx.PrimFunc or None
        None if the function is not an unscheduled kernel of tvmq.
    """
    kernel = function.attrs.get(KERNEL_ATTRIBUTE) if function.attrs else None
    if kernel is None or function.attrs.get("tirx.is_scheduled"):
        return None
    if str(kernel) == "conv2d":
        return apply_knobs(function, function_knobs(function, target))
    if str(kernel) == "float_product":
        return schedule_float_product(function, target).with_attr("tirx.is_scheduled", True)
    if str(kernel) == "float_planes":
        return schedule_float_planes(function, target).with_attr("tirx.is_scheduled", True)
    sch = s_tir.Schedule(function)
    if getattr(target, "cores", 1) > 1 and str(kernel) != "quantize":
        for block in _blocks(sch).values():
            _spread_rows(sch, block)
    if str(kernel) in _GLUE:
        _GLUE[str(kernel)](sch, target)
    return _finish(sch)


def _spread_rows(sch: s_tir.Schedule, block: Any) -> None:
    """Spread the images of a batch or the rows of an image, whatever comes first, over threads if they are enough work.

    Neither the innermost loop, which has the lanes, nor a short one is spread.
    """
    loops = sch.get_loops(block)
    extents = [sch.get(loop).extent for loop in loops]
    steps = math.prod(int(extent) for extent in extents if isinstance(extent, tirx.IntImm))
    for loop, extent in zip(loops[:-1], extents, strict=False):
        if steps < _SPREAD_STEPS:
            return
        if isinstance(extent, tirx.IntImm):
            if int(extent) >= _FEWEST_TASKS:
                sch.parallel(loop)
                return
            steps //= int(extent)  # in every step of this loop


def _integer(extent: Any) -> Any:
    return int(extent) if isinstance(extent, int | tirx.IntImm) else extent


def _finish(sch: s_tir.Schedule) -> tirx.PrimFunc:
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)


def _blocks(sch: s_tir.Schedule) -> dict[str, Any]:
    root = sch.get_sblock("root")
    return {str(sch.get(block).name_hint): block for block in sch.get_child_blocks(root)}


def _schedule_conv2d(sch: s_tir.Schedule, workload: Conv2dWorkload, knobs: Conv2dKnobs) -> None:
    blocks = _blocks(sch)
    epilogue = [name for name in _EPILOGUE if name in blocks]
    # The first stage of the epilogue is the anchor: it covers whole tiles, so nothing inside one is guarded.
    anchor = blocks[epilogue[0]]
    n, y, x, *inner = sch.get_loops(anchor)
    *planes, group, vector, lane = inner
    vectors = workload.group_channels // workload.lanes
    groups = _divisor(int(sch.get(group).extent), max(1, knobs.channel_tile // vectors))
    group_outer, group_inner = sch.split(group, [None, groups])
    rows = _divisor(workload.out_height, knobs.pixel_rows)
    row_tile = max(1, min(knobs.row_tile, workload.out_height) // rows)
    row_outer, row_inner, pixel_row = sch.split(y, [None, row_tile, rows])
    pixel_outer, pixel_inner = sch.split(x, [None, knobs.pixel_tile])
    sch.reorder(
        n, row_outer, group_outer, row_inner, pixel_outer, pixel_row, pixel_inner, *planes, group_inner, vector, lane
    )
    # Windows are gathered, or tables made, for one row of tiles, which all channels read.
    one_band = "table" in blocks and knobs.row_tile == workload.out_height
    banded = "gather" in blocks or ("table" in blocks and not one_band)
    tasks = [row_outer] if banded else [row_outer, group_outer]
    if isinstance(sch.get(n).extent, tirx.IntImm) and not one_band:
        tasks.insert(0, n)  # The analysis of fused loops does not see through a symbolic batch.
    outer = 5
    if knobs.parallel:
        row_outer = sch.fuse(*tasks)
        sch.parallel(row_outer)
        outer -= len(tasks) - 1
    for name in ("accumulate", "rest"):
        if name in blocks:
            sch.compute_at(blocks[name], pixel_outer, preserve_unit_loops=True)
    if "gather" in blocks:
        _schedule_gather(sch, blocks["gather"], row_outer, workload)
    if "table" in blocks:
        place_lookups(sch, blocks, n if one_band else row_outer, pixel_outer, workload, one_band and knobs.parallel)
    else:
        _place_reduction(sch, blocks, workload, knobs)
        if "rest" in blocks:
            _place_products(sch, blocks["rest"], workload, knobs)
    for name in epilogue[1:]:
        place = sch.compute_at if name == "addend" else sch.reverse_compute_at
        place(blocks[name], pixel_outer, preserve_unit_loops=True)
    for name in epilogue:
        own = sch.get_loops(blocks[name])[outer:]
        _schedule_epilogue(sch, name, blocks[name], own, workload, knobs)
    _schedule_prologue(sch, blocks, workload, knobs.parallel)


def _schedule_gather(sch: s_tir.Schedule, gather: Any, row: Any, workload: Conv2dWorkload) -> None:
    """Windows are copied where they are used: row by row of a window, if its columns are neighbours."""
    sch.compute_at(gather, row, preserve_unit_loops=True)
    position = sch.get_loops(gather)[-1]
    if workload.dilation[1] == 1:
        sch.tensorize(position, register_gather(*workload.kernel, workload.in_channels, workload.dilation[0]))


def _power_of_two(number: int, most: int) -> int:
    """The largest power of two that divides a number and is at most `most`."""
    return min(number & -number, most)


def _divisor(number: int, most: int) -> int:
    return max(size for size in range(1, min(number, most) + 1) if number % size == 0)


def _place_reduction(sch: s_tir.Schedule, blocks: dict[str, Any], workload: Conv2dWorkload, knobs: Conv2dKnobs) -> None:
    """The accumulators of one register tile; sums of bytes inside the sum that widens them."""
    accumulate = blocks["accumulate"]
    if workload.dot is not None:
        _place_products(sch, accumulate, workload, knobs)
        return
    if workload.depth is not None:
        place_depths(sch, accumulate, workload, knobs.unroll_words, knobs.depth)
        return
    reduction = _register_tile(sch, accumulate)
    if "partial" not in blocks:
        reduction = _unroll_words(sch, reduction, workload, knobs)
        sch.decompose_reduction(accumulate, reduction[0])
        return
    partial = blocks["partial"]
    sch.compute_at(partial, reduction[-1], preserve_unit_loops=True)
    inner = _register_tile(sch, partial)
    inner = _unroll_words(sch, inner, workload, knobs)
    sch.decompose_reduction(partial, inner[0])
    sch.decompose_reduction(accumulate, reduction[0])


def _place_products(sch: s_tir.Schedule, accumulate: Any, workload: Conv2dWorkload, knobs: Conv2dKnobs) -> None:
    """The same for products of bytes: lanes and the bytes of a step are one instruction."""
    if knobs.dot in arm_dot.DOTS:
        _place_signed_products(sch, accumulate, workload, knobs)
        return
    *spatial, lane, kh, kw, step, byte = sch.get_loops(accumulate)[-11:]
    sch.reorder(kh, kw, step, *spatial, lane, byte)
    for loop in spatial:
        sch.unroll(loop)
    sch.set_scope(accumulate, 0, "local")
    start = sch.decompose_reduction(accumulate, kh)
    sch.vectorize(sch.get_loops(start)[-1])
    if knobs.dot == "scalar":
        sch.unroll(byte)
        return
    x86.register(knobs.dot)
    sch.tensorize(lane, knobs.dot)


def _place_signed_products(sch: s_tir.Schedule, block: Any, workload: Conv2dWorkload, knobs: Conv2dKnobs) -> None:
    """Signed ones: the columns of a tile, its lanes, and the steps that are loaded at once are one instruction."""
    n, row, column, group, vector, klass, lane, kh, kw, chunk, step, byte = sch.get_loops(block)[-12:]
    steps, columns = int(sch.get(step).extent), knobs.pixel_tile
    outside = [loop for loop, extent in ((step, steps), (column, columns)) if extent == 1]
    inside = [loop for loop in (column, lane, step, byte) if loop not in outside]
    sch.reorder(kh, kw, chunk, n, row, group, vector, klass, *outside, *inside)
    for loop in (n, row, group, vector, klass):
        sch.unroll(loop)
    start = sch.decompose_reduction(block, kh)
    *_, first, last = sch.get_loops(start)
    sch.unroll(first)
    sch.vectorize(last)
    assert workload.dot is not None
    stride = 1 if workload.dot.gathered else workload.strides[1]
    sch.tensorize(inside[0], arm_dot.register(knobs.dot, columns, stride, steps))


def _register_tile(sch: s_tir.Schedule, block: Any) -> list[Any]:
    """Put the reduction loops of a block outside its spatial ones, unroll these, and vectorise the lanes."""
    variables = sch.get(block).iter_vars
    own = sch.get_loops(block)[-len(variables) :]
    count = sum(variable.iter_type == tirx.IterVar.DataPar for variable in variables)
    spatial, reduction = own[:count], own[count:]
    sch.reorder(*reduction, *spatial)
    for loop in spatial[:-1]:
        sch.unroll(loop)
    sch.vectorize(spatial[-1])
    sch.set_scope(block, 0, "local")
    return reduction


def _unroll_words(sch: s_tir.Schedule, loops: list[Any], workload: Conv2dWorkload, knobs: Conv2dKnobs) -> list[Any]:
    """Unroll plane pairs, whose predicates fold away then, and some words; return the loops that result."""
    pairs = 0 if workload.pairs_are_classes else 2
    place = len(loops) - pairs - 1
    for loop in loops[place + 1 :]:
        sch.unroll(loop)
    factor = _divisor(int(sch.get(loops[place]).extent), knobs.unroll_words)
    if factor == 1:
        return loops
    outer, inner = sch.split(loops[place], [None, factor])
    sch.unroll(inner)
    return [*loops[:place], outer, inner, *loops[place + 1 :]]


def _schedule_epilogue(
    sch: s_tir.Schedule, name: str, block: Any, own: list[Any], workload: Conv2dWorkload, knobs: Conv2dKnobs
) -> None:
    """One stage that follows the reduction, on the registers of one tile."""
    # TVM puts what is "local" on the heap, but few "global" sums and results of a tile on the stack.  From there LLVM
    # lifts them into registers.
    signed = workload.dot is not None and workload.dot.form != "mixed"
    on_stack = signed or workload.has_quintets or knobs.depth != "scalar"
    if name in ("mask", "word"):
        sch.set_scope(block, 0, arm.pack_scope(knobs.pack))
    elif not name.startswith("store") and not on_stack:
        sch.set_scope(block, 0, "local")
    if name == "word":
        _pack_words(sch, block, own, workload.word_bits == 32, knobs.pack)
        return
    *loops, last = own
    piece = vector_piece(workload) if name in ("store_number", "addend") else workload.lanes
    if name == "store_byte":
        piece = _power_of_two(workload.out_words, workload.lanes)
    if name in ("store_number", "store_byte") or piece < workload.lanes:
        outer, last = sch.split(last, [None, piece])
        loops.append(outer)
    for loop in loops:
        sch.unroll(loop)
    is_vector = name != "store_word" and piece >= _MIN_PIECE
    if is_vector and (knobs.vector_float or not _computes_float(name, workload)):
        sch.vectorize(last)
    else:
        sch.unroll(last)


def _computes_float(name: str, workload: Conv2dWorkload) -> bool:
    """Whether a stage of the epilogue does arithmetic with float32 numbers or compares them."""
    epilogue = workload.float_epilogue
    if epilogue is None:
        return False
    thresholds = epilogue.thresholds
    compares = "code" if thresholds is not None and thresholds.count > MOST_CONDITIONS else "mask"
    return name in ("number", "byte", compares)


def _pack_words(sch: s_tir.Schedule, block: Any, loops: list[Any], one_word: bool, pack: str) -> None:
    """The sum of shifted bits, or the instruction that does the same; a group is one word or one vector."""
    reductions = 2 if one_word else 1
    for loop in loops[: -reductions - 1]:
        sch.unroll(loop)
    sch.decompose_reduction(block, loops[-reductions - 1])
    if pack == "scalar":
        for loop in loops[-reductions - 1 :]:
            sch.unroll(loop)
        return
    (x86 if pack in x86.PACKS else arm).register(pack)
    # A word of one vector has no loop over vectors.
    sch.tensorize(loops[-1] if pack in _ONE_WORD else loops[-2], pack)


def _schedule_prologue(sch: s_tir.Schedule, blocks: dict[str, Any], workload: Conv2dWorkload, parallel: bool) -> None:
    """Padding as a zero fill and a copy of rows; sums of one pixel at a time, their box sums along the rows."""
    if "pixel_sum" in blocks:
        sch.compute_at(blocks["plane_sum"], sch.get_loops(blocks["pixel_sum"])[2], preserve_unit_loops=True)
        sch.set_scope(blocks["plane_sum"], 0, "local")
        plane, word = sch.get_loops(blocks["plane_sum"])[-2:]
        sch.reorder(word, plane)
        sch.unroll(plane)
        if int(sch.get(word).extent) <= _UNROLLED_WORDS:
            sch.unroll(word)
        sch.decompose_reduction(blocks["plane_sum"], word)
    if "window_sum" in blocks:
        _, _, x, kh, kw = sch.get_loops(blocks["window_sum"])
        sch.reorder(kh, kw, x)
        sch.decompose_reduction(blocks["window_sum"], kh)
    if "spread" in blocks:
        schedule_spread(sch, blocks["spread"], workload)
    if "pad" in blocks:
        if parallel:
            _spread_rows(sch, blocks["pad"])
        outermost = sch.get_loops(blocks["pad"])[0]
        if sch.can_decompose_padding(blocks["pad"], outermost):
            sch.decompose_padding(blocks["pad"], outermost)


def _schedule_bitpack(sch: s_tir.Schedule, target: TargetLike) -> None:
    """One pixel at a time: its codes as contiguous bytes, then every plane of a group of them."""
    blocks = _blocks(sch)
    _, _, x, plane, group, vector, lane = sch.get_loops(blocks["mask"])
    sch.reorder(x, group, plane, vector, lane)
    sch.compute_at(blocks["patch"], x)
    sch.set_scope(blocks["patch"], 0, "local")
    codes = sch.get_loops(blocks["patch"])[-1]
    if int(sch.get(codes).extent) <= _UNROLLED_CODES:
        sch.unroll(codes)
    for name in ("word", "store"):
        sch.reverse_compute_at(blocks[name], plane, preserve_unit_loops=True)
    lanes = int(sch.get(lane).extent)
    word_bits = 32 if int(sch.get(vector).extent) == 2 else 8
    pack = _pack(target, word_bits, lanes)
    for name in ("mask", "word"):
        sch.set_scope(blocks[name], 0, arm.pack_scope(pack))
    _pack_words(sch, blocks["word"], sch.get_loops(blocks["word"])[5:], word_bits == 32, pack)
    for loop in sch.get_loops(blocks["store"])[5:]:
        sch.unroll(loop)
    sch.unroll(plane)
    sch.unroll(vector)
    sch.vectorize(lane)


def _schedule_bitpack_pixels(sch: s_tir.Schedule, _target: TargetLike) -> None:
    """A word of every plane for some pixels of a row at a time, whose bits are gathered channel by channel."""
    blocks = _blocks(sch)
    n, row, column, plane, word = sch.get_loops(blocks["store"])
    outer, pixel = sch.split(column, [None, _divisor(int(sch.get(column).extent), PACKING_LANES)])
    sch.reorder(n, row, outer, word, plane, pixel)
    sch.compute_at(blocks["word"], word, preserve_unit_loops=True)
    sch.set_scope(blocks["word"], 0, "local")
    *_, pixel_in, plane_in, _, bit = sch.get_loops(blocks["word"])
    sch.reorder(bit, plane_in, pixel_in)
    sch.unroll(bit)
    sch.unroll(plane_in)
    sch.vectorize(pixel_in)
    sch.unroll(plane)
    sch.vectorize(pixel)
    sch.decompose_reduction(blocks["word"], bit)


def _schedule_bytes(sch: s_tir.Schedule, _target: TargetLike) -> None:
    """The bytes of one pixel unrolled where they are few; LLVM vectorises over pixels, or over channels."""
    *_, _, channel = sch.get_loops(_blocks(sch)["store"])
    if int(sch.get(channel).extent) <= _UNROLLED_CHANNELS:
        sch.unroll(channel)


def _schedule_byteunpack(sch: s_tir.Schedule, _target: TargetLike) -> None:
    """The channels of a pixel innermost."""
    _, c, y, x = sch.get_loops(_blocks(sch)["codes"])
    sch.reorder(y, x, c)


def _schedule_bytes_to_bits(sch: s_tir.Schedule, target: TargetLike) -> None:
    """Every plane of a group of bytes at a time."""
    blocks = _blocks(sch)
    _, _, x, plane, group, vector, lane = sch.get_loops(blocks["mask"])
    sch.reorder(x, group, plane, vector, lane)
    for name in ("word", "store"):
        sch.reverse_compute_at(blocks[name], plane, preserve_unit_loops=True)
    lanes = int(sch.get(lane).extent)
    word_bits = 32 if int(sch.get(vector).extent) == 2 else 8
    pack = _pack(target, word_bits, lanes)
    for name in ("mask", "word"):
        sch.set_scope(blocks[name], 0, arm.pack_scope(pack))
    _pack_words(sch, blocks["word"], sch.get_loops(blocks["word"])[5:], word_bits == 32, pack)
    for loop in sch.get_loops(blocks["store"])[5:]:
        sch.unroll(loop)
    sch.unroll(plane)
    sch.unroll(vector)
    sch.vectorize(lane)


def _schedule_pool(sch: s_tir.Schedule, _target: TargetLike) -> None:
    """The words of a pixel innermost, so that the bounds of a tap are tested once per pixel."""
    maximum = _blocks(sch)["maximum"]
    dtype = str(sch.get(maximum).writes[0].source.dtype)
    *_, words, kh, kw = sch.get_loops(maximum)
    sch.reorder(kh, kw, words)
    lanes = _power_of_two(int(sch.get(words).extent), _POOL_LANES[dtype])
    if lanes > 1:
        _, lane = sch.split(words, [None, lanes])
        sch.vectorize(lane)
    sch.decompose_reduction(maximum, kh)


def _schedule_float_pool(sch: s_tir.Schedule, _target: TargetLike) -> None:
    """A vector of channels at a time, whose maximum stays in a register over the taps of its window."""
    blocks = _blocks(sch)
    *_, channels = sch.get_loops(blocks["store"])
    lanes = _power_of_two(int(sch.get(channels).extent), _FLOAT_POOL_LANES)
    vector, lane = sch.split(channels, [None, lanes])
    sch.vectorize(lane)
    maximum = blocks["maximum"]
    sch.compute_at(maximum, vector, preserve_unit_loops=True)
    sch.set_scope(maximum, 0, "local")
    *_, lane, kh, kw = sch.get_loops(maximum)
    sch.reorder(kh, kw, lane)
    sch.vectorize(lane)
    if int(sch.get(kh).extent) * int(sch.get(kw).extent) <= _UNROLLED_TAPS:
        sch.unroll(kh)
        sch.unroll(kw)
    sch.decompose_reduction(maximum, kh)


def _schedule_quantize(sch: s_tir.Schedule, target: TargetLike) -> None:
    """All steps of the search on one element; LLVM vectorises over elements, which know no rows."""
    *stages, codes = sch.get_child_blocks(sch.get_sblock("root"))
    loops = sch.get_loops(codes)
    open_loops = [place for place, loop in enumerate(loops) if not isinstance(sch.get(loop).extent, tirx.IntImm)]
    # Only neighbours can be fused: those within the last loop of unknown extent.
    known = loops[open_loops[-1] + 1 :] if open_loops else loops
    innermost = sch.fuse(*known) if known else loops[-1]
    count = int(sch.get(innermost).extent) if known else 0
    if getattr(target, "cores", 1) > 1 and count >= _SPREAD_STEPS:
        # Where they divide the elements, every task has whole vectors.
        pieces = count // _VECTOR_STEPS if count % _VECTOR_STEPS == 0 else count
        task, innermost = sch.split(innermost, [_divisor(pieces, _MOST_TASKS), None])
        sch.parallel(task)
    for stage in reversed(stages):
        sch.compute_at(stage, innermost)
        sch.set_scope(stage, 0, "local")


_GLUE: dict[str, Callable[[s_tir.Schedule, TargetLike], None]] = {
    "bitpack": _schedule_bitpack,
    "bitpack_pixels": _schedule_bitpack_pixels,
    "bits_to_bytes": _schedule_bytes,
    "bytepack": _schedule_bytes,
    "bytes_to_bits": _schedule_bytes_to_bits,
    "byteunpack": _schedule_byteunpack,
    "channels_first": lambda sch, _target: schedule_channels_first(sch),
    "float_max_pool2d": _schedule_float_pool,
    "max_pool2d": _schedule_pool,
    "quantize": _schedule_quantize,
}
"""Kernels around the products; one that is not here keeps the loops of its definition."""
