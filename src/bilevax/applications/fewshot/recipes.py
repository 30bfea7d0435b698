"""Recipes: solvers for the few-shot tasks, with settings that were tuned on them.

Equal arguments return the same solver, so that its programs are compiled once.
"""

import functools

import optax

from bilevax.linear_solve import ByOptimizer, quadratic
from bilevax.solvers import Alternating, Implicit, Penalty, ReverseMode

LOWER_STEPS = 20
ADAPT_STEPS = 100
HEAD_RATE = 0.1
UPPER_RATE = 1e-2


@functools.cache
def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = HEAD_RATE) -> Penalty:
    """Return Penalty for `fewshot_task`, without multipliers, since every step has other tasks and so other heads.

    Args:
        steps: upper steps of the solve; the learning rate of u decays to zero over them.
        lower_steps: updates of the heads in each step.
        lower_rate: the learning rate of gradient descent for the heads.

    Example:
        >>> from bilevax.applications.fewshot import penalty_solver
        >>> penalty_solver(300).lower_steps
        20
    """
    return Penalty(
        _upper_optimizer(steps), optax.sgd(lower_rate), lower_steps, gamma=1.0, lam=1.0, nu=0.0, step_scale=1.0
    )


@functools.cache
def approxgrad_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = HEAD_RATE) -> Implicit:
    """Return ApproxGrad: `Implicit` with a linear solve by gradient descent, with as many updates as the heads.

    Args:
        steps, lower_steps, lower_rate: as for `penalty_solver`.
    """
    linear_solve = ByOptimizer(optax.sgd(lower_rate), steps=lower_steps, form=quadratic)
    return Implicit(_upper_optimizer(steps), optax.sgd(lower_rate), lower_steps, linear_solve)


@functools.cache
def reverse_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = HEAD_RATE) -> ReverseMode:
    """Return reverse mode through the updates of the heads (Franceschi et al. 2018).

    Args:
        steps, lower_steps, lower_rate: as for `penalty_solver`.
    """
    return ReverseMode(_upper_optimizer(steps), optax.sgd(lower_rate), lower_steps)


@functools.cache
def alternating_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = HEAD_RATE) -> Alternating:
    """Return alternating descent, which ignores that the heads depend on the representation.

    Args:
        steps, lower_steps, lower_rate: as for `penalty_solver`.
    """
    return Alternating(_upper_optimizer(steps), optax.sgd(lower_rate), lower_steps)


def _upper_optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(UPPER_RATE, steps))
