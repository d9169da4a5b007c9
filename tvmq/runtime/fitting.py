"""Which library belongs on which board: decided from what the board says, before anything is sent there.

A library for another core is refused even where it would run: scheduled for a Cortex-A72, a kernel is three times
slower on a Cortex-A53 than one that was scheduled for it; and instructions that the core lacks end the program.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from tvmq.errors import BoardError
from tvmq.machine import architecture_of
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.facts import Facts
from tvmq.target import Target, list_targets

__all__ = ["choose_library", "fitting_target", "needed_glibc", "platform_target", "unfit"]

_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)")


def fitting_target(facts: Facts) -> Target | None:
    """The target that networks should be compiled for to run on a board.

    Parameters
    ----------
    facts : Facts
        Of the board.

    Returns
    -------
    Target or None
        The one of its core, otherwise the one that uses most of its instructions; None if none fits.
    """
    fitting = [target for target in list_targets() if target.board is None and _runs(target, facts)]

    def rank(target: Target) -> tuple[bool, int, int, str]:
        model = facts.model or ""
        # Boards that share a core are told apart by their names.
        named = _equal_words(target.description.replace(",", " "), model)
        return target.mcpu != facts.machine.core, -len(target.required_cpu_flags), -named, target.name

    return min(fitting, key=rank, default=None)


def choose_library(bundle: Bundle, facts: Facts, place: str, target: str | None = None) -> str:
    """The target of a file whose library is to run on a board.

    Parameters
    ----------
    bundle : Bundle
        A compiled network.
    facts : Facts
        Of the board.
    place : str
        The board, for messages.
    target : str, optional
        The only one to look at.

    Returns
    -------
    str
        One of ``bundle.targets``.

    Raises
    ------
    BundleError
        If the network is not compiled, or not for ``target``.
    BoardError
        If no library fits the board, or ``target``'s does not.
    """
    bundle.require_compiled()
    if target is not None:
        bundle.layers(target)  # says which targets there are, if it is none of them
    entries = {name: bundle.manifest["targets"][name] for name in ([target] if target else bundle.targets)}
    obstacles = {name: _obstacle(entry, facts) for name, entry in entries.items()}
    fitting = [name for name, obstacle in obstacles.items() if obstacle is None]
    if fitting:
        return min(fitting, key=lambda name: _rank(entries[name], facts, name))
    file = bundle.path or bundle.manifest["name"]
    reasons = "; ".join(f"its library for '{name}' {obstacle}" for name, obstacle in obstacles.items())
    raise BoardError(
        f"{file}: does not fit {place} ({facts.processor}, {facts.machine.arch}): {reasons}; {_way(facts)}"
    )


def unfit(target: Target, facts: Facts) -> str | None:
    """Why code for a target does not belong on a board.

    Parameters
    ----------
    target : Target
    facts : Facts

    Returns
    -------
    str or None
        A clause such as ``"is for cortex-a72, and the board's core is cortex-a53"``, or None where it does.
    """
    entry = {"triple": target.triple, "mcpu": target.mcpu, "required_cpu_flags": target.required_cpu_flags}
    return _obstacle(entry, facts)


def platform_target(name: str, triple: str) -> Target:
    """A target for whose platform a runner can be built.

    Parameters
    ----------
    name : str
        Of the library's target; it may have been compiled on another kind of machine, or be unknown here.
    triple : str
        Of the library.

    Returns
    -------
    Target

    Raises
    ------
    BoardError
        If no target here is of that platform.
    """
    known = {target.name: target for target in list_targets()}
    arch = architecture_of(triple)
    if name in known and known[name].arch == arch:
        return known[name]
    same = [target for target in known.values() if target.arch == arch]
    if not same:
        raise BoardError(f"no runner can be built for {triple}: no file in targets/ is of that platform")
    return same[0]


def needed_glibc(program: bytes) -> tuple[int, int]:
    """The C library that a program or library needs at least.

    Parameters
    ----------
    program : bytes
        Its file.

    Returns
    -------
    tuple of (int, int)
        Such as ``(2, 34)``; ``(0, 0)`` if it needs none.
    """
    return max(((int(major), int(minor)) for major, minor in _GLIBC.findall(program)), default=(0, 0))


def _equal_words(one: str, other: str) -> int:
    """How many words two texts begin with in common."""
    pairs = zip(one.split(), other.split(), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _runs(target: Target, facts: Facts) -> bool:
    return facts.machine.obstacle(target.triple, target.required_cpu_flags) is None


def _obstacle(entry: Mapping[str, Any], facts: Facts) -> str | None:
    obstacle = facts.machine.obstacle(entry["triple"], entry["required_cpu_flags"])
    if obstacle is not None:
        return obstacle.replace("this is", "the board's system is").replace("this processor", "the board")
    best = fitting_target(facts)
    # Where no target is for the board's own core, whatever runs there is the best there is.
    if best is None or best.mcpu != facts.machine.core or entry["mcpu"] in facts.cores:
        return None
    return f"is for {entry['mcpu']}, and the board's core is {facts.machine.core}"


def _rank(entry: Mapping[str, Any], facts: Facts, name: str) -> tuple[bool, int, str]:
    return entry["mcpu"] != facts.machine.core, -len(entry["required_cpu_flags"]), name


def _way(facts: Facts) -> str:
    best = fitting_target(facts)
    if best is None:
        return "tvmq knows no target for this board; `tvmq targets` lists those it knows"
    return f"compile it with `tvmq compile SOURCE --target {best.name}`"
