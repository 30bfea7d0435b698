"""Baselines of few-shot learning: MAML, iMAML, prototypical and relation networks, on the same episodes.

Each is a bilevel problem, so that the solvers of the library run on it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, require_count
from bilevax.applications.fewshot.episodes import Adapt, Episode, Scores, class_means
from bilevax.applications.fewshot.recipes import UPPER_RATE
from bilevax.applications.fewshot.tasks import (
    FewShot,
    cross_entropies,
    descended,
    features_of,
    functions_of,
    metrics_of,
    sources,
)
from bilevax.applications.task import Task
from bilevax.linear_solve import CG
from bilevax.nn.model import pixels
from bilevax.nn.representations import Representation
from bilevax.problem import Batch
from bilevax.solvers import Alternating, Implicit, ReverseMode

INNER_RATE = 0.4  # MAML on Omniglot
INNER_STEPS = 1
MAML_ADAPT_STEPS = 3  # MAML at test time, Omniglot 5-way
PROXIMAL = 2.0  # lambda of iMAML
IMAML_STEPS, IMAML_RATE = 16, 0.1
RELATION_WIDTH = 8  # units of the hidden layer for each feature


@functools.cache
def maml_solver(steps: int, lower_steps: int = INNER_STEPS, *, lower_rate: float = INNER_RATE) -> ReverseMode:
    """Return MAML for `maml_task`: reverse mode through the inner updates (Finn et al., ICML 2017, Algorithm 2)."""
    return ReverseMode(optax.adam(optax.cosine_decay_schedule(1e-3, steps)), optax.sgd(lower_rate), lower_steps)


@functools.cache
def first_order_maml_solver(
    steps: int, lower_steps: int = INNER_STEPS, *, lower_rate: float = INNER_RATE
) -> Alternating:
    """Return first-order MAML for `maml_task`: the gradient at the adapted parameters replaces that at the start."""
    return Alternating(optax.adam(optax.cosine_decay_schedule(1e-3, steps)), optax.sgd(lower_rate), lower_steps)


@functools.cache
def imaml_solver(steps: int, lower_steps: int = IMAML_STEPS, *, lower_rate: float = IMAML_RATE) -> Implicit:
    """Return iMAML for `maml_task` with a positive `proximal` (Rajeswaran et al., NeurIPS 2019): five steps of CG."""
    upper = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    return Implicit(upper, optax.sgd(lower_rate), lower_steps, CG(steps=5))


@functools.cache
def metric_solver(steps: int) -> Implicit:
    """Return the solver of `prototypical_task` and `relation_task`.

    Their lower loss has the identity as its Hessian, and v starts at its minimiser, so one step of CG is exact.
    """
    upper = optax.adam(optax.cosine_decay_schedule(UPPER_RATE, steps))
    return Implicit(upper, optax.sgd(1.0), 1, CG(steps=1))


def maml_task(
    representation: Representation,
    images: Shaped[ArrayLike, "classes pictures ..."],
    *,
    way: int,
    shot: int,
    key: PRNGKeyArray,
    queries: int = 15,
    tasks: int = 32,
    proximal: float = 0.0,
    adapt_rate: float = INNER_RATE,
    adapt_steps: int = MAML_ADAPT_STEPS,
) -> FewShot:
    """Return MAML or iMAML: learn the initial parameters of a network (Finn et al. 2017; Rajeswaran et al. 2019).

    u are the parameters of a representation and a dense layer to `way` logits. v, with a leading axis of tasks, is the
    difference of each task's parameters from u; in every step it starts at zero and moves by gradient descent. g is the
    sum over the tasks of the cross-entropy at u + v, plus proximal / 2 times the squared norm of v. f is the mean over
    the tasks of the cross-entropy of the queries. With reverse mode this is MAML, with alternating descent first-order
    MAML, and with an implicit solver and a positive `proximal` iMAML. Each task is normalised by its own samples.

    Args:
        representation, images, way, shot, key, queries, tasks: as for `fewshot_task`.
        proximal: lambda of iMAML, zero or positive.
        adapt_rate, adapt_steps: learning rate and number of updates for a new task.

    Raises:
        InputError: as for `fewshot_task`; proximal is negative, or adapt_steps is not a positive integer. `use` of the
            result raises it for tasks with another number of classes.
    """
    source = sources(images, way, shot, queries, tasks)
    require_count("maml_task", "adapt_steps", adapt_steps)
    if not proximal >= 0:
        raise InputError(f"maml_task: proximal is {proximal}, and must be zero or positive.")
    maml = _Maml(representation, float(proximal), float(adapt_rate), adapt_steps)
    problem, adapt, scores = functions_of(maml)
    x = pixels(source.images[0])
    u: PyTree = {"representation": representation.init(key, x)}
    width = jax.eval_shape(representation.apply, u["representation"], x).shape[-1]
    u["dense"] = {"weight": jnp.zeros((width, way)), "bias": jnp.zeros(way)}
    v = jax.tree.map(lambda p: jnp.zeros((tasks, *p.shape), p.dtype), u)

    def use(classes: int) -> tuple[Adapt, Scores]:
        if classes != way:
            raise InputError(
                f"The network has {way} logits, and a task has {classes} classes. Make the task with way={classes}."
            )
        return adapt, scores

    task = Task(problem, (u, v), source, metrics_of(adapt, scores, source))
    return FewShot(task, use, _statistics_by(representation))


def _statistics_by(representation: Representation) -> Callable[[PyTree, Float[Array, "n ..."]], PyTree]:
    """Return the function that computes normalisation statistics, for a u with a representation among its parts."""
    return lambda u, x: representation.statistics(u["representation"], x)


@dataclass(frozen=True)
class _Maml:
    """The functions of `maml_task`."""

    representation: Representation
    proximal: float
    rate: float
    steps: int

    def scores(self, u: PyTree, v: PyTree, samples: Episode) -> Float[Array, "tasks n way"]:
        def one(difference: PyTree, x: Float[Array, "n ..."]) -> Float[Array, "n way"]:
            params = optax.tree.add(u, difference)
            features = self.representation.apply(params["representation"], pixels(x), samples.statistics, samples.key)
            return features @ params["dense"]["weight"] + params["dense"]["bias"]

        return jax.vmap(one)(v, samples.x)

    def upper_loss(self, u: PyTree, v: PyTree, queries: Episode) -> Float[Array, ""]:
        return jnp.mean(cross_entropies(self.scores(u, v, queries), queries.y))

    def lower_loss(self, u: PyTree, v: PyTree, samples: Episode) -> Float[Array, ""]:
        loss = jnp.sum(cross_entropies(self.scores(u, v, samples), samples.y))
        return loss + self.proximal / 2 * optax.tree.norm(v, squared=True)

    def start(self, u: PyTree, batch: Batch, key: PRNGKeyArray | None) -> PyTree:
        return jax.tree.map(lambda p: jnp.zeros((len(batch.lower.x), *p.shape), p.dtype), u)

    def adapt(self, u: PyTree, samples: Episode) -> PyTree:
        v = self.start(u, Batch(None, samples), None)
        return descended(functions_of(self)[0], u, v, samples, self.rate, self.steps)


def prototypical_task(
    representation: Representation,
    images: Shaped[ArrayLike, "classes pictures ..."],
    *,
    way: int,
    shot: int,
    key: PRNGKeyArray,
    queries: int = 15,
    tasks: int = 1,
) -> FewShot:
    """Return prototypical networks: the class with the nearest mean of features (Snell et al., NeurIPS 2017).

    v (tasks, way, d) are the prototypes. g is half the sum of their squared distances from the means of their classes,
    so v*(u) are the means. f is the cross-entropy of minus the squared distances of the queries from the prototypes. As
    in the paper, the training tasks may have more classes than later tasks.

    Args, Raises: as for `fewshot_task`.
    """
    return _metric_task(representation, images, way, shot, queries, tasks, key, None)


def relation_task(
    representation: Representation,
    images: Shaped[ArrayLike, "classes pictures ..."],
    *,
    way: int,
    shot: int,
    key: PRNGKeyArray,
    queries: int = 15,
    tasks: int = 1,
) -> FewShot:
    """Return relation networks: the similarity of a query to a class is learned too (Sung et al., CVPR 2018).

    As `prototypical_task`, but a network of two dense layers maps the features of a prototype and of a query to a score
    in 0..1, and f is the squared error of the scores, with the targets 1 for the right class and 0 for the others. The
    paper compares feature maps by convolutions; here feature vectors are compared, since a representation returns
    vectors.

    Args, Raises: as for `fewshot_task`.
    """
    return _metric_task(representation, images, way, shot, queries, tasks, key, RELATION_WIDTH)


def _metric_task(
    representation: Representation,
    images: Shaped[ArrayLike, "classes pictures ..."],
    way: int,
    shot: int,
    queries: int,
    tasks: int,
    key: PRNGKeyArray,
    width: int | None,
) -> FewShot:
    source = sources(images, way, shot, queries, tasks)
    keys, x = jax.random.split(key, 3), pixels(source.images[0])
    u: PyTree = {"representation": representation.init(keys[0], x)}
    d = jax.eval_shape(representation.apply, u["representation"], x).shape[-1]
    if width is not None:
        wide = width * d
        u["relation"] = {
            "first": (1 / d) ** 0.5 * jax.random.normal(keys[1], (2 * d, wide)),
            "shift": jnp.zeros(wide),
            "last": (1 / wide) ** 0.5 * jax.random.normal(keys[2], (wide,)),
            "bias": jnp.zeros(()),
        }
    problem, adapt, scores = functions_of(_Metric(representation, way, width is not None))
    task = Task(problem, (u, jnp.zeros((tasks, way, d))), source, metrics_of(adapt, scores, source))

    def use(classes: int) -> tuple[Adapt, Scores]:
        return functions_of(_Metric(representation, classes, width is not None))[1:]

    return FewShot(task, use, _statistics_by(representation))


@dataclass(frozen=True)
class _Metric:
    """The functions of `prototypical_task` and `relation_task`."""

    representation: Representation
    way: int
    related: bool

    def adapt(self, u: PyTree, samples: Episode) -> Float[Array, "tasks way d"]:
        """Return the means of the classes."""
        return class_means(features_of(self.representation, u["representation"], samples), samples.y, self.way)

    def scores(self, u: PyTree, v: Float[Array, "tasks way d"], queries: Episode) -> Float[Array, "tasks n way"]:
        features = features_of(self.representation, u["representation"], queries)
        return _relations(u["relation"], v, features) if self.related else _minus_distances(v, features)

    def upper_loss(self, u: PyTree, v: Float[Array, "tasks way d"], queries: Episode) -> Float[Array, ""]:
        scores = self.scores(u, v, queries)
        if self.related:
            return jnp.mean(jnp.sum(jnp.square(scores - jax.nn.one_hot(queries.y, self.way)), -1))
        return jnp.mean(cross_entropies(scores, queries.y))

    def lower_loss(self, u: PyTree, v: Float[Array, "tasks way d"], samples: Episode) -> Float[Array, ""]:
        return jnp.sum(jnp.square(v - self.adapt(u, samples))) / 2

    def start(self, u: PyTree, batch: Batch, key: PRNGKeyArray | None) -> Float[Array, "tasks way d"]:
        return self.adapt(u, batch.lower)


def _minus_distances(
    v: Float[Array, "tasks way d"], features: Float[Array, "tasks n d"]
) -> Float[Array, "tasks n way"]:
    return -jnp.sum(jnp.square(features[:, :, None] - v[:, None]), -1)


def _relations(
    net: PyTree[Float[Array, "..."]], v: Float[Array, "tasks way d"], features: Float[Array, "tasks n d"]
) -> Float[Array, "tasks n way"]:
    half = v.shape[-1]
    first = (features @ net["first"][half:])[:, :, None] + (v @ net["first"][:half])[:, None]
    return jax.nn.sigmoid(jax.nn.relu(first + net["shift"]) @ net["last"] + net["bias"])
