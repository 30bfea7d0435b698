"""The groups of a group lasso, learned from many related regressions (Frecon, Salzo and Pontil, NeurIPS 2018).

    min over theta of  sum over tasks t of |y'_t - X'_t w_t|^2 / 2  on validation samples,
    w_t = argmin over w of |y_t - X_t w|^2 / 2 + ridge / 2 |w|^2 + strength * sum over groups l of |theta_l w|

theta (features, groups) are the memberships of the features in the groups; its rows lie on the simplex. The method,
FBBGLasso, solves the dual of the lower level by forward-backward steps with a Bregman distance,

    z_l <- z_l + rate theta_l w(u),   u_l = strength z_l / sqrt(1 + |z_l|^2),
    w(u) = (X'X + ridge I)^-1 (X'y - sum over l of theta_l u_l),

which are smooth, unlike those with a projection on the ball |u_l| <= strength. It differentiates a number of these
steps in reverse mode. Here z is the lower variable, `bregman` turns the steps into descent in z, and `ReverseMode` does
the rest.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from bilevax._arrays import check_key
from bilevax._checks import InputError, require_count
from bilevax.applications._inputs import numeric
from bilevax.applications.task import Task
from bilevax.problem import Batch, Problem
from bilevax.solvers import ReverseMode
from experiments.spnbo.checks import positive

LOWER_STEPS = 500
Memberships = Float[Array, "d groups"]
Mirror = Float[Array, "tasks d groups"]


class Regressions(NamedTuple):
    """Related regressions.

    Attributes:
        inverse: of X'X + ridge I.
        moment: X'y.
        x_val, y_val: validation samples.
        strength: of the group lasso.
        rate: of forward-backward steps. It multiplies the dual objective, so descent takes steps of 1.
        spread: the sum of squares of the validation targets, which is the unit of the upper loss.
    """

    inverse: Float[Array, "tasks d d"]
    moment: Float[Array, "tasks d"]
    x_val: Float[Array, "tasks n d"]
    y_val: Float[Array, "tasks n"]
    strength: Float[Array, ""]
    rate: Float[Array, ""]
    spread: Float[Array, ""]


class GroupStructure(NamedTuple):
    """A job: the task, for `solve`, and the published solver."""

    task: Task
    solver: ReverseMode


def dual(z: Float[Array, "*tasks d groups"], strength: Float[Array, ""]) -> Float[Array, "*tasks d groups"]:
    """Dual points u, inside the balls of radius `strength`, from mirror coordinates z."""
    return strength * z / jnp.sqrt(1 + jnp.sum(z**2, -2, keepdims=True))


def coefficients(theta: Memberships, z: Mirror, data: Regressions) -> Float[Array, "tasks d"]:
    """Coefficients w of dual points in mirror coordinates z."""
    pull = jnp.sum(theta * dual(z, data.strength), -1)
    return jnp.einsum("tij,tj->ti", data.inverse, data.moment - pull)


def bregman() -> optax.GradientTransformation:
    """The gradient in z converted to that in u, over 1 / strength: descent in it by 1 is the published iteration.

    With du/dz = strength (I - z z' / (1 + |z|^2)) / sqrt(1 + |z|^2) for each group, its inverse times strength is
    sqrt(1 + |z|^2) (I + z z').
    """

    def update(gradient: Any, z: Any) -> Any:
        size = jnp.sqrt(1 + jnp.sum(z**2, -2, keepdims=True))
        return size * (gradient + z * jnp.sum(z * gradient, -2, keepdims=True))

    return optax.stateless(lambda updates, params: jax.tree.map(update, updates, params))


def upper_loss(theta: Memberships, z: Mirror, data: Regressions) -> Float[Array, ""]:
    """The tasks' squared validation errors, summed, over the sum of their squared targets, and halved."""
    residual = jnp.einsum("tnd,td->tn", data.x_val, coefficients(theta, z, data)) - data.y_val
    return jnp.sum(residual**2) / data.spread / 2


def lower_loss(theta: Memberships, z: Mirror, data: Regressions) -> Float[Array, ""]:
    """The dual objective, times rate over strength: f*(-A'u) of f = |y - X w|^2 / 2 + ridge / 2 |w|^2."""
    pull = data.moment - jnp.sum(theta * dual(z, data.strength), -1)
    return jnp.einsum("ti,tij,tj->", pull, data.inverse, pull) * data.rate / (2 * data.strength)


def _on_simplex(theta: Memberships) -> Memberships:
    return jax.vmap(optax.projections.projection_simplex)(theta)


PROBLEM = Problem(
    upper_loss,
    lower_loss,
    project_upper=_on_simplex,
    lower_start=lambda theta, batch, key: jnp.zeros(batch.lower.moment.shape + theta.shape[-1:], theta.dtype),
)


def group_structure(
    X: Float[ArrayLike, "tasks n d"],
    y: Float[ArrayLike, "tasks n"],
    X_val: Float[ArrayLike, "tasks n_val d"],
    y_val: Float[ArrayLike, "tasks n_val"],
    groups: int,
    *,
    strength: float,
    key: PRNGKeyArray,
    ridge: float = 1e-3,
    upper_rate: float = 0.1,
    lower_steps: int = LOWER_STEPS,
) -> GroupStructure:
    """Return the task of learning the groups, and FBBGLasso to solve it.

    u is theta (d, groups), which starts near uniform, with a little noise so that the groups differ.

    Args:
        X, y: training samples of each task, (tasks, n, d) and (tasks, n).
        X_val, y_val: validation samples of each task.
        groups: the largest number of groups; those that are not needed stay empty.
        strength: of the group lasso, positive.
        key: a jax.random key, for the noise.
        ridge: positive, which makes the dual smooth.
        upper_rate: Adam's learning rate for theta.
        lower_steps: forward-backward steps, from zero in each step.

    Metrics: val_error, the mean squared error on the validation samples; sharpness, the mean over features of their
    largest membership.

    Raises:
        InputError: arrays that are not numbers, not finite, or of shapes that do not fit; fewer than two groups;
            strength, ridge or upper_rate is not positive; y_val is zero.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax import solve
        >>> from experiments.spnbo.group_structure import group_structure
        >>> rng = np.random.default_rng(0)
        >>> of_task = np.repeat(rng.integers(0, 2, (30, 1)), 4, 1)  # which group of two features is in use
        >>> w = rng.normal(size=(30, 4)) * (of_task == [0, 0, 1, 1])
        >>> X, X_val = rng.normal(size=(2, 30, 10, 4))
        >>> y, y_val = (np.einsum("tnd,td->tn", a, w) + 0.3 * rng.normal(size=(30, 10)) for a in (X, X_val))
        >>> key = jax.random.key(1)
        >>> job = group_structure(X, y, X_val, y_val, 2, strength=2.0, ridge=0.5, key=key, lower_steps=50)
        >>> task = job.task
        >>> result = solve(job.solver, task.problem, *task.start, task.batches, steps=50, key=key)
        >>> found = result.u.argmax(1)
        >>> bool(found[0] == found[1] != found[2] == found[3])
        True
    """
    groups = require_count("group_structure", "groups", groups)
    lower_steps = require_count("group_structure", "lower_steps", lower_steps)
    if groups < 2:
        raise InputError("group_structure: groups is 1, and with one group there is no structure to learn. Raise it.")
    strength = positive("group_structure", "strength", strength)
    ridge, upper_rate = (
        positive("group_structure", "ridge", ridge),
        positive("group_structure", "upper_rate", upper_rate),
    )
    check_key("group_structure", key)
    x, targets = numeric("X", X).astype(np.float64), numeric("y", y).astype(np.float64)
    x_val, val_targets = numeric("X_val", X_val).astype(np.float64), numeric("y_val", y_val).astype(np.float64)
    if (
        x.ndim != 3
        or 0 in (*x.shape, *x_val.shape)
        or targets.shape != x.shape[:2]
        or x_val.ndim != 3
        or val_targets.shape != x_val.shape[:2]
        or (x_val.shape[0], x_val.shape[2]) != (x.shape[0], x.shape[2])
    ):
        raise InputError(
            f"group_structure: X has shape {x.shape}, y {targets.shape}, X_val {x_val.shape} and y_val "
            f"{val_targets.shape}. (tasks, n, d) and (tasks, n) are needed, of the same tasks and features, none empty."
        )
    spread = float(np.sum(val_targets**2))
    if not 0 < spread < np.inf:
        raise InputError(f"group_structure: the squares of y_val sum to {spread}. Check its values, and their units.")
    dtype = jnp.result_type(float)
    inverse = np.linalg.inv(np.einsum("tni,tnj->tij", x, x) + ridge * np.eye(x.shape[2]))
    # The gradient of the dual is Lipschitz with the norm of the inverse, since theta's rows lie on the simplex, and the
    # distance is strongly convex with 1 / strength.
    rate = 1 / (strength * np.linalg.norm(inverse, 2, (1, 2)).max())
    moment = np.einsum("tnd,tn->td", x, targets)
    data = Regressions(*(jnp.asarray(a, dtype) for a in (inverse, moment, x_val, val_targets, strength, rate, spread)))
    d = x.shape[2]
    theta = _on_simplex(1 / groups + 0.1 / groups * jax.random.normal(key, (d, groups), dtype))
    z = jnp.zeros((len(x), d, groups), dtype)

    def metrics(theta: Memberships, z: Mirror) -> dict[str, float]:
        return {
            "val_error": float(2 * upper_loss(theta, z, data)) * spread / data.y_val.size,
            "sharpness": float(jnp.mean(jnp.max(theta, 1))),
        }

    task = Task(PROBLEM, (theta, z), Batch(data, data), metrics)
    return GroupStructure(task, _solver(upper_rate, lower_steps))


@functools.cache
def _solver(upper_rate: float, lower_steps: int) -> ReverseMode:
    # The part of a row's gradient that points off the simplex would be projected away, but would first affect Adam.
    along = optax.stateless(lambda updates, params: jax.tree.map(lambda x: x - jnp.mean(x, -1, keepdims=True), updates))
    upper = optax.chain(along, optax.adam(upper_rate, eps=1e-15))  # of a relative error, whose slopes may be small
    return ReverseMode(upper, optax.chain(bregman(), optax.sgd(1.0)), lower_steps)
