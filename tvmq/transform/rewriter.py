"""The walk that passes over a network share: one binding after the other, in order, into a new function."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call

__all__ = ["BindingRewriter"]


class BindingRewriter:
    """Rebuilds ``main`` binding by binding; a pass overrides :meth:`bind`.

    Parameters
    ----------
    module : tvm.IRModule
        With one pure Relax function ``main`` without control flow; other functions are kept as they are.

    Notes
    -----
    ``self.values`` maps each variable of the old function to what stands for it in the new one, which is a Relax
    expression unless the pass puts something of its own there (then :meth:`materialize` must make it one).
    ``self.definitions`` maps each variable of the new function to the expression that it is bound to, and
    ``self.users`` each variable of the old one to the bindings, (variable, value), that read it.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.builder = relax.BlockBuilder(module)
        self.values: dict[relax.Var, Any] = {}
        self.definitions: dict[relax.Var, relax.Expr] = {}
        self.users: dict[relax.Var, list[tuple[relax.Var, relax.Expr]]] = defaultdict(list)
        for block in module["main"].body.blocks:
            for binding in block.bindings:
                for variable in relax.analysis.free_vars(binding.value):
                    self.users[variable].append((binding.var, binding.value))

    def run(self) -> tvm.IRModule:
        """The module with ``main`` rewritten, dead bindings removed."""
        main = self.module["main"]
        builder = self.builder
        with builder.function("rewritten", list(main.params), attrs=self._attributes(main)):
            with builder.dataflow():
                for block in main.body.blocks:
                    for binding in block.bindings:
                        self.values[binding.var] = self.bind(binding.var, binding.value)
                result = builder.emit_output(self.definition(self.substitute(main.body.body)))
            builder.emit_func_output(result)
        rewritten = builder.get()["rewritten"]
        module = self.module.clone()
        module["main"] = rewritten.with_attr("global_symbol", "main")
        return relax.transform.DeadCodeElimination()(module)

    @staticmethod
    def _attributes(main: relax.Function) -> dict[str, Any]:
        return {key: value for key, value in (main.attrs or {}).items() if key != "global_symbol"}

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        """What stands for ``variable``; by default its own value over the rewritten operands."""
        return self.emit(self.substitute(value), variable.name)

    def emit(self, value: relax.Expr, name: str) -> relax.Var:
        """Bind ``value`` in the new function to a variable of that name."""
        value = self.builder.normalize(value)
        # Not through emit(value, name_hint), which would turn the dots of "layer1.0.conv1" into underscores.
        variable = relax.DataflowVar(name, value.ty)
        self.builder.emit_normalized(relax.VarBinding(variable, value))
        self.definitions[variable] = value
        return variable

    def materialize(self, value: Any) -> relax.Expr:
        """A Relax expression for an entry of ``self.values``."""
        return value

    def operand(self, expr: relax.Expr) -> Any:
        """What stands for an operand of an old expression: an entry of ``self.values``, or the constant itself."""
        return self.values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def definition(self, expr: Any) -> Any:
        """The expression that a new variable is bound to, through aliases; anything else is returned as it is."""
        while isinstance(expr, relax.Var) and expr in self.definitions:
            expr = self.definitions[expr]
        return expr

    def substitute(self, expr: relax.Expr) -> relax.Expr:
        """An old expression over the new function's variables."""
        if isinstance(expr, relax.Var):
            return self.materialize(self.operand(expr))
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.substitute(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self.substitute(expr.tuple_value), expr.index)
        if isinstance(expr, Call):
            return Call(expr.op, [self.substitute(argument) for argument in expr.args], expr.attrs, expr.ty_args)
        return expr
