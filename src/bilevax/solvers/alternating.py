"""Alternating descent: u down f, v down g, each as if the other were fixed."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

from bilevax import derivatives
from bilevax._checks import PyTree, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


class AlternatingState(NamedTuple):
    """u, v and their optimizers' states."""

    u: PyTree
    v: PyTree
    upper_opt: Any
    lower_opt: Any


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
        base.refuse_constraints(self, problem)
        problem.check(u, v, batch)
        base.check_optimizers(self, problem, u, v, batch, upper=base.Known.FUNCTION, lower=base.Known.FUNCTION)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> AlternatingState:
        """The state at (u, v)."""
        return AlternatingState(u, v, self.upper_optimizer.init(u), self.lower_optimizer.init(v))

    def step(
        self, problem: Problem, state: AlternatingState, batch: Batch, key: Any
    ) -> tuple[AlternatingState, base.Info]:
        """T moves of v along grad_v g, then one of u along grad_u f."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        v = base.start_of_step(problem, state, batch, start_key)
        v, lower_opt, (lower_loss, lower_norm) = base.lower_moves(
            base.descend(problem, state.u, batch),
            self.lower_optimizer,
            state.lower_opt,
            v,
            problem,
            batch,
            self.lower_steps,
            lower_key,
        )
        f = derivatives.upper(problem, state.u, v, batch.upper, upper_key)
        objective = base.Objective(
            f.loss,
            lambda u: problem.upper(u, v, batch.upper, upper_key),
            lambda u: derivatives.upper(problem, u, v, batch.upper, upper_key).grad_u,
        )
        u, upper_opt = base.move(
            self.upper_optimizer, state.upper_opt, state.u, f.grad_u, problem.project_upper, objective=objective
        )
        info = base.Info(f.loss, lower_loss, optax.tree.norm(f.grad_u), lower_norm, {})
        return AlternatingState(u, v, upper_opt, lower_opt), info
