"""The places that ``--on`` of ``tvmq tune`` names."""

from __future__ import annotations

import re

from tvmq.errors import InputError, TargetError
from tvmq.machine import this_machine
from tvmq.runtime.ssh import Address
from tvmq.target import Target
from tvmq.tuning.hosts import Host, LocalHost, TrackerHost
from tvmq.tuning.simulate import SimulatedHost
from tvmq.tuning.ssh_host import SshHost

__all__ = ["host_of"]

_PLACES = "host, simulate, ssh://user@host, or tracker://address:port/key"


def host_of(on: str, target: Target) -> Host:
    """The place that ``--on`` names.

    Parameters
    ----------
    on : str
        ``"host"``, ``"simulate"``, ``"ssh://user@host:port"`` or ``"tracker://address:port/key"``.
    target : Target
        What is tuned for.

    Returns
    -------
    Host

    Raises
    ------
    InputError
        For another text.
    TargetError
        If this machine cannot run what is built for ``target``, or it has no model.
    ToolchainError
        If a cross compiler, an emulator, llvm-mca or a package is missing, or no tracker answers.
    BoardError
        If the board cannot be reached, or lacks the Python runtime.
    """
    if on == "host":
        obstacle = this_machine().obstacle(target.triple, target.required_cpu_flags)
        if obstacle is not None:
            raise TargetError(
                f"target '{target.name}' {obstacle}; measure on such a machine with --on ssh://user@host or "
                "tracker://address:port/key, or tune without one with --on simulate"
            )
        return LocalHost(target)
    if on.startswith("ssh://"):
        return SshHost(target, Address.parse(on))
    if on == "simulate":
        return SimulatedHost(target)
    match = re.fullmatch(r"tracker://([^:/]+):(\d{1,5})/([\w.-]+)", on)
    if match is None:
        raise InputError(f"cannot tune on {on!r}; use {_PLACES}")
    return TrackerHost(target, match[1], int(match[2]), match[3])
