"""The packing of bits into words, and sums of products of bytes: descriptions of the instructions that do it.

A bit arrives as a byte, all ones or all zeros, which is what a comparison of vector registers yields.  TVM matches a
description against the block that :func:`pack_masks` makes and puts the instruction of a family in its place.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script import tirx as T

__all__ = ["dot_product", "mask_octet", "mask_octets", "mask_words", "pack_masks"]


def pack_masks(masks: te.Tensor, word_bits: int) -> te.Tensor:
    """Pack masks into words; the block is called "word".

    Parameters
    ----------
    masks : te.Tensor of int8 [..., groups, vectors, lanes]
        Zero or minus one; a group fills whole vectors and whole words.
    word_bits : {8, 32}
        Bits of a word.

    Returns
    -------
    words : te.Tensor of uint8 or uint32 [..., groups, vectors * lanes / word_bits]
        Little endian words.
    """
    *front, groups, vectors, lanes = masks.shape
    vectors, lanes = int(vectors), int(lanes)
    dtype = f"uint{word_bits}"

    def shifted(mask: Any, position: Any) -> Any:
        return tirx.shift_left(tirx.bitwise_and(mask, tirx.const(1, "int8")).astype(dtype), position.astype(dtype))

    if vectors > 1 and vectors * lanes == word_bits:
        vector, lane = te.reduce_axis((0, vectors), "vector"), te.reduce_axis((0, lanes), "lane")

        def gathered(*indices: Any) -> Any:
            term = shifted(masks(*indices[:-1], vector, lane), vector * lanes + lane)
            return te.sum(term, axis=[vector, lane])

        return te.compute((*front, groups, 1), gathered, name="word")
    if vectors != 1:
        raise ValueError(f"{vectors} vectors of {lanes} lanes are neither one word of {word_bits} bits nor one vector")
    bit = te.reduce_axis((0, word_bits), "bit")

    def sliced(*indices: Any) -> Any:
        *index, word = indices
        return te.sum(shifted(masks(*index, 0, word * word_bits + bit), bit), axis=bit)

    return te.compute((*front, groups, lanes // word_bits), sliced, name="word")


def mask_words(lanes: int) -> Any:
    """The signs of two vectors of masks, added to one word.

    Parameters
    ----------
    lanes : int
        Lanes of a vector; two vectors make a word of 32 bits.

    Returns
    -------
    description : tirx.PrimFunc
        From int8 masks [2, lanes] to a uint32 word [1].
    """

    @T.prim_func(s_tir=True)
    def description(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (2, lanes), "int8", offset_factor=1, scope="local")
        words = T.match_buffer(word, (1,), "uint32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(words[0:1], masks[0:2, 0:lanes])
            T.writes(words[0:1])
            for i, j in T.grid(2, lanes):
                with T.sblock("word"):
                    v, b = T.axis.remap("RR", [i, j])
                    words[0] = words[0] + (T.Cast("uint32", masks[v, b] & T.int8(1)) << T.Cast("uint32", v * lanes + b))

    return description


def mask_octets(lanes: int) -> Any:
    """The signs of one vector of masks, added to words of 8 bits.

    Parameters
    ----------
    lanes : int
        Lanes of the vector, a multiple of 8.

    Returns
    -------
    description : tirx.PrimFunc
        From int8 masks [lanes] to uint8 words [lanes / 8].
    """

    @T.prim_func(s_tir=True)
    def description(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (lanes,), "int8", offset_factor=1, scope="local")
        words = T.match_buffer(word, (lanes // 8,), "uint8", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(words[0 : lanes // 8], masks[0:lanes])
            T.writes(words[0 : lanes // 8])
            for i, k in T.grid(lanes // 8, 8):
                with T.sblock("word"):
                    w, b = T.axis.remap("SR", [i, k])
                    words[w] = words[w] + (T.Cast("uint8", masks[w * 8 + b] & T.int8(1)) << T.Cast("uint8", b))

    return description


def mask_octet(scope: str = "local") -> Any:
    """The signs of a vector of eight masks, added to one word of 8 bits.

    Parameters
    ----------
    scope : str
        Where both are.

    Returns
    -------
    description : tirx.PrimFunc
        From int8 masks [8] to a uint8 word [1].
    """

    @T.prim_func(s_tir=True)
    def description(mask: T.handle, word: T.handle) -> None:
        masks = T.match_buffer(mask, (8,), "int8", offset_factor=1, scope=scope)
        words = T.match_buffer(word, (1,), "uint8", offset_factor=1, scope=scope)
        with T.sblock("root"):
            T.reads(words[0:1], masks[0:8])
            T.writes(words[0:1])
            for k in range(8):
                with T.sblock("word"):
                    b = T.axis.remap("R", [k])
                    words[0] = words[0] + (T.Cast("uint8", masks[b] & T.int8(1)) << T.Cast("uint8", b))

    return description


def dot_product(lanes: int) -> Any:
    """Four unsigned bytes times four signed bytes of each lane, added to the lane.

    Parameters
    ----------
    lanes : int
        Lanes of a vector of 32-bit integers.

    Returns
    -------
    description : tirx.PrimFunc
        From uint8 activations [4] and int8 weights [lanes, 4] to int32 sums [lanes].
    """

    @T.prim_func(s_tir=True)
    def description(activation: T.handle, weight: T.handle, total: T.handle) -> None:
        activations = T.match_buffer(activation, (4,), "uint8", offset_factor=1)
        weights = T.match_buffer(weight, (lanes, 4), "int8", offset_factor=1)
        totals = T.match_buffer(total, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(totals[0:lanes], activations[0:4], weights[0:lanes, 0:4])
            T.writes(totals[0:lanes])
            for i, k in T.grid(lanes, 4):
                with T.sblock("accumulate"):
                    lane, byte = T.axis.remap("SR", [i, k])
                    totals[lane] = totals[lane] + T.Cast("int32", activations[byte]) * T.Cast(
                        "int32", weights[lane, byte]
                    )

    return description
