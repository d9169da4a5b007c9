"""What there is to choose about the schedule of a kernel: its knobs, their valid values, and their analytic default.

A :class:`KernelKind` is all that tuning and looking up records know of a kind of kernel.  A kind that is not in `KINDS`
has nothing to choose and keeps its analytic schedule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx

from tvmq.kernels.conv2d import KERNEL_ATTRIBUTE, WORKLOAD_ATTRIBUTE, byte_chunk, tiled_width
from tvmq.kernels.depth import unrolls
from tvmq.kernels.schedule import Conv2dKnobs, TargetLike, apply_knobs, function_knobs, vector_registers
from tvmq.kernels.tiling import RegisterTile, fits_registers, register_tile
from tvmq.kernels.workload import Affine, Conv2dWorkload, Epilogue, Float, Integer, Thresholds
from tvmq.records import Key

__all__ = ["KINDS", "KernelKind", "Knobs", "kind_of"]

Knobs = dict[str, int]
"""A point of the search space: the value of every knob."""

MOST_ROWS = 8
"""Rows of a register tile: more never fit beside enough columns."""
MOST_UNROLLED = 512
"""Updates of accumulators in one unrolled loop body; larger ones leave the cache of decoded instructions."""


class KernelKind(Protocol):
    """What can be chosen about one kind of kernel; every function given to it is an unscheduled kernel of that kind."""

    def key(self, function: tirx.PrimFunc, target: TargetLike) -> Key:
        """The name of the kernel in records."""

    def title(self, function: tirx.PrimFunc) -> str:
        """The kernel in a few words, for people."""

    def default(self, function: tirx.PrimFunc, target: TargetLike) -> Knobs:
        """The analytic schedule."""

    def space(self, function: tirx.PrimFunc, target: TargetLike) -> list[Knobs]:
        """All points worth measuring, the default first."""

    def adapted(self, function: tirx.PrimFunc, target: TargetLike, knobs: Mapping[str, int]) -> Knobs | None:
        """The point of the space that keeps to the knobs of a record, also one of another shape; None if none does."""

    def apply(self, function: tirx.PrimFunc, target: TargetLike, knobs: Knobs) -> tirx.PrimFunc:
        """Schedule the kernel."""


def kind_of(function: Any) -> KernelKind | None:
    """The kind of an unscheduled kernel.

    Parameters
    ----------
    function : tirx.PrimFunc or other
        Anything that a module holds.

    Returns
    -------
    kind : KernelKind or None
        None for what has no knobs.
    """
    if not isinstance(function, tirx.PrimFunc) or not function.attrs or function.attrs.get("tirx.is_scheduled"):
        return None
    return KINDS.get(str(function.attrs.get(KERNEL_ATTRIBUTE)))


@dataclass(frozen=True)
class _Conv2dLimits:
    """The valid values of one convolution."""

    workload: Conv2dWorkload
    columns: int
    """What the columns of a register tile divide."""
    default: Conv2dKnobs
    registers: int | None

    @classmethod
    def of(cls, function: tirx.PrimFunc, target: TargetLike) -> _Conv2dLimits:
        workload = _workload(function)
        width = function.params[-1].shape[2]
        columns = tiled_width(workload, int(width)) if isinstance(width, int | tirx.IntImm) else None
        if columns is None:  # an open number of samples is computed in whole default tiles
            columns = register_tile(workload, width).columns
        return cls(workload, columns, function_knobs(function, target), vector_registers(workload, target))

    @property
    def channel_tiles(self) -> list[int]:
        """Vectors of output channels: whole groups that divide all of them."""
        group = self.workload.group_channels // self.workload.lanes
        return [group * size for size in _divisors(self.workload.out_channels_padded // self.workload.group_channels)]

    @property
    def words(self) -> int:
        """Words of the innermost loop of the reduction; 1 where it is not over words of bits."""
        if self.workload.combine not in ("xor", "and"):
            return 1
        if self.workload.word_bits == 32:
            return self.workload.in_words
        return byte_chunk(self.workload.in_words, self.workload.pairs_per_class)

    def row_tiles(self, pixel_rows: int) -> list[int]:
        rows = self.workload.out_height
        return [size for size in range(pixel_rows, rows + 1, pixel_rows) if rows % size == 0]

    def fits(self, tile: RegisterTile) -> bool:
        """Whether a register tile is valid and in registers; the default always is."""
        default = self.default
        if (tile.rows, tile.columns, tile.vectors) == (default.pixel_rows, default.pixel_tile, default.channel_tile):
            return True
        whole = self.columns % tile.columns == 0 and self.workload.out_height % tile.rows == 0
        return whole and tile.vectors in self.channel_tiles and fits_registers(self.workload, tile, self.registers)

    def tiles(self) -> Iterator[RegisterTile]:
        for rows in _divisors(self.workload.out_height):
            for columns in _divisors(self.columns):
                for vectors in self.channel_tiles:
                    tile = RegisterTile(rows, columns, vectors)
                    if rows <= MOST_ROWS and self.fits(tile):
                        yield tile

    def unrolls(self, tile: RegisterTile) -> list[int]:
        """Words unrolled, as long as the loop's body stays small."""
        workload = self.workload
        updates = tile.rows * tile.columns * tile.vectors * workload.activation_planes * workload.weight_planes
        if workload.depth is not None:
            updates *= workload.depth.step // 2
        sizes = _divisors(self.words) if workload.depth is None else unrolls(workload)
        return [size for size in sizes if size == 1 or updates * size <= MOST_UNROLLED]

    def blocked_rows(self, tile: RegisterTile) -> list[int]:
        """Rows per channel tile; all the same where there is one channel tile and no thread to share the rows with.

        Tables are made for so many rows at once, which always matters.
        """
        sizes = self.row_tiles(tile.rows)
        if self.workload.table is not None:
            return sizes
        if self.channel_tiles[-1] == tile.vectors and not self.default.parallel:
            return sizes[-1:]
        return sizes


class Conv2dKind:
    """Convolutions and dense layers over packed bit planes; the knobs are those of `Conv2dKnobs` that are numbers."""

    def key(self, function: tirx.PrimFunc, target: TargetLike) -> Key:
        """See :class:`KernelKind`; a dense layer over an open number of samples has no width."""
        workload = _workload(function)
        width = function.params[0].shape[2]
        threads = getattr(target, "cores", 1) if function_knobs(function, target).parallel else 1
        shape = {
            "height": workload.height,
            **({"width": int(width)} if isinstance(width, int | tirx.IntImm) else {}),
            "in_channels": workload.in_channels,
            "out_channels": workload.out_channels,
        }
        traits: dict[str, int | str] = {
            "kernel": _times(workload.kernel),
            "strides": _times(workload.strides),
            "padding": ",".join(map(str, workload.padding)),
            "dilation": _times(workload.dilation),
            "activation_planes": workload.activation_planes,
            "weight_planes": workload.weight_planes,
            "combine": workload.combine,
            "classes": workload.classes,
        }
        if workload.dot is not None:
            traits |= {"gathered": int(workload.dot.gathered)}
        if workload.table is not None:
            traits |= {"activation_bits": workload.table.activation_bits}
        if workload.depth is not None:
            traits |= {"depth_step": workload.depth.step}
        details: dict[str, int | str] = {"epilogue": _epilogue(workload.epilogue), "threads": threads}
        return Key("conv2d", shape, traits, details)

    def title(self, function: tirx.PrimFunc) -> str:
        """See :class:`KernelKind`."""
        workload = _workload(function)
        width = function.params[0].shape[2]
        planes = workload.weight_planes, workload.activation_planes
        bits = "w{}a{}".format(*planes) if workload.dot is None else "bytes"
        if workload.table is not None:
            bits = f"w1a{workload.table.activation_bits} by tables"
        channels = f"{workload.in_channels} to {workload.out_channels}"
        if workload.kernel == (1, 1) and workload.height == 1:
            rows = f"{int(width)} x " if isinstance(width, int | tirx.IntImm) else ""
            return f"dense {rows}{channels}, {bits}"
        stride = "" if workload.strides == (1, 1) else f" stride {_times(workload.strides)}"
        return f"conv {_times(workload.kernel)}{stride} {workload.height}x{workload.width}, {channels}, {bits}"

    def default(self, function: tirx.PrimFunc, target: TargetLike) -> Knobs:
        """See :class:`KernelKind`."""
        return _numbers(function_knobs(function, target))

    def space(self, function: tirx.PrimFunc, target: TargetLike) -> list[Knobs]:
        """See :class:`KernelKind`."""
        limits = _Conv2dLimits.of(function, target)
        default = _numbers(limits.default)
        points = [
            {**_tile(tile), "row_tile": rows, "unroll_words": words}
            for tile in limits.tiles()
            for rows in limits.blocked_rows(tile)
            for words in limits.unrolls(tile)
        ]
        return [default, *(point for point in points if point != default)]

    def adapted(self, function: tirx.PrimFunc, target: TargetLike, knobs: Mapping[str, int]) -> Knobs | None:
        """The register tile as it is, or None; the other knobs as near as the shape allows."""
        limits = _Conv2dLimits.of(function, target)
        if set(knobs) != set(_NAMES):
            return None
        tile = RegisterTile(knobs["pixel_rows"], knobs["pixel_tile"], knobs["channel_tile"])
        if not limits.fits(tile):
            return None
        most = knobs["row_tile"]
        if limits.default.parallel:
            most = min(most, limits.default.row_tile)  # fewer pieces than threads help nobody
        rows, words = limits.row_tiles(tile.rows), limits.unrolls(tile)
        row_tile = max([size for size in rows if size <= most], default=rows[0])
        unroll_words = max(size for size in words if size <= knobs["unroll_words"])
        return {**knobs, "row_tile": row_tile, "unroll_words": unroll_words}

    def apply(self, function: tirx.PrimFunc, target: TargetLike, knobs: Knobs) -> tirx.PrimFunc:
        """See :class:`KernelKind`."""
        chosen: dict[str, Any] = {**dataclasses.asdict(function_knobs(function, target)), **knobs}
        return apply_knobs(function, Conv2dKnobs(**chosen))


KINDS: dict[str, KernelKind] = {"conv2d": Conv2dKind()}
"""By the value of the attribute ``tvmq.kernel``."""

_NAMES = ("pixel_tile", "pixel_rows", "channel_tile", "row_tile", "unroll_words")


def _numbers(knobs: Conv2dKnobs) -> Knobs:
    """The knobs that are searched; the others follow from the core."""
    return {name: getattr(knobs, name) for name in _NAMES}


def _tile(tile: RegisterTile) -> dict[str, int]:
    return {"pixel_tile": tile.columns, "pixel_rows": tile.rows, "channel_tile": tile.vectors}


def _workload(function: tirx.PrimFunc) -> Conv2dWorkload:
    return Conv2dWorkload.from_json(str(function.attrs[WORKLOAD_ATTRIBUTE]))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _times(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]}x{sizes[1]}"


def _epilogue(epilogue: Epilogue) -> str:
    """What follows the reduction, as far as it takes time."""
    if isinstance(epilogue, Thresholds):
        return f"{epilogue.count} thresholds"
    if isinstance(epilogue, Integer):
        return "int32"
    if isinstance(epilogue, Affine):
        return "affine"
    parts = [epilogue.combine]
    parts += ["shortcut"] if epilogue.shortcut else []
    if epilogue.thresholds is not None:
        parts += [f"{epilogue.thresholds.count} thresholds"] + (["store"] if epilogue.store else [])
    assert isinstance(epilogue, Float)
    return ", ".join(parts)
