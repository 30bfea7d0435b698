"""Alternating descent: u moves along grad_u f and v along grad_v g, each as if the other were constant."""

from dataclasses import dataclass

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import settle_counts
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class Alternating:
    """Alternating descent, "GD" in Mehra and Hamm (2021), section 3.1: p = 0.

    It ignores that v*(u) depends on u, so in general its limit is not a solution of the bilevel problem. Use it as a
    baseline.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers.
        lower_steps: T, moves of v per move of u.

    Cost of a step: T gradients of g and one of f. Memory: that of u, v and the optimizers.
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_steps: int = 10

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, base.Known.FUNCTION, base.Known.FUNCTION, moving_sets=True)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times along grad_v g, then u once along grad_u f."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        v = base.start_of_step(problem, state, batch, start_key)
        descent = base.Descent(problem, state.u, self.lower_optimizer)
        v, lower_opt, (lower_loss, lower_norm) = descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)
        f = derivatives.upper(problem, state.u, v, batch.upper, upper_key)
        objective = base.Objective(
            f.loss,
            lambda u: problem.upper(u, v, batch.upper, upper_key),
            lambda u: derivatives.upper(problem, u, v, batch.upper, upper_key).grad_u,
        )
        u, upper_opt = base.move_upper(self, problem, state, f.grad_u, objective)
        info = base.Info(f.loss, lower_loss, optax.tree.norm(f.grad_u), lower_norm, {})
        return base.State(u, v, upper_opt, lower_opt), info
