"""Tuning: the knobs of every kernel of a network, searched by MetaSchedule and kept as records."""

from tvmq.tuning.tune import TunedKernel, TuneProgress, TuneResult, tune, tune_kernels

__all__ = ["TuneProgress", "TuneResult", "TunedKernel", "tune", "tune_kernels"]
