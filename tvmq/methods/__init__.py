"""The quantization methods: one configuration per paper, each naming bit widths and the layers to leave in float."""

from __future__ import annotations

from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.lqnets import LQNets
from tvmq.methods.qnn import QNN

__all__ = ["GPFQ", "QNN", "LQNets"]
