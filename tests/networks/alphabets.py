"""Weight alphabets as integers, in units of a scale."""

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
