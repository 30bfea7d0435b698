"""Sizes of numbers whose squares stay within double precision."""

import numpy as np
from jaxtyping import Float64

from bilevax._checks import InputError

LARGEST_VALUE = 1e100


def require_sizes(name: str, a: Float64[np.ndarray, "..."]) -> None:
    """Refuse columns of a table (n, d), or a vector (n,), whose squares leave double precision."""
    largest = np.abs(a).max(0)
    wrong = (largest > LARGEST_VALUE) | ((largest > 0) & (largest < 1 / LARGEST_VALUE))
    if wrong.any():
        raise InputError(
            f"{name} holds a column whose largest value is {np.ravel(largest)[np.ravel(wrong)][0]:.1e}. Between "
            f"{1 / LARGEST_VALUE:.0e} and {LARGEST_VALUE:.0e} are possible: choose other units for it."
        )
