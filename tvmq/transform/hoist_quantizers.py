"""Quantize before pooling, reshaping and joining, so that those work on codes and the quantizer meets its producer.

Before::

    c = R.concat((a, b), axis=1)
    p = R.nn.max_pool2d(c)
    q = tvmq.quantize(p, thresholds, codes)

After::

    qa, qb = tvmq.quantize(a, ...), tvmq.quantize(b, ...)
    q = tvmq.max_pool2d(R.concat((qa, qb), axis=1), minimum)

One list of thresholds for all channels makes a quantizer a monotone function of each number, which commutes with all
three.  Codes must run in the order of the levels for max-pool, or against it, which makes it a minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.dialect import constant_array, is_call
from tvmq.transform.monotone import POOLS, RESHAPES
from tvmq.transform.propagate_codes import pool_arguments
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["HoistQuantizers"]


class _Hoister(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "tvmq.quantize"):
            return self.quantized(self.substitute(value.args[0]), value, variable.name)
        return super().bind(variable, value)

    def quantized(self, x: relax.Expr, quantize: Call, name: str) -> relax.Var:
        """The codes of ``x``, quantized as early as possible."""
        definition = self.definition(x)
        if is_call(definition, *RESHAPES):
            codes = self.quantized(definition.args[0], quantize, name)
            return self.emit(Call(definition.op, [codes, *definition.args[1:]], definition.attrs), name)
        if is_call(definition, "relax.concat") and isinstance(self.definition(definition.args[0]), relax.Tuple):
            fields = self.definition(definition.args[0]).fields
            parts = [self.quantized(field, quantize, f"{name}_{index}") for index, field in enumerate(fields)]
            return self.emit(Call(definition.op, [relax.Tuple(parts)], definition.attrs), name)
        order = self.order(quantize)
        if is_call(definition, *POOLS) and definition.attrs["layout"] == "NCHW" and order != 0:
            codes = self.quantized(definition.args[0], quantize, f"{name}_codes")
            minimum = np.full(int(definition.args[0].ty.shape[1]), int(order < 0), np.uint8)
            pooled = dialect.max_pool2d(codes, dialect.constant(minimum), **pool_arguments(definition))
            return self.emit(pooled, name)
        return self.emit(Call(quantize.op, [x, *quantize.args[1:]], quantize.attrs), name)

    @staticmethod
    def order(quantize: Call) -> int:
        """1 if codes ascend with their levels, -1 if they descend, else 0."""
        differences = np.diff(constant_array(quantize.args[2]).astype(np.int64))
        return 1 if np.all(differences > 0) else -1 if np.all(differences < 0) else 0


@tvm.transform.module_pass(opt_level=0, name="tvmq.HoistQuantizers")
class HoistQuantizers:
    """``tvmq.quantize`` moves above max-pool, reshape and concat."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Hoister(module).run()
