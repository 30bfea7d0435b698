"""Columns in units of their own, so that results do not depend on a user's units."""

import numpy as np
from jaxtyping import Float64, Int

from bilevax._checks import InputError

LARGEST_VALUE = 1e100  # squares, and products of two units, stay within double precision


def require_sizes(name: str, a: Float64[np.ndarray, "..."]) -> None:
    """Refuse columns of a table (n, d), or a vector (n,), whose squares leave double precision."""
    largest = np.abs(a).max(0)
    wrong = (largest > LARGEST_VALUE) | ((largest > 0) & (largest < 1 / LARGEST_VALUE))
    if wrong.any():
        raise InputError(
            f"{name} holds a column whose largest value is {np.ravel(largest)[np.ravel(wrong)][0]:.1e}. Between "
            f"{1 / LARGEST_VALUE:.0e} and {LARGEST_VALUE:.0e} are possible: choose other units for it."
        )


def standard(
    a: Float64[np.ndarray, "n d"], index: Int[np.ndarray, " d"]
) -> tuple[Float64[np.ndarray, "n d"], Float64[np.ndarray, " d"]]:
    """Centred columns, each divided by its unit; and the units.

    Args:
        a: columns that `require_sizes` accepts.
        index: the group of each column, 0, 1, ... The columns of a group share one unit, the root mean square of their
            standard deviations. A column that is constant up to rounding becomes zero and does not enter the mean.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications._units import standard
        >>> scaled, unit = standard(np.array([[0.0, 5.0], [4.0, 5.0]]), np.array([0, 1]))
        >>> scaled.tolist(), unit.tolist()
        ([[-1.0, 0.0], [1.0, 0.0]], [2.0, 1.0])
    """
    largest = np.abs(a).max(0)
    largest[largest == 0] = 1.0
    a = a / largest
    a = a - a.mean(0)
    spread = a.std(0)
    constant = spread <= 8 * np.finfo(np.float64).eps
    a[:, constant] = 0.0
    spread = np.where(constant, 0.0, spread * largest)
    top = np.zeros(index.max() + 1)
    np.maximum.at(top, index, spread)
    top[top == 0] = 1.0
    mean = np.bincount(index, (spread / top[index]) ** 2) / np.bincount(index)
    unit = (top * np.where(mean > 0, np.sqrt(mean), 1.0))[index]
    return a * (largest / unit), unit
