"""Popcounts of vectors that lie along the depth of one output channel, rather than across output channels.

Where lanes are output channels, every byte of a pixel has to be copied to all of them before it meets their weights.
A vector that holds V bytes of the depth of 16 / V neighbouring channels meets those V bytes of a pixel instead: all of
a vector where V is 16, otherwise copies of them that fill one.  Its popcounts then have to be summed within each
channel.  For a step of V bytes and 8 channels, V / 2 vectors of 16 bytes, NEON of 64-bit ARM adds neighbours,

    V / 2 exclusive ors, V / 2 popcounts, V / 2 - 1 sums of neighbours in two vectors (addp), which leave one vector
    with two bytes of each channel, and one sum of neighbours that is added to eight sums of 16 bits (uadalp):

three operations for every 128 bits, whatever V is, which is as few as eor, cnt and a sum per vector can be.  The bytes
on the way are sums of at most 8 popcounts of at most 8: they cannot overflow.  A sum of 16 bits can, from 2**16 bits of
one class on; such workloads keep lanes of output channels.

A load that copies its bytes to a whole vector occupies one of the pipes that compute, so that short steps of a pixel
are copied once for all channels and taps that read them (``spread``).  32-bit ARM has half of the registers and no sum
of neighbours in two whole vectors, but one of a vector that is added to sums (vpadal).  Its steps take four bytes, and
every channel of a pixel has two sums: as many operations, and registers for the sums of four pixels.  Its loads
copy the four bytes themselves.

Sums of several plane pairs of one class are added in 16 bits too, after the reduction.

The reduction of one register tile and pair of planes is a loop of assembly whose instructions have an order of their
own, see :mod:`tvmq.kernels.pipelining`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tvmq.kernels.armv7_assembly import STEP
from tvmq.kernels.pipelining import ARM32, ARM64, InstructionSet, ring
from tvmq.kernels.workload import DEPTH_LANES, Conv2dWorkload, Depth

__all__ = [
    "accumulated_depths",
    "class_sum",
    "depth_of",
    "image_stride",
    "instruction_set",
    "instructions",
    "registers",
    "spread",
    "unrolled_steps",
    "unrolls",
]

_VECTOR = 16
"""Bytes of a vector."""
_STEPS = (16, 8, 4, 2)
"""Bytes of one step of 64-bit ARM."""
_LOAD = 0.25
"""What the load of a step costs, in vectors of three operations each: it is an instruction, but no pipe is short."""
_TEMPORARIES = 12
"""Registers of a pixel and of the popcounts on their way."""
_WEIGHTS = {8: 8, 4: 12, 2: 6, 1: 3}
"""Registers of weights, by the vectors of a step; those of several steps, if they are few."""
_LOOP = 3.0
"""Instructions that end a round of the innermost loop."""
_ENTRY = {ARM64: 20.0, ARM32: 50.0}
"""Instructions around all loops of a tile, and of the outer ones: more where every pixel has two sums and a pointer."""
_NARROW = 8
"""Registers of 32-bit ARM for a step of weights, pixels and popcounts on their way."""
_MOST_UNROLLED = 336
"""Vectors that the body of the innermost loop counts at most, as long as it is not a single step."""


def depth_of(words: int, arch: str) -> Depth:
    """The cheapest step for pixels of some bytes.

    A short step wastes no bytes behind the last one of a pixel, but every step is a load: of the operations there are
    as many as there are bytes.

    Parameters
    ----------
    words : int
        Bytes of a pixel and plane.
    arch : str
        "aarch64", or any other architecture for the steps of 32-bit ARM.

    Returns
    -------
    depth : Depth
    """

    def padded(step: int) -> int:
        return -(-words // step) * step

    def cost(step: int) -> float:
        return padded(step) / 2 + _LOAD * padded(step) / step

    step = min(_STEPS, key=cost) if arch == "aarch64" else STEP
    return Depth(step, padded(step), spread=arch == "aarch64" and step < _VECTOR)


def instruction_set(depth: Depth) -> InstructionSet:
    """Whose vectors lie along the depth.

    Parameters
    ----------
    depth : Depth
        Of the step.

    Returns
    -------
    instruction_set : InstructionSet
        64-bit ARM copies the bytes of short steps in memory, 32-bit ARM while it loads them.
    """
    return ARM64 if depth.spread or depth.step == _VECTOR else ARM32


def image_stride(depth: Depth) -> int:
    """Bytes of the image from one step to the next.

    Parameters
    ----------
    depth : Depth
        Of the step.

    Returns
    -------
    stride : int
    """
    return _VECTOR if depth.spread else depth.step


def spread(image: te.Tensor, depth: Depth) -> te.Tensor:
    """The bytes of every step, copied until they fill a vector; the block is called "spread".

    Parameters
    ----------
    image : te.Tensor of uint8 [N, H, W, P, bytes]
        Whole steps.
    depth : Depth
        Of the step.

    Returns
    -------
    copies : te.Tensor of uint8 [N, H, W, P, 16 * steps]
    """
    *front, words = image.shape
    length = int(words) // depth.step * _VECTOR

    def copy(*indices: Any) -> Any:
        *position, place = indices
        return image(*position, place // _VECTOR * depth.step + place % depth.step)

    return te.compute((*front, length), copy, name="spread")


def accumulated_depths(
    workload: Conv2dWorkload,
    image: te.Tensor,
    weight: te.Tensor,
    front: tuple,
    window: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
) -> te.Tensor:
    """The popcount sums of every output and plane pair; the block is "accumulate".

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    image : te.Tensor of uint8 [N, H, W, P, bytes]
        Packed activations, padded to whole steps; from :func:`spread` where the workload asks for that.
    weight : te.Tensor of uint8 [Ob, KH, KW, Pw, steps, 8, V]
        Packed weights.
    front : tuple
        Extents N, OH, columns, groups, vectors.
    window : callable
        From row and column of an output pixel and of a tap to the row and column of the image.

    Returns
    -------
    sums : te.Tensor of uint16 [*front, Pw, P, 8]
    """
    assert workload.depth is not None
    vectors, length = front[-1], workload.depth.step
    _, kernel_h, kernel_w, _, steps, _, _ = workload.weight_shape()
    kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
    step, byte = te.reduce_axis((0, steps), "step"), te.reduce_axis((0, length), "byte")

    stride = image_stride(workload.depth)

    def total(n: Any, y: Any, x: Any, group: Any, vector: Any, j: Any, i: Any, lane: Any) -> Any:
        row, column = window(y, x, kh, kw)
        activation = image[n, row, column, i, step * stride + byte]
        weights = weight[group * vectors + vector, kh, kw, j, step, lane, byte]
        bits = activation ^ weights if workload.combine == "xor" else activation & weights
        return te.sum(tirx.popcount(bits).astype("uint16"), axis=[kh, kw, step, byte])

    planes = (workload.weight_planes, workload.activation_planes)
    return te.compute((*front, *planes, DEPTH_LANES), total, name="accumulate")


def class_sum(workload: Conv2dWorkload, pairs: te.Tensor, position: list, klass: int, lane: Any) -> Any:
    """The popcount sum of one class.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    pairs : te.Tensor of uint16
        From :func:`accumulated_depths`.
    position : list
        Image, row, column, group and vector.
    klass : int
        The class.
    lane : PrimExpr
        Output channel of the vector.

    Returns
    -------
    sum : PrimExpr of uint16
    """
    members = [
        pairs(*position, j, i, lane)
        for i, row_of_classes in enumerate(workload.plane_class)
        for j, index in enumerate(row_of_classes)
        if index == klass
    ]
    return functools.reduce(operator.add, members)


def registers(workload: Conv2dWorkload, pixels: int, vectors: int) -> int:
    """Vector registers of a register tile.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    pixels : int
        Output pixels.
    vectors : int
        Vectors of eight output channels.

    Returns
    -------
    count : int
    """
    assert workload.depth is not None
    if instruction_set(workload.depth) is ARM32:
        # Two sums of every pixel, and those of vectors that are done.
        return pixels * (vectors + 1) + _NARROW
    return pixels * vectors + _WEIGHTS[workload.depth.step // 2] + _TEMPORARIES


def unrolls(workload: Conv2dWorkload) -> list[int]:
    """How many steps the body of the innermost loop can have.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.

    Returns
    -------
    steps : list of int
        Divisors of the steps that follow each other in memory.
    """
    assert workload.depth is not None
    steps = workload.depth.words // workload.depth.step
    planes = (workload.activation_planes, workload.weight_planes)
    if planes == (1, 1) and workload.dilation[1] == 1:
        steps *= workload.kernel[1]
    return [size for size in range(1, steps + 1) if steps % size == 0]


def unrolled_steps(workload: Conv2dWorkload, pixels: int) -> int:
    """Steps in the body of the innermost loop.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    pixels : int
        Output pixels.

    Returns
    -------
    steps : int
        One of :func:`unrolls`.
    """
    assert workload.depth is not None
    counted = pixels * workload.depth.step // 2
    return max(size for size in unrolls(workload) if size == 1 or size * counted <= _MOST_UNROLLED)


def instructions(workload: Conv2dWorkload, pixels: int, vectors: int) -> float:
    """Instructions of one step of a register tile, for one plane of weights.

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    pixels : int
        Output pixels.
    vectors : int
        Vectors of eight output channels.

    Returns
    -------
    count : float
    """
    assert workload.depth is not None
    half, steps = workload.depth.step // 2, unrolled_steps(workload, pixels)
    own_set = instruction_set(workload.depth)
    body = ring(own_set, half, pixels, steps)
    assert body is not None
    taps = workload.kernel[0] * workload.kernel[1] * workload.depth.words // workload.depth.step
    own = (len(body.instructions) + _LOOP) / steps + _ENTRY[own_set] / taps
    return own * vectors * workload.activation_planes
