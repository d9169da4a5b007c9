"""The ``tvmq.*`` operators become calls of tensor-level functions.

Before::

    c = tvmq.bitserial_conv2d(x, packed_weight, thresholds)      # attributes: the workload, the layer's name

After::

    c = R.call_tir(cls.conv1, (x, packed_weight, thresholds), out_ty=...)   # PrimFunc with the attribute tvmq.kernel

The functions are unscheduled (:class:`tvmq.transform.ScheduleKernels` does that) and named after their layer.  TVM's
own operators follow TVM's legalization, with one rounding per float operation (see :mod:`tvmq.kernels.rounding`): the
golden executor computes them so, and neighbours may now be fused without changing a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import Call, TupleType

from tvmq import dialect
from tvmq.dialect import constant_array, encoding_of, pair, sides
from tvmq.kernels import byte_layout, packing, pool
from tvmq.kernels.conv2d import conv2d
from tvmq.kernels.float_planes import float_planes
from tvmq.kernels.float_products import float_product
from tvmq.kernels.layout import channels_first
from tvmq.kernels.rounding import round_products
from tvmq.kernels.uniform_quantizer import uniform_quantizer

__all__ = ["LegalizeKernels"]

Legalization = Callable[[relax.BlockBuilder, Call], relax.Expr]


def _extents(shape: Any) -> list[Any]:
    """Dimensions as Python integers where they are known."""
    return [int(extent) if isinstance(extent, int | tirx.IntImm) else extent for extent in shape]


def _call_tir(builder: relax.BlockBuilder, call: Call, function: tirx.PrimFunc, name: str) -> relax.Expr:
    variable = builder.add_func(function.without_attr("global_symbol"), name)
    outputs = list(call.ty.fields) if isinstance(call.ty, TupleType) else call.ty
    return relax.call_tir(variable, list(call.args), out_ty=outputs)


def _function_name(call: Call, default: str) -> str:
    """The name of the call's layer in letters that a function's may have."""
    return "".join(letter if letter.isalnum() else "_" for letter in str(call.attrs["layer"])) or default


def _bitserial_conv2d(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    workload = dialect.workload_of(call)
    batch, _, width, _, _ = _extents(call.args[0].ty.shape)
    function = conv2d(workload, batch, None if width == workload.width else width)
    return _call_tir(builder, call, function, _function_name(call, "bitserial_conv2d"))


def _packed_float_product(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    (batch,) = _extents(list(call.args[0].ty.shape)[:1])
    # The number of samples may be an expression, such as sequences times their length; here it is a variable.
    known = batch if isinstance(batch, int) else tirx.Var("samples", "int64")
    workload = dialect.float_workload(call)
    function = float_planes(workload, known) if workload.pixel_lanes else float_product(workload, known)
    return _call_tir(builder, call, function, _function_name(call, "float_product"))


def _bitpack(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, channels, height, width = _extents(call.args[0].ty.shape)
    function = packing.bitpack(batch, channels, height, width, int(call.attrs["planes"]), int(call.attrs["word_bits"]))
    return _call_tir(builder, call, function, "bitpack")


def _bitunpack(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, height, width, planes, _ = _extents(call.args[0].ty.shape)
    word_bits = int(np.dtype(str(call.args[0].ty.dtype)).itemsize) * 8
    function = packing.bitunpack(batch, int(call.attrs["channels"]), height, width, planes, word_bits)
    return _call_tir(builder, call, function, "bitunpack")


def _bytepack(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, channels, height, width = _extents(call.args[0].ty.shape)
    length, flip = int(call.attrs["length"]), int(call.attrs["flip"])
    function = byte_layout.bytepack(batch, channels, height, width, length, flip)
    return _call_tir(builder, call, function, "bytepack")


def _byteunpack(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, height, width, _, length = _extents(call.args[0].ty.shape)
    channels, flip = int(call.attrs["channels"]), int(call.attrs["flip"])
    function = byte_layout.byteunpack(batch, channels, height, width, length, flip)
    return _call_tir(builder, call, function, "byteunpack")


def _bits_to_bytes(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, height, width, planes, _ = _extents(call.args[0].ty.shape)
    word_bits = int(np.dtype(str(call.args[0].ty.dtype)).itemsize) * 8
    channels, flip = int(call.attrs["channels"]), int(call.attrs["flip"])
    function = byte_layout.bits_to_bytes(batch, channels, height, width, planes, word_bits, flip)
    return _call_tir(builder, call, function, "bits_to_bytes")


def _bytes_to_bits(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, height, width, _, _ = _extents(call.args[0].ty.shape)
    channels, planes, word_bits, flip = (int(call.attrs[key]) for key in ("channels", "planes", "word_bits", "flip"))
    function = byte_layout.bytes_to_bits(batch, channels, height, width, planes, word_bits, flip)
    return _call_tir(builder, call, function, "bytes_to_bits")


def _byte_max_pool2d(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, height, width, _, length = _extents(call.args[0].ty.shape)
    attrs = call.attrs
    rows, columns = _extents(call.ty.shape)[1:3]
    function = pool.byte_max_pool2d(
        batch,
        height,
        width,
        length,
        kernel=pair(attrs["pool_size"]),
        strides=pair(attrs["strides"]),
        padding=sides(attrs["padding"])[:2],
        out_size=(rows, columns),
        dilation=pair(attrs["dilation"]),
    )
    return _call_tir(builder, call, function, "byte_max_pool2d")


def _channels_first(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, height, width, channels = _extents(call.args[0].ty.shape)
    function = channels_first(batch, height, width, channels, str(call.ty.dtype))
    return _call_tir(builder, call, function, "channels_first")


def _im2col_bitpack(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, channels, height, width = _extents(call.args[0].ty.shape)
    attrs = call.attrs
    function = packing.im2col_bitpack(
        batch,
        channels,
        height,
        width,
        int(attrs["planes"]),
        int(attrs["word_bits"]),
        kernel=pair(attrs["kernel"]),
        strides=pair(attrs["strides"]),
        padding=sides(attrs["padding"]),
        dilation=pair(attrs["dilation"]),
    )
    return _call_tir(builder, call, function, "im2col_bitpack")


def _quantize(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    thresholds, codes = (constant_array(argument) for argument in call.args[1:])
    shape = _extents(call.args[0].ty.shape)
    uniform = uniform_quantizer(thresholds)
    function = packing.quantize(shape, len(thresholds), tuple(codes.tolist()), uniform)
    variable = builder.add_func(function.without_attr("global_symbol"), "quantize")
    return relax.call_tir(variable, [call.args[0], call.args[1]], out_ty=call.ty)


def _packed_max_pool2d(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    batch, height, width, planes, words = _extents(call.args[0].ty.shape)
    word_bits = int(np.dtype(str(call.args[0].ty.dtype)).itemsize) * 8
    attrs = call.attrs
    rows, columns = _extents(call.ty.shape)[1:3]
    function = pool.max_pool2d(
        batch,
        height,
        width,
        words,
        word_bits,
        kernel=pair(attrs["pool_size"]),
        strides=pair(attrs["strides"]),
        padding=sides(attrs["padding"])[:2],
        out_size=(rows, columns),
        planes=planes,
        dilation=pair(attrs["dilation"]),
    )
    return _call_tir(builder, call, function, "packed_max_pool2d")


def _float_max_pool2d(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    """Channels last, as between our kernels; any other layout is TVM's own."""
    attrs = call.attrs
    if (str(attrs["layout"]), str(attrs["out_layout"])) != ("NHWC", "NHWC"):
        return tvm.ir.Op.get("relax.nn.max_pool2d").get_attr("FLegalize")(builder, call)
    batch, height, width, channels = _extents(call.args[0].ty.shape)
    function = pool.float_max_pool2d(
        batch,
        height,
        width,
        channels,
        kernel=pair(attrs["pool_size"]),
        strides=pair(attrs["strides"]),
        padding=sides(attrs["padding"])[:2],
        out_size=pair(_extents(call.ty.shape)[1:3]),
        dilation=pair(attrs["dilation"]),
    )
    return _call_tir(builder, call, function, "float_max_pool2d")


def _dequantize(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    """A look-up: there are at most 256 values (per channel of the first axis, if scales differ)."""
    encoding = encoding_of(call)
    codes = np.arange(2**encoding.planes, dtype=np.uint8)
    rows = max(encoding.scale.size, encoding.offset.size, encoding.coefficients.size // encoding.planes)
    table = encoding.values(np.broadcast_to(codes, (rows, len(codes))))

    def compute(source: te.Tensor, values: te.Tensor) -> te.Tensor:
        def value(*index: Any) -> Any:
            return values[index[0] if rows > 1 else 0, source[index].astype("int32")]

        return te.compute(source.shape, value, name="dequantize")

    return builder.call_te(compute, call.args[0], dialect.constant(table), primfunc_name_hint="dequantize")


def _threshold(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    codes = constant_array(call.args[2])

    def compute(accumulator: te.Tensor, thresholds: te.Tensor, table: te.Tensor) -> te.Tensor:
        def code(*index: Any) -> Any:
            level = tirx.const(0, "int32")
            for row in range(len(codes) - 1):
                level = level + (accumulator[index] >= thresholds[row, index[1]]).astype("int32")
            return level.astype("uint8") if _counts(codes) else table[level]

        return te.compute(accumulator.shape, code, name="threshold")

    return builder.call_te(compute, *call.args, primfunc_name_hint="threshold")


def _float_threshold(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    codes = constant_array(call.args[3])

    def compute(x: te.Tensor, direction: te.Tensor, thresholds: te.Tensor, table: te.Tensor) -> te.Tensor:
        def code(*index: Any) -> Any:
            number = x[index] * direction[index[1]]
            level = tirx.const(0, "int32")
            for row in range(len(codes) - 1):
                level = level + (number >= thresholds[row, index[1]]).astype("int32")
            return level.astype("uint8") if _counts(codes) else table[level]

        return te.compute(x.shape, code, name="float_threshold")

    return builder.call_te(compute, *call.args, primfunc_name_hint="float_threshold")


def _counts(codes: np.ndarray) -> bool:
    """Whether the code of every level is its number, so that no table is needed."""
    return bool(np.array_equal(codes, np.arange(len(codes))))


def _affine(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    def compute(x: te.Tensor, scale: te.Tensor, offset: te.Tensor) -> te.Tensor:
        def value(*index: Any) -> Any:
            operands = (x[index].astype("float32"), scale[index[1]], offset[index[1]])
            # llvm.fma rounds once on every target, unlike a product and a sum, which some targets contract.
            return tirx.call_llvm_pure_intrin("float32", "llvm.fma", *operands)

        return te.compute(x.shape, value, name="affine")

    return builder.call_te(compute, *call.args, primfunc_name_hint="affine")


def _max_pool2d(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    """Codes that were never packed: windows one by one, with the order reversed where the minimum is wanted."""
    pool_size, strides, dilation = (pair(call.attrs[key]) for key in ("pool_size", "strides", "dilation"))
    top, left, _, _ = sides(call.attrs["padding"])
    height, width = call.args[0].ty.shape[2], call.args[0].ty.shape[3]

    def compute(codes: te.Tensor, minimum: te.Tensor) -> te.Tensor:
        ky, kx = te.reduce_axis((0, pool_size[0]), "ky"), te.reduce_axis((0, pool_size[1]), "kx")

        def best(n: Any, c: Any, y: Any, x: Any) -> Any:
            row = y * strides[0] + ky * dilation[0] - top
            column = x * strides[1] + kx * dilation[1] - left
            inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
            code = codes[n, c, row, column].astype("int32") ^ (minimum[c].astype("int32") * 255)
            return te.max(tirx.if_then_else(inside, code, tirx.const(-1, "int32")), axis=[ky, kx])

        pooled = te.compute(call.ty.shape, best, name="pooled")
        return te.compute(
            call.ty.shape,
            lambda n, c, y, x: (pooled[n, c, y, x] ^ (minimum[c].astype("int32") * 255)).astype("uint8"),
            name="max_pool2d",
        )

    return builder.call_te(compute, *call.args, primfunc_name_hint="max_pool2d")


LEGALIZATIONS: dict[str, Legalization] = {
    "relax.nn.max_pool2d": _float_max_pool2d,
    "tvmq.affine": _affine,
    "tvmq.bitpack": _bitpack,
    "tvmq.bits_to_bytes": _bits_to_bytes,
    "tvmq.bitserial_conv2d": _bitserial_conv2d,
    "tvmq.bitunpack": _bitunpack,
    "tvmq.byte_max_pool2d": _byte_max_pool2d,
    "tvmq.bytepack": _bytepack,
    "tvmq.bytes_to_bits": _bytes_to_bits,
    "tvmq.byteunpack": _byteunpack,
    "tvmq.channels_first": _channels_first,
    "tvmq.dequantize": _dequantize,
    "tvmq.float_threshold": _float_threshold,
    "tvmq.im2col_bitpack": _im2col_bitpack,
    "tvmq.max_pool2d": _max_pool2d,
    "tvmq.packed_max_pool2d": _packed_max_pool2d,
    "tvmq.packed_float_product": _packed_float_product,
    "tvmq.quantize": _quantize,
    "tvmq.threshold": _threshold,
}


@tvm.transform.module_pass(opt_level=0, name="tvmq.LegalizeKernels")
class LegalizeKernels:
    """``tvmq.*`` calls become ``call_tir``; TVM's own operators follow their own legalization."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        legalized = relax.transform.LegalizeOps(LEGALIZATIONS)(module)
        result = legalized.clone()
        for variable, function in legalized.functions_items():
            if isinstance(function, tirx.PrimFunc):
                result[variable] = round_products(function)
        return result
