"""Integer products of codes become fused kernels on packed bits; codes stay packed between them.

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
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.dialect import constant_array, is_call, pair
from tvmq.kernels.workload import Affine, Conv2dWorkload, Epilogue, Float, Integer, Thresholds
from tvmq.target import Target
from tvmq.transform.kernel_builder import KernelBuilder
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
    """A convolution or dense layer of codes that waits for its epilogue."""

    variable: relax.Var
    call: Call

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


# Functions of one float each, which work on any layout.
ELEMENTWISE = tuple(f"relax.{name}" for name in ("nn.relu", "clip", "tanh", "sigmoid", "negative", "abs"))


class _Lowerer(BindingRewriter):
    def __init__(self, module: tvm.IRModule, target: Target) -> None:
        super().__init__(module)
        self.target = target

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if isinstance(value, relax.Var):
            return self.operand(value)
        if is_call(value, "tvmq.conv2d", "tvmq.dense"):
            return _Product(variable, value)
        if is_call(value, "tvmq.basis_conv2d", "tvmq.basis_dense"):
            return self.floats(variable, _Product(variable, value), [])
        source = self.operand(value.args[0]) if isinstance(value, Call) and value.args else None
        if is_call(value, "tvmq.threshold") and isinstance(source, _Product):
            return self.threshold(variable, value, source)
        if is_call(value, "tvmq.affine") and isinstance(source, _Product):
            return self.affine(variable, value, source)
        if is_call(value, "tvmq.float_threshold") and isinstance(source, _Image) and variable in source.codes:
            return source.codes[variable]
        if is_call(value, "relax.add"):
            added = self.add(variable, value)
            if added is not None:
                return added
        if is_call(value, *ELEMENTWISE) and isinstance(source, _Image):
            number = Call(value.op, [source.number, *value.args[1:]], value.attrs)
            return _Image(variable, self.emit(number, f"{variable.name}_nhwc"))
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
        return _Packed(words, product.channels, product.is_dense)

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
        quantizers = [user for user in users if is_call(user[1], "tvmq.float_threshold")]
        constants, thresholds = list(number.constants), None
        if quantizers:
            direction, limits, codes = (constant_array(argument) for argument in quantizers[0][1].args[1:])
            constants += [direction, limits]
            thresholds = Thresholds(len(limits), tuple(codes.tolist()), max(1, int(codes.max()).bit_length()))
        store = len(users) > len(quantizers[:1])
        combine = "affine" if number.constants else "basis"
        plain = shortcut is None and thresholds is None and combine == "affine"
        epilogue = Affine() if plain else Float(combine, shortcut is not None, store or not quantizers, thresholds)
        result = self.kernel(f"{variable.name}_nhwc", number.product, epilogue, constants, shortcut)
        if not quantizers:
            return _Image(variable, result)
        words = self.emit(relax.TupleGetItem(result, 1), f"{variable.name}_words") if store else result
        floats = self.emit(relax.TupleGetItem(result, 0), f"{variable.name}_floats") if store else None
        return _Image(variable, floats, {quantizers[0][0]: _Packed(words, number.product.channels)})

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
            codes = self.emit(dialect.bitunpack(value.words, value.channels), "codes")
            if not value.rows:
                return codes
            _, channels, _, samples = codes.ty.shape
            columns = self.emit(relax.op.reshape(codes, [channels, samples]), "codes")
            return self.emit(relax.op.permute_dims(columns, [1, 0]), "codes")
        return value

    def kernel(
        self,
        name: str,
        product: _Product,
        epilogue: Epilogue,
        arrays: list[np.ndarray],
        shortcut: relax.Var | None = None,
    ) -> relax.Var:
        """Emit the fused kernel of a product; see :meth:`KernelBuilder.call` for the arrays."""
        builder = KernelBuilder(product.call, self.target, epilogue)
        source = self.operand(product.call.args[0])
        words, workload = self.packed_operand(source, builder)
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
