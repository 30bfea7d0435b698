"""StocBiO: a Neumann series whose factors come from independent minibatches."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax._checks import InputError, require_number, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.solvers import _single_loop as single_loop
from bilevax.solvers import base


@dataclass(frozen=True)
class StocBiO:
    """StocBiO: implicit differentiation by a Neumann series with independent factors.

    v moves T times along grad_v g; then u moves once along grad_u f - grad2_uv g . q with

        q = scale (I + A_1 + A_1 A_2 + ... + A_1 ... A_M) grad_v f,    A_j = I - scale grad2_vv g on minibatch j.

    It is the Neumann series for (grad2_vv g)^-1 grad_v f, with a minibatch of its own for each factor. The series
    starts anew in each step; `Implicit` with `Neumann` is the same on one minibatch, with a warm start.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; the upper one without a line search.
        lower_steps: T. Published: 10.
        terms: M. Published: 10.
        scale: positive, below 2 over the largest eigenvalue of the Hessian.

    With `per_move=solver.lower_batches` in the source, all T + M + 1 estimates have independent lower batches: first
    those of v, then those of the factors, then that of u. Otherwise one lower batch serves the step.

    Cost of a step: T gradients of g, M + 1 products with its Hessian, one gradient of f. Memory: that of u, v, q and
    the optimizers.

    Source: Ji, Yang and Liang, "Bilevel optimization: convergence analysis and enhanced design", ICML 2021,
    Algorithm 2 and eq. 5.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import Problem, StocBiO, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = StocBiO(optax.sgd(0.05), optax.sgd(0.2), scale=0.2)
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=200, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    lower_steps: int = 10
    terms: int = 10
    scale: float = 5e-2

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps", "terms")
        scale = require_number("StocBiO", "scale", self.scale)
        if not scale > 0:
            raise InputError(f"StocBiO: scale is {scale:g}, and must be positive.")
        object.__setattr__(self, "scale", scale)

    @property
    def lower_batches(self) -> int:
        """The number of lower batches of a step, if each estimate has its own."""
        return self.lower_steps + self.terms + 1

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, lower sets, and what no solver can treat."""
        base.check(self, problem, u, v, batch, lower=base.Known.FUNCTION)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times, sum the series, and move u once."""
        inner = single_loop.inner_loop(self, problem, state, batch, key)
        f, products = inner.f, inner.products

        def one(carry: Any, t: Any) -> tuple[Any, None]:
            term, total = carry
            image = products(term, t)[1]
            term = jax.tree.map(lambda x, h: (x - self.scale * h).astype(x.dtype), term, image)
            return (term, optax.tree.add(total, term)), None

        (_, total), _ = jax.lax.scan(one, (f.grad_v, f.grad_v), jnp.arange(self.terms))
        q = jax.tree.map(lambda x: (self.scale * x).astype(x.dtype), total)
        cross, image = products(q, self.terms)
        direction = optax.tree.sub(f.grad_u, cross)
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        extra = {"linear_residual": optax.tree.norm(optax.tree.sub(image, f.grad_v))}
        info = base.Info(f.loss, inner.losses[0], optax.tree.norm(direction), inner.losses[1], extra)
        return base.State(moved, inner.v, upper_opt, inner.lower_opt), info
