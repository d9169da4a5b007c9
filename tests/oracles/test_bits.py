"""Dot products and convolutions of bits against vectors that were made independently; see each case's JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tvm import relax

from tvmq import dialect, golden
from tvmq.bitplanes import BitPlanes, Encoding, border_classes, constant_terms, dot, dot_terms
from tvmq.target import get_target
from tvmq.transform import LowerBitserial

DATA = Path(__file__).parent / "data"
TARGETS = ["x86-avx512-vpopcntdq", "x86-avx2", "raspberry-pi-4"]
BINARY = Encoding.binary()
UNIT = Encoding.unsigned(1)


def cases(pattern: str) -> list[str]:
    names = sorted(path.stem for path in DATA.glob(f"{pattern}.npz"))
    assert names, f"no case {pattern} in {DATA}"
    return names


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return dict(arrays), json.loads((DATA / f"{name}.json").read_text())


def run(call: relax.Call, codes: relax.Var, array: np.ndarray, target: str | None) -> np.ndarray:
    """One integer product as a module: its own reference, or its packed kernel's for a target."""
    builder = relax.BlockBuilder()
    with builder.function("main", [codes]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(call, "layer"))
        builder.emit_func_output(result)
    module = builder.get()
    if target is not None:
        module = LowerBitserial(get_target(target))(module)
        assert "tvmq.bitserial_conv2d" in module.script(show_meta=False)
    return golden.interpret(module, [array])[0]


def dense(x: np.ndarray, w: np.ndarray, x_encoding: Encoding, w_encoding: Encoding, target: str | None) -> np.ndarray:
    codes = relax.Var("q", relax.TensorType(x.shape, "uint8"))
    return run(dialect.dense(codes, dialect.constant(w), x_encoding, w_encoding), codes, x, target)


def conv2d(x: np.ndarray, w: np.ndarray, x_encoding: Encoding, stride: int, pad: int, target: str | None) -> np.ndarray:
    codes = relax.Var("q", relax.TensorType(x.shape, "uint8"))
    call = dialect.conv2d(codes, dialect.constant(w), x_encoding, BINARY, (stride, stride), (pad,) * 4)
    return run(call, codes, x, target)


PAIRS = {
    "s_bipolar_bipolar": (BINARY, BINARY),
    "s_unipolar_bipolar": (UNIT, BINARY),
    "s_unipolar_unipolar": (UNIT, UNIT),
}


@pytest.mark.parametrize("name", cases("bits_dense_*"))
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("target", [None, *TARGETS])
def test_dense(name, pair, target):
    arrays, _ = load(name)
    x_encoding, w_encoding = PAIRS[pair]
    x, w = arrays["a"].astype(np.uint8), arrays["w"].astype(np.uint8)
    np.testing.assert_array_equal(dot(BitPlanes(x, x_encoding), BitPlanes(w, w_encoding)), arrays[pair])
    np.testing.assert_array_equal(dense(x, w, x_encoding, w_encoding, target), arrays[pair])


@pytest.mark.parametrize("name", cases("bits_conv_*"))
@pytest.mark.parametrize("target", [None, *TARGETS])
def test_conv_pads_with_the_real_zero(name, target):
    arrays, meaning = load(name)
    x, w = arrays["a_bits"].astype(np.uint8), arrays["w_bits"].astype(np.uint8)
    actual = conv2d(x, w, BINARY, meaning["stride"], meaning["pad"], target)
    np.testing.assert_array_equal(actual, arrays["out_zero_pad"])


@pytest.mark.parametrize("name", cases("bits_conv_*"))
@pytest.mark.parametrize("bit, expected", [(0, "out_pad_minus1"), (1, "out_pad_plus1")])
def test_conv_of_an_image_that_was_padded_before(name, bit, expected):
    arrays, meaning = load(name)
    pad = meaning["pad"]
    x, w = arrays["a_bits"].astype(np.uint8), arrays["w_bits"].astype(np.uint8)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=bit)
    np.testing.assert_array_equal(conv2d(padded, w, BINARY, meaning["stride"], 0, None), arrays[expected])


@pytest.mark.parametrize("name", cases("bits_conv_*"))
def test_constants_of_border_classes_are_the_correction(name):
    """Zero bits are -1 where padding means 0: the constants of the classes differ by exactly that."""
    arrays, meaning = load(name)
    planes = BitPlanes(arrays["w_bits"].astype(np.uint8), BINARY)
    height, width = arrays["a_bits"].shape[2:]
    kernel = planes.codes.shape[2:]
    pad, stride = (meaning["pad"],) * 2, meaning["stride"]
    rows, row_taps = border_classes(height, kernel[0], stride, pad, 1)
    columns, column_taps = border_classes(width, kernel[1], stride, pad, 1)
    constants = np.stack(
        [[constant_terms(BINARY, planes, row[:, None] & column[None, :]) for column in column_taps] for row in row_taps]
    )
    surplus = (constants - constant_terms(BINARY, planes))[rows[:, None], columns[None, :]]
    np.testing.assert_array_equal(surplus.transpose(2, 0, 1)[None], arrays["correction"])
    assert dot_terms(BINARY, BINARY).combine == "xor"


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_first_layer_of_eight_bits(target):
    arrays, _ = load("bits_first_layer_u8")
    x, w = arrays["x_u8"].astype(np.uint8), arrays["w_bits"].astype(np.uint8)
    np.testing.assert_array_equal(conv2d(x, w, Encoding.unsigned(8), 1, 1, target), arrays["out"])
