"""Bit planes or bytes: which kernel a product of codes gets on a core.

A core's cost table gives the multiply-accumulates per cycle of binary products and of products of bytes.  Products of
w-bit weights and a-bit activations take w times a binary ones; both kinds lose what they compute on padding channels.
A dense layer of a single sample reads every weight once, so if its weights are many, neither kind is faster than
memory, and fewer bits are worth more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import ByteTerms, byte_terms
from tvmq.dialect import constant_array, is_call
from tvmq.kernels.workload import padded_bytes
from tvmq.target import Target

__all__ = ["Rates", "byte_form", "rates"]

STREAM_BYTES_PER_CYCLE = 16.0
"""Weights that a core reads from its last-level cache; measured on Zen 4."""
STREAMED_BYTES = 512 * 1024
"""Weights, as bytes, of which some no longer fit in a core's own caches."""


@dataclass(frozen=True)
class Rates:
    """Useful multiply-accumulates per cycle of one product.

    Attributes
    ----------
    planes : float
        As bit planes.
    bytes : float
        As bytes, whether or not the core or the operands allow it.
    """

    planes: float
    bytes: float


def rates(
    core: Target, channels: int, taps: int, weight_bits: int, activation_bits: int, streamed_weights: int
) -> Rates:
    """Rates of both kernels by the cost table.

    Parameters
    ----------
    core : Target
        The core.
    channels, taps : int
        Input channels, and positions of the window.
    weight_bits, activation_bits : int
        Bit planes of the operands.
    streamed_weights : int
        Number of weights if each is used only once, otherwise 0.

    Returns
    -------
    Rates
    """
    useful, word = channels * taps, core.word_bits
    direct, gathered = taps * -(-channels // word) * word, -(-useful // word) * word
    packed = gathered if taps > 1 and 2 * gathered <= direct else direct
    planes = core.mac_per_cycle["binary"] / (weight_bits * activation_bits) * useful / packed
    as_bytes = core.mac_per_cycle["int8"] * useful / min(taps * padded_bytes(channels), padded_bytes(useful))
    if streamed_weights > STREAMED_BYTES:
        planes = min(planes, STREAM_BYTES_PER_CYCLE * 8 / weight_bits)
        as_bytes = min(as_bytes, STREAM_BYTES_PER_CYCLE)
    return Rates(planes, as_bytes)


def byte_form(call: Call, core: Target) -> ByteTerms | None:
    """How the activations of a product are bytes, if it is to multiply bytes.

    Parameters
    ----------
    call : Call
        Any call.
    core : Target
        The core.

    Returns
    -------
    ByteTerms or None
        None if bit planes are as fast, or the only way: learned bases, alphabets that are no range of bytes, sums
        that leave 32 bits.
    """
    if core.dot is None or not is_call(call, "tvmq.conv2d", "tvmq.dense"):
        return None
    x, w = dialect.operand_encodings(call)
    terms = byte_terms(x)
    if terms is None:
        return None
    codes = constant_array(call.args[1])
    units = w.units(np.arange(2**w.planes, dtype=codes.dtype))
    if units.min() < -128 or units.max() > 127:
        units = w.units(codes)
    length = int(np.prod(codes.shape[1:]))
    if units.min() < -128 or units.max() > 127 or length * (2**x.planes - 1) * int(np.abs(units).max()) >= 2**31:
        return None
    samples = call.args[0].ty.shape[0]
    single = is_call(call, "tvmq.dense") and not dialect.is_symbolic(samples) and int(samples) == 1
    taps = int(np.prod(codes.shape[2:]))
    choice = rates(core, codes.shape[1], taps, w.planes, x.planes, codes.size if single else 0)
    return terms if choice.bytes > choice.planes else None
