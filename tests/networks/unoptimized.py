"""Targets for which LLVM optimizes nothing: a library takes less than half of the time to compile.

What tvmq does to a network is the same, pass by pass: nothing of it knows how much effort LLVM makes.  So networks that
search for mistakes of recognising, folding, lowering and scheduling can do without LLVM's optimizations, as long as
others run what users get.
"""

from __future__ import annotations

import dataclasses

import tvm

from tvmq.target import Target, get_target


class Unoptimized(Target):
    """A core whose code LLVM leaves as it is."""

    def tvm_target(self) -> tvm.target.Target:
        """The same as TVM describes it."""
        return tvm.target.Target({**super().tvm_target().export(), "opt-level": 0})


def unoptimized(name: str) -> Target:
    """A target of that name, and all of its properties.

    Parameters
    ----------
    name : str
        As for :func:`tvmq.target.get_target`.

    Returns
    -------
    Target
    """
    known = get_target(name)
    return Unoptimized(**{field.name: getattr(known, field.name) for field in dataclasses.fields(known)})
