from __future__ import annotations

import struct

import numpy as np

from tvmq.rivals.ncnn_files import Layer, layers_text, split_shared, weights_file


def residual() -> list[Layer]:
    weights = [np.array([1, -2, 127, -127, 5], np.int8), np.array([0.5], np.float32)]
    return [
        Layer("Input", "in", [], ["x"]),
        Layer("Convolution", "conv", ["x"], ["y"], {0: 1, 5: 1, 9: 3, 10: (0.0, 6.0)}, weights),
        Layer("BinaryOp", "sum", ["x", "y"], ["z"], {0: 0}),
    ]


def test_a_tensor_with_two_readers_is_split():
    layers = split_shared(residual())
    assert [(layer.kind, layer.inputs, layer.outputs) for layer in layers] == [
        ("Input", [], ["x"]),
        ("Split", ["x"], ["x.0", "x.1"]),
        ("Convolution", ["x.0"], ["y"]),
        ("BinaryOp", ["x.1", "y"], ["z"]),
    ]
    assert residual()[2].inputs == ["x", "y"]


def test_text():
    assert layers_text(split_shared(residual())).splitlines() == [
        "7767517",
        "4 5",
        "Input in 0 1 x",
        "Split x.split 1 2 x x.0 x.1",
        "Convolution conv 1 1 x.0 y 0=1 5=1 9=3 -23310=2,0.000000e+00,6.000000e+00",
        "BinaryOp sum 2 1 x.1 y z 0=0",
    ]


def test_bytes_have_a_tag_and_are_filled_up():
    expected = struct.pack("<I5b3xf", 0x000D4B38, 1, -2, 127, -127, 5, 0.5)
    assert weights_file(residual()) == expected
