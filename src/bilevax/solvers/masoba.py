"""MA-SOBA: SOBA with a moving average of the upper direction."""

import math
from dataclasses import dataclass

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax._checks import InputError, require_number
from bilevax.problem import Batch, Problem
from bilevax.solvers import _single_loop as single_loop
from bilevax.solvers import base


@dataclass(frozen=True)
class MASOBA:
    """MA-SOBA: as `SOBA`, but u moves along a moving average h of the directions, h = (1 - theta) h + theta d.

    The average starts at zero. With it, constant steps reach the rate of stochastic gradient descent on one level.

    Args:
        upper_optimizer, lower_optimizer, linear_optimizer, radius: as for `SOBA`. Published: gradient descent with
            constant steps.
        theta: in (0, 1].

    Cost of a step: as `SOBA`. Memory: |u| more.

    Source: Chen, Xiao and Balasubramanian, "Optimal algorithms for stochastic bilevel optimization under relaxed
    smoothness conditions", JMLR 2024, Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import MASOBA, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = MASOBA(optax.sgd(0.02), optax.sgd(0.2), optax.sgd(0.2), theta=0.5)
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=500, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    linear_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    theta: float = 0.1
    radius: float = math.inf

    def __post_init__(self) -> None:
        theta = require_number("MASOBA", "theta", self.theta)
        if not 0 < theta <= 1:
            raise InputError(f"MASOBA: theta is {theta:g}, and must be above 0 and at most 1.")
        object.__setattr__(self, "theta", theta)
        single_loop.require_radius(self)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, lower sets, and what no solver can treat."""
        single_loop.check(self, problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with p and the average zero."""
        return single_loop.start(self, u, v, optax.tree.zeros_like(u))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v and p once, and u along the average."""
        start_key, key = jax.random.split(key)
        point = single_loop.point_of(problem, state, batch, start_key)
        of_f, of_g, losses = single_loop.parts(problem, point, batch.upper, base.lower_data(batch, 0), key)
        average = jax.tree.map(
            lambda h, a, b: (h + self.theta * (a + b - h)).astype(h.dtype), state.memory[2], of_f.u, of_g.u
        )
        of_f, of_g = of_f._replace(u=average), of_g._replace(u=optax.tree.zeros_like(average))
        return single_loop.moved(self, problem, state, point, of_f, of_g, losses, average)
