"""Move ``dequantize`` below the operations that only choose or rearrange values, so that they work on codes.

Before::

    b = tvmq.dequantize(q, ...)
    p = R.nn.max_pool2d(b)
    f = R.reshape(p, (n, k))             # and R.concat of tensors with one encoding

After::

    p = tvmq.max_pool2d(q, minimum)
    f = R.reshape(p, (n, k))
    b = tvmq.dequantize(f, ...)

Max-pool needs the codes to be in the order of their values; in descending order it takes the minimum.  An encoding
with one scale per channel stays where it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from tvmq import dialect
from tvmq.bitplanes import Encoding
from tvmq.dialect import constant_array, encoding_of, is_call
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["PropagateCodes", "pool_arguments"]


def pool_arguments(call: Call) -> dict[str, Any]:
    """Arguments of :func:`tvmq.dialect.max_pool2d` that do what a ``R.nn.max_pool2d`` does."""
    attrs = call.attrs
    return {
        "pool_size": attrs["pool_size"],
        "strides": attrs["strides"],
        "padding": attrs["padding"],
        "dilation": attrs["dilation"],
        "ceil_mode": bool(attrs["ceil_mode"]),
    }


def _order(encoding: Encoding) -> int:
    """1 if values ascend with their codes, -1 if they descend, else 0."""
    values = encoding.values(np.arange(2**encoding.planes, dtype=np.uint8)).astype(np.float64)
    differences = np.diff(values)
    return 1 if np.all(differences > 0) else -1 if np.all(differences < 0) else 0


class _Propagator(BindingRewriter):
    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if is_call(value, "relax.concat"):
            joined = self.joined(variable, value)
            if joined is not None:
                return joined
        if is_call(value, "relax.nn.max_pool2d", "relax.reshape", "relax.flatten"):
            source = self.definition(self.substitute(value.args[0]))
            if is_call(source, "tvmq.dequantize") and all(
                constant_array(argument).ndim == ndim for argument, ndim in zip(source.args[1:], (1, 0, 0), strict=True)
            ):
                moved = self.on_codes(value, source)
                if moved is not None:
                    codes = self.emit(moved, f"{variable.name}_codes")
                    return self.emit(Call(source.op, [codes, *source.args[1:]], source.attrs), variable.name)
        return super().bind(variable, value)

    def joined(self, variable: relax.Var, call: Call) -> relax.Var | None:
        """A concat of dequantized tensors of one encoding as the dequantize of a concat of codes."""
        fields = self.definition(self.substitute(call.args[0]))
        if not isinstance(fields, relax.Tuple):
            return None
        sources = [self.definition(field) for field in fields.fields]
        if not all(is_call(source, "tvmq.dequantize") for source in sources):
            return None
        first = [constant_array(argument) for argument in sources[0].args[1:]]
        for source in sources[1:]:
            others = [constant_array(argument) for argument in source.args[1:]]
            if not all(np.array_equal(one, other) for one, other in zip(first, others, strict=True)):
                return None
        if [array.ndim for array in first] != [1, 0, 0]:
            return None
        codes = relax.Tuple([source.args[0] for source in sources])
        joined = self.emit(Call(call.op, [codes], call.attrs), f"{variable.name}_codes")
        return self.emit(Call(sources[0].op, [joined, *sources[0].args[1:]], sources[0].attrs), variable.name)

    def on_codes(self, call: Call, source: Call) -> Call | None:
        codes = source.args[0]
        if not is_call(call, "relax.nn.max_pool2d"):
            return Call(call.op, [codes, *call.args[1:]], call.attrs)
        order = _order(encoding_of(source))
        if order == 0 or call.attrs["layout"] != "NCHW":
            return None
        channels = int(call.args[0].ty.shape[1])
        minimum = np.full(channels, int(order < 0), np.uint8)
        return dialect.max_pool2d(codes, dialect.constant(minimum), **pool_arguments(call))


@tvm.transform.module_pass(opt_level=0, name="tvmq.PropagateCodes")
class PropagateCodes:
    """``dequantize`` moves below max-pool, reshape, flatten and concat."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return _Propagator(module).run()
