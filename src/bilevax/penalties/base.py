"""Functions shared by the smoothed penalties, and their interface."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError


def entries(v: PyTree) -> int:
    """Return the number of entries of a tree."""
    return sum(jnp.size(x) for x in jax.tree.leaves(v))


def check_mu(mu: Float[ArrayLike, ""]) -> None:
    """Refuse a smoothing parameter that is not positive."""
    if isinstance(mu, int | float) and not mu > 0:  # inside a solve it is an array from a schedule
        raise InputError(
            f"mu is {mu}, and must be positive: with mu = 0 a penalty is not smooth. Call `true` for its own value."
        )


def total_of(v: PyTree, entry: Callable[[Any], Float[Array, "..."]]) -> Any:
    """Return the sum of `entry` over all entries of v."""
    return sum(jnp.sum(entry(x)) for x in jax.tree.leaves(v))


def soft_threshold(x: Any, threshold: Float[ArrayLike, "..."]) -> Any:
    """Return the proximal map of the absolute value, entry by entry."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def block_factors(squares: Any, threshold: Float[ArrayLike, "..."]) -> Any:
    """Return the factor of block soft thresholding for each group; 0 for a group that vanishes.

    Args:
        squares: the squared norm of each group.
        threshold: the decrease of each norm: a number, or an array that broadcasts with `squares`.
    """
    kept = jnp.sqrt(squares) > threshold
    return jnp.where(kept, 1 - threshold / jnp.sqrt(jnp.where(kept, squares, 1.0)), 0.0)


@runtime_checkable
class Smoothed(Protocol):
    """A smoothed penalty."""

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the smoothed value."""
        ...

    def true(self, v: PyTree) -> Float[Array, ""]:
        """Return the value of the non-smooth penalty."""
        ...

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return an upper bound on the smoothed value minus the true value."""
        ...


def zero_share(v: PyTree, threshold: float = 0.0) -> float:
    """Return the share of entries whose absolute value is at most `threshold`.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.penalties import zero_share
        >>> zero_share({"w": jnp.array([0.0, 0.001, 2.0, 0.0])}), zero_share(jnp.array([0.0, 0.001, 2.0, 0.0]), 0.01)
        (0.5, 0.75)
    """
    small = sum(int(jnp.sum(jnp.abs(x) <= threshold)) for x in jax.tree.leaves(v))
    return small / max(entries(v), 1)
