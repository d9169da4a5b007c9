"""onnxruntime's 2-bit weights against the same weights expanded by numpy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import tvmq
from tvmq.errors import UnsupportedOperatorError
from tvmq.rivals.export import to_onnx
from tvmq.rivals.two_bit_weights import BLOCK, pack_two_bit, with_two_bit_weights


def expanded(codes: np.ndarray, scales: np.ndarray, inputs: int) -> np.ndarray:
    """Inputs × outputs, by the operator's documentation: the first code in the lowest bits, zero at 2."""
    levels = np.stack([(codes >> shift) & 3 for shift in (0, 2, 4, 6)], -1).astype("float32") - 2
    return (levels.reshape(*codes.shape[:2], -1) * scales[..., None]).reshape(len(codes), -1)[:, :inputs].T


def run(network: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def exported(net: nn.Module, *shape: int) -> onnx.ModelProto:
    return to_onnx(tvmq.load(net.eval(), (torch.rand(*shape),)), shape[0])


def test_weights_on_the_levels_stay_what_they_are():
    random = np.random.default_rng(0)
    levels = random.integers(-2, 2, (5, 3, BLOCK))
    levels[:, :, 0] = -2
    scales = random.uniform(0.5, 2, (5, 3, 1)) * random.choice([-1, 1], (5, 3, 1))
    weight = (levels * scales).astype(np.float32).reshape(5, -1)[:, :300].T
    codes, found = pack_two_bit(weight)
    assert codes.shape == (5, 3, BLOCK // 4) and codes.dtype == np.uint8 and found.shape == (5, 3)
    np.testing.assert_allclose(expanded(codes, found, 300), weight, rtol=1e-6)


def test_rounding_to_the_nearest_level_and_blocks_of_zeros():
    weight = np.zeros((2 * BLOCK, 1), np.float32)
    weight[:4, 0] = [1.0, -0.4, 0.1, 0.3]  # levels of -2, -1, 0 and 1 times -0.5
    codes, scales = pack_two_bit(weight)
    np.testing.assert_array_equal(expanded(codes, scales, 5)[:, 0], [1.0, -0.5, 0.0, 0.5, 0.0])
    np.testing.assert_array_equal(codes[0, 1], np.full(BLOCK // 4, 0b10101010))


@pytest.mark.parametrize("batch", [1, 5])
def test_onnxruntime_computes_with_those_weights(batch):
    torch.manual_seed(0)
    net = exported(nn.Sequential(nn.Linear(300, 64), nn.ReLU(), nn.Linear(64, 10, bias=False)), batch, 300)
    before = net.SerializeToString()
    packed = with_two_bit_weights(net)
    assert net.SerializeToString() == before
    assert [node.op_type for node in packed.graph.node] == ["MatMulNBits", "Relu", "MatMulNBits", "Identity"]
    arrays = {item.name: numpy_helper.to_array(item) for item in packed.graph.initializer}
    first, _, last, _ = packed.graph.node
    x = np.random.default_rng(1).standard_normal((batch, 300)).astype(np.float32)
    weights = [expanded(arrays[node.input[1]], arrays[node.input[2]], k) for node, k in ((first, 300), (last, 64))]
    expected = np.maximum(x @ weights[0] + arrays[first.input[5]], 0) @ weights[1]
    found = run(packed, x)
    # Activations are rounded to 8 bits.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    # The weights of the float network are gone.
    assert sum(array.nbytes for array in arrays.values()) < 300 * 64


def test_a_network_of_convolutions_is_not_one_of_two_bit_weights():
    net = exported(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 10)), 1, 3, 6, 6)
    share = 8 * 16 * 10 / (8 * 16 * 10 + 8 * 16 * 27)
    with pytest.raises(UnsupportedOperatorError, match=f"dense layers have {share:.0%} of the multiply-accumulates"):
        with_two_bit_weights(net)


def test_a_network_without_products():
    with pytest.raises(UnsupportedOperatorError, match="dense layers have 0%"):
        with_two_bit_weights(exported(nn.ReLU(), 1, 4))
