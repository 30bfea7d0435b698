"""SOBA: one stochastic gradient step each of v, of the linear system and of u."""

import math
from dataclasses import dataclass

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax.problem import Batch, Problem
from bilevax.solvers import _single_loop as single_loop
from bilevax.solvers import base


@dataclass(frozen=True)
class SOBA:
    """SOBA: a single loop in which v, p and u move once each from the same point.

    p follows -(grad2_vv g)^-1 grad_v f:

        v moves along grad_v g,
        p moves along grad2_vv g . p + grad_v f,
        u moves along grad2_uv g . p + grad_u f.

    Args:
        upper_optimizer, lower_optimizer, linear_optimizer: optax optimizers of u, v and p that need only gradients.
            Published: gradient descent, all with steps of the order of 1 / sqrt(k) on minibatches, and the same for v
            and p.
        radius: p is projected onto the ball of this radius; by default it is not. With networks p can diverge without.

    Assumes a g that is strongly convex in v. Cost of a step: a gradient of g and of f, and a reverse pass through the
    former. Memory: that of u, v, p and the optimizers. `extra["linear_residual"]` is |grad2_vv g . p + grad_v f| on
    the batch.

    Source: Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and global
    variance reduction algorithms", NeurIPS 2022, Algorithm 1 with eq. 6.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import SOBA, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = SOBA(optax.sgd(0.02), optax.sgd(0.2), optax.sgd(0.2))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=300, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    linear_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    radius: float = math.inf

    def __post_init__(self) -> None:
        single_loop.require_radius(self)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, lower sets, and what no solver can treat."""
        single_loop.check(self, problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with p zero."""
        return single_loop.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v, p and u once."""
        start_key, key = jax.random.split(key)
        point = single_loop.point_of(problem, state, batch, start_key)
        of_f, of_g, losses = single_loop.parts(problem, point, batch.upper, base.lower_data(batch, 0), key)
        return single_loop.moved(self, problem, state, point, of_f, of_g, losses)
