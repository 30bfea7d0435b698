"""Recipes: solvers for the poisoning tasks, with settings that were tuned on them.

Equal arguments return the same solver, so that its programs are compiled once.
"""

import functools

import optax

from bilevax.linear_solve import ByOptimizer
from bilevax.solvers import Implicit, Penalty, ReverseMode

LOWER_STEPS = 20


@functools.cache
def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 1e-3) -> Penalty:
    """Return Penalty for `untargeted_task` and `targeted_task`.

    f, the attacker's loss, is unbounded below in v. The term lam g, with lam ten times gamma, keeps v near the trained
    model. The multipliers are updated at every step and converge to -(grad2_vv g)^-1 grad_v f at a rate of gamma / lam
    (see `Penalty`).

    Args:
        steps: upper steps of the solve; the learning rates decay to zero over them.
        lower_steps: updates of v in each step.
        lower_rate: Adam's initial learning rate for v.

    Example:
        >>> from bilevax.applications.poisoning import penalty_solver
        >>> penalty_solver(500).lower_steps
        20
    """
    return Penalty(
        optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        optax.adam(optax.cosine_decay_schedule(lower_rate, steps * lower_steps)),
        lower_steps,
        gamma=1.0,
        lam=10.0,
        nu=1.0,
        step_scale=1.0,
        stage_steps=1,
    )


@functools.cache
def clean_label_solver(steps: int, lower_steps: int = 10, *, lower_rate: float = 1e-2) -> Penalty:
    """Return Penalty for `clean_label_task`; its multipliers are updated every ten steps, for u to meet the constraint.

    Args:
        steps, lower_steps, lower_rate: as for `penalty_solver`.
    """
    return Penalty(
        optax.adam(optax.cosine_decay_schedule(0.01, steps)),
        optax.adam(optax.cosine_decay_schedule(lower_rate, steps * lower_steps)),
        lower_steps,
        gamma=1.0,
        lam=30.0,
        nu=1.0,
        step_scale=1.0,
        stage_steps=10,
    )


@functools.cache
def approxgrad_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 1e-3) -> Implicit:
    """Return ApproxGrad: `Implicit` with a warm-started linear solve by Adam, with as many updates as v.

    Args:
        steps, lower_steps, lower_rate: as for `penalty_solver`.
    """
    return Implicit(
        optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        optax.adam(optax.cosine_decay_schedule(lower_rate, steps * lower_steps)),
        lower_steps,
        ByOptimizer(optax.adam(1e-3), steps=lower_steps),
    )


@functools.cache
def reverse_solver(steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 0.1) -> ReverseMode:
    """Return back-gradient descent (Munoz-Gonzalez et al., AISec 2017): reverse mode through the last updates of v.

    Args:
        steps, lower_steps: as for `penalty_solver`.
        lower_rate: the constant learning rate of gradient descent for v.
    """
    return ReverseMode(optax.adam(optax.cosine_decay_schedule(0.03, steps)), optax.sgd(lower_rate), lower_steps)
