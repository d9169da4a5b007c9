"""Workload, packed weights and constants of one fused kernel, from an integer product and its epilogue.

The kernel computes ``v`` (see :class:`tvmq.kernels.workload.Conv2dWorkload`), which is the integer s without its
constant: s = v + constant, one constant per output channel and border class (see :mod:`tvmq.bitplanes`).  So
``s >= T`` is ``v >= T - constant``, and the greatest common divisor of the kernel's multipliers is divided out of both
sides, rounding the threshold up.  Without an integer threshold the constant is the kernel's bias.  Products in learned
bases bring their constant along, as float32.  Products of bytes are the same with one "plane" per operand, whose
multiplier and constant are those of :class:`tvmq.bitplanes.ByteTerms`.  Where weights ``b W + o`` of one bit select
bytes B in tables, and activations are ``m B + offset``, v is ``m b sum(W B) + m o sum(B)``, with the same constant.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import (
    BitPlanes,
    DotTerms,
    Encoding,
    border_constants,
    byte_constants,
    constant_terms,
    dot_terms,
    window_classes,
)
from tvmq.dialect import constant_array, is_call, pair, sides
from tvmq.kernels.packing import pack_depth_weights, pack_weight_bytes, pack_weight_indices, pack_weights
from tvmq.kernels.workload import (
    DEPTH_LANES,
    Conv2dWorkload,
    Depth,
    Dot,
    Epilogue,
    Table,
    Thresholds,
    dot_form,
    padded_bytes,
)
from tvmq.target import Target
from tvmq.transform.fold_epilogues import ALWAYS, NEVER
from tvmq.transform.kernel_choice import ByteForm, plane_depth
from tvmq.transform.level_lines import level_lines

__all__ = ["KernelBuilder"]


def byte_product(form: ByteForm, w: Encoding) -> DotTerms:
    """The one sum of products of bytes, or of bytes that weights select, as if of one plane per operand."""
    multiplier = form.terms.multiplier
    if not form.tables:
        return DotTerms("dot", ((0,),), (multiplier,), (0,))
    return DotTerms("table", ((0,),), (multiplier * int(w.coefficients[0]),), (multiplier * int(w.offset),))


class KernelBuilder:
    """Workload, packed weights and constants of one product.

    Parameters
    ----------
    call : Call
        ``tvmq.conv2d``, ``tvmq.dense``, or either in learned bases.
    target : Target
        The core.
    epilogue : Epilogue
        What follows the product.
    bytes_ : ByteForm, optional
        How the activations are bytes; bit planes by default.
    """

    def __init__(self, call: Call, target: Target, epilogue: Epilogue, bytes_: ByteForm | None = None) -> None:
        self.target, self.epilogue, self.bytes, self.gathered = target, epilogue, bytes_, False
        codes = constant_array(call.args[1])
        dense = is_call(call, "tvmq.dense", "tvmq.basis_dense")
        self.bases: list[np.ndarray] = []
        self.constant = np.zeros((1, 1, len(codes)), np.int64)
        if is_call(call, "tvmq.basis_conv2d", "tvmq.basis_dense"):
            *self.bases, self.constant = (constant_array(argument) for argument in call.args[2:])
            self.x, self.w = (Encoding.unsigned(len(basis)) for basis in self.bases)
            self.terms = self.pair_terms(str(call.attrs["combine"]))
        else:
            self.x, self.w = dialect.operand_encodings(call)
            self.terms = dot_terms(self.x, self.w) if bytes_ is None else byte_product(bytes_, self.w)
        self.weight = codes.reshape(*codes.shape, 1, 1) if dense else codes
        attrs = call.attrs
        self.strides = (1, 1) if dense else pair(attrs["strides"])
        self.padding = (0, 0, 0, 0) if dense else sides(attrs["padding"])
        self.dilation = (1, 1) if dense else pair(attrs["dilation"])
        self.units = self.w.units(self.weight) if bytes_ is not None else np.zeros(0, np.int64)
        self.tables = bytes_ is not None and bytes_.tables
        self.divisor = math.gcd(*self.terms.class_multiplier, *self.terms.activation_multiplier)
        self.classes: list[np.ndarray] = []

    def pair_terms(self, combine: str) -> DotTerms:
        """A sum of its own for every pair of planes, which learned bases weigh."""
        pairs = np.arange(self.x.planes * self.w.planes).reshape(self.x.planes, self.w.planes)
        sign = -1 if combine == "xor" else 1
        return DotTerms(combine, tuple(map(tuple, pairs.tolist())), (sign,) * pairs.size, (0,) * self.x.planes)

    @property
    def kernel(self) -> tuple[int, int]:
        """Rows and columns of the filter."""
        return pair(self.weight.shape[2:])

    def prefers_gathering(self) -> bool:
        """Whether bytes of padding channels would cost more than copying windows to where they need none."""
        if self.tables:
            return False
        channels, taps = self.weight.shape[1], math.prod(self.kernel)
        return 8 * taps * padded_bytes(channels) >= 9 * padded_bytes(taps * channels)

    def flatten(self, shape: tuple[int, int, int]) -> None:
        """Make a dense layer over a flattened image (C, H, W) one over the bytes of its pixels, channels last."""
        channels, height, width = shape
        self.find_constants((1, 1))

        def flat(weight: np.ndarray) -> np.ndarray:
            image = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
            padded = np.pad(image, ((0, 0), (0, 0), (0, 0), (0, padded_bytes(channels) - channels)))
            return padded.reshape(len(padded), -1, 1, 1)

        self.units, self.weight = flat(self.units), flat(self.weight)

    def prefers_im2col(self) -> bool:
        """Whether packing whole windows takes fewer words than packing every tap's channels."""
        channels = self.weight.shape[1]
        taps = math.prod(self.kernel)
        bits = self.target.word_bits
        return taps > 1 and 2 * -(-channels * taps // bits) <= taps * -(-channels // bits)

    def workload(self, size: Sequence[int]) -> Conv2dWorkload:
        """The convolution over packed channels of an image of the given size."""
        self.find_constants(size)
        channels = self.weight.shape[1] if self.bytes is None else self.units.shape[1]
        return self._workload(size, channels, self.kernel, self.strides, self.padding, self.dilation)

    def im2col_workload(self, size: Sequence[int]) -> Conv2dWorkload:
        """The 1x1 convolution over packed windows of an image of the given size."""
        self.find_constants(size)
        outputs, channels, height, width = self.weight.shape
        rows, columns = self.output_size(size)
        length = channels * height * width
        self.weight = self.weight.transpose(0, 2, 3, 1).reshape(outputs, length, 1, 1)
        return self._workload((rows, columns), length, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the output."""
        top, left, bottom, right = self.padding
        rooms = (size[0] + top + bottom, size[1] + left + right)
        rows, columns = (
            (room - reach * (kernel - 1) - 1) // stride + 1
            for room, kernel, stride, reach in zip(rooms, self.kernel, self.strides, self.dilation, strict=True)
        )
        return rows, columns

    def find_constants(self, size: Sequence[int]) -> None:
        """The constant of every border class and output channel, and the class of every row and column."""
        axes = window_classes(pair(size), self.kernel, self.strides, self.padding, self.dilation)
        form = self.bytes
        if form is not None:
            self.constant = border_constants(lambda taps: byte_constants(form.terms, self.units, taps), axes)
            # What the kernel takes off all bytes of a window, those of the padding too, belongs to the constant.
            shift = 0 if form.tables else self.dot().shift
            self.constant = self.constant + form.terms.multiplier * shift * self.units.sum(axis=(1, 2, 3))
        elif not self.bases:
            planes = BitPlanes(self.weight, self.w)
            self.constant = border_constants(lambda taps: constant_terms(self.x, planes, taps), axes)
        self.classes = [] if self.constant.shape[:2] == (1, 1) else [index for index, _ in axes]

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
        depth = self.depth(channels, kernel)
        return Conv2dWorkload(
            height=size[0],
            width=size[1],
            in_channels=channels,
            out_channels=self.weight.shape[0],
            kernel=kernel,
            strides=strides,
            padding=padding,
            dilation=dilation,
            activation_planes=self.x.planes if self.bytes is None else 1,
            weight_planes=self.w.planes if self.bytes is None else 1,
            combine=self.terms.combine,
            plane_class=self.terms.plane_class,
            class_multiplier=tuple(m // divisor for m in self.terms.class_multiplier),
            activation_multiplier=tuple(m // divisor for m in self.terms.activation_multiplier),
            row_classes=self.constant.shape[0],
            col_classes=self.constant.shape[1],
            word_bits=self.target.word_bits,
            lanes=DEPTH_LANES if depth is not None else self.lanes(),
            epilogue=self.epilogue,
            dot=None if self.bytes is None or self.tables else self.dot(),
            table=self.table() if self.tables else None,
            depth=depth,
        )

    def lanes(self) -> int:
        """Output channels of a vector that lies across them."""
        return self.target.lanes if self.bytes is None or self.tables else self.target.dot_lanes

    def depth(self, channels: int, kernel: tuple[int, int]) -> Depth | None:
        """How vectors lie along the depth, if they do."""
        if self.bytes is not None:
            return None
        pairs = max(Counter(index for row in self.terms.plane_class for index in row).values())
        return plane_depth(self.target, channels, math.prod(kernel), len(self.weight), pairs)

    def table(self) -> Table:
        """What a kernel has to know about lookups in tables."""
        selected = self.bits().reshape(self.weight.shape[0], -1).sum(axis=1, dtype=np.int64)
        return Table(self.x.planes, int(selected.max()) * (2**self.x.planes - 1))

    def bits(self) -> np.ndarray:
        """The bit planes of the weights, [Pw, O, KH, KW, C]."""
        return BitPlanes(self.weight, self.w).planes.transpose(0, 1, 3, 4, 2)

    def dot(self) -> Dot:
        """What a kernel has to know about products of bytes."""
        _, channels, height, width = self.units.shape
        length = channels * height * width if self.gathered else channels
        taps = np.abs(self.units.transpose(0, 2, 3, 1)).reshape(-1, length)
        # Bytes are paired from the first of a tap, or of a gathered window, on.
        dot = Dot(self.x.planes, self.w.planes, 0, self.gathered, dot_form(self.target.dot))
        steps = np.pad(taps, ((0, 0), (0, padded_bytes(length) - length))).reshape(len(taps), -1, 2, 2)
        pairs = steps.sum(axis=2 if dot.form == "pairs" else 3)
        return dataclasses.replace(dot, pair_bound=int(pairs.max()) * dot.magnitude)

    def call(
        self,
        words: relax.Var,
        workload: Conv2dWorkload,
        arrays: list[np.ndarray],
        layer: str,
        shortcut: relax.Var | None = None,
    ) -> Call:
        """The call of the kernel.

        Parameters
        ----------
        words : relax.Var
            Packed activations.
        workload : Conv2dWorkload
            From :meth:`workload` or :meth:`im2col_workload`.
        arrays : list of arrays
            The epilogue's constants in terms of s: thresholds (T, O); or scale and offset (O,) and, where floats are
            compared, direction (O,) and thresholds (T, O).
        layer : str
        shortcut : relax.Var, optional
            What the epilogue adds, channels last.
        """
        surplus = workload.out_channels_padded - workload.out_channels
        constants = [self.packed_weight(workload), *(classes.astype(np.int32) for classes in self.classes)]
        operands = [dialect.constant(array) for array in constants]
        if shortcut is not None:
            operands.append(shortcut)
        constants = self.epilogue_constants(arrays, surplus)
        if isinstance(self.epilogue, Thresholds):
            workload, constants = self.with_lines(workload, constants)
        operands += [dialect.constant(array) for array in constants]
        return dialect.bitserial_conv2d(words, operands[0], operands[1:], workload, layer)

    def with_lines(
        self, workload: Conv2dWorkload, constants: list[np.ndarray]
    ) -> tuple[Conv2dWorkload, list[np.ndarray]]:
        """The same kernel with lines in place of many thresholds, where those are exact."""
        epilogue = workload.thresholds
        lines = level_lines(constants[0], *self.range(workload)) if self.target.arch != "armv7l" else None
        if lines is None or epilogue is None:
            return workload, constants
        epilogue = dataclasses.replace(epilogue, arithmetic=lines.arithmetic)
        return dataclasses.replace(workload, epilogue=epilogue), [lines.slope, lines.intercept]

    def range(self, workload: Conv2dWorkload) -> tuple[int, int]:
        """The least and the largest value that the kernel's v can have."""
        if self.tables:
            factors = workload.class_multiplier[0] * self.bits()[0].astype(np.int64) + workload.activation_multiplier[0]
            most = 2**self.x.planes - 1
            sides = [most * factors.clip(*side).sum(axis=(1, 2, 3)) for side in ((None, 0), (0, None))]
            return int(sides[0].min()), int(sides[1].max())
        if self.bytes is not None:
            shift = workload.dot.shift if workload.dot is not None else 0
            factor = workload.class_multiplier[0] * (2**self.x.planes - 1)
            sums = (factor * self.units.clip(*side).sum(axis=(1, 2, 3)) for side in ((None, 0), (0, None)))
            lowered = workload.class_multiplier[0] * shift * self.units.sum(axis=(1, 2, 3))
            ends = np.concatenate([total - lowered for total in sums])
            return int(ends.min()), int(ends.max())
        multipliers = [workload.class_multiplier[index] for row in workload.plane_class for index in row]
        multipliers += workload.activation_multiplier
        bits = workload.in_channels * math.prod(workload.kernel)
        return bits * sum(min(m, 0) for m in multipliers), bits * sum(max(m, 0) for m in multipliers)

    def packed_weight(self, workload: Conv2dWorkload) -> np.ndarray:
        """The weights as the kernel reads them."""
        if self.bytes is not None and not self.tables:
            units, padded = self.units.transpose(0, 2, 3, 1), workload.out_channels_padded
            return pack_weight_bytes(units, workload.lanes, padded, self.gathered, dot_form(self.target.dot))
        if workload.depth is not None:
            return pack_depth_weights(self.bits(), workload.depth)
        if workload.has_quintets:
            return pack_weight_indices(self.bits(), workload.weight_words, workload.lanes)
        return pack_weights(self.bits(), workload.word_bits, workload.lanes)

    def epilogue_constants(self, arrays: list[np.ndarray], surplus: int) -> list[np.ndarray]:
        """The epilogue's constants as the kernel reads them, padded to whole vectors."""
        if isinstance(self.epilogue, Thresholds):
            return [self.kernel_thresholds(arrays[0], surplus)]
        if self.bases:
            return [*self.basis_constants(surplus), *self.limits(arrays, surplus)]
        bias = np.pad(self.constant, ((0, 0), (0, 0), (0, surplus))).astype(np.int32)
        padded = [bias, *(np.pad(array, (0, surplus)).astype(np.float32) for array in arrays[:2])]
        return [*padded, *self.limits(arrays[2:], surplus)]

    @staticmethod
    def limits(arrays: list[np.ndarray], surplus: int) -> list[np.ndarray]:
        """Direction and thresholds of floats, if there are any."""
        if not arrays:
            return []
        direction = np.pad(arrays[0], (0, surplus), constant_values=1).astype(np.float32)
        return [direction, np.pad(arrays[1], ((0, 0), (0, surplus)), constant_values=np.inf).astype(np.float32)]

    def basis_constants(self, surplus: int) -> list[np.ndarray]:
        """base, activation basis, weight basis and bias of :class:`tvmq.kernels.workload.Float`.

        Zero bits are the number zero in the sums of pairs, so only the bias knows of borders.
        """
        bits = BitPlanes(self.weight, self.w).planes.sum(axis=(2, 3, 4), dtype=np.int32)
        base = bits if self.terms.combine == "xor" else np.zeros_like(bits)
        columns = ((0, 0), (0, surplus))
        bias = np.pad(self.constant, ((0, 0), (0, 0), (0, surplus)))
        return [np.pad(base, columns), self.bases[0], np.pad(self.bases[1], columns), bias]

    def kernel_thresholds(self, thresholds: np.ndarray, surplus: int) -> np.ndarray:
        """Thresholds (T, O) on s as thresholds (T, RC, CC, Opad) on the kernel's v."""
        s = thresholds.astype(np.int64)[:, None, None, :]
        shifted = -((self.constant[None] - s) // self.divisor)  # ceil((s - constant) / divisor)
        shifted = np.where(s == NEVER, NEVER, np.where(s == ALWAYS, ALWAYS, shifted))
        return np.pad(shifted, ((0, 0),) * 3 + ((0, surplus),), constant_values=NEVER).astype(np.int32)
