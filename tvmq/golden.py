"""The golden executor: what a Relax module means, one operator at a time, on numpy arrays.

Every later stage must equal it.  Three sources say what an operator computes, in this order:

1. the numpy references of the ``tvmq.*`` dialect;
2. numpy, for operators that IEEE arithmetic defines completely: elementwise arithmetic (each step rounded to the
   operand's type, never contracted), comparisons, data movement, max pooling, batch normalization;
3. TVM, for all others, among them every floating-point sum: the operator is compiled alone for this machine, so sums
   run in TVM's order (sequential over the reduction axes; with fused multiply-adds where the machine has them).

Numbers stay numpy arrays, shapes are :class:`Shape`, tuples are tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, GlobalVar, Op, PrimType, Var
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.tirx import FloatImm, IntImm, IterVar

from tvmq.errors import InputError, ModelError
from tvmq.kernels.rounding import round_products

__all__ = ["Interpreter", "Shape", "bind_value", "evaluate", "interpret"]

Environment = Mapping[Var, Any]


class Shape(tuple[int, ...]):
    """The value of a Relax shape expression, as opposed to a tuple of values."""


def interpret(
    module: tvm.IRModule, arrays: Sequence[np.ndarray], observe: Callable[[str, Any], None] | None = None
) -> list[np.ndarray]:
    """Run the function ``main`` of a module.

    Parameters
    ----------
    module : tvm.IRModule
        A module with one Relax function ``main``, at any stage of the pipeline up to unscheduled PrimFuncs.
    arrays : sequence of numpy.ndarray
        One array per parameter of ``main``, of exactly its shape and dtype; symbolic dimensions take the arrays' sizes.
    observe : callable, optional
        Called with the name and the value of every variable as it is bound.

    Returns
    -------
    list of numpy.ndarray
        The outputs; a function that returns one tensor gives a list of one.

    Raises
    ------
    InputError
        When the number or the rank of the arrays is not that of the parameters.
    """
    result = Interpreter(module, observe).call(module["main"], list(arrays))
    # Copies: a reshape is a view, and an output must not share memory with an input.
    return [np.array(value, order="C") for value in (result if isinstance(result, tuple) else (result,))]


def evaluate(expr: relax.Expr, environment: Environment | None = None) -> Any:
    """Value of one expression.

    Parameters
    ----------
    expr : relax.Expr
        For example a call whose arguments are constants: this is how constants are folded.
    environment : mapping of Var to value, optional
        Values of the free variables: numpy arrays, tuples of them, Shape, and ints for symbolic dimensions.

    Returns
    -------
    numpy.ndarray, tuple, Shape, int or float

    Raises
    ------
    ModelError
        When the expression cannot be evaluated, for example for a variable without a value.
    """
    return Interpreter().evaluate(expr, environment or {})


class Interpreter:
    """Evaluates expressions of one module.

    Parameters
    ----------
    module : tvm.IRModule, optional
        Where global functions (callees, PrimFuncs of ``call_tir``) are looked up.
    observe : callable, optional
        Called with the name and the value of every variable as it is bound.
    """

    def __init__(self, module: tvm.IRModule | None = None, observe: Callable[[str, Any], None] | None = None) -> None:
        self.module = module
        self.observe = observe

    def call(self, function: relax.Function, values: Sequence[Any]) -> Any:
        """Apply a Relax function to values.

        Parameters
        ----------
        function : relax.Function
        values : sequence
            One value per parameter.

        Returns
        -------
        numpy.ndarray or tuple
        """
        if len(values) != len(function.params):
            raise InputError(f"the function takes {len(function.params)} inputs, but {len(values)} were given")
        environment: dict[Var, Any] = {}
        for parameter, value in zip(function.params, values, strict=True):
            bind_value(environment, parameter, parameter.ty, value)
        return self.evaluate(function.body, environment)

    def evaluate(self, expr: relax.Expr, environment: Environment) -> Any:
        """Value of an expression whose free variables have values in ``environment``; see :func:`evaluate`."""
        if isinstance(expr, Var):
            if expr not in environment:
                raise ModelError(f"variable '{expr.name}' has no value")
            return environment[expr]
        if isinstance(expr, GenericConst):
            return expr.value.numpy()
        if isinstance(expr, Call):
            return self._evaluate_call(expr, environment)
        if isinstance(expr, relax.Tuple):
            return tuple(self.evaluate(field, environment) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.evaluate(expr.tuple_value, environment)[int(expr.index)]
        if isinstance(expr, relax.ShapeExpr):
            return Shape(int(self.evaluate(size, environment)) for size in expr.values)
        if isinstance(expr, relax.SeqExpr):
            return self._evaluate_sequence(expr, environment)
        if isinstance(expr, relax.If):
            taken = expr.true_branch if bool(self.evaluate(expr.cond, environment)) else expr.false_branch
            return self.evaluate(taken, environment)
        if isinstance(expr.ty, PrimType):
            return _scalar(expr, environment)
        return expr

    def _evaluate_sequence(self, sequence: relax.SeqExpr, outer: Environment) -> Any:
        environment = dict(outer)
        bindings = [binding for block in sequence.blocks for binding in block.bindings]
        last_use: dict[Var, int] = {}
        for index, binding in enumerate(bindings):
            for variable in relax.analysis.free_vars(binding.value):
                last_use[variable] = index
        for variable in relax.analysis.free_vars(sequence.body):
            last_use[variable] = len(bindings)
        for index, binding in enumerate(bindings):
            value = self.evaluate(binding.value, environment)
            pattern = binding.ty if isinstance(binding, relax.MatchCast) else None
            bind_value(environment, binding.var, pattern, value)
            if self.observe is not None:
                self.observe(binding.var.name, value)
            # A calibration batch does not fit into memory once per layer: drop what nothing reads any more.
            for variable in relax.analysis.free_vars(binding.value):
                if last_use[variable] == index and not isinstance(variable.ty, PrimType):
                    environment.pop(variable, None)
        return self.evaluate(sequence.body, environment)

    def _evaluate_call(self, call: Call, environment: Environment) -> Any:
        operator = call.op
        if isinstance(operator, GlobalVar):
            values = [self.evaluate(argument, environment) for argument in call.args]
            return self.call(self._function(operator), values)
        if not isinstance(operator, Op):
            raise ModelError(f"cannot evaluate a call of {type(operator).__name__}")
        values = [self.evaluate(argument, environment) for argument in call.args]
        reference = _reference(operator.name)
        if reference is not None:
            return reference(call, *values)
        in_numpy = _NUMPY.get(operator.name)
        result = in_numpy(call, *values) if in_numpy else NotImplemented
        return self._run_alone(call, values, environment) if result is NotImplemented else result

    def _function(self, variable: GlobalVar) -> Any:
        if self.module is None:
            raise ModelError(f"function '{variable.name_hint}' is called, but no module was given")
        return self.module[variable]

    def _run_alone(self, call: Call, values: Sequence[Any], environment: Environment) -> Any:
        """Compile a module that holds nothing but this call, with the shapes at hand, and run it."""
        arrays: list[np.ndarray] = []
        parameters: list[Var] = []

        def argument(expr: relax.Expr | None, value: Any) -> relax.Expr:
            if isinstance(value, np.ndarray | np.generic):
                parameters.append(Var(f"x{len(parameters)}", relax.TensorType(value.shape, value.dtype.name)))
                arrays.append(np.asarray(value))
                return parameters[-1]
            if isinstance(value, Shape):
                return relax.ShapeExpr(value)
            if isinstance(value, tuple):
                fields = list(expr.fields) if isinstance(expr, relax.Tuple) else [None] * len(value)
                return relax.Tuple([argument(*pair) for pair in zip(fields, value, strict=True)])
            if isinstance(value, int | float) and expr is not None:
                immediate = FloatImm if str(expr.ty.dtype).startswith("float") else IntImm
                return immediate(str(expr.ty.dtype), value)
            return value

        arguments = [argument(*pair) for pair in zip(call.args, values, strict=True)]
        types = [_concrete_type(ty, environment) for ty in call.ty_args]
        builder = relax.BlockBuilder()
        with builder.function("main", parameters):
            builder.emit_func_output(builder.normalize(Call(call.op, arguments, call.attrs, types)))
        module = builder.get()
        for expr in arguments:
            if isinstance(expr, GlobalVar):
                # What fusion may do with a function does not change what it computes, nor what was compiled before.
                module.update_func(expr, self._function(expr).without_attr("op_pattern"))
        compiled = _compile(tvm.ir.save_json(module))
        return _to_numpy(compiled(*(tvm.runtime.tensor(array) for array in arrays)))


def bind_value(environment: dict[Var, Any], variable: Var, ty: Any, value: Any) -> None:
    """Give a variable its value, and the symbolic dimensions of its type theirs."""
    environment[variable] = value
    _bind_sizes(environment, variable, ty, value)


def _bind_sizes(environment: dict[Var, Any], variable: Var, ty: Any, value: Any) -> None:
    if isinstance(ty, relax.TupleType):
        for field, part in zip(ty.fields, value, strict=True):
            _bind_sizes(environment, variable, field, part)
        return
    if isinstance(ty, relax.TensorType) and ty.shape is not None:
        symbolic, actual = list(ty.shape), tuple(np.shape(value))
    elif isinstance(ty, relax.ShapeType) and ty.values is not None:
        symbolic, actual = list(ty.values), tuple(value)
    else:
        return
    if len(symbolic) != len(actual):
        raise InputError(f"'{variable.name}' takes {len(symbolic)} dimensions, but a value of shape {actual} was given")
    for size, number in zip(symbolic, actual, strict=True):
        if isinstance(size, Var):
            environment.setdefault(size, int(number))


def _scalar(expr: Any, environment: Environment) -> int | float:
    if isinstance(expr, IntImm | FloatImm):
        return expr.value
    analyzer = tvm.sym.Analyzer()
    for variable, value in environment.items():
        if isinstance(variable.ty, PrimType):
            analyzer.bind(variable, IntImm(str(variable.ty.dtype), value))
    simplified = analyzer.simplify(expr)
    if not isinstance(simplified, IntImm | FloatImm):
        raise ModelError(f"the dimension {expr} has no value")
    return simplified.value


def _concrete_type(ty: Any, environment: Environment) -> Any:
    """The type with numbers for its symbolic dimensions."""
    if isinstance(ty, relax.TupleType):
        return relax.TupleType([_concrete_type(field, environment) for field in ty.fields])
    if isinstance(ty, relax.TensorType) and ty.shape is not None:
        sizes = [environment[size] if isinstance(size, Var) else int(_scalar(size, environment)) for size in ty.shape]
        return relax.TensorType(sizes, str(ty.dtype))
    return ty


def _to_numpy(result: Any) -> Any:
    if isinstance(result, tvm.runtime.Tensor):
        return result.numpy()
    if isinstance(result, tvm.runtime.ShapeTuple):
        return Shape(int(size) for size in result)
    return tuple(_to_numpy(field) for field in result)


@lru_cache(maxsize=1)
def _host() -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})


@lru_cache(maxsize=512)
def _compile(module_text: str) -> Callable[..., Any]:
    """Machine code of a module, which is given as text so that equal modules are compiled once."""
    module = tvm.ir.load_json(module_text)
    # A fresh pass context: whatever instruments or options the caller has set must not change the reference.
    with tvm.transform.PassContext(opt_level=3):
        legalized = relax.transform.LegalizeOps()(module)
        given = {variable.name_hint for variable in module.functions}
        for variable, function in legalized.functions.items():
            if variable.name_hint not in given:
                legalized.update_func(variable, _vectorize_sums(round_products(function)))
        executable = tvm.compile(legalized, _host())
    return relax.VirtualMachine(executable, tvm.cpu())["main"]


def _vectorize_sums(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """Run neighbouring outputs of a sum side by side and the others in parallel.

    Every output still adds its own terms in the same order, so no bit changes; it only takes a tenth of the time.
    """
    schedule = Schedule(function)
    try:
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            loops = schedule.get_loops(block)
            kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
            if len(loops) != len(kinds):
                continue
            outer = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == IterVar.DataPar]
            sums = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == IterVar.CommReduce]
            if len(outer) < 2 or not sums:
                continue
            inner = outer.pop()
            schedule.reorder(*outer, *sums, inner)
            schedule.parallel(schedule.fuse(*outer))
            schedule.decompose_reduction(block, sums[0])
    except ScheduleError:
        return function  # a loop nest of another form, which runs as it is
    return schedule.mod["main"].with_attrs(function.attrs)


def _reference(name: str) -> Callable[..., Any] | None:
    if not name.startswith("tvmq."):
        return None
    from tvmq.dialect import REFERENCES

    return REFERENCES.get(name)


# --- operators in numpy: function(call, *values) -> value, or NotImplemented to have TVM compute it ------------------


def _is_float(array: Any) -> bool:
    return np.asarray(array).dtype.kind == "f"


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    def compute(_call: Call, *values: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(function(*values))

    return compute


def _float_elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """For operators whose integer form is TVM's own affair (division, rounding)."""
    compute = _elementwise(function)

    def floats_only(call: Call, *values: Any) -> Any:
        return compute(call, *values) if all(map(_is_float, values)) else NotImplemented

    return floats_only


# TVM selects with one comparison, so these say what happens to NaN and to the sign of zero.
def _maximum(a: Any, b: Any) -> Any:
    return np.where(a > b, a, b)


def _minimum(a: Any, b: Any) -> Any:
    return np.where(a < b, a, b)


def _relu(x: np.ndarray) -> np.ndarray:
    return _maximum(x, x.dtype.type(0))


def _sign(x: np.ndarray) -> np.ndarray:
    one = x.dtype.type(1)
    return np.where(x > 0, one, np.where(x < 0, -one, x.dtype.type(0))).astype(x.dtype)


def _clip(_call: Call, x: np.ndarray, low: float, high: float) -> np.ndarray:
    return _maximum(_minimum(x, x.dtype.type(high)), x.dtype.type(low))


def _astype(call: Call, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return x.astype(str(call.attrs.dtype))


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _axes(values: Any) -> tuple[int, ...] | None:
    return None if values is None else _integers(values)


def _permute(call: Call, x: np.ndarray) -> np.ndarray:
    return np.transpose(x, _axes(call.attrs.axes))


def _concat(call: Call, arrays: tuple[np.ndarray, ...]) -> Any:
    axis = call.attrs.axis
    return np.concatenate(arrays, None if axis is None else int(axis))


def _strided_slice(_call: Call, x: np.ndarray, axes: Any, begin: Any, end: Any, strides: Any = None) -> Any:
    strides = strides or (1,) * len(axes)
    if any(stride < 1 for stride in strides):
        return NotImplemented
    index = [slice(None)] * x.ndim
    for axis, *bounds in zip(axes, begin, end, strides, strict=True):
        index[axis] = slice(*bounds)
    return x[tuple(index)]


def _pad(call: Call, x: np.ndarray) -> Any:
    if call.attrs.pad_mode != "constant":
        return NotImplemented
    widths = np.reshape(_integers(call.attrs.pad_width), (-1, 2))
    if (widths < 0).any():
        return NotImplemented
    return np.pad(x, widths, constant_values=float(call.attrs.pad_value))


def _max_pool2d(call: Call, x: np.ndarray) -> Any:
    attrs = call.attrs
    if attrs.layout != "NCHW" or attrs.out_layout != "NCHW" or bool(attrs.ceil_mode) or not _is_float(x):
        return NotImplemented
    top, left, bottom, right = _integers(attrs.padding)
    strides, dilation, pool = _integers(attrs.strides), _integers(attrs.dilation), _integers(attrs.pool_size)
    padded = np.pad(
        x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=x.dtype.type(np.finfo(x.dtype).min)
    )
    height, width = ((padded.shape[2 + i] - dilation[i] * (pool[i] - 1) - 1) // strides[i] + 1 for i in range(2))
    result = None
    for row in range(pool[0]):
        for column in range(pool[1]):
            first_row, first_column = row * dilation[0], column * dilation[1]
            taken = padded[
                :,
                :,
                first_row : first_row + (height - 1) * strides[0] + 1 : strides[0],
                first_column : first_column + (width - 1) * strides[1] + 1 : strides[1],
            ]
            result = taken if result is None else _maximum(result, taken)
    return result


def _batch_norm(call: Call, x: np.ndarray, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
    attrs = call.attrs
    if bool(attrs.training):
        return NotImplemented
    shape = [1] * x.ndim
    shape[int(attrs.axis)] = -1
    with np.errstate(all="ignore"):
        deviation = np.sqrt(variance + x.dtype.type(attrs.epsilon))
        result = (x - mean.reshape(shape)) / deviation.reshape(shape)
        if bool(attrs.scale):
            result = result * gamma.reshape(shape)
        if bool(attrs.center):
            result = result + beta.reshape(shape)
    return result, mean, variance


_NUMPY: Mapping[str, Callable[..., Any]] = {
    "relax.abs": _elementwise(np.abs),
    "relax.add": _elementwise(np.add),
    "relax.astype": _astype,
    "relax.bitwise_and": _elementwise(np.bitwise_and),
    "relax.bitwise_or": _elementwise(np.bitwise_or),
    "relax.bitwise_xor": _elementwise(np.bitwise_xor),
    "relax.broadcast_to": lambda _call, x, shape: np.broadcast_to(x, shape),
    "relax.ceil": _float_elementwise(np.ceil),
    "relax.clip": _clip,
    "relax.concat": _concat,
    "relax.divide": _float_elementwise(np.divide),
    "relax.equal": _elementwise(np.equal),
    "relax.expand_dims": lambda call, x: np.expand_dims(x, _integers(call.attrs.axis)),
    "relax.flatten": lambda _call, x: x.reshape(-1),
    "relax.floor": _float_elementwise(np.floor),
    "relax.greater": _elementwise(np.greater),
    "relax.greater_equal": _elementwise(np.greater_equal),
    "relax.less": _elementwise(np.less),
    "relax.less_equal": _elementwise(np.less_equal),
    "relax.logical_and": _elementwise(np.logical_and),
    "relax.logical_not": _elementwise(np.logical_not),
    "relax.logical_or": _elementwise(np.logical_or),
    "relax.maximum": _elementwise(_maximum),
    "relax.minimum": _elementwise(_minimum),
    "relax.multiply": _elementwise(np.multiply),
    "relax.negative": _elementwise(np.negative),
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.max_pool2d": _max_pool2d,
    "relax.nn.pad": _pad,
    "relax.nn.relu": _elementwise(_relu),
    "relax.not_equal": _elementwise(lambda a, b: (a < b) | (a > b)),
    "relax.permute_dims": _permute,
    "relax.reshape": lambda _call, x, shape: x.reshape(shape),
    "relax.round": _float_elementwise(np.rint),
    "relax.shape_of": lambda _call, x: Shape(x.shape),
    "relax.sign": _elementwise(_sign),
    "relax.sqrt": _float_elementwise(np.sqrt),
    "relax.square": _elementwise(lambda x: x * x),
    "relax.squeeze": lambda call, x: np.squeeze(x, _axes(call.attrs.axis)),
    "relax.strided_slice": _strided_slice,
    "relax.subtract": _elementwise(np.subtract),
    "relax.where": _elementwise(lambda condition, a, b: np.where(condition, a, b)),
    "relax.zeros_like": lambda call, x: np.zeros(x.shape, str(call.attrs.dtype or x.dtype)),
}
