"""AdaMax with shifts instead of multiplications by the learning rate and divisions (QNN, algorithm 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tvmq.errors import InputError
from tvmq.nn.estimators import ap2

__all__ = ["ShiftAdaMax"]

SMALLEST = 2.0**-27
"""Added to the stored maxima, so that nothing is divided by zero."""


class ShiftAdaMax(torch.optim.Optimizer):
    """AdaMax whose step and whose divisor are powers of two.

    With the gradient g of step t,

        m <- beta1 * m + (1 - beta1) * g
        v <- AP2(max(beta2 * v, |g|)) + 2**-27
        w <- w - AP2(lr / (1 - beta1**t)) * m / v

    The defaults are the paper's.  Binary weights are clipped afterwards, by :func:`tvmq.nn.clip_weights`.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        As for every optimiser; :func:`tvmq.nn.parameter_groups` scales the rates of binary weights.
    lr : float
        Learning rate, positive.
    betas : (float, float)
        Decays of the moving average and of the maximum, in [0, 1).

    Raises
    ------
    InputError
        For a rate or a decay outside of its range.
    """

    def __init__(self, params: Any, lr: float = 2.0**-10, betas: tuple[float, float] = (0.875, 1 - 2.0**-10)) -> None:
        if not lr > 0:
            raise InputError(f"ShiftAdaMax: lr={lr} is not supported; use a positive number")
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"ShiftAdaMax: betas={betas} are not supported; use numbers in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss again, and its gradients.

        Returns
        -------
        object
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["average"] = torch.zeros_like(parameter)
            state["largest"] = torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        average, largest = state["average"], state["largest"]
        average.mul_(first).add_(gradient, alpha=1 - first)
        torch.maximum(largest.mul_(second), gradient.abs(), out=largest)
        largest.copy_(ap2(largest) + SMALLEST)
        rate = ap2(torch.tensor(group["lr"] / (1 - first ** state["step"]), dtype=torch.float64)).item()
        parameter.addcdiv_(average, largest, value=-rate)
