"""The same architecture as plain ONNX, for engines that know neither bit planes nor quantizers.

A low-bit network is another function than the float or int8 network that one would deploy in its stead; what the two
share is topology and shapes, and so the multiply-accumulates.  This writes the latter: quantizers of activations become
the activation functions that stand in their place in an ordinary network, weights stay the numbers they are.

* A quantizer to levels that begin at zero becomes a ReLU, one to positive and negative levels a clip to its outermost
  levels, and one to 8 bits nothing, because an int8 engine rounds to 8 bits everywhere.
* What an exporter would fold is folded: a batch norm or a bias right after a convolution or linear layer goes into its
  weight and bias.  So no engine is slowed down by how the network was written.
* Whatever does not depend on the input is computed here.

Without quantizers the ONNX network computes what the model computes, up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax
from tvm.ir import Call, Var
from tvm.tirx import FloatImm, IntImm

from tvmq import golden
from tvmq.dialect import constant_value, encoding_of
from tvmq.errors import UnsupportedOperatorError
from tvmq.model import Model, module_bindings
from tvmq.transform import RecognizeQuantizers

__all__ = ["to_onnx"]

OPSET = 17
IR_VERSION = 8
INT8_PLANES = 8


def to_onnx(model: Model, batch: int = 1) -> onnx.ModelProto:
    """A model as an ONNX network of the same topology and shapes, without its quantizers.

    Parameters
    ----------
    model : Model
        Float Relax, as :func:`tvmq.load` gives it.
    batch : int
        Size of an open batch, which ONNX gets as a number.

    Returns
    -------
    onnx.ModelProto
        Checked, with inferred shapes; inputs and outputs under the model's names.

    Raises
    ------
    UnsupportedOperatorError
        If an operator has no counterpart here; the message names it and the layer.
    """
    writer = _Writer(_with_batch(model, batch), model)
    for binding in module_bindings(writer.function):
        writer.bind(binding.var, binding.value)
    return writer.finish()


def _with_batch(model: Model, batch: int) -> tvm.IRModule:
    """The module with its quantizers found and a number for its batch."""
    sizes = {
        size.name: batch
        for parameter in model.module["main"].params
        for size in parameter.ty.shape
        if isinstance(size, Var)
    }
    module = relax.transform.BindSymbolicVars(sizes, "main")(model.module) if sizes else model.module
    return tvm.transform.Sequential([RecognizeQuantizers()])(module)


@dataclass
class _Product:
    """A convolution or linear layer whose weight and bias can still take up what follows.

    ``weight`` has its output channels on ``axis``.  A max pool may follow at once: ``max(f(x)) = f(max(x))`` for a
    rising f, so what follows the pool with positive factors can be taken up as well.
    """

    operator: str
    name: str
    source: str
    weight: np.ndarray
    axis: int
    attributes: dict[str, Any] = field(default_factory=dict)
    bias: np.ndarray | None = None
    pool: tuple[str, dict[str, Any]] | None = None

    def takes(self, factor: np.ndarray) -> bool:
        """Whether a multiplication that follows can be taken up."""
        return self.pool is None or bool((factor > 0).all())

    @property
    def channels(self) -> int:
        return self.weight.shape[self.axis]

    def scale(self, factor: np.ndarray, offset: np.ndarray) -> None:
        """Follow up by ``factor * x + offset``, one number per output channel."""
        shape = [1] * self.weight.ndim
        shape[self.axis] = -1
        self.weight = (self.weight * factor.reshape(shape)).astype("float32")
        self.bias = ((0 if self.bias is None else self.bias * factor) + offset).astype("float32")


class _Writer:
    """Writes ONNX nodes for the bindings of a function, one by one.

    A value is the name of an ONNX tensor, an array (a constant), a :class:`_Product` that is not written yet, or a
    tuple of values.
    """

    def __init__(self, module: tvm.IRModule, model: Model) -> None:
        self.function = module["main"]
        self.name = model.name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: Counter[str] = Counter()
        self._uses = _uses(self.function)
        # By identity; the value is kept so that no other one gets its identity.
        self._written: dict[int, tuple[Any, str]] = {}
        self.inputs = [self.fresh(spec.name) for spec in model.inputs]
        self.outputs = [self.fresh(spec.name) for spec in model.outputs]
        self.values: dict[Var, Any] = dict(zip(self.function.params, self.inputs, strict=True))

    def fresh(self, name: str) -> str:
        """A name that no tensor has yet."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}.{self._names[name]}"

    def emit(self, operator: str, inputs: Sequence[Any], name: str, **attributes: Any) -> str:
        """Write a node with one output, and give the output's name."""
        output = self.fresh(name)
        operands = [self.tensor(operand) for operand in inputs]
        self.nodes.append(helper.make_node(operator, operands, [output], name=output, **attributes))
        return output

    def tensor(self, value: Any) -> str:
        """The ONNX name of a value; constants and products are written on their first use."""
        if isinstance(value, str):
            return value
        if id(value) not in self._written:
            write = self._write_product if isinstance(value, _Product) else self._write_constant
            self._written[id(value)] = value, write(value)
        return self._written[id(value)][1]

    def _write_constant(self, array: np.ndarray) -> str:
        name = self.fresh("constant")
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name))
        return name

    def _write_product(self, product: _Product) -> str:
        operands = [product.source, product.weight, *([] if product.bias is None else [product.bias])]
        result = self.emit(product.operator, operands, product.name, **product.attributes)
        if product.pool is None:
            return result
        name, attributes = product.pool
        return self.emit("MaxPool", [result], name, **attributes)

    def value(self, expr: relax.Expr) -> Any:
        """What an argument of a call stands for."""
        if isinstance(expr, Var):
            return self.values[expr]
        array = constant_value(expr)
        if array is not None:
            return array
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(item) for item in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.value(expr.tuple_value)[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(int(size) for size in expr.values)
        if isinstance(expr, IntImm | FloatImm):
            return expr.value
        return expr

    def bind(self, variable: Var, expr: relax.Expr) -> None:
        """Write a binding, unless nothing reads it."""
        if not self._uses[variable]:
            return
        if not isinstance(expr, Call):
            value = self.value(expr)
            shared = isinstance(value, _Product) and any(
                self._uses[item] > 1 for item in relax.analysis.free_vars(expr)
            )
            self.values[variable] = self.tensor(value) if shared else value
            return
        arguments = [self.value(argument) for argument in expr.args]
        if all(_is_constant(argument) for argument in arguments):
            used = {item: self.values[item] for item in relax.analysis.free_vars(expr)}
            self.values[variable] = golden.evaluate(expr, used)
            return
        operator = str(expr.op.name) if hasattr(expr.op, "name") else type(expr.op).__name__
        write = _OPERATORS.get(operator)
        result = None if write is None else write(self, expr, variable.name, *arguments)
        if result is None:
            raise UnsupportedOperatorError(
                f"layer '{variable.name}': {operator} in this form cannot be exported to ONNX for other engines"
            )
        self.values[variable] = result

    def used_once(self, expr: relax.Expr) -> bool:
        """Whether nothing else reads a value, so that it can take up what follows."""
        return isinstance(expr, Var) and self._uses[expr] == 1

    def finish(self) -> onnx.ModelProto:
        """The network, after all bindings."""
        results = self.value(self.function.body.body)
        results = results if isinstance(results, tuple) else (results,)
        for name, result in zip(self.outputs, results, strict=True):
            self.nodes.append(helper.make_node("Identity", [self.tensor(result)], [name]))
        types = self.function.ret_ty
        types = list(types.fields) if isinstance(types, relax.TupleType) else [types]
        inputs = [_information(*pair) for pair in zip(self.inputs, [p.ty for p in self.function.params], strict=True)]
        outputs = [_information(*pair) for pair in zip(self.outputs, types, strict=True)]
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, self.constants)
        network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        network = onnx.shape_inference.infer_shapes(network, strict_mode=True, data_prop=True)
        onnx.checker.check_model(network)
        return network


def _information(name: str, ty: relax.TensorType) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(ty.dtype)))
    return helper.make_tensor_value_info(name, kind, [int(size) for size in ty.shape])


def _uses(function: relax.Function) -> Counter[Var]:
    """How often each variable is read."""
    counts: Counter[Var] = Counter()

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, Var):
            counts[expr] += 1

    for binding in module_bindings(function):
        relax.analysis.post_order_visit(binding.value, visit)
    relax.analysis.post_order_visit(function.body.body, visit)
    return counts


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return not isinstance(value, str | _Product)


# --- operators: function(writer, call, name, *values) -> value, or None if this form of it has no counterpart ---------

Writing = Callable[..., Any]


def _integers(values: Any) -> list[int]:
    return [int(value) for value in values]


def _conv2d(writer: _Writer, call: Call, name: str, x: Any, weight: Any) -> Any:
    attrs = call.attrs
    if str(attrs.data_layout) != "NCHW" or str(attrs.kernel_layout) != "OIHW" or not isinstance(weight, np.ndarray):
        return None
    attributes = {
        "strides": _integers(attrs.strides),
        "pads": _integers(attrs.padding),
        "dilations": _integers(attrs.dilation),
        "group": int(attrs.groups),
        "kernel_shape": list(weight.shape[2:]),
    }
    return _Product("Conv", name, writer.tensor(x), weight, 0, attributes)


def _matmul(writer: _Writer, call: Call, name: str, x: Any, weight: Any) -> Any:
    if isinstance(weight, np.ndarray) and weight.ndim == 2 and len(call.args[0].ty.shape) == 2:
        return _Product("Gemm", name, writer.tensor(x), weight, 1)
    return writer.emit("MatMul", [x, weight], name)


def _batch_norm(writer: _Writer, call: Call, name: str, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
    attrs = call.attrs
    statistics = (gamma, beta, mean, variance)
    if int(attrs.axis) != 1 or bool(attrs.training) or not all(isinstance(item, np.ndarray) for item in statistics):
        return None
    gamma = gamma if bool(attrs.scale) else np.ones_like(gamma)
    beta = beta if bool(attrs.center) else np.zeros_like(beta)
    factor = gamma.astype("float64") / np.sqrt(variance.astype("float64") + float(attrs.epsilon))
    if isinstance(x, _Product) and writer.used_once(call.args[0]) and x.takes(factor):
        x.scale(factor, beta - mean * factor)
        return x, mean, variance
    operands = [x, gamma, beta, mean, variance]
    return writer.emit("BatchNormalization", operands, name, epsilon=float(attrs.epsilon)), mean, variance


def _add(writer: _Writer, call: Call, name: str, one: Any, other: Any) -> Any:
    for product, bias, argument in ((one, other, call.args[0]), (other, one, call.args[1])):
        if isinstance(product, _Product) and isinstance(bias, np.ndarray) and writer.used_once(argument):
            per_channel = _per_channel(product, bias)
            if per_channel is not None:
                product.scale(np.ones(product.channels), per_channel)
                return product
    return writer.emit("Add", [one, other], name)


def _per_channel(product: _Product, bias: np.ndarray) -> np.ndarray | None:
    """A constant that is added to a product, as one number per channel; None if it is not that."""
    rank = product.weight.ndim
    shape = (1,) * (rank - bias.ndim) + bias.shape
    channel_only = len(shape) == rank and all(size == 1 for axis, size in enumerate(shape) if axis != 1)
    return np.broadcast_to(bias.reshape(-1), product.channels) if channel_only else None


def _dequantize(writer: _Writer, call: Call, name: str, x: Any, *_encoding: Any) -> Any:
    encoding = encoding_of(call)
    if encoding.planes >= INT8_PLANES:
        return x
    levels = np.asarray(encoding.values(np.arange(2**encoding.planes, dtype=np.uint8)), np.float32).reshape(-1)
    if levels.min() == 0:
        return writer.emit("Relu", [x], name)
    return writer.emit("Clip", [x, levels.min(), levels.max()], name)


def _clip(writer: _Writer, call: Call, name: str, x: Any, low: float, high: float) -> Any:
    kind = np.dtype(str(call.ty.dtype))
    return writer.emit("Clip", [x, np.array(low, kind), np.array(high, kind)], name)


def _pool(operator: str) -> Writing:
    def write(writer: _Writer, call: Call, name: str, x: Any) -> Any:
        attrs = call.attrs
        if str(attrs.layout) != "NCHW" or str(attrs.out_layout) != "NCHW":
            return None
        attributes: dict[str, Any] = {
            "kernel_shape": _integers(attrs.pool_size),
            "strides": _integers(attrs.strides),
            "pads": _integers(attrs.padding),
            "ceil_mode": int(bool(attrs.ceil_mode)),
        }
        if operator == "MaxPool":
            attributes["dilations"] = _integers(attrs.dilation)
            if isinstance(x, _Product) and writer.used_once(call.args[0]) and x.pool is None:
                x.pool = name, attributes
                return x
        elif any(size != 1 for size in _integers(attrs.dilation)):
            return None
        else:
            attributes["count_include_pad"] = int(bool(attrs.count_include_pad))
        return writer.emit(operator, [x], name, **attributes)

    return write


def _adaptive_avg_pool2d(writer: _Writer, call: Call, name: str, x: Any) -> Any:
    if _integers(call.ty.shape)[2:] != [1, 1] or str(call.attrs.layout) != "NCHW":
        return None
    return writer.emit("GlobalAveragePool", [x], name)


def _mean(writer: _Writer, call: Call, name: str, x: Any) -> Any:
    rank = len(call.args[0].ty.shape)
    axes = sorted(axis % rank for axis in (range(rank) if call.attrs.axis is None else _integers(call.attrs.axis)))
    keeps = bool(call.attrs.keepdims)
    if rank == 4 and axes == [2, 3]:
        pooled = writer.emit("GlobalAveragePool", [x], name)
        return pooled if keeps else writer.emit("Flatten", [pooled], name)
    return writer.emit("ReduceMean", [x], name, axes=axes, keepdims=int(keeps))


def _reshape(writer: _Writer, call: Call, name: str, x: Any, *_shape: Any) -> Any:
    return writer.emit("Reshape", [x, np.array(_integers(call.ty.shape), np.int64)], name)


def _permute(writer: _Writer, call: Call, name: str, x: Any) -> Any:
    axes = call.attrs.axes
    order = list(reversed(range(len(call.ty.shape)))) if axes is None else _integers(axes)
    return writer.emit("Transpose", [x], name, perm=order)


def _concat(writer: _Writer, call: Call, name: str, arrays: tuple[Any, ...]) -> Any:
    return writer.emit("Concat", list(arrays), name, axis=int(call.attrs.axis))


def _split(writer: _Writer, call: Call, name: str, x: Any) -> Any:
    sizes = [int(ty.shape[int(call.attrs.axis)]) for ty in call.ty.fields]
    parts = [writer.fresh(f"{name}.{index}") for index in range(len(sizes))]
    operands = [writer.tensor(x), writer.tensor(np.array(sizes, np.int64))]
    writer.nodes.append(helper.make_node("Split", operands, parts, name=parts[0], axis=int(call.attrs.axis)))
    return tuple(parts)


def _pad(writer: _Writer, call: Call, name: str, x: Any) -> Any:
    if str(call.attrs.pad_mode) != "constant":
        return None
    widths = np.reshape(_integers(call.attrs.pad_width), (-1, 2)).T.reshape(-1)
    value = np.array(float(call.attrs.pad_value), str(call.ty.dtype))
    return writer.emit("Pad", [x, widths.astype(np.int64), value], name)


def _strided_slice(writer: _Writer, _call: Call, name: str, x: Any, axes: Any, begin: Any, end: Any, *step: Any) -> Any:
    steps = step[0] if step else (1,) * len(axes)
    operands = [np.array(values, np.int64) for values in (begin, end, axes, steps)]
    return writer.emit("Slice", [x, *operands], name)


def _softmax(writer: _Writer, call: Call, name: str, x: Any) -> Any:
    return writer.emit("Softmax", [x], name, axis=int(call.attrs.axis))


def _elementwise(operator: str) -> Writing:
    return lambda writer, _call, name, *values: writer.emit(operator, values, name)


_OPERATORS: dict[str, Writing] = {
    "tvmq.quantize": lambda _writer, _call, _name, x, *_constants: x,
    "tvmq.dequantize": _dequantize,
    "relax.add": _add,
    "relax.clip": _clip,
    "relax.concat": _concat,
    "relax.flatten": _reshape,
    "relax.expand_dims": _reshape,
    "relax.matmul": _matmul,
    "relax.mean": _mean,
    "relax.nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "relax.nn.avg_pool2d": _pool("AveragePool"),
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.conv2d": _conv2d,
    "relax.nn.max_pool2d": _pool("MaxPool"),
    "relax.nn.pad": _pad,
    "relax.nn.softmax": _softmax,
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
    "relax.split": _split,
    "relax.squeeze": _reshape,
    "relax.strided_slice": _strided_slice,
    **{
        f"relax.{name}": _elementwise(operator)
        for name, operator in {
            "abs": "Abs",
            "divide": "Div",
            "exp": "Exp",
            "greater": "Greater",
            "greater_equal": "GreaterOrEqual",
            "less": "Less",
            "less_equal": "LessOrEqual",
            "maximum": "Max",
            "minimum": "Min",
            "multiply": "Mul",
            "negative": "Neg",
            "nn.relu": "Relu",
            "round": "Round",
            "sigmoid": "Sigmoid",
            "sign": "Sign",
            "sqrt": "Sqrt",
            "subtract": "Sub",
            "tanh": "Tanh",
            "where": "Where",
        }.items()
    },
}
