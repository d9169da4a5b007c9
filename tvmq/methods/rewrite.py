"""Puts quantized weights and the quantizers of activations into a network.

Before::

    conv1 = R.nn.conv2d(x, weight)

After, with activations of two bits and a correction of the bias::

    x_scaled = R.divide(x, step)
    x_rounded = R.round(x_scaled)
    x_level = R.clip(x_rounded, 0, 3)
    x_quantized = R.multiply(x_level, step)
    conv1 = R.nn.conv2d(x_quantized, quantized_weight)
    conv1_correction = R.add(conv1, correction)

The compiler finds the quantizers and the alphabets of the weights in them.  Layers that read one value share its
quantizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax
from tvm.ir import Call

from tvmq.methods.activations import InputQuantizer
from tvmq.methods.linear_layers import LayerUse, SharedWeight, weight_like
from tvmq.methods.quantized_layer import QuantizedLayer
from tvmq.model import Model
from tvmq.transform.rewriter import BindingRewriter

__all__ = ["rewrite"]


def rewrite(model: Model, layers: Sequence[tuple[SharedWeight, QuantizedLayer]]) -> Model:
    """A model with quantized layers.

    Parameters
    ----------
    model : Model
        Not changed.
    layers : sequence of (SharedWeight, QuantizedLayer)

    Returns
    -------
    Model
        Its ``quantization`` holds the layers' rows.
    """
    module = _Rewriter(model.module, layers).run()
    return Model(module, model.name, model.inputs, model.outputs, tuple(layer.row for _, layer in layers))


class _Rewriter(BindingRewriter):
    def __init__(self, module: Any, layers: Sequence[tuple[SharedWeight, QuantizedLayer]]) -> None:
        super().__init__(module)
        self._layers = {use.variable: (use, layer) for weight, layer in layers for use in weight.uses}
        self._constants = {
            use.variable: weight_like(weight.uses[0], layer.weight) for weight, layer in layers for use in weight.uses
        }
        self._rounded: dict[tuple[Any, InputQuantizer], relax.Expr] = {}

    def bind(self, variable: relax.Var, value: relax.Expr) -> Any:
        if variable not in self._layers:
            return super().bind(variable, value)
        use, layer = self._layers[variable]
        data = self._input(use, layer.quantizer)
        result = self.emit(Call(value.op, [data, self._constants[variable]], value.attrs, value.ty_args), variable.name)
        if layer.correction is None:
            return result
        shape = (1, -1) if use.is_dense else (1, -1, 1, 1)
        correction = relax.const(layer.correction if use.is_dense else layer.correction.reshape(shape), "float32")
        return self.emit(relax.op.add(result, correction), f"{variable.name}_correction")

    def _input(self, use: LayerUse, quantizer: InputQuantizer | None) -> relax.Expr:
        source = use.call.args[0]
        data = self.substitute(source)
        if quantizer is None:
            return data
        key = (data, quantizer)
        if key not in self._rounded:
            name = source.name if isinstance(source, relax.Var) else use.variable.name
            self._rounded[key] = quantizer.emit(data, self.emit, name)
        return self._rounded[key]
