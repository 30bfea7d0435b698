"""Recipes: solvers of the tuning tasks, with settings that were tuned on them.

Equal arguments return the same solver, so its programs are compiled once.
"""

import functools

import optax

from bilevax.linear_solve import CG
from bilevax.solvers import Implicit, Penalty

LOWER_STEPS = 10
# The rate of u rises over the first steps: v starts far from v*(u), so the first gradients of u are inaccurate, and
# would lead in a wrong direction at the full rate.
_UPPER = optax.adam(optax.linear_schedule(0.01, 0.2, 20), b2=0.99)


def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 1e-2) -> Penalty:
    """Penalty for `tuning_task` and `classifier_task`.

    lam / gamma is a damping: where v minimises the penalty function, p = -(H + lam/gamma)^-1 grad_v f.
    Use it for training losses without noise. The mean of |grad_v g|^2 over minibatches or augmentations is the square
    of the mean gradient plus the variance, and Penalty minimises both: it would switch augmentation off.

    Args:
        steps: of the solve. The rate of u rises over the first 20 steps and is then constant, so the solver is the
            same for every number of steps.
        lower_steps: updates of v in each step.
        lower_rate: Adam's learning rate for v.

    Example:
        >>> from bilevax.applications.tuning import penalty_solver
        >>> penalty_solver(200, lower_rate=0.1).lower_steps
        10
    """
    return _penalty(lower_steps, lower_rate)


@functools.cache
def _penalty(lower_steps: int, lower_rate: float) -> Penalty:
    return Penalty(
        upper_optimizer=_UPPER,
        lower_optimizer=optax.adam(lower_rate),
        lower_steps=lower_steps,
        gamma=100.0,
        lam=10.0,
        nu=0.0,
        eps=1e-2,
        step_scale=1.0,
    )


def implicit_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 1e-2) -> Implicit:
    """Implicit with damped conjugate gradients, for training losses with noise.

    Without damping, CG would stop at once at a direction in which g is flat; a minibatch smaller than the model always
    has such directions.

    Args:
        steps, lower_steps, lower_rate: as for `penalty_solver`.
    """
    return _implicit(lower_steps, lower_rate)


@functools.cache
def _implicit(lower_steps: int, lower_rate: float) -> Implicit:
    linear_solve = CG(steps=10, damping=0.01)
    return Implicit(_UPPER, optax.adam(lower_rate), lower_steps=lower_steps, linear_solve=linear_solve)
