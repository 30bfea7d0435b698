"""The learning rate and the weight decay of a training run, by the gradient of the loss at its end.

    min over u of  validation loss(v_T(u)),   v_t+1 = v_t - exp(u_1) (grad train loss(v_t) + exp(u_2) v_t)

(Maclaurin et al. 2015; Franceschi et al. 2017). Each step trains from the same start for T moves, and `ReverseMode`
differentiates them. Near the largest stable learning rate the derivative explodes, which makes descent by injected
hyperparameters diverge. Here u holds logarithms within bounds, and its direction is clipped before Adam.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError, require_count
from bilevax.applications.task import Task
from bilevax.loop.sources import Epochs, Samples, whole
from bilevax.problem import Problem
from bilevax.solvers import ReverseMode

RATES, DECAYS = (1e-6, 1e3), (1e-8, 1e2)  # bounds of the learning rate and the weight decay


@dataclass(frozen=True)
class _Scaled:
    """The training loss whose descent with step 1 is descent with the learning rate and weight decay of u."""

    train_loss: Callable[..., Float[Array, ""]]

    def __call__(self, u: dict[str, Float[Array, ""]], v: PyTree, samples: Samples) -> Float[Array, ""]:
        squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(v))
        return jnp.exp(u["learning_rate"]) * (self.train_loss(v, samples) + jnp.exp(u["weight_decay"]) * squares / 2)


@dataclass(frozen=True)
class _AtTheEnd:
    """The validation loss, without the hyperparameters."""

    validation_loss: Callable[..., Float[Array, ""]]

    def __call__(self, u: dict[str, Float[Array, ""]], v: PyTree, samples: Samples) -> Float[Array, ""]:
        return self.validation_loss(v, samples)


def _bounded(u: dict[str, Float[Array, ""]]) -> dict[str, Float[Array, ""]]:
    limits = {"learning_rate": RATES, "weight_decay": DECAYS}
    return {name: jnp.clip(u[name], np.log(limits[name][0]), np.log(limits[name][1])) for name in u}


def optimizer_task(
    train_loss: Callable[..., Float[Array, ""]],
    validation_loss: Callable[..., Float[Array, ""]],
    v: PyTree,
    train: PyTree,
    validation: PyTree,
    *,
    moves: int,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    batch_size: int | None = None,
) -> Task:
    """The learning rate and weight decay of gradient descent as a Task, to be solved by `optimizer_solver(moves)`.

    u holds their logarithms, scalars `learning_rate` and `weight_decay`. Start at a learning rate at which training is
    stable; the direction of u points back where a larger one would not be.

    Args:
        train_loss, validation_loss: (v, samples) -> scalar; `samples` has `.data` and `.index`.
        v: the parameters from which each training run starts.
        train, validation: data sets, pytrees whose leaves have a leading axis of samples.
        moves: T, the updates of v in a training run.
        learning_rate, weight_decay: where u starts.
        batch_size: samples of each move; None for all.

    Metrics: validation_loss of v on all samples.

    Raises:
        InputError: the number of moves is not a positive integer; a start is outside its bounds.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import solve
        >>> from bilevax.applications.tuning import optimizer_solver, optimizer_task
        >>> x = jnp.linspace(-1, 1, 20)
        >>> loss = lambda v, s: jnp.mean((s.data[1] - v * s.data[0]) ** 2)
        >>> task = optimizer_task(loss, loss, jnp.zeros(()), (x, 3 * x), (x, 3 * x), moves=5)
        >>> key = jax.random.key(0)
        >>> result = solve(optimizer_solver(5), task.problem, *task.start, task.batches, steps=60, key=key)
        >>> bool(task.metrics(result.u, result.v)["validation_loss"] < 1e-2)
        True
    """
    moves = require_count("optimizer_task", "moves", moves)
    for name, start, (low, high) in (
        ("learning_rate", learning_rate, RATES),
        ("weight_decay", weight_decay, DECAYS),
    ):
        if isinstance(start, bool) or not isinstance(start, int | float) or not low <= start <= high:
            raise InputError(f"optimizer_task: {name} is {start!r}, and must be a number from {low:g} to {high:g}.")
    train, validation, v = jax.tree.map(jnp.asarray, (train, validation, v))
    u = {"learning_rate": jnp.log(learning_rate), "weight_decay": jnp.log(weight_decay)}
    upper = _AtTheEnd(validation_loss)
    problem = Problem(upper, _Scaled(train_loss), project_upper=_bounded, lower_start=lambda u, batch, key: v)
    batches = Epochs(validation, train, lower_size=batch_size, per_move=None if batch_size is None else moves)

    def metrics(u: PyTree, v: PyTree) -> dict[str, float]:
        return {"validation_loss": float(upper(u, v, whole(validation)))}

    return Task(problem, (u, v), batches, metrics)


@functools.cache
def optimizer_solver(moves: int, *, rate: float = 0.1) -> ReverseMode:
    """ReverseMode for `optimizer_task`; memory grows with the root of the number of moves.

    Args:
        moves: of a training run.
        rate: Adam's learning rate for the logarithms of the hyperparameters.
    """
    upper = optax.chain(optax.clip(1.0), optax.adam(rate, b2=0.99))
    return ReverseMode(upper, optax.sgd(1.0), lower_steps=moves, segment=max(1, math.isqrt(moves)))
