"""Alternating descent: u down f, v down g, each as if the other were fixed."""

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

    It ignores how v*(u) answers to u, so it finds saddle points of the pair and not, in general,
    solutions of the bilevel problem; it is here to be compared with.

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
        """Refuse constraints, and what no solver can treat."""
        base.check(self, problem, u, v, batch, base.Known.FUNCTION, base.Known.FUNCTION, lower_sets=True)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """The state at (u, v)."""
        return base.start(self, u, v)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of v along grad_v g, then one of u along grad_u f."""
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
