"""Recipes: solvers of the denoising tasks, with settings that were tuned on them.

Every recipe of `bilevax.applications` is called as `recipe(steps, lower_steps=..., ...)` and returns a solver. Equal
arguments return the same solver, so its programs are compiled once.
"""

import functools

import optax

from bilevax.applications.denoising.importance import per_sample
from bilevax.linear_solve import ByOptimizer
from bilevax.solvers import Implicit, Penalty

LOWER_STEPS = 10


def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 1e-3) -> Penalty:
    """Penalty for `denoising_task`.

    Args:
        steps: of the solve. The rates are constant, so the solver is the same for every number of steps.
        lower_steps: updates of v in each step.
        lower_rate: Adam's learning rate for v.

    Example:
        >>> from bilevax.applications.denoising import penalty_solver
        >>> penalty_solver(100).lower_steps
        10
    """
    return _penalty(lower_steps, lower_rate)


@functools.cache
def _penalty(lower_steps: int, lower_rate: float) -> Penalty:
    return Penalty(
        upper_optimizer=per_sample(optax.adam(0.3)),
        lower_optimizer=optax.adam(lower_rate),
        lower_steps=lower_steps,
        gamma=100.0,
        lam=1.0,
        nu=0.0,
        eps=1e-2,
        step_scale=1.0,
    )


def approxgrad_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 1e-3) -> Implicit:
    """ApproxGrad for `denoising_task`: `Implicit`, with the linear system solved by Adam.

    Args:
        steps, lower_steps, lower_rate: as for `penalty_solver`. The linear solve also takes `lower_steps` updates.
    """
    return _approxgrad(lower_steps, lower_rate)


@functools.cache
def _approxgrad(lower_steps: int, lower_rate: float) -> Implicit:
    return Implicit(
        upper_optimizer=per_sample(optax.adam(0.03)),
        lower_optimizer=optax.adam(lower_rate),
        lower_steps=lower_steps,
        linear_solve=ByOptimizer(optax.adam(1e-2), steps=lower_steps),
    )
