"""Checks that the configurations of all methods share."""

from __future__ import annotations

from tvmq.errors import InputError

__all__ = ["check_choice", "name_patterns"]


def check_choice(method: str, field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise an :class:`InputError` that lists the choices unless ``value`` is one of them."""
    if value not in choices:
        legal = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"{method}: {field}={value!r} is not supported; use one of {legal}")


def name_patterns(method: str, skip: object) -> tuple[str, ...]:
    """The ``skip`` of a configuration as a tuple; anything but a tuple or list of strings is an :class:`InputError`."""
    # A lone string is a sequence of one-letter patterns: almost certainly not what was meant.
    if isinstance(skip, (tuple, list)) and all(isinstance(pattern, str) for pattern in skip):
        return tuple(skip)
    raise InputError(
        f"{method}: skip={skip!r} is not supported; use a tuple of layer names or patterns, such as ('conv1',)"
    )
