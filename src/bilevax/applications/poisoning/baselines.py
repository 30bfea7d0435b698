"""Baselines of the attacks: other losses, other derivatives, and the bound by projection."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree
from numpy.typing import ArrayLike

from bilevax import derivatives
from bilevax._checks import InputError, require_count
from bilevax.applications.poisoning.clean_label import FeatureMap, Target
from bilevax.applications.poisoning.points import Poisoned
from bilevax.applications.poisoning.recipes import LOWER_STEPS
from bilevax.applications.task import Task
from bilevax.linear_solve import CG
from bilevax.loop.sources import Fixed
from bilevax.problem import Batch, Problem
from bilevax.solvers import Implicit


def influence_solver(
    steps: int, lower_steps: int = LOWER_STEPS, *, lower_rate: float = 1e-3, rate: float = 0.02
) -> Implicit:
    """The attack by influence functions (Koh and Liang, ICML 2017, section 5.2).

    The derivative of f through retraining is that of the implicit function theorem, by conjugate gradients with the
    paper's damping of 0.01; points move by its sign, `rate` at a time, and the model is trained on after each move.

    Args:
        steps: of the solve. The rates are constant, so the settings are the same for every number of steps.
        lower_steps, lower_rate: updates of v in each step, and Adam's learning rate for them.
        rate: how far an entry of a point moves in a step.
    """
    return Implicit(
        optax.sign_sgd(rate), optax.adam(lower_rate), lower_steps, CG(steps=100, tolerance=1e-4, damping=0.01)
    )


def points_alone(task: Task) -> Task:
    """A clean-label task whose lower loss is that of the points alone, as `GradientMatching` needs it.

    Build the task with a training whose l2 is 0 and with the trained head as `start`: the penalty's gradient is not
    part of what is matched.
    """
    batch = _batch_of(task)
    poisoned, params = batch.lower
    alone = poisoned._replace(share=jnp.ones_like(poisoned.share))
    return task._replace(batches=Fixed(Batch(batch.upper, (alone, params))))


class WithinBall:
    """A clean-label task whose bound is held by projection: the baseline for a penalised constraint.

    u (m, ...) is the perturbation over eps, projected onto the unit ball of each point; the points are
    base + eps u, clipped to the samples' range. It takes the task without its constraint (distance=None), and every
    solver, since nothing is left to constrain. For the Euclidean distance alone: no other one is projected here.

    Args:
        task: of `clean_label_task` with distance=None.
        low, high: the range of the samples' entries.

    Attributes:
        task: the new task, starting from u = 0. Its metrics are those of the original task at the points.
    """

    def __init__(self, task: Task, low: float = 0.0, high: float = 1.0):
        if task.problem.constraints:
            raise InputError(
                "The task has a constraint on the distance already. Make it with distance=None, and the ball holds it."
            )
        batch = _batch_of(task)
        self._target: Target = batch.upper
        self._limits = low, high
        self.task = Task(
            Problem(
                _UpperInBall(task.problem, low, high),
                _LowerInBall(task.problem, low, high),
                project_upper=_unit_balls,
                random_lower=True,
            ),
            (jnp.zeros_like(self._target.base), task.start[1]),
            Fixed(Batch(batch.upper, (batch.lower, batch.upper))),
            lambda u, v: task.metrics(self.points(u), v),
        )

    def points(self, u: Any) -> Any:
        """The samples (m, ...) of a perturbation."""
        return _points(u, self._target, *self._limits)


def _points(u: Any, target: Target, low: float, high: float) -> Any:
    return jnp.clip(target.base + target.eps * u, low, high)


def _unit_balls(u: Any) -> Any:
    return jax.vmap(optax.projections.projection_l2_ball)(u)


@dataclass(frozen=True)
class _UpperInBall:
    """The upper loss of a problem at the points of a perturbation."""

    problem: Problem
    low: float
    high: float

    def __call__(self, u: Any, v: PyTree, target: Target) -> Any:
        return self.problem.upper_loss(_points(u, target, self.low, self.high), v, target)


@dataclass(frozen=True)
class _LowerInBall:
    """The lower loss of a problem at the points of a perturbation."""

    problem: Problem
    low: float
    high: float

    def __call__(self, u: Any, v: PyTree, data: tuple[tuple[Poisoned, PyTree], Target], *, key: PRNGKeyArray) -> Any:
        poisoned, target = data
        return self.problem.lower_loss(_points(u, target, self.low, self.high), v, poisoned, key=key)


def poison_frogs(
    features: FeatureMap,
    target: ArrayLike,
    base: ArrayLike,
    *,
    eps: float,
    rate: float = 0.01,
    similarity: float = 0.1,
    steps: int = 2000,
    low: float = 0.0,
    high: float = 1.0,
) -> np.ndarray:
    """Feature collision by forward-backward splitting (Shafahi et al., NeurIPS 2018, Algorithm 1).

    Forward: x - rate * grad |r(x) - r(t)|^2. Backward: (x + rate * similarity * base) / (1 + similarity * rate). Then,
    as in appendix E.4 of Mehra and Hamm (2021), x - base is projected onto the ball of radius eps, and x clipped to
    low..high. No model is trained, and the head on the features is not used.

    Args:
        features: the map r.
        target: the sample (...) whose features the points are to have.
        base: (m, ...) where they start.
        eps: the radius (l2).
        rate, similarity, steps: lambda, beta and the number of iterations; by default those of E.4.
        low, high: the range of the samples' entries.

    Returns:
        The points (m, ...).

    Raises:
        InputError: eps or steps is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.applications.poisoning import FeatureMap
        >>> from bilevax.applications.poisoning import poison_frogs
        >>> flat = FeatureMap(lambda params, x: x)
        >>> print(poison_frogs(flat, jnp.array([1.0, 0.5]), jnp.array([[0.5, 0.5]]), eps=0.3).round(2))
        [[0.8 0.5]]
    """
    require_count("poison_frogs", "steps", steps)
    if not eps > 0:
        raise InputError(f"eps is {eps}, and must be positive: with none, no point may move.")
    base, target = jnp.asarray(base, jnp.result_type(float)), jnp.asarray(target, jnp.result_type(float))
    wanted = features.apply(features.params, target[None])[0]
    found = _frogs(features.apply, steps, features.params, wanted, base, (eps, rate, similarity, low, high))
    return np.asarray(found)


@dataclass(frozen=True)
class _Collision:
    """The squared distance of the points' features from those wanted."""

    apply: Any

    def __call__(self, u: Any, v: PyTree, data: tuple[PyTree, Any]) -> Any:
        params, wanted = data
        return jnp.sum(jnp.square(self.apply(params, u) - wanted))


def _no_lower_level(u: Any, v: PyTree, data: Any) -> Any:
    return jnp.sum(v**2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _frogs(apply: Any, steps: int, params: PyTree, wanted: Any, base: Any, settings: tuple[Any, ...]) -> Any:
    eps, rate, similarity, low, high = settings
    problem = Problem(_Collision(apply), _no_lower_level)

    def one(x: Any, _: None) -> tuple[Any, None]:
        gradient = derivatives.upper(problem, x, jnp.zeros(1), (params, wanted), None).grad_u
        forward = x - rate * gradient
        backward = (forward + rate * similarity * base) / (1 + similarity * rate)
        projected = base + eps * _unit_balls((backward - base) / eps)
        return jnp.clip(projected, low, high), None

    return jax.lax.scan(one, base, None, length=steps)[0]


def _batch_of(task: Task) -> Batch:
    if not isinstance(task.batches, Fixed) or not isinstance(task.batches.batch.upper, Target):
        raise InputError("The task is not one of clean_label_task. Make it by that function.")
    return task.batches.batch
