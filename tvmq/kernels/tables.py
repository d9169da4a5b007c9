"""Sums of activations that bits of weights select, looked up in tables of partial sums.

With weights of one bit, ``sum_k w_ok x_k`` over four successive channels has 16 values, whatever the output channel:
one for every nibble of four weights.  A table holds them,

    T[i] = sum_{b < 4} bit_b(i) x_b,         i = 0 .. 15,

and one instruction looks up the nibbles of a whole vector of output channels in it.  Tables are made once for each
pixel and read by every output channel and every tap.  Weights are packed as for popcounts: a byte is the bits of eight
channels, so two nibbles.  Nibbles of absent channels are zero, and so is the first entry of every table.  Codes of a
bits make sums of at most ``4 (2^a - 1)`` for every nibble, so a byte holds the sums of 63, 21, 9 or 4 nibbles for
a = 1 .. 4.

Words of 8 bits: all lanes look up their nibbles in one table.  The sums of bytes ("partial") are added to sums of 16
bits, those of even lanes apart from those of odd ones, since that needs no movement between lanes ("pairs"); in the
end both are put together ("accumulate").  Whoever makes a workload sees to it that 16 bits are enough (`Table.bound`).

Words of 32 bits: the four bytes of a lane look up their nibbles in four tables, those of 16 successive channels of a
sort, which an instruction takes as one of 64 entries; so a nibble needs two bits of its byte's number beside it.  An
instruction that multiplies four bytes and adds the products to 32 bits then adds the four sums of a lane, all factors
one: no sum of 16 bits is in between, and no lane moves.  Tables of low nibbles come before those of high ones::

    channels of a word      0-3   8-11  16-19 24-27 | 4-7   12-15 20-23 28-31
    bits of the weights     0-3   8-11  16-19 24-27 | 4-7   12-15 20-23 28-31

A few successive words (`joined_words`) are added up as bytes before.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from tvmq.kernels.workload import Conv2dWorkload

__all__ = [
    "NIBBLE_BITS",
    "QUINTET_ENTRIES",
    "TABLE_ENTRIES",
    "accumulated_lookups",
    "accumulated_words",
    "chosen_entry",
    "entry_sum",
    "first_channel",
    "joined_words",
    "lookup_chunks",
    "make_tables",
    "selected_sum",
    "table_bytes",
    "tables_of_word",
    "word_number",
]

NIBBLE_BITS = 4
TABLE_ENTRIES = 2**NIBBLE_BITS
QUINTET_ENTRIES = 32
"""Of a table for the sums of five channels, see :mod:`tvmq.kernels.quintets`."""
_OCTET = 8
"""Channels of a byte of weights."""
_LARGEST_BYTE = 255
_MOST_JOINED = 2
"""Words of which a vector's nibbles stay in registers, four vectors of them, beside the sums of enough pixels."""


def table_bytes(workload: Conv2dWorkload) -> int:
    """Bytes of the tables of one pixel.

    Parameters
    ----------
    workload : Conv2dWorkload
        With a table.

    Returns
    -------
    size : int
    """
    return workload.weight_words * (QUINTET_ENTRIES if workload.has_quintets else tables_of_word(workload.word_bits))


def entry_sum(activations: Sequence[Any], entry: Any) -> Any:
    """The sum of four or five activations that an entry's number selects.

    Parameters
    ----------
    activations : sequence of PrimExpr of uint8
        Four or five.
    entry : PrimExpr
        In [0, 15] or [0, 31], or that plus a multiple of 16 or 32.

    Returns
    -------
    total : PrimExpr of uint8
    """
    zero = tirx.const(0, "uint8")
    terms = [tirx.Select(entry // 2**bit % 2 != 0, number, zero) for bit, number in enumerate(activations)]
    return functools.reduce(operator.add, terms)


def make_tables(image: te.Tensor, word_bits: int) -> te.Tensor:
    """Tables of every four channels; the block is called "table".

    Parameters
    ----------
    image : te.Tensor of uint8 [N, H, W, 1, word_bits * words]
        Activations.
    word_bits : {8, 32}
        Bits of a word of weights.

    Returns
    -------
    tables : te.Tensor of uint8 [N, H, W, 4 * word_bits * words]
        A table of 16 entries for every word, half of a byte, and byte.
    """
    batch, height, width, _, length = image.shape
    size = tables_of_word(word_bits)

    def entry(n: Any, y: Any, x: Any, position: Any) -> Any:
        # For bytes it is all one division, which TVM can see through.
        first = 0 if word_bits == _OCTET else position // size * word_bits
        first = first + first_channel(position if word_bits == _OCTET else position % size, word_bits)
        return entry_sum([image[n, y, x, 0, first + bit] for bit in range(NIBBLE_BITS)], position)

    return te.compute((batch, height, width, int(length) // word_bits * size), entry, name="table")


def tables_of_word(word_bits: int) -> int:
    """Bytes of the tables of the activations of one word."""
    return word_bits // NIBBLE_BITS * TABLE_ENTRIES


def first_channel(position: Any, word_bits: int) -> Any:
    """The first of the four channels that an entry of the tables of a word sums.

    Parameters
    ----------
    position : PrimExpr
        Of the entry; where words have 8 bits, also in the tables of many words.
    word_bits : {8, 32}

    Returns
    -------
    channel : PrimExpr
    """
    if word_bits == _OCTET:
        return position // TABLE_ENTRIES * NIBBLE_BITS
    octets = word_bits // _OCTET
    return position // TABLE_ENTRIES % octets * _OCTET + position // (octets * TABLE_ENTRIES) * NIBBLE_BITS


def chosen_entry(entry: Callable[[int], Any], nibble: Any, entries: int = TABLE_ENTRIES) -> Any:
    """The entry of a table that a nibble chooses, as a tree of choices.

    An index that is read from memory would say as much, but TVM could not compare such expressions.

    Parameters
    ----------
    entry : callable
        From a number to that entry of the table.
    nibble : PrimExpr of uint8
        Below `entries`.
    entries : {16, 32}, optional
        Of the table.

    Returns
    -------
    value : PrimExpr
    """

    def among(first: int, count: int) -> Any:
        if count == 1:
            return entry(first)
        half = count // 2
        is_upper = tirx.bitwise_and(nibble, tirx.const(half, "uint8")) != tirx.const(0, "uint8")
        return tirx.Select(is_upper, among(first + half, half), among(first, half))

    return among(0, entries)


def lookup_chunks(workload: Conv2dWorkload) -> tuple[list[str], int]:
    """What one sum of bytes covers where words have 8 bits.

    Parameters
    ----------
    workload : Conv2dWorkload
        With a table.

    Returns
    -------
    (list of str, int)
        The axes of the window that it covers wholly, of "kh" and "kw", and bytes of a tap's weights, a divisor of all.
    """
    assert workload.table is not None
    most = _LARGEST_BYTE // (_OCTET * (2**workload.table.activation_bits - 1))
    words, (kernel_h, kernel_w) = workload.weight_words, workload.kernel
    chunk = max(size for size in range(1, min(words, most) + 1) if words % size == 0)
    if chunk < words or kernel_w * words > most:
        return [], chunk
    return (["kw"] if kernel_h * kernel_w * words > most else ["kh", "kw"]), chunk


def joined_words(workload: Conv2dWorkload) -> int:
    """Words of 32 bits whose sums are added up as bytes.

    Parameters
    ----------
    workload : Conv2dWorkload
        With a table.

    Returns
    -------
    count : {1, 2}
        A divisor of the words of a tap.  Four nibbles' sums of four bits make 240 at most.
    """
    return _MOST_JOINED if workload.weight_words % _MOST_JOINED == 0 else 1


def accumulated_lookups(
    workload: Conv2dWorkload,
    tables: te.Tensor,
    weight: te.Tensor,
    shape: tuple,
    window: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
) -> te.Tensor:
    """Selected sums by words of 8 bits; the blocks are "nibble", "partial", "pairs", "accumulate".

    Parameters
    ----------
    workload : Conv2dWorkload
        The convolution.
    tables : te.Tensor of uint8 [N, H, W, 32 * octets]
        From :func:`make_tables`.
    weight : te.Tensor of uint8 [Ob, KH, KW, 1, octets, L]
        Packed weights.
    shape : tuple
        Of the result: [N, OH, columns, groups, vectors, 1, L].
    window : callable
        From row and column of an output pixel and of a tap to the row and column of the image.

    Returns
    -------
    sums : te.Tensor of uint16
    """
    *front, lanes = shape
    vectors = front[-2]
    blocks, kernel_h, kernel_w, _, octets, _ = (int(size) for size in weight.shape)

    def nibble(block: Any, kh: Any, kw: Any, octet: Any, half: Any, lane: Any) -> Any:
        word, shift = weight[block, kh, kw, 0, octet, lane], (half * NIBBLE_BITS).astype("uint8")
        return tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const(TABLE_ENTRIES - 1, "uint8"))

    nibbles = te.compute((blocks, kernel_h, kernel_w, octets, 2, lanes), nibble, name="nibble")
    covered, chunk = lookup_chunks(workload)
    extents = {"kh": kernel_h, "kw": kernel_w, "co": octets // chunk}
    outer = [name for name in extents if name not in covered]
    inner = {name: te.reduce_axis((0, extents[name]), name) for name in covered}
    step, half = te.reduce_axis((0, chunk), "ci"), te.reduce_axis((0, 2), "half")

    def partial(n: Any, y: Any, x: Any, group: Any, vector: Any, _klass: Any, *rest: Any) -> Any:
        *position, lane = rest
        taps = {**dict(zip(outer, position, strict=True)), **inner}
        row, column = window(y, x, taps["kh"], taps["kw"])
        octet = taps["co"] * chunk + step
        index = nibbles[group * vectors + vector, taps["kh"], taps["kw"], octet, half, lane]
        first = (octet * 2 + half) * TABLE_ENTRIES
        number = chosen_entry(lambda entry: tables[n, row, column, first + entry], index)
        return te.sum(number, axis=[*inner.values(), step, half])

    sums = te.compute((*front, *(extents[name] for name in outer), lanes), partial, name="partial")
    axes = [te.reduce_axis((0, extents[name]), name) for name in outer]

    def pair(*indices: Any) -> Any:
        *index, parity, lane = indices
        return te.sum(sums(*index, *axes, lane * 2 + parity).astype("uint16"), axis=axes)

    pairs = te.compute((*front, 2, lanes // 2), pair, name="pairs")
    return te.compute(
        shape, lambda *indices: pairs(*indices[:-1], indices[-1] % 2, indices[-1] // 2), name="accumulate"
    )


def accumulated_words(
    workload: Conv2dWorkload,
    tables: te.Tensor,
    weight: te.Tensor,
    shape: tuple,
    window: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
) -> te.Tensor:
    """Selected sums by words of 32 bits; the block is "accumulate".

    Parameters
    ----------
    workload, shape, window
        As for :func:`accumulated_lookups`.
    tables : te.Tensor of uint8 [N, H, W, 128 * words]
        From :func:`make_tables`.
    weight : te.Tensor of uint32 [Ob, KH, KW, 1, words, L]
        Packed weights.

    Returns
    -------
    sums : te.Tensor of int32
    """
    vectors, joined = shape[-3], joined_words(workload)
    _, kernel_h, kernel_w, _, words, _ = (int(size) for size in weight.shape)
    extents = {"kh": kernel_h, "kw": kernel_w, "step": words // joined, "half": 2 * joined, "octet": 4}
    kh, kw, step, half, octet = (te.reduce_axis((0, size), name) for name, size in extents.items())

    def total(n: Any, y: Any, x: Any, group: Any, vector: Any, _klass: Any, lane: Any) -> Any:
        row, column = window(y, x, kh, kw)
        block, first = group * vectors + vector, step * joined * tables_of_word(workload.word_bits)
        word = weight[block, kh, kw, 0, step * joined + word_number(half, joined), lane]
        number = selected_sum(word, lambda place: tables[n, row, column, first + place], joined, half, octet)
        return te.sum(number, axis=[kh, kw, step, half, octet])

    return te.compute(shape, total, name="accumulate")


def word_number(half: Any, words: int) -> Any:
    """Which of some words the halves of bytes, counted over all these words, belong to."""
    return half // 2 if words > 1 else 0  # TVM compares expressions as they are written


def selected_sum(word: Any, table: Callable[[Any], Any], words: int, half: Any, octet: Any) -> Any:
    """What four bits of one lane of successive words of 32 bits select.

    Parameters
    ----------
    word : PrimExpr of uint32
        That of :func:`word_number`.
    table : callable
        From a position to what is there in the tables of these words.
    words : {1, 2}
        Words.
    half, octet : PrimExpr
        In [0, 2 words - 1], counting the halves of the bytes of all words, and in [0, 3], the byte in a word.

    Returns
    -------
    number : PrimExpr of int32
    """
    upper = half % 2 if words > 1 else half
    shift = (octet * _OCTET + upper * NIBBLE_BITS).astype("uint32")
    nibble = tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const(TABLE_ENTRIES - 1, "uint32"))
    first = (half * 4 + octet) * TABLE_ENTRIES
    return chosen_entry(lambda entry: table(first + entry), nibble.astype("uint8")).astype("int32")
