"""Bit planes, bytes or tables: which kernel a product of codes gets on a core.

A core's cost table gives the multiply-accumulates per cycle of binary products and of products of bytes.  Products of
w-bit weights and a-bit activations take w times a binary ones; both kinds lose what they compute on padding channels.
A dense layer of a single sample reads every weight once, so if its weights are many, neither kind is faster than
memory, and fewer bits are worth more.

Some cores count bits with vectors along the depth of an output channel as well as with lanes of output channels; the
cost table then gives the rate of lanes as ``binary_lanes``, and that of the faster form as ``binary``.  Padding decides
between them: of a pixel to whole steps, or of the output channels to whole vectors.

Some cores look up products of one-bit weights in tables of sums of activations.  Their activations are bytes as well,
but weights stay bits; the cost table gives their rate for each number of bits of activations.  Where tables have 32
entries, their making, by lookups as well, counts apart: it takes as long as to look up so many more output channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import ByteTerms, Encoding, byte_terms
from tvmq.dialect import constant_array, is_call
from tvmq.kernels.depth import depth_of
from tvmq.kernels.workload import DEPTH_LANES, Depth, index_bits, padded_bytes, table_indices
from tvmq.target import LANES_KIND, Target

__all__ = ["ByteForm", "Rates", "byte_form", "plane_depth", "rates"]

STREAM_BYTES_PER_CYCLE = 16.0
"""Weights that a core reads from its last-level cache; measured on Zen 4."""
MAKING_CHANNELS = 128
"""Output channels of one tap that are looked up while a table of 32 entries is made, pixels are padded to whole tables,
and their activations summed; by layers of one tap in benchmarks/arm/table_layers.py."""
ALONE = 0.6
"""Share of their rate that lookups of nibbles reach for a single sample, as no other pixel shares those of a vector."""
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
    table : float
        By lookups in tables; 0 where the core has no such kernel or the weights more than one bit.
    """

    planes: float
    bytes: float
    table: float


@dataclass(frozen=True)
class ByteForm:
    """How a product reads activations that are bytes.

    Attributes
    ----------
    terms : ByteTerms
        What number a byte stands for.
    tables : bool
        Whether weights are bits that select bytes, rather than bytes that multiply them.
    """

    terms: ByteTerms
    tables: bool


def rates(
    core: Target, channels: int, taps: int, weight_bits: int, activation_bits: int, streamed_weights: int, outputs: int
) -> Rates:
    """Rates of all kernels by the cost table.

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
    outputs : int
        Output channels.

    Returns
    -------
    Rates
    """
    useful, word = channels * taps, core.word_bits
    direct, gathered = taps * -(-channels // word) * word, -(-useful // word) * word
    is_gathered = taps > 1 and 2 * gathered <= direct
    words = (gathered if is_gathered else direct) // word
    binary = _lanes_rate(core)
    if LANES_KIND in core.mac_per_cycle:
        padded = depth_of(words, core.arch).words if is_gathered else taps * depth_of(words // taps, core.arch).words
        binary = max(binary, core.mac_per_cycle["binary"] * words / padded)
    planes = binary / (weight_bits * activation_bits) * useful / (words * word)
    as_bytes = core.mac_per_cycle["int8"] * useful / min(taps * padded_bytes(channels), padded_bytes(useful))
    table = core.mac_per_cycle.get(f"table{activation_bits}", 0.0) if weight_bits == 1 else 0.0
    looked_up = index_bits(core.word_bits, core.lanes)
    if looked_up == 4:
        table *= useful / direct
    else:
        table *= channels / (looked_up * table_indices(channels)) * taps * outputs / (taps * outputs + MAKING_CHANNELS)
    if streamed_weights and looked_up == 4:
        table *= ALONE
    if streamed_weights > STREAMED_BYTES:
        planes = min(planes, STREAM_BYTES_PER_CYCLE * 8 / weight_bits)
        as_bytes = min(as_bytes, STREAM_BYTES_PER_CYCLE)
        table = min(table, STREAM_BYTES_PER_CYCLE * (8 if looked_up == 4 else looked_up))
    return Rates(planes, as_bytes, table)


def _lanes_rate(core: Target) -> float:
    return core.mac_per_cycle.get(LANES_KIND, core.mac_per_cycle["binary"])


def plane_depth(core: Target, channels: int, taps: int, outputs: int, pairs: int) -> Depth | None:
    """How vectors lie along the depth in a product of bit planes, if they are to.

    Parameters
    ----------
    core : Target
        The core.
    channels, taps : int
        Input channels, and positions of the window.
    outputs : int
        Output channels.
    pairs : int
        The most plane pairs whose popcounts are one sum.

    Returns
    -------
    depth : Depth or None
        None if lanes of output channels are faster, if the core has no other kernel, or if sums do not fit in 16 bits.
    """
    words = -(-channels // core.word_bits)
    if LANES_KIND not in core.mac_per_cycle or taps * words * core.word_bits * pairs >= 2**16:
        return None
    depth = depth_of(words, core.arch)
    along = core.mac_per_cycle["binary"] * words / depth.words / (-(-outputs // DEPTH_LANES) * DEPTH_LANES)
    across = _lanes_rate(core) / (-(-outputs // core.lanes) * core.lanes)
    return depth if along >= across else None


def byte_form(call: Call, core: Target) -> ByteForm | None:
    """How the activations of a product are bytes, if it is to multiply bytes or to look up their sums.

    Parameters
    ----------
    call : Call
        Any call.
    core : Target
        The core.

    Returns
    -------
    ByteForm or None
        None if bit planes are as fast, or the only way: learned bases, activations that are no range of bytes, sums
        that leave 32 bits.  Without tables, also weights that are no range of bytes.
    """
    if not is_call(call, "tvmq.conv2d", "tvmq.dense"):
        return None
    x, w = dialect.operand_encodings(call)
    terms = byte_terms(x)
    if terms is None:
        return None
    codes = constant_array(call.args[1])
    samples = call.args[0].ty.shape[0]
    single = is_call(call, "tvmq.dense") and not dialect.is_symbolic(samples) and int(samples) == 1
    sizes = (codes.shape[1], int(np.prod(codes.shape[2:])), w.planes, x.planes)
    streamed = codes.size if single else 0
    choice, in_cache = (rates(core, *sizes, weights, len(codes)) for weights in (streamed, min(streamed, 1)))
    multiplied = core.dot is not None and _fit_bytes(codes, x, w)
    if _prefers_tables(choice, in_cache, multiplied) and _fit_tables(codes, x, w, core):
        return ByteForm(terms, tables=True)
    return ByteForm(terms, tables=False) if multiplied and choice.bytes > choice.planes else None


def _prefers_tables(choice: Rates, in_cache: Rates, multiplied: bool) -> bool:
    """Whether lookups are fastest; where memory makes them as slow as planes, whether they would be without it.

    Where a cost table states what the fastest core of a family can do, memory does not limit both on the slower ones.
    """
    if multiplied and choice.bytes >= choice.table:
        return False
    return (choice.table, in_cache.table) > (choice.planes, in_cache.planes)


def _fit_bytes(codes: np.ndarray, x: Encoding, w: Encoding) -> bool:
    """Whether weights are signed bytes, and sums of their products 32 bits."""
    units = w.units(np.arange(2**w.planes, dtype=codes.dtype))
    if units.min() < -128 or units.max() > 127:
        units = w.units(codes)
    return units.min() >= -128 and units.max() <= 127 and _fit_sums(codes, x, units)


def _fit_tables(codes: np.ndarray, x: Encoding, w: Encoding, core: Target) -> bool:
    """Whether what becomes of the sums that weights select is 32 bits, and these are 16 where words have 8."""
    selected = (codes & 1).reshape(len(codes), -1).sum(axis=1).max()
    most = 2**16 if core.word_bits == 8 else 2**31
    return int(selected) * (2**x.planes - 1) < most and _fit_sums(codes, x, w.units(np.arange(2, dtype=codes.dtype)))


def _fit_sums(codes: np.ndarray, x: Encoding, units: np.ndarray) -> bool:
    length = int(np.prod(codes.shape[1:]))
    return length * (2**x.planes - 1) * int(np.abs(units).max()) < 2**31
