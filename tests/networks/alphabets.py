"""Weight alphabets: integers in units of a scale, learned bases, and levels without structure."""

from __future__ import annotations

ALPHABETS: dict[str, tuple[int, ...]] = {
    "binary": (-1, 1),
    "ternary": (-1, 0, 1),
    **{f"signed{bits}": tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1))) for bits in (2, 3, 4)},
    **{f"equispaced{bits}": tuple(range(1 - 2**bits, 2**bits, 2)) for bits in (2, 3, 4)},
    **{f"unsigned{bits}": tuple(range(2**bits)) for bits in (1, 2, 3, 4)},
}

PLANES = {
    name: 1 if name in ("binary", "unsigned1") else 2 if name == "ternary" else int(name[-1]) for name in ALPHABETS
}
"""Bit planes that hold each alphabet."""

LEARNED = {f"learned{bits}": bits for bits in (1, 2, 3)}
"""Numbers in the basis of each output channel, whose sums with signs are the channel's levels."""

LEVELS = {f"levels{count}": count for count in (3, 5, 12, 16)}
"""How many levels without structure a weight has, in all or in each output channel."""
