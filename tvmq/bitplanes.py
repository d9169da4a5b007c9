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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tvmq.errors import InputError

__all__ = [
    "BasisTerms",
    "BitPlanes",
    "DotTerms",
    "Encoding",
    "basis_terms",
    "border_classes",
    "constant_terms",
    "dot",
    "dot_terms",
]

MAX_PLANES = 8


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
        If there are no planes or more than eight, if the kinds differ, or if a number is not finite.
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
        if self.coefficients.ndim not in (1, 2) or not 1 <= self.planes <= MAX_PLANES:
            raise InputError(f"encoding: 1 to {MAX_PLANES} planes are possible, got shape {self.coefficients.shape}")
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
        """A learned encoding of levels that are the sums of all subsets of a few positive numbers, above the first.

        Parameters
        ----------
        levels : ascending floats
            2, 4, 8 or 16 of them.

        Returns
        -------
        (Encoding, uint8 array) or None
            The code of each level; None when there is no such basis.
        """
        levels = np.asarray(levels, np.float64)
        found = _subset_basis(levels - levels[0], 1e-6 * np.abs(levels).max())
        if found is None or 2 ** len(found[0]) != len(levels):
            return None
        return cls.learned(found[0], levels[0]), found[1]

    @classmethod
    def of_levels(cls, levels: Sequence[float] | np.ndarray) -> tuple[Encoding, np.ndarray] | None:
        """An integer encoding whose values are the given equispaced levels.

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


def _leading(array: np.ndarray, ndim: int) -> np.ndarray:
    """Shape () stays, shape (O,) becomes (O, 1, ..)."""
    return array if array.ndim == 0 else array.reshape(-1, *([1] * (ndim - 1)))


@dataclass(frozen=True, eq=False)
class BitPlanes:
    """A quantized tensor: codes and what their bits mean.

    Parameters
    ----------
    codes : uint8 array of any shape
        Bit i of a code is the element's bit in plane i.
    encoding : Encoding
    """

    codes: np.ndarray
    encoding: Encoding

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8:
            raise InputError(f"bit planes: codes must be uint8, got {self.codes.dtype}")
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
            In the alphabet of the fewest planes that holds all values; values agree to float32 rounding.  None if
            the values are not finite or not multiples up to 128 of a unit.
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
                best = cls(codes.reshape(array.shape), dataclasses.replace(encoding, scale=np.float32(shared)))
        return best

    @classmethod
    def of_basis_values(cls, array: np.ndarray) -> BitPlanes | None:
        """Bit planes of a tensor whose levels in each output channel are ``sum_j v_j e_j`` with signs e_j.

        Parameters
        ----------
        array : float32 of shape (O, ...)

        Returns
        -------
        BitPlanes or None
            With one learned basis per channel, of at most four planes; None if a channel has more levels, or its
            smallest and largest are not opposite.
        """
        rows = array.reshape(len(array), -1).astype(np.float64)
        if not rows.size or not np.isfinite(rows).all():
            return None
        bases, codes = np.zeros((len(rows), MAX_BASIS)), np.zeros(rows.shape, np.uint8)
        for channel, row in enumerate(rows):
            levels, positions = np.unique(row, return_inverse=True)
            tolerance = 1e-6 * np.abs(levels).max()
            if len(levels) > 2**MAX_BASIS or abs(levels[0] + levels[-1]) > tolerance:
                return None
            found = _subset_basis(levels - levels[0], tolerance)
            if found is None:
                return None
            bases[channel, : len(found[0])] = found[0]
            codes[channel] = found[1][positions.reshape(-1)]
        planes = max(1, int(np.flatnonzero(bases.any(axis=0)).max(initial=0)) + 1)
        basis = bases[:, :planes]
        return cls(codes.reshape(array.shape), Encoding.learned(basis, -basis.sum(axis=1) / 2))


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


def _subset_basis(levels: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray] | None:
    """A basis of positive floats whose subset sums contain the ascending levels, and each level's code.

    The smallest level that is no sum of the basis so far must be its next element.
    """
    basis: list[float] = []
    sums = np.zeros(1)
    while True:
        distance = np.abs(levels[:, None] - sums[None, :])
        missing = distance.min(axis=1) > tolerance
        if not missing.any():
            return np.array(basis), distance.argmin(axis=1).astype(np.uint8)
        if len(basis) == MAX_BASIS:
            return None
        basis.append(float(levels[missing.argmax()]))
        sums = np.concatenate([sums, sums + basis[-1]])


@dataclass(frozen=True, eq=False)
class BasisTerms:
    """A product of learned encodings as weighted sums of exact integers.

    ``y = sum_j weight_basis[j] * (sum_i activation_basis[i] * S_ij)``, where ``S_ij`` is ``|X_i & W_j|`` for "and" and
    ``|W_j| - |X_i ^ W_j| = sum_k X_ik (2 W_jk - 1)`` for "xor": bits of ±1, as in LQ-Nets.

    Attributes
    ----------
    combine : {"xor", "and"}
    activation_basis : float32 of shape (P,)
    weight_basis : float32 of shape (Pw, O)
    """

    combine: str
    activation_basis: np.ndarray
    weight_basis: np.ndarray


def basis_terms(x: Encoding, w: Encoding, channels: int) -> BasisTerms | None:
    """How to multiply codes when an encoding is learned, or its coefficients differ per output channel.

    Parameters
    ----------
    x, w : Encoding
        Activations whose code 0 is the number 0, and weights.
    channels : int
        Output channels O.

    Returns
    -------
    BasisTerms or None
        None if code 0 of the activations is not 0, or the weights are neither symmetric around 0 nor 0 at code 0.
    """
    if x.coefficients.ndim != 1 or np.any(x.offset != 0):
        return None
    scale = np.broadcast_to(w.scale.astype(np.float64), (channels,))
    rows = np.broadcast_to(w.coefficients, (channels, w.planes)) * scale[:, None]
    offset = np.broadcast_to(w.offset, (channels,)) * scale
    activation = (x.coefficients * x.scale.astype(np.float64)).astype(np.float32)
    if not offset.any():
        return BasisTerms("and", activation, rows.T.astype(np.float32))
    if np.all(np.abs(offset + rows.sum(axis=1) / 2) <= 1e-6 * np.abs(rows).sum(axis=1)):
        return BasisTerms("xor", activation, (rows.T / 2).astype(np.float32))
    return None


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
    return None


def _pack(plane: np.ndarray) -> np.ndarray:
    return np.packbits(plane, axis=-1, bitorder="little")


def _popcount(words: np.ndarray) -> np.ndarray:
    return np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
