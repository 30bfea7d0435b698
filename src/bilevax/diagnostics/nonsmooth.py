"""Stationarity of a problem whose lower level is not smooth."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError
from bilevax.diagnostics import system
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


class NonSmooth(NamedTuple):
    """The residuals that `nonsmooth_stationarity` returns.

    Attributes:
        lower: the residual of the non-smooth lower level; zero where v is stationary.
        upper: the norm of the hypergradient at the nearby point `v`.
        v: v after one proximal step. Entries close to a point where the regularizer is not smooth are exactly there.
    """

    lower: float
    upper: float
    v: PyTree


def nonsmooth_stationarity(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch | None = None,
    *,
    proximal: Callable[[PyTree, PyTree, Any], PyTree],
    rate: float,
    key: PRNGKeyArray | None = None,
    limit: int = 5000,
) -> NonSmooth:
    """Residuals of stationarity at (u, v) for a problem whose lower level is not smooth.

    They are the residuals of conditions (6) to (8) of the SPNBO text (ICLR 2022 submission), with G = g + regularizer:

        lower = |v - v+| / rate,    v+ = prox(v - rate grad_v g),                                     (8)
        upper = |grad_u f - grad2_uv G q|  at v+,  (grad2_vv G) q = grad_v f                          (6), (7)

    If the regularizer is convex, the first is zero at minimisers only. If it is not (l_p), a small rate is needed: the
    condition in the text is about local minimisers. v+ lies exactly on the manifold (zeros, groups, ties) where the
    regularizer is not smooth. The regularizer, smoothed with a tiny mu, has a curvature of about 1 / mu across the
    manifold, which makes q zero in these directions, and no curvature along it. Up to O(mu), this is the system
    restricted to the manifold.

    Args:
        problem: with a `regularizer`, and without constraints.
        u, v: the point.
        batch: the data of one step.
        proximal: (u, v, step) -> v, the proximal map of the regularizer itself, as for `SparseHO`.
        rate: the step size of the proximal step, at most 1 over the Lipschitz constant of grad_v g.
        key: for random losses; a fixed one by default.
        limit: the largest number of entries of v, since the Hessian is formed.

    Raises:
        InputError: the problem has no regularizer, or has constraints; rate is not positive; v is too large.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax import Problem
        >>> from bilevax.diagnostics import nonsmooth_stationarity
        >>> from bilevax.penalties import L1
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum((v - jnp.array([1.0, 0.0])) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - jnp.array([2.0, 0.5])) ** 2) / 2,
        ...     regularizer=lambda u, v, mu: u[0] * L1()(v, mu),
        ... )
        >>> prox = lambda u, v, step: L1().proximal(v, step * u[0])
        >>> found = nonsmooth_stationarity(problem, jnp.ones(1), jnp.array([1.0, 0.0]), proximal=prox, rate=0.5)
        >>> found.lower, found.upper
        (0.0, 0.0)
    """
    if problem.regularizer is None:
        raise InputError("nonsmooth_stationarity: the problem has no regularizer. For smooth problems use report.")
    if problem.constraints:
        raise InputError("nonsmooth_stationarity: the problem has constraints, which are not supported.")
    if problem.set_moves:
        raise InputError("nonsmooth_stationarity: the set of v depends on u, which is not supported.")
    if not rate > 0:
        raise InputError(f"nonsmooth_stationarity: rate is {rate}, and must be positive.")
    batch = Batch() if batch is None else batch
    problem.check(u, v, batch)
    u, v = jax.tree.map(jnp.asarray, (u, v))
    size = ravel_pytree(v)[0].size
    if size > limit:
        raise InputError(
            f"nonsmooth_stationarity: v has {size} entries, and the Hessian is formed for at most {limit}. "
            "Raise limit if there is enough memory, or use a smaller problem of the same kind."
        )
    key = jax.random.key(0) if key is None else key
    data = base.lower_data(batch, 0)
    smooth = dataclasses.replace(problem, regularizer=None)
    slope = derivatives.lower_gradient(smooth, u, v, data, key)[1]
    stepped = jax.tree.map(jnp.asarray, proximal(u, jax.tree.map(lambda x, d: x - rate * d, v, slope), rate))
    lower = float(optax.tree.norm(optax.tree.sub(v, stepped)) / rate)
    f = derivatives.upper(problem, u, stepped, batch.upper, key)
    b = ravel_pytree(f.grad_v)[0]
    mu = float(jnp.finfo(b.dtype).eps) ** 0.4
    hessian = np.asarray(system.hessian(problem, u, stepped, data, key, mu))
    system.require_finite("nonsmooth_stationarity: the Hessian of the lower level in v", hessian)
    q = system.dense(hessian, np.asarray(b)[None])
    along_u = system.products(problem, u, stepped, data, key, jnp.asarray(q, b.dtype), mu)[0][0]
    upper = float(jnp.linalg.norm(ravel_pytree(f.grad_u)[0] - along_u))
    return NonSmooth(lower, upper, stepped)
