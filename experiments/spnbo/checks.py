"""Checks of the settings of SPNBO's experiments."""

from typing import Any

from bilevax._checks import InputError, require_number


def positive(owner: str, name: str, value: Any) -> float:
    """Return a positive number as a float; anything else is refused."""
    number = require_number(owner, name, value)
    if not number > 0:
        raise InputError(f"{owner}: {name} is {value!r}, and must be a positive number.")
    return number
