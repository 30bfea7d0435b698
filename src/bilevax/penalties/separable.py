"""Smooth approximations, with a parameter mu, of separable non-smooth penalties: l1, l_p and the elastic net.

A penalty is called as `penalty(v, mu)`, and is differentiable for mu > 0; its limit for mu -> 0 is `true(v)`. For all v
and mu > 0

    0 <= penalty(v, mu) - true(v) <= gap(v, mu),    |grad penalty(a, mu) - grad penalty(b, mu)| <= lipschitz(mu) |a - b|

(`lipschitz(v, mu)` if it depends on the number of entries of v). `proximal(v, step)` minimises
step true(x) + |x - v|^2 / 2 over x. v is any pytree of floating arrays. In the `regularizer` of a `Problem`, a penalty
is multiplied by its strength, for example

    regularizer=lambda u, v, mu: jnp.exp(u["strength"]) * L1()(v, mu)

Sources: Nesterov, "Smooth minimization of non-smooth functions", Math. Program. 2005; Chen, "Smoothing methods for
nonsmooth, nonconvex minimization", Math. Program. 2012; SPNBO (ICLR 2022 submission), sections 2.2 and 3.1.
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
    """The sum of |w|, smoothed to the sum of sqrt(w^2 + mu^2).

    sqrt(w^2 + mu^2) <= |w| + mu, so the gap is mu for each entry; the second derivative is mu^2 / (w^2 + mu^2)^(3/2),
    at most 1 / mu. Proximal map: soft thresholding (Donoho 1995).

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.penalties import L1
        >>> w = jnp.array([3.0, -4.0])
        >>> float(L1().true(w)), round(float(L1()(w, 0.1)), 4), L1().proximal(w, 3.5).tolist()
        (7.0, 7.0029, [0.0, -0.5])
    """

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the smoothed value."""
        check_mu(mu)
        return total_of(v, lambda w: jnp.sqrt(w**2 + mu**2))

    def true(self, v: PyTree) -> Float[Array, ""]:
        """Return the sum of |w|."""
        return total_of(v, jnp.abs)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return the number of entries times mu."""
        return entries(v) * mu

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return 1 / mu."""
        return 1 / mu

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """Return v after soft thresholding."""
        return jax.tree.map(lambda w: soft_threshold(w, step), v)


@dataclass(frozen=True)
class Lp:
    """The sum of |w|^p, 0 < p <= 1, smoothed to the sum of (w^2 + mu^2)^(p/2) (Bian and Chen 2017).

    x^(p/2) is subadditive, so (w^2 + mu^2)^(p/2) <= |w|^p + mu^p and the gap is mu^p for each entry, which falls more
    slowly than mu. The second derivative, p (w^2 + mu^2)^(p/2 - 2) (mu^2 - (1 - p) w^2), has its largest absolute value
    at 0: p mu^(p - 2).

    SPNBO (ICLR 2022 submission) writes the p-norm, (sum |w|^p)^(1/p), and smooths the sum; here it is always the sum.

    Proximal map of an entry: 0 up to a threshold, and above it the larger root of x + step p x^(p-1) = |w| (Marjanovic
    and Solo, IEEE Trans. Signal Process. 2012), by a fixed-point iteration that decreases to the root.

    Args:
        p: the exponent, in (0, 1].

    Raises:
        InputError: p is not in (0, 1].
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise InputError(f"Lp: p is {self.p}, and must be in (0, 1]. For p > 1 the sum of |w|^p is smooth itself.")

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the smoothed value."""
        check_mu(mu)
        return total_of(v, lambda w: (w**2 + mu**2) ** (self.p / 2))

    def true(self, v: PyTree) -> Float[Array, ""]:
        """Return the sum of |w|^p."""
        return total_of(v, lambda w: jnp.abs(w) ** self.p)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return mu^p times the number of entries."""
        return entries(v) * mu**self.p

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return p mu^(p - 2)."""
        return self.p * mu ** (self.p - 2)

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """Return a minimiser; the problem is not convex, and at the threshold, where there are two, it is 0."""
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
    """The sum of |w| plus ratio / 2 times the sum of w^2 (Zou and Hastie 2005); |w| is smoothed as in `L1`.

    Args:
        ratio: the weight of the squares, zero or positive.

    Raises:
        InputError: ratio is negative.
    """

    ratio: float

    def __post_init__(self) -> None:
        if not self.ratio >= 0:
            raise InputError(f"ElasticNet: ratio is {self.ratio}, and must be zero or positive.")

    def __call__(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """Return the smoothed value."""
        return L1()(v, mu) + self._squares(v)

    def true(self, v: PyTree) -> Float[Array, ""]:
        """Return the non-smooth value."""
        return L1().true(v) + self._squares(v)

    def gap(self, v: PyTree, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return the gap of L1."""
        return L1().gap(v, mu)

    def lipschitz(self, mu: Float[ArrayLike, ""]) -> Float[ArrayLike, ""]:
        """Return 1 / mu + ratio."""
        return 1 / mu + self.ratio

    def proximal(self, v: PyTree, step: Float[ArrayLike, ""]) -> PyTree:
        """Return v after soft thresholding, divided by 1 + step * ratio."""
        return jax.tree.map(lambda w: soft_threshold(w, step) / (1 + step * self.ratio), v)

    def _squares(self, v: PyTree) -> Any:
        return self.ratio / 2 * total_of(v, jnp.square)
