"""AmIGO: warm-started inner loops for v and for the linear system, each estimate from its own minibatch."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax._checks import settle_counts
from bilevax.problem import Batch, Problem
from bilevax.solvers import _single_loop as single_loop
from bilevax.solvers import base


@dataclass(frozen=True)
class AmIGO:
    """AmIGO: T moves of v along grad_v g, then M moves of p along grad2_vv g . p + grad_v f, then one of u.

    Both start from their last values. u moves along grad2_uv g . p + grad_u f. Unlike `Implicit` with `ByOptimizer`,
    each product with the Hessian may have a minibatch of its own, and p is used as it is: it is not judged on the
    minibatch at hand, which adds noise.

    Args:
        upper_optimizer, lower_optimizer, linear_optimizer, radius: as for `SOBA`; the state of `linear_optimizer` is
            kept from step to step.
        lower_steps: T. Published: 10.
        linear_steps: M. Published: 10.

    With `per_move=solver.lower_batches` in the source, all T + M + 1 estimates have independent lower batches: first
    those of v, then those of p, then that of u. Otherwise one lower batch serves the step.

    Cost of a step: T gradients of g, M + 1 products with its Hessian, one gradient of f. Memory: that of u, v, p and
    the optimizers.

    Source: Arbel and Mairal, "Amortized implicit differentiation for stochastic bilevel optimization", ICLR 2022,
    Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import AmIGO, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = AmIGO(optax.sgd(0.05), optax.sgd(0.2), optax.sgd(0.2))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=100, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    linear_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    lower_steps: int = 10
    linear_steps: int = 10
    radius: float = math.inf

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps", "linear_steps")
        single_loop.require_radius(self)

    @property
    def lower_batches(self) -> int:
        """The number of lower batches of a step, if each estimate has its own."""
        return self.lower_steps + self.linear_steps + 1

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, lower sets, and what no solver can treat."""
        single_loop.check(self, problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with p zero."""
        return single_loop.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times, p M times, and u once."""
        p, p_opt, _ = state.memory
        inner = single_loop.inner_loop(self, problem, state, batch, key)
        f, products = inner.f, inner.products

        def one(carry: Any, t: Any) -> tuple[Any, None]:
            p, opt = carry
            residual = optax.tree.add(products(p, t)[1], f.grad_v)
            return base.move(self.linear_optimizer, opt, p, residual, single_loop.bounded(self)), None

        (p, p_opt), _ = jax.lax.scan(one, (p, p_opt), jnp.arange(self.linear_steps))
        cross, image = products(p, self.linear_steps)
        direction = optax.tree.add(cross, f.grad_u)
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        extra = {"linear_residual": optax.tree.norm(optax.tree.add(image, f.grad_v))}
        info = base.Info(f.loss, inner.losses[0], optax.tree.norm(direction), inner.losses[1], extra)
        return base.State(moved, inner.v, upper_opt, inner.lower_opt, (p, p_opt, ())), info
