"""The scalars of Info by name, for logs and tables."""

from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Shaped

from bilevax.solvers.base import Info


def named(info: Info, reserved: Iterable[str] = ()) -> dict[str, Shaped[np.ndarray, " *steps"]]:
    """The arrays of Info by name. A scalar of `extra` keeps its name there if that is free and not reserved."""
    found = {name: getattr(info, name) for name in Info._fields if name != "extra"}
    for path, x in jax.tree_util.tree_leaves_with_path(info.extra):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        while name in found or name in reserved:
            name = f"extra/{name}"
        found[name] = x
    return found


def last(info: Info, reserved: Iterable[str] = ()) -> dict[str, Shaped[np.ndarray, "*members"]]:
    """The values of a stretch's last step by name."""
    return {name: x[-1] for name, x in named(info, reserved).items()}


def mean(value: Shaped[np.ndarray, "*members"]) -> float:
    """The mean over the members whose values are finite; NaN if there are none."""
    values = np.asarray(value, float)
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
