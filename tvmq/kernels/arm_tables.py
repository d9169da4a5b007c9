"""Instructions of 64-bit ARM for lookups in tables of 32 entries; see :mod:`tvmq.kernels.quintets`.

arm.quintets.Q      Q tables, three at a time: two lookups in 16 activations and the sums of their neighbours, of which
                    those of numbers behind the 32 bytes give zero
arm.lookups...      the whole reduction of one register tile: a loop of assembly
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from tvmq.kernels.arm_table_assembly import Lookups, Run, lookup_module
from tvmq.kernels.quintets import QUINTET
from tvmq.kernels.tables import QUINTET_ENTRIES, chosen_entry, entry_sum

__all__ = ["TableTile", "register_lookups", "register_quintets"]

_LANES = 16
_AT_ONCE = 3
"""Tables whose activations are in one vector."""
_NOTHING = 255
"""An index of nothing: the number that is looked up is zero."""
_VECTOR = "uint8x16"
_TBL = "llvm.aarch64.neon.tbl2.v16i8"


@dataclass(frozen=True)
class TableTile:
    """The reduction of a register tile.

    Attributes
    ----------
    rows, columns : int
        Output pixels.
    vectors : int
        Of 16 output channels.
    kernel, strides, dilation : (int, int)
        Of the convolution.
    indices : int
        Of a tap, as many as a pixel has tables.
    pitch : int
        Bytes of a row of tables; any number where there is one row.
    most : int
        Indices whose sums a byte can hold.
    """

    rows: int
    columns: int
    vectors: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    indices: int
    pitch: int
    most: int

    def lookups(self) -> Lookups:
        """The same as pointers and loops."""
        pixel, tap = QUINTET_ENTRIES * self.indices, _LANES * self.indices
        (kernel_h, kernel_w), (reach_h, reach_w) = self.kernel, self.dilation
        pixels = tuple(
            row * self.strides[0] * self.pitch + column * self.strides[1] * pixel
            for row in range(self.rows)
            for column in range(self.columns)
        )
        vectors = tuple(vector * kernel_h * kernel_w * tap for vector in range(self.vectors))
        rows = Run(kernel_h, reach_h * self.pitch, kernel_w * tap)
        if reach_w == 1 or kernel_w == 1:  # the columns of a window are neighbours in memory
            return Lookups(pixels, vectors, kernel_w * self.indices, self.most, (rows,))
        return Lookups(pixels, vectors, self.indices, self.most, (Run(kernel_w, reach_w * pixel, tap), rows))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the part of the tables that is read, of the indices and of the sums."""
        rows, columns = (
            (count - 1) * stride + (size - 1) * reach + 1
            for count, stride, size, reach in zip(
                (self.rows, self.columns), self.strides, self.kernel, self.dilation, strict=True
            )
        )
        return {
            "tables": (rows, columns, QUINTET_ENTRIES * self.indices),
            "weights": (self.vectors, *self.kernel, 1, self.indices, _LANES),
            "totals": (self.rows, self.columns, self.vectors, 1, 1, _LANES),
        }


@cache
def register_lookups(tile: TableTile) -> str:
    """Make TVM know the reduction of a register tile; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    tile : TableTile
        What it computes.

    Returns
    -------
    name : str
        Of an instruction from tables [rows, columns, 32 * indices] of the image and indices [vectors, KH, KW, 1,
        indices, 16] to uint16 sums [rows, columns, vectors, 1, 1, 16], without loops over one.
    """
    sizes = (tile.rows, tile.columns, tile.vectors, *tile.kernel, *tile.strides, *tile.dilation)
    name = ".".join(map(str, ("arm.lookups", *sizes, tile.indices, tile.pitch, tile.most)))
    function = "tvmq_" + name.replace(".", "_")
    module = lookup_module(function, tile.lookups())
    TensorIntrin.register(name, _description(tile), _implementation(tile, function, module), override=True)
    return name


@cache
def register_quintets(tables: int) -> str:
    """Make TVM know the tables of a pixel; once, since its TVMScript takes time to parse.

    Parameters
    ----------
    tables : int
        At least 4.

    Returns
    -------
    name : str
        From 5 * tables activations to 32 * tables entries, both of uint8.
    """
    name = f"arm.quintets.{tables}"
    TensorIntrin.register(name, *_quintets(tables), override=True)
    return name


def _header(tile: TableTile) -> str:
    """Buffers and regions of a tile."""
    regions = {name: f"{name}[{', '.join(f'0:{extent}' for extent in shape)}]" for name, shape in tile.shapes().items()}
    tables, weights, totals = tile.shapes().values()
    return f"""
def function(table: T.handle, weight: T.handle, total: T.handle) -> None:
    a, b = T.int64(), T.int64()
    c, d, e, f, g = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
    h, i, j, k, l = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
    tables = T.match_buffer(table, {tables}, "uint8", offset_factor=1, strides=[a, b, 1])
    weights = T.match_buffer(weight, {weights}, "uint8", offset_factor=1, strides=[c, d, e, f, g, 1])
    totals = T.match_buffer(total, {totals}, "uint16", offset_factor=1, strides=[h, i, j, k, l, 1])
    with T.sblock("root"):
        T.reads({regions["totals"]}, {regions["weights"]}, {regions["tables"]})
        T.writes({regions["totals"]})
"""


def _description(tile: TableTile) -> Any:
    """The sums as plain arithmetic; TVM has no loops over one pixel or one tap in it."""
    names = ("y", "x", "vector", "lane", "kh", "kw", "index")
    extents = (tile.rows, tile.columns, tile.vectors, _LANES, *tile.kernel, tile.indices)
    loops = {name: extent for name, extent in zip(names, extents, strict=True) if extent > 1}
    kinds = "".join("S" if name in names[:4] else "R" for name in loops)
    y, x, vector, _, kh, kw, _ = (name if name in loops else "0" for name in names)
    row, column = (
        f"{pixel} * {stride} + {tap} * {reach}"
        for pixel, stride, tap, reach in zip((y, x), tile.strides, (kh, kw), tile.dilation, strict=True)
    )
    own = ", ".join(f"{name}_" for name in loops)
    sums = f"totals[{y}, {x}, {vector}, 0, 0, lane]"
    text = f"""
@T.prim_func(s_tir=True){_header(tile)}
        for {own} in T.grid({", ".join(map(str, loops.values()))}):
            with T.sblock("accumulate"):
                {", ".join(loops)} = T.axis.remap("{kinds}", [{own}])
                {sums} = {sums} + T.Cast(
                    "uint16",
                    CHOSEN(tables, {row}, {column}, index, weights[{vector}, {kh}, {kw}, 0, index, lane]),
                )
"""

    def chosen(tables: Any, row: Any, column: Any, index: Any, bits: Any) -> Any:
        first = index * QUINTET_ENTRIES
        return chosen_entry(lambda entry: tables[row, column, first + entry], bits, QUINTET_ENTRIES)

    return tvm.script.from_source(text, {"T": T, "CHOSEN": chosen})


def _implementation(tile: TableTile, function: str, module: str) -> Any:
    """A call of the loop."""
    sums = (
        f"T.address_of(totals[{row}, {column}, {vector}, 0, 0, 0])"
        for row in range(tile.rows)
        for column in range(tile.columns)
        for vector in range(tile.vectors)
    )
    text = f"""
@T.prim_func(s_tir=True){_header(tile)}
        with T.attr(0, "pragma_import_llvm", MODULE):
            T.evaluate(
                T.call_extern(
                    "void", "{function}", T.address_of(tables[0, 0, 0]), T.address_of(weights[0, 0, 0, 0, 0, 0]),
                    {", ".join(sums)}
                )
            )
"""
    return tvm.script.from_source(text, {"T": T, "MODULE": module})


def _constant(numbers: list[int]) -> Any:
    return T.Shuffle([tirx.const(number, "uint8") for number in numbers], [*range(len(numbers))])


def _places(first: int) -> list[Any]:
    """Where the entries of the lower half of a table find what they select of two channels, and of the next two.

    Parameters
    ----------
    first : int
        The first channel of the table among 16 activations, whose sums of neighbours follow them.
    """

    def of_pair(pair: int) -> list[int]:
        place = first + 2 * pair
        choices = (_NOTHING, place, place + 1, _LANES + place)
        return [choices[entry >> 2 * pair & 3] for entry in range(_LANES)]

    return [_constant(of_pair(pair)) for pair in (0, 1)]


def _quintets(tables: int) -> tuple[Any, Any]:
    channels, size = QUINTET * tables, QUINTET_ENTRIES * tables
    last = -(-tables // _AT_ONCE) - 1
    rest = tables - _AT_ONCE * last

    def five(activations: Any, first: Any) -> list[Any]:
        return [activations[first + bit] for bit in range(QUINTET)]

    def entries_of(activations: Any, first: int, count: int) -> Any:
        """Some tables, the first of which sums five activations from the given one on."""
        following = T.Shuffle([activations, tirx.Broadcast(tirx.const(0, "uint8"), _LANES)], [*range(1, _LANES + 1)])
        both = (activations, activations + following)
        halves = []
        for place in range(first, first + QUINTET * count, QUINTET):
            low, high = (tirx.call_llvm_pure_intrin(_VECTOR, _TBL, *both, places) for places in _places(place))
            fifth = T.Shuffle([activations], [place + QUINTET - 1] * _LANES)
            halves += [low + high, low + high + fifth]
        return T.Shuffle(halves, [*range(QUINTET_ENTRIES * count)])

    @T.prim_func(s_tir=True)
    def description(activation: T.handle, table: T.handle) -> None:
        activations = T.match_buffer(activation, (channels,), "uint8", offset_factor=1)
        entries = T.match_buffer(table, (size,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(activations[0:channels])
            T.writes(entries[0:size])
            for i in range(size):
                with T.sblock("table"):
                    place = T.axis.remap("S", [i])
                    entries[place] = entry_sum(five(activations, place // 32 * 5), place)

    @T.prim_func(s_tir=True)
    def implementation(activation: T.handle, table: T.handle) -> None:
        activations = T.match_buffer(activation, (channels,), "uint8", offset_factor=1)
        entries = T.match_buffer(table, (size,), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(activations[0:channels])
            T.writes(entries[0:size])
            for group in range(last):
                entries[T.Ramp(96 * group, 1, 96)] = entries_of(activations.vload([15 * group], "uint8x16"), 0, 3)
            # Its load must not reach behind the pixel.
            entries[T.Ramp(96 * last, 1, 32 * rest)] = entries_of(
                activations.vload([channels - 16], "uint8x16"), 16 - 5 * rest, rest
            )

    return description, implementation
