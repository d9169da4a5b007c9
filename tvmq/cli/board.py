"""The address of a board on the command line."""

from __future__ import annotations

import typer

from tvmq.errors import InputError
from tvmq.runtime.ssh import Address

__all__ = ["checked_address"]


def checked_address(text: str | None) -> str | None:
    """A board's address; a slip in it is wrong usage.

    Parameters
    ----------
    text : str or None
        ``ssh://user@host:port``, or less of it.

    Returns
    -------
    str or None
        The same.

    Raises
    ------
    typer.BadParameter
        If it is none.
    """
    try:
        if text is not None:
            Address.parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return text
