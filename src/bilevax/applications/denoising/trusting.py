"""Which samples are trusted, as users say it."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from bilevax._checks import InputError


def mask_of(trusted: Any, n: int) -> Bool[np.ndarray, " n"]:
    """The trusted samples as truth values; none for None.

    Raises:
        InputError: it is not one truth value for each of n samples.
    """
    if trusted is None:
        return np.zeros(n, bool)
    try:
        found = np.asarray(trusted)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"trusted is not an array ({error}). Pass one truth value for each of {n} samples.") from error
    if found.shape != (n,) or not (found.dtype.kind == "b" or set(found.tolist()) <= {0, 1}):
        raise InputError(
            f"trusted has shape {found.shape} and dtype {found.dtype}, and must be one truth value for each of {n} "
            "samples: trusted[i] is true if the label of sample i is known to be right."
        )
    return found.astype(bool)
