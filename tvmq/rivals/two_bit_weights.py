"""A float ONNX network whose dense layers have 2-bit weights, as onnxruntime computes them.

Its operator ``MatMulNBits`` takes weights of a few bits in blocks along the inputs: ``w ≈ scale (code - 2)``, codes 0
to 3, a scale per block and output.  At accuracy level 4 it rounds the activations to 8 bits per block and adds up
integer products.  Activations and all other operators stay float::

    y = Gemm(x, w, bias)    →    y = MatMulNBits(x, codes, scales, , , bias)

Of 2-bit weights, there are fast kernels (x86, onnxruntime 1.31) for that level only, and for blocks of 32, 64 or 128;
everything else is expanded to floats at every run, a hundred times as slowly.  The largest blocks are the fastest.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmq.errors import UnsupportedOperatorError

__all__ = ["BITS", "BLOCK", "pack_two_bit", "with_two_bit_weights"]

BITS, BLOCK, ACCURACY_LEVEL = 2, 128, 4
DOMAIN = "com.microsoft"
LEAST_SHARE = 0.5
_ZERO = 2**BITS // 2
_PER_BYTE = 8 // BITS


def with_two_bit_weights(network: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the weights of every dense layer.

    Parameters
    ----------
    network : onnx.ModelProto
        Float, shapes inferred; left as it is.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    UnsupportedOperatorError
        If dense layers with constant weights do not have half of the network's multiply-accumulates: it would be called
        a network of 2-bit weights without being one.
    """
    network = copy.deepcopy(network)
    graph = network.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    shapes = {
        item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]
        for item in (*graph.value_info, *graph.output)
    }
    weights = {node.output[0]: constants[node.input[1]] for node in graph.node if _is_dense(node, constants)}
    dense = sum(math.prod(shapes[name][:-1]) * weight.size for name, weight in weights.items())
    convolutions = sum(
        math.prod(shapes[node.output[0]]) * math.prod(constants[node.input[1]].shape[1:])
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in constants
    )
    share = dense / max(1, dense + convolutions)
    if share < LEAST_SHARE:
        raise UnsupportedOperatorError(
            f"dense layers have {share:.0%} of the multiply-accumulates; 2-bit weights are for networks where they "
            f"have at least {LEAST_SHARE:.0%}"
        )
    nodes = [
        _packed(node, graph, weights[node.output[0]]) if node.output[0] in weights else node for node in graph.node
    ]
    used = {name for node in nodes for name in node.input}
    initializers = [item for item in graph.initializer if item.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    network.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return network


def _is_dense(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether a node multiplies by a constant matrix, adds at most a constant vector, and does nothing else."""
    if node.op_type not in ("Gemm", "MatMul") or node.attribute:
        return False
    ranks = [constants[name].ndim if name in constants else None for name in node.input[1:]]
    return ranks in ([2], [2, 1])


def _packed(node: onnx.NodeProto, graph: onnx.GraphProto, weight: np.ndarray) -> onnx.NodeProto:
    """The layer with its weight in 2 bits; its new constants are added to the graph."""
    codes, scales = pack_two_bit(weight)
    names = [f"{node.output[0]}.{part}" for part in ("codes", "scales")]
    graph.initializer.extend(numpy_helper.from_array(*pair) for pair in zip((codes, scales), names, strict=True))
    bias = ["", "", node.input[2]] if len(node.input) > 2 else []
    inputs, outputs = weight.shape
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], *names, *bias],
        node.output,
        name=node.name,
        domain=DOMAIN,
        K=inputs,
        N=outputs,
        bits=BITS,
        block_size=BLOCK,
        accuracy_level=ACCURACY_LEVEL,
    )


def pack_two_bit(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a weight.

    Parameters
    ----------
    weight : numpy.ndarray
        Floats, inputs × outputs.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        uint8, outputs × blocks × bytes of a block, four codes per byte with the first in the lowest bits; and float32,
        outputs × blocks.  Blocks are filled up with code 2, which is zero.
    """
    inputs, outputs = weight.shape
    padded = np.zeros((outputs, -(-inputs // BLOCK) * BLOCK), np.float32)
    padded[:, :inputs] = weight.T
    blocks = padded.reshape(outputs, -1, BLOCK)
    # The number of the largest magnitude gets the code 0, whose level has the largest one.
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(2, keepdims=True), 2)
    scales = np.where(extreme == 0, 1, extreme / -_ZERO).astype(np.float32)
    codes = np.clip(np.rint(blocks / scales) + _ZERO, 0, 2**BITS - 1).astype(np.uint8)
    shifts = np.arange(_PER_BYTE, dtype=np.uint8) * BITS
    packed = np.bitwise_or.reduce(codes.reshape(*codes.shape[:2], -1, _PER_BYTE) << shifts, axis=3)
    return packed.astype(np.uint8), scales[..., 0]
