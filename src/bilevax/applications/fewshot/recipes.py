"""Solvers of the few-shot tasks, with their settings."""

import optax

from bilevax.linear_solve import ByOptimizer, quadratic
from bilevax.solvers import Alternating, Implicit, Penalty, ReverseMode

LOWER_STEPS = 20
ADAPT_STEPS = 100
HEAD_RATE = 0.1
UPPER_RATE = 1e-2


def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Penalty:
    """Penalty as used here, for so many steps; without multipliers, since every step has other heads."""
    return Penalty(
        upper_optimizer(steps), optax.sgd(HEAD_RATE), lower_steps, gamma=1.0, lam=1.0, nu=0.0, step_scale=1.0
    )


def approxgrad_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Implicit:
    """ApproxGrad: as many moves of its linear solve, on the quadratic form, as of v."""
    linear_solve = ByOptimizer(optax.sgd(HEAD_RATE), steps=lower_steps, form=quadratic)
    return Implicit(upper_optimizer(steps), optax.sgd(HEAD_RATE), lower_steps, linear_solve)


def reverse_solver(steps: int, lower_steps: int = LOWER_STEPS) -> ReverseMode:
    """RMD: the T moves of the heads are differentiated (Franceschi et al. 2018)."""
    return ReverseMode(upper_optimizer(steps), optax.sgd(HEAD_RATE), lower_steps)


def alternating_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Alternating:
    """Alternating descent: the representation learns as if the heads did not depend on it."""
    return Alternating(upper_optimizer(steps), optax.sgd(HEAD_RATE), lower_steps)


def upper_optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with a cosine decay, for the representation."""
    return optax.adam(optax.cosine_decay_schedule(UPPER_RATE, steps))
