"""What a bit-serial kernel computes, as plain data.

A :class:`Conv2dWorkload` holds everything that is known at compile time about one fused convolution except the
batch size.  Its JSON text is the operator attribute, the name of a kernel in a tuning record, and the only thing a
schedule needs to know about a function.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from tvmq.target import ARM_TABLE_LAYOUT, TABLE_LAYOUTS

__all__ = [
    "BYTES_PER_STEP",
    "DEPTH_LANES",
    "Affine",
    "Conv2dWorkload",
    "Depth",
    "Dot",
    "Epilogue",
    "Float",
    "Integer",
    "Table",
    "Thresholds",
    "dot_form",
    "index_bits",
    "most_lookups",
    "padded_bytes",
    "table_indices",
]

MAX_BYTE_STEPS = 31
"""Popcounts of bytes (each at most 8) that a ``uint8`` sum can hold: 31 * 8 = 248."""
BYTES_PER_STEP = 4
"""Products of bytes that one dot product instruction adds to each lane."""
STEPS_PER_LOAD = 4
"""Such steps that a signed product reads at once: 16 bytes, a vector register of ARM."""
SIGN_BIT = 128
"""What an activation of 8 bits is lowered by where both operands of a product are signed."""
DEPTH_LANES = 8
"""Output channels whose sums of 16 bits fill a vector."""
MAX_TABLE_BITS = 4
"""Bits of activations of which two bytes of weights select a sum that fits in a byte: 2 * 8 * 15 = 240."""


@dataclass(frozen=True)
class Thresholds:
    """Epilogue that turns the integer result into a code and packs the bits of the code.

    Attributes
    ----------
    count : int
        Number of thresholds T, which ascend; the index is the number of thresholds that the result reaches.
    codes : tuple of int
        The code of each index, T + 1 of them.
    planes : int
        Number of bit planes of a code; plane p is bit p.
    form : {"planes", "bytes"}
        Whether the output holds bit planes, or one byte for each channel.
    arithmetic : {"compare", "float32", "float64"}
        How the index is found: by a comparison with each threshold, or as ``slope * result + intercept`` rounded down,
        from 0 to T, computed in that type with one rounding.
    """

    count: int
    codes: tuple[int, ...]
    planes: int
    form: str = "planes"
    arithmetic: str = "compare"

    def __post_init__(self) -> None:
        """Check the table of codes."""
        object.__setattr__(self, "codes", tuple(int(code) for code in self.codes))
        if self.count < 1:
            raise ValueError(f"a threshold epilogue needs at least one threshold, got {self.count}")
        if not 1 <= self.planes <= 8:
            raise ValueError(f"codes have 1 to 8 bit planes, got {self.planes}")
        if len(self.codes) != self.count + 1:
            raise ValueError(f"{self.count} thresholds need {self.count + 1} codes, got {len(self.codes)}")
        if any(not 0 <= code < 2**self.planes for code in self.codes):
            raise ValueError(f"codes {self.codes} do not fit in {self.planes} bit planes")
        if self.form not in ("planes", "bytes"):
            raise ValueError(f"codes are written as 'planes' or 'bytes', not {self.form!r}")
        if self.arithmetic not in ("compare", "float32", "float64"):
            raise ValueError(f"unknown arithmetic {self.arithmetic!r}")


@dataclass(frozen=True)
class Integer:
    """Epilogue that adds an int32 bias and stores int32."""


@dataclass(frozen=True)
class Affine:
    """Epilogue that adds an int32 bias, converts to float32, and applies one fused multiply-add per channel.

    The same as ``Float("affine", False, True, None)``.
    """


@dataclass(frozen=True)
class Float:
    """Epilogue in float32, every step rounded once, so that all targets agree bit for bit.

    Attributes
    ----------
    combine : {"affine", "basis"}
        "affine" adds an int32 bias, converts to float32, and applies one fused multiply-add per channel.  "basis"
        weighs every plane pair with learned bases: the sum ``S_ij = float32(base_j + sign * R_ij)`` of a pair is an
        exact integer, ``t_j`` sums ``activation_basis_i * S_ij`` in the order of i, and the result is the bias plus
        the sum of ``weight_basis_j * t_j`` in the order of j; all but the first product are fused multiply-adds.
    shortcut : bool
        Whether a float32 image of the output's shape is added to the result.
    store : bool
        Whether the result is the first output.
    thresholds : Thresholds or None
        Whether the packed codes of the result are the last output.  A threshold counts as reached where
        ``direction * result >= threshold``, never for NaN.

    Raises
    ------
    ValueError
        If `combine` is unknown, or if there is no output.
    """

    combine: str
    shortcut: bool
    store: bool
    thresholds: Thresholds | None

    def __post_init__(self) -> None:
        """Check that there is something to compute and to write."""
        if self.combine not in ("affine", "basis"):
            raise ValueError(f"combine must be 'affine' or 'basis', got {self.combine!r}")
        if self.thresholds is not None and not isinstance(self.thresholds, Thresholds):
            raise ValueError(f"thresholds must be Thresholds or None, got {self.thresholds!r}")
        if self.thresholds is not None and self.thresholds.arithmetic != "compare":
            raise ValueError("numbers in float32 are compared with their thresholds")
        if not self.store and self.thresholds is None:
            raise ValueError("a float epilogue must store its result or have thresholds")


Epilogue = Thresholds | Integer | Affine | Float


@dataclass(frozen=True)
class Dot:
    """What is particular to products of bytes.

    Attributes
    ----------
    activation_bits, weight_bits : int
        Bits that the two operands have in the network; here both take a byte.
    pair_bound : int
        The largest magnitude of the sum of two products that an instruction adds in 16 bits: neighbouring ones, or in
        the form "pairs" those of bytes 0 and 2, and 1 and 3, of a step.
    gathered : bool
        Whether the kernel copies each window to one run of bytes first.  Pixels then have no padding channels: words
        are filled across the taps of a window.
    form : {"mixed", "signed", "pairs"}
        "mixed" multiplies unsigned activations by signed weights.  "signed" has instructions for two signed operands:
        an activation B of fewer than 8 bits is the same as a signed byte, and one of 8 bits counts as ``B - 128``,
        which is its byte with the sign bit turned over; so does the padding.  "pairs" is the same with the four bytes
        of a step stored two by two, each pair for four channels.
    """

    activation_bits: int
    weight_bits: int
    pair_bound: int
    gathered: bool = False
    form: str = "mixed"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.activation_bits <= 8 or not 1 <= self.weight_bits <= 16:
            bits = f"{self.activation_bits} and {self.weight_bits}"
            raise ValueError(f"activations have 1 to 8 bits and weights 1 to 16, got {bits}")
        if not 0 <= self.pair_bound <= 2 * 255 * 128:
            raise ValueError(f"two products of bytes are at most {2 * 255 * 128}, got {self.pair_bound}")
        if self.form not in ("mixed", "signed", "pairs"):
            raise ValueError(f"products of bytes are 'mixed', 'signed' or 'pairs', not {self.form!r}")

    @property
    def shift(self) -> int:
        """What every activation, and the padding, is lowered by before it is multiplied."""
        return SIGN_BIT if self.form != "mixed" and self.activation_bits == 8 else 0

    @property
    def magnitude(self) -> int:
        """The largest magnitude of an activation as it is multiplied."""
        return SIGN_BIT if self.shift else 2**self.activation_bits - 1


def dot_form(instruction: str | None) -> str:
    """The form of products of bytes that an instruction of a core computes.

    Parameters
    ----------
    instruction : str or None
        The ``dot`` of a target.

    Returns
    -------
    form : {"mixed", "signed", "pairs"}
        See :class:`Dot`.
    """
    return {"sdot": "signed", "smull": "pairs"}.get(instruction or "", "mixed")


@dataclass(frozen=True)
class Table:
    """What is particular to sums of bytes that weights of one bit select, looked up in tables.

    Attributes
    ----------
    activation_bits : int
        Bits of an activation, which takes a byte.
    bound : int
        The largest sum of selected activations that any output channel can have.  Where words have 8 bits, accumulators
        hold 16 bits; otherwise 32.
    """

    activation_bits: int
    bound: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.activation_bits <= MAX_TABLE_BITS:
            raise ValueError(f"tables are of 1 to {MAX_TABLE_BITS} bits of activations, got {self.activation_bits}")
        if not 0 <= self.bound < 2**31:
            raise ValueError(f"sums of looked up numbers are at most {2**31 - 1}, got {self.bound}")


@dataclass(frozen=True)
class Depth:
    """What is particular to vectors that lie along the depth, see :mod:`tvmq.kernels.depth`.

    Attributes
    ----------
    step : {2, 4, 8, 16}
        Bytes of each output channel in one vector.
    words : int
        Bytes of a pixel and plane as the reduction reads them: whole steps, what is missing is zero.
    spread : bool
        Whether the kernel first copies the bytes of each step of a pixel until they fill a vector, rather than to load
        them into a vector so many times.
    """

    step: int
    words: int
    spread: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.step not in (2, 4, 8, 16):
            raise ValueError(f"steps along the depth take 2, 4, 8 or 16 bytes, not {self.step}")
        if self.words < 1 or self.words % self.step:
            raise ValueError(f"{self.words} bytes are not whole steps of {self.step}")
        if self.spread and self.step == 16:
            raise ValueError("steps of 16 bytes fill a vector as they are")


def padded_bytes(channels: int) -> int:
    """Bytes that hold some channels: whole steps of a dot product instruction.

    Parameters
    ----------
    channels : int
        Number of channels.

    Returns
    -------
    length : int
        The next multiple of `BYTES_PER_STEP`.
    """
    return -(-channels // BYTES_PER_STEP) * BYTES_PER_STEP


def index_bits(word_bits: int, lanes: int) -> int:
    """One-bit weights that one lookup in a table takes.

    Parameters
    ----------
    word_bits, lanes : int
        Bits of a word of bit planes, and output channels of a vector.

    Returns
    -------
    bits : {4, 5}
        5 on 64-bit ARM, see :mod:`tvmq.kernels.quintets`; elsewhere 4, see :mod:`tvmq.kernels.tables`.
    """
    return 5 if (word_bits, lanes) == ARM_TABLE_LAYOUT else 4


def most_lookups(activation_bits: int) -> int:
    """Sums of five activations that a byte can sum."""
    return 255 // (5 * (2**activation_bits - 1))


def table_indices(channels: int) -> int:
    """Indices of five bits that hold the weights of one output channel and tap.

    Parameters
    ----------
    channels : int
        Input channels.

    Returns
    -------
    count : int
        Even, and at least 8: tables are made of half a pixel, whose activations are read 16 at a time.
    """
    return max(8, -(-channels // 10) * 2)


def _integers(name: str, values: Any, length: int) -> tuple[int, ...]:
    result = tuple(int(value) for value in values)
    if len(result) != length:
        raise ValueError(f"{name} needs {length} integers, got {result}")
    return result


@dataclass(frozen=True)
class Conv2dWorkload:
    """One convolution over packed codes with its epilogue.

    A dense layer is a 1x1 convolution over an image of one row, one pixel per sample.

    Codes are packed as bit planes, many channels to a word, or as bytes, one channel to a byte; in sums of products of
    bytes (``combine="dot"``) both operands have one "plane" and a word is a byte.  In sums of bytes that bits select
    (``combine="table"``) activations have one "plane" of bytes, and weights one of words of bits.

    Attributes
    ----------
    height, width : int
        Size of the input image, without padding.
    in_channels, out_channels : int
        Channels before packing.
    kernel, strides, dilation : tuple of int
        (rows, columns).
    padding : tuple of int
        (top, left, bottom, right); padding inserts zero words.
    activation_planes, weight_planes : int
        Bit planes of each operand.
    combine : {"xor", "and", "dot", "table"}
        How an activation word meets a weight word: popcount of either, product of an unsigned and a signed byte, or
        activations of four channels looked up by four bits of weights.
    plane_class : tuple of tuple of int
        ``plane_class[i][j]`` is the class whose popcount sum the pair (activation i, weight j) belongs to.
    class_multiplier : tuple of int
        Factor of each class in the result.
    activation_multiplier : tuple of int
        Factor of the popcount of activation plane i over the window, or of the sum of its bytes.
    row_classes, col_classes : int
        Number of border classes of output rows and columns; 1 and 1 when the constants do not depend on position.
    word_bits : {8, 32}
        Bits of a word of bit planes.
    lanes : int
        Output channels of one vector.
    epilogue : Thresholds or Integer or Affine or Float
        What happens to the integer result.
    dot : Dot or None
        More about products of bytes; otherwise None.
    table : Table or None
        More about lookups in tables; otherwise None.
    depth : Depth or None
        More about vectors along the depth; None where vectors lie across output channels.

    Raises
    ------
    ValueError
        If a field is out of range or two fields contradict each other.
    """

    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    activation_planes: int
    weight_planes: int
    combine: str
    plane_class: tuple[tuple[int, ...], ...]
    class_multiplier: tuple[int, ...]
    activation_multiplier: tuple[int, ...]
    row_classes: int
    col_classes: int
    word_bits: int
    lanes: int
    epilogue: Epilogue
    dot: Dot | None = None
    table: Table | None = None
    depth: Depth | None = None

    def __post_init__(self) -> None:
        """Normalise sequences to tuples of int and check every field."""
        set_field = object.__setattr__
        for name, length in (("kernel", 2), ("strides", 2), ("dilation", 2), ("padding", 4)):
            set_field(self, name, _integers(name, getattr(self, name), length))
        planes, weight_planes = self.activation_planes, self.weight_planes
        set_field(self, "plane_class", tuple(_integers("plane_class", r, weight_planes) for r in self.plane_class))
        set_field(self, "class_multiplier", tuple(int(m) for m in self.class_multiplier))
        set_field(self, "activation_multiplier", _integers("activation_multiplier", self.activation_multiplier, planes))
        self._check_geometry()
        self._check_planes()

    def _check_geometry(self) -> None:
        sizes = (self.height, self.width, self.in_channels, self.out_channels, *self.kernel, *self.strides)
        if min(*sizes, *self.dilation) < 1:
            raise ValueError(f"sizes, strides and dilation must be positive: {self}")
        if min(self.padding) < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")
        if self.out_height < 1 or self.out_width < 1:
            raise ValueError(f"the kernel {self.kernel} does not fit in the padded image: {self}")
        if not 1 <= self.row_classes <= self.out_height:
            raise ValueError(f"row_classes must be 1 to {self.out_height}, got {self.row_classes}")
        if self.col_classes < 1:
            raise ValueError(f"col_classes must be positive, got {self.col_classes}")
        if self.word_bits not in (8, 32):
            raise ValueError(f"word_bits must be 8 or 32, got {self.word_bits}")
        if self.lanes not in (8, 16, 32, 64):
            raise ValueError(f"lanes must be 8, 16, 32 or 64, got {self.lanes}")

    def _check_planes(self) -> None:
        if not 1 <= self.activation_planes <= 8 or not 1 <= self.weight_planes <= 16:
            planes = f"{self.activation_planes} and {self.weight_planes}"
            raise ValueError(f"activations have 1 to 8 planes and weights 1 to 16, got {planes}")
        if self.combine not in ("xor", "and", "dot", "table"):
            raise ValueError(f"combine must be 'xor', 'and', 'dot' or 'table', got {self.combine!r}")
        if (self.combine == "dot") != isinstance(self.dot, Dot):
            raise ValueError(f"combine {self.combine!r} does not go with {self.dot!r}")
        if (self.combine == "table") != isinstance(self.table, Table):
            raise ValueError(f"combine {self.combine!r} does not go with {self.table!r}")
        if self.dot and (self.activation_planes, self.weight_planes, any(self.activation_multiplier)) != (1, 1, False):
            raise ValueError("products of bytes have one plane per operand and no sum of activations")
        if self.table is not None:
            self._check_table(self.table)
        if self.depth is not None:
            self._check_depth(self.depth)
        if len(self.plane_class) != self.activation_planes:
            raise ValueError(f"plane_class needs {self.activation_planes} rows, got {len(self.plane_class)}")
        used = {index for row in self.plane_class for index in row}
        if used != set(range(len(self.class_multiplier))):
            raise ValueError(f"plane_class uses classes {sorted(used)} of {len(self.class_multiplier)} multipliers")
        if not isinstance(self.epilogue, Thresholds | Integer | Affine | Float):
            raise ValueError(f"unknown epilogue {self.epilogue!r}")
        if isinstance(self.epilogue, Float) and self.epilogue.combine == "basis":
            self._check_basis()

    def _check_table(self, table: Table) -> None:
        if (self.activation_planes, self.weight_planes) != (1, 1):
            raise ValueError("lookups in tables have one plane per operand")
        known = (*TABLE_LAYOUTS, ARM_TABLE_LAYOUT)
        if (self.word_bits, self.lanes) not in known:
            layouts = " or ".join(f"{lanes} words of {bits} bits" for bits, lanes in known)
            raise ValueError(f"lookups in tables need vectors of {layouts}, not {self.lanes} of {self.word_bits}")
        if self.word_bits == 8 and table.bound >= 2**16:
            raise ValueError(f"sums looked up by words of 8 bits are at most {2**16 - 1}, got {table.bound}")

    def _check_depth(self, depth: Depth) -> None:
        if self.combine not in ("xor", "and"):
            raise ValueError(f"vectors along the depth do not go with combine {self.combine!r}")
        if (self.word_bits, self.lanes) != (8, DEPTH_LANES):
            layout = f"{self.word_bits} bits and {self.lanes} lanes"
            raise ValueError(f"vectors along the depth need words of 8 bits and {DEPTH_LANES} lanes, got {layout}")
        if depth.words < self.in_words:
            raise ValueError(f"{depth.words} bytes of depth do not hold {self.in_channels} channels")
        if self.class_bound >= 2**16:
            raise ValueError(f"sums along the depth are at most {2**16 - 1}, got {self.class_bound}")

    def _check_basis(self) -> None:
        if not self.pairs_are_classes:
            raise ValueError(f"learned bases need a class per plane pair, got {self.plane_class}")
        if set(self.class_multiplier) not in ({1}, {-1}):
            raise ValueError(f"learned bases need multipliers that are all 1 or all -1, got {self.class_multiplier}")
        if self.reads_bytes:
            raise ValueError("learned bases have no products of bytes")
        if self.needs_activation_sum:
            raise ValueError(f"learned bases need no sum of activations, got {self.activation_multiplier}")

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        top, _, bottom, _ = self.padding
        return (self.height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        _, left, _, right = self.padding
        return (self.width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.strides[1] + 1

    @property
    def in_words(self) -> int:
        """Words (or bytes) that hold the channels of one input pixel and plane."""
        if not self.reads_bytes:
            return -(-self.in_channels // self.word_bits)
        gathered = self.dot is not None and self.dot.gathered
        return self.in_channels if gathered else padded_bytes(self.in_channels)

    @property
    def reads_bytes(self) -> bool:
        """Whether the codes of the input are bytes."""
        return self.dot is not None or self.table is not None

    @property
    def has_quintets(self) -> bool:
        """Whether sums are looked up for five channels at a time, in tables of 32 entries."""
        return self.table is not None and index_bits(self.word_bits, self.lanes) == 5

    @property
    def padded_words(self) -> int:
        """Words (or bytes) of one input pixel and plane that the reduction reads; those after `in_words` are zero."""
        if self.table is not None:  # tables are made of all channels of the words of weights
            return self.weight_words * self.channels_per_word
        return self.in_words if self.depth is None else self.depth.words

    @property
    def class_bound(self) -> int:
        """The largest popcount sum of a class."""
        return self.kernel[0] * self.kernel[1] * self.in_words * self.word_bits * self.pairs_per_class

    @property
    def channels_per_word(self) -> int:
        """Input channels whose bits a word of weights holds."""
        return index_bits(self.word_bits, self.lanes) if self.has_quintets else self.word_bits

    @property
    def weight_words(self) -> int:
        """Words that hold the bits of one output channel, tap and plane of the weights; five in a byte for quintets."""
        if self.has_quintets:
            return table_indices(self.in_channels)
        return -(-self.in_channels // self.word_bits)

    @property
    def window_bytes(self) -> int:
        """Bytes that a gathered window takes."""
        return padded_bytes(self.kernel[0] * self.kernel[1] * self.in_channels)

    @property
    def out_words(self) -> int:
        """Words (or bytes) that hold the channels of one output pixel and plane."""
        if self.writes_bytes:
            return padded_bytes(self.out_channels)
        return -(-self.out_channels // self.word_bits)

    @property
    def writes_bytes(self) -> bool:
        """Whether the codes of the output are bytes."""
        return self.thresholds is not None and self.thresholds.form == "bytes"

    @property
    def group_channels(self) -> int:
        """Channels that fill both whole vectors and, where there are some, whole words."""
        if self.dot is not None and (self.thresholds is None or self.writes_bytes):
            return self.lanes
        return math.lcm(self.lanes, self.word_bits)

    @property
    def out_channels_padded(self) -> int:
        """Output channels of the packed weights and of the constants; the surplus weights are zero."""
        return -(-self.out_channels // self.group_channels) * self.group_channels

    @property
    def classes(self) -> int:
        """Number of popcount sums per output."""
        return len(self.class_multiplier)

    @property
    def pairs_per_class(self) -> int:
        """The most plane pairs that one class sums."""
        members = [index for row in self.plane_class for index in row]
        return max(members.count(index) for index in range(self.classes))

    @property
    def pairs_are_classes(self) -> bool:
        """Whether every plane pair is a class of its own, in row-major order."""
        flat = tuple(index for row in self.plane_class for index in row)
        return flat == tuple(range(len(flat)))

    @property
    def has_border_classes(self) -> bool:
        """Whether the constants depend on the position of the output pixel."""
        return self.row_classes * self.col_classes > 1

    @property
    def needs_activation_sum(self) -> bool:
        """Whether the result contains popcounts of the activations alone."""
        return any(self.activation_multiplier)

    @property
    def is_dense(self) -> bool:
        """Whether this is a dense layer: one pixel here, one per sample where it is called."""
        return self.kernel == (1, 1) and (self.height, self.width) == (1, 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolution for one image, not multiplied by the planes."""
        window = self.kernel[0] * self.kernel[1] * self.in_channels
        return self.out_height * self.out_width * self.out_channels * window

    @property
    def word_dtype(self) -> str:
        """Data type of a word of bit planes."""
        return f"uint{self.word_bits}"

    @property
    def data_dtype(self) -> str:
        """Data type of the packed activations."""
        return "uint8" if self.reads_bytes else self.word_dtype

    @property
    def weight_dtype(self) -> str:
        """Data type of the packed weights."""
        return self.word_dtype if self.dot is None else "int8"

    @property
    def codes_dtype(self) -> str:
        """Data type of the packed codes of the output."""
        return "uint8" if self.writes_bytes else self.word_dtype

    @property
    def float_epilogue(self) -> Float | None:
        """The epilogue in its general form if it computes in float32."""
        if isinstance(self.epilogue, Affine):
            return Float("affine", shortcut=False, store=True, thresholds=None)
        return self.epilogue if isinstance(self.epilogue, Float) else None

    @property
    def thresholds(self) -> Thresholds | None:
        """The thresholds that make packed codes, of integers or of float32 numbers."""
        if isinstance(self.epilogue, Thresholds):
            return self.epilogue
        return self.epilogue.thresholds if isinstance(self.epilogue, Float) else None

    @property
    def out_dtypes(self) -> tuple[str, ...]:
        """Data types of the outputs: numbers, then packed codes."""
        if isinstance(self.epilogue, Integer):
            return ("int32",)
        numbers = ("float32",) if self.float_epilogue is not None and self.float_epilogue.store else ()
        return numbers if self.thresholds is None else (*numbers, self.codes_dtype)

    @property
    def out_dtype(self) -> str:
        """Data type of the first output."""
        return self.out_dtypes[0]

    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights."""
        blocks = self.out_channels_padded // self.lanes
        if self.depth is not None:
            steps = self.depth.words // self.depth.step
            return (blocks, *self.kernel, self.weight_planes, steps, self.lanes, self.depth.step)
        if self.dot is None:
            return (blocks, *self.kernel, self.weight_planes, self.weight_words, self.lanes)
        kernel, length = ((1, 1), self.window_bytes) if self.dot.gathered else (self.kernel, self.in_words)
        steps = length // BYTES_PER_STEP
        if self.dot.form == "pairs":
            return (blocks, *kernel, 1, steps, self.lanes // 4, 2, 4, 2)
        return (blocks, *kernel, 1, steps, self.lanes, BYTES_PER_STEP)

    def to_json(self) -> str:
        """The workload as text that is stable over runs: sorted keys, no white space."""
        fields = dataclasses.asdict(self)
        fields["epilogue"] = {"kind": type(self.epilogue).__name__, **dataclasses.asdict(self.epilogue)}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Conv2dWorkload:
        """The workload that :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            If the text is not a workload.
        """
        kinds = {kind.__name__: kind for kind in (Thresholds, Integer, Affine, Float)}
        try:
            fields = json.loads(text)
            epilogue = fields.pop("epilogue")
            kind = kinds[epilogue.pop("kind")]
            if epilogue.get("thresholds") is not None:
                epilogue["thresholds"] = Thresholds(**epilogue["thresholds"])
            if fields.get("dot") is not None:
                fields["dot"] = Dot(**fields["dot"])
            if fields.get("table") is not None:
                fields["table"] = Table(**fields["table"])
            if fields.get("depth") is not None:
                fields["depth"] = Depth(**fields["depth"])
            return Conv2dWorkload(epilogue=kind(**epilogue), **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a convolution workload: {text[:80]!r} ({error})") from error
