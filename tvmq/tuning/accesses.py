"""The lines of memory that a scheduled kernel touches, in the order of its loops.

    for y, x in grid(14, 7):                       for y, x in grid(14, 7):
        for k in range(16):                ->          for k in range(16):
            sum[...] += data[448*y + 32*x + k]             note((address of data + 448*y + 32*x + k) // 64)

These are the kernel's own loops, compiled for the machine at hand, with a note in place of every access.  What is in
registers or on the stack is left out, positions that are read from memory count as zero, and the arguments lie behind
one another.  An access that stays on its line is noted once: a line that is in use all the time is in the cache.

What a loop of assembly reads is known from its :class:`tvmq.kernels.arm_assembly.Walk`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import ir, s_tir, tirx

from tvmq.kernels.arm_assembly import WALK_ATTRIBUTE, Walk

__all__ = ["touched_lines"]

_GAP = 4096
"""Bytes between one array and the next."""
_LANES = 8
"""Of so many lanes of a vector, one is noted: they are neighbours, of at most 8 bytes each."""
_FIRST_GUESS = 1 << 20
"""Notes that there is room for at first."""


def touched_lines(function: tirx.PrimFunc, line_bytes: int) -> np.ndarray:
    """The lines that a kernel touches.

    Parameters
    ----------
    function : tirx.PrimFunc
        Scheduled; a size that is open is 1.
    line_bytes : int
        Of a line.

    Returns
    -------
    numpy.ndarray
        Numbers of lines, int32, in the order of their use.
    """
    noting, accesses = _noting(_lowered(function), line_bytes)
    run = tvm.compile(tvm.IRModule({"main": noting}), target=tvm.target.Target({"kind": "llvm"}))["main"]
    room = _FIRST_GUESS
    while True:
        notes, count, last = (
            tvm.runtime.tensor(array)
            for array in (np.empty(room, np.int32), np.zeros(1, np.int64), np.full(accesses, -1, np.int32))
        )
        run(notes, count, last)
        (needed,) = count.numpy()
        if needed <= room:
            return notes.numpy()[:needed]
        room = int(needed)


def _lowered(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function as plain loops over flat arrays."""
    transform = s_tir.transform
    passes = [
        transform.CanonicalizeLoop(),
        transform.LowerInitBlock(),
        transform.PlanAndUpdateBufferAllocationLocation(),
        transform.ConvertBlocksToOpaque(),
        transform.CompactBufferAllocation(),
        transform.LowerMatchBuffer(),
        transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        transform.StmtSimplify(),
    ]
    lowered = tvm.transform.Sequential(passes)(tvm.IRModule({"main": function}))["main"]
    sizes = {size for item in lowered.params for size in item.shape if isinstance(size, ir.Var)}
    bound = [tirx.Bind(size, tirx.const(1, str(size.ty.dtype))) for size in sizes]
    return lowered.with_body(tirx.SeqStmt([*bound, lowered.body])) if bound else lowered


def _noting(lowered: tirx.PrimFunc, line_bytes: int) -> tuple[tirx.PrimFunc, int]:
    """The function of notes, their number, and each access's last one; and how many accesses there are."""
    notes = _Notes(line_bytes)
    for item in lowered.params:
        notes.place(item)
    body = notes.of(lowered.body)
    arguments = [notes.notes, notes.count, notes.last]
    function = tirx.PrimFunc(arguments, body if body is not None else tirx.Evaluate(0))
    return function.with_attr({"global_symbol": "main", "tirx.noalias": True}), notes.accesses


@dataclass(frozen=True)
class _Load:
    """An element that an expression reads, and under which conditions."""

    array: Any
    index: Any
    conditions: tuple[Any, ...]


class _Notes:
    """Rewrites statements."""

    def __init__(self, line_bytes: int) -> None:
        self.line_bytes = line_bytes
        self.bases: dict[Any, tuple[int, int]] = {}
        """First byte, and bytes per element, of arrays in memory."""
        self.end = 0
        self.accesses = 0
        room, accesses = tirx.Var("room", "int64"), tirx.Var("accesses", "int64")
        self.room = room
        self.notes = tirx.decl_buffer((room,), "int32", "notes")
        self.count = tirx.decl_buffer((1,), "int64", "count")
        self.last = tirx.decl_buffer((accesses,), "int32", "last")

    def place(self, array: Any) -> None:
        """Give an array its place in memory."""
        elements = math.prod(_number(size) for size in array.shape)
        size = tvm.DataType(str(array.dtype)).bits // 8
        self.bases[array] = (self.end, size)
        self.end += -(-elements * size // _GAP) * _GAP + _GAP

    def of(self, statement: Any) -> Any:
        """The statement with notes in place of accesses; None if there are none."""
        if isinstance(statement, tirx.SeqStmt):
            return _sequence([self.of(item) for item in statement.seq])
        if isinstance(statement, tirx.For):
            return self.loop(statement)
        if isinstance(statement, tirx.IfThenElse):
            return self.branch(statement)
        if isinstance(statement, tirx.AttrStmt):
            return self.walk(statement) if statement.attr_key == WALK_ATTRIBUTE else self.of(statement.body)
        if isinstance(statement, tirx.AllocBuffer):
            return self.allocate(statement.buffer)
        if isinstance(statement, tirx.DeclBuffer):
            return self.alias(statement)
        if isinstance(statement, tirx.Bind):
            kept = [tirx.Bind(statement.var, _position(statement.value))] if _is_position(statement.var) else []
            return _sequence([*self.reads(statement.value), *kept])
        if isinstance(statement, tirx.BufferStore):
            written = _Load(statement.buffer, statement.indices[0], ())
            return _sequence([*self.reads(statement.value), *self.reads(statement.indices[0]), self.note(written)])
        if isinstance(statement, tirx.Evaluate):
            return _sequence(self.reads(statement.value))
        raise TypeError(f"a kernel with {type(statement).__name__} cannot be followed")

    def allocate(self, array: Any) -> None:
        """Arrays in registers have no place."""
        if array.scope() == "global" and array not in self.bases:
            self.place(array)

    def alias(self, statement: Any) -> None:
        """Another name of an array."""
        source = statement.data.args[0] if isinstance(statement.data, ir.Call) else statement.data
        if source in self.bases:
            self.bases[statement.buffer] = self.bases[source]

    def loop(self, statement: Any) -> Any:
        """A loop; of a vector only some lanes."""
        body = self.of(statement.body)
        if body is None:
            return None
        extent, serial = statement.extent, tirx.ForKind.SERIAL
        if statement.kind != tirx.ForKind.VECTORIZED:
            return tirx.For(statement.loop_var, _position(statement.min), _position(extent), serial, body)
        part = tirx.Var(f"{statement.loop_var.name}_part", statement.loop_var.ty.dtype)
        lane = tirx.Bind(statement.loop_var, statement.min + tirx.min(part * _LANES, extent - 1))
        parts = (int(extent) + _LANES - 2) // _LANES + 1
        return tirx.For(part, 0, parts, serial, tirx.SeqStmt([lane, body]))

    def branch(self, statement: Any) -> Any:
        """A condition, as far as it is one of positions."""
        then_case = self.of(statement.then_case)
        else_case = None if statement.else_case is None else self.of(statement.else_case)
        read = self.reads(statement.condition)
        if then_case is None and else_case is None:
            return _sequence(read)
        then_case = tirx.Evaluate(0) if then_case is None else then_case
        return _sequence([*read, tirx.IfThenElse(_position(statement.condition), then_case, else_case)])

    def walk(self, statement: Any) -> Any:
        """A loop of assembly: what each round reads of all pixels, then of the weights."""
        walk = Walk.from_json(str(statement.value.value))
        _function, image, weights, *sums = statement.body.value.args
        image, weights = (self.address(item) for item in (image, weights))
        rounds = [tirx.Var(f"round{place}", "int64") for place in range(len(walk.loops))]
        moved = list(zip(rounds, walk.loops, strict=True))
        image += sum(number * loop.pixel for number, loop in moved)
        weights += sum(number * loop.weight for number, loop in moved)
        noted = [self.run(image + pixel, walk.pixel_bytes) for pixel in walk.pixels]
        noted = _sequence([*noted, self.run(weights, walk.weight_bytes)])
        for number, loop in moved:
            noted = tirx.For(
                number, tirx.const(0, "int64"), tirx.const(loop.count, "int64"), tirx.ForKind.SERIAL, noted
            )
        return _sequence([noted, *(note for item in sums for note in self.reads(item))])

    def address(self, call: Any) -> Any:
        """The byte that ``address_of`` an element gives."""
        (element,) = call.args
        base, size = self.bases[element.source]
        return base + _position(element.indices[0]).astype("int64") * size

    def run(self, address: Any, length: int) -> Any:
        """Notes of neighbouring bytes."""
        part, zero = tirx.Var("part", "int64"), tirx.const(0, "int64")
        parts = tirx.const((length + self.line_bytes - 2) // self.line_bytes + 1, "int64")
        place = tirx.min(part * self.line_bytes, tirx.const(length - 1, "int64"))
        return tirx.For(part, zero, parts, tirx.ForKind.SERIAL, self.one(address + place))

    def reads(self, expression: Any) -> list[Any]:
        """Notes of what an expression reads."""
        return [self.note(load) for load in _loads(expression, ())]

    def note(self, access: _Load) -> Any:
        """Notes of one access: if its line is not that of the last time."""
        if access.array not in self.bases:
            return None
        base, size = self.bases[access.array]
        index, last = _position(access.index), None
        if isinstance(index, tirx.Ramp):
            index, last = index.base, index.base + index.stride * (index.lanes - 1)
        notes = [self.one(base + place.astype("int64") * size) for place in (index, last) if place is not None]
        noted = _sequence(notes)
        for condition in access.conditions:
            noted = tirx.IfThenElse(_position(condition), noted, None)
        return noted

    def one(self, address: Any) -> Any:
        """A note of the line at an address."""
        line = tirx.Var("line", "int32")
        place, number = self.accesses, tirx.BufferLoad(self.count, [0])
        self.accesses += 1
        kept = tirx.IfThenElse(number < self.room, tirx.BufferStore(self.notes, line, [number]), None)
        changed = [
            tirx.BufferStore(self.last, line, [place]),
            kept,
            tirx.BufferStore(self.count, number + 1, [0]),
        ]
        return tirx.SeqStmt(
            [
                tirx.Bind(line, tirx.floordiv(address, self.line_bytes).astype("int32")),
                tirx.IfThenElse(tirx.BufferLoad(self.last, [place]) != line, tirx.SeqStmt(changed), None),
            ]
        )


def _number(size: Any) -> int:
    """A size, where one that is open is 1."""
    if isinstance(size, tirx.Mul):
        return _number(size.a) * _number(size.b)
    if isinstance(size, tirx.Add):
        return _number(size.a) + _number(size.b)
    return 1 if isinstance(size, ir.Var) else int(size)


def _sequence(statements: Sequence[Any]) -> Any:
    """What there is of some statements, as one; None if there is nothing."""
    found = [item for item in statements if item is not None]
    if not found:
        return None
    return found[0] if len(found) == 1 else tirx.SeqStmt(found)


def _loads(expression: Any, conditions: tuple[Any, ...]) -> Iterator[_Load]:
    """What an expression reads."""
    if isinstance(expression, ir.TensorLoad):
        yield from _loads(expression.indices[0], conditions)
        yield _Load(expression.source, expression.indices[0], conditions)
    elif _is_call_of(expression, "prim.if_then_else"):
        condition, yes, no = expression.args
        yield from _loads(condition, conditions)
        yield from _loads(yes, (*conditions, condition))
        yield from _loads(no, (*conditions, tirx.Not(condition)))
    else:
        for part in _parts(expression):
            yield from _loads(part, conditions)


def _position(expression: Any) -> Any:
    """An expression of positions, with zeros for what is read from memory."""
    if not any(True for _ in _loads(expression, ())):
        return expression
    if hasattr(expression, "a") and hasattr(expression, "b"):
        return type(expression)(_position(expression.a), _position(expression.b))
    return tirx.const(0, str(expression.ty.dtype))


def _is_position(variable: Any) -> bool:
    """Whether a variable is a whole number."""
    return str(variable.ty.dtype) in ("int32", "int64")


def _is_call_of(expression: Any, name: str) -> bool:
    return isinstance(expression, ir.Call) and str(getattr(expression.op, "name", "")) == name


def _parts(expression: Any) -> Sequence[Any]:
    """The operands of an expression."""
    if isinstance(expression, ir.Var | int | float):
        return ()
    if isinstance(expression, ir.Call):
        return tuple(item for item in expression.args if isinstance(item, ir.Expr))
    names = ("a", "b", "value", "condition", "true_value", "false_value", "base", "stride")
    return tuple(getattr(expression, name) for name in names if isinstance(getattr(expression, name, None), ir.Expr))
