"""Random low-bit networks: as plain data, as Relax modules, and evaluated in float64.

A network is a list of :class:`Node`, grown by a source of choices: hypothesis, whose failures shrink, or a seeded
random generator.  Emitted as Relax it uses ordinary operators only, in the forms in which frontends write
them, so that quantizers and alphabets have to be found.  :func:`evaluate` says in numpy what a network means, without
any of the compiler's code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax

from .alphabets import ALPHABETS, LEARNED, LEVELS

MOST_CHANNELS = 40
DECIDED = 1e-4
"""Values this far from every threshold, relative to the largest of their tensor, have the same level in float32."""


class Choices(Protocol):
    """A source of integers."""

    def integer(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        ...


class Drawn:
    """Choices made by hypothesis.

    Parameters
    ----------
    draw : callable
        From bounds to an integer.
    """

    def __init__(self, draw: Callable[[int, int], int]) -> None:
        self.integer = draw


class Seeded:
    """Choices made by numpy.

    Parameters
    ----------
    seed : int or sequence of int
    """

    def __init__(self, seed: int | Sequence[int]) -> None:
        self._random = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self._random.integers(low, high, endpoint=True))


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes
    ----------
    kind : str
        Name of a method of the emitter and of the evaluator.
    inputs : tuple of int
        Positions of the operands; position 0 is the network's input.
    shape : tuple of int
        Of the result, without the batch.
    attributes : dict
        Numbers and arrays.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = {
            key: f"array{value.shape}" if isinstance(value, np.ndarray) else value
            for key, value in self.attributes.items()
        }
        return f"{self.kind}{self.inputs} -> {self.shape} {shown}"


@dataclass(frozen=True, eq=False)
class Network:
    """Operations, the positions of those that are outputs, and an input to run them on."""

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    data: np.ndarray

    def digest(self) -> str:
        """A hash of everything that the network is, arrays included."""
        result = hashlib.sha256(repr(self).encode())
        for node in self.nodes:
            for value in node.attributes.values():
                if isinstance(value, np.ndarray):
                    result.update(value.tobytes())
        return result.hexdigest()

    def __repr__(self) -> str:
        lines = [f"  {index}: {node}" for index, node in enumerate(self.nodes)]
        return "\n".join(["Network", *lines, f"  outputs {self.outputs}, batch {len(self.data)}"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis shows a failing example: without the arrays."""
        printer.text(repr(self))


# --- growing ----------------------------------------------------------------------------------------------------


def _bits(codes: np.ndarray, count: int) -> np.ndarray:
    """Bits of codes along a new last axis."""
    return (codes[..., None] >> np.arange(count)) & 1


def window_outputs(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool = False) -> int:
    """How many positions a window has along one axis."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    return (-(-room // stride) if ceil else room // stride) + 1


class _Grower:
    """Appends nodes; every method takes and gives positions."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.random = np.random.default_rng(choices.integer(0, 2**31 - 1))
        self.nodes: list[Node] = []
        self.shared: dict[tuple[int, ...], tuple[str, np.ndarray]] = {}

    def among(self, options: Sequence[Any]) -> Any:
        return options[self.choices.integer(0, len(options) - 1)]

    def chance(self, one_in: int) -> bool:
        return self.choices.integer(0, one_in - 1) == one_in - 1

    def add(self, kind: str, inputs: Sequence[int], shape: Sequence[int], **attributes: Any) -> int:
        self.nodes.append(Node(kind, tuple(inputs), tuple(int(size) for size in shape), attributes))
        return len(self.nodes) - 1

    def shape(self, x: int) -> tuple[int, ...]:
        return self.nodes[x].shape

    def channels(self) -> int:
        return self.choices.integer(1, self.among((9, MOST_CHANNELS)))

    # --- elementwise ---

    def quantizer(self, x: int, signs: bool = True) -> int:
        """One of the forms in which networks write a staircase."""
        forms = ("sign", "greater", "descending", "three") if signs and self.chance(3) else ()
        form = self.among(forms or ("unsigned", "signed", "floor", "odd", "learned", "uneven"))
        if form in ("learned", "uneven"):
            return self.learned_quantizer(x, form)
        bits = 1 if forms else self.choices.integer(1, 4)
        if form == "signed" and bits == 1:
            form = "unsigned"
        step = float(np.float32(self.among((0.25, 0.3, 0.7, 1.0)) * (4.0 / 2**bits if bits < 4 else 1.0)))
        edge = float(np.float32(self.among((0.0, 0.1, -0.37))))
        return self.add("quantizer", [x], self.shape(x), form=form, bits=bits, step=step, edge=edge)

    def learned_quantizer(self, x: int, form: str) -> int:
        """Levels that are subset sums of a basis, or any; thresholds between them."""
        bits = self.choices.integer(1, 3)
        if form == "learned":
            basis = self.random.uniform(0.5, 1, bits) * 1.7 ** np.arange(bits)
            levels = np.sort(_bits(np.arange(2**bits), bits) @ basis)
        else:
            levels = np.cumsum(self.random.uniform(0.2, 0.7, bits + 2))
        levels += self.among((-levels[0], -levels.mean(), 0.3))
        levels = levels.astype(np.float32)
        thresholds = (levels[1:] + levels[:-1]) / 2
        return self.add("quantizer", [x], self.shape(x), form=form, bits=bits, levels=levels, thresholds=thresholds)

    def input_quantizer(self, x: int) -> int:
        if self.chance(2):
            return self.add("quantizer", [x], self.shape(x), form="floor", bits=8, step=1 / 255, edge=0.0)
        return self.quantizer(x)

    def bias(self, x: int) -> int:
        return self.add("bias", [x], self.shape(x), bias=self.normal(self.shape(x)[0]))

    def normal(self, *shape: int) -> np.ndarray:
        return self.random.normal(size=shape).astype(np.float32)

    def batch_norm(self, x: int) -> int:
        channels = self.shape(x)[0]
        gamma = self.normal(channels)
        gamma[:: self.choices.integer(2, 5)] *= np.float32(self.among((1.0, 0.0, 1e-12, 1e6, -1.0)))
        return self.add(
            "batch_norm",
            [x],
            self.shape(x),
            gamma=gamma,
            beta=self.normal(channels),
            mean=self.normal(channels),
            variance=self.random.uniform(0.05, 4, channels).astype(np.float32),
            epsilon=self.among((1e-5, 1e-3)),
        )

    def smooth(self, x: int) -> int:
        kind = self.among(("relu", "relu6", "hardtanh", "tanh", "sigmoid", "scale"))
        if kind == "scale":
            return self.add("scale", [x], self.shape(x), factor=float(self.among((0.5, -1.5, 3.0))))
        return self.add(kind, [x], self.shape(x))

    # --- windows ---

    def weight(self, shape: tuple[int, ...], alphabet: str | None) -> tuple[str, np.ndarray]:
        """A weight on an alphabet (None: floats), sometimes one that is used already."""
        if alphabet is not None and shape in self.shared and self.chance(2):
            return self.shared[shape]
        deviation = float(np.prod(shape[1:])) ** -0.5
        if alphabet is None:
            return "float", (self.normal(*shape) * np.float32(deviation)).astype(np.float32)
        units = self.units(shape, alphabet)
        if 0 in ALPHABETS.get(alphabet, (0,)) and self.chance(8):
            units[0] = 0
        scale = self.random.uniform(0.5, 2, shape[0] if self.chance(2) else 1)
        if self.chance(4):
            scale = 2.0 ** np.round(np.log2(scale))
        if self.chance(8):
            scale = -scale
        scale = (scale * deviation).astype(np.float32).reshape(-1, *([1] * (len(shape) - 1)))
        self.shared[shape] = alphabet, (units * scale).astype(np.float32)
        return self.shared[shape]

    def units(self, shape: tuple[int, ...], alphabet: str) -> np.ndarray:
        """A weight on an alphabet without its scale."""
        if alphabet in ALPHABETS:
            return self.random.choice(np.array(ALPHABETS[alphabet], np.float32), shape)
        channel = [shape[0], *([1] * (len(shape) - 1))]
        if alphabet in LEARNED:
            bits = LEARNED[alphabet]
            basis = self.random.uniform(0.5, 1, (*channel, bits)) * 1.7 ** np.arange(bits)
            signed = 2 * _bits(self.random.integers(0, 2**bits, shape), bits) - 1
            offset = self.random.normal(size=channel) if self.chance(4) else 0.0
            return (signed * basis).sum(axis=-1) + offset
        rows = shape[0] if self.chance(2) else 1
        levels = self.random.normal(size=(rows, LEVELS[alphabet]))
        if self.chance(3):
            levels[:, 1::2] = -levels[:, : levels.shape[1] // 2 * 2 : 2]
        picked = self.random.integers(0, levels.shape[1], shape)
        return levels[np.arange(shape[0]).reshape(channel) % rows, picked]

    def alphabet(self) -> str | None:
        return None if self.chance(12) else self.among([*ALPHABETS, *LEARNED, *LEVELS])

    def conv(self, x: int, outputs: int, kernel: int | None = None, stride: int | None = None) -> int:
        _, height, width = self.shape(x)
        kernel = kernel or self.among((1, 3, 3, 5))
        size = (kernel, kernel) if kernel == 1 or not self.chance(6) else (kernel, 1)
        dilation = self.among((1, 1, 1, 2)) if kernel > 1 else 1
        stride = stride or self.among((1, 1, 2))
        padding = [self.among((0, dilation * (extent // 2), 1 if extent > 1 else 0)) for extent in size]
        for axis, extent in enumerate((height, width)):
            if window_outputs(extent, size[axis], 1, padding[axis], dilation) < 1:
                padding[axis] = dilation * (size[axis] // 2)
        return self.convolution(x, outputs, size, (stride, stride), tuple(padding), (dilation, dilation))

    def convolution(
        self,
        x: int,
        outputs: int,
        kernel: tuple[int, int],
        strides: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> int:
        channels, *sizes = self.shape(x)
        alphabet, weight = self.weight((outputs, channels, *kernel), self.alphabet())
        spatial = [
            window_outputs(size, kernel[axis], strides[axis], padding[axis], dilation[axis])
            for axis, size in enumerate(sizes)
        ]
        return self.add(
            "conv",
            [x],
            (outputs, *spatial),
            weight=weight,
            alphabet=alphabet,
            strides=strides,
            padding=padding,
            dilation=dilation,
            groups=1,
        )

    def depthwise(self, x: int) -> int:
        channels = self.shape(x)[0]
        alphabet, weight = self.weight((channels, 1, 3, 3), self.among((None, "binary")))
        geometry = {"strides": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        return self.add("conv", [x], self.shape(x), weight=weight, alphabet=alphabet, groups=channels, **geometry)

    def dense(self, x: int, outputs: int) -> int:
        alphabet, weight = self.weight((outputs, self.shape(x)[0]), self.alphabet())
        return self.add("dense", [x], (outputs,), weight=weight, alphabet=alphabet, transposed=self.chance(2))

    def max_pool(self, x: int) -> int:
        channels, height, width = self.shape(x)
        kernel, stride = self.among((2, 3)), self.among((1, 2, 2))
        padding = self.among((0, kernel // 2))
        ceil = self.chance(4)
        sizes = [window_outputs(size, kernel, stride, padding, 1, ceil) for size in (height, width)]
        # A window that sees nothing but padding has no value.
        empty = any((count - 1) * stride >= size + padding for count, size in zip(sizes, (height, width), strict=True))
        if min(sizes) < 1 or empty:
            return x
        return self.add("max_pool", [x], (channels, *sizes), kernel=kernel, stride=stride, padding=padding, ceil=ceil)

    def average_pool(self, x: int) -> int:
        channels, height, width = self.shape(x)
        if min(height, width) < 2:
            return x
        return self.add("average_pool", [x], (channels, height // 2, width // 2), kernel=2)

    def flatten(self, x: int) -> int:
        return self.add("flatten", [x], (int(np.prod(self.shape(x))),))

    # --- blocks ---

    def epilogue(self, x: int, pools: bool = True) -> int:
        """What follows a product: up to three of bias, batch norm, activation function, max-pool."""
        steps: list[Callable[[int], int]] = [self.bias, self.batch_norm, self.batch_norm, self.smooth]
        if pools and len(self.shape(x)) == 3:
            steps.append(self.max_pool)
        for _ in range(self.choices.integer(0, 3)):
            x = self.among(steps)(x)
        return x

    def layer(self, x: int) -> int:
        return self.epilogue(self.conv(self.quantizer(x), self.channels()))

    def residual(self, x: int) -> int:
        """A sum with a float shortcut, a quantized one, or a strided 1x1 of the quantized value."""
        codes = self.quantizer(x)
        form = self.among(("float", "quantized", "conv"))
        if form == "conv":
            outputs, stride = self.channels(), self.among((1, 2))
            shortcut = self.convolution(codes, outputs, (1, 1), (stride, stride), (0, 0), (1, 1))
            if self.chance(2):
                shortcut = self.batch_norm(shortcut)
        else:
            outputs, stride, shortcut = self.shape(x)[0], 1, x if form == "float" else codes
        body = self.convolution(codes, outputs, (3, 3), (stride, stride), (1, 1), (1, 1))
        body = self.batch_norm(body)
        if self.chance(2):
            body = self.convolution(self.quantizer(body), outputs, (3, 3), (1, 1), (1, 1), (1, 1))
            body = self.batch_norm(body)
        pair = [body, shortcut] if self.chance(2) else [shortcut, body]
        total = self.bias(self.add("add", pair, self.shape(body)))
        return self.add("relu", [total], self.shape(total)) if self.chance(2) else total

    def branches(self, x: int) -> int:
        """Two or three convolutions of one value, joined as floats or as quantized values."""
        codes = self.quantizer(x)
        quantizes = self.chance(2)
        parts = []
        for _ in range(self.choices.integer(2, 3)):
            source = self.quantizer(x) if self.chance(4) else codes
            kernel = self.among((1, 3))
            padding = (kernel // 2, kernel // 2)
            part = self.convolution(source, self.channels(), (kernel, kernel), (1, 1), padding, (1, 1))
            part = self.epilogue(part, pools=False)
            parts.append(part)
        if quantizes:
            form = self.nodes[codes].attributes
            parts = [self.add("quantizer", [part], self.shape(part), **form) for part in parts]
        if self.chance(3):
            parts.append(codes if quantizes else x)
        channels = sum(self.shape(part)[0] for part in parts)
        return self.add("concat", parts, (channels, *self.shape(x)[1:]))

    def grouped(self, x: int) -> int:
        """A depthwise convolution, of floats or of quantized values."""
        return self.epilogue(self.depthwise(self.quantizer(x) if self.chance(2) else x))

    def averaged(self, x: int) -> int:
        return self.bias(self.average_pool(x))

    def head(self, x: int) -> int:
        """Flatten and one or two linear layers."""
        x = self.flatten(self.quantizer(x)) if self.chance(2) else self.quantizer(self.flatten(x))
        x = self.epilogue(self.dense(x, self.channels()))
        if self.chance(4):
            x = self.epilogue(self.dense(self.quantizer(x), self.channels()))
        return x

    def network(self) -> Network:
        channels = self.choices.integer(1, 12)
        height, width = self.choices.integer(4, 9), self.choices.integer(4, 9)
        batch = self.choices.integer(1, 2)
        x = self.add("input", [], (channels, height, width))
        data = self.random.normal(size=(batch, channels, height, width))
        if self.chance(2):
            data = self.random.integers(0, 256, data.shape) / 255
        x = self.epilogue(self.conv(self.input_quantizer(x), self.channels()))
        outputs = []
        for _ in range(self.among((0, 0, 1, 1, 2))):
            x = self.among((self.layer, self.residual, self.branches, self.grouped, self.averaged))(x)
            if self.chance(6):
                outputs.append(x)  # a value that others read too
        if self.chance(2):
            x = self.head(x)
        if self.chance(4):
            outputs.append(self.quantizer(x))
        outputs.append(x)
        return Network(tuple(self.nodes), tuple(dict.fromkeys(outputs)), data.astype(np.float32))


def grow(choices: Choices) -> Network:
    """A random network of one to some ten layers.

    Parameters
    ----------
    choices : Choices

    Returns
    -------
    Network
    """
    return _Grower(choices).network()


# --- what a network means ---------------------------------------------------------------------------------------


def _steps(form: dict[str, Any], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of a quantizer, and how far each x is from the nearest threshold."""
    if form["form"] in ("learned", "uneven"):
        thresholds = form["thresholds"].astype(np.float64)
        values = form["levels"].astype(np.float64)[np.searchsorted(thresholds, x, side="left")]
        return values, np.abs(x[..., None] - thresholds).min(axis=-1)
    bits, step, edge = form["bits"], form["step"], form["edge"]
    half = 2 ** (bits - 1)
    name = form["form"]
    if name in ("sign", "greater", "descending"):
        reached = x > edge if name == "greater" else x >= edge
        return np.where(reached != (name == "descending"), 1.0, -1.0), np.abs(x - edge)
    if name == "three":
        return np.sign(x), np.abs(x)
    low, high = (0, 2**bits - 1) if name in ("unsigned", "floor") else (-half, half - 1)
    if name == "floor":
        scaled = x * np.float64(np.float32(high)) + 0.5
        level, factor = np.clip(np.floor(scaled), low, high), np.float64(np.float32(1 / high))
        # floor's own thresholds are the integers
        return level * factor, np.where(
            (scaled > low) & (scaled < high + 1), np.abs(scaled - np.rint(scaled)), 1
        ) / high
    scaled = x / step
    if name == "odd":
        level = np.clip(np.floor(scaled), low, high)
        distance = np.abs(scaled - np.rint(scaled))
        return (2 * level + 1) * step, np.where((scaled > low - 0.5) & (scaled < high + 0.5), distance, 1) * step
    level = np.clip(np.rint(scaled), low, high)
    distance = np.abs(scaled - np.floor(scaled) - 0.5)
    return level * step, np.where((scaled > low - 0.5) & (scaled < high + 0.5), distance, 1) * step


def _sliding(x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]


def _convolve(x: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    weight = attributes["weight"].astype(np.float64)
    vertical, horizontal = attributes["padding"]
    padded = np.pad(x, ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal)))
    windows = _sliding(padded, weight.shape[2:], attributes["strides"], attributes["dilation"])
    if attributes["groups"] == 1:
        return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return np.einsum("nchwij,cij->nchw", windows, weight[:, 0])


def _max_pool(x: np.ndarray, node: Node) -> np.ndarray:
    kernel, stride, padding = (node.attributes[key] for key in ("kernel", "stride", "padding"))
    after = [
        max(padding, (count - 1) * stride + kernel - size - padding)
        for count, size in zip(node.shape[1:], x.shape[2:], strict=True)
    ]
    padded = np.pad(x, ((0, 0), (0, 0), (padding, after[0]), (padding, after[1])), constant_values=-np.inf)
    windows = _sliding(padded, (kernel, kernel), (stride, stride), (1, 1))
    return windows[:, :, : node.shape[1], : node.shape[2]].max(axis=(4, 5))


def _column(array: np.ndarray, x: np.ndarray) -> np.ndarray:
    return array.astype(np.float64).reshape(-1, *([1] * (x.ndim - 2)))


def _evaluate(node: Node, x: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    a = node.attributes
    if node.kind == "quantizer":
        return _steps(a, x)[0]
    if node.kind == "batch_norm":
        deviation = np.sqrt(a["variance"].astype(np.float64) + a["epsilon"])
        return (x - _column(a["mean"], x)) / _column(deviation, x) * _column(a["gamma"], x) + _column(a["beta"], x)
    if node.kind == "average_pool":
        return _sliding(x, (2, 2), (2, 2), (1, 1)).mean(axis=(4, 5))
    if node.kind == "dense":
        return x @ a["weight"].T.astype(np.float64)
    functions: dict[str, Callable[[], np.ndarray]] = {
        "bias": lambda: x + _column(a["bias"], x),
        "scale": lambda: x * a["factor"],
        "relu": lambda: np.maximum(x, 0),
        "relu6": lambda: np.clip(x, 0, 6),
        "hardtanh": lambda: np.clip(x, -1, 1),
        "tanh": lambda: np.tanh(x),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "conv": lambda: _convolve(x, a),
        "max_pool": lambda: _max_pool(x, node),
        "flatten": lambda: x.reshape(len(x), -1),
        "add": lambda: x + others[0],
        "concat": lambda: np.concatenate([x, *others], axis=1),
    }
    return functions[node.kind]()


def evaluate(network: Network) -> tuple[list[np.ndarray], float]:
    """Outputs in float64, and how close any value came to a threshold.

    Parameters
    ----------
    network : Network

    Returns
    -------
    (list of float64 arrays, float)
        The distance is relative to the largest value of the tensor; below ``DECIDED``, float32 may give another level.
    """
    values: list[np.ndarray] = []
    margin = np.inf
    for node in network.nodes:
        if node.kind == "input":
            values.append(network.data.astype(np.float64))
            continue
        x, *others = (values[index] for index in node.inputs)
        with np.errstate(over="ignore"):
            values.append(_evaluate(node, x, others))
        if node.kind == "quantizer":
            margin = min(margin, float(_steps(node.attributes, x)[1].min() / max(np.abs(x).max(), 1e-30)))
    return [values[index] for index in network.outputs], margin


# --- as Relax ---------------------------------------------------------------------------------------------------


def _scalar(value: float) -> relax.Expr:
    return relax.const(np.float32(value), "float32")


def _staircase(builder: relax.BlockBuilder, x: relax.Expr, form: dict[str, Any]) -> relax.Expr:
    """A quantizer as frontends write it: one elementwise operator after the other."""
    op, emit = relax.op, builder.emit
    if form["form"] in ("learned", "uneven"):
        return _sum_of_steps(builder, x, form["levels"], form["thresholds"])
    bits, step, edge = form["bits"], form["step"], form["edge"]
    half = 2 ** (bits - 1)
    name = form["form"]
    if name == "greater":
        return emit(op.where(emit(op.greater(x, _scalar(edge))), _scalar(1), _scalar(-1)))
    if name in ("sign", "descending"):
        values = (1, -1) if name == "sign" else (-1, 1)
        return emit(op.where(emit(op.greater_equal(x, _scalar(edge))), *map(_scalar, values)))
    if name == "three":
        return emit(op.sign(x))
    if name == "floor":
        high = 2**bits - 1
        level = emit(op.floor(emit(op.add(emit(op.multiply(x, _scalar(high))), _scalar(0.5)))))
        return emit(op.multiply(emit(op.clip(level, 0.0, float(high))), _scalar(1 / high)))
    scaled = emit(op.divide(x, _scalar(step)))
    if name == "odd":
        level = emit(op.clip(emit(op.floor(scaled)), float(-half), float(half - 1)))
        odd = emit(op.add(emit(op.multiply(level, _scalar(2))), _scalar(1)))
        return emit(op.multiply(odd, _scalar(step)))
    low, high = (0, 2**bits - 1) if name == "unsigned" else (-half, half - 1)
    level = emit(op.clip(emit(op.round(scaled)), float(low), float(high)))
    return emit(op.multiply(level, _scalar(step)))


def _sum_of_steps(builder: relax.BlockBuilder, x: relax.Expr, levels: np.ndarray, thresholds: np.ndarray) -> relax.Expr:
    """The lowest level, and what each threshold adds to it."""
    op, emit = relax.op, builder.emit
    result = None
    for threshold, low, high in zip(thresholds, levels[:-1], levels[1:], strict=True):
        values = (low, high) if result is None else (0, high - low)
        step = emit(op.where(emit(op.greater(x, _scalar(threshold))), _scalar(values[1]), _scalar(values[0])))
        result = step if result is None else emit(op.add(result, step))
    return result


def _channelwise(array: np.ndarray, x: relax.Expr) -> relax.Expr:
    """A constant per channel; for images of shape (1, C, 1, 1)."""
    ndim = len(x.ty.shape)
    return relax.const(array.reshape(1, -1, 1, 1) if ndim == 4 else array, "float32")


def _emit(builder: relax.BlockBuilder, node: Node, inputs: list[relax.Expr], name: str) -> relax.Expr:
    op, emit, a = relax.op, builder.emit, node.attributes
    x = inputs[0]
    if node.kind == "quantizer":
        return _staircase(builder, x, a)
    if node.kind == "conv":
        vertical, horizontal = a["padding"]
        padding = [vertical, horizontal, vertical, horizontal]
        geometry = {"strides": a["strides"], "padding": padding, "dilation": a["dilation"], "groups": a["groups"]}
        return emit(op.nn.conv2d(x, relax.const(a["weight"], "float32"), **geometry), name)
    if node.kind == "dense":
        if a["transposed"]:
            return emit(op.matmul(x, relax.const(np.ascontiguousarray(a["weight"].T), "float32")), name)
        return emit(op.matmul(x, emit(op.permute_dims(relax.const(a["weight"], "float32"), [1, 0]))), name)
    if node.kind == "batch_norm":
        parameters = [relax.const(a[key], "float32") for key in ("gamma", "beta", "mean", "variance")]
        both = emit(op.nn.batch_norm(x, *parameters, axis=1, epsilon=a["epsilon"], training=False))
        return emit(relax.TupleGetItem(both, 0))
    if node.kind == "max_pool":
        window = {"pool_size": [a["kernel"]] * 2, "strides": [a["stride"]] * 2, "padding": [a["padding"]] * 4}
        return emit(op.nn.max_pool2d(x, ceil_mode=a["ceil"], **window))
    calls: dict[str, Callable[[], relax.Expr]] = {
        "bias": lambda: op.add(_channelwise(a["bias"], x), x),
        "scale": lambda: op.multiply(x, _scalar(a["factor"])),
        "relu": lambda: op.nn.relu(x),
        "relu6": lambda: op.clip(x, 0.0, 6.0),
        "hardtanh": lambda: op.clip(x, -1.0, 1.0),
        "tanh": lambda: op.tanh(x),
        "sigmoid": lambda: op.sigmoid(x),
        "average_pool": lambda: op.nn.avg_pool2d(x, pool_size=[2, 2], strides=[2, 2]),
        "flatten": lambda: op.reshape(x, [x.ty.shape[0], *node.shape]),
        "add": lambda: op.add(x, inputs[1]),
        "concat": lambda: op.concat(inputs, axis=1),
    }
    return emit(calls[node.kind]())


def to_module(networks: Sequence[Network]) -> tvm.IRModule:
    """Several networks as one function: an input each, all outputs in order.

    Parameters
    ----------
    networks : sequence of Network

    Returns
    -------
    tvm.IRModule
    """
    builder = relax.BlockBuilder()
    inputs = [
        relax.Var(f"x{index}", relax.TensorType(network.data.shape, "float32"))
        for index, network in enumerate(networks)
    ]
    with builder.function("main", inputs):
        with builder.dataflow():
            results = []
            for index, network in enumerate(networks):
                values: list[relax.Expr] = [inputs[index]]
                for position, node in enumerate(network.nodes[1:], 1):
                    operands = [values[operand] for operand in node.inputs]
                    values.append(_emit(builder, node, operands, f"net{index}.{node.kind}{position}"))
                results += [values[output] for output in network.outputs]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    return builder.get()
