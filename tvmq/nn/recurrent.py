"""LSTM and GRU whose matrix products are quantized.

Weights, the input of each step and the hidden state are quantized where they enter a product; gates, and the LSTM's
cell, are computed in real numbers (QNN, section 5.4).  All steps share the quantizers, as they share the weights.

A layer is a loop over its steps, which an exporter unrolls: one product takes the inputs of all steps, as they do not
wait for each other, and one per step takes the hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvmq.errors import InputError
from tvmq.nn.layers import GradientQuantizer, QuantizedLayer
from tvmq.nn.quantizers import Quantizer

__all__ = ["QuantizedGRU", "QuantizedLSTM"]


class _Recurrent(QuantizedLayer):
    """What LSTM and GRU share."""

    def __init__(
        self,
        layer: nn.LSTM | nn.GRU,
        weight: Callable[[Tensor], Quantizer],
        activation: Callable[[], Quantizer],
        gradient: GradientQuantizer | None = None,
    ) -> None:
        super().__init__()
        if layer.proj_size:
            raise InputError(
                f"prepare: {type(layer).__name__} with proj_size={layer.proj_size} is not supported; use 0"
            )
        self.input_size, self.hidden_size, self.num_layers = layer.input_size, layer.hidden_size, layer.num_layers
        self.batch_first, self.dropout = layer.batch_first, layer.dropout
        self.bidirectional, self.bias = layer.bidirectional, layer.bias
        self.gradient_quantizer, self.frozen = gradient, False
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)
        named = {name: weight(parameter) for name, parameter in layer.named_parameters() if name.startswith("weight")}
        self.weight_quantizers = nn.ModuleDict(named)
        self.input_quantizers = nn.ModuleDict({name: activation() for name in named})
        self.train(layer.training)

    def weights(self) -> dict[str, Quantizer]:
        """The quantizers of all weights."""
        return dict(self.weight_quantizers.items())

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"

    def cell(self, suffix: str) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """A step: from the product of the input and the state before to the state after, the hidden one first."""
        raise NotImplementedError

    def product(self, kind: str, suffix: str) -> Callable[[Tensor], Tensor]:
        """The product of an operand with the weight of the inputs ("ih") or of the hidden states ("hh")."""
        name = f"weight_{kind}{suffix}"
        weight, quantizer = self.quantized_weight(name), self.input_quantizers[name]
        bias = getattr(self, f"bias_{kind}{suffix}") if self.bias else None
        return lambda x: self.with_gradient(F.linear(quantizer(x), weight, bias))

    def run(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers; ``x`` is ``[steps, batch, features]``, states ``[layers * directions, batch, hidden]``."""
        suffixes = ["", "_reverse"] if self.bidirectional else [""]
        after: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            sequences = []
            for direction, name in enumerate(suffixes):
                index = layer * len(suffixes) + direction
                before = tuple(state[index] for state in states)
                sequence, last = self.run_direction(x, before, f"_l{layer}{name}", reverse=direction == 1)
                sequences.append(sequence)
                after.append(last)
            x = torch.cat(sequences, dim=2) if len(sequences) > 1 else sequences[0]
            if self.dropout and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(state) for state in zip(*after, strict=True))

    def run_direction(
        self, x: Tensor, state: tuple[Tensor, ...], suffix: str, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer in one direction."""
        inputs = self.product("ih", suffix)(x).unbind(0)
        cell = self.cell(suffix)
        hidden = []
        for step in reversed(inputs) if reverse else inputs:
            state = cell(step, state)
            hidden.append(state[0])
        return torch.stack(hidden[::-1] if reverse else hidden), state

    def sequence(self, x: Tensor) -> Tensor:
        """The input with the steps first."""
        if x.ndim != 3:
            raise InputError(f"{type(self).__name__}: expected a batch of sequences, 3-D, got a {x.ndim}-D tensor")
        return x.transpose(0, 1) if self.batch_first else x

    def zeros(self, x: Tensor) -> Tensor:
        """A state to start from."""
        directions = 2 if self.bidirectional else 1
        return x.new_zeros(self.num_layers * directions, x.shape[1], self.hidden_size)


class QuantizedLSTM(_Recurrent):
    """LSTM with quantized products.

    Parameters
    ----------
    layer : nn.LSTM
        Its very parameters are taken over; itself it is not changed.
    weight : callable
        Makes the quantizer of a weight.
    activation : callable
        Makes the quantizer of a layer's inputs, or of its hidden states.
    gradient : GradientQuantizer, optional
        Of the gradients of the products.

    Raises
    ------
    InputError
        For layers with a projection of the hidden state.
    """

    def cell(self, suffix: str) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """Gates i, f, g, o, as :class:`torch.nn.LSTM` orders them."""
        product = self.product("hh", suffix)

        def step(inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, memory = state
            i, f, g, o = (inputs + product(hidden)).chunk(4, dim=1)
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(memory), memory

        return step

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
        """As :meth:`torch.nn.LSTM.forward`, for batches of sequences of equal length."""
        x = self.sequence(x)
        output, after = self.run(x, state if state is not None else (self.zeros(x), self.zeros(x)))
        return output.transpose(0, 1) if self.batch_first else output, after


class QuantizedGRU(_Recurrent):
    """GRU with quantized products.

    Parameters
    ----------
    layer : nn.GRU
        Its very parameters are taken over; itself it is not changed.
    weight : callable
        Makes the quantizer of a weight.
    activation : callable
        Makes the quantizer of a layer's inputs, or of its hidden states.
    gradient : GradientQuantizer, optional
        Of the gradients of the products.

    Raises
    ------
    InputError
        For layers with a projection of the hidden state.
    """

    def cell(self, suffix: str) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """Gates r, z, n, as :class:`torch.nn.GRU` orders them."""
        product = self.product("hh", suffix)

        def step(inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (hidden,) = state
            reset_input, update_input, new_input = inputs.chunk(3, dim=1)
            reset_hidden, update_hidden, new_hidden = product(hidden).chunk(3, dim=1)
            update = torch.sigmoid(update_input + update_hidden)
            new = torch.tanh(new_input + torch.sigmoid(reset_input + reset_hidden) * new_hidden)
            return ((1 - update) * new + update * hidden,)

        return step

    def forward(self, x: Tensor, state: Tensor | None = None) -> Any:
        """As :meth:`torch.nn.GRU.forward`, for batches of sequences of equal length."""
        x = self.sequence(x)
        output, (after,) = self.run(x, (state if state is not None else self.zeros(x),))
        return output.transpose(0, 1) if self.batch_first else output, after
