"""Few-shot learning as a bilevel problem: one representation for all tasks, and a linear head for each task.

u are the parameters of the representation. v are the heads of a meta-batch of tasks, each trained on the support set of
its task. u minimises the loss of the query sets (Franceschi et al., ICML 2018; Mehra and Hamm 2021, eq. 4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, require_count
from bilevax.applications.fewshot.episodes import (
    Adapt,
    Episode,
    Episodes,
    Scores,
    class_images,
    class_means,
    evaluate,
)
from bilevax.applications.fewshot.recipes import ADAPT_STEPS, HEAD_RATE
from bilevax.applications.task import Task
from bilevax.nn.model import Method, pixels
from bilevax.nn.representations import Representation
from bilevax.problem import Batch, Problem
from bilevax.solvers import base

SCALE = 10.0  # factor of a cosine, so that a softmax of cosines can be near 0 or 1
SAMPLED = 2000  # training images for the normalisation statistics of a trained representation
_SIZES = ("way", "shot", "queries", "tasks")


class FewShot(NamedTuple):
    """A method of few-shot learning.

    Attributes:
        task: the task for `solve`; u is shared by all few-shot tasks.
        use: way -> (adapt, scores), for tasks of `way` classes: adapt(u, support samples) -> v, and scores(u, v,
            queries) -> (tasks, n, way).
        statistics: (u, images) -> statistics by which a trained representation normalises.
    """

    task: Task
    use: Callable[[int], tuple[Adapt, Scores]]
    statistics: Callable[[PyTree, Float[Array, "n ..."]], PyTree]


def features_of(representation: Representation, u: PyTree, samples: Episode) -> Float[Array, "tasks n d"]:
    """Return the features of the samples of all tasks, in one pass."""
    x = pixels(samples.x.reshape(-1, *samples.x.shape[2:]))
    features = representation.apply(u, x, samples.statistics, samples.key)
    return features.reshape(*samples.y.shape, -1)


def unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return vectors along the last axis scaled to length one; a zero vector stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), jnp.finfo(x.dtype).tiny ** 0.5))


def cross_entropies(scores: Float[Array, "tasks n way"], y: Int[Array, "tasks n"]) -> Float[Array, " tasks"]:
    """Return the mean cross-entropy of each task."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, y), 1)


def functions_of(method: Any) -> tuple[Problem, Adapt, Scores]:
    """Return the problem, `adapt` and `scores` of a frozen dataclass with these functions as methods.

    Equal dataclasses give equal functions, so that their programs are compiled once.
    """
    upper, lower, start = (Method(method, name) for name in ("upper_loss", "lower_loss", "start"))
    return Problem(upper, lower, lower_start=start), Method(method, "adapt"), Method(method, "scores")


def descended(problem: Problem, u: PyTree, v: PyTree, samples: Episode, rate: float, steps: int) -> PyTree:
    """Return v after gradient descent on the lower loss of the samples."""
    optimizer = optax.sgd(rate)
    descent = base.Descent(problem, u, optimizer)
    return descent.moves(v, optimizer.init(v), Batch(None, samples), steps, jax.random.key(0))[0]


@dataclass(frozen=True)
class _CosineHeads:
    """The functions of `fewshot_task`, for tasks of `way` classes."""

    representation: Representation
    way: int

    def upper_loss(self, u: PyTree, v: Float[Array, "tasks way d"], queries: Episode) -> Float[Array, ""]:
        return jnp.mean(cross_entropies(self.scores(u, v, queries), queries.y))

    def lower_loss(self, u: PyTree, v: Float[Array, "tasks way d"], samples: Episode) -> Float[Array, ""]:
        # The sum and not the mean, so that the updates of a head do not depend on the number of tasks.
        return jnp.sum(cross_entropies(self.scores(u, v, samples), samples.y))

    def start(self, u: PyTree, batch: Batch, key: PRNGKeyArray | None) -> Float[Array, "tasks way d"]:
        # The start is a constant: reverse mode differentiates the updates of the heads, and not their start.
        means = class_means(features_of(self.representation, u, batch.lower), batch.lower.y, self.way)
        return jax.lax.stop_gradient(unit(means))

    def scores(self, u: PyTree, v: Float[Array, "tasks way d"], queries: Episode) -> Float[Array, "tasks n way"]:
        """Return ten times the cosines between features and heads (Luo et al. 2018)."""
        return SCALE * unit(features_of(self.representation, u, queries)) @ jnp.swapaxes(unit(v), 1, 2)

    def adapt(self, u: PyTree, samples: Episode) -> Float[Array, "tasks way d"]:
        v = self.start(u, Batch(None, samples), None)
        return descended(functions_of(self)[0], u, v, samples, HEAD_RATE, ADAPT_STEPS)


def cosine_problem(representation: Representation, way: int) -> tuple[Problem, Adapt, Scores]:
    """Return the problem, `adapt` and `scores` of heads with cosine scores."""
    return functions_of(_CosineHeads(representation, way))


def fewshot_task(
    representation: Representation,
    images: Shaped[ArrayLike, "classes pictures ..."],
    *,
    way: int,
    shot: int,
    key: PRNGKeyArray,
    queries: int = 15,
    tasks: int = 30,
) -> FewShot:
    """Return the task of a representation with softmax heads on cosine scores (Mehra and Hamm 2021, appendix E.3).

    u are the representation's parameters. v (tasks, way, d) are the heads; in each step they start at the means of
    their classes' features and move by gradient descent. g is the sum over the tasks of the mean cross-entropies of the
    support sets. f is the mean over the tasks of the mean cross-entropies of the query sets. The representation is
    applied to the samples of all tasks in one pass. It depends only on u and the batch, so the compiled step computes
    it once, outside the loop over the updates of v.

    Args:
        representation: maps samples to features, such as `omniglot_network()`.
        images: training images (classes, pictures, ...).
        way, shot, queries, tasks: as for `Episodes`.
        key: a jax.random key, for the representation's initialisation.

    Raises:
        InputError: images are not (classes, pictures, ...); there are fewer classes than `way`, or fewer pictures than
            `shot` + `queries`.

    Metrics: `accuracy` on 100 tasks of the training classes, after 100 updates of the heads.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.applications.fewshot import fewshot_task
        >>> from bilevax.nn import omniglot_network
        >>> images = jax.random.randint(jax.random.key(0), (8, 6, 16, 16), 0, 255).astype(jnp.uint8)
        >>> method = fewshot_task(omniglot_network(4), images, way=3, shot=1, queries=2, tasks=2, key=jax.random.key(1))
        >>> u, v = method.task.start
        >>> v.shape
        (2, 3, 4)
    """
    source = sources(images, way, shot, queries, tasks)
    problem, adapt, scores = cosine_problem(representation, way)
    task = Task(problem, start_of(representation, source, key), source, metrics_of(adapt, scores, source))
    return FewShot(task, lambda way: cosine_problem(representation, way)[1:], representation.statistics)


def sources(
    images: Shaped[ArrayLike, "classes pictures ..."], way: int, shot: int, queries: int, tasks: int
) -> Episodes:
    """Return episodes, after the checks of images and sizes."""
    source = Episodes(
        class_images("images", images),
        *(require_count("Episodes", name, n) for name, n in zip(_SIZES, (way, shot, queries, tasks), strict=True)),
    )
    source.check()
    return source


def start_of(
    representation: Representation, source: Episodes, key: PRNGKeyArray
) -> tuple[PyTree, Float[Array, "tasks way d"]]:
    """Return the parameters of a new representation, and heads of zeros."""
    u = representation.init(key, pixels(source.images[0]))
    if not np.any(representation.apply(u, pixels(source.images[0]))):
        raise InputError(
            "The representation's features are all zero at its start, where their cosines have no gradient. Draw its "
            "last layer at random: bilevax.nn.mlp starts it at zero, as for logits."
        )
    shapes = jax.eval_shape(lambda: features_of(representation, u, source.at(0, key).lower))
    return u, jnp.zeros((source.tasks, source.way, shapes.shape[-1]), shapes.dtype)


def metrics_of(adapt: Adapt, scores: Scores, source: Episodes) -> Callable[[PyTree, PyTree], dict[str, float]]:
    """Return metrics with the accuracy on tasks of the source's own classes."""

    def metrics(u: PyTree, v: PyTree) -> dict[str, float]:
        found = evaluate(
            adapt,
            scores,
            u,
            source.images,
            way=source.way,
            shot=source.shot,
            queries=source.queries,
            episodes=100,
            key=jax.random.key(0),
        )
        return {"accuracy": found.mean}

    return metrics


def statistics_of(
    method: FewShot, u: PyTree, images: Shaped[ArrayLike, "classes pictures ..."], *, key: PRNGKeyArray
) -> PyTree:
    """Return the statistics by which a trained representation normalises, from 2,000 of its training images."""
    x = jnp.asarray(images)
    x = x.reshape(-1, *x.shape[2:])
    chosen = jax.random.choice(key, len(x), (min(SAMPLED, len(x)),), replace=False)
    return jax.jit(method.statistics)(u, pixels(x[chosen]))
