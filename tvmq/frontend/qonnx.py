"""QONNX: the quantizers that Brevitas and the tools around QONNX write into ONNX files.

Each becomes the arithmetic that defines it, in float32 and in the order of its definition.  Of a constant the values
are computed at once, so a weight arrives as a float tensor on few levels; of an activation with scalar parameters it
is a chain of scalar operations, which :class:`tvmq.transform.RecognizeQuantizers` turns into codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from tvm import relax

from tvmq.errors import nearest
from tvmq.frontend.graph import Node

__all__ = ["CONVERTERS", "DOMAINS"]

# Brevitas writes its own domain, and the oldest files FINN's; the operators are the same.
DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")

_MAXIMUM_BITS = 32


def _scalar(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def _nearest_even(x: relax.Expr, _lowest: float) -> relax.Expr:
    return relax.op.round(x)


def _ceil(x: relax.Expr, _lowest: float) -> relax.Expr:
    return relax.op.ceil(x)


def _floor(x: relax.Expr, _lowest: float) -> relax.Expr:
    return relax.op.floor(x)


def _symmetric(of_magnitude: Callable[[relax.Expr], relax.Expr]) -> Callable[[relax.Expr, float], relax.Expr]:
    """A rounding that treats negative numbers as positive ones; where there are none, it needs no sign."""

    def rounded(x: relax.Expr, lowest: float) -> relax.Expr:
        if lowest >= 0:
            return of_magnitude(x)
        return relax.op.multiply(relax.op.sign(x), of_magnitude(relax.op.abs(x)))

    return rounded


_away_from_zero = _symmetric(relax.op.ceil)
_toward_zero = _symmetric(relax.op.floor)
_half_away_from_zero = _symmetric(lambda x: relax.op.floor(relax.op.add(x, _scalar(0.5))))
_half_toward_zero = _symmetric(lambda x: relax.op.ceil(relax.op.subtract(x, _scalar(0.5))))

_ROUNDINGS: Mapping[str, Callable[[relax.Expr, float], relax.Expr]] = {
    "ROUND": _nearest_even,
    "HALF_EVEN": _nearest_even,
    "CEIL": _ceil,
    "FLOOR": _floor,
    "UP": _away_from_zero,
    "DOWN": _toward_zero,
    "ROUND_TO_ZERO": _toward_zero,
    "HALF_UP": _half_away_from_zero,
    "HALF_DOWN": _half_toward_zero,
}


def _rounding(node: Node, default: str) -> Callable[[relax.Expr, float], relax.Expr]:
    mode = node.string("rounding_mode", default).upper()
    if mode not in _ROUNDINGS:
        raise node.error(
            f"the rounding mode '{mode}' is unknown{nearest(mode, _ROUNDINGS)}; it must be one of "
            f"{', '.join(_ROUNDINGS)}"
        )
    return _ROUNDINGS[mode]


def _check_input(node: Node) -> relax.Expr:
    x = node.required(0, "tensor to quantize")
    if node.dtype(0) != "float32":
        raise node.error(f"the tensor to quantize is {node.dtype(0)}, but must be float32; export the network in it")
    return x


def _parameter(node: Node, position: int, what: str) -> np.ndarray:
    """A scale or zero point: a scalar of shape (), or a tensor that fits the input."""
    value = node.constant(position, what).astype(np.float32)
    if not np.isfinite(value).all():
        raise node.error(f"the {what} is not finite; export the network again")
    node.check_broadcast(value, what)
    return value.reshape(()) if value.size == 1 else value


def _scale(node: Node, position: int, what: str = "scale") -> np.ndarray:
    value = _parameter(node, position, what)
    if not value.all():
        raise node.error(f"the {what} is zero; a scale must be positive")
    return value


def _bits(node: Node, position: int, what: str = "bit width") -> int:
    value = node.constant(position, what)
    if value.size != 1:
        raise node.error(f"the {what} has shape {value.shape}, but must be one number")
    bits = float(value.reshape(()))
    if not bits.is_integer() or not 1 <= bits <= _MAXIMUM_BITS:
        raise node.error(f"the {what} is {bits:g}, but must be a whole number from 1 to {_MAXIMUM_BITS}")
    return int(bits)


def _range(node: Node, bits: int) -> tuple[float, float]:
    """Smallest and largest integer of the given width."""
    signed, narrow = node.integer("signed", 1, (0, 1)), node.integer("narrow", 0, (0, 1))
    if signed:
        return float(-(2 ** (bits - 1)) + narrow), float(2 ** (bits - 1) - 1)
    return 0.0, float(2**bits - 1 - narrow)


def _constant(value: np.ndarray) -> relax.Expr:
    return relax.const(np.asarray(value, np.float32), "float32")


def _plus(x: relax.Expr, offset: np.ndarray) -> relax.Expr:
    return relax.op.add(x, _constant(offset)) if offset.any() else x


def _minus(x: relax.Expr, offset: np.ndarray) -> relax.Expr:
    return relax.op.subtract(x, _constant(offset)) if offset.any() else x


def _times(x: relax.Expr, scale: np.ndarray) -> relax.Expr:
    return relax.op.multiply(x, _constant(scale))


def _over(x: relax.Expr, scale: np.ndarray) -> relax.Expr:
    return relax.op.divide(x, _constant(scale))


def _signs(x: relax.Expr) -> relax.Expr:
    return relax.op.where(relax.op.greater_equal(x, _scalar(0.0)), _scalar(1.0), _scalar(-1.0))


def _quant(node: Node) -> relax.Expr:
    """``(round(clip(x / scale + zero_point)) - zero_point) * scale``."""
    x = _check_input(node)
    scale, zero_point = _scale(node, 1), _parameter(node, 2, "zero point")
    bits = _bits(node, 3)
    low, high = _range(node, bits)
    rounding = _rounding(node, "ROUND")
    y = _plus(_over(x, scale), zero_point)
    # By definition one signed bit means -1 and 1, not the -1 and 0 of two's complement.
    y = _signs(y) if bits == 1 and node.integer("signed", 1) else rounding(relax.op.clip(y, low, high), low)
    return _times(_minus(y, zero_point), scale)


def _bipolar_quant(node: Node) -> relax.Expr:
    """``scale`` where ``x >= 0``, else ``-scale``."""
    x = _check_input(node)
    return _times(_signs(x), _scale(node, 1))


def _trunc(node: Node) -> relax.Expr:
    """Drops the lowest bits of a quantized value: what follows a sum that average pooling takes.

    The first version of the operator has the input's scale for both sides and clips nothing; the second has a scale
    for the output.  They differ in the number of inputs.
    """
    x = _check_input(node)
    scale, zero_point = _scale(node, 1), _parameter(node, 2, "zero point")
    rounding = _rounding(node, "FLOOR")
    bits = _bits(node, 3, "input bit width")
    y = relax.op.round(_plus(_over(x, scale), zero_point))
    if node.input(5) is None:
        output_bits = _bits(node, 4, "output bit width")
        if output_bits > bits:
            raise node.error(f"the output bit width {output_bits} is larger than the input's {bits}")
        y = rounding(_over(y, np.float32(2.0 ** (bits - output_bits))), -np.inf)
        return _times(_minus(y, zero_point), scale)
    output_scale = _scale(node, 4, "output scale")
    if (output_scale / scale <= 0).any():
        raise node.error("the output scale and the input scale have different signs; scales must be positive")
    low, high = _range(node, _bits(node, 5, "output bit width"))
    exponent = np.round(np.log2(output_scale / scale)).astype(np.int32)
    divisor = np.ldexp(np.float32(1), exponent)
    y = rounding(relax.op.clip(_over(y, divisor), low, high), low)
    return _times(_minus(y, zero_point / divisor), output_scale)


CONVERTERS: Mapping[str, Callable[[Node], relax.Expr]] = {
    "BipolarQuant": _bipolar_quant,
    "IntQuant": _quant,
    "Quant": _quant,
    "Trunc": _trunc,
}
