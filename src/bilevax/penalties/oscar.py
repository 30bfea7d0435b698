"""The OSCAR penalty, smoothed."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError, listed
from bilevax.penalties.base import check_mu, entries


@dataclass(frozen=True)
class Oscar:
    """single |w|_1 + pair times the sum over pairs j < k of max(|w_j|, |w_k|), for a vector (Bondell and Reich 2008).

    In the order of absolute values, the j-th smallest entry is the larger one in j - 1 pairs, so `true` costs
    O(d log d).

    SPNBO (ICLR 2022 submission) smooths max(a, b) = (a + b + |a - b|) / 2 by sqrt((a - b)^2 + mu^2) (without the factor
    1/2), which needs all d^2 pairs and is not smooth at a = |w_j| = 0. Here a_j = sqrt(w_j^2 + mu^2), and |t| is
    smoothed by a Huber function, h(t) = |t| for |t| >= mu and (t^2 / mu + mu) / 2 otherwise. It differs from |t| only
    for pairs closer than mu, whose sums of t and t^2 come from running sums over the sorted entries. The smoothed value
    is exactly the sum over all pairs, and it and its gradient also cost O(d log d). It is once continuously
    differentiable, with a Lipschitz gradient; its second derivative jumps if the distance of a pair is mu.

    a_j <= |w_j| + mu and h(t) <= |t| + mu / 2 give a gap of single mu d + pair (5 / 4) mu d (d - 1) / 2. In float32 the
    running sums of large vectors lose digits: for d = 10^5 entries of size 1 and mu = 10^-3 about four digits are left.

    Args:
        single, pair: the weights, zero or positive.

    Raises:
        InputError: a weight is negative. The methods raise it if v is not a vector.
    """

    single: float = 1.0
    pair: float = 1.0

    def __post_init__(self) -> None:
        for name in ("single", "pair"):
            if not getattr(self, name) >= 0:
                raise InputError(f"Oscar: {name} is {getattr(self, name)}, and must be zero or positive.")

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the smoothed value."""
        check_mu(mu)
        a = jnp.sort(jnp.sqrt(_vector("Oscar", v) ** 2 + mu**2))
        d = a.size
        # Pairs (j, k), j < k in the sorted order, whose distance is below mu: j from first[k] to k - 1.
        place = jnp.arange(d)
        first = jnp.minimum(jnp.searchsorted(a, jax.lax.stop_gradient(a) - mu, side="right"), place)
        sums = [jnp.concatenate([jnp.zeros(1, a.dtype), jnp.cumsum(a**power)]) for power in (1, 2)]
        near, once, twice = place - first, sums[0][place] - sums[0][first], sums[1][place] - sums[1][first]
        apart = near * a - once  # the sum of t over these pairs
        squares = near * a**2 - 2 * a * once + twice  # the sum of t^2
        bent = (squares / mu + near * mu) / 2 - apart  # the sum of h(t) - |t|
        return self.single * jnp.sum(a) + self.pair * (jnp.sum(place * a) + jnp.sum(bent) / 2)

    def true(self, v: PyTree) -> Float[Array, ""]:
        """Return the non-smooth value."""
        a = jnp.sort(jnp.abs(_vector("Oscar", v)))
        return self.single * jnp.sum(a) + self.pair * jnp.sum(jnp.arange(a.size) * a)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return single mu d + pair (5 / 4) mu d (d - 1) / 2."""
        d = entries(v)
        return mu * (self.single * d + 1.25 * self.pair * d * (d - 1) / 2)

    def lipschitz(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return (single + pair (3 d / 2 - 1)) / mu.

        A term a_j has the constant 1 / mu, once for `single` and d - 1 times for `pair`; the sum of all h(t) has the
        constant d / mu, times one half.
        """
        return (self.single + self.pair * (1.5 * entries(v) - 1)) / mu

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> np.ndarray:
        """Return the proximal map, computed on the host; OSCAR is a sorted l1 norm (Zeng and Figueiredo 2014)."""
        from sklearn.isotonic import isotonic_regression

        w = np.asarray(_vector("Oscar", v))
        order = np.argsort(-np.abs(w), kind="stable")
        weights = np.asarray(step, float) * (self.single + self.pair * np.arange(len(w))[::-1])
        sizes = np.maximum(isotonic_regression(np.abs(w)[order] - weights, increasing=False), 0)
        found = np.empty_like(w)
        found[order] = np.sign(w)[order] * sizes
        return found


def _vector(owner: str, v: PyTree) -> Any:
    leaves = jax.tree.leaves(v)
    if len(leaves) != 1 or jnp.ndim(leaves[0]) != 1:
        raise InputError(
            f"{owner}: v has leaves of shapes {listed([jnp.shape(x) for x in leaves])}, and must be one vector (d,). "
            "Apply the penalty to one vector of v."
        )
    return leaves[0]
