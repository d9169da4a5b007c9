"""LQ-Nets' learned quantizers: one basis per output channel for weights, one per layer for activations.

Each step of training quantizes with the basis at hand, and then moves it: the best basis for this step's values
(:mod:`tvmq.nn.qem`) enters a moving average.  The average starts from zero and is divided by the sum of its weights,
``v = b / (1 - 0.9**t)`` with ``b <- 0.9 b + 0.1 v_new``, as the original implementation's does: after the first step
it is that step's basis alone, and the initial basis only chose the first codes.  (The paper's text has a plain
average.) The basis gets no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributed

from tvmq.nn.estimators import staircase, straight_through
from tvmq.nn.qem import (
    ACTIVATION_RIDGE,
    WEIGHT_RIDGE,
    code_table,
    fitted_basis,
    level_statistics,
    nearest_levels,
    sorted_levels,
    thresholds_between,
)
from tvmq.nn.quantizers import Quantizer

__all__ = ["LearnedActivation", "LearnedWeight"]

DECAY = 0.9
NORMAL_QUARTILE = 0.6745
"""Half of the values of a standard normal distribution lie within it; from the original implementation."""


class _Learned(Quantizer):
    """A quantizer that learns its basis.

    Attributes
    ----------
    basis : Tensor
        ``[rows, K]``: what quantizes now.
    levels, thresholds : Tensor
        ``[rows, 2**K]`` and ``[rows, 2**K - 1]``, of that basis; kept, because sorting is nothing for an exported
        graph.
    average : Tensor
        ``[rows, K]``: ``b`` above.
    steps : Tensor
        int64 scalar: ``t`` above.
    """

    ridge: float
    basis: Tensor
    levels: Tensor
    thresholds: Tensor
    average: Tensor
    steps: Tensor

    def __init__(self, bits: int, basis: Tensor, signed: bool) -> None:
        super().__init__()
        self.bits, self.signed = bits, signed
        levels, _ = sorted_levels(basis, code_table(bits, signed, basis))
        self.register_buffer("basis", basis)
        self.register_buffer("levels", levels)
        self.register_buffer("thresholds", thresholds_between(levels))
        self.register_buffer("average", torch.zeros_like(basis))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=basis.device))

    def evaluated(self, x: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Values on their levels; ``rows`` is the shape in which a number per row is broadcast to them."""
        thresholds = [threshold.reshape(rows) for threshold in self.thresholds.unbind(1)]
        return staircase(x, thresholds, [level.reshape(rows) for level in self.levels.unbind(1)])

    @torch.no_grad()
    def learned(self, values: Tensor, everywhere: bool = False) -> Tensor:
        """Values on their levels; then the basis moves towards the one that fits them best.

        Parameters
        ----------
        values : Tensor
            ``[rows, n]``.
        everywhere : bool
            Whether the processes that train together have other values each, whose statistics are added.

        Returns
        -------
        Tensor
            ``[rows, n]``.
        """
        quantized = nearest_levels(values, self.thresholds, self.levels)
        self.learn(values, everywhere)
        return quantized

    @torch.no_grad()
    def learn(self, values: Tensor, everywhere: bool = False) -> None:
        """Move the basis towards the one that fits best; parameters as for :meth:`learned`."""
        table = code_table(self.bits, self.signed, self.basis)
        _, order = sorted_levels(self.basis, table)
        counts, sums = level_statistics(values, self.thresholds)
        if everywhere and distributed.is_available() and distributed.is_initialized():
            both = torch.stack([counts, sums])
            distributed.all_reduce(both)
            counts, sums = both.unbind(0)
        best = fitted_basis(counts, sums, table[order], self.basis, self.ridge)
        # New tensors, not new contents: the backward pass that torch.compile makes may compute parts of the forward
        # pass again, from those that it read.
        self.steps = self.steps + 1
        self.average = DECAY * self.average + ((1 - DECAY) * best).to(self.average.dtype)
        debiased = self.average.double() / (1 - DECAY ** self.steps.double())
        self.basis = debiased.to(self.basis.dtype)
        self.levels, _ = sorted_levels(self.basis, table)
        self.thresholds = thresholds_between(self.levels)


class LearnedWeight(_Learned):
    """A basis for each output channel, the first dimension; codes are signs; the gradient passes unchanged.

    Parameters
    ----------
    bits : int
        1 to 8.
    weight : Tensor
        The weights, for shape, dtype and device: the first basis is that of the He initialisation, as in the original.
    """

    ridge = WEIGHT_RIDGE

    def __init__(self, bits: int, weight: Tensor) -> None:
        outputs, area = len(weight), math.prod(weight.shape[2:])
        first = NORMAL_QUARTILE * math.sqrt(2 / (area * outputs)) / 2 ** (bits - 1)
        powers = first * 2.0 ** torch.arange(bits, dtype=weight.dtype, device=weight.device)
        super().__init__(bits, powers.repeat(outputs, 1), signed=True)

    def forward(self, weight: Tensor) -> Tensor:
        """Weights ``[out, ...]`` on their levels; the basis learns while training."""
        if not self.training:
            return self.evaluated(weight, (-1, *[1] * (weight.ndim - 1)))
        quantized = self.learned(weight.detach().flatten(1))
        return straight_through(weight, quantized.reshape(weight.shape))


class LearnedActivation(_Learned):
    """One basis for a whole tensor; the gradient passes up to the highest level.

    Parameters
    ----------
    bits : int
        1 to 8.
    signed : bool
        Codes are signs, for values of both signs such as those of tanh, and the gradient passes down to the lowest
        level too; else bits, for values after a ReLU.
    """

    ridge = ACTIVATION_RIDGE

    def __init__(self, bits: int, signed: bool = False) -> None:
        basis = NORMAL_QUARTILE * 2 / (2**bits - 1) * 2.0 ** torch.arange(bits)
        super().__init__(bits, basis[None], signed)

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape on their levels; the basis learns while training."""
        if not self.training:
            return self.evaluated(x, ())
        lowest, highest = self.levels[0, 0], self.levels[0, -1]
        quantized = self.learned(x.detach().reshape(1, -1), everywhere=True)
        return straight_through(x, quantized.reshape(x.shape), lowest if self.signed else -math.inf, highest)
