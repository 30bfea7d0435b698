"""Checks of keys, arrays and trees of them; what `_checks` refuses needs no JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from bilevax._checks import InputError, described, first_line


def check_key(owner: str, key: Any) -> None:
    """Refuse what is not one key of jax.random."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise InputError(f"{owner}: key is {key.size} keys of shape {key.shape}, and must be one key: take key[0].")
        return
    raw = " Keys of jax.random.PRNGKey become such by jax.random.wrap_key_data(key)." if dtype == np.uint32 else ""
    raise InputError(f"{owner}: key is {described(key)}, and must be one key, such as jax.random.key(0).{raw}")


FROM_ELSEWHERE = {
    "torch": "Convert tensors by x.detach().cpu().numpy(); of a module pass its arrays, and a function as the loss.",
    "tensorflow": "Convert it by x.numpy().",
    "keras": "Pass its arrays, and a function of them as the loss.",
    "pandas": "Convert it by x.to_numpy().",
    "polars": "Convert it by x.to_numpy().",
    "pyarrow": "Convert it by x.to_numpy().",
    "scipy": "Convert it by x.toarray().",
    "flax": "Pass its arrays alone: variables of linen, nnx.state of nnx.",
}


def require_arrays(name: str, tree: PyTree) -> None:
    """Refuse what JAX does not take as an array, and numbers that it would change without a warning.

    Raises:
        InputError: a leaf is not an array of numbers, is masked, or holds numbers that do not fit the type it gets:
            without jax_enable_x64, 64-bit numbers become 32-bit numbers.
    """
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
    except (TypeError, ValueError) as error:  # keys of a dict that cannot be sorted
        raise InputError(f"{name} is not a tree that JAX can take apart ({first_line(error).rstrip('.')}).") from error
    for path, x in leaves:
        _require_array(f"{name}{jax.tree_util.keystr(path)}", x)


def _require_array(where: str, x: Any) -> None:
    if isinstance(x, jax.Array | jax.ShapeDtypeStruct):
        return
    if isinstance(x, np.ma.MaskedArray):
        raise InputError(f"{where} is a masked array, whose mask would be lost. Fill it by x.filled(...) first.")
    if not isinstance(x, np.ndarray | np.generic | bool | int | float | complex):
        origins = (kind.__module__.partition(".")[0] for kind in type(x).__mro__)
        advice = next((FROM_ELSEWHERE[o] for o in origins if o in FROM_ELSEWHERE), "")
        if not advice and callable(x):
            advice = (
                "Modules that hold functions beside their arrays are to be split, say by "
                "equinox.partition(model, equinox.is_inexact_array); pass the arrays."
            )
        raise InputError(f"{where} is {_article(type(x).__name__)}, and must be an array of numbers. {advice}".rstrip())
    try:
        dtype = np.dtype(jax.typeof(x).dtype)
    except OverflowError:
        raise InputError(f"{where} is {described(x)}, which does not fit an integer of JAX. Scale it.") from None
    except (TypeError, ValueError):
        kind = getattr(x, "dtype", None)
        found = f"is {described(x)}" if kind is None else f"has dtype {kind}"
        raise InputError(f"{where} {found}, which JAX has no arrays of. Convert it to numbers.") from None
    values = np.asarray(x)
    if values.dtype == dtype or not values.size:
        return
    if jnp.issubdtype(dtype, jnp.integer):
        low, high = int(values.min()), int(values.max())
        bounds = jnp.iinfo(dtype)
        changed = low if low < bounds.min else high if high > bounds.max else None
    else:
        with np.errstate(over="ignore"):
            lost = np.isfinite(values) & ~np.isfinite(values.astype(dtype))
        changed = values[lost].flat[0] if lost.any() else None
    if changed is not None:
        raise InputError(
            f"{where} holds {changed}, which does not fit {dtype}. Scale it, or call "
            'jax.config.update("jax_enable_x64", True) first.'
        )


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def check_variable(name: str, x: PyTree) -> None:
    """Refuse a variable that is empty, not floating or not finite."""
    require_arrays(name, x)
    leaves = jax.tree_util.tree_leaves_with_path(x)
    if not leaves:
        raise InputError(f"{name} holds no arrays ({described(x)}). Pass a pytree of floating arrays.")
    for path, leaf in leaves:
        where, dtype = f"{name}{jax.tree_util.keystr(path)}", jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f"{where} has dtype {dtype}, and must be floating, since it is moved by gradients. "
                f"Convert it, say by jnp.asarray(x, float), or keep it out of {name}."
            )
        if np.size(leaf) == 0:
            raise InputError(f"{where} is empty (shape {np.shape(leaf)}). Remove this leaf, or give it entries.")
    check_finite(name, x)


def check_finite(name: str, tree: PyTree) -> None:
    """Refuse NaN and infinity in a tree of data or variables. Traced arrays are not looked at."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
            continue
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        on_device = isinstance(leaf, jax.Array)
        with jax.ensure_compile_time_eval():  # the caller may be traced
            bad = int(_non_finite(leaf)) if on_device else int((~np.isfinite(leaf)).sum())
        if bad:
            first = ""
            if np.ndim(leaf) and (not on_device or leaf.is_fully_addressable):
                first = f" (the first at {np.argwhere(~np.isfinite(np.asarray(leaf)))[0].tolist()})"
            raise InputError(
                f"{name}{jax.tree_util.keystr(path)} holds {bad} NaN or infinite "
                f"{'value' if bad == 1 else 'values'} of {np.size(leaf)}{first}. Remove or fill them before solving."
            )


@jax.jit
def _non_finite(x: jax.Array) -> jax.Array:
    return x.size - jnp.isfinite(x).sum()
