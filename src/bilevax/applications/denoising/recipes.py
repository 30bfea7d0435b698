"""Solvers of the denoising tasks, with their settings."""

import functools

import optax

from bilevax.applications.denoising.tasks import per_sample
from bilevax.linear_solve import ByOptimizer
from bilevax.solvers import Implicit, Penalty


@functools.cache
def penalty_solver() -> Penalty:
    """The Penalty solver with settings that suit denoising; the same object at each call."""
    return Penalty(
        upper_optimizer=per_sample(optax.adam(0.3)),
        lower_optimizer=optax.adam(1e-3),
        lower_steps=10,
        gamma=100.0,
        lam=1.0,
        nu=0.0,
        eps=1e-2,
        step_scale=1.0,
    )


@functools.cache
def approxgrad_solver() -> Implicit:
    """ApproxGrad (implicit, the linear system by Adam) with settings that suit denoising."""
    return Implicit(
        upper_optimizer=per_sample(optax.adam(0.03)),
        lower_optimizer=optax.adam(1e-3),
        lower_steps=10,
        linear_solve=ByOptimizer(optax.adam(1e-2), steps=10),
    )
