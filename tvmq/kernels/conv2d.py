"""Convolution over packed bit planes or bytes, fused with its epilogue and the packing of its output.

The function is described as tensor expressions; `tvmq.kernels.schedule` turns it into loops.  Its blocks are

* ``pad``: the image with zero words around it, wide enough for whole pixel tiles;
* ``gather``: for bytes of few channels, every window as one run of bytes;
* ``table``, ``nibble``, ``pairs``: for lookups in tables, see :mod:`tvmq.kernels.tables`;
* ``plane_sum``, ``pixel_sum``, ``window_sum``: popcounts of the activations alone, shared by all output channels;
* ``partial``: for byte words, sums of popcounts or of looked up numbers that still fit in a byte;
* ``accumulate``: one integer per plane class, or one sum of products of bytes, the anchor of every schedule;
* ``rest``: for signed products of bytes, the sum over the last few bytes, which are no whole vector;
* ``addend``: one tile of the shortcut, where padded channels must not be read;
* ``number``: the result as a number, unless thresholds follow at once;
* ``code``, ``mask``, ``word``: thresholds, bits of the code, and the packed word; or ``byte``: the code as a byte;
* ``store_number``, ``store_word``, ``store_byte``: the outputs, without padded channels and pixels.

Channels appear as (group, vector, lane): a group fills whole vectors and whole words.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tvmq.kernels.depth import accumulated_depths, class_sum, spread
from tvmq.kernels.quintets import accumulated_quintets, make_quintet_tables
from tvmq.kernels.tables import accumulated_lookups, accumulated_words, make_tables
from tvmq.kernels.tiling import register_tile
from tvmq.kernels.words import pack_masks
from tvmq.kernels.workload import BYTES_PER_STEP, MAX_BYTE_STEPS, STEPS_PER_LOAD, Conv2dWorkload, Float, Thresholds

__all__ = ["KERNEL_ATTRIBUTE", "MOST_CONDITIONS", "WORKLOAD_ATTRIBUTE", "as_kernel", "conv2d", "tiled_width"]

KERNEL_ATTRIBUTE = "tvmq.kernel"
WORKLOAD_ATTRIBUTE = "tvmq.workload"

Extent = Any
"""An int, or a TVM expression over a symbolic batch or width."""
MOST_CONDITIONS = 7
"""Thresholds up to which the bits of a code come from comparisons, and not from the index of the level."""


def as_kernel(function: tirx.PrimFunc, name: str) -> tirx.PrimFunc:
    """Mark a function as a kernel of tvmq: opaque to fusion, its buffers distinct.

    Without ``tirx.noalias`` LLVM stores every accumulator in every iteration, which costs 1.4 times the time.
    """
    return function.with_attr("tirx.noalias", True).with_attr("op_pattern", 8).with_attr(KERNEL_ATTRIBUTE, name)


def conv2d(workload: Conv2dWorkload, batch: Extent, width: Extent = None) -> tirx.PrimFunc:
    """The unscheduled function of one fused convolution.

    Parameters
    ----------
    workload : Conv2dWorkload
        What to compute.
    batch : int or tirx.Var
        Number of images.
    width : int or tirx.Var, optional
        Replaces the width of the workload, for dense layers over a dynamic batch.

    Returns
    -------
    function : tirx.PrimFunc
        Parameters, in order: ``data`` [N, H, W, P, Cw] words, ``weight`` [Ob, KH, KW, Pw, Cw, L] words;
        ``row_class`` [OH] and ``col_class`` [OW] int32 if the workload has border classes; then what the epilogue
        asks for:

        * `Thresholds`: ``thresholds`` [T, RC, CC, Opad] int32, or ``slope`` [Opad] and ``intercept`` [RC, CC, Opad];
        * `Integer`: ``bias`` [RC, CC, Opad] int32;
        * `Affine` and `Float`: ``shortcut`` [N, OH, OW, O] float32 if there is one; then ``bias`` [RC, CC, Opad] int32,
          ``scale`` and ``offset`` [Opad] float32, or ``base`` [Pw, Opad] int32, ``activation_basis`` [P],
          ``weight_basis`` [Pw, Opad] and ``bias`` [RC, CC, Opad] float32; with thresholds also ``direction`` [Opad]
          and ``thresholds`` [T, Opad] float32;

        last the outputs: numbers [N, OH, OW, O] int32 or float32, words [N, OH, OW, Pout, Ow], or both.

    Raises
    ------
    ValueError
        If one class sums more plane pairs than a byte can hold.
    """
    return _Builder(workload, batch, width).build()


def tiled_width(workload: Conv2dWorkload, out_width: Extent) -> Extent:
    """Columns that a convolution computes: those of the output, rounded up to whole register tiles.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    out_width : int or PrimExpr
        Columns of the output.

    Returns
    -------
    width : int or PrimExpr
        At least `out_width`.
    """
    tile = register_tile(workload, out_width).columns
    return (out_width + tile - 1) // tile * tile


class _Builder:
    """Tensor expressions of one workload; every method makes the stage it is named after."""

    def __init__(self, workload: Conv2dWorkload, batch: Extent, width: Extent) -> None:
        self.workload = workload
        self.batch = batch
        self.width = workload.width if width is None else width
        self.groups = workload.out_channels_padded // workload.group_channels
        self.vectors = workload.group_channels // workload.lanes
        kernel, strides, dilation, padding = (
            workload.kernel,
            workload.strides,
            workload.dilation,
            workload.padding,
        )
        span = dilation[1] * (kernel[1] - 1) + 1
        self.out_width = (self.width + padding[1] + padding[3] - span) // strides[1] + 1
        self.tiled_width = tiled_width(workload, self.out_width)
        self.padded_height = (workload.out_height - 1) * strides[0] + dilation[0] * (kernel[0] - 1) + 1
        self.padded_width = (self.tiled_width - 1) * strides[1] + span
        self.parameters: list[te.Tensor] = []
        self.rest: te.Tensor | None = None

    def build(self) -> tirx.PrimFunc:
        outputs = self.outputs(self.accumulate(self.padded(self.data()), self.weight()))
        function = te.create_prim_func([*self.parameters, *outputs])
        return as_kernel(function, "conv2d").with_attr(WORKLOAD_ATTRIBUTE, self.workload.to_json())

    def parameter(self, shape: tuple, dtype: str, name: str) -> te.Tensor:
        tensor = te.placeholder(shape, dtype, name)
        self.parameters.append(tensor)
        return tensor

    def data(self) -> te.Tensor:
        workload = self.workload
        shape = (self.batch, workload.height, self.width, workload.activation_planes, workload.in_words)
        return self.parameter(shape, workload.data_dtype, "data")

    def weight(self) -> te.Tensor:
        return self.parameter(self.workload.weight_shape(), self.workload.weight_dtype, "weight")

    def padded(self, data: te.Tensor) -> te.Tensor:
        """Zero words around the image; also the pixels that only round the width up to whole tiles."""
        workload = self.workload
        top, left, _, _ = workload.padding
        whole_tiles = isinstance(self.out_width, int) and self.out_width == self.tiled_width
        words = workload.padded_words
        # Activations of 8 bits change their sign bit on the way; where they are products, so does the padding.
        shift = workload.dot.shift if workload.dot is not None else 0
        if not any(workload.padding) and whole_tiles and words == workload.in_words and not shift:
            self.image = self.gathered(data)
            return self.image
        shape = (self.batch, self.padded_height, self.padded_width, workload.activation_planes, words)

        def word(n: Any, y: Any, x: Any, p: Any, w: Any) -> Any:
            inside = tirx.all(y >= top, y < top + workload.height, x >= left, x < left + self.width)
            if words != workload.in_words:
                inside = tirx.all(inside, w < workload.in_words)
            value = data[n, y - top, x - left, p, w]
            if shift:
                value = value ^ tirx.const(shift, workload.data_dtype)
            return tirx.if_then_else(inside, value, tirx.const(shift, workload.data_dtype))

        self.image = self.gathered(te.compute(shape, word, name="pad"))
        return self.image

    def gathered(self, image: te.Tensor) -> te.Tensor:
        """The bytes of every window as one run, if the workload asks for that."""
        workload = self.workload
        if workload.dot is None or not workload.dot.gathered:
            return image
        taps, channels = workload.kernel[1] * workload.in_channels, workload.in_channels
        length = workload.kernel[0] * taps

        def byte(n: Any, y: Any, x: Any, plane: Any, position: Any) -> Any:
            # What follows the last byte meets zero weights; repeating that byte keeps every read inside the window.
            place = tirx.min(position, length - 1)
            row, column = self.window(y, x, place // taps, place % taps // channels)
            return image[n, row, column, plane, place % channels]

        shape = (self.batch, workload.out_height, self.tiled_width, 1, workload.window_bytes)
        return te.compute(shape, byte, name="gather")

    def window(self, y: Any, x: Any, kh: Any, kw: Any) -> tuple[Any, Any]:
        """Position in the padded image of one tap of the window of an output pixel."""
        strides, dilation = self.workload.strides, self.workload.dilation
        return y * strides[0] + kh * dilation[0], x * strides[1] + kw * dilation[1]

    def activation_sum(self) -> te.Tensor:
        """Weighted popcounts, or sums of bytes, of every output pixel's window, as a box sum of those of pixels."""
        workload = self.workload
        words = te.reduce_axis((0, int(self.image.shape[4])), "cw")
        spatial = (self.batch, self.padded_height, self.padded_width)

        def plane(n: Any, y: Any, x: Any, i: Any) -> Any:
            word = self.image[n, y, x, i, words]
            number = word if workload.table is not None else tirx.popcount(word)
            return te.sum(number.astype("int32"), axis=words)

        planes = te.compute((*spatial, workload.activation_planes), plane, name="plane_sum")

        def pixel(n: Any, y: Any, x: Any) -> Any:
            terms = [planes[n, y, x, i] * factor for i, factor in enumerate(workload.activation_multiplier) if factor]
            return functools.reduce(operator.add, terms)

        pixels = te.compute(spatial, pixel, name="pixel_sum")
        if workload.kernel == (1, 1) and workload.strides == (1, 1):
            return pixels
        kh, kw = (te.reduce_axis((0, size), name) for size, name in zip(workload.kernel, ("kh", "kw"), strict=True))

        def box(n: Any, y: Any, x: Any) -> Any:
            row, column = self.window(y, x, kh, kw)
            return te.sum(pixels[n, row, column], axis=[kh, kw])

        return te.compute((self.batch, workload.out_height, self.tiled_width), box, name="window_sum")

    def popcount(self, indices: tuple, klass: Any, pair: tuple, taps: tuple, weight: te.Tensor) -> Any:
        """Popcount of one word of one plane pair, zero where the pair belongs to another class."""
        workload = self.workload
        n, y, x, group, vector, lane = indices
        kh, kw, cw = taps
        i, j = pair
        row, column = self.window(y, x, kh, kw)
        activation = self.image[n, row, column, i, cw]
        block = weight[group * self.vectors + vector, kh, kw, j, cw, lane]
        bits = activation ^ block if workload.combine == "xor" else activation & block
        count = tirx.popcount(bits)
        if workload.word_bits == 32:
            count = count.astype("int32")
        if workload.pairs_are_classes:
            return count
        members = [
            tirx.all(i == a, j == b, klass == index)
            for a, row_of_classes in enumerate(workload.plane_class)
            for b, index in enumerate(row_of_classes)
        ]
        return tirx.Select(tirx.any(*members), count, tirx.const(0, count.ty.dtype))

    def plane_axes(self) -> list:
        """Reduction axes over plane pairs; none when every pair has an accumulator of its own."""
        workload = self.workload
        if workload.pairs_are_classes:
            return []
        return [te.reduce_axis((0, workload.activation_planes), "i"), te.reduce_axis((0, workload.weight_planes), "j")]

    def pair(self, klass: Any, planes: list) -> tuple[Any, Any]:
        if planes:
            return planes[0], planes[1]
        weight_planes = self.workload.weight_planes
        return tirx.floordiv(klass, weight_planes), tirx.floormod(klass, weight_planes)

    def accumulate(self, image: te.Tensor, weight: te.Tensor) -> te.Tensor:
        if self.workload.dot is not None:
            return self.accumulate_products(weight)
        if self.workload.has_quintets:
            tables = make_quintet_tables(self.workload, image, self.workload.out_height, self.tiled_width)
            return accumulated_quintets(self.workload, tables, weight, self.accumulator_shape())
        if self.workload.table is not None:
            tables = make_tables(image, self.workload.word_bits)
            accumulated = accumulated_lookups if self.workload.word_bits == 8 else accumulated_words
            return accumulated(self.workload, tables, weight, self.accumulator_shape(), self.window)
        if self.workload.depth is not None:
            if self.workload.depth.spread:
                image = spread(image, self.workload.depth)
            return accumulated_depths(self.workload, image, weight, self.accumulator_shape()[:5], self.window)
        if self.workload.word_bits == 8:
            return self.accumulate_bytes(weight)
        workload = self.workload
        kh, kw, cw = (
            te.reduce_axis((0, size), name)
            for size, name in zip((*workload.kernel, workload.in_words), ("kh", "kw", "cw"), strict=True)
        )
        planes = self.plane_axes()

        def total(n: Any, y: Any, x: Any, group: Any, vector: Any, klass: Any, lane: Any) -> Any:
            indices = (n, y, x, group, vector, lane)
            term = self.popcount(indices, klass, self.pair(klass, planes), (kh, kw, cw), weight)
            return te.sum(term, axis=[kh, kw, cw, *planes])

        return te.compute(self.accumulator_shape(), total, name="accumulate")

    def accumulator_shape(self) -> tuple:
        workload = self.workload
        spatial = (self.batch, workload.out_height, self.tiled_width)
        return (*spatial, self.groups, self.vectors, workload.classes, workload.lanes)

    def accumulate_bytes(self, weight: te.Tensor) -> te.Tensor:
        """Sums of bytes that cannot overflow, then their sum in 16 bits, or in 32 for very long windows."""
        workload = self.workload
        kernel_h, kernel_w = workload.kernel
        words, pairs = workload.in_words, workload.pairs_per_class
        chunk = byte_chunk(words, pairs)
        chunks = -(-words // chunk)
        extents = {"kh": kernel_h, "kw": kernel_w, "co": chunks, "ci": chunk}
        inner = ["ci"]
        if chunks == 1 and kernel_w * words * pairs <= MAX_BYTE_STEPS:
            inner = ["kw", "ci"]
        if len(inner) == 2 and kernel_h * kernel_w * words * pairs <= MAX_BYTE_STEPS:
            inner = ["kh", "kw", "ci"]
        outer = [name for name in ("kh", "kw", "co") if name not in inner]
        inner_axes = {name: te.reduce_axis((0, extents[name]), name) for name in inner}
        planes = self.plane_axes()

        def partial(n: Any, y: Any, x: Any, group: Any, vector: Any, klass: Any, *rest: Any) -> Any:
            *position, lane = rest
            taps = {**dict(zip(outer, position, strict=True)), **inner_axes}
            cw = taps["co"] * chunk + taps["ci"]
            term = self.popcount(
                (n, y, x, group, vector, lane),
                klass,
                self.pair(klass, planes),
                (taps["kh"], taps["kw"], cw),
                weight,
            )
            if chunks * chunk != words:
                term = tirx.if_then_else(cw < words, term, tirx.const(0, "uint8"))
            return te.sum(term, axis=[*inner_axes.values(), *planes])

        *front, lanes = self.accumulator_shape()
        shape = (*front, *(extents[name] for name in outer), lanes)
        sums = te.compute(shape, partial, name="partial")
        outer_axes = [te.reduce_axis((0, extents[name]), name) for name in outer]
        largest = kernel_h * kernel_w * words * pairs * 8
        dtype = "uint16" if largest < 2**16 else "int32"

        def total(*indices: Any) -> Any:
            *index, lane = indices
            return te.sum(sums(*index, *outer_axes, lane).astype(dtype), axis=outer_axes)

        return te.compute((*front, lanes), total, name="accumulate")

    def accumulate_products(self, weight: te.Tensor) -> te.Tensor:
        """Sums of products of bytes, four at a time, which is what the instructions add to a lane."""
        if self.workload.dot is not None and self.workload.dot.form != "mixed":
            return self.accumulate_signed(weight)
        _, kernel_h, kernel_w, _, steps, _, _ = self.workload.weight_shape()
        kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
        gathered = self.workload.dot is not None and self.workload.dot.gathered
        step, byte = te.reduce_axis((0, steps), "step"), te.reduce_axis((0, BYTES_PER_STEP), "byte")

        def total(n: Any, y: Any, x: Any, group: Any, vector: Any, _klass: Any, lane: Any) -> Any:
            row, column = (y, x) if gathered else self.window(y, x, kh, kw)
            activation = self.image[n, row, column, 0, step * BYTES_PER_STEP + byte]
            factor = weight[group * self.vectors + vector, kh, kw, 0, step, lane, byte]
            return te.sum(activation.astype("int32") * factor.astype("int32"), axis=[kh, kw, step, byte])

        return te.compute(self.accumulator_shape(), total, name="accumulate")

    def accumulate_signed(self, weight: te.Tensor) -> te.Tensor:
        """The same of two signed operands, whole vectors of activations first."""
        dot = self.workload.dot
        assert dot is not None
        _, *kernel, _, steps = self.workload.weight_shape()[:5]

        def sums(name: str, start: int, chunks: int, length: int) -> te.Tensor:
            extents = {"kh": kernel[0], "kw": kernel[1], "chunk": chunks, "step": length, "byte": BYTES_PER_STEP}
            kh, kw, chunk, step, byte = (te.reduce_axis((0, size), axis) for axis, size in extents.items())

            def total(n: Any, y: Any, x: Any, group: Any, vector: Any, _klass: Any, lane: Any) -> Any:
                row, column = (y, x) if dot.gathered else self.window(y, x, kh, kw)
                place = start + chunk * length + step
                activation = tirx.reinterpret("int8", self.image[n, row, column, 0, place * BYTES_PER_STEP + byte])
                position = (lane // 4, byte // 2, lane % 4, byte % 2) if dot.form == "pairs" else (lane, byte)
                index = (group * self.vectors + vector, kh, kw, 0, place, *position)
                factor = weight[index]
                return te.sum(activation.astype("int32") * factor.astype("int32"), axis=[kh, kw, chunk, step, byte])

            return te.compute(self.accumulator_shape(), total, name=name)

        whole, left = divmod(steps, STEPS_PER_LOAD)
        if not whole:
            return sums("accumulate", 0, steps, 1)
        if left:
            self.rest = sums("rest", whole * STEPS_PER_LOAD, left, 1)
        return sums("accumulate", 0, whole, STEPS_PER_LOAD)

    def outputs(self, accumulators: te.Tensor) -> list[te.Tensor]:
        """The epilogue."""
        workload = self.workload
        sums = self.activation_sum() if workload.needs_activation_sum else None
        classes = self.class_tensors()
        epilogue = workload.float_epilogue
        if epilogue is not None:
            return self.float_outputs(accumulators, sums, classes, epilogue)

        def value(*indices: Any) -> Any:
            return self.value(accumulators, sums, indices)

        if isinstance(workload.epilogue, Thresholds):
            return [self.integer_codes(value, classes, workload.epilogue)]
        bias = self.bias("int32")

        def number(n: Any, y: Any, x: Any, *rest: Any) -> Any:
            return value(n, y, x, *rest) + bias(*classes(y, x), self.channel(*rest))

        return [self.stored(self.tile(number, "number"))]

    def value(self, accumulators: te.Tensor, sums: te.Tensor | None, indices: tuple) -> Any:
        """The integer result without its constant."""
        *front, lane = indices
        terms = [
            self.class_sum(accumulators, front, klass, lane) * multiplier
            for klass, multiplier in enumerate(self.workload.class_multiplier)
        ]
        if sums is not None:
            terms.append(sums(*indices[:3]))
        return functools.reduce(operator.add, terms)

    def class_sum(self, accumulators: te.Tensor, position: list, klass: int, lane: Any) -> Any:
        """The sum of one class in 32 bits."""
        if self.workload.depth is not None:
            return class_sum(self.workload, accumulators, position, klass, lane).astype("int32")
        result = accumulators(*position, klass, lane).astype("int32")
        return result if self.rest is None else result + self.rest(*position, klass, lane)

    def channel(self, group: Any, vector: Any, lane: Any) -> Any:
        return (group * self.vectors + vector) * self.workload.lanes + lane

    def bias(self, dtype: str) -> te.Tensor:
        workload = self.workload
        shape = (workload.row_classes, workload.col_classes, workload.out_channels_padded)
        return self.parameter(shape, dtype, "bias")

    def tile(self, element: Callable[..., Any], name: str) -> te.Tensor:
        """A stage over whole tiles of pixels and channels."""
        spatial = (self.batch, self.workload.out_height, self.tiled_width)
        return te.compute((*spatial, self.groups, self.vectors, self.workload.lanes), element, name=name)

    def stored(self, numbers: te.Tensor) -> te.Tensor:
        """The output of numbers."""
        lanes = self.workload.lanes

        def number(n: Any, y: Any, x: Any, channel: Any) -> Any:
            block, lane = channel // lanes, channel % lanes
            return numbers[n, y, x, block // self.vectors, block % self.vectors, lane]

        return te.compute(self.number_shape(), number, name="store_number")

    def number_shape(self) -> tuple:
        return (self.batch, self.workload.out_height, self.out_width, self.workload.out_channels)

    def float_outputs(
        self, accumulators: te.Tensor, sums: te.Tensor | None, classes: Any, epilogue: Float
    ) -> list[te.Tensor]:
        """The outputs of an epilogue in float32."""
        addend = self.addend() if epilogue.shortcut else None
        combined = self.basis(accumulators, classes) if epilogue.combine == "basis" else None
        if combined is None:
            combined = self.affine(accumulators, sums, classes)

        def number(*indices: Any) -> Any:
            result = combined(*indices)
            return result if addend is None else result + addend(*indices)

        numbers = self.tile(number, "number")
        outputs = [self.stored(numbers)] if epilogue.store else []
        if epilogue.thresholds is not None:
            outputs.append(self.float_codes(numbers, epilogue.thresholds))
        return outputs

    def affine(self, accumulators: te.Tensor, sums: te.Tensor | None, classes: Any) -> Callable[..., Any]:
        """One fused multiply-add per channel."""
        bias = self.bias("int32")
        channels = (self.workload.out_channels_padded,)
        scale, offset = (self.parameter(channels, "float32", name) for name in ("scale", "offset"))

        def number(*indices: Any) -> Any:
            channel = self.channel(*indices[3:])
            total = self.value(accumulators, sums, indices) + bias(*classes(*indices[1:3]), channel)
            return fused_multiply_add(total.astype("float32"), scale[channel], offset[channel])

        return number

    def basis(self, accumulators: te.Tensor, classes: Any) -> Callable[..., Any]:
        """A learned basis for every plane of both operands."""
        workload = self.workload
        planes, weight_planes = workload.activation_planes, workload.weight_planes
        sign = workload.class_multiplier[0]
        shape = (weight_planes, workload.out_channels_padded)
        base = self.parameter(shape, "int32", "base")
        activation_basis = self.parameter((planes,), "float32", "activation_basis")
        weight_basis = self.parameter(shape, "float32", "weight_basis")
        bias = self.bias("float32")

        def number(n: Any, y: Any, x: Any, group: Any, vector: Any, lane: Any) -> Any:
            channel = self.channel(group, vector, lane)
            result = bias(*classes(y, x), channel)
            for j in range(weight_planes):
                # The product with the first plane is exact as a sum with -0, and LLVM cannot contract it with another.
                total = tirx.const(-0.0, "float32")
                for i in range(planes):
                    count = self.class_sum(accumulators, [n, y, x, group, vector], i * weight_planes + j, lane)
                    pair = (base[j, channel] + sign * count).astype("float32")
                    total = fused_multiply_add(activation_basis[i], pair, total)
                result = fused_multiply_add(weight_basis[j, channel], total, result)
            return result

        return number

    def addend(self) -> Callable[..., Any]:
        """The shortcut, zero in padded channels; surplus pixels, which are not stored, read the last one."""
        workload = self.workload
        shortcut = self.parameter(self.number_shape(), "float32", "shortcut")

        def read(n: Any, y: Any, x: Any, *rest: Any) -> Any:
            return shortcut[n, y, tirx.min(x, self.out_width - 1), self.channel(*rest)]

        if workload.out_channels == workload.out_channels_padded:
            return read
        # Channels of one piece are all there or all padded, so that one test serves a vector of them.
        piece = vector_piece(workload)

        def guarded(n: Any, y: Any, x: Any, *rest: Any) -> Any:
            there = self.channel(*rest) // piece < workload.out_channels // piece
            return tirx.if_then_else(there, read(n, y, x, *rest), tirx.const(0, "float32"))

        return self.tile(guarded, "addend")

    def class_tensors(self) -> Any:
        """A function from an output pixel to its (row, column) border class."""
        workload = self.workload
        if not workload.has_border_classes:
            return lambda y, x: (0, 0)
        rows = self.parameter((workload.out_height,), "int32", "row_class")
        columns = self.parameter((self.out_width,), "int32", "col_class")
        # Pixels that only fill the last tile have no class; any class will do, they are not stored.
        return lambda y, x: (rows[y], columns[tirx.min(x, self.out_width - 1)])

    def integer_codes(self, value: Callable[..., Any], classes: Any, epilogue: Thresholds) -> te.Tensor:
        """Codes of the integer result."""
        workload = self.workload
        if epilogue.arithmetic != "compare":
            return self.packed(self.line_index(value, classes, epilogue), None, epilogue)
        shape = (epilogue.count, workload.row_classes, workload.col_classes, workload.out_channels_padded)
        thresholds = self.parameter(shape, "int32", "thresholds")

        def reached(index: int, n: Any, y: Any, x: Any, *rest: Any) -> Any:
            return value(n, y, x, *rest) >= thresholds(index, *classes(y, x), self.channel(*rest))

        return self.packed(count_reached(reached, epilogue), reached, epilogue)

    def line_index(self, value: Callable[..., Any], classes: Any, epilogue: Thresholds) -> Callable[..., Any]:
        """The index of a level as the height of a line."""
        dtype, channels = epilogue.arithmetic, self.workload.out_channels_padded
        slope = self.parameter((channels,), dtype, "slope")
        shape = (self.workload.row_classes, self.workload.col_classes, channels)
        intercept = self.parameter(shape, dtype, "intercept")

        def index(n: Any, y: Any, x: Any, *rest: Any) -> Any:
            channel = self.channel(*rest)
            start = intercept(*classes(y, x), channel)
            height = fused_multiply_add(value(n, y, x, *rest).astype(dtype), slope[channel], start, dtype)
            zero, most = tirx.const(0, dtype), tirx.const(epilogue.count, dtype)
            return tirx.min(tirx.max(height, zero), most).astype("int32")

        return index

    def float_codes(self, numbers: te.Tensor, epilogue: Thresholds) -> te.Tensor:
        """Codes of the result in float32; a direction of -1 turns a descending comparison around."""
        channels = self.workload.out_channels_padded
        direction = self.parameter((channels,), "float32", "direction")
        thresholds = self.parameter((epilogue.count, channels), "float32", "thresholds")

        def reached(index: int, *indices: Any) -> Any:
            channel = self.channel(*indices[3:])
            return direction[channel] * numbers(*indices) >= thresholds[index, channel]

        return self.packed(count_reached(reached, epilogue), reached, epilogue)

    def packed(self, level: Callable[..., Any], reached: Callable[..., Any] | None, epilogue: Thresholds) -> te.Tensor:
        """The packed code of every pixel, from the index of its level; or, of few levels, from their conditions."""
        workload = self.workload
        spatial = (self.batch, workload.out_height, self.tiled_width)

        def code(*indices: Any) -> Any:
            index = level(*indices)
            shift = code_shift(epilogue.codes)
            if shift is not None:
                return index if shift == (0, 0) else (index + shift[0]) ^ shift[1]
            result = tirx.const(epilogue.codes[0], "int32")
            for position in range(1, epilogue.count + 1):
                result = tirx.Select(index >= position, tirx.const(epilogue.codes[position], "int32"), result)
            return result

        if epilogue.form == "bytes":
            return self.stored_bytes(code, epilogue)
        conditions = reached if epilogue.count <= MOST_CONDITIONS else None
        codes = self.tile(code, "code") if conditions is None else None

        def mask(n: Any, y: Any, x: Any, plane: Any, group: Any, vector: Any, lane: Any) -> Any:
            """A byte of ones where the bit is set, which is what a vector register can hand to a scalar one."""
            if codes is not None:
                result = byte_of_ones(bit_of(codes[n, y, x, group, vector, lane], plane))
            else:
                assert conditions is not None
                result = bit_by_conditions(lambda t: conditions(t, n, y, x, group, vector, lane), plane, epilogue)
            if epilogue.codes[0] != 0 and workload.out_channels != workload.out_channels_padded:
                zeros = tirx.const(0, "int8")
                result = tirx.Select(self.channel(group, vector, lane) < workload.out_channels, result, zeros)
            return result

        mask_shape = (*spatial, epilogue.planes, self.groups, self.vectors, workload.lanes)
        masks = te.compute(mask_shape, mask, name="mask")
        words = pack_masks(masks, workload.word_bits)
        per_group = workload.group_channels // workload.word_bits
        return te.compute(
            (self.batch, workload.out_height, self.out_width, epilogue.planes, workload.out_words),
            lambda n, y, x, plane, word: words[n, y, x, plane, word // per_group, word % per_group],
            name="store_word",
        )

    def stored_bytes(self, code: Callable[..., Any], epilogue: Thresholds) -> te.Tensor:
        """Codes as bytes, zero where a channel is none."""
        workload = self.workload
        lanes = workload.lanes

        def byte(*indices: Any) -> Any:
            result = code(*indices).astype("uint8")
            if epilogue.codes[0] == 0 or workload.out_channels == workload.out_channels_padded:
                return result
            return tirx.Select(self.channel(*indices[3:]) < workload.out_channels, result, tirx.const(0, "uint8"))

        codes = self.tile(byte, "byte")

        def stored(n: Any, y: Any, x: Any, _plane: Any, channel: Any) -> Any:
            block, lane = channel // lanes, channel % lanes
            return codes[n, y, x, block // self.vectors, block % self.vectors, lane]

        shape = (self.batch, workload.out_height, self.out_width, 1, workload.out_words)
        return te.compute(shape, stored, name="store_byte")


def bit_of(code: Any, plane: Any) -> Any:
    """Whether bit `plane` of a code is set."""
    return tirx.bitwise_and(tirx.shift_right(code, plane), 1) != 0


def byte_of_ones(condition: Any) -> Any:
    """A byte of ones where a condition holds, else of zeros."""
    return tirx.Select(condition, tirx.const(-1, "int8"), tirx.const(0, "int8"))


def bit_by_conditions(reached: Callable[[int], Any], plane: Any, epilogue: Thresholds) -> Any:
    """A byte of ones where bit `plane` of the code of a level is set, without the level's index.

    Thresholds ascend: a level has passed all below it.  So its bit is that of the first code, inverted at every
    threshold that is reached and whose two codes differ in that bit.
    """
    codes = epilogue.codes
    result = byte_of_ones(bit_of(tirx.const(codes[0], "int32"), plane))
    for t in range(epilogue.count):
        inverts = bit_of(tirx.const(codes[t] ^ codes[t + 1], "int32"), plane)
        result = tirx.bitwise_xor(result, byte_of_ones(tirx.And(inverts, reached(t))))
    return result


def count_reached(reached: Callable[..., Any], epilogue: Thresholds) -> Callable[..., Any]:
    """The number of thresholds that are reached, from a condition for each."""

    def index(*indices: Any) -> Any:
        one, zero = tirx.const(1, "int32"), tirx.const(0, "int32")
        terms = [tirx.Select(reached(t, *indices), one, zero) for t in range(epilogue.count)]
        return functools.reduce(operator.add, terms)

    return index


def code_shift(codes: tuple[int, ...]) -> tuple[int, int] | None:
    """How codes follow from the index of their level, if it is as ``(index + a) ^ b``.

    Parameters
    ----------
    codes : tuple of int
        The code of each level, each less than 256.

    Returns
    -------
    (int, int) or None
        a and b.
    """
    for flip in range(256):
        start = codes[0] ^ flip
        if all((start + index) ^ flip == code for index, code in enumerate(codes)):
            return start, flip
    return None


def fused_multiply_add(factor: Any, other: Any, addend: Any, dtype: str = "float32") -> Any:
    """``factor * other + addend`` in float32 or float64, rounded once on every target.

    `tirx.fma` becomes ``llvm.fmuladd``, which may round twice; and LLVM may contract a product and a sum by itself.

    Parameters
    ----------
    factor, other, addend : PrimExpr
        Numbers of that type.
    dtype : {"float32", "float64"}
        Their type.

    Returns
    -------
    result : PrimExpr
        A call of ``llvm.fma``.
    """
    return tirx.call_llvm_pure_intrin(dtype, "llvm.fma", factor, other, addend)


def vector_piece(workload: Conv2dWorkload) -> int:
    """Channels of a vector that are either all there or all padded.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.

    Returns
    -------
    piece : int
        The largest common divisor of the lanes and the output channels.
    """
    return math.gcd(workload.lanes, workload.out_channels)


def byte_chunk(words: int, pairs: int) -> int:
    """Words of one plane that a byte sum takes before it is widened.

    Parameters
    ----------
    words : int
        Words of a pixel.
    pairs : int
        Plane pairs that share the sum.

    Returns
    -------
    chunk : int
        A divisor of `words` where that costs little, otherwise a size whose last chunk is guarded.

    Raises
    ------
    ValueError
        If even one word overflows.
    """
    most = MAX_BYTE_STEPS // pairs
    if most < 1:
        raise ValueError(f"{pairs} plane pairs of one class do not fit in a byte sum")
    if words <= most:
        return words
    divisor = max(size for size in range(1, most + 1) if words % size == 0)
    even = -(-words // -(-words // most))
    return divisor if 2 * divisor >= even else even
