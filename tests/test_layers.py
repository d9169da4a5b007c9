"""Receipts say which kernel a product got, why, and where fewer bits would be faster."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmq.bitplanes import Encoding
from tvmq.dialect import affine, constant, conv2d
from tvmq.layers import layer_rows
from tvmq.target import Target, get_target
from tvmq.transform import LowerBitserial

WIDE, NARROW, ARM = (get_target(name) for name in ("x86-avx512-vpopcntdq", "x86-avx2", "raspberry-pi-5"))
PLANES = dataclasses.replace(ARM, dot=None)


def lowered(x: Encoding, w: Encoding, target: Target) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    q = relax.Var("q", relax.TensorType((1, 64, 9, 9), "uint8"))
    with builder.function("main", [q]):
        with builder.dataflow():
            sums = builder.emit(conv2d(q, constant(np.zeros((32, 64, 3, 3), np.uint8)), x, w), "layer")
            ones = constant(np.ones(32, np.float32))
            output = builder.emit_output(affine(sums, ones, ones))
        builder.emit_func_output(output)
    return LowerBitserial(target)(builder.get())


@pytest.mark.parametrize(
    ("bits", "core", "kernel", "reason", "warning"),
    [
        ((8, 8), WIDE, "int8 vpdpbusd", "128 MAC/cycle against 11 as bit planes", None),
        ((1, 8), WIDE, "int8 vpdpbusd", "128 MAC/cycle against 85 as bit planes", None),
        (
            (4, 4),
            WIDE,
            "int8 vpdpbusd",
            "128 MAC/cycle against 43 as bit planes",
            "run as int8 on x86-avx512-vpopcntdq",
        ),
        ((2, 2), WIDE, "bitserial and", "171 MAC/cycle against 128 in int8", None),
        ((1, 1), WIDE, "bitserial and", "683 MAC/cycle against 128 in int8", None),
        ((1, 4), WIDE, "bitserial table", "328 MAC/cycle against 171 as bit planes and 128 in int8", None),
        (
            (1, 6),
            WIDE,
            "int8 vpdpbusd",
            "128 MAC/cycle against 114 as bit planes",
            "run as int8 on x86-avx512-vpopcntdq",
        ),
        ((4, 4), ARM, "int8 sdot", "32 MAC/cycle against 5 as bit planes", "run as int8 on raspberry-pi-5"),
        ((1, 3), ARM, "bitserial table", "41 MAC/cycle against 28 as bit planes and 32 in int8", None),
        ((1, 8), ARM, "int8 sdot", "32 MAC/cycle against 11 as bit planes", None),
        ((4, 4), PLANES, "bitserial and", "5 MAC/cycle against 32 in int8", "where int8 could reach 32"),
        ((1, 2), NARROW, "bitserial table", "133 MAC/cycle against 64 as bit planes and 32 in int8", None),
        ((1, 8), PLANES, "bitserial and", "8-bit input as bit planes, 11 MAC/cycle against 32 in int8", None),
    ],
)
def test_rows(bits, core, kernel, reason, warning):
    weight_bits, activation_bits = bits
    w = Encoding.twos_complement(weight_bits) if weight_bits > 1 else Encoding.unsigned(1)
    rows = layer_rows(lowered(Encoding.unsigned(activation_bits), w, core), core)
    (layer,) = rows.layers
    assert (layer.weight_bits, layer.activation_bits) == bits
    assert (layer.kernel, layer.reason) == (kernel, reason)
    rate = float(reason.split(" MAC/cycle")[0].split()[-1])
    assert layer.predicted_cycles == pytest.approx(layer.macs / rate, rel=0.1)
    assert [warning in text and "fewer bits would be faster" in text for text in rows.warnings] == [True] * bool(
        warning
    )
