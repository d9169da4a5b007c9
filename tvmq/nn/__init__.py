"""Training networks with low-bit weights and activations in torch.

:func:`prepare` turns an ordinary module into a trainable low-bit copy; the helpers beside it are the parts of a
training loop that differ from ordinary training; :func:`freeze` makes the trained copy ready for export.
"""

from __future__ import annotations

from tvmq.errors import ToolchainError

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ToolchainError("tvmq.nn needs PyTorch, which is not installed: pip install 'tvmq[torch]'") from error

from tvmq.nn.conversion import freeze, prepare
from tvmq.nn.layers import QuantizedConv2d, QuantizedLinear
from tvmq.nn.normalization import ShiftBatchNorm1d, ShiftBatchNorm2d
from tvmq.nn.optimizers import ShiftAdaMax
from tvmq.nn.recurrent import QuantizedGRU, QuantizedLSTM
from tvmq.nn.training import clip_weights, diverged_layer, estimate_statistics, parameter_groups, squared_hinge_loss

__all__ = [
    "QuantizedConv2d",
    "QuantizedGRU",
    "QuantizedLSTM",
    "QuantizedLinear",
    "ShiftAdaMax",
    "ShiftBatchNorm1d",
    "ShiftBatchNorm2d",
    "clip_weights",
    "diverged_layer",
    "estimate_statistics",
    "freeze",
    "parameter_groups",
    "prepare",
    "squared_hinge_loss",
]
