"""From what TVM's importers produce to the form that all of tvmq works on.

After it a module has one dataflow block that ends in a tuple of outputs; everything that depends on constants only is
a constant (so a linear layer is ``matmul(x, constant)`` and a bias is added in the shape that it broadcasts in); and
every convolution and linear layer is bound to a variable that carries the layer's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, Op, Var

from tvmq import golden
from tvmq.errors import ModelError, UnsupportedOperatorError
from tvmq.model import LAYER_OPERATORS, module_bindings

__all__ = ["first_line", "layer_of_parameter", "normalize"]


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, for use inside a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def layer_of_parameter(parameter: str) -> str:
    """Layer that a parameter belongs to: ``"layer1.0.conv1.weight"`` is of ``"layer1.0.conv1"``.

    Parameters
    ----------
    parameter : str
        Dotted name; of a reparametrized weight, the part below ``parametrizations`` is dropped.

    Returns
    -------
    str
        ``""`` for a parameter of the network itself.
    """
    owner = parameter.split(".parametrizations.")[0]
    if owner != parameter:
        return owner
    return parameter.rpartition(".")[0]


def normalize(module: tvm.IRModule, origins: Mapping[Any, str], source: str) -> tvm.IRModule:
    """Bring an imported module into the form described above.

    Parameters
    ----------
    module : tvm.IRModule
        One Relax function ``main`` whose parameters are the network's inputs.
    origins : mapping of tvm.runtime.Tensor to str
        For the payload of each constant that belongs to a layer, the layer's name.
    source : str
        What to call the network in errors.

    Returns
    -------
    tvm.IRModule

    Raises
    ------
    UnsupportedOperatorError
        For control flow, and for operators with side effects.
    ModelError
        For batch normalization in training mode, and open dimensions other than the batch.
    """
    module = relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(module))
    function = module["main"]
    _check_shapes(function, source)
    for binding in module_bindings(function):
        _check_binding(binding, source)
    return _Normalizer(module, origins).run()


def _check_shapes(function: relax.Function, source: str) -> None:
    for parameter in function.params:
        ty = parameter.ty
        if not isinstance(ty, relax.TensorType) or ty.shape is None:
            raise ModelError(
                f"{source}: input '{parameter.name}' has no known rank; export the network with its inputs' shapes"
            )
        for axis, size in enumerate(ty.shape):
            if axis > 0 and not isinstance(size, tvm.tirx.IntImm):
                raise ModelError(
                    f"{source}: dimension {axis} of input '{parameter.name}' is open ({size}), but only the first, "
                    "the batch, may be; export the network with a fixed size there"
                )


def _check_binding(binding: Any, source: str) -> None:
    value = binding.value
    if isinstance(value, relax.If):
        raise UnsupportedOperatorError(
            f"{source}: operator 'If' is not supported: control flow that depends on data cannot be compiled; "
            "export the branch that inference takes"
        )
    if not isinstance(value, Call) or not isinstance(value.op, Op):
        return
    if value.op.name == "relax.nn.batch_norm" and bool(value.attrs.training):
        raise ModelError(f"{source}: batch normalization is in training mode; call .eval() before the export")
    if value.op.name == "relax.assert_op":
        raise UnsupportedOperatorError(
            f"{source}: operator 'assert' is not supported: checks of data cannot be compiled; remove it"
        )


class _Origin(NamedTuple):
    size: int
    layer: str


class _Normalizer:
    """Rebuilds a function binding by binding."""

    def __init__(self, module: tvm.IRModule, origins: Mapping[Any, str]) -> None:
        self.module = module
        self.function = function = module["main"]
        self.interpreter = golden.Interpreter(module)
        # payload of a constant -> layer and size of each parameter that it was computed from
        self.origins: dict[Any, list[_Origin]] = {
            payload: [_Origin(int(np.prod(payload.shape)), layer)] for payload, layer in origins.items() if layer
        }
        self.replacements: dict[Var, relax.Expr] = {}
        self.names = {parameter.name for parameter in function.params}
        self.builder = relax.BlockBuilder()

    def run(self) -> tvm.IRModule:
        bounds = {
            name: value
            for name, value in (self.function.attrs or {}).items()
            if name in ("tir_var_lower_bound", "tir_var_upper_bound")
        }
        with self.builder.function("main", list(self.function.params), attrs=bounds):
            with self.builder.dataflow():
                for binding in module_bindings(self.function):
                    self._rebind(binding)
                body = self._replace(self.function.body.body)
                outputs = self.builder.emit_output(relax.Tuple(self._fields(body)))
            self.builder.emit_func_output(outputs)
        module = self.builder.get()
        for variable, function in self.module.functions.items():
            if variable.name_hint != "main":  # some converters write loops (PrimFuncs) instead of operators
                module.update_func(variable, function)
        return relax.transform.DeadCodeElimination()(module)

    def _rebind(self, binding: Any) -> None:
        value = self._replace(binding.value)
        if isinstance(binding, relax.MatchCast):
            variable = relax.DataflowVar(self._unique(binding.var.name), binding.ty)
            self.builder.emit_normalized(relax.MatchCast(variable, value, binding.ty))
        elif isinstance(value, Call) and not relax.analysis.free_vars(value):
            self.replacements[binding.var] = self._constant(value)
            return
        elif isinstance(value, Call | relax.TupleGetItem):
            value = self.builder.normalize(value)
            variable = relax.DataflowVar(self._unique(self._name(binding.var, value)), value.ty)
            self.builder.emit_normalized(relax.VarBinding(variable, value))
        else:  # a constant, a shape, a tuple, another variable: needs no binding of its own
            self.replacements[binding.var] = value
            return
        self.replacements[binding.var] = variable

    def _replace(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, Var):
            return self.replacements.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._replace(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            whole = self._replace(expr.tuple_value)
            known = isinstance(whole, relax.Tuple)
            return whole.fields[int(expr.index)] if known else relax.TupleGetItem(whole, expr.index)
        if isinstance(expr, Call):
            return Call(expr.op, [self._replace(argument) for argument in expr.args], expr.attrs, expr.ty_args)
        return expr

    def _constant(self, call: Call) -> relax.Expr:
        origins = [origin for argument in call.args for origin in self._origins_of(argument)]
        return self._to_constant(self.interpreter.evaluate(call, {}), origins)

    def _to_constant(self, value: Any, origins: list[_Origin]) -> relax.Expr:
        if isinstance(value, golden.Shape):
            return relax.ShapeExpr(value)
        if isinstance(value, tuple):
            return relax.Tuple([self._to_constant(field, origins) for field in value])
        constant = relax.const(np.ascontiguousarray(value).reshape(np.shape(value)), np.asarray(value).dtype.name)
        self.origins[constant.value] = origins
        return constant

    def _origins_of(self, expr: relax.Expr) -> list[_Origin]:
        if isinstance(expr, relax.Tuple):
            return [origin for field in expr.fields for origin in self._origins_of(field)]
        return self.origins.get(expr.value, []) if isinstance(expr, GenericConst) else []

    def _name(self, variable: Var, value: relax.Expr) -> str:
        if not isinstance(value, Call) or not isinstance(value.op, Op) or value.op.name not in LAYER_OPERATORS:
            return variable.name
        operator = value.op.name.split(".")[-1]
        # A weight may have been computed from several parameters, such as a learned basis or a scale that layers share:
        # the largest is the weight proper.
        origins = self._origins_of(value.args[1])
        return max(origins, key=lambda origin: origin.size).layer if origins else operator

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return unique

    def _fields(self, body: relax.Expr) -> list[relax.Expr]:
        if isinstance(body, relax.Tuple):
            return list(body.fields)
        if isinstance(body.ty, relax.TupleType):
            return [self.builder.emit(relax.TupleGetItem(body, index)) for index in range(len(body.ty.fields))]
        return [body]
