"""Low-bit weights of float products as float32, cut out of words by integer arithmetic."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tvmq.kernels.conv2d import fused_multiply_add
from tvmq.kernels.float_workload import WORD_BITS, FloatWorkload

__all__ = ["field_value"]


def field_value(workload: FloatWorkload, word: Any, step: Any) -> Any:
    """The weight in a field of a word: shift, cut out, convert; at most one multiply-add of small integers more.

    Parameters
    ----------
    workload : FloatWorkload
        With packed weights.
    word : uint32 expression
        Codes of successive weights, the first in the lowest bits.
    step : int32 expression
        Which of them, in [0, ``workload.codes_per_word``).

    Returns
    -------
    value : float32 expression
        In units of the channel's scale.
    """
    bits, factors, offset = workload.bits, workload.coefficients, workload.offset
    unit = abs(factors[0])
    magnitudes = tuple(unit << bit for bit in range(bits))
    if bits > 1 and factors == (*magnitudes[:-1], -magnitudes[-1]):
        signed = tirx.reinterpret("int32", word) << (WORD_BITS - bits - step * bits)
        code = signed >> (WORD_BITS - bits)
    elif factors == magnitudes:
        code = ((word >> (step * bits).astype("uint32")) & tirx.const(2**bits - 1, "uint32")).astype("int32")
    else:
        planes = [((word >> (step * bits + bit).astype("uint32")) & tirx.const(1, "uint32")) for bit in range(bits)]
        terms = [plane.astype("int32") * factor for plane, factor in zip(planes, factors, strict=True)]
        return (sum(terms[1:], terms[0]) + offset).astype("float32")
    number = code.astype("float32")
    if (unit, offset) == (1, 0):
        return number
    return fused_multiply_add(number, tirx.const(unit, "float32"), tirx.const(offset, "float32"))
