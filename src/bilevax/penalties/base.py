"""What the smoothed penalties share."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError


def entries(v: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(jnp.size(x) for x in jax.tree.leaves(v))


def check_mu(mu: Float[ArrayLike, ""]) -> None:
    """Refuse a smoothing parameter that is not positive."""
    if isinstance(mu, int | float) and not mu > 0:  # inside a solve it is an array that a schedule made
        raise InputError(f"mu is {mu}, and must be positive: with zero a penalty is not smooth. `true` is its limit.")


def total_of(v: PyTree, entry: Any) -> Any:
    """The sum of `entry` over all entries of v."""
    return sum(jnp.sum(entry(x)) for x in jax.tree.leaves(v))


def soft_threshold(x: Any, threshold: Float[ArrayLike, "..."]) -> Any:
    """The proximal map of the absolute value, entry by entry."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def block_factors(squares: Any, threshold: Float[ArrayLike, "..."]) -> Any:
    """The factor by which block soft thresholding shortens each group, 0 where a group vanishes.

    Args:
        squares: the squared norm of each group.
        threshold: by how much each is shortened: a number, or an array that broadcasts with `squares`.
    """
    kept = jnp.sqrt(squares) > threshold
    return jnp.where(kept, 1 - threshold / jnp.sqrt(jnp.where(kept, squares, 1.0)), 0.0)


@runtime_checkable
class Smoothed(Protocol):
    """A smoothed penalty."""

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """The smoothed value."""
        ...

    def true(self, v: PyTree) -> Float[Array, ""]:
        """The value itself."""
        ...

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """How far the smoothed value may lie above the true one."""
        ...


def zero_share(v: PyTree, threshold: float = 0.0) -> float:
    """The share of entries that are at most `threshold` in size.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.penalties import zero_share
        >>> zero_share({"w": jnp.array([0.0, 0.001, 2.0, 0.0])}), zero_share(jnp.array([0.0, 0.001, 2.0, 0.0]), 0.01)
        (0.5, 0.75)
    """
    small = sum(int(jnp.sum(jnp.abs(x) <= threshold)) for x in jax.tree.leaves(v))
    return small / max(entries(v), 1)
