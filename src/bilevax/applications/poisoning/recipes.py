"""Solvers of the poisoning tasks, with their settings."""

import optax

from bilevax.linear_solve import ByOptimizer
from bilevax.solvers import Implicit, Penalty, ReverseMode

LOWER_STEPS = 20


def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Penalty:
    """Penalty as used here, for so many steps.

    f, the loss of someone else's aim, may fall without bound in v; lam g, ten times gamma, holds v at the trained
    model, and the multipliers, which move at every step, take up the rest: they tend to -(grad2_vv g)^-1 grad_v f at
    a rate of gamma / lam (see `Penalty`).
    """
    return Penalty(
        optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        optax.adam(optax.cosine_decay_schedule(1e-3, steps * lower_steps)),
        lower_steps,
        gamma=1.0,
        lam=10.0,
        nu=1.0,
        step_scale=1.0,
        stage_steps=1,
    )


def clean_label_solver(steps: int, lower_steps: int = 10) -> Penalty:
    """Penalty for `clean_label_task`: its multipliers move at every tenth step, so that u can follow the bound's."""
    return Penalty(
        optax.adam(optax.cosine_decay_schedule(0.01, steps)),
        optax.adam(optax.cosine_decay_schedule(1e-2, steps * lower_steps)),
        lower_steps,
        gamma=1.0,
        lam=30.0,
        nu=1.0,
        step_scale=1.0,
        stage_steps=10,
    )


def approxgrad_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Implicit:
    """ApproxGrad: as many moves of its linear solve as of v, by Adam, going on from step to step."""
    return Implicit(
        optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        optax.adam(optax.cosine_decay_schedule(1e-3, steps * lower_steps)),
        lower_steps,
        ByOptimizer(optax.adam(1e-3), steps=lower_steps),
    )


def reverse_solver(steps: int, lower_steps: int = LOWER_STEPS) -> ReverseMode:
    """Back-gradient descent (Munoz-Gonzalez et al., AISec 2017): the last T moves of training are differentiated."""
    return ReverseMode(optax.adam(optax.cosine_decay_schedule(0.03, steps)), optax.sgd(0.1), lower_steps)
