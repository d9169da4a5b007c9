"""Integer products of codes become fused kernels on packed bits or bytes; codes stay packed between them.

Before::

    s = tvmq.conv2d(q, weight_codes)                   # int32
    c = tvmq.threshold(s, thresholds, codes)
    p = tvmq.max_pool2d(c, minimum)

After::

    x = tvmq.bitpack(q)                                # only where codes are not packed already
    c = tvmq.bitserial_conv2d(x, packed_weight, row_class, col_class, thresholds)
    p = tvmq.packed_max_pool2d(c, flip)

Sums with a float shortcut belong to the kernel too::

    y = R.add(tvmq.affine(s, scale, offset), shortcut)
    c = tvmq.float_threshold(y, direction, thresholds, codes)

becomes one kernel that computes y, stores it where something else reads it, and writes the packed codes.

Layouts: packed tensors are NHWC, so flattening one for a dense layer keeps its bits in place and the dense layer
becomes a convolution as large as the image.  A dense layer of vectors is a 1x1 convolution over a row of samples.  A
first layer of few channels would waste most of each word: its windows are packed instead (im2col).

Which products are of bit planes, which of bytes, and which are looked up in tables of sums of bytes is decided by
:mod:`tvmq.transform.kernel_choice`.  A kernel writes its codes in the form that most of the products that read them
want; the others convert them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.dialect import constant_array, is_call, pair
from tvmq.kernels.workload import (
    BYTES_PER_STEP,
    Affine,
    Conv2dWorkload,
    Epilogue,
    Float,
    Integer,
    Thresholds,
    padded_bytes,
)
from tvmq.target import Target
from tvmq.transform.kernel_builder import KernelBuilder
from tvmq.transform.kernel_choice import ByteForm, byte_form
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["LowerBitserial"]


@dataclass(frozen=True, eq=False)
class _Packed:
    """Codes in packed form: an image (N, H, W, P, words), or rows of samples (1, 1, N, P, words).

    Bytes have the bits ``flip`` of the codes complemented; for bit planes it is None.
    """

    words: relax.Var
    channels: int
    planes: int
    rows: bool = False
    flip: int | None = None


@dataclass(frozen=True, eq=False)
class _Flattened:
    """A packed image whose codes the network sees as one vector per sample, in the order (channel, row, column)."""

    image: _Packed
    shape: tuple[int, int, int]
    value: Call


@dataclass(frozen=True, eq=False)
class _Product:
    """A convolution or dense layer of codes that waits for its epilogue."""

    variable: relax.Var
    call: Call
    bytes: ByteForm | None = None

    @property
    def is_dense(self) -> bool:
        return is_call(self.call, "tvmq.dense", "tvmq.basis_dense")

    @property
    def channels(self) -> int:
        return int(self.call.args[1].ty.shape[0])


@dataclass(frozen=True, eq=False)
class _Number:
    """Floats of a convolution that wait for the sum they are an operand of; see :meth:`_Lowerer.floats`."""

    variable: relax.Var
    product: _Product
    constants: list[np.ndarray]


@dataclass(frozen=True, eq=False)
class _Image:
    """Floats with the channels last, and the packed codes that their kernel wrote beside them."""

    variable: relax.Var
    number: relax.Var | None
    codes: dict[relax.Var, _Packed] = field(default_factory=dict)


PRODUCTS = ("tvmq.conv2d", "tvmq.dense", "tvmq.basis_conv2d", "tvmq.basis_dense")
# What codes may pass through on their way from one product to the next.
MOVES = ("relax.concat", "relax.reshape", "relax.flatten", "tvmq.max_pool2d")
# Functions of one float each, which work on any layout.
ELEMENTWISE = tuple(f"relax.{name}" for name in ("nn.relu", "clip", "tanh", "sigmoid", "negative", "abs"))
QUANTIZERS = ("tvmq.float_threshold", "tvmq.quantize")
MOST_COMPARED = 15
"""Thresholds that an epilogue compares one by one; more are searched in a function of their own."""


class _Lowerer(BindingRewriter):
    def __init__(self, module: tvm.IRModule, target: Target) -> None:
        super().__init__(module)
        self.target = target
        self.forms: dict[relax.Var, ByteForm | None] = {}

    def form(self, variable: relax.Var, call: Call) -> ByteForm | None:
        """How a product reads bytes; None if it reads bit planes."""
        if variable not in self.forms:
            self.forms[variable] = byte_form(call, self.target)
        return self.forms[variable]

    def wanted(self, codes: relax.Var) -> int | None:
        """The ``flip`` that most products of a variable of the old function read, looking through what moves codes."""
        votes: Counter[int | None] = Counter()
        seen, waiting = {codes}, [codes]
        while waiting:
            for variable, value in self.users[waiting.pop()]:
                if is_call(value, *PRODUCTS):
                    form = self.form(variable, value)
                    votes[None if form is None else form.terms.flip] += 1
                elif (isinstance(value, relax.Var) or is_call(value, *MOVES)) and variable not in seen:
                    seen.add(variable)
                    waiting.append(variable)
        return max(votes, key=lambda flip: (votes[flip], flip is None, flip or 0), default=None)

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if isinstance(value, relax.Var):
            return self.operand(value)
        if is_call(value, "tvmq.conv2d", "tvmq.dense"):
            return _Product(variable, value, self.form(variable, value))
        if is_call(value, "tvmq.basis_conv2d", "tvmq.basis_dense"):
            return self.floats(variable, _Product(variable, value), [])
        source = self.operand(value.args[0]) if isinstance(value, Call) and value.args else None
        if is_call(value, "tvmq.threshold") and isinstance(source, _Product):
            return self.threshold(variable, value, source)
        if is_call(value, "tvmq.affine") and isinstance(source, _Product):
            return self.affine(variable, value, source)
        if is_call(value, *QUANTIZERS) and isinstance(source, _Image) and variable in source.codes:
            return source.codes[variable]
        if is_call(value, "relax.add"):
            added = self.add(variable, value)
            if added is not None:
                return added
        if is_call(value, *ELEMENTWISE) and isinstance(source, _Image):
            number = Call(value.op, [source.number, *value.args[1:]], value.attrs)
            return _Image(variable, self.emit(number, f"{variable.name}_nhwc"))
        if is_call(value, "relax.nn.max_pool2d") and isinstance(source, _Image):
            return _Image(variable, self.emit(self.max_pool_of_floats(value, source.number), f"{variable.name}_nhwc"))
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
        epilogue, flip = self.codes(variable, codes), self.wanted(variable)
        words = self.kernel(variable.name, product, epilogue, [thresholds])
        return _Packed(words, product.channels, epilogue.planes, product.is_dense, flip)

    def codes(self, variable: relax.Var, table: np.ndarray) -> Thresholds:
        """The end of an epilogue that writes codes in the form in which they are read."""
        flip = self.wanted(variable)
        if flip is None:
            return Thresholds(len(table) - 1, tuple(table.tolist()), max(1, int(table.max()).bit_length()))
        planes = max(1, int(table.max()).bit_length(), flip.bit_length())
        return Thresholds(len(table) - 1, tuple((table ^ flip).tolist()), planes, "bytes")

    def affine(self, variable: relax.Var, call: Call, product: _Product) -> relax.Var | _Number | _Image:
        return self.floats(variable, product, [constant_array(argument) for argument in call.args[1:]])

    def floats(
        self, variable: relax.Var, product: _Product, constants: list[np.ndarray]
    ) -> relax.Var | _Number | _Image:
        """The floats of a product: scaled by ``constants``, or as its learned bases weigh them if there are none."""
        if product.is_dense:
            epilogue = Affine() if constants else Float("basis", False, True, None)
            result = self.kernel(f"{variable.name}_nhwc", product, epilogue, constants)
            return self.as_channels_first(variable.name, result, product)
        number = _Number(variable, product, constants)
        users = self.users[variable]
        if len(users) == 1 and is_call(users[0][1], "relax.add") and self.same_shapes(users[0][1]):
            return number
        return self.number(variable, number, None)

    @staticmethod
    def same_shapes(call: Call) -> bool:
        return all(tvm_ffi.structural_equal(argument.ty.shape, call.ty.shape) for argument in call.args)

    def add(self, variable: relax.Var, call: Call) -> _Image | None:
        """A sum in the epilogue of one of its operands; of two images, channels last."""
        operands = [self.operand(argument) for argument in call.args]
        numbers = [operand for operand in operands if isinstance(operand, _Number)]
        if numbers:
            other = operands[0] if operands[1] is numbers[-1] else operands[1]
            return self.number(variable, numbers[-1], self.channels_last(other))
        if all(isinstance(operand, _Image) for operand in operands) and self.same_shapes(call):
            total = relax.op.add(*(operand.number for operand in operands))
            return _Image(variable, self.emit(total, f"{variable.name}_nhwc"))
        return None

    def number(self, variable: relax.Var, number: _Number, shortcut: relax.Var | None) -> _Image:
        """Emit the kernel whose epilogue ends in the floats ``variable``, with the codes of its first quantizer."""
        users = self.users[variable]
        quantizers = [user for user in users if self.is_fused(user[1])]
        constants, thresholds = list(number.constants), None
        if quantizers:
            direction, limits, codes = self.channel_thresholds(quantizers[0][1], number.product.channels)
            constants += [direction, limits]
            thresholds = self.codes(quantizers[0][0], codes)
        store = len(users) > len(quantizers[:1])
        combine = "affine" if number.constants else "basis"
        plain = shortcut is None and thresholds is None and combine == "affine"
        epilogue = Affine() if plain else Float(combine, shortcut is not None, store or not quantizers, thresholds)
        result = self.kernel(f"{variable.name}_nhwc", number.product, epilogue, constants, shortcut)
        if thresholds is None:
            return _Image(variable, result)
        words = self.emit(relax.TupleGetItem(result, 1), f"{variable.name}_words") if store else result
        floats = self.emit(relax.TupleGetItem(result, 0), f"{variable.name}_floats") if store else None
        reader = quantizers[0][0]
        packed = _Packed(words, number.product.channels, thresholds.planes, flip=self.wanted(reader))
        return _Image(variable, floats, {reader: packed})

    @staticmethod
    def is_fused(call: relax.Expr) -> bool:
        """Whether it is a quantizer that an epilogue can do."""
        if is_call(call, "tvmq.quantize"):
            return len(constant_array(call.args[1])) <= MOST_COMPARED
        return is_call(call, "tvmq.float_threshold")

    @staticmethod
    def channel_thresholds(call: Call, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Direction (C,), thresholds (T, C) and codes (T + 1,) of a quantizer; either kind gives NaN the first code."""
        *direction, limits, codes = (constant_array(argument) for argument in call.args[1:])
        if direction:
            return direction[0], limits, codes
        return np.ones(channels, np.float32), np.repeat(limits[:, None], channels, axis=1), codes

    def channels_last(self, value: Any) -> relax.Var:
        """A float tensor (N, H, W, C)."""
        if isinstance(value, _Number):
            value = self.values[value.variable] = self.number(value.variable, value, None)
        if isinstance(value, _Image):
            return value.number
        floats = self.materialize(value)
        return self.emit(relax.op.permute_dims(floats, [0, 2, 3, 1]), "shortcut")

    def as_channels_first(self, name: str, result: relax.Var, product: _Product) -> relax.Var:
        if not product.is_dense:
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
        if isinstance(value, _Number):
            value = self.values[value.variable] = self.number(value.variable, value, None)
        if isinstance(value, _Image):
            result = self.emit(dialect.channels_first(value.number), value.variable.name)
            self.values[value.variable] = result
            return result
        if isinstance(value, _Flattened):
            codes = self.materialize(value.image)
            return self.emit(Call(value.value.op, [codes, *value.value.args[1:]], value.value.attrs), "flattened")
        if isinstance(value, _Packed):
            codes = self.emit(self.unpacking(value), "codes")
            if not value.rows:
                return codes
            _, channels, _, samples = codes.ty.shape
            columns = self.emit(relax.op.reshape(codes, [channels, samples]), "codes")
            return self.emit(relax.op.permute_dims(columns, [1, 0]), "codes")
        return value

    @staticmethod
    def unpacking(packed: _Packed) -> Call:
        if packed.flip is None:
            return dialect.bitunpack(packed.words, packed.channels)
        return dialect.byteunpack(packed.words, packed.channels, packed.flip)

    def converted(self, packed: _Packed, flip: int | None) -> _Packed:
        """The same codes in another form."""
        if packed.flip == flip:
            return packed
        if packed.flip is not None:
            word_bits = self.target.word_bits
            bits = dialect.bytes_to_bits(packed.words, packed.channels, packed.planes, word_bits, packed.flip)
            packed = replace(packed, words=self.emit(bits, "planes"), flip=None)
        if flip is None:
            return packed
        words = self.emit(dialect.bits_to_bytes(packed.words, packed.channels, flip), "bytes")
        return replace(packed, words=words, flip=flip)

    def kernel(
        self,
        name: str,
        product: _Product,
        epilogue: Epilogue,
        arrays: list[np.ndarray],
        shortcut: relax.Var | None = None,
    ) -> relax.Var:
        """Emit the fused kernel of a product; see :meth:`KernelBuilder.call` for the arrays."""
        builder = KernelBuilder(product.call, self.target, epilogue, product.bytes)
        source = self.operand(product.call.args[0])
        operand = self.packed_operand if product.bytes is None else self.byte_operand
        words, workload = operand(source, builder)
        result = self.emit(builder.call(words, workload, arrays, product.variable.name, shortcut), name)
        if not product.is_dense or workload.kernel == (1, 1):
            return result
        # A dense layer over a whole image: the samples move to where other dense layers have them.
        samples, _, _, *rest = result.ty.shape
        return self.emit(relax.op.reshape(result, [1, 1, samples, *rest]), name)

    def packed_operand(self, source: Any, builder: KernelBuilder) -> tuple[relax.Var, Conv2dWorkload]:
        """The packed activations of a product, and the convolution over them."""
        word_bits = self.target.word_bits
        planes = builder.x.planes
        if isinstance(source, _Flattened):
            channels, height, width = source.shape
            builder.weight = builder.weight.reshape(-1, channels, height, width)
            words = self.converted(source.image, None).words
            if (height, width) != (1, 1):
                return words, builder.workload((height, width))
            return self.rows(words), builder.workload((1, 1))
        if isinstance(source, _Packed):
            size = (1, 1) if source.rows else pair(list(source.words.ty.shape)[1:3])
            return self.converted(source, None).words, builder.workload(size)
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

    def byte_operand(self, source: Any, builder: KernelBuilder) -> tuple[relax.Var, Conv2dWorkload]:
        """The activations of a product as bytes, and the convolution over them."""
        assert builder.bytes is not None
        flip = builder.bytes.terms.flip
        if isinstance(source, _Flattened):
            words = self.converted(source.image, flip).words
            samples, height, width, _, length = words.ty.shape
            builder.flatten(source.shape)
            row = relax.op.reshape(words, [1, 1, samples, 1, int(height) * int(width) * int(length)])
            return self.emit(row, "rows"), builder.workload((1, 1))
        if isinstance(source, _Packed):
            size = (1, 1) if source.rows else pair(list(source.words.ty.shape)[1:3])
            return self.converted(source, flip).words, builder.workload(size)
        codes = self.materialize(source)
        if len(codes.ty.shape) == 2:
            samples, length = codes.ty.shape
            image = self.emit(relax.op.reshape(codes, [samples, length, 1, 1]), "rows")
            packed = self.emit(dialect.bytepack(image, padded_bytes(int(length)), flip), "bytes")
            return self.rows(packed), builder.workload((1, 1))
        builder.gathered = builder.prefers_gathering()
        channels = int(codes.ty.shape[1])
        length = channels if builder.gathered else padded_bytes(channels)
        size = pair(list(codes.ty.shape)[2:])
        return self.emit(dialect.bytepack(codes, length, flip), "bytes"), builder.workload(size)

    def rows(self, words: relax.Var) -> relax.Var:
        samples, _, _, planes, length = words.ty.shape
        return self.emit(relax.op.reshape(words, [1, 1, samples, planes, length]), "rows")

    @staticmethod
    def max_pool_of_floats(call: Call, data: relax.Var) -> Call:
        """The same pool with the channels last."""
        attrs = call.attrs
        geometry = (attrs["pool_size"], attrs["strides"], attrs["padding"], attrs["dilation"])
        return relax.op.nn.max_pool2d(data, *geometry, bool(attrs["ceil_mode"]), layout="NHWC")

    # --- codes ---

    def concat(self, variable: relax.Var, call: Call) -> _Packed | None:
        """Packed images side by side, where all but the last fill their words, or steps of bytes."""
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else []
        parts = [self.operand(field) for field in fields]
        if int(call.attrs["axis"]) != 1 or not parts or not all(isinstance(part, _Packed) for part in parts):
            return None
        flip, planes = parts[0].flip, parts[0].planes
        piece = self.target.word_bits if flip is None else BYTES_PER_STEP
        aligned = all(part.channels % piece == 0 for part in parts[:-1])
        if not aligned or any(part.rows or part.planes != planes for part in parts):
            return None
        words = [self.converted(part, flip).words for part in parts]
        joined = self.emit(relax.op.concat(words, axis=4), variable.name)
        return _Packed(joined, sum(part.channels for part in parts), planes, flip=flip)

    def max_pool2d(self, variable: relax.Var, call: Call, source: _Packed) -> _Packed:
        attrs = call.attrs
        minimum = constant_array(call.args[1])
        geometry = (attrs["pool_size"], attrs["strides"], attrs["padding"], attrs["dilation"])
        ceil = bool(int(attrs["ceil_mode"]))
        # Complemented bits keep the order of codes, or turn it around, only if they are none or all.
        if source.flip not in (None, 0, 2**source.planes - 1):
            source = self.converted(source, None)
        if source.flip is not None:
            bytes_ = np.zeros(int(source.words.ty.shape[4]), np.uint8)
            bytes_[: minimum.size] = 255 * (minimum != (source.flip != 0))
            largest = dialect.byte_max_pool2d(source.words, dialect.constant(bytes_), *geometry, ceil)
            return replace(source, words=self.emit(largest, variable.name))
        bits = np.zeros(int(source.words.ty.shape[4]) * self.target.word_bits, np.uint8)
        bits[: minimum.size] = minimum
        flip = np.packbits(bits, bitorder="little").view(f"<u{self.target.word_bits // 8}")
        pooled = dialect.packed_max_pool2d(source.words, dialect.constant(flip), *geometry, ceil)
        return replace(source, words=self.emit(pooled, variable.name))


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
