"""The ``tvmq.*`` Relax operators: their types and what they compute, in numpy.

Four families, in the order in which the passes introduce them:

values and codes
    ``quantize`` turns floats into codes by thresholds, ``dequantize`` gives codes their values
    (see :mod:`tvmq.bitplanes` for what a code means).
exact integers
    ``conv2d`` and ``dense`` take codes and give int32 dot products in units of both scales; ``threshold`` turns
    those into the next layer's codes (``float_threshold`` does so with floats), ``affine`` turns them into floats,
    ``max_pool2d`` works on codes.
float32 times low-bit weights, or float32
    ``weight_only_conv2d`` and ``weight_only_dense`` take floats and constant codes and give floats, in a fixed order of
    additions; so do ``float_conv2d`` and ``float_dense`` with constant floats; ``packed_float_product`` is the kernel
    of both.
packed
    ``bitpack``, ``im2col_bitpack``, ``bitunpack`` and ``channels_first`` change layout, ``bitserial_conv2d`` is one
    fused kernel from packed codes to packed codes (or to integers or floats), ``packed_max_pool2d`` pools words.
    ``bytepack``, ``byteunpack``, ``bits_to_bytes``, ``bytes_to_bits`` and ``byte_max_pool2d`` do the same for codes
    that are bytes.

Every constructor can be called inside TVMScript, so tests write their expected modules with them.  ``REFERENCES``
holds each operator's meaning as a numpy function; the golden executor runs those, and every kernel is compared to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Call, GenericConst, Op, TupleType, make_node, register_op_attr

from tvmq import errors
from tvmq.bitplanes import BasisTerms, Encoding, window_classes
from tvmq.kernels.float_workload import FloatWorkload, unpack_weights
from tvmq.kernels.packing import pack_activations, pack_bytes, unpack_activations
from tvmq.kernels.sequential import sequential_product, sequential_windows
from tvmq.kernels.workload import BYTES_PER_STEP, Conv2dWorkload, Integer, Thresholds, padded_bytes

__all__ = [
    "REFERENCES",
    "affine",
    "basis_conv2d",
    "basis_dense",
    "bitpack",
    "bits_to_bytes",
    "bitserial_conv2d",
    "bitunpack",
    "byte_max_pool2d",
    "bytepack",
    "bytes_to_bits",
    "byteunpack",
    "channels_first",
    "constant",
    "constant_array",
    "constant_value",
    "conv2d",
    "dense",
    "dequantize",
    "encoding_constants",
    "encoding_of",
    "float_conv2d",
    "float_dense",
    "float_threshold",
    "float_workload",
    "fused_multiply_add",
    "im2col_bitpack",
    "is_call",
    "is_symbolic",
    "line_index",
    "max_pool2d",
    "operand_encodings",
    "packed_float_product",
    "packed_max_pool2d",
    "pair",
    "quantize",
    "sides",
    "threshold",
    "unpacked",
    "weight_encoding",
    "weight_only_conv2d",
    "weight_only_dense",
    "workload_of",
]

# A pass is called through C++, which hands an error on by the name of its class: these are ours.
for _name in ("BundleError", "InputError", "ModelError", "TargetError", "ToolchainError", "UnsupportedOperatorError"):
    tvm_ffi.register_error(_name, getattr(errors, _name))

_LARGEST_GATHER = 2**24
"""Elements of windows that a reference copies at a time: some 64 MiB."""

Reference = Callable[..., Any]
REFERENCES: dict[str, Reference] = {}


def _define(name: str, infer: Callable[[Call], relax.TensorType | TupleType], reference: Reference) -> None:
    """Register one operator; FPurity is what lets it stand in a dataflow block."""
    full_name = f"tvmq.{name}"
    register_op_attr(full_name, "FInferType", lambda call, _builder: infer(call))
    register_op_attr(full_name, "FPurity", True)
    register_op_attr(full_name, "TScriptPrinterName", full_name)
    REFERENCES[full_name] = reference


def _call(name: str, arguments: Sequence[relax.Expr], **attributes: Any) -> Call:
    attrs = make_node("ir.DictAttrs", **attributes) if attributes else None
    return Call(Op.get(f"tvmq.{name}"), list(arguments), attrs)


def is_call(expr: Any, *names: str) -> bool:
    """Whether ``expr`` is a call of one of the operators, such as ``"relax.add"`` or ``"tvmq.conv2d"``."""
    return isinstance(expr, Call) and isinstance(expr.op, Op) and expr.op.name in names


def _shape(expr: relax.Expr) -> list:
    return list(expr.ty.shape)


def _window_output(
    size: Any, kernel: int, stride: int, before: int, after: int, dilation: int, ceil: bool = False
) -> Any:
    room = size + before + after - dilation * (kernel - 1) - 1
    if ceil:
        # A window may start in the padding after the image only if it still touches the image or the padding before.
        outputs = -(-room // stride) + 1
        return outputs - 1 if (outputs - 1) * stride >= size + before else outputs
    return room // stride + 1


def _integers(values: Any) -> list[int]:
    return [int(value) for value in values]


# --- values and codes -------------------------------------------------------------------------------------------


def quantize(x: relax.Expr, thresholds: relax.Expr, codes: relax.Expr) -> Call:
    """Codes of floats: ``codes[number of thresholds <= x]``.

    Parameters
    ----------
    x : float32 of any shape
    thresholds : float32 of shape (T,), ascending
    codes : uint8 of shape (T + 1,)
        Code of each level, in ascending order of the levels' input ranges.

    Returns
    -------
    Call of type uint8, shape of ``x``
    """
    return _call("quantize", [x, thresholds, codes])


def _quantize_reference(_call: Call, x: np.ndarray, thresholds: np.ndarray, codes: np.ndarray) -> np.ndarray:
    below = np.searchsorted(thresholds, x, side="right")
    return codes[np.where(np.isnan(x), 0, below)]


_define("quantize", lambda call: relax.TensorType(_shape(call.args[0]), "uint8"), _quantize_reference)


def dequantize(codes: relax.Expr, coefficients: relax.Expr, offset: relax.Expr, scale: relax.Expr) -> Call:
    """Values of codes: ``scale * (offset + sum_i coefficients[..., i] * bit_i(code))``.

    Parameters
    ----------
    codes : uint8 of any shape, or uint16 for constants of more than eight planes
    coefficients : int32 or float32 of shape (P,) or (O, P)
    offset : of the same dtype, shape () or (O,)
    scale : float32 of shape () or (O,)
        Arrays per channel go along the first axis of ``codes``.

    Returns
    -------
    Call of type float32, shape of ``codes``
    """
    return _call("dequantize", [codes, coefficients, offset, scale])


_define(
    "dequantize",
    lambda call: relax.TensorType(_shape(call.args[0]), "float32"),
    lambda _call, codes, coefficients, offset, scale: Encoding(coefficients, offset, scale).values(codes),
)


# --- exact integers ---------------------------------------------------------------------------------------------


def _encoding_attributes(x: Encoding, w: Encoding) -> dict[str, Any]:
    return {
        "x_coefficients": x.coefficients.tolist(),
        "x_offset": int(x.offset),
        "w_coefficients": w.coefficients.tolist(),
        "w_offset": int(w.offset),
    }


def operand_encodings(call: Call) -> tuple[Encoding, Encoding]:
    """Encodings (activations, weights) of a ``tvmq.conv2d`` or ``tvmq.dense``, with scale 1."""
    return tuple(  # type: ignore[return-value]
        Encoding(
            np.array(_integers(call.attrs[f"{operand}_coefficients"])), np.array(int(call.attrs[f"{operand}_offset"]))
        )
        for operand in "xw"
    )


def conv2d(
    x: relax.Expr,
    w: relax.Expr,
    x_encoding: Encoding,
    w_encoding: Encoding,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Call:
    """Exact integer convolution of codes; padding is the real number zero.

    Parameters
    ----------
    x : uint8 codes of shape (N, C, H, W)
    w : uint8 codes of shape (O, C, KH, KW)
    x_encoding, w_encoding : Encoding
        Integer encodings; their scales are ignored, the result is in units of both.
    strides, dilation : (int, int)
    padding : (top, left, bottom, right)

    Returns
    -------
    Call of type int32, shape (N, O, OH, OW)
    """
    return _call(
        "conv2d",
        [x, w],
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
        **_encoding_attributes(x_encoding, w_encoding),
    )


def _conv2d_type(call: Call) -> relax.TensorType:
    return relax.TensorType(_shape_of_conv2d(call), "int32")


def _shape_of_conv2d(call: Call) -> list:
    batch, _, height, width = _shape(call.args[0])
    channels, _, kernel_height, kernel_width = _shape(call.args[1])
    strides, dilation = _integers(call.attrs["strides"]), _integers(call.attrs["dilation"])
    top, left, bottom, right = _integers(call.attrs["padding"])
    rows = _window_output(height, kernel_height, strides[0], top, bottom, dilation[0])
    columns = _window_output(width, kernel_width, strides[1], left, right, dilation[1])
    return [batch, channels, rows, columns]


def _windows(x: np.ndarray, kernel: tuple[int, int], attrs: Any, fill: int = 0) -> np.ndarray:
    """Sliding windows: (N, C, H, W) to (N, C, OH, OW, KH, KW), as a view of the padded array."""
    strides, dilation = _integers(attrs["strides"]), _integers(attrs["dilation"])
    top, left, bottom, right = _integers(attrs["padding"])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]


def _exact_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer matrix product through float64 BLAS, which is exact below 2**53."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64).astype(np.int32)


def _conv2d_reference(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    x_encoding, w_encoding = operand_encodings(call)
    kernel = w.shape[2:]
    windows = _windows(x_encoding.units(x), kernel, call.attrs)
    batch, _, rows, columns = windows.shape[:4]
    matrix = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * rows * columns, -1)
    product = _exact_product(matrix, w_encoding.units(w).reshape(len(w), -1).T)
    return np.ascontiguousarray(product.reshape(batch, rows, columns, len(w)).transpose(0, 3, 1, 2))


_define("conv2d", _conv2d_type, _conv2d_reference)


def dense(x: relax.Expr, w: relax.Expr, x_encoding: Encoding, w_encoding: Encoding) -> Call:
    """Exact integer matrix product of codes.

    Parameters
    ----------
    x : uint8 codes of shape (N, K)
    w : uint8 codes of shape (O, K)
    x_encoding, w_encoding : Encoding
        As for :func:`conv2d`.

    Returns
    -------
    Call of type int32, shape (N, O)
    """
    return _call("dense", [x, w], **_encoding_attributes(x_encoding, w_encoding))


def _dense_reference(call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    x_encoding, w_encoding = operand_encodings(call)
    return _exact_product(x_encoding.units(x), w_encoding.units(w).T)


_define(
    "dense",
    lambda call: relax.TensorType([_shape(call.args[0])[0], _shape(call.args[1])[0]], "int32"),
    _dense_reference,
)


def basis_conv2d(
    x: relax.Expr,
    terms: BasisTerms,
    bias: np.ndarray,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Call:
    """Convolution of codes in learned bases; padding is the real number zero.

    Parameters
    ----------
    x : uint8 codes of shape (N, C, H, W)
    terms : BasisTerms
        With weights of shape (O, C, KH, KW).
    bias : float32 of shape (1, 1, O), or (RC, CC, O)
        What the offset of the activations contributes, for each class of rows and columns of
        :func:`tvmq.bitplanes.window_classes` if they differ.
    strides, dilation : (int, int)
    padding : (top, left, bottom, right)

    Returns
    -------
    Call of type float32, shape (N, O, OH, OW)

    Notes
    -----
    The integers S_ij are exact; the sums over i, then j, are in that order, in fused multiply-adds from 0 and from the
    bias on.
    """
    return _call(
        "basis_conv2d",
        [x, *_basis_constants(terms, bias)],
        combine=terms.combine,
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
    )


def _basis_constants(terms: BasisTerms, bias: np.ndarray) -> list[relax.Expr]:
    arrays = (terms.codes, terms.activation_basis, terms.weight_basis, bias.astype(np.float32))
    return [constant(array) for array in arrays]


def _basis_product(
    call: Call,
    matrix: np.ndarray,
    w: np.ndarray,
    activation_basis: np.ndarray,
    weight_basis: np.ndarray,
    bias: np.ndarray,
) -> np.ndarray:
    """(M, K) times (O, K) codes to float32 (M, O), from a bias on that broadcasts to it."""
    signed = str(call.attrs["combine"]) == "xor"
    result = np.broadcast_to(bias, (len(matrix), len(w)))
    for j, weights in enumerate(weight_basis):
        plane = ((w >> np.uint8(j)) & w.dtype.type(1)).astype(np.int8)
        bits = 2 * plane - 1 if signed else plane
        total = np.full(result.shape, np.float32(-0.0))
        for i, activation in enumerate(activation_basis):
            sums = _exact_product((matrix >> np.uint8(i)) & np.uint8(1), bits.T).astype(np.float32)
            total = fused_multiply_add(sums, activation, total)
        result = fused_multiply_add(total, weights, result)
    return result


def _basis_conv2d_reference(
    call: Call, x: np.ndarray, w: np.ndarray, activation_basis: np.ndarray, weight_basis: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    attrs, kernel = call.attrs, pair(w.shape[2:])
    windows = _windows(x, kernel, attrs)
    batch, _, rows, columns = windows.shape[:4]
    matrix = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * rows * columns, -1)
    start = bias[0]
    if bias.shape[:2] != (1, 1):
        geometry = (pair(attrs["strides"]), sides(attrs["padding"]), pair(attrs["dilation"]))
        classes = [index for index, _ in window_classes(x.shape[2:], kernel, *geometry)]
        start = np.tile(_per_pixel(bias, classes).reshape(rows * columns, -1), (batch, 1))
    product = _basis_product(call, matrix, w.reshape(len(w), -1), activation_basis, weight_basis, start)
    return np.ascontiguousarray(product.reshape(batch, rows, columns, len(w)).transpose(0, 3, 1, 2))


_define("basis_conv2d", lambda call: relax.TensorType(_shape_of_conv2d(call), "float32"), _basis_conv2d_reference)


def basis_dense(x: relax.Expr, terms: BasisTerms, bias: np.ndarray) -> Call:
    """Matrix product of codes in learned bases; see :func:`basis_conv2d`.

    Parameters
    ----------
    x : uint8 codes of shape (N, K)
    terms : BasisTerms
        With weights of shape (O, K).
    bias : float32 of shape (1, 1, O)

    Returns
    -------
    Call of type float32, shape (N, O)
    """
    return _call("basis_dense", [x, *_basis_constants(terms, bias)], combine=terms.combine)


_define(
    "basis_dense",
    lambda call: relax.TensorType([_shape(call.args[0])[0], _shape(call.args[1])[0]], "float32"),
    lambda call, x, w, activation_basis, weight_basis, bias: _basis_product(
        call, x, w, activation_basis, weight_basis, bias[0]
    ),
)


def threshold(accumulator: relax.Expr, thresholds: relax.Expr, codes: relax.Expr) -> Call:
    """Codes of integers: ``codes[number of thresholds of the channel <= accumulator]``.

    Parameters
    ----------
    accumulator : int32 of shape (N, C, ...)
    thresholds : int32 of shape (T, C), ascending along T
    codes : uint8 of shape (T + 1,)

    Returns
    -------
    Call of type uint8, shape of ``accumulator``
    """
    return _call("threshold", [accumulator, thresholds, codes])


def _per_channel(array: np.ndarray, ndim: int) -> np.ndarray:
    """Shape (C,) to (C, 1, ..) so that it broadcasts along axis 1."""
    return array.reshape(-1, *([1] * (ndim - 2)))


def _threshold_reference(_call: Call, accumulator: np.ndarray, thresholds: np.ndarray, codes: np.ndarray) -> np.ndarray:
    level = np.zeros(accumulator.shape, np.uint8)
    for row in thresholds:
        level += accumulator >= _per_channel(row, accumulator.ndim)
    return codes[level]


_define("threshold", lambda call: relax.TensorType(_shape(call.args[0]), "uint8"), _threshold_reference)


def float_threshold(x: relax.Expr, direction: relax.Expr, thresholds: relax.Expr, codes: relax.Expr) -> Call:
    """Codes of floats, channel by channel: ``codes[number of thresholds <= direction * x]``.

    Parameters
    ----------
    x : float32 of shape (N, C, ...)
    direction : float32 of shape (C,)
        1 or -1.
    thresholds : float32 of shape (T, C), ascending along T
        Infinite where no x, or every x, reaches the threshold.
    codes : uint8 of shape (T + 1,)

    Returns
    -------
    Call of type uint8, shape of ``x``
    """
    return _call("float_threshold", [x, direction, thresholds, codes])


def _float_threshold_reference(
    _call: Call, x: np.ndarray, direction: np.ndarray, thresholds: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    return _threshold_reference(_call, x * _per_channel(direction, x.ndim), thresholds, codes)


_define("float_threshold", lambda call: relax.TensorType(_shape(call.args[0]), "uint8"), _float_threshold_reference)


def affine(x: relax.Expr, scale: relax.Expr, offset: relax.Expr) -> Call:
    """``scale * x + offset`` per channel, as float32 with a single rounding.

    Parameters
    ----------
    x : int32 or float32 of shape (N, C, ...)
    scale, offset : float32 of shape (C,)

    Returns
    -------
    Call of type float32, shape of ``x``

    Notes
    -----
    A fused multiply-add by definition, so that compilers on every target agree to the last bit: unfused, some
    contract it and some do not.
    """
    return _call("affine", [x, scale, offset])


def fused_multiply_add(x: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """``x * scale + offset`` in float32 with one rounding.

    Parameters
    ----------
    x, scale, offset : float32 arrays that broadcast

    Returns
    -------
    float32 array

    Notes
    -----
    The product of two float32 is exact in float64; the sum is rounded there *to odd*, which keeps the second rounding,
    to float32, from rounding twice (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product = np.asarray(x, np.float64) * np.asarray(scale, np.float64)
    addend = np.broadcast_to(np.asarray(offset, np.float64), product.shape)
    total = product + addend
    # Knuth's two-sum: the exact rounding error of the line above.
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    inexact = np.isfinite(total) & (error != 0)
    odd = np.where(inexact & even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def line_index(values: np.ndarray, slope: np.ndarray, intercept: np.ndarray, count: int) -> np.ndarray:
    """The index of the level of some integers as a kernel computes it.

    Parameters
    ----------
    values : int array of shape (..., O)
    slope, intercept : float32 or float64 arrays that broadcast
    count : int
        Number of thresholds.

    Returns
    -------
    int64 array
    """
    if slope.dtype == np.float32:
        height = fused_multiply_add(values.astype(np.float32), slope, intercept)
    else:
        height = values.astype(np.float64) * slope + intercept
    return np.clip(height, 0, count).astype(np.int64)


def _affine_reference(_call: Call, x: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    return fused_multiply_add(x.astype(np.float32), _per_channel(scale, x.ndim), _per_channel(offset, x.ndim))


_define("affine", lambda call: relax.TensorType(_shape(call.args[0]), "float32"), _affine_reference)


def max_pool2d(
    codes: relax.Expr,
    minimum: relax.Expr,
    pool_size: Sequence[int],
    strides: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Call:
    """Largest code of each window, or the smallest in channels where ``minimum`` is 1; padding never wins.

    Parameters
    ----------
    codes : uint8 of shape (N, C, H, W)
    minimum : uint8 of shape (C,)
    pool_size, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    ceil_mode : bool
        Whether partial windows at the end count.

    Returns
    -------
    Call of type uint8, shape (N, C, OH, OW)
    """
    return _call(
        "max_pool2d",
        [codes, minimum],
        pool_size=_integers(pool_size),
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
        ceil_mode=int(ceil_mode),
    )


def _pooled_size(call: Call, height: Any, width: Any) -> list:
    """Rows and columns of a max-pool's output."""
    pool, strides, dilation = (pair(call.attrs[key]) for key in ("pool_size", "strides", "dilation"))
    top, left, bottom, right = sides(call.attrs["padding"])
    ceil = bool(call.attrs["ceil_mode"])
    rows = _window_output(height, pool[0], strides[0], top, bottom, dilation[0], ceil)
    return [rows, _window_output(width, pool[1], strides[1], left, right, dilation[1], ceil)]


def _max_pool2d_type(call: Call) -> relax.TensorType:
    batch, channels, height, width = _shape(call.args[0])
    return relax.TensorType([batch, channels, *_pooled_size(call, height, width)], "uint8")


def _max_pool2d_reference(call: Call, codes: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    flip = _per_channel(minimum, codes.ndim).astype(np.int16) * 255
    pool, strides, dilation = (_integers(call.attrs[key]) for key in ("pool_size", "strides", "dilation"))
    top, left, bottom, right = _integers(call.attrs["padding"])
    rows, columns = (int(size) for size in list(call.ty.shape)[2:])
    # Extra room at the end for the partial windows of ceil_mode.
    extra = [
        max(0, (outputs - 1) * stride + reach * (kernel - 1) + 1 - size - before - after)
        for outputs, stride, reach, kernel, size, before, after in zip(
            (rows, columns), strides, dilation, pool, codes.shape[2:], (top, left), (bottom, right), strict=True
        )
    ]
    attrs = {"strides": strides, "dilation": dilation, "padding": [top, left, bottom + extra[0], right + extra[1]]}
    windows = _windows(codes.astype(np.int16) ^ flip, (pool[0], pool[1]), attrs, fill=-1)
    best = windows[:, :, :rows, :columns].max(axis=(4, 5))
    return (best ^ flip).astype(np.uint8)


_define("max_pool2d", _max_pool2d_type, _max_pool2d_reference)


# --- float32 times low-bit weights --------------------------------------------------------------------------------


def weight_only_conv2d(
    x: relax.Expr,
    w: relax.Expr,
    scale: relax.Expr,
    w_encoding: Encoding,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Call:
    """Convolution of floats with weights that are small integers times a scale; padding is zero.

    Parameters
    ----------
    x : float32 of shape (N, C, H, W)
    w : uint8 codes of shape (O, C, KH, KW)
    scale : float32 of shape () or (O,)
    w_encoding : Encoding
        Of integers, with at most 4 planes; its scale is ignored.
    strides, dilation : (int, int)
    padding : (top, left, bottom, right)

    Returns
    -------
    Call of type float32, shape (N, O, OH, OW)

    Notes
    -----
    The products of an output are added one after the other in the order (channel, kernel row, kernel column), each in
    a fused multiply-add, from 0 on; the sum is multiplied by the scale.  So every target computes the same bits.
    """
    return _call(
        "weight_only_conv2d",
        [x, w, scale],
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
        **_weight_attributes(w_encoding),
    )


def _weight_attributes(w: Encoding) -> dict[str, Any]:
    return {"w_coefficients": w.coefficients.tolist(), "w_offset": int(w.offset)}


def weight_encoding(call: Call) -> Encoding:
    """Encoding of the weights of a ``tvmq.weight_only_conv2d`` or ``tvmq.weight_only_dense``, with scale 1."""
    return Encoding(np.array(_integers(call.attrs["w_coefficients"])), np.array(int(call.attrs["w_offset"])))


def _dense_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(N, K) floats times (O, K) floats."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(sequential_product(w[None], x.T[None])[0].T)


def _window_product(x: np.ndarray, w: np.ndarray, attrs: Any, groups: int = 1) -> np.ndarray:
    """(N, C, H, W) floats convolved with (O, C / groups, KH, KW) floats, a few samples at a time."""
    windows = _windows(x, pair(w.shape[2:]), attrs)
    batch, _, rows, columns = windows.shape[:4]
    matrices = np.ascontiguousarray(w.reshape(groups, len(w) // groups, -1), np.float32)
    result = np.empty((batch, len(w), rows, columns), np.float32)
    step = max(1, _LARGEST_GATHER // max(1, windows[:1].size))
    for start in range(0, batch, step):
        piece = windows[start : start + step].transpose(1, 4, 5, 0, 2, 3)
        product = sequential_windows(matrices, piece).reshape(len(w), -1, rows, columns)
        result[start : start + step] = product.transpose(1, 0, 2, 3)
    return result


def _scaled(product: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A product per channel, along axis 1."""
    with np.errstate(all="ignore"):
        return product * (_per_channel(scale, product.ndim) if scale.ndim else scale)


_define(
    "weight_only_conv2d",
    lambda call: relax.TensorType(_shape_of_conv2d(call), "float32"),
    lambda call, x, w, scale: _scaled(_window_product(x, weight_encoding(call).units(w), call.attrs), scale),
)


def weight_only_dense(x: relax.Expr, w: relax.Expr, scale: relax.Expr, w_encoding: Encoding) -> Call:
    """Matrix product of floats with weights that are small integers times a scale; see :func:`weight_only_conv2d`.

    Parameters
    ----------
    x : float32 of shape (N, K)
    w : uint8 codes of shape (O, K)
    scale : float32 of shape () or (O,)
    w_encoding : Encoding

    Returns
    -------
    Call of type float32, shape (N, O)
    """
    return _call("weight_only_dense", [x, w, scale], **_weight_attributes(w_encoding))


_define(
    "weight_only_dense",
    lambda call: relax.TensorType([_shape(call.args[0])[0], _shape(call.args[1])[0]], "float32"),
    lambda call, x, w, scale: _scaled(_dense_product(x, weight_encoding(call).units(w)), scale),
)


# --- float32 times float32 ----------------------------------------------------------------------------------------


def float_conv2d(
    x: relax.Expr,
    w: relax.Expr,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Call:
    """Convolution of floats with constant float weights; padding is zero.

    Parameters
    ----------
    x : float32 of shape (N, C, H, W)
    w : float32 of shape (O, C / groups, KH, KW)
    strides, dilation : (int, int)
    padding : (top, left, bottom, right)
    groups : int

    Returns
    -------
    Call of type float32, shape (N, O, OH, OW)

    Notes
    -----
    The products of an output are added one after the other in the order (channel, kernel row, kernel column), each in
    a fused multiply-add, from 0 on, those with the padding's zeros included.  So every target computes the same bits.
    """
    return _call(
        "float_conv2d",
        [x, w],
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
        groups=int(groups),
    )


_define(
    "float_conv2d",
    lambda call: relax.TensorType(_shape_of_conv2d(call), "float32"),
    lambda call, x, w: _window_product(x, w, call.attrs, int(call.attrs["groups"])),
)


def float_dense(x: relax.Expr, w: relax.Expr) -> Call:
    """Matrix product of floats with constant float weights; see :func:`float_conv2d`.

    Parameters
    ----------
    x : float32 of shape (N, K)
    w : float32 of shape (O, K)

    Returns
    -------
    Call of type float32, shape (N, O)
    """
    return _call("float_dense", [x, w])


_define(
    "float_dense",
    lambda call: relax.TensorType([_shape(call.args[0])[0], _shape(call.args[1])[0]], "float32"),
    lambda _call, x, w: _dense_product(x, w),
)


# --- packed -----------------------------------------------------------------------------------------------------


def bitpack(codes: relax.Expr, planes: int, word_bits: int) -> Call:
    """Codes (N, C, H, W) to words (N, H, W, planes, ceil(C / word_bits)); channel c is bit c % word_bits.

    Parameters
    ----------
    codes : uint8 of shape (N, C, H, W)
    planes : int
    word_bits : {8, 32}

    Returns
    -------
    Call of type uint8 or uint32
    """
    return _call("bitpack", [codes], planes=planes, word_bits=word_bits)


def _bitpack_type(call: Call) -> relax.TensorType:
    batch, channels, height, width = _shape(call.args[0])
    word_bits = int(call.attrs["word_bits"])
    words = -(-int(channels) // word_bits)
    return relax.TensorType([batch, height, width, int(call.attrs["planes"]), words], f"uint{word_bits}")


def _planes(codes: np.ndarray, planes: int) -> np.ndarray:
    return np.stack([(codes >> np.uint8(plane)) & np.uint8(1) for plane in range(planes)]).astype(bool)


_define(
    "bitpack",
    _bitpack_type,
    lambda call, codes: pack_activations(_planes(codes, int(call.attrs["planes"])), int(call.attrs["word_bits"])),
)


def bitunpack(packed: relax.Expr, channels: int) -> Call:
    """The inverse of :func:`bitpack`.

    Parameters
    ----------
    packed : uint8 or uint32 of shape (N, H, W, P, words)
    channels : int

    Returns
    -------
    Call of type uint8, shape (N, channels, H, W)
    """
    return _call("bitunpack", [packed], channels=channels)


def _bitunpack_type(call: Call) -> relax.TensorType:
    batch, height, width, _, _ = _shape(call.args[0])
    return relax.TensorType([batch, int(call.attrs["channels"]), height, width], "uint8")


def unpacked(packed: np.ndarray, channels: int) -> np.ndarray:
    """Codes (N, channels, H, W) of packed words (N, H, W, P, words)."""
    planes = unpack_activations(packed, channels).astype(np.uint8)
    return np.bitwise_or.reduce([plane << np.uint8(index) for index, plane in enumerate(planes)])


_define("bitunpack", _bitunpack_type, lambda call, packed: unpacked(packed, int(call.attrs["channels"])))


def bytepack(codes: relax.Expr, length: int, flip: int) -> Call:
    """Codes (N, C, H, W) to bytes (N, H, W, 1, length), some of their bits complemented.

    Parameters
    ----------
    codes : uint8 of shape (N, C, H, W)
    length : int
        Bytes of a pixel, at least C; those beyond C are zero.
    flip : int
        The bits that are complemented.

    Returns
    -------
    Call of type uint8
    """
    return _call("bytepack", [codes], length=length, flip=flip)


def _bytepack_type(call: Call) -> relax.TensorType:
    batch, _, height, width = _shape(call.args[0])
    return relax.TensorType([batch, height, width, 1, int(call.attrs["length"])], "uint8")


_define(
    "bytepack",
    _bytepack_type,
    lambda call, codes: pack_bytes(codes ^ np.uint8(int(call.attrs["flip"])), int(call.attrs["length"])),
)


def byteunpack(packed: relax.Expr, channels: int, flip: int) -> Call:
    """The inverse of :func:`bytepack`.

    Parameters
    ----------
    packed : uint8 of shape (N, H, W, 1, length)
    channels, flip : int

    Returns
    -------
    Call of type uint8, shape (N, channels, H, W)
    """
    return _call("byteunpack", [packed], channels=channels, flip=flip)


def _codes_of_bytes(call: Call, packed: np.ndarray) -> np.ndarray:
    used = packed[:, :, :, 0, : int(call.attrs["channels"])] ^ np.uint8(int(call.attrs["flip"]))
    return np.ascontiguousarray(used.transpose(0, 3, 1, 2))


_define("byteunpack", _bitunpack_type, _codes_of_bytes)


def bits_to_bytes(packed: relax.Expr, channels: int, flip: int) -> Call:
    """Bit planes to bytes.

    Parameters
    ----------
    packed : uint8 or uint32 of shape (N, H, W, P, words)
    channels, flip : int

    Returns
    -------
    Call of type uint8, shape (N, H, W, 1, 4 ceil(channels / 4))
    """
    return _call("bits_to_bytes", [packed], channels=channels, flip=flip)


def _bits_to_bytes_type(call: Call) -> relax.TensorType:
    batch, height, width, _, _ = _shape(call.args[0])
    return relax.TensorType([batch, height, width, 1, padded_bytes(int(call.attrs["channels"]))], "uint8")


def _bits_to_bytes_reference(call: Call, packed: np.ndarray) -> np.ndarray:
    channels = int(call.attrs["channels"])
    return pack_bytes(unpacked(packed, channels) ^ np.uint8(int(call.attrs["flip"])), padded_bytes(channels))


_define("bits_to_bytes", _bits_to_bytes_type, _bits_to_bytes_reference)


def bytes_to_bits(packed: relax.Expr, channels: int, planes: int, word_bits: int, flip: int) -> Call:
    """Bytes to bit planes.

    Parameters
    ----------
    packed : uint8 of shape (N, H, W, 1, length)
    channels, planes, flip : int
    word_bits : {8, 32}

    Returns
    -------
    Call of type uint8 or uint32, shape (N, H, W, planes, ceil(channels / word_bits))
    """
    return _call("bytes_to_bits", [packed], channels=channels, planes=planes, word_bits=word_bits, flip=flip)


def _bytes_to_bits_type(call: Call) -> relax.TensorType:
    batch, height, width, _, _ = _shape(call.args[0])
    word_bits = int(call.attrs["word_bits"])
    words = -(-int(call.attrs["channels"]) // word_bits)
    return relax.TensorType([batch, height, width, int(call.attrs["planes"]), words], f"uint{word_bits}")


_define(
    "bytes_to_bits",
    _bytes_to_bits_type,
    lambda call, packed: pack_activations(
        _planes(_codes_of_bytes(call, packed), int(call.attrs["planes"])), int(call.attrs["word_bits"])
    ),
)


def im2col_bitpack(
    codes: relax.Expr,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    planes: int,
    word_bits: int,
) -> Call:
    """Windows of codes as packed pixels, for first layers: words are full even when channels are few.

    Parameters
    ----------
    codes : uint8 of shape (N, C, H, W)
    kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)
        Filled with code 0.
    planes : int
    word_bits : {8, 32}

    Returns
    -------
    Call of shape (N, OH, OW, planes, ceil(KH * KW * C / word_bits)), bits in the order (kh, kw, c)
    """
    return _call(
        "im2col_bitpack",
        [codes],
        kernel=_integers(kernel),
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
        planes=planes,
        word_bits=word_bits,
    )


def _im2col_bitpack_type(call: Call) -> relax.TensorType:
    batch, channels, height, width = _shape(call.args[0])
    kernel, strides, dilation = (_integers(call.attrs[key]) for key in ("kernel", "strides", "dilation"))
    top, left, bottom, right = _integers(call.attrs["padding"])
    word_bits = int(call.attrs["word_bits"])
    rows = _window_output(height, kernel[0], strides[0], top, bottom, dilation[0])
    columns = _window_output(width, kernel[1], strides[1], left, right, dilation[1])
    words = -(-int(channels) * kernel[0] * kernel[1] // word_bits)
    return relax.TensorType([batch, rows, columns, int(call.attrs["planes"]), words], f"uint{word_bits}")


def _im2col_bitpack_reference(call: Call, codes: np.ndarray) -> np.ndarray:
    kernel = _integers(call.attrs["kernel"])
    windows = _windows(codes, (kernel[0], kernel[1]), call.attrs)
    batch, _, rows, columns = windows.shape[:4]
    taps = windows.transpose(0, 4, 5, 1, 2, 3).reshape(batch, -1, rows, columns)
    return pack_activations(_planes(taps, int(call.attrs["planes"])), int(call.attrs["word_bits"]))


_define("im2col_bitpack", _im2col_bitpack_type, _im2col_bitpack_reference)


def channels_first(data: relax.Expr) -> Call:
    """Numbers (N, H, W, C) as the kernels write them to (N, C, H, W).

    Parameters
    ----------
    data : int32 or float32 of shape (N, H, W, C)

    Returns
    -------
    Call of the same dtype, shape (N, C, H, W)
    """
    return _call("channels_first", [data])


def _channels_first_type(call: Call) -> relax.TensorType:
    batch, height, width, channels = _shape(call.args[0])
    return relax.TensorType([batch, channels, height, width], call.args[0].ty.dtype)


_define(
    "channels_first",
    _channels_first_type,
    lambda _call, data: np.ascontiguousarray(data.transpose(0, 3, 1, 2)),
)


def bitserial_conv2d(
    data: relax.Expr, weight: relax.Expr, constants: Sequence[relax.Expr], workload: Conv2dWorkload, layer: str = ""
) -> Call:
    """One fused kernel: padding, popcount convolution, thresholds (or scale) and packing.

    Parameters
    ----------
    data : packed activations of shape (N, H, W, P, words)
    weight : packed weights, see :func:`tvmq.kernels.packing.pack_weights`
    constants : expressions
        Row and column classes where the workload has border classes, then what its epilogue asks for.
    workload : Conv2dWorkload
    layer : str
        The layer's name, for reports.

    Returns
    -------
    Call of the epilogue's output type
    """
    return _call("bitserial_conv2d", [data, weight, *constants], workload=workload.to_json(), layer=layer)


def workload_of(call: Call) -> Conv2dWorkload:
    """The workload of a ``tvmq.bitserial_conv2d``."""
    return Conv2dWorkload.from_json(str(call.attrs["workload"]))


def _bitserial_conv2d_type(call: Call) -> relax.TensorType | TupleType:
    workload = workload_of(call)
    batch, _, width, _, _ = _shape(call.args[0])
    # A dense layer is a 1x1 convolution over a row of samples, whose number may be symbolic.
    columns = width if workload.is_dense else workload.out_width
    shape = [batch, workload.out_height, columns]
    outputs = [
        relax.TensorType([*shape, workload.out_channels], dtype)
        for dtype in workload.out_dtypes
        if dtype in ("int32", "float32")
    ]
    if workload.thresholds is not None:
        words = [1 if workload.writes_bytes else workload.thresholds.planes, workload.out_words]
        outputs.append(relax.TensorType([*shape, *words], workload.codes_dtype))
    return outputs[0] if len(outputs) == 1 else TupleType(outputs)


def _weight_planes(weight: np.ndarray, workload: Conv2dWorkload) -> np.ndarray:
    """Packed (Ob, KH, KW, P, words, lanes) to booleans (P, Opad, KH, KW, words * channels_per_word)."""
    if workload.depth is not None:
        # (Ob, KH, KW, P, steps, 8, step) to the same with a word, instead of a step of words, of every lane.
        *front, steps, lanes, step = weight.shape
        weight = weight.swapaxes(5, 6).reshape(*front, steps * step, lanes)
    blocks, height, width, planes, words, lanes = weight.shape
    length = workload.channels_per_word
    shifts = np.arange(length, dtype=weight.dtype)
    bits = (weight[..., None] >> shifts) & weight.dtype.type(1)
    order = bits.transpose(3, 0, 5, 1, 2, 4, 6)
    return order.reshape(planes, blocks * lanes, height, width, words * length).astype(bool)


def _raw_sums(workload: Conv2dWorkload, data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The kernel's ``v``, int64 of shape (N, OH, OW, Opad)."""
    attrs = {"strides": workload.strides, "padding": workload.padding, "dilation": workload.dilation}
    if workload.dot is not None:
        return workload.class_multiplier[0] * _byte_sums(workload, data, weight, attrs)
    filters = _weight_planes(weight, workload)
    if workload.table is not None:
        length = min(data.shape[-1], filters.shape[-1])  # the longer one ends with zeros
        return _selected_sums(workload, data[..., :length], filters[0, ..., :length], attrs)
    filters = filters[..., : data.shape[-1] * workload.word_bits]
    pixels = unpack_activations(data, filters.shape[-1])
    columns = []
    for plane in pixels:
        windows = _windows(plane.astype(np.uint8), workload.kernel, attrs)
        batch, _, rows, width = windows.shape[:4]
        columns.append(windows.transpose(0, 2, 3, 4, 5, 1).reshape(batch * rows * width, -1).astype(np.float64))
    total = np.zeros((len(columns[0]), filters.shape[1]))
    for i, column in enumerate(columns):
        count = column.sum(axis=1, keepdims=True)
        total += workload.activation_multiplier[i] * count
        for j, plane in enumerate(filters):
            matrix = plane.reshape(len(plane), -1).astype(np.float64)
            both = column @ matrix.T
            if workload.combine == "xor":
                both = count + matrix.sum(axis=1) - 2 * both
            total += workload.class_multiplier[workload.plane_class[i][j]] * both
    return total.astype(np.int64).reshape(batch, rows, width, -1)


def _selected_sums(workload: Conv2dWorkload, data: np.ndarray, bits: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """Sums of the bytes that bits (Opad, KH, KW, channels) select and of all bytes of a window, as ``v``."""
    windows = _windows(data[:, :, :, 0].transpose(0, 3, 1, 2), workload.kernel, attrs)
    batch, _, rows, width = windows.shape[:4]
    matrix = windows.transpose(0, 2, 3, 4, 5, 1).reshape(batch * rows * width, -1).astype(np.float64)
    factors = workload.class_multiplier[0] * bits.reshape(len(bits), -1) + workload.activation_multiplier[0]
    return (matrix @ factors.T.astype(np.float64)).astype(np.int64).reshape(batch, rows, width, -1)


def _byte_sums(workload: Conv2dWorkload, data: np.ndarray, weight: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """Sums of products of bytes, int64 of shape (N, OH, OW, Opad)."""
    windows = _windows(data[:, :, :, 0].transpose(0, 3, 1, 2), workload.kernel, attrs)
    batch, _, rows, width = windows.shape[:4]
    matrix = windows.transpose(0, 2, 3, 4, 5, 1).reshape(batch * rows * width, -1).astype(np.float64)
    assert workload.dot is not None
    matrix -= workload.dot.shift
    if workload.dot.form == "pairs":
        weight = weight.swapaxes(-3, -2).reshape(*weight.shape[:5], workload.lanes, BYTES_PER_STEP)
    # (Ob, KH, KW, 1, steps, L, 4) to (KH, KW, steps, 4, Ob, L), the order of a window's bytes.
    factors = weight[:, :, :, 0].transpose(1, 2, 3, 5, 0, 4).reshape(-1, workload.out_channels_padded)
    return (matrix @ factors[: matrix.shape[1]].astype(np.float64)).astype(np.int64).reshape(batch, rows, width, -1)


def _per_pixel(constant: np.ndarray, classes: Sequence[np.ndarray]) -> np.ndarray:
    """Constants (RC, CC, Opad) to (OH or 1, OW or 1, Opad)."""
    return constant[classes[0][:, None], classes[1][None, :]] if classes else constant


def _bitserial_conv2d_reference(call: Call, data: np.ndarray, weight: np.ndarray, *constants: np.ndarray) -> Any:
    workload = workload_of(call)
    classes, rest = (constants[:2], constants[2:]) if workload.has_border_classes else ((), constants)
    epilogue, channels = workload.float_epilogue, workload.out_channels
    if epilogue is not None and epilogue.combine == "basis":
        return _float_outputs(workload, *_basis_sums(workload, data, weight, classes, rest))
    total = _raw_sums(workload, data, weight)
    if isinstance(workload.epilogue, Thresholds):
        if workload.epilogue.arithmetic == "compare":
            level = _count([total >= _per_pixel(row, classes) for row in rest[0]])
        else:
            level = line_index(total, rest[0], _per_pixel(rest[1], classes), workload.epilogue.count)
        return _packed_codes(workload.epilogue, level, workload)
    shortcut, rest = (rest[0], rest[1:]) if epilogue is not None and epilogue.shortcut else (None, rest)
    integers = (total + _per_pixel(rest[0], classes)).astype(np.int32)[..., :channels]
    if epilogue is None:
        return integers
    numbers = fused_multiply_add(integers.astype(np.float32), rest[1][:channels], rest[2][:channels])
    return _float_outputs(workload, numbers, shortcut, rest[3:])


def _basis_sums(
    workload: Conv2dWorkload, data: np.ndarray, weight: np.ndarray, classes: Sequence[np.ndarray], rest: Sequence
) -> tuple[np.ndarray, np.ndarray | None, Sequence[np.ndarray]]:
    """(numbers, shortcut, what is left of the constants) for learned bases; see :class:`workload.Float`."""
    channels, epilogue = workload.out_channels, workload.float_epilogue
    shortcut, rest = (rest[0], rest[1:]) if epilogue is not None and epilogue.shortcut else (None, rest)
    base, activation_basis, weight_basis, bias = rest[:4]
    numbers = np.broadcast_to(_per_pixel(bias, classes)[..., :channels], (*_out_shape(workload, data), channels))
    zero = np.float32(-0.0)
    for j in range(workload.weight_planes):
        total = np.full(numbers.shape, zero, np.float32)
        for i in range(workload.activation_planes):
            single = dataclasses.replace(
                workload,
                activation_planes=1,
                weight_planes=1,
                plane_class=((0,),),
                class_multiplier=workload.class_multiplier[:1],
                activation_multiplier=(0,),
                epilogue=Integer(),
            )
            raw = _raw_sums(single, data[..., i : i + 1, :], weight[:, :, :, j : j + 1])
            pair_sum = (raw + base[j])[..., :channels].astype(np.float32)
            total = fused_multiply_add(pair_sum, activation_basis[i], total)
        numbers = fused_multiply_add(total, weight_basis[j, :channels], numbers)
    return numbers, shortcut, rest[4:]


def _out_shape(workload: Conv2dWorkload, data: np.ndarray) -> tuple[int, int, int]:
    return data.shape[0], workload.out_height, data.shape[2] if workload.is_dense else workload.out_width


def _float_outputs(
    workload: Conv2dWorkload, numbers: np.ndarray, shortcut: np.ndarray | None, rest: Sequence[np.ndarray]
) -> Any:
    """What a float epilogue makes of its numbers: the numbers, their packed codes, or both."""
    epilogue, channels = workload.float_epilogue, workload.out_channels
    assert epilogue is not None
    if shortcut is not None:
        numbers = numbers + shortcut
    outputs = [numbers] if epilogue.store else []
    if epilogue.thresholds is not None:
        directed = numbers * rest[0][:channels]
        level = _count([directed >= row[:channels] for row in rest[1]])
        outputs.append(_packed_codes(epilogue.thresholds, level, workload))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _count(reached: list[np.ndarray]) -> np.ndarray:
    """How many of the conditions hold, element by element."""
    return np.stack(reached).sum(axis=0, dtype=np.uint8)


def _packed_codes(thresholds: Thresholds, level: np.ndarray, workload: Conv2dWorkload) -> np.ndarray:
    codes = np.array(thresholds.codes, np.uint8)[level][..., : workload.out_channels].transpose(0, 3, 1, 2)
    if workload.writes_bytes:
        return pack_bytes(codes, workload.out_words)
    return pack_activations(_planes(codes, thresholds.planes), workload.word_bits)


_define("bitserial_conv2d", _bitserial_conv2d_type, _bitserial_conv2d_reference)


def packed_max_pool2d(
    packed: relax.Expr,
    flip: relax.Expr,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Call:
    """:func:`max_pool2d` on words; the minimum in channels whose bit of ``flip`` is set.

    Parameters
    ----------
    packed : uint8 or uint32 of shape (N, H, W, P, words)
        Codes compare as unsigned numbers; for one plane that is OR and AND.
    flip : of the same dtype, shape (words,)
    pool_size, strides, padding, dilation, ceil_mode
        As for :func:`max_pool2d`.

    Returns
    -------
    Call of shape (N, OH, OW, P, words)
    """
    return _call(
        "packed_max_pool2d",
        [packed, flip],
        pool_size=_integers(pool_size),
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
        ceil_mode=int(ceil_mode),
    )


def byte_max_pool2d(
    packed: relax.Expr,
    flip: relax.Expr,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Call:
    """:func:`max_pool2d` on bytes; the minimum in channels whose ``flip`` is 255.

    Parameters
    ----------
    packed : uint8 of shape (N, H, W, 1, length)
    flip : uint8 of shape (length,)
        0 or 255.
    pool_size, strides, padding, dilation, ceil_mode
        As for :func:`max_pool2d`.

    Returns
    -------
    Call of shape (N, OH, OW, 1, length)
    """
    return _call(
        "byte_max_pool2d",
        [packed, flip],
        pool_size=_integers(pool_size),
        strides=_integers(strides),
        padding=_integers(padding),
        dilation=_integers(dilation),
        ceil_mode=int(ceil_mode),
    )


def _byte_max_pool2d_reference(call: Call, packed: np.ndarray, flip: np.ndarray) -> np.ndarray:
    pool, strides, dilation = (_integers(call.attrs[key]) for key in ("pool_size", "strides", "dilation"))
    top, left, _, _ = _integers(call.attrs["padding"])
    rows, columns = (int(size) for size in list(call.ty.shape)[1:3])
    flipped = packed ^ flip
    result = np.zeros((len(packed), rows, columns, *packed.shape[3:]), np.uint8)
    for y in range(rows):
        for x in range(columns):
            ys = [row for k in range(pool[0]) if 0 <= (row := y * strides[0] + k * dilation[0] - top) < packed.shape[1]]
            xs = [at for k in range(pool[1]) if 0 <= (at := x * strides[1] + k * dilation[1] - left) < packed.shape[2]]
            result[:, y, x] = flipped[:, ys][:, :, xs].max(axis=(1, 2), initial=0)
    return result ^ flip


def _packed_max_pool2d_type(call: Call) -> relax.TensorType:
    batch, height, width, planes, words = _shape(call.args[0])
    return relax.TensorType([batch, *_pooled_size(call, height, width), planes, words], call.args[0].ty.dtype)


def _packed_max_pool2d_reference(call: Call, packed: np.ndarray, flip: np.ndarray) -> np.ndarray:
    pool, strides, dilation = (_integers(call.attrs[key]) for key in ("pool_size", "strides", "dilation"))
    top, left, _, _ = _integers(call.attrs["padding"])
    rows, columns = (int(size) for size in list(call.ty.shape)[1:3])
    word_bits = 8 * packed.dtype.itemsize
    # Codes of all channels, those in the tails included, in the order (N, H, W, channel).
    codes = unpacked(packed ^ flip, packed.shape[-1] * word_bits).transpose(0, 2, 3, 1)
    result = np.zeros((len(packed), rows, columns, codes.shape[-1]), np.uint8)
    for y in range(rows):
        for x in range(columns):
            for ky in range(pool[0]):
                for kx in range(pool[1]):
                    row, column = y * strides[0] + ky * dilation[0] - top, x * strides[1] + kx * dilation[1] - left
                    if 0 <= row < packed.shape[1] and 0 <= column < packed.shape[2]:
                        np.maximum(result[:, y, x], codes[:, row, column], out=result[:, y, x])
    return pack_activations(_planes(result.transpose(0, 3, 1, 2), packed.shape[3]), word_bits) ^ flip


_define("packed_max_pool2d", _packed_max_pool2d_type, _packed_max_pool2d_reference)
_define("byte_max_pool2d", _packed_max_pool2d_type, _byte_max_pool2d_reference)


def packed_float_product(
    data: relax.Expr, weight: relax.Expr, constants: Sequence[relax.Expr], workload: FloatWorkload, layer: str = ""
) -> Call:
    """One kernel that multiplies floats with weights, which it decodes if they are packed, and what follows.

    Parameters
    ----------
    data : float32 of shape (N, C, H, W) or (N, K)
    weight : packed weights, see :func:`tvmq.kernels.float_products.pack_weights`
    constants : expressions
        What the workload asks for: scale, bias, multiplier and offset, float32, one per output channel, padded to
        whole vectors; and the shortcut, of the output's shape.
    workload : FloatWorkload
    layer : str
        The layer's name, for reports.

    Returns
    -------
    Call of type float32, shape (N, O, OH, OW) or (N, O)
    """
    return _call("packed_float_product", [data, weight, *constants], workload=workload.to_json(), layer=layer)


def float_workload(call: Call) -> FloatWorkload:
    """The workload of a ``tvmq.packed_float_product``."""
    return FloatWorkload.from_json(str(call.attrs["workload"]))


def _packed_float_product_type(call: Call) -> relax.TensorType:
    workload = float_workload(call)
    size = [] if workload.dense else [workload.out_height, workload.out_width]
    return relax.TensorType([_shape(call.args[0])[0], workload.out_channels, *size], "float32")


def _packed_float_product_reference(
    call: Call, data: np.ndarray, weight: np.ndarray, *constants: np.ndarray
) -> np.ndarray:
    workload = float_workload(call)
    rest = list(constants)
    numbers = unpack_weights(weight, workload)
    if workload.dense:
        result = _dense_product(data, numbers)
    else:
        attrs = {"strides": workload.strides, "padding": workload.padding, "dilation": workload.dilation}
        filters = numbers.reshape(len(numbers), -1, *workload.kernel)
        result = _window_product(data, filters, attrs, workload.groups)
    if workload.is_packed:
        result = _scaled(result, rest.pop(0)[: workload.out_channels])
    with np.errstate(all="ignore"):
        if workload.bias:
            result = result + _per_channel(rest.pop(0)[: workload.out_channels], result.ndim)
        if workload.affine:
            factor, offset = (_per_channel(rest.pop(0)[: workload.out_channels], result.ndim) for _ in range(2))
            result = fused_multiply_add(result, factor, offset)
        if workload.shortcut:
            result = result + rest.pop(0)
        # As TVM selects: a comparison that NaN fails.
        if workload.high is not None:
            result = np.where(result < np.float32(workload.high), result, np.float32(workload.high))
        if workload.low is not None:
            result = np.where(result > np.float32(workload.low), result, np.float32(workload.low))
    return result


_define("packed_float_product", _packed_float_product_type, _packed_float_product_reference)


def constant(array: np.ndarray) -> relax.Expr:
    """A Relax constant that keeps the array's dtype."""
    return relax.const(array, str(array.dtype))


def constant_value(expr: Any) -> np.ndarray | None:
    """The array of a constant; None for anything else."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def constant_array(expr: Any) -> np.ndarray:
    """The array of an operand that the passes always make a constant."""
    array = constant_value(expr)
    assert array is not None, f"{expr} is not a constant"
    return array


def encoding_of(call: Call) -> Encoding:
    """The encoding of a ``tvmq.dequantize``."""
    coefficients, offset, scale = (constant_array(argument) for argument in call.args[1:])
    return Encoding(coefficients, offset, scale)


def is_symbolic(dimension: Any) -> bool:
    """Whether a dimension of a shape is not a known number."""
    return not isinstance(dimension, int | tirx.IntImm)


def pair(values: Any) -> tuple[int, int]:
    """An attribute such as strides: (rows, columns)."""
    first, second = values
    return int(first), int(second)


def sides(values: Any) -> tuple[int, int, int, int]:
    """A padding attribute: (top, left, bottom, right)."""
    top, left, bottom, right = values
    return int(top), int(left), int(bottom), int(right)


def encoding_constants(encoding: Encoding) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """Constants (coefficients, offset, scale), the last three arguments of :func:`dequantize`."""
    kind = np.int32 if encoding.is_integer else np.float32
    return (
        constant(encoding.coefficients.astype(kind)),
        constant(encoding.offset.astype(kind)),
        constant(encoding.scale),
    )
