"""Networks of codes, as they are when quantizers are folded: dialect operators that are about to be lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tvm
from tvm import relax

from tvmq.bitplanes import Encoding
from tvmq.dialect import affine, constant, conv2d, dense, max_pool2d, threshold

BINARY, UNSIGNED = Encoding.binary(), Encoding.unsigned(8)
BITS = constant(np.array([0, 1], np.uint8))
HEIGHT, WIDTH = 13, 12


class Case(NamedTuple):
    """The first layer of a network: what it reads, and kernel, stride, padding and dilation."""

    encoding: Encoding
    channels: int
    geometry: tuple[int, int, int, int]


GEOMETRIES = [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (3, 1, 2, 2), (3, 2, 0, 1)]
INPUTS = [(BINARY, 3), (BINARY, 40), (UNSIGNED, 1), (UNSIGNED, 3)]
CASES = [Case(*given, geometry) for geometry in GEOMETRIES for given in INPUTS]


def network(random: np.random.Generator, batch: int, cases: Sequence[Case]) -> tvm.IRModule:
    """A module of one network for each case, with an input and an output of its own.

    Behind first layers of one geometry the layers have one shape, so that their kernels are compiled once.

    Parameters
    ----------
    random : numpy.random.Generator
        Of weights, thresholds and numbers of channels.
    batch : int
    cases : sequence of Case

    Returns
    -------
    tvm.IRModule
        Inputs are codes of uint8 ``[batch, channels, HEIGHT, WIDTH]``, outputs float32 ``[batch, 10]``.
    """
    inputs = [
        relax.Var(f"q{index}", relax.TensorType((batch, case.channels, HEIGHT, WIDTH), "uint8"))
        for index, case in enumerate(cases)
    ]
    hidden = {case.geometry: [int(count) for count in random.integers(1, 70, 3)] for case in cases}
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            outputs = [
                _layers(builder, random, case, q, hidden[case.geometry]) for case, q in zip(cases, inputs, strict=True)
            ]
            output = builder.emit_output(relax.Tuple(outputs) if len(outputs) > 1 else outputs[0])
        builder.emit_func_output(output)
    return builder.get()


def _layers(
    builder: relax.BlockBuilder, random: np.random.Generator, case: Case, q: relax.Var, hidden: list[int]
) -> relax.Var:
    """conv - threshold - pool - conv - threshold - flatten - dense - threshold - dense - affine, on codes."""
    kernel, stride, padding, dilation = case.geometry

    def weight(*shape: int) -> relax.Expr:
        return constant(random.integers(0, 2, shape, dtype=np.uint8))

    def levels(count: int, spread: int) -> relax.Expr:
        return constant(random.integers(-spread, spread + 1, (1, count)).astype(np.int32))

    filters = weight(hidden[0], case.channels, kernel, kernel)
    first = conv2d(q, filters, case.encoding, BINARY, (stride, stride), (padding,) * 4, (dilation, dilation))
    spread = 3 * kernel * int(np.abs(case.encoding.units(np.arange(2, dtype=np.uint8))).max())
    c = builder.emit(threshold(builder.emit(first), levels(hidden[0], spread), BITS))
    minimum = constant(random.integers(0, 2, hidden[0], dtype=np.uint8))
    c = builder.emit(max_pool2d(c, minimum, (2, 2), (2, 1), (1, 0, 0, 1), (1, 1), True))
    second = conv2d(c, weight(hidden[1], hidden[0], 3, 3), BINARY, BINARY, (1, 1), (1, 1, 1, 1))
    c = builder.emit(threshold(builder.emit(second), levels(hidden[1], 12), BITS))
    flat = builder.emit(relax.op.reshape(c, (int(q.ty.shape[0]), -1)))
    s = builder.emit(dense(flat, weight(hidden[2], int(flat.ty.shape[1])), BINARY, BINARY))
    c = builder.emit(threshold(s, levels(hidden[2], 20), BITS))
    s = builder.emit(dense(c, weight(10, hidden[2]), BINARY, BINARY))
    scale, offset = (constant(random.normal(size=10).astype(np.float32)) for _ in range(2))
    return builder.emit(affine(s, scale, offset))
