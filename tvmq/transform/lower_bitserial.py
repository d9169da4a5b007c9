"""Integer products of codes become fused kernels on packed bits; codes stay packed between them.

Before::

    s = tvmq.conv2d(q, weight_codes)                   # int32
    c = tvmq.threshold(s, thresholds, codes)
    p = tvmq.max_pool2d(c, minimum)

After::

    x = tvmq.bitpack(q)                                # only where codes are not packed already
    c = tvmq.bitserial_conv2d(x, packed_weight, row_class, col_class, thresholds)
    p = tvmq.packed_max_pool2d(c, flip)

The kernel computes ``v`` (see :class:`tvmq.kernels.workload.Conv2dWorkload`), which is the integer s without its
constant: s = v + constant, one constant per output channel and border class (see :mod:`tvmq.bitplanes`).  So
``s >= T`` is ``v >= T - constant``, and the greatest common divisor of the kernel's multipliers is divided out of both
sides, rounding the threshold up.  Without a threshold the constant is the kernel's bias.

Layouts: packed tensors are NHWC, so flattening one for a dense layer keeps its bits in place and the dense layer
becomes a convolution as large as the image.  A dense layer of vectors is a 1x1 convolution over a row of samples.  A
first layer of few channels would waste most of each word: its windows are packed instead (im2col).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import BitPlanes, border_classes, constant_terms, dot_terms
from tvmq.dialect import constant_array, is_call, pair, sides
from tvmq.kernels.packing import pack_weights
from tvmq.kernels.workload import Affine, Conv2dWorkload, Epilogue, Integer, Thresholds
from tvmq.target import Target
from tvmq.transform.fold_epilogues import ALWAYS, NEVER
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["LowerBitserial"]


@dataclass(frozen=True, eq=False)
class _Packed:
    """Codes in packed form: an image (N, H, W, P, words), or rows of samples (1, 1, N, P, words)."""

    words: relax.Var
    channels: int
    rows: bool = False

    @property
    def planes(self) -> int:
        return int(self.words.ty.shape[3])


@dataclass(frozen=True, eq=False)
class _Flattened:
    """A packed image whose codes the network sees as one vector per sample, in the order (channel, row, column)."""

    image: _Packed
    shape: tuple[int, int, int]
    value: Call


@dataclass(frozen=True, eq=False)
class _Product:
    """An integer convolution or dense layer that waits for its epilogue."""

    variable: relax.Var
    call: Call


class _Lowerer(BindingRewriter):
    def __init__(self, module: tvm.IRModule, target: Target) -> None:
        super().__init__(module)
        self.target = target

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if isinstance(value, relax.Var):
            return self.operand(value)
        if is_call(value, "tvmq.conv2d", "tvmq.dense"):
            return _Product(variable, value)
        source = self.operand(value.args[0]) if isinstance(value, Call) and value.args else None
        if is_call(value, "tvmq.threshold") and isinstance(source, _Product):
            return self.threshold(variable, value, source)
        if is_call(value, "tvmq.affine") and isinstance(source, _Product):
            return self.affine(variable, value, source)
        if is_call(value, "relax.concat"):
            joined = self.concat(variable, value)
            if joined is not None:
                return joined
        if is_call(value, "tvmq.max_pool2d") and isinstance(source, _Packed):
            return self.max_pool2d(variable, value, source)
        if is_call(value, "relax.reshape", "relax.flatten") and isinstance(source, _Packed) and not source.rows:
            _, channels, height, width = value.args[0].ty.shape
            if len(value.ty.shape) == 2:
                return _Flattened(source, (int(channels), int(height), int(width)), value)
        return super().bind(variable, value)

    # --- products ---

    def threshold(self, variable: relax.Var, call: Call, product: _Product) -> _Packed:
        thresholds, codes = (constant_array(argument) for argument in call.args[1:])
        planes = max(1, int(codes.max()).bit_length())
        epilogue = Thresholds(len(thresholds), tuple(codes.tolist()), planes)
        words = self.kernel(variable.name, product, epilogue, [thresholds])
        return _Packed(words, thresholds.shape[1], is_call(product.call, "tvmq.dense"))

    def affine(self, variable: relax.Var, call: Call, product: _Product) -> relax.Var:
        constants = [constant_array(argument) for argument in call.args[1:]]
        result = self.kernel(f"{variable.name}_nhwc", product, Affine(), constants)
        return self.as_channels_first(variable.name, result, product)

    def as_channels_first(self, name: str, result: relax.Var, product: _Product) -> relax.Var:
        if is_call(product.call, "tvmq.conv2d"):
            return self.emit(dialect.channels_first(result), name)
        _, _, samples, channels = result.ty.shape
        return self.emit(relax.op.reshape(result, [samples, channels]), name)

    def materialize(self, value: Any) -> relax.Expr:
        if isinstance(value, _Product):
            name = value.variable.name
            result = self.kernel(f"{name}_nhwc", value, Integer(), [])
            result = self.as_channels_first(name, result, value)
            self.values[value.variable] = result
            return result
        if isinstance(value, _Flattened):
            codes = self.materialize(value.image)
            return self.emit(Call(value.value.op, [codes, *value.value.args[1:]], value.value.attrs), "flattened")
        if isinstance(value, _Packed):
            codes = self.emit(dialect.bitunpack(value.words, value.channels), "codes")
            if not value.rows:
                return codes
            _, channels, _, samples = codes.ty.shape
            columns = self.emit(relax.op.reshape(codes, [channels, samples]), "codes")
            return self.emit(relax.op.permute_dims(columns, [1, 0]), "codes")
        return value

    def kernel(self, name: str, product: _Product, epilogue: Epilogue, arrays: list[np.ndarray]) -> relax.Var:
        """Emit the fused kernel of a product.

        ``arrays`` are the epilogue's constants in terms of s: thresholds (T, O), or scale and offset (O,).
        """
        builder = _KernelBuilder(product.call, self.target, epilogue)
        source = self.operand(product.call.args[0])
        words, workload = self.packed_operand(source, builder)
        result = self.emit(builder.call(words, workload, arrays, product.variable.name), name)
        if not is_call(product.call, "tvmq.dense") or workload.kernel == (1, 1):
            return result
        # A dense layer over a whole image: the samples move to where other dense layers have them.
        samples, _, _, *rest = result.ty.shape
        return self.emit(relax.op.reshape(result, [1, 1, samples, *rest]), name)

    def packed_operand(self, source: Any, builder: _KernelBuilder) -> tuple[relax.Var, Conv2dWorkload]:
        """The packed activations of a product, and the convolution over them."""
        word_bits = self.target.word_bits
        planes = builder.x.planes
        if isinstance(source, _Flattened):
            channels, height, width = source.shape
            builder.weight = builder.weight.reshape(-1, channels, height, width)
            if (height, width) != (1, 1):
                return source.image.words, builder.workload((height, width))
            return self.rows(source.image.words), builder.workload((1, 1))
        if isinstance(source, _Packed):
            size = (1, 1) if source.rows else pair(list(source.words.ty.shape)[1:3])
            return source.words, builder.workload(size)
        codes = self.materialize(source)
        if len(codes.ty.shape) == 2:
            samples, length = codes.ty.shape
            image = self.emit(relax.op.reshape(codes, [samples, length, 1, 1]), "rows")
            return self.rows(self.emit(dialect.bitpack(image, planes, word_bits), "packed")), builder.workload((1, 1))
        size = pair(list(codes.ty.shape)[2:])
        if not builder.prefers_im2col():
            return self.emit(dialect.bitpack(codes, planes, word_bits), "packed"), builder.workload(size)
        geometry = (builder.kernel, builder.strides, builder.padding, builder.dilation)
        windows = dialect.im2col_bitpack(codes, *geometry, planes, word_bits)
        return self.emit(windows, "windows"), builder.im2col_workload(size)

    def rows(self, words: relax.Var) -> relax.Var:
        samples, _, _, planes, length = words.ty.shape
        return self.emit(relax.op.reshape(words, [1, 1, samples, planes, length]), "rows")

    # --- codes ---

    def concat(self, variable: relax.Var, call: Call) -> _Packed | None:
        """Packed images side by side, where all but the last fill their words."""
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else []
        parts = [self.operand(field) for field in fields]
        if int(call.attrs["axis"]) != 1 or not parts or not all(isinstance(part, _Packed) for part in parts):
            return None
        word_bits = self.target.word_bits
        aligned = all(part.channels % word_bits == 0 for part in parts[:-1])
        if not aligned or any(part.rows or part.planes != parts[0].planes for part in parts):
            return None
        words = self.emit(relax.op.concat([part.words for part in parts], axis=4), variable.name)
        return _Packed(words, sum(part.channels for part in parts))

    def max_pool2d(self, variable: relax.Var, call: Call, source: _Packed) -> _Packed:
        attrs = call.attrs
        minimum = constant_array(call.args[1])
        bits = np.zeros(int(source.words.ty.shape[4]) * self.target.word_bits, np.uint8)
        bits[: minimum.size] = minimum
        flip = np.packbits(bits, bitorder="little").view(f"<u{self.target.word_bits // 8}")
        geometry = (attrs["pool_size"], attrs["strides"], attrs["padding"], attrs["dilation"])
        pooled = dialect.packed_max_pool2d(
            source.words, dialect.constant(flip), *geometry, bool(int(attrs["ceil_mode"]))
        )
        return replace(source, words=self.emit(pooled, variable.name))


class _KernelBuilder:
    """Workload, packed weights and constants of one product."""

    def __init__(self, call: Call, target: Target, epilogue: Epilogue) -> None:
        self.target, self.epilogue = target, epilogue
        self.x, self.w = dialect.operand_encodings(call)
        codes = constant_array(call.args[1])
        dense = is_call(call, "tvmq.dense")
        self.weight = codes.reshape(*codes.shape, 1, 1) if dense else codes
        attrs = call.attrs
        self.strides = (1, 1) if dense else pair(attrs["strides"])
        self.padding = (0, 0, 0, 0) if dense else sides(attrs["padding"])
        self.dilation = (1, 1) if dense else pair(attrs["dilation"])
        self.terms = dot_terms(self.x, self.w)
        self.divisor = math.gcd(*self.terms.class_multiplier, *self.terms.activation_multiplier)
        self.classes: list[np.ndarray] = []
        self.constant = np.zeros((1, 1, len(codes)), np.int64)

    @property
    def kernel(self) -> tuple[int, int]:
        return pair(self.weight.shape[2:])

    def prefers_im2col(self) -> bool:
        """Whether packing whole windows takes fewer words than packing every tap's channels."""
        channels = self.weight.shape[1]
        taps = math.prod(self.kernel)
        bits = self.target.word_bits
        return taps > 1 and 2 * -(-channels * taps // bits) <= taps * -(-channels // bits)

    def workload(self, size: Sequence[int]) -> Conv2dWorkload:
        self.find_constants(size)
        return self._workload(size, self.weight.shape[1], self.kernel, self.strides, self.padding, self.dilation)

    def im2col_workload(self, size: Sequence[int]) -> Conv2dWorkload:
        self.find_constants(size)
        outputs, channels, height, width = self.weight.shape
        rows, columns = self.output_size(size)
        length = channels * height * width
        self.weight = self.weight.transpose(0, 2, 3, 1).reshape(outputs, length, 1, 1)
        return self._workload((rows, columns), length, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        rooms = (size[0] + top + bottom, size[1] + left + right)
        rows, columns = (
            (room - reach * (kernel - 1) - 1) // stride + 1
            for room, kernel, stride, reach in zip(rooms, self.kernel, self.strides, self.dilation, strict=True)
        )
        return rows, columns

    def find_constants(self, size: Sequence[int]) -> None:
        """The constant of every border class and output channel, and the class of every row and column."""
        top, left, bottom, right = self.padding
        axes = [
            border_classes(size[axis], self.kernel[axis], self.strides[axis], sides, self.dilation[axis])
            for axis, sides in enumerate(((top, bottom), (left, right)))
        ]
        planes = BitPlanes(self.weight, self.w)
        constant = np.stack(
            [
                np.stack([constant_terms(self.x, planes, row[:, None] & column[None, :]) for column in axes[1][1]])
                for row in axes[0][1]
            ]
        )
        if np.all(constant == constant[:1, :1]):
            self.constant, self.classes = constant[:1, :1], []
        else:
            self.constant, self.classes = constant, [axes[0][0], axes[1][0]]

    def _workload(
        self,
        size: Sequence[int],
        channels: int,
        kernel: tuple[int, int],
        strides: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
    ) -> Conv2dWorkload:
        thresholds = isinstance(self.epilogue, Thresholds)
        divisor = self.divisor if thresholds else 1
        return Conv2dWorkload(
            height=size[0],
            width=size[1],
            in_channels=channels,
            out_channels=self.weight.shape[0],
            kernel=kernel,
            strides=strides,
            padding=padding,
            dilation=dilation,
            activation_planes=self.x.planes,
            weight_planes=self.w.planes,
            combine=self.terms.combine,
            plane_class=self.terms.plane_class,
            class_multiplier=tuple(m // divisor for m in self.terms.class_multiplier),
            activation_multiplier=tuple(m // divisor for m in self.terms.activation_multiplier),
            row_classes=self.constant.shape[0],
            col_classes=self.constant.shape[1],
            word_bits=self.target.word_bits,
            lanes=self.target.lanes,
            epilogue=self.epilogue,
        )

    def call(self, words: relax.Var, workload: Conv2dWorkload, arrays: list[np.ndarray], layer: str) -> Call:
        planes = BitPlanes(self.weight, self.w).planes.transpose(0, 1, 3, 4, 2)
        packed = pack_weights(planes, self.target.word_bits, self.target.lanes)
        constants = [classes.astype(np.int32) for classes in self.classes]
        surplus = workload.out_channels_padded - workload.out_channels
        if isinstance(self.epilogue, Thresholds):
            constants.append(self.kernel_thresholds(arrays[0], surplus))
        else:
            bias = np.pad(self.constant, ((0, 0), (0, 0), (0, surplus)))
            constants.append(bias.astype(np.int32))
            constants += [np.pad(array, (0, surplus)).astype(np.float32) for array in arrays]
        expressions = [dialect.constant(np.ascontiguousarray(array)) for array in (packed, *constants)]
        return dialect.bitserial_conv2d(words, expressions[0], expressions[1:], workload, layer)

    def kernel_thresholds(self, thresholds: np.ndarray, surplus: int) -> np.ndarray:
        """Thresholds (T, O) on s as thresholds (T, RC, CC, Opad) on the kernel's v."""
        s = thresholds.astype(np.int64)[:, None, None, :]
        shifted = -((self.constant[None] - s) // self.divisor)  # ceil((s - constant) / divisor)
        shifted = np.where(s == NEVER, NEVER, np.where(s == ALWAYS, ALWAYS, shifted))
        return np.pad(shifted, ((0, 0),) * 3 + ((0, surplus),), constant_values=NEVER).astype(np.int32)


@tvm.transform.module_pass(opt_level=0, name="tvmq.LowerBitserial")
class LowerBitserial:
    """Products of codes become ``tvmq.bitserial_conv2d``; codes stay packed where the next operation allows it.

    Parameters
    ----------
    target : Target
        Decides the word size and the number of lanes of the packed layouts.
    """

    def __init__(self, target: Target) -> None:
        self.target = target

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Lowerer(module, self.target).run()
