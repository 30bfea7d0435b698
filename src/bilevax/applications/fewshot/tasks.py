"""Few-shot learning: one representation for all tasks, a small classifier on top of it for each.

u are the parameters of the representation, v the heads of a meta-batch of tasks, each trained on a few samples of its
own; u is to serve the queries (Franceschi et al., ICML 2018; Mehra and Hamm 2021, eq. 4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevax._checks import PyTree, require_count
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

SCALE = 10.0  # of a cosine, so that a softmax of cosines can be sure of something
SAMPLED = 2000  # training images whose statistics are kept
_SIZES = ("way", "shot", "queries", "tasks")


class FewShot(NamedTuple):
    """A way to learn from few samples.

    Attributes:
        task: for `solve`; u is what all tasks share.
        use: way -> (adapt, scores), for tasks of so many classes: adapt(u, samples) -> v, and scores(u, v, queries) ->
            (tasks, n, way).
        statistics: (u, images) -> by which a trained representation normalises.
    """

    task: Task
    use: Callable[[int], tuple[Adapt, Scores]]
    statistics: Callable[[PyTree, Any], PyTree]


def features_of(representation: Representation, u: PyTree, samples: Episode) -> Any:
    """The features (tasks, n, d) of all tasks' samples, in one pass."""
    x = pixels(samples.x.reshape(-1, *samples.x.shape[2:]))
    features = representation.apply(u, x, samples.statistics, samples.key)
    return features.reshape(*samples.y.shape, -1)


def cosine_scores(v: Any, features: Any) -> Any:
    """Ten times the cosines (tasks, n, way) of features (tasks, n, d) and heads (tasks, way, d) (Luo et al. 2018)."""
    return SCALE * unit(features) @ jnp.swapaxes(unit(v), 1, 2)


def unit(x: Any) -> Any:
    """Vectors along the last axis, of length one; a zero stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), jnp.finfo(x.dtype).tiny ** 0.5))


def cross_entropies(scores: Any, y: Any) -> Any:
    """The mean cross-entropy (tasks,) of each task."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, y), 1)


@dataclass(frozen=True)
class _CosineHeads:
    """The functions of tasks of `way` classes, heads on a representation, as values: equal ones compile once."""

    representation: Representation
    way: int

    def upper_loss(self, u: PyTree, v: Any, queries: Episode) -> Any:
        return jnp.mean(cross_entropies(self.scores(u, v, queries), queries.y))

    def lower_loss(self, u: PyTree, v: Any, samples: Episode) -> Any:
        # The sum: each head descends its own loss, whatever the number of tasks.
        return jnp.sum(cross_entropies(self.scores(u, v, samples), samples.y))

    def start(self, u: PyTree, batch: Batch, key: Any) -> Any:
        # The start is a constant: methods that differentiate the moves do not go back through it.
        found = class_means(features_of(self.representation, u, batch.lower), batch.lower.y, self.way)
        return jax.lax.stop_gradient(unit(found))

    def scores(self, u: PyTree, v: Any, queries: Episode) -> Any:
        return cosine_scores(v, features_of(self.representation, u, queries))

    def adapt(self, u: PyTree, samples: Episode) -> Any:
        batch, optimizer = Batch(None, samples), optax.sgd(HEAD_RATE)
        problem = self.problem()
        v = self.start(u, batch, None)
        descent = base.Descent(problem, u, optimizer)
        return descent.moves(v, optimizer.init(v), batch, ADAPT_STEPS, jax.random.key(0))[0]

    def problem(self) -> Problem:
        upper, lower, start = (Method(self, name) for name in ("upper_loss", "lower_loss", "start"))
        return Problem(upper, lower, lower_start=start)


def cosine_problem(representation: Representation, way: int) -> tuple[Problem, Adapt, Scores]:
    """The problem of heads with cosine scores, their adaptation and their scores."""
    heads = _CosineHeads(representation, way)
    return heads.problem(), Method(heads, "adapt"), Method(heads, "scores")


def fewshot_task(
    representation: Representation,
    images: Any,
    *,
    way: int,
    shot: int,
    key: Any,
    queries: int = 15,
    tasks: int = 30,
) -> FewShot:
    """A representation under softmax heads with cosine normalisation (appendix E.3).

    u is the representation's parameters; v (tasks, way, d) the heads, which in each step start at the means of their
    classes' features and descend. g is the sum over the tasks of the mean cross-entropies of the support sets,
    f the mean over the tasks of those of the queries. The representation is applied to all tasks'
    samples in one pass; neither loss applies it anew when v moves, since it depends on u and the batch alone: the
    compiled step has it outside of the loop over the moves.

    Args:
        representation: maps samples to features, such as `omniglot_network`.
        images: (classes, pictures, ...) to learn from.
        way, shot, queries, tasks: as for `Episodes`.
        key: a jax.random key, for the representation's initialisation.

    Raises:
        InputError: images are not (classes, pictures, ...); fewer classes than way, or pictures than shot + queries.

    Metrics: accuracy on 100 tasks of these classes, after 100 moves of the heads.

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


def sources(images: Any, way: int, shot: int, queries: int, tasks: int) -> Episodes:
    """Episodes of checked images."""
    source = Episodes(
        class_images("images", images),
        *(require_count("Episodes", name, n) for name, n in zip(_SIZES, (way, shot, queries, tasks), strict=True)),
    )
    source.check()
    return source


def start_of(representation: Representation, source: Episodes, key: Any) -> tuple[PyTree, Any]:
    """A new representation, and heads (tasks, way, d) of zeros."""
    u = representation.init(key, pixels(source.images[0]))
    shapes = jax.eval_shape(lambda: features_of(representation, u, source.at(0, key).lower))
    return u, jnp.zeros((source.tasks, source.way, shapes.shape[-1]), shapes.dtype)


def metrics_of(adapt: Adapt, scores: Scores, source: Episodes) -> Callable[[PyTree, PyTree], dict[str, float]]:
    """Accuracy on tasks of the source's own classes."""

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


def statistics_of(method: FewShot, u: PyTree, images: Any, *, key: Any) -> PyTree:
    """The statistics by which a trained representation normalises: those of 2,000 of its training images."""
    x = jnp.asarray(images)
    x = x.reshape(-1, *x.shape[2:])
    chosen = jax.random.choice(key, len(x), (min(SAMPLED, len(x)),), replace=False)
    return jax.jit(method.statistics)(u, pixels(x[chosen]))
