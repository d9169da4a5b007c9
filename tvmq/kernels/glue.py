"""Schedules of TVM's own elementwise functions: the operators between the kernels that no kernel absorbs.

TVM leaves them as one loop nest per operator, with an inner loop as short as an image is wide.  Here they become one
nest, whose trailing loops are fused as far as every operand is either contiguous over them or constant, and vectorised.

Results keep their bits.  A product that one operator stores and another adds to is rounded in between; in one
expression LLVM would contract the two, so such products pass a fence, which is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tvm import s_tir, tirx
from tvm.ir import Call, TensorLoad
from tvm.s_tir.schedule import ScheduleError

from tvmq.kernels.conv2d import KERNEL_ATTRIBUTE
from tvmq.kernels.schedule import TargetLike

__all__ = ["schedule_glue"]

_LANES = 16
"""Elements of one step; LLVM splits them into the vectors of the core."""
_FEWEST_LANES = 4
"""Lanes below which a loop that they divide rather has a remainder."""
_BINARY = (
    tirx.Add,
    tirx.Sub,
    tirx.Mul,
    tirx.Div,
    tirx.Min,
    tirx.Max,
    tirx.EQ,
    tirx.NE,
    tirx.LT,
    tirx.LE,
    tirx.GT,
    tirx.GE,
    tirx.And,
    tirx.Or,
)
_CALLS = frozenset(
    f"tirx.{name}"
    for name in (
        "bitwise_and",
        "bitwise_not",
        "bitwise_or",
        "bitwise_xor",
        "call_llvm_pure_intrin",
        "ceil",
        "exp",
        "fabs",
        "floor",
        "log",
        "nearbyint",
        "round",
        "rsqrt",
        "shift_left",
        "shift_right",
        "sigmoid",
        "sqrt",
        "tanh",
        "trunc",
    )
)
"""Functions of one element that have a vector form."""


def schedule_glue(function: tirx.PrimFunc, target: TargetLike | None = None) -> tirx.PrimFunc | None:
    """Schedule an elementwise function.

    Parameters
    ----------
    function : tirx.PrimFunc
        A function of TVM without a schedule: one or several elementwise or broadcasting operators, after
        :func:`tvmq.kernels.rounding.round_products`; inlining may bring a product next to a sum.
    target : TargetLike, optional
        The core.  NEON of 32-bit ARM flushes denormal numbers, its scalar unit does not: float32 stays scalar there.

    Returns
    -------
    scheduled : tirx.PrimFunc or None
        The same function, bit for bit; None if it is anything else than elementwise, or has no trailing loops of known
        size over which every operand is contiguous or constant.
    """
    blocks = _elementwise_blocks(function)
    if not blocks:
        return None
    sch = s_tir.Schedule(function)
    *others, last = (sch.get_sblock(block.name_hint) for block in blocks)
    try:
        for other in others:
            sch.compute_inline(other)
    except ScheduleError:  # Such as an intermediate that is read before it is written.
        return None
    fused = _contiguous_loops(sch.get(last))
    if fused is None:
        return None
    loop = sch.fuse(*sch.get_loops(last)[fused:])
    scalar = target is not None and target.arch == "armv7l" and _has_floats(sch.get(last))
    if not scalar:
        _vectorize(sch, loop)
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)


def _vectorize(sch: s_tir.Schedule, loop: Any) -> None:
    """Vectors over a loop, and its remainder one by one."""
    extent = int(sch.get(loop).extent)
    lanes = math.gcd(extent, _LANES)
    if lanes < _FEWEST_LANES:
        lanes = _LANES
        if extent < lanes:
            return
        loop, _ = sch.loop_partition(loop, [extent // lanes * lanes, None])
    _, lane = sch.split(loop, [None, lanes])
    sch.vectorize(lane)


def _elementwise_blocks(function: tirx.PrimFunc) -> list[Any]:
    """The operators of a function in their order, or nothing if one is not elementwise."""
    attrs = function.attrs or {}
    if KERNEL_ATTRIBUTE in attrs or "tirx.is_scheduled" in attrs or not isinstance(function.body, s_tir.SBlockRealize):
        return []
    root = function.body.block
    nests = list(root.body) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    blocks = [_block(nest) for nest in nests]
    if any(block is None for block in blocks) or len({block.name_hint for block in blocks}) < len(blocks):
        return []
    # Everything but the last result must be an intermediate, or it could not be inlined.
    written = [block.body.buffer for block in blocks]
    temporaries = list(root.alloc_buffers)
    inner_only = len(temporaries) == len(blocks) - 1 and all(
        any(buffer.same_as(temporary) for temporary in temporaries) for buffer in written[:-1]
    )
    return blocks if inner_only else []


def _block(nest: Any) -> Any:
    """The block in a nest of loops if it stores one expression of single elements."""
    loops = []
    while isinstance(nest, tirx.For):
        if nest.kind != tirx.ForKind.SERIAL or nest.annotations:
            return None
        loops.append(nest.loop_var)
        nest = nest.body
    if not loops or not isinstance(nest, s_tir.SBlockRealize):
        return None
    block = nest.block
    variables = [variable.var for variable in block.iter_vars]
    if len(variables) != len(loops) or not all(map(_same, nest.iter_values, loops)):
        return None
    if any(variable.iter_type != tirx.IterVar.DataPar for variable in block.iter_vars):
        return None
    store = block.body
    if block.alloc_buffers or block.match_buffers or block.init is not None or block.annotations:
        return None
    if not isinstance(store, tirx.BufferStore) or len(store.indices) != len(variables):
        return None
    if not all(map(_same, store.indices, variables)) or not _is_dense(store.buffer):
        return None
    loads = _loads(store.value, variables)
    return block if loads is not None else None


def _same(one: Any, other: Any) -> bool:
    return bool(one.same_as(other))


def _is_dense(buffer: Any) -> bool:
    return not buffer.strides and buffer.dtype != "bool"


def _loads(value: Any, variables: list[Any]) -> list[Any] | None:
    """The loads of an expression; None if it contains anything that is not a function of single elements."""
    loads = []
    for node in _nodes(value):
        if isinstance(node, TensorLoad):
            if not _is_dense(node.source) or not all(_is_index(index, variables) for index in node.indices):
                return None
            loads.append(node)
        elif isinstance(node, Call):
            if getattr(node.op, "name", None) not in _CALLS:
                return None
        elif isinstance(node, tirx.Var):
            if any(_same(node, variable) for variable in variables):
                return None
        elif not isinstance(node, (*_BINARY, tirx.Not, tirx.Select, tirx.Cast, tirx.IntImm, tirx.FloatImm)):
            return None
    return loads


def _is_index(index: Any, variables: list[Any]) -> bool:
    return isinstance(index, tirx.IntImm) or any(_same(index, variable) for variable in variables)


def _nodes(value: Any) -> Iterator[Any]:
    """An expression and its operands, except the positions of loads."""
    yield value
    if isinstance(value, _BINARY):
        yield from _nodes(value.a)
        yield from _nodes(value.b)
    elif isinstance(value, tirx.Not):
        yield from _nodes(value.a)
    elif isinstance(value, tirx.Cast):
        yield from _nodes(value.value)
    elif isinstance(value, tirx.Select):
        for operand in (value.condition, value.true_value, value.false_value):
            yield from _nodes(operand)
    elif isinstance(value, Call):
        for operand in value.args:
            yield from _nodes(operand)


def _is_float(value: Any) -> bool:
    return str(value.ty.dtype).startswith("float")


def _has_floats(block: Any) -> bool:
    return any(_is_float(node) for node in _nodes(block.body.value))


def _contiguous_loops(block: Any) -> int | None:
    """The first of the trailing loops over which every operand is either contiguous or constant."""
    variables = [variable.var for variable in block.iter_vars]
    extents = [_extent(variable.dom.extent) for variable in block.iter_vars]
    loads = _loads(block.body.value, variables)
    if loads is None:
        return None
    axes = [axis for axis, extent in enumerate(extents) if extent != 1]
    first = None
    for place in reversed(range(len(axes))):
        trailing = [(variables[axis], extents[axis]) for axis in axes[place:]]
        if trailing[0][1] is None or not all(_is_contiguous_or_constant(load, trailing) for load in loads):
            break
        first = axes[place]
    return first


def _extent(extent: Any) -> int | None:
    return int(extent) if isinstance(extent, tirx.IntImm) else None


def _is_contiguous_or_constant(load: Any, trailing: list[tuple[Any, int | None]]) -> bool:
    dimensions = [
        (index, _extent(extent))
        for index, extent in zip(load.indices, load.source.shape, strict=True)
        if _extent(extent) != 1
    ]
    uses = [any(_same(index, variable) for variable, _ in trailing) for index, _ in dimensions]
    if not any(uses):
        return True
    tail = dimensions[-len(trailing) :]
    if len(tail) < len(trailing) or any(uses[: -len(trailing)]):
        return False
    return all(
        _same(index, variable) and extent == size
        for (index, extent), (variable, size) in zip(tail, trailing, strict=True)
    )
