"""Baselines of the attacks: other losses, other derivatives, and a projection in place of the constraint."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError, require_count
from bilevax._programs import compiled
from bilevax.applications.poisoning.clean_label import FeatureMap, Target, require_radius
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
    """Return the solver of the attack by influence functions (Koh and Liang, ICML 2017, section 5.2).

    The hypergradient is that of the implicit function theorem, by conjugate gradients with the paper's damping of 0.01.
    Each step moves every entry of the points by `rate` along the sign of the hypergradient, after the updates of v.

    Args:
        steps: upper steps of the solve; unused, since the rates are constant. It is here so that the function has the
            same form as the recipes.
        lower_steps: updates of v in each step.
        lower_rate: Adam's learning rate for v.
        rate: the change of each entry of a point in one step.
    """
    return Implicit(
        optax.sign_sgd(rate), optax.adam(lower_rate), lower_steps, CG(steps=100, tolerance=1e-4, damping=0.01)
    )


def points_alone(task: Task) -> Task:
    """Return a clean-label task whose lower loss is the loss of the points alone, for `GradientMatching`.

    Make the task with a training whose l2 is 0 and with the trained head as `start`: the gradient of the l2 penalty is
    not part of the gradients that are matched.
    """
    batch = _batch_of(task)
    poisoned, params = batch.lower
    alone = poisoned._replace(share=jnp.ones_like(poisoned.share))
    return task._replace(batches=Fixed(Batch(batch.upper, (alone, params))))


class WithinBall:
    """A clean-label task with a projection in place of the constraint: the baseline for a penalised constraint.

    u (m, ...) is the perturbation divided by eps, projected onto the unit ball of each point; the points are
    base + eps u, clipped to low..high. The task has no constraint, so every solver runs on it. The distance is always
    Euclidean.

    Args:
        task: a task of `clean_label_task` with distance=None.
        low, high: the range of the entries of all samples.

    Attributes:
        task: the new task, starting from u = 0. Its metrics are those of the original task at the points.

    Raises:
        InputError: the task has a constraint, or is not one of `clean_label_task`.
    """

    def __init__(self, task: Task, low: float = 0.0, high: float = 1.0):
        if task.problem.constraints:
            raise InputError(
                "The task already has a constraint on the distance. Make it with distance=None: the projection keeps "
                "the bound."
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

    def points(self, u: Float[Array, "m ..."]) -> Float[Array, "m ..."]:
        """Return the samples of a perturbation."""
        return _points(u, self._target, *self._limits)


def _points(u: Float[Array, "m ..."], target: Target, low: float, high: float) -> Float[Array, "m ..."]:
    return jnp.clip(target.base + target.eps * u, low, high)


def _unit_balls(u: Float[Array, "m ..."]) -> Float[Array, "m ..."]:
    return jax.vmap(optax.projections.projection_l2_ball)(u)


@dataclass(frozen=True)
class _UpperInBall:
    """The upper loss of a problem at the points of a perturbation."""

    problem: Problem
    low: float
    high: float

    def __call__(self, u: Float[Array, "m ..."], v: PyTree, target: Target) -> Float[Array, ""]:
        return self.problem.upper_loss(_points(u, target, self.low, self.high), v, target)


@dataclass(frozen=True)
class _LowerInBall:
    """The lower loss of a problem at the points of a perturbation."""

    problem: Problem
    low: float
    high: float

    def __call__(
        self,
        u: Float[Array, "m ..."],
        v: PyTree,
        data: tuple[tuple[Poisoned, PyTree], Target],
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, ""]:
        poisoned, target = data
        return self.problem.lower_loss(_points(u, target, self.low, self.high), v, poisoned, key=key)


def poison_frogs(
    features: FeatureMap,
    target: Float[ArrayLike, "..."],
    base: Float[ArrayLike, "m ..."],
    *,
    eps: float,
    rate: float = 0.01,
    similarity: float = 0.1,
    steps: int = 2000,
    low: float = 0.0,
    high: float = 1.0,
) -> Float[np.ndarray, "m ..."]:
    """Return points by feature collision with forward-backward splitting (Shafahi et al., NeurIPS 2018, Algorithm 1).

    Forward: x - rate * grad |r(x) - r(t)|^2. Backward: (x + rate * similarity * base) / (1 + similarity * rate). Then,
    as in appendix E.4 of Mehra and Hamm (2021), x - base is projected onto the ball of radius eps, and x is clipped to
    low..high. No model is trained, and no head on the features is used.

    Args:
        features: the map r.
        target: the sample t (...) whose features the points are moved to.
        base: the samples (m, ...) that the points start from.
        eps: the radius (l2).
        rate, similarity, steps: lambda, beta and the number of iterations; the defaults are those of E.4.
        low, high: the range of the entries of all samples.

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
    require_radius(eps)
    base, target = jnp.asarray(base, jnp.result_type(float)), jnp.asarray(target, jnp.result_type(float))
    aim = features.apply(features.params, target[None])[0]
    found = _frogs(features.apply, steps, features.params, aim, base, (eps, rate, similarity, low, high))
    return np.asarray(found)


@dataclass(frozen=True)
class _Collision:
    """The squared distance of the points' features from the target's."""

    apply: Callable[..., Float[Array, "m d"]]

    def __call__(
        self, u: Float[Array, "m ..."], v: PyTree, data: tuple[PyTree, Float[Array, " d"]]
    ) -> Float[Array, ""]:
        params, aim = data
        return jnp.sum(jnp.square(self.apply(params, u) - aim))


def _no_lower_level(u: PyTree, v: Float[Array, "1"], data: PyTree) -> Float[Array, ""]:
    return jnp.sum(v**2)


@compiled("apply", "steps")
def _frogs(
    apply: Callable[..., Float[Array, "m d"]],
    steps: int,
    params: PyTree,
    aim: Float[Array, " d"],
    base: Float[Array, "m ..."],
    settings: tuple[float, float, float, float, float],
) -> Float[Array, "m ..."]:
    eps, rate, similarity, low, high = settings
    problem = Problem(_Collision(apply), _no_lower_level)

    def one(x: Float[Array, "m ..."], _: None) -> tuple[Float[Array, "m ..."], None]:
        gradient = derivatives.upper(problem, x, jnp.zeros(1), (params, aim), None).grad_u
        forward = x - rate * gradient
        backward = (forward + rate * similarity * base) / (1 + similarity * rate)
        projected = base + eps * _unit_balls((backward - base) / eps)
        return jnp.clip(projected, low, high), None

    return jax.lax.scan(one, base, None, length=steps)[0]


def _batch_of(task: Task) -> Batch:
    if not isinstance(task.batches, Fixed) or not isinstance(task.batches.batch.upper, Target):
        raise InputError("The task is not one of clean_label_task. Make it with that function.")
    return task.batches.batch
