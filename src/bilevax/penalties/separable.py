"""Smooth approximations, with a parameter mu, of the non-smooth separable penalties: l1, l_p and the elastic net.

A penalty is called as `penalty(v, mu)`, differentiable for mu > 0; `true(v)` is what it tends to as mu falls to zero.
For all v and mu > 0

    0 <= penalty(v, mu) - true(v) <= gap(v, mu),    |grad penalty(a, mu) - grad penalty(b, mu)| <= lipschitz(mu) |a - b|

(`lipschitz(v, mu)` where it depends on the size of v). `proximal(v, step)` minimises step true(x) + |x - v|^2 / 2 over
x. v is any pytree of floating arrays. As the `regularizer` of a `Problem` a penalty is given its strength, say

    regularizer=lambda u, v, mu: jnp.exp(u["strength"]) * L1()(v, mu)

Sources: Nesterov, "Smooth minimization of non-smooth functions", Math. Program. 2005; Chen, "Smoothing methods for
nonsmooth, nonconvex minimization", Math. Program. 2012; the SPNBO text (ICLR 2022 submission), sections 2.2 and 3.1.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError
from bilevax.penalties.base import check_mu, entries, soft_threshold, total_of

FIXED_POINT_STEPS = 60


@dataclass(frozen=True)
class L1:
    """The sum of |w|, smoothed to that of sqrt(w^2 + mu^2).

    sqrt(w^2 + mu^2) <= |w| + mu, so the gap is mu for each entry; the second derivative is mu^2 / (w^2 + mu^2)^(3/2),
    at most 1 / mu. Proximal: soft thresholding (Donoho 1995).

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.penalties import L1
        >>> w = jnp.array([3.0, -4.0])
        >>> float(L1().true(w)), round(float(L1()(w, 0.1)), 4), L1().proximal(w, 3.5).tolist()
        (7.0, 7.0029, [0.0, -0.5])
    """

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """The smoothed value."""
        check_mu(mu)
        return total_of(v, lambda w: jnp.sqrt(w**2 + mu**2))

    def true(self, v: PyTree) -> Float[Array, ""]:
        """The sum of |w|."""
        return total_of(v, jnp.abs)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """The number of entries times mu."""
        return entries(v) * mu

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """1 / mu."""
        return 1 / mu

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """Soft thresholding."""
        return jax.tree.map(lambda w: soft_threshold(w, step), v)


@dataclass(frozen=True)
class Lp:
    """The sum of |w|^p, 0 < p <= 1, smoothed to that of (w^2 + mu^2)^(p/2) (Bian and Chen 2017).

    x^(p/2) is subadditive, so (w^2 + mu^2)^(p/2) <= |w|^p + mu^p and the gap is mu^p for each entry, slower than mu.
    The second derivative, p (w^2 + mu^2)^(p/2 - 2) (mu^2 - (1 - p) w^2), is largest in size at 0: p mu^(p - 2).

    The SPNBO text writes the p-norm, (sum |w|^p)^(1/p), and smooths the sum; here it is the sum throughout.

    Proximal, of each entry: 0 up to a threshold, beyond it the larger root of x + step p x^(p-1) = |w| (Marjanovic and
    Solo, IEEE Trans. Signal Process. 2012), by a fixed point that descends to it.

    Args:
        p: in (0, 1].

    Raises:
        InputError: p is not.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise InputError(f"Lp: p is {self.p}, and must be in (0, 1]. Above 1 it is smooth already.")

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """The smoothed value."""
        check_mu(mu)
        return total_of(v, lambda w: (w**2 + mu**2) ** (self.p / 2))

    def true(self, v: PyTree) -> Float[Array, ""]:
        """The sum of |w|^p."""
        return total_of(v, lambda w: jnp.abs(w) ** self.p)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """mu^p times the number of entries."""
        return entries(v) * mu**self.p

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """The bound p mu^(p - 2)."""
        return self.p * mu ** (self.p - 2)

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """A minimiser, entry by entry; the problem is not convex, and at the threshold 0 is taken."""
        if self.p == 1:
            return L1().proximal(v, step)
        at = (2 * step * (1 - self.p)) ** (1 / (2 - self.p))
        threshold = at + step * self.p * at ** (self.p - 1)

        def one(w: Any) -> Any:
            size = jnp.maximum(jnp.abs(w), threshold)
            x = jax.lax.fori_loop(0, FIXED_POINT_STEPS, lambda _, x: size - step * self.p * x ** (self.p - 1), size)
            return jnp.where(jnp.abs(w) > threshold, jnp.sign(w) * x, 0.0)

        return jax.tree.map(one, v)


@dataclass(frozen=True)
class ElasticNet:
    """The sum of |w| plus ratio / 2 times that of w^2 (Zou and Hastie 2005); the first smoothed as `L1`.

    Args:
        ratio: of the squares, zero or positive.

    Raises:
        InputError: ratio is negative.
    """

    ratio: float

    def __post_init__(self) -> None:
        if not self.ratio >= 0:
            raise InputError(f"ElasticNet: ratio is {self.ratio}, and must be zero or positive.")

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """The smoothed value."""
        return L1()(v, mu) + self._squares(v)

    def true(self, v: PyTree) -> Float[Array, ""]:
        """The sum itself."""
        return L1().true(v) + self._squares(v)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """As for L1."""
        return L1().gap(v, mu)

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """That of L1, plus the ratio."""
        return 1 / mu + self.ratio

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """Soft thresholding, then a shrinkage."""
        return jax.tree.map(lambda w: soft_threshold(w, step) / (1 + step * self.ratio), v)

    def _squares(self, v: PyTree) -> Any:
        return self.ratio / 2 * total_of(v, jnp.square)
