"""Checks of the arrays that users pass to applications."""

from typing import Any

import numpy as np

from bilevax.problem import InputError


def numbers(name: str, value: Any, *axes: int) -> np.ndarray:
    """A NumPy array of finite real numbers. Its dtype is kept, but for `object`, which becomes float64.

    Args:
        name: of the argument, for messages.
        value: anything that NumPy makes an array of.
        axes: the numbers of axes that are accepted; any where none is given.

    Raises:
        InputError: a sparse matrix, lists of unequal lengths, text, dates, complex numbers, NaN or infinities, or
            another number of axes.

    Example:
        >>> from bilevax.applications._arrays import numbers
        >>> numbers("X", [[1, 2], [3, 4]], 2).shape
        (2, 2)
    """
    if hasattr(value, "toarray"):
        raise InputError(f"{name} is a {type(value).__name__}, and a dense array is needed. Pass {name}.toarray().")
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} is not an array of numbers ({error}). Pass numbers, in rows of equal length."
        ) from error
    if not np.can_cast(array.dtype, np.float64, "same_kind"):
        raise InputError(f"{name} has dtype {array.dtype}, and real numbers are needed. Encode it as real numbers.")
    if axes and array.ndim not in axes:
        wanted = " or ".join(f"{n}-dimensional" for n in axes)
        raise InputError(f"{name} has shape {array.shape}, and must be {wanted}.")
    if array.dtype.kind not in "biu" and (bad := int(array.size - np.isfinite(array).sum())):
        raise InputError(
            f"{name} holds {bad} NaN or infinite values of {array.size}. Fill them, or leave those rows out."
        )
    return array


def codes(name: str, value: Any) -> np.ndarray:
    """Labels (n,) as integers, none of them negative.

    Raises:
        InputError: as for `numbers`; a label that is not whole, or negative.

    Example:
        >>> from bilevax.applications._arrays import codes
        >>> codes("y", [0.0, 2.0])
        array([0, 2])
    """
    array = numbers(name, value, 1)
    whole = array.astype(np.int64)
    if not np.array_equal(whole, array):
        raise InputError(f"{name} holds labels that are not whole numbers. Encode the classes as 0, 1, 2, ...")
    if whole.size and whole.min() < 0:
        raise InputError(f"{name} holds a label {whole.min()}. Labels must be 0 or more: leave those samples out.")
    return whole
