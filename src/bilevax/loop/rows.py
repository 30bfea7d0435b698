"""The Info of the steps of a compiled loop, packed: one write in a step for all scalars of one type."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from bilevax.solvers.base import Info

Rows = tuple[Array, ...]  # leading axes: the steps, and the leaves of an Info that have one shape and type


def empty_rows(count: int, shapes: Info) -> Rows:
    """Return the rows of `count` steps; `shapes` are those of an Info."""
    return tuple(jnp.zeros((count, *x.shape), x.dtype) for x in jax.eval_shape(_packed, shapes))


def written(rows: Rows, info: Info, i: Int[ArrayLike, ""]) -> Rows:
    """Return the rows with the Info of step i."""
    return tuple(jax.lax.dynamic_update_index_in_dim(all, x, i, 0) for all, x in zip(rows, _packed(info), strict=True))


def joined(rows: Rows, some: Rows, i: Int[ArrayLike, ""]) -> Rows:
    """Return the rows with others from step i on."""
    return tuple(jax.lax.dynamic_update_slice_in_dim(all, x, i, 0) for all, x in zip(rows, some, strict=True))


def unpacked(rows: Rows, shapes: Info, count: int) -> Info:
    """Return the Info of the first `count` steps, with a leading axis of steps."""
    leaves, form = jax.tree.flatten(shapes)
    kinds = [(x.shape, x.dtype) for x in leaves]
    groups = dict(zip(dict.fromkeys(kinds), rows, strict=True))
    return jax.tree.unflatten(form, [groups[k][:count, kinds[:i].count(k)] for i, k in enumerate(kinds)])


def _packed(info: Info) -> Rows:
    groups: dict[Any, list[Any]] = {}
    for x in jax.tree.leaves(info):
        groups.setdefault((x.shape, x.dtype), []).append(x)
    return tuple(jnp.stack(group) for group in groups.values())
