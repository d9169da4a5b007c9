"""Running a compiled network on a board, without leaving anything there."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmq.runtime.bundle import Bundle
from tvmq.runtime.facts import facts_of
from tvmq.runtime.fitting import choose_library
from tvmq.runtime.installation import contents, send
from tvmq.runtime.ssh import Address, Connection
from tvmq.runtime.tensors import check_inputs

__all__ = ["run_on_board"]


def run_on_board(bundle: Bundle, address: str, *arrays: Any, target: str | None = None) -> list[np.ndarray]:
    """Run a network on a board, through the runner that needs no Python there.

    Parameters
    ----------
    bundle : Bundle
        A compiled network.
    address : str
        The board: ``ssh://user@host:port``, or less of it.
    *arrays : array-like
        One array per input of the network.
    target : str, optional
        Whose library to run; by default the one that fits the board best.

    Returns
    -------
    list of numpy.ndarray
        One array per output.

    Raises
    ------
    InputError
        If the arrays are not what the network takes, or the address is none.
    BundleError
        If the network is not compiled, or not for ``target``.
    BoardError
        If the board cannot be reached, no library fits it, or the run fails.
    ToolchainError
        If the runner cannot be built.
    """
    bundle.require_compiled()
    checked = check_inputs(bundle.inputs, arrays)
    with Connection(Address.parse(address)) as connection:
        place, facts = str(connection.address), facts_of(connection)
        chosen = choose_library(bundle, facts, place, target)
        files = contents(bundle, chosen, facts, place, checked, ".parts", "cpp")
        with send(connection, files) as part:
            return part.run(len(checked), repeat=1).outputs
