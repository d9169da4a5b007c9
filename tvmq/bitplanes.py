r"""The algebra everything else is derived from: a quantized tensor is a weighted sum of bit planes.

**Encoding.** A code is a small unsigned integer whose bits select planes.  Its value is

    value = scale * (offset + sum_i coefficient_i * bit_i(code)).

``coefficient`` and ``offset`` are integers for every uniform alphabet, and floats for learned bases; ``scale`` is a
float, for weights one per output channel.  One form covers them all:

    ±1                   coefficient 2           offset -1          value 2p - 1
    ternary              coefficient 1, -1       offset 0           value p - n
    unsigned k bits      coefficient 1, 2, 4 ..  offset 0
    two's complement     coefficient 1, .., -2^(k-1)  offset 0
    M = 2^k equispaced   coefficient 2, 4, 8 ..  offset -(M - 1)    value scale * {-(M-1), .., -1, 1, .., M-1}
    learned basis        coefficient v (floats)  offset as learned

**Dot product.**  Let ``x_k = xo + sum_i a_i X_ik`` and ``w_k = wo + sum_j b_j W_jk``, planes X_i, W_j in {0, 1}.  Then

    sum_k x_k w_k =   sum_ij a_i b_j |X_i & W_j|         one popcount per pair of planes
                    + wo sum_i a_i |X_i|                 per pixel, shared by all output channels
                    + xo sum_j b_j |W_j| + K xo wo       a constant per output channel

where ``|.|`` is the popcount and K the true length: bits past K are zero in *both* operands, so tails cost nothing.

**XOR.**  ``2 |X & W| = |X| + |W| - |X ^ W|``, so the terms in |X_i| add up to ``a_i (wo + sum_j b_j / 2) |X_i|`` and
vanish for every weight alphabet that is symmetric around zero (±1, equispaced, LQ-Nets), whatever the activations are:

    sum_k x_k w_k = - sum_ij (a_i b_j / 2) |X_i ^ W_j|  +  sum_ij (a_i b_j / 2) |W_j|  +  xo sum_k w_k.

For ±1 times ±1 that is the familiar ``K - 2 |X ^ W|``.  With AND the terms in |X_i| vanish when ``wo = 0`` (ternary,
two's complement, unsigned).  So no alphabet in use needs the popcount of the activations; :func:`dot_terms` still has
it, for the others.

**Zero padding.**  A convolution pads with the real number 0.  If 0 is the value of code 0 (offset 0) then zero bits are
exact.  Otherwise the kernel still pads with zero *bits*, which stand for the value ``xo``, so every tap that falls
outside has contributed ``xo * sum_c w_c(tap)`` too much.  That sum depends only on which taps are outside, hence on a
few classes of rows and columns (nine at most for 3x3 with padding 1): a constant per class and output channel, which
joins the constant of the dot product.  :func:`border_classes` and :func:`constant_terms` compute it.

**Bytes.**  Where bits are many, products of whole numbers are faster than products of planes.  The instructions take an
unsigned byte u and a signed byte; the weights' units are signed, and the activations become unsigned ones if their
coefficients are ``a_i = +-m 2^i``.  Let F have a one wherever the sign is negative and ``u = code ^ F``: a plane with a
negative coefficient contributes ``-m 2^i X_i = m 2^i (1 - X_i) - m 2^i``, so

    x_k = m u_k + x_min,     x_min = xo + sum of the negative a_i
    sum_k x_k w_k = m sum_k u_k w_k + x_min sum_k w_k.

Unsigned, equispaced and ±1 activations have F = 0; in two's complement F is the sign bit.  A padding byte 0 stands for
x_min, so the constant sums only the taps inside the image, in border classes as above (:func:`byte_terms`,
:func:`byte_constants`).  Other alphabets (ternary) and float coefficients keep their planes.

**Float coefficients.**  Where the coefficients are floats, or differ per output channel o, no multiplier is shared; the
popcounts are still exact integers S_ij, and a float32 epilogue weighs them in a fixed order (:class:`BasisTerms`):

    sum_k x_k w_ok = B_o + sum_j c_oj (sum_i a_i S_ij),      B_o = xo sum_{k inside} w_ok.

The offset ``xo`` of the activations is outside the popcounts, so B_o is a constant per output channel and border
class, as above; zero bits outside the image add nothing to S_ij in either form, and B_o leaves those taps out.  What is
left is ``sum_k (sum_i a_i X_ik) w_ok``, and the weights decide its form:

    and    wo = 0                    c_oj = b_oj        S_ij = |X_i & W_j|
    xor    wo = - sum_j b_oj / 2     c_oj = b_oj / 2    S_ij = sum_k X_ik (2 W_jk - 1) = |W_j| - |X_i ^ W_j|
    and, with one more plane that is constantly one, for any other wo:  |X_i & 1| = |X_i| and its c_o is wo_o.

**Levels.**  Weights that lie on any n levels per tensor or per output channel (a k-means codebook, sums of powers of
two) have bit planes too: P numbers b_j whose subset sums contain the levels.  Only bases of the first two forms are
sought, since an offset costs a plane anyway:

    and    l = sum_j b_j W_j             one plane per level that is not 0, b_j that level: exact, and for levels
                                         without structure the fewest, since P numbers span n only if P >= n
    xor    l = sum_j v_j (2 W_j - 1)     one plane per magnitude |l|: levels that differ only in sign share planes,
                                         because the complement of a code is the negative of its value

For the second line order the magnitudes m_1 < .. < m_r and let code k be the thermometer of k ones.  Its signs are
independent, and solving for v gives ``v_1 = (m_1 + m_r) / 2`` and ``v_k = (m_k - m_{k-1}) / 2``.  So 16 levels take 8
planes where they are symmetric, and never more than 16.  Bases of at most four numbers are searched for first, by the
rule that the smallest level that is no sum yet must be a new number plus such a sum: that finds learned bases, whose
2^P levels need only P planes.  For "and" the search is above the lowest level, and 0 is a level whose code becomes 0
by complementing planes; for "xor" it is for ``(max l - l) / 2``, where all v_j must add up to the largest level, whose
code is all ones; what is missing is one more plane that is constantly one: an offset.  Some sums may not occur as
levels; where too many are missing the rule fails, and the weight takes more planes than it might.  A basis may be off
by the rounding of float32 sums, but never merges two levels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tvmq.errors import InputError

__all__ = [
    "BasisTerms",
    "BitPlanes",
    "ByteTerms",
    "DotTerms",
    "Encoding",
    "basis_terms",
    "border_classes",
    "border_constants",
    "byte_constants",
    "byte_terms",
    "constant_terms",
    "dot",
    "dot_terms",
    "offset_terms",
    "window_classes",
]

MAX_PLANES = 8
"""Of activations, and of alphabets of integers: their codes are bytes."""
MAX_WEIGHT_PLANES = 16
MAX_LEVELS = 16
"""Levels of a weight that are no integers; each of them takes a plane at worst."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """How the bits of a code make a value: ``scale * (offset + sum_i coefficients[..., i] * bit_i(code))``.

    Parameters
    ----------
    coefficients : array of shape (P,) or (O, P)
        One per plane; integers for uniform alphabets, floats (possibly one row per output channel) for learned bases.
    offset : array of shape () or (O,)
        Value of code 0 in units of ``scale``; of the same kind (integer or float) as the coefficients.
    scale : array of shape () or (O,)
        Positive or negative float.

    Raises
    ------
    InputError
        If there are no planes or more than 16, if the kinds differ, or if a number is not finite.
    """

    coefficients: np.ndarray
    offset: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))
    scale: np.ndarray = field(default_factory=lambda: np.ones((), np.float32))

    def __post_init__(self) -> None:
        integer = np.issubdtype(np.asarray(self.coefficients).dtype, np.integer)
        kind = np.int64 if integer else np.float64
        object.__setattr__(self, "coefficients", np.asarray(self.coefficients, kind))
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))
        offset = np.asarray(self.offset)
        if integer and not np.array_equal(offset, np.round(offset)):
            raise InputError("encoding: integer coefficients need an integer offset")
        object.__setattr__(self, "offset", offset.astype(kind))
        if self.coefficients.ndim not in (1, 2) or not 1 <= self.planes <= MAX_WEIGHT_PLANES:
            shape = self.coefficients.shape
            raise InputError(f"encoding: 1 to {MAX_WEIGHT_PLANES} planes are possible, got shape {shape}")
        if not all(np.isfinite(array).all() for array in (self.coefficients, self.offset, self.scale)):
            raise InputError("encoding: coefficients, offset and scale must be finite")

    @property
    def planes(self) -> int:
        """Number of bit planes P."""
        return int(self.coefficients.shape[-1])

    @property
    def is_integer(self) -> bool:
        """Whether coefficients and offset are integers, so that dot products are exact integers."""
        return np.issubdtype(self.coefficients.dtype, np.integer)

    @property
    def is_binary(self) -> bool:
        """Whether this is ±1 (one plane, symmetric around zero), up to the scale."""
        return self.planes == 1 and bool(np.all(self.coefficients[..., 0] == -2 * self.offset))

    def units(self, codes: np.ndarray) -> np.ndarray:
        """Values in units of ``scale``, exactly: int64 for integer encodings, float64 for learned ones.

        Parameters
        ----------
        codes : unsigned integer array
            Any shape; the first axis is the output channel where coefficients or offset are per channel.

        Returns
        -------
        array of the shape of ``codes``
        """
        total = np.zeros(codes.shape, self.coefficients.dtype) + _leading(self.offset, codes.ndim)
        for plane in range(self.planes):
            bit = (codes >> np.uint8(plane)) & np.uint8(1)
            total += bit * _leading(self.coefficients[..., plane], codes.ndim)
        return total

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Values as float32: one rounding of ``scale * units`` computed in float64."""
        exact = self.units(codes).astype(np.float64) * _leading(self.scale.astype(np.float64), codes.ndim)
        return exact.astype(np.float32)

    def negated(self, codes: np.ndarray) -> np.ndarray | None:
        """Codes of the negated values; None when the alphabet lacks the negative of some value that occurs.

        Parameters
        ----------
        codes : uint8 array

        Returns
        -------
        uint8 array of the shape of ``codes``, or None
            None also for encodings whose coefficients differ per channel.
        """
        if self.coefficients.ndim == 2 or self.offset.ndim == 1:
            return None
        every = np.arange(2**self.planes, dtype=np.uint8)
        units = self.units(every)
        matches = units[None, :] == -units[:, None]
        if not matches.any(axis=1)[codes].all():
            return None
        return matches.argmax(axis=1).astype(np.uint8)[codes]

    @classmethod
    def binary(cls, scale: float | np.ndarray = 1.0) -> Encoding:
        """±1 times ``scale``."""
        return cls(np.array([2]), np.array(-1), np.asarray(scale))

    @classmethod
    def ternary(cls, scale: float | np.ndarray = 1.0) -> Encoding:
        """-1, 0, 1 times ``scale``, as a positive and a negative plane."""
        return cls(np.array([1, -1]), np.array(0), np.asarray(scale))

    @classmethod
    def unsigned(cls, bits: int, scale: float | np.ndarray = 1.0) -> Encoding:
        """0 .. 2**bits - 1 times ``scale``."""
        return cls(2 ** np.arange(bits), np.array(0), np.asarray(scale))

    @classmethod
    def twos_complement(cls, bits: int, scale: float | np.ndarray = 1.0) -> Encoding:
        """-2**(bits-1) .. 2**(bits-1) - 1 times ``scale``."""
        coefficients = 2 ** np.arange(bits)
        coefficients[-1] *= -1
        return cls(coefficients, np.array(0), np.asarray(scale))

    @classmethod
    def equispaced(cls, bits: int, scale: float | np.ndarray = 1.0) -> Encoding:
        """The 2**bits odd integers from -(2**bits - 1) to 2**bits - 1, times ``scale``: GPFQ's alphabets."""
        return cls(2 * 2 ** np.arange(bits), np.array(1 - 2**bits), np.asarray(scale))

    @classmethod
    def learned(cls, basis: np.ndarray, offset: float | np.ndarray = 0.0) -> Encoding:
        """A float basis of shape (P,) or (O, P) over bits in {0, 1}: LQ-Nets' activations.

        For LQ-Nets' weights, whose bits are in {-1, 1}, pass ``basis=2 * v`` and ``offset=-v.sum(-1)``.
        """
        return cls(np.asarray(basis, np.float64), np.asarray(offset, np.float64))

    @classmethod
    def of_basis_levels(cls, levels: Sequence[float] | np.ndarray) -> tuple[Encoding, np.ndarray] | None:
        """A learned encoding of levels that are sums of subsets of a few numbers, above the first.

        Parameters
        ----------
        levels : ascending floats
            At least 2.

        Returns
        -------
        (Encoding, uint8 array) or None
            The code of each level; None if four numbers are too few.
        """
        levels = np.asarray(levels, np.float64)
        above, tolerance = levels - levels[0], LEVEL_TOLERANCE * np.abs(levels).max()
        basis = _subset_basis(above, tolerance, MAX_BASIS)
        if basis is None or not len(basis):
            return None
        return cls.learned(basis, levels[0]), _nearest_sums(above, basis).astype(np.uint8)

    @classmethod
    def of_levels(cls, levels: Sequence[float] | np.ndarray) -> tuple[Encoding, np.ndarray] | None:
        """An integer encoding whose values are the given equispaced levels.

        :meth:`of_grid_levels` takes levels with gaps between them.

        Parameters
        ----------
        levels : ascending floats
            2 to 256 of them.

        Returns
        -------
        (Encoding, uint8 array) or None
            The code of each level; None when the levels are not equispaced, or 0 is neither a level's multiple nor
            half-way (then no integers are proportional to them).
        """
        levels = np.asarray(levels, np.float64)
        count = len(levels)
        if not 2 <= count <= 2**MAX_PLANES:
            return None
        step = (levels[-1] - levels[0]) / (count - 1)
        tolerance = 1e-6 * np.abs(levels).max()
        if step <= 0 or np.abs(levels - (levels[0] + step * np.arange(count))).max() > tolerance:
            return None
        planes = int(count - 1).bit_length()
        for halves in (1, 2):
            unit = step / halves
            first = np.round(levels[0] / unit)
            if np.abs(levels[0] - first * unit) <= tolerance:
                encoding = cls(halves * 2 ** np.arange(planes), np.array(int(first)), np.float32(unit))
                return encoding, np.arange(count, dtype=np.uint8)
        return None

    @classmethod
    def of_grid_levels(cls, levels: Sequence[float] | np.ndarray) -> tuple[Encoding, np.ndarray] | None:
        """An integer encoding among whose values are the given levels: some of those of an equispaced grid.

        Powers of two are such levels: 0, 1/8, 1/4, 1/2 and 1 are the codes 0, 1, 2, 4 and 8 of a grid of nine.

        Parameters
        ----------
        levels : ascending floats
            At least 2.

        Returns
        -------
        (Encoding, uint8 array) or None
            The code of each level; None when the levels are not whole numbers of the smallest gap apart, or the grid
            would have more than 256 levels.
        """
        levels = np.asarray(levels, np.float64)
        if len(levels) < 2 or np.diff(levels).min() <= 0:
            return None
        numbers = np.round((levels - levels[0]) / np.diff(levels).min()).astype(np.int64)
        last = int(numbers[-1])
        if last >= 2**MAX_PLANES:
            return None
        grid = levels[0] + (levels[-1] - levels[0]) / last * np.arange(last + 1)
        if np.abs(grid[numbers] - levels).max() > 1e-6 * np.abs(levels).max():
            return None
        found = cls.of_levels(grid)
        return None if found is None else (found[0], numbers.astype(np.uint8))


def _leading(array: np.ndarray, ndim: int) -> np.ndarray:
    """Shape () stays, shape (O,) becomes (O, 1, ..)."""
    return array if array.ndim == 0 else array.reshape(-1, *([1] * (ndim - 1)))


@dataclass(frozen=True, eq=False)
class BitPlanes:
    """A quantized tensor: codes and what their bits mean.

    Parameters
    ----------
    codes : array of any shape
        Bit i of a code is the element's bit in plane i; uint8, or uint16 where weights have more than eight planes.
    encoding : Encoding

    Raises
    ------
    InputError
        If the codes are of another type, or do not fit the planes.
    """

    codes: np.ndarray
    encoding: Encoding

    def __post_init__(self) -> None:
        if self.codes.dtype not in (np.uint8, np.uint16):
            raise InputError(f"bit planes: codes must be uint8 or uint16, got {self.codes.dtype}")
        if self.codes.size and int(self.codes.max()) >= 2**self.encoding.planes:
            raise InputError(f"bit planes: code {self.codes.max()} does not fit {self.encoding.planes} planes")

    @property
    def planes(self) -> np.ndarray:
        """Boolean array of shape (P, *codes.shape)."""
        shifts = np.arange(self.encoding.planes, dtype=np.uint8).reshape(-1, *([1] * self.codes.ndim))
        return ((self.codes[None] >> shifts) & 1).astype(bool)

    def dense(self) -> np.ndarray:
        """The float32 tensor."""
        return self.encoding.values(self.codes)

    @classmethod
    def of_values(cls, array: np.ndarray) -> BitPlanes | None:
        """Bit planes of a tensor whose values are integer multiples of one unit, or of one per output channel.

        Parameters
        ----------
        array : float32 of shape (O, ...)

        Returns
        -------
        BitPlanes or None
            In the alphabet of the fewest planes that holds all values, or in integers whose sums they are; values
            agree to float32 rounding.  None if the values are not finite or not multiples up to 128 of a unit.
        """
        rows = array.reshape(len(array), -1)
        if not rows.size or not np.isfinite(rows).all():
            return None
        best: BitPlanes | None = None
        for scale in _units(rows):
            multiples = np.round(rows.astype(np.float64) / scale[:, None]).astype(np.int64)
            found = _smallest_alphabet(multiples)
            if found is not None and (best is None or found[0].planes < best.encoding.planes):
                encoding, codes = found
                shared = scale[0] if np.all(scale == scale[0]) else scale
                unit = (encoding.scale * shared).astype(np.float32)
                best = cls(codes.reshape(array.shape), dataclasses.replace(encoding, scale=unit))
        return best

    @classmethod
    def of_level_values(cls, array: np.ndarray) -> BitPlanes | None:
        """Bit planes of a tensor with at most 16 different values, or at most 16 in each output channel.

        Parameters
        ----------
        array : float32 of shape (O, ...)

        Returns
        -------
        BitPlanes or None
            In one basis, or one per channel, whichever takes fewer planes; their offset is 0 or symmetric.  None if
            the values are not finite, or a basis would serve fewer than two values per plane: any numbers have such
            a basis.
        """
        rows = array.reshape(len(array), -1).astype(np.float64)
        if not rows.size or not np.isfinite(rows).all() or len(np.unique(rows[0])) > MAX_LEVELS:
            return None
        found = [bases for group in (rows.reshape(1, -1), rows) for bases in _bases(group)]
        if not found:
            return None
        group, levels, bases = min(found, key=lambda candidate: _most_planes(candidate[2]))
        planes = _most_planes(bases)
        coefficients = np.zeros((len(group), planes))
        codes = np.zeros(group.shape, np.uint8 if planes <= MAX_PLANES else np.uint16)
        for channel, basis in enumerate(bases):
            coefficients[channel, : len(basis.coefficients)] = basis.coefficients
            codes[channel] = np.array(basis.codes, codes.dtype)[np.searchsorted(levels[channel], group[channel])]
        offset = np.array([basis.offset for basis in bases])
        shared = len(group) == 1
        encoding = Encoding.learned(*(part[0] if shared else part for part in (coefficients, offset)))
        return cls(codes.reshape(array.shape), encoding)

    @classmethod
    def of_weights(cls, array: np.ndarray) -> BitPlanes | None:
        """Bit planes of a weight: on an alphabet of integers, or on any few levels where that takes fewer planes.

        Parameters
        ----------
        array : float32 of shape (O, ...)

        Returns
        -------
        BitPlanes or None
            None if the values are on neither.
        """
        found = [planes for planes in (cls.of_values(array), cls.of_level_values(array)) if planes is not None]
        return min(found, key=lambda planes: planes.encoding.planes, default=None)


@dataclass(frozen=True)
class DotTerms:
    """Which popcounts a dot product needs and what multiplies each; see the module's derivation.

    Attributes
    ----------
    combine : {"xor", "and"}
    plane_class : tuple of tuples
        ``plane_class[i][j]``: accumulator of activation plane i and weight plane j.  Pairs whose products of
        coefficients agree share an accumulator.
    class_multiplier : tuple
        What multiplies each accumulator; integers for integer encodings.
    activation_multiplier : tuple
        What multiplies the popcount of each activation plane.
    """

    combine: str
    plane_class: tuple[tuple[int, ...], ...]
    class_multiplier: tuple
    activation_multiplier: tuple


def dot_terms(x: Encoding, w: Encoding) -> DotTerms:
    """Terms of ``sum_k x_k w_k`` in units of both scales, constants excluded.

    Parameters
    ----------
    x, w : Encoding
        Activations and weights with coefficients of shape (P,).

    Returns
    -------
    DotTerms

    Raises
    ------
    InputError
        If the weights' coefficients differ per channel: then there is no shared multiplier.
    """
    if w.coefficients.ndim != 1 or w.offset.ndim != 0 or x.coefficients.ndim != 1 or x.offset.ndim != 0:
        raise InputError("dot_terms: coefficients per output channel have no multiplier shared by the channels")
    a, b, wo = x.coefficients.tolist(), w.coefficients.tolist(), w.offset.item()
    products = sorted({ai * bj for ai in a for bj in b})
    plane_class = tuple(tuple(products.index(ai * bj) for bj in b) for ai in a)
    symmetric = sum(b) == -2 * wo
    if wo != 0 and symmetric and (not x.is_integer or all(product % 2 == 0 for product in products)):
        halves = tuple(-(product // 2) if x.is_integer else -product / 2 for product in products)
        return DotTerms("xor", plane_class, halves, (0,) * len(a))
    return DotTerms("and", plane_class, tuple(products), tuple(wo * ai for ai in a))


def constant_terms(x: Encoding, w: BitPlanes, taps: np.ndarray | None = None) -> np.ndarray:
    """What :func:`dot_terms` leaves out: the constant of each output channel, in units of both scales.

    Parameters
    ----------
    x : Encoding
        Activations.
    w : BitPlanes
        Weights of shape (O, C, KH, KW).
    taps : boolean array of shape (KH, KW), optional
        True where the tap lies inside the image; all of them by default.  Outside taps see zero bits but must
        count as the real number zero.

    Returns
    -------
    array of shape (O,)
        int64 for integer encodings.

    Notes
    -----
    Zero bits contribute 0 to ``|X & W|`` and to ``|X|``, so with AND the constant is the sum over *inside* taps of
    ``xo * w``: taps outside vanish by themselves.  With XOR, ``|0 ^ W| = |W|`` is counted at every tap, inside or not,
    and so is the term in ``|W|`` that stands against it.
    """
    inside = np.ones(w.codes.shape[2:], bool) if taps is None else taps
    constant = (x.offset * w.encoding.units(w.codes) * inside).sum(axis=(1, 2, 3))
    terms = dot_terms(x, w.encoding)
    if terms.combine == "and":
        return constant
    weight_bits = w.planes.sum(axis=(2, 3, 4), dtype=np.int64)
    for classes in terms.plane_class:
        for j, index in enumerate(classes):
            constant = constant - terms.class_multiplier[index] * weight_bits[j]
    return constant


@dataclass(frozen=True)
class ByteTerms:
    """How a code is an unsigned byte: ``units = multiplier * (code ^ flip) + offset``; see the module's derivation.

    Attributes
    ----------
    multiplier : int
        Positive.
    flip : int
        The bits of a code that are complemented.
    offset : int
        Value of byte 0.
    """

    multiplier: int
    flip: int
    offset: int


def byte_terms(x: Encoding) -> ByteTerms | None:
    """Activations as unsigned bytes.

    Parameters
    ----------
    x : Encoding
        Any encoding.

    Returns
    -------
    ByteTerms or None
        None if the values of the codes are not the codes, up to complemented bits, times a number.
    """
    if not x.is_integer or x.coefficients.ndim != 1 or x.offset.ndim != 0 or x.planes > MAX_PLANES:
        return None
    coefficients = x.coefficients.tolist()
    multiplier = abs(coefficients[0])
    if multiplier == 0 or any(abs(a) != multiplier << plane for plane, a in enumerate(coefficients)):
        return None
    flip = sum(1 << plane for plane, a in enumerate(coefficients) if a < 0)
    return ByteTerms(multiplier, flip, int(x.offset) + sum(a for a in coefficients if a < 0))


def byte_constants(x: ByteTerms, units: np.ndarray, taps: np.ndarray | None = None) -> np.ndarray:
    """The constant that sums of products of bytes leave out, as :func:`constant_terms` is for planes.

    Parameters
    ----------
    x : ByteTerms
        Activations.
    units : int64 array of shape (O, C, KH, KW)
        Weights in units of their scale.
    taps : boolean array of shape (KH, KW), optional
        True where the tap lies inside the image; all of them by default.

    Returns
    -------
    int64 array of shape (O,)
    """
    inside = np.ones(units.shape[2:], bool) if taps is None else taps
    return x.offset * (units * inside).sum(axis=(1, 2, 3))


def border_classes(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which taps of a one-dimensional window lie inside, for every output position.

    Parameters
    ----------
    size : int
        Input length.
    kernel, stride, dilation : int
    padding : (int, int)
        Before and after.

    Returns
    -------
    (int32 array of shape (outputs,), boolean array of shape (classes, kernel))
        The class of every output position, and each class' inside taps.
    """
    outputs = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    positions = np.arange(outputs)[:, None] * stride - padding[0] + np.arange(kernel)[None, :] * dilation
    inside = (positions >= 0) & (positions < size)
    classes, index = np.unique(inside, axis=0, return_inverse=True)
    return index.reshape(-1).astype(np.int32), classes


def window_classes(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: tuple[int, int, int, int],
    dilation: Sequence[int],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """:func:`border_classes` of the rows and of the columns of an image.

    Parameters
    ----------
    size, kernel, strides, dilation : (int, int)
    padding : (top, left, bottom, right)

    Returns
    -------
    list of two pairs of arrays
    """
    top, left, bottom, right = padding
    return [
        border_classes(size[axis], kernel[axis], strides[axis], sides, dilation[axis])
        for axis, sides in enumerate(((top, bottom), (left, right)))
    ]


def border_constants(
    constant: Callable[[np.ndarray], np.ndarray], axes: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """A constant per output channel for every pair of a row class and a column class.

    Parameters
    ----------
    constant : callable
        From inside taps, boolean of shape (KH, KW), to an array of shape (O,); see :func:`constant_terms`.
    axes : two pairs of arrays
        From :func:`window_classes`.

    Returns
    -------
    array of shape (row classes, column classes, O)
        Of shape (1, 1, O) where the position makes no difference.
    """
    rows, columns = (classes for _, classes in axes)
    result = np.stack([np.stack([constant(row[:, None] & column[None, :]) for column in columns]) for row in rows])
    return result[:1, :1] if np.all(result == result[:1, :1]) else result


def dot(x: BitPlanes, w: BitPlanes) -> np.ndarray:
    """Dot products by popcounts alone, in units of both scales: the definition every kernel is tested against.

    Parameters
    ----------
    x : BitPlanes of shape (M, K)
    w : BitPlanes of shape (O, K)

    Returns
    -------
    array of shape (M, O)
        int64 when both encodings are integer, else float64.
    """
    a, b = x.encoding.coefficients, w.encoding.coefficients
    length = x.codes.shape[1]
    packed_x = [_pack(plane) for plane in x.planes]
    packed_w = [_pack(plane) for plane in w.planes]
    integer = x.encoding.is_integer and w.encoding.is_integer
    total = np.zeros((x.codes.shape[0], w.codes.shape[0]), np.int64 if integer else np.float64)
    count_w = [_popcount(words)[None, :] for words in packed_w]
    count_x = [_popcount(words)[:, None] for words in packed_x]
    xo, wo = x.encoding.offset, w.encoding.offset
    for i, words_x in enumerate(packed_x):
        for j, words_w in enumerate(packed_w):
            both = _popcount(words_x[:, None, :] & words_w[None, :, :])
            total += a[..., i] * b[..., j] * both
        total += a[..., i] * wo * count_x[i]
    for j in range(len(packed_w)):
        total += xo * b[..., j] * count_w[j]
    return total + length * xo * wo


MAX_BASIS = 4
"""Numbers of which a basis is searched for."""
# Levels are float32 sums of a few learned numbers: each has its own rounding.
LEVEL_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _Basis:
    """Coefficients and offset of an encoding, and the code of each level."""

    coefficients: tuple[float, ...]
    offset: float
    codes: tuple[int, ...]


_Levels = tuple[float, ...]
_Bases = tuple[np.ndarray, list[_Levels], list[_Basis]]


def _most_planes(bases: Sequence[_Basis]) -> int:
    return max(1, *(len(basis.coefficients) for basis in bases))


def _bases(rows: np.ndarray) -> Iterator[_Bases]:
    """(rows, levels of each row, basis of each row) with an offset of 0, then with symmetric ones."""
    levels = [tuple(np.unique(row).tolist()) for row in rows]
    if max(map(len, levels)) > MAX_LEVELS:
        return
    for form in (_and_basis, _xor_basis):
        bases = [form(row) for row in levels]
        if 2 * _most_planes(bases) <= rows.shape[1]:
            yield rows, levels, bases


@functools.lru_cache(maxsize=4096)
def _and_basis(levels: _Levels) -> _Basis:
    """The fewest planes for ascending levels, as subset sums."""
    array = np.array(levels)
    with_zero = np.union1d(array, 0.0)
    above, lowest = with_zero - with_zero[0], with_zero[0]
    basis = _subset_basis(above, LEVEL_TOLERANCE * np.abs(array).max(), min(MAX_BASIS, len(above) - 2))
    nearest = () if basis is None else _nearest_sums(array - lowest, basis).tolist()
    if basis is not None and len(set(nearest)) == len(levels):
        # The code of 0 becomes 0: planes that it contains are complemented, and their numbers negated.
        zero = int(_nearest_sums(np.array([-lowest]), basis)[0])
        signs = 1 - 2 * (zero >> np.arange(len(basis)) & 1)
        return _Basis(tuple((signs * basis).tolist()), 0.0, tuple(code ^ zero for code in nearest))
    planes = [level for level in levels if level != 0]
    return _Basis(tuple(planes), 0.0, tuple(1 << planes.index(level) if level else 0 for level in levels))


@functools.lru_cache(maxsize=4096)
def _xor_basis(levels: _Levels) -> _Basis:
    """The fewest planes for ascending levels, as sums with signs."""
    array = np.array(levels)
    magnitudes = np.unique(np.abs(array))
    tolerance = LEVEL_TOLERANCE * magnitudes[-1]
    most = len(magnitudes) - 1
    # A basis that has a level has its negative, which may stand in for one that is missing here; not with an offset.
    for mirrored, planes in ((np.union1d(array, -array), MAX_BASIS), (array, MAX_BASIS + 1)):
        largest = mirrored[-1]
        basis = _subset_basis((largest - mirrored) / 2, tolerance, min(most, planes), largest)
        if basis is None:
            continue
        signs = 2 ** len(basis) - 1 - _nearest_sums((largest - array) / 2, basis)
        if len(set(signs.tolist())) == len(levels):
            return _Basis(tuple((2 * basis).tolist()), -float(basis.sum()), tuple(signs.tolist()))
    steps = np.diff(magnitudes, prepend=-magnitudes[-1])
    ones = 2 ** (np.searchsorted(magnitudes, np.abs(array)) + 1) - 1
    signs = np.where(array < 0, 2 ** len(steps) - 1 - ones, ones)
    return _Basis(tuple(steps.tolist()), -float(magnitudes[-1]), tuple(signs.tolist()))


def _subset_basis(targets: np.ndarray, tolerance: float, most: int, total: float | None = None) -> np.ndarray | None:
    """The fewest numbers, at most ``most``, whose subset sums contain the targets and which add up to ``total``.

    Parameters
    ----------
    targets : float64 array
        Not negative; zero, the empty sum, is one of them.
    tolerance : float
    most : int
    total : float, optional
        Not demanded if left out.

    Returns
    -------
    float64 array of shape (P,) or None
        None if no basis is found.
    """
    ordered = np.sort(targets)
    different = 1 + int(np.count_nonzero(np.diff(ordered) > tolerance))

    def extended(basis: list[float], sums: np.ndarray, planes: int) -> list[float] | None:
        searched = min(planes, MAX_BASIS)
        distances = np.abs(ordered[:, None] - sums[None, :]).min(axis=1)
        missing = np.flatnonzero(distances > tolerance)
        if not missing.size:
            rest = 0.0 if total is None else total - sum(basis)
            if abs(rest) <= tolerance:
                return basis
            return [*basis, rest] if len(basis) < planes else None
        unused = len(sums) - (len(ordered) - missing.size)  # every further plane leaves at least as many
        if len(basis) == searched or unused > 2**searched - different:
            return None
        for known in sums:
            new = float(ordered[missing[0]] - known)
            found = extended([*basis, new], np.concatenate([sums, sums + new]), planes)
            if found is not None:
                return found
        return None

    for planes in range((different - 1).bit_length(), most + 1):
        found = extended([], np.zeros(1), planes)
        if found is not None:
            return np.array(found)
    return None


def _nearest_sums(targets: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """For each target the nearest subset sum; bit j of the answer says whether it contains number j."""
    sums = np.zeros(1)
    for number in basis:
        sums = np.concatenate([sums, sums + number])
    return np.abs(targets[:, None] - sums[None, :]).argmin(axis=1)


@dataclass(frozen=True, eq=False)
class BasisTerms:
    """A product of learned encodings as weighted sums of exact integers, without the offset of the activations.

    ``y = sum_j weight_basis[j] * (sum_i activation_basis[i] * S_ij)``, where ``S_ij`` is ``|X_i & W_j|`` for "and" and
    ``|W_j| - |X_i ^ W_j| = sum_k X_ik (2 W_jk - 1)`` for "xor": bits of ±1, as in LQ-Nets.

    Attributes
    ----------
    combine : {"xor", "and"}
    codes : uint8 or uint16 array
        Of the weights; their last plane is constantly one where their offset needs it.
    activation_basis : float32 of shape (P,)
    weight_basis : float32 of shape (Pw, O)
    """

    combine: str
    codes: np.ndarray
    activation_basis: np.ndarray
    weight_basis: np.ndarray


def basis_terms(x: Encoding, w: BitPlanes) -> BasisTerms | None:
    """How to multiply codes when an encoding is learned, or its coefficients differ per output channel.

    Parameters
    ----------
    x : Encoding
        Activations.
    w : BitPlanes
        Weights of shape (O, ...).

    Returns
    -------
    BasisTerms or None
        None if the coefficients of the activations differ per channel, or the weights' offset needs a 17th plane.
    """
    if x.coefficients.ndim != 1 or x.offset.ndim or x.scale.ndim:
        return None
    channels = len(w.codes)
    scale = np.broadcast_to(w.encoding.scale.astype(np.float64), (channels,))
    rows = np.broadcast_to(w.encoding.coefficients, (channels, w.encoding.planes)) * scale[:, None]
    offset = np.broadcast_to(w.encoding.offset, (channels,)) * scale
    activation = (x.coefficients * x.scale.astype(np.float64)).astype(np.float32)
    if not offset.any():
        return BasisTerms("and", w.codes, activation, rows.T.astype(np.float32))
    if np.all(np.abs(offset + rows.sum(axis=1) / 2) <= LEVEL_TOLERANCE * np.abs(rows).sum(axis=1)):
        return BasisTerms("xor", w.codes, activation, (rows.T / 2).astype(np.float32))
    planes = w.encoding.planes
    if planes == MAX_WEIGHT_PLANES:
        return None
    codes = w.codes.astype(np.uint8 if planes < MAX_PLANES else np.uint16)
    codes |= codes.dtype.type(1 << planes)
    return BasisTerms("and", codes, activation, np.concatenate([rows.T, offset[None]]).astype(np.float32))


def offset_terms(x: Encoding, w: BitPlanes, taps: np.ndarray | None = None) -> np.ndarray:
    """What :func:`basis_terms` leaves out: ``xo sum_k w_k`` over the taps inside the image, in units of 1.

    Parameters
    ----------
    x : Encoding
        Activations.
    w : BitPlanes
        Weights of shape (O, C, KH, KW).
    taps : boolean array of shape (KH, KW), optional
        True where the tap lies inside the image; all of them by default.

    Returns
    -------
    float64 array of shape (O,)
    """
    inside = np.ones(w.codes.shape[2:], bool) if taps is None else taps
    sums = (w.encoding.units(w.codes) * inside).sum(axis=(1, 2, 3))
    scale = x.scale.astype(np.float64) * w.encoding.scale.astype(np.float64)
    return x.offset * scale * sums + 0.0  # -0.0 becomes 0.0


MAX_MULTIPLE = 128
# Float32 rounding of a product of a unit and a multiple, and of the quotient that finds the unit.
UNIT_TOLERANCE = 2.0**-22


def _units(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Candidate units, float32 of shape (O,): one for the whole tensor, then one per row, where they exist."""
    levels = np.unique(np.abs(rows))
    if len(levels) <= MAX_MULTIPLE + 1:
        unit = _unit(levels)
        if unit is not None:
            yield np.full(len(rows), unit, np.float32)
    units = []
    for row in rows:
        levels = np.unique(np.abs(row))
        unit = _unit(levels) if len(levels) <= MAX_MULTIPLE + 1 else None
        if unit is None:
            return
        units.append(unit)
    yield np.array(units, np.float32)


def _unit(magnitudes: np.ndarray) -> float | None:
    """The largest unit of which all magnitudes (ascending) are integer multiples; None if there is none."""
    largest = float(magnitudes[-1])
    if largest == 0:  # a dead channel: any unit is right
        return 1.0
    units = largest / np.arange(1, MAX_MULTIPLE + 1)
    multiples = magnitudes.astype(np.float64)[None, :] / units[:, None]
    errors = np.abs(multiples - np.round(multiples))
    fits = np.all(errors <= UNIT_TOLERANCE * np.maximum(multiples, 1), axis=1)
    return float(units[fits.argmax()]) if fits.any() else None


def _smallest_alphabet(multiples: np.ndarray) -> tuple[Encoding, np.ndarray] | None:
    """The alphabet of the fewest planes that holds all the integers, and their codes; symmetric ones first."""
    levels = np.unique(multiples)
    basis = _integer_basis(levels)
    for planes in range(1, MAX_PLANES + 1):
        candidates = [Encoding.equispaced(planes)]
        if planes == 2:
            candidates.append(Encoding.ternary())
        candidates += [Encoding.unsigned(planes), Encoding.twos_complement(planes)]
        for encoding in candidates:
            units = encoding.units(np.arange(2**planes, dtype=np.uint8))
            if np.isin(levels, units).all():
                order = np.argsort(units, kind="stable")
                positions = np.searchsorted(units[order], multiples)
                return encoding, order[positions].astype(np.uint8)
        if basis is not None and basis[0].planes == planes:
            return basis[0], basis[1][np.searchsorted(levels, multiples)]
    return None


def _integer_basis(levels: np.ndarray) -> tuple[Encoding, np.ndarray] | None:
    """An encoding of at most 16 integers that are sums of fewer, such as powers of two, and the code of each level."""
    if len(levels) > MAX_LEVELS:
        return None
    basis = min((form(tuple(levels.tolist())) for form in (_and_basis, _xor_basis)), key=lambda b: len(b.coefficients))
    if not 1 <= len(basis.coefficients) <= MAX_PLANES:
        return None
    # In halves of the unit the coefficients of a symmetric basis are even, which the XOR of dot_terms needs.
    parts = 1 if basis.offset == 0 else 2
    coefficients, offset = (
        np.round(parts * np.array(number)).astype(np.int64) for number in (basis.coefficients, basis.offset)
    )
    return Encoding(coefficients, offset, np.array(1 / parts)), np.array(basis.codes, np.uint8)


def _pack(plane: np.ndarray) -> np.ndarray:
    return np.packbits(plane, axis=-1, bitorder="little")


def _popcount(words: np.ndarray) -> np.ndarray:
    return np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
