"""Solvers of the tuning tasks, with their settings."""

import functools

import optax

from bilevax.linear_solve import CG
from bilevax.solvers import Implicit, Penalty

# The rate of u rises over the first steps: v starts far from v*(u), so that the first directions of u mean little, and
# at the full rate they lead astray.
_UPPER = optax.adam(optax.linear_schedule(0.01, 0.2, 20), b2=0.99)


@functools.cache
def penalty_solver(lower_rate: float = 1e-2) -> Penalty:
    """Penalty with settings that suit tuning; the same object at each call.

    lam / gamma is a damping: where v minimises the penalty function, p = -(H + lam/gamma)^-1 grad_v f.
    It is for training losses without noise. The mean of |grad_v g|^2 over minibatches or augmentations is that of the
    mean gradient plus their variance, which Penalty then makes small, too: it would switch augmentation off.
    """
    return Penalty(
        upper_optimizer=_UPPER,
        lower_optimizer=optax.adam(lower_rate),
        lower_steps=10,
        gamma=100.0,
        lam=10.0,
        nu=0.0,
        eps=1e-2,
        step_scale=1.0,
    )


@functools.cache
def implicit_solver(lower_rate: float = 1e-2) -> Implicit:
    """Implicit with damped conjugate gradients, for training losses with noise; the same object at each call.

    Without damping, a direction in which g is flat (any, in a minibatch smaller than the model) ends CG at once.
    """
    return Implicit(_UPPER, optax.adam(lower_rate), lower_steps=10, linear_solve=CG(steps=10, damping=0.01))
