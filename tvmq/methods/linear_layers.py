"""The convolutions and linear layers of a network as matrix products.

Every layer that the methods quantize is a product of the rows of a matrix with the columns of another one: a row is
what an output position sees, a column is a neuron.  A linear layer has one row per sample; a convolution has one per
output position of a sample, whose entries are the inputs under the kernel, in the order of the weight (channel,
kernel row, kernel column), zero where the kernel hangs over the border.  A convolution of g groups is g such products.

Inputs are gathered as columns, ``(groups, N, rows)``, because then everything that is copied is contiguous in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Var
from tvm.tirx import IntImm

from tvmq.errors import ModelError
from tvmq.golden import evaluate
from tvmq.model import Model, input_dependent, is_layer, module_bindings

__all__ = [
    "LayerUse",
    "SharedWeight",
    "apply_layer",
    "columns",
    "constant_of",
    "pieces",
    "shared_weights",
    "transposed",
    "weight_like",
]

LARGEST_GATHER = 2**24
"""Elements gathered at a time when a layer is applied: some 64 MiB."""
STRIPE = 32
"""Rows that are transposed at a time."""


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One convolution or matrix product.

    Attributes
    ----------
    variable : tvm.ir.Var
        What its result is bound to; its name is the layer's.
    call : tvm.ir.Call
        A ``relax.nn.conv2d`` or ``relax.matmul``.
    position : int
        Of its binding among those of the network.
    """

    variable: Var
    call: Call
    position: int

    @property
    def is_dense(self) -> bool:
        """Whether it is a matrix product."""
        return self.call.op.name == "relax.matmul"

    @property
    def groups(self) -> int:
        """Groups of the convolution; 1 for a matrix product."""
        return 1 if self.is_dense else int(self.call.attrs["groups"])

    @property
    def rows_per_sample(self) -> int:
        """How many rows a sample has: the output positions of a convolution.

        An axis of unknown size is the batch; a network of a fixed batch has it as its first axis.
        """
        sizes = list(self.variable.ty.shape)
        inner = sizes[1:-1] if self.is_dense else sizes[2:]
        return int(np.prod([int(size) for size in inner if isinstance(size, IntImm)], dtype=np.int64))


@dataclass(frozen=True, eq=False)
class SharedWeight:
    """A weight and all the layers that use it; they are quantized together.

    Attributes
    ----------
    uses : tuple of LayerUse
        In the order in which they run.
    weight : float32 of shape (O, C / groups, KH, KW) or (O, K)
    """

    uses: tuple[LayerUse, ...]
    weight: np.ndarray

    @property
    def name(self) -> str:
        """Name of the first layer that uses it."""
        return self.uses[0].variable.name

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return self.uses[0].groups

    @property
    def inputs(self) -> int:
        """N: how many inputs a neuron has."""
        return int(np.prod(self.weight.shape[1:]))

    @property
    def neurons(self) -> int:
        """n: how many neurons there are, in all groups together."""
        return len(self.weight)

    def neurons_of(self, group: int, neurons: np.ndarray) -> np.ndarray:
        """Some neurons of a group as float64 of shape (N, k), a neuron per column."""
        rows = self.weight.reshape(self.groups, self.neurons // self.groups, self.inputs)[group]
        return transposed(rows[neurons], np.float64)

    def from_matrices(self, matrices: list[np.ndarray]) -> np.ndarray:
        """The float32 weight whose groups have the given matrices, a neuron per column."""
        rows = [transposed(matrix, np.float32) for matrix in matrices]
        return (rows[0] if len(rows) == 1 else np.concatenate(rows)).reshape(self.weight.shape)


def transposed(matrix: np.ndarray, dtype: type) -> np.ndarray:
    """The transpose of an (M, N) matrix in memory of its own, written in stripes that fill whole cache lines."""
    result: np.ndarray = np.empty(matrix.shape[::-1], dtype)
    for start in range(0, len(matrix), STRIPE):
        result[:, start : start + STRIPE] = matrix[start : start + STRIPE].T
    return result


def shared_weights(model: Model) -> list[SharedWeight]:
    """The weights of a model's convolutions and linear layers, in the order in which they are first used.

    Parameters
    ----------
    model : Model

    Returns
    -------
    list of SharedWeight
        Only of two-dimensional convolutions in NCHW and of products with a constant matrix, in float32.
    """
    function = model.module["main"]
    dependent = input_dependent(function)
    constants: dict[Var, Any] = {}
    uses: dict[bytes, list[LayerUse]] = {}
    weights: dict[bytes, np.ndarray] = {}
    for position, binding in enumerate(module_bindings(function)):
        if binding.var not in dependent:
            constants |= constant_of(binding, constants)
            continue
        use = LayerUse(binding.var, binding.value, position)
        if not is_layer(binding.value, dependent) or not _is_supported(use):
            continue
        weight = _weight(use, constants)
        if weight.dtype != np.float32:
            continue
        key = _identity(use, weight)
        uses.setdefault(key, []).append(use)
        weights[key] = weight
    return [SharedWeight(tuple(uses[key]), weights[key]) for key in uses]


def constant_of(binding: Any, constants: Mapping[Var, Any]) -> dict[Var, Any]:
    """The variable and value of a binding that does not depend on the network's input.

    Nothing if its shape does, as that of a weight that was broadcast to the batch.
    """
    try:
        return {binding.var: evaluate(binding.value, constants)}
    except ModelError:
        return {}


def _is_supported(use: LayerUse) -> bool:
    if use.is_dense:
        return len(use.call.args[1].ty.shape) == 2
    attrs = use.call.attrs
    layouts = (str(attrs["data_layout"]), str(attrs["kernel_layout"]))
    return use.call.op.name == "relax.nn.conv2d" and layouts == ("NCHW", "OIHW")


def _weight(use: LayerUse, constants: Mapping[Var, Any]) -> np.ndarray:
    array = evaluate(use.call.args[1], constants)
    if not np.isfinite(array).all():
        raise ModelError(f"layer '{use.variable.name}': the weight holds NaN or infinity; train the network again")
    return np.ascontiguousarray(array.T) if use.is_dense else array


def _identity(use: LayerUse, weight: np.ndarray) -> bytes:
    """Equal for layers that share a weight; frontends may have copied it for every use."""
    header = f"{use.is_dense} {use.groups} {weight.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(weight).tobytes()).digest()


def columns(use: LayerUse, x: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    """What the outputs of a layer see, a column each.

    Parameters
    ----------
    use : LayerUse
    x : array of shape (B, C, H, W), or (..., K) for a matrix product
        The layer's input.
    positions : int array of shape (P,), optional
        Which output positions of a sample, numbered row by row; all by default.  Not for a matrix product.

    Returns
    -------
    array of shape (groups, N, rows)
        Of the type of ``x``; ``rows`` runs over samples, then positions.
    """
    if use.is_dense:
        return x.reshape(-1, x.shape[-1]).T[None]
    attrs = use.call.attrs
    top, left, bottom, right = (int(size) for size in attrs["padding"])
    strides = [int(size) for size in attrs["strides"]]
    dilation = [int(size) for size in attrs["dilation"]]
    kernel = [int(size) for size in list(use.call.args[1].ty.shape)[2:]]
    # Channels first, so that every copied run is a row of an image.
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))).transpose(1, 0, 2, 3)
    height, width = (
        (padded.shape[2 + axis] - dilation[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1 for axis in range(2)
    )
    channels, batch = padded.shape[:2]
    count = height * width if positions is None else len(positions)
    gathered = np.empty((channels, kernel[0], kernel[1], batch, count), x.dtype)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            first_row, first_column = row * dilation[0], column * dilation[1]
            taken = padded[
                :,
                :,
                first_row : first_row + (height - 1) * strides[0] + 1 : strides[0],
                first_column : first_column + (width - 1) * strides[1] + 1 : strides[1],
            ]
            if positions is None:
                gathered[:, row, column].reshape(channels, batch, height, width)[...] = taken
            else:
                gathered[:, row, column] = taken[:, :, positions // width, positions % width]
    return gathered.reshape(use.groups, -1, batch * count)


def apply_layer(use: LayerUse, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A layer's output by one matrix product per group and piece of the batch.

    Parameters
    ----------
    use : LayerUse
    x : array of shape (B, C, H, W), or (..., K) for a matrix product
    weight : array of shape (O, C / groups, KH, KW), or (O, K)

    Returns
    -------
    array of shape (B, O, OH, OW), or (..., O)
    """
    if use.is_dense:
        return x @ weight.T
    outputs, height, width = len(weight), *(int(size) for size in list(use.variable.ty.shape)[2:])
    result = np.empty((len(x), outputs, height, width), x.dtype)
    rows = weight.reshape(use.groups, outputs // use.groups, -1)
    for piece in pieces(use, len(x)):
        product = rows @ columns(use, x[piece])
        shaped = product.reshape(outputs, -1, height, width)
        result[piece] = shaped.transpose(1, 0, 2, 3)
    return result


def pieces(use: LayerUse, samples: int) -> Iterator[slice]:
    """Slices of a batch whose gathered columns stay within memory and cache."""
    step = samples
    if not use.is_dense:
        inputs = int(np.prod([int(size) for size in list(use.call.args[1].ty.shape)[1:]])) * use.groups
        step = max(1, LARGEST_GATHER // (inputs * use.rows_per_sample))
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


def weight_like(use: LayerUse, weight: np.ndarray) -> relax.Expr:
    """A constant in the form in which the layer takes its weight."""
    return relax.const(np.ascontiguousarray(weight.T) if use.is_dense else weight, "float32")
