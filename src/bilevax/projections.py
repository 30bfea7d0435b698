"""Orthogonal projections that `optax.projections` lacks, with their derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

HALVINGS = 100


def box_section(
    v: Float[Array, " n"],
    weights: Float[Array, " n"],
    total: Float[ArrayLike, ""],
    low: Float[ArrayLike, "..."],
    high: Float[ArrayLike, "..."],
) -> Float[Array, " n"]:
    """Return the projection onto {x: low <= x <= high, weights . x = total}, such as the set of an SVM's dual.

    The projection is clip(v - t weights, low, high) with the t for which the sum is `total`. It is found by bisection,
    and then computed from the entries that are not at a bound, so that it has exact derivatives in all arguments.

    Args:
        v: the point.
        weights: of the sum; not all zero.
        total: the sum. If no point of the box has it, the result is NaN.
        low, high: the bounds, finite numbers or arrays of shape (n,).

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.projections import box_section
        >>> print(box_section(jnp.array([2.0, 0.5, -1.0]), jnp.ones(3), 1.0, 0.0, 1.0))
        [1. 0. 0.]
    """
    v, weights, low, high = (jnp.asarray(x, v.dtype) for x in (v, weights, low, high))

    def clipped(t: Any) -> Any:
        return jnp.clip(v - t * weights, low, high)

    # Beyond `reach` every entry is at the bound that lowers or raises the sum the most.
    used = weights != 0
    reach = jax.lax.stop_gradient(
        jnp.max(jnp.where(used, jnp.maximum(jnp.abs(v - low), jnp.abs(v - high)) / jnp.abs(weights), 0))
    )

    def half(ends: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        a, b = ends
        middle = (a + b) / 2
        above = jnp.sum(weights * clipped(middle)) > total  # the sum falls with t
        return (jnp.where(above, middle, a), jnp.where(above, b, middle)), None

    (a, b), _ = jax.lax.scan(half, (-reach, reach), None, length=HALVINGS)
    t = jax.lax.stop_gradient((a + b) / 2)
    at = jax.lax.stop_gradient(v) - t * weights
    bound = jnp.where(at <= low, low, high)
    free = (at > low) & (at < high) & used
    size = jnp.sum(jnp.where(free, weights**2, 0))
    held = jnp.sum(jnp.where(free, weights * v, weights * jnp.where(at <= low, low, jnp.where(at >= high, high, v))))
    t = jnp.where(size > 0, (held - total) / jnp.where(size > 0, size, 1), t)
    found = jnp.where(free, v - t * weights, jnp.where(used | (at <= low) | (at >= high), bound, v))
    most = jnp.sum(jnp.maximum(weights * low, weights * high))
    least = jnp.sum(jnp.minimum(weights * low, weights * high))
    slack = 1e-6 * jnp.maximum(jnp.abs(most), jnp.abs(least))
    feasible = (total <= most + slack) & (total >= least - slack) & jnp.all(low <= high)
    return jnp.where(feasible, found, jnp.nan)
