"""Bit-serial kernels: what is computed, and how, per family of processors."""
