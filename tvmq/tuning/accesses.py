"""The lines of memory that a scheduled kernel touches, in the order of its loops.

    for y in range(14):                 line 0, 1, ..., 40: what one pass of the inner loops touches, each once
        for x in range(7):        ->    line 0, 1, ..., 36, 41, ...
            (reads, writes)             ...

Outer loops are walked one by one.  Inner loops, as long as all that they touch fits easily into the first-level cache,
are taken at once: there a line that was touched stays, so only the first touch matters.  What is in registers or on
the stack is left out, positions that are read from memory count as zero, and the arguments lie behind one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import ir, s_tir, tirx

__all__ = ["touched_lines"]

MOST_POINTS = 1 << 18
"""Iterations of inner loops that are evaluated at once."""
_GAP = 4096
"""Bytes between one array and the next."""

Environment = dict[Any, Any]
"""Values of variables: integers, or arrays with an axis per loop that is evaluated at once."""


def touched_lines(function: tirx.PrimFunc, line_bytes: int, most_lines: int) -> Iterator[np.ndarray]:
    """The lines that a kernel touches.

    Parameters
    ----------
    function : tirx.PrimFunc
        Scheduled; a size that is open is 1.
    line_bytes : int
        Of a line.
    most_lines : int
        How many lines inner loops that are taken at once may touch.

    Yields
    ------
    numpy.ndarray
        Numbers of lines, in the order of their first touch by some inner loops.
    """
    lowered = _lowered(function)
    sizes = {size: 1 for item in function.params for size in item.shape if not isinstance(size, int | tirx.IntImm)}
    walk = _Walk(line_bytes, most_lines)
    for item in lowered.params:
        walk.place(item, np.prod([_number(size, sizes) for size in item.shape], dtype=int))
    yield from walk.run(lowered.body, sizes)


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
    return tvm.transform.Sequential(passes)(tvm.IRModule({"main": function}))["main"]


@dataclass(frozen=True)
class _Loop:
    """A loop that is evaluated at once."""

    variable: Any
    values: np.ndarray


@dataclass(frozen=True)
class _Access:
    """An access of memory: where, within which loops, and under which conditions."""

    array: Any
    index: Any
    loops: tuple[_Loop, ...]
    conditions: tuple[Any, ...]

    def outer_factors(self) -> dict[Any, int] | None:
        """What outer loops move the position by, if that is all they do; their variables and factors."""
        factors = None if self.conditions else _factors(self.index)
        if factors is None:
            return None
        inner = {loop.variable for loop in self.loops}
        return {variable: factor for variable, factor in factors.items() if variable not in inner and factor}


class _Walk:
    """Walks a lowered function."""

    def __init__(self, line_bytes: int, most_lines: int) -> None:
        self.line_bytes, self.most_lines = line_bytes, most_lines
        self.bases: dict[Any, tuple[int, int]] = {}
        """First byte, and bytes per element, of arrays in memory."""
        self.end = 0
        self.is_outer: dict[Any, bool] = {}
        """By the variables of loops, whether they are walked one by one."""
        self.accesses: dict[Any, list[_Access]] = {}
        self.factors: dict[Any, list[dict[Any, int]] | None] = {}
        self.patterns: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
        """Lines by the places within lines at which accesses begin, as computed before."""

    def place(self, array: Any, elements: int) -> None:
        """Give an array its place in memory."""
        size = tvm.DataType(str(array.ty.dtype)).bits // 8
        self.bases[array] = (self.end, size)
        self.end += -(-elements * size // _GAP) * _GAP + _GAP

    def run(self, statement: Any, environment: Environment) -> Iterator[np.ndarray]:
        """The lines of a statement."""
        if isinstance(statement, tirx.SeqStmt):
            for item in statement.seq:
                yield from self.run(item, environment)
        elif isinstance(statement, tirx.AllocBuffer):
            self.allocate(statement, environment)
        elif isinstance(statement, tirx.DeclBuffer):
            self.alias(statement)
        elif isinstance(statement, tirx.AttrStmt):
            yield from self.run(statement.body, environment)
        elif isinstance(statement, tirx.For):
            yield from self.loop(statement, environment)
        elif isinstance(statement, tirx.IfThenElse):
            case = statement.then_case if _number(statement.condition, environment) else statement.else_case
            if case is not None:
                yield from self.run(case, environment)
        else:
            yield self.lines(statement, statement, environment)

    def allocate(self, statement: Any, environment: Environment) -> None:
        """Arrays in registers have no place."""
        if statement.buffer.ty.storage_scope == "global" and statement.buffer not in self.bases:
            shape = [_number(size, environment) for size in statement.buffer.ty.shape]
            self.place(statement.buffer, int(np.prod(shape, dtype=int)))

    def alias(self, statement: Any) -> None:
        """Another name of an array."""
        source = statement.data.args[0] if isinstance(statement.data, ir.Call) else statement.data
        if source in self.bases:
            self.bases[statement.buffer] = self.bases[source]

    def loop(self, statement: Any, environment: Environment) -> Iterator[np.ndarray]:
        """Either all of a loop, or its iterations."""
        variable = statement.loop_var
        first = _number(statement.min, environment)
        extent = _number(statement.extent, environment)
        if not self.is_outer.get(variable, False):
            inner = self.inner(statement, environment)
            lines = None if inner is None else self.lines(variable, statement, environment)
            if lines is not None and len(lines) <= self.most_lines:
                yield lines
                return
            self.is_outer[variable] = True
            self.accesses.pop(variable, None)
        for value in range(first, first + extent):
            yield from self.run(statement.body, {**environment, variable: value})

    def inner(self, statement: Any, environment: Environment) -> int | None:
        """Points of a nest of loops; None if there are too many to evaluate."""
        points = sum(
            int(np.prod([len(loop.values) for loop in access.loops], dtype=int))
            for access in self.accesses_of(statement.loop_var, statement, environment)
        )
        return points if points <= MOST_POINTS else None

    def accesses_of(self, key: Any, statement: Any, environment: Environment) -> list[_Access]:
        """The accesses of a statement, found once."""
        if key not in self.accesses:
            self.accesses[key] = list(self.find(statement, (), (), environment))
        return self.accesses[key]

    def find(
        self, statement: Any, loops: tuple[_Loop, ...], conditions: tuple[Any, ...], environment: Environment
    ) -> Iterator[_Access]:
        """All accesses below a statement."""
        if isinstance(statement, tirx.For):
            first, extent = _number(statement.min, environment), _number(statement.extent, environment)
            values = np.arange(first, first + extent)
            if statement.kind == tirx.ForKind.VECTORIZED:
                values = values[[0, -1]]  # lanes are neighbours
            yield from self.find(statement.body, (*loops, _Loop(statement.loop_var, values)), conditions, environment)
        elif isinstance(statement, tirx.SeqStmt):
            for item in statement.seq:
                yield from self.find(item, loops, conditions, environment)
        elif isinstance(statement, tirx.AttrStmt):
            yield from self.find(statement.body, loops, conditions, environment)
        elif isinstance(statement, tirx.IfThenElse):
            yield from self.find(statement.then_case, loops, (*conditions, statement.condition), environment)
            if statement.else_case is not None:
                yield from self.find(statement.else_case, loops, conditions, environment)
        elif isinstance(statement, tirx.AllocBuffer):
            self.allocate(statement, environment)
        elif isinstance(statement, tirx.DeclBuffer):
            self.alias(statement)
        elif isinstance(statement, tirx.BufferStore):
            for array, index in [*_loads(statement.value), (statement.buffer, statement.indices[0])]:
                yield from self.access(array, index, loops, conditions)
        elif isinstance(statement, tirx.Evaluate | tirx.Bind):
            for array, index in _loads(statement.value):
                yield from self.access(array, index, loops, conditions)

    def access(
        self, array: Any, index: Any, loops: tuple[_Loop, ...], conditions: tuple[Any, ...]
    ) -> Iterator[_Access]:
        """An access within the loops that it depends on; the others repeat it."""
        if array in self.bases:
            used = set().union(*(_variables(item) for item in (index, *conditions)))
            yield _Access(array, index, tuple(loop for loop in loops if loop.variable in used), conditions)

    def lines(self, key: Any, statement: Any, environment: Environment) -> np.ndarray:
        """The lines of all iterations of a statement's loops, in the order of their first touch."""
        accesses = self.accesses_of(key, statement, environment)
        if key not in self.factors:
            factors = [access.outer_factors() for access in accesses]
            self.factors[key] = None if any(item is None for item in factors) else [item or {} for item in factors]
        moved = self.factors[key]
        if moved is None:
            return self.pattern(accesses, environment)[0]
        starts = [
            self.bases[access.array][1] * sum(factor * environment.get(name, 0) for name, factor in factors.items())
            for access, factors in zip(accesses, moved, strict=True)
        ]
        place = (key, *(start % self.line_bytes for start in starts))
        wholes = np.array([start // self.line_bytes for start in starts], int)
        if place not in self.patterns:
            lines, owners = self.pattern(accesses, environment)
            self.patterns[place] = lines - wholes[owners], owners
        lines, owners = self.patterns[place]
        return lines + wholes[owners]

    def pattern(self, accesses: Sequence[_Access], environment: Environment) -> tuple[np.ndarray, np.ndarray]:
        """Lines in the order of their first touch, each once per access, and whose they are."""
        times, found = [np.empty(0)], [np.empty(0, int)]
        for access in accesses:
            lines = self.lines_of(access, environment)
            unique, first = np.unique(lines, return_index=True)
            found.append(unique)
            times.append(first / max(1, len(lines)))
        order = np.argsort(np.concatenate(times), kind="stable")
        owners = np.repeat(np.arange(len(accesses)), [len(part) for part in found[1:]])
        return np.concatenate(found)[order], owners[order]

    def lines_of(self, access: _Access, environment: Environment) -> np.ndarray:
        """The lines of one access."""
        count = len(access.loops)
        inner = {
            loop.variable: loop.values.reshape([-1 if axis == place else 1 for axis in range(count)])
            for place, loop in enumerate(access.loops)
        }
        values = {**environment, **inner}
        shape = tuple(len(loop.values) for loop in access.loops)
        base, size = self.bases[access.array]
        index = np.broadcast_to(_value(access.index, values), shape).ravel()
        for condition in access.conditions:
            index = index[np.broadcast_to(_value(condition, values), shape).ravel().astype(bool)[: len(index)]]
        return (base + index * size) // self.line_bytes


def _loads(expression: Any) -> list[tuple[Any, Any]]:
    """Arrays that an expression reads, with the positions."""
    found = [] if not isinstance(expression, ir.TensorLoad) else [(expression.source, expression.indices[0])]
    return found + [load for part in _parts(expression) for load in _loads(part)]


def _factors(expression: Any) -> dict[Any, int] | None:
    """Factors of the variables in a sum of multiples of variables; None for anything else."""
    if isinstance(expression, int | tirx.IntImm):
        return {}
    if isinstance(expression, ir.Var):
        return {expression: 1}
    name = type(expression).__name__
    if name == "Mul" and isinstance(expression.b, tirx.IntImm):
        factors = _factors(expression.a)
        return None if factors is None else {item: value * int(expression.b.value) for item, value in factors.items()}
    if name not in ("Add", "Sub"):
        return None
    one, other = _factors(expression.a), _factors(expression.b)
    if one is None or other is None:
        return None
    sign = 1 if name == "Add" else -1
    return {item: one.get(item, 0) + sign * other.get(item, 0) for item in {*one, *other}}


def _variables(expression: Any) -> set[Any]:
    """Variables that an expression's value depends on."""
    if isinstance(expression, ir.Var):
        return {expression}
    return set().union(*(_variables(part) for part in _parts(expression)))


def _parts(expression: Any) -> Sequence[Any]:
    """The operands of an expression."""
    if isinstance(expression, ir.Var | int | float):
        return ()
    if isinstance(expression, ir.TensorLoad):
        return tuple(expression.indices)
    if isinstance(expression, ir.Call):
        return tuple(item for item in expression.args if isinstance(item, ir.Expr))
    names = ("a", "b", "value", "condition", "true_value", "false_value", "base", "stride")
    return tuple(getattr(expression, name) for name in names if isinstance(getattr(expression, name, None), ir.Expr))


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Div": np.floor_divide,
    "Mod": np.mod,
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": np.equal,
    "NE": np.not_equal,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
}


def _value(expression: Any, environment: Environment) -> Any:
    """The value of an expression of positions; 0 for what is not one, such as what is read from memory."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, ir.Var):
        return environment.get(expression, 0)
    name = type(expression).__name__
    if name == "IntImm":
        return int(expression.value)
    if name in _OPERATORS:
        return _OPERATORS[name](_value(expression.a, environment), _value(expression.b, environment))
    if name == "Not":
        return np.logical_not(_value(expression.a, environment))
    if name == "Cast":
        return _value(expression.value, environment)
    if name == "Select":
        parts = (expression.condition, expression.true_value, expression.false_value)
        return np.where(*(_value(part, environment) for part in parts))
    if name == "Ramp":
        return _value(expression.base, environment)
    if name == "Call":
        return _called(expression, environment)
    return 0


def _called(call: Any, environment: Environment) -> Any:
    name = str(getattr(call.op, "name", ""))
    values = [_value(item, environment) for item in call.args]
    if name == "tirx.if_then_else":
        return np.where(*values)
    if name == "tirx.likely":
        return values[0]
    if name in ("tirx.shift_left", "tirx.shift_right", "tirx.bitwise_and"):
        operators = {"left": np.left_shift, "right": np.right_shift, "and": np.bitwise_and}
        return operators[name.rpartition("_")[2]](*values)
    return 0


def _number(expression: Any, environment: Environment) -> int:
    return int(_value(expression, environment))
