"""Batch norms over floats become one fused multiply-add per element.

Before::

    bn = R.nn.batch_norm(x, gamma, beta, mean, variance)[0]

After::

    bn = tvmq.affine(x, scale, offset)

TVM would write the batch norm as four operations, and compilers contract some of those on some targets: the last bit
would depend on the machine.  With scale and offset composed in float64 and a fused multiply-add by definition it does
not.  Runs after ``FoldEpilogues``, which takes the batch norms that follow an integer accumulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.dialect import constant_value, is_call
from tvmq.errors import ModelError
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["BatchNorm", "FoldBatchNorms", "batch_norm"]


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """Inference parameters of one batch norm over axis 1, float64 of shape (C,)."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``(x - mean) / deviation * gamma + beta`` along the last axis."""
        return (x - self.mean) / self.deviation * self.gamma + self.beta

    @property
    def scale(self) -> np.ndarray:
        """The factor of x."""
        return self.gamma / self.deviation

    @property
    def offset(self) -> np.ndarray:
        """The value at x = 0."""
        return self.beta - self.mean * self.scale


def batch_norm(call: Call, layer: str) -> BatchNorm | None:
    """The parameters of a ``R.nn.batch_norm``.

    Parameters
    ----------
    call : Call
    layer : str
        The layer before it, for messages.

    Returns
    -------
    BatchNorm or None
        None if the parameters are not constants or the axis is not 1.

    Raises
    ------
    ModelError
        If a parameter is NaN or infinite, or a variance is not positive.
    """
    parameters = [array for argument in call.args[1:5] if (array := constant_value(argument)) is not None]
    if int(call.attrs["axis"]) != 1 or len(parameters) != 4:
        return None
    gamma, beta, mean, variance = (parameter.astype(np.float64) for parameter in parameters)
    with np.errstate(invalid="ignore"):
        deviation = np.sqrt(variance + float(call.attrs["epsilon"]))
    result = BatchNorm(
        gamma if bool(call.attrs["scale"]) else np.ones_like(mean),
        beta if bool(call.attrs["center"]) else np.zeros_like(mean),
        mean,
        deviation,
    )
    finite = all(np.isfinite(array).all() for array in (result.gamma, result.beta, mean, deviation))
    if not finite or not np.all(deviation > 0):
        raise ModelError(
            f"layer '{layer}': the batch norm after it has a NaN or infinite parameter or a variance that is not "
            "positive; check the trained weights"
        )
    return result


class _Folder(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if isinstance(value, relax.TupleGetItem) and value.index == 0:
            source = self.definition(self.substitute(value.tuple_value))
            if is_call(source, "relax.nn.batch_norm") and source.args[0].ty.dtype == "float32":
                before = source.args[0]
                norm = batch_norm(source, before.name if isinstance(before, relax.Var) else variable.name)
                if norm is not None:
                    arrays = (norm.scale, norm.offset)
                    constants = (dialect.constant(array.astype(np.float32)) for array in arrays)
                    return self.emit(dialect.affine(before, *constants), variable.name)
        return super().bind(variable, value)


@tvm.transform.module_pass(opt_level=0, name="tvmq.FoldBatchNorms")
class FoldBatchNorms:
    """Batch norms with constant parameters become ``tvmq.affine``."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Folder(module).run()
