"""Episodes of few-shot learning: N classes, a support set of K samples of each, and a query set.

Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016. They are drawn on the device, inside the
compiled loop; the pictures stay bytes.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from bilevax._checks import InputError, require_count
from bilevax.applications._inputs import numeric
from bilevax.loop.sources import leading_size
from bilevax.nn.model import Method
from bilevax.problem import Batch

NORMAL = 1.96  # a two-sided 95% interval, in standard errors


class Episode(NamedTuple):
    """Samples of several tasks at once.

    Attributes:
        x: (tasks, n, ...).
        y: (tasks, n) labels 0..way-1.
        key: a jax.random key, for dropout; None where nothing is learned.
        statistics: by which the representation normalises; None for those of x itself.
    """

    x: Any
    y: Any
    key: Any = None
    statistics: PyTree = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Episodes:
    """A source of meta-batches: `Batch.lower` are the support sets, `Batch.upper` the query sets.

    Args:
        images: (classes, pictures, ...) of each class, of any dtype.
        way: N, classes of a task; drawn without replacement, as are the pictures of a class.
        shot: K, support samples of each class.
        queries: query samples of each class.
        tasks: how many a batch holds.

    Raises:
        InputError: by `check`: images are not (classes, pictures, ...); fewer classes than way; fewer pictures than
            shot and queries; a count that is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.applications.fewshot import Episodes
        >>> source = Episodes(jnp.zeros((30, 20, 8, 8), jnp.uint8), way=5, shot=1, queries=4, tasks=2)
        >>> batch = source.at(step=0, key=jax.random.key(0))
        >>> batch.lower.x.shape, batch.upper.x.shape, batch.lower.y[0].tolist()
        ((2, 5, 8, 8), (2, 20, 8, 8), [0, 1, 2, 3, 4])
    """

    images: Any
    way: int = field(metadata={"static": True})
    shot: int = field(metadata={"static": True})
    queries: int = field(metadata={"static": True})
    tasks: int = field(metadata={"static": True})

    def check(self) -> None:
        """Raise InputError where sizes do not fit."""
        for name in ("way", "shot", "queries", "tasks"):
            require_count("Episodes", name, getattr(self, name))
        if self.way < 2:
            raise InputError("Episodes: way is 1, and with one class there is nothing to tell apart. Take at least 2.")
        check_class_images("images", self.images)
        classes, pictures = np.shape(self.images)[:2]
        if classes < self.way:
            raise InputError(f"There are {classes} classes, fewer than the {self.way} of a task. Lower way.")
        if pictures < self.shot + self.queries:
            raise InputError(
                f"A class has {pictures} pictures, fewer than {self.shot} to learn from and {self.queries} to ask "
                "about. Lower shot or queries."
            )

    def at(self, step: Any, key: PRNGKeyArray) -> Batch:
        """The meta-batch of a step."""
        task_key, upper_key, lower_key = jax.random.split(jax.random.fold_in(key, step), 3)
        classes, pictures = self.images.shape[:2]

        def one(key: PRNGKeyArray) -> tuple[Any, Any]:
            class_key, picture_key = jax.random.split(key)
            chosen = _some(class_key, classes, self.way)
            keys = jax.random.split(picture_key, self.way)
            places = jax.vmap(lambda key: _some(key, pictures, self.shot + self.queries))(keys)
            drawn = self.images[chosen[:, None], places]
            shape = self.images.shape[2:]
            return (
                drawn[:, : self.shot].reshape(self.way * self.shot, *shape),
                drawn[:, self.shot :].reshape(self.way * self.queries, *shape),
            )

        support, queries = jax.vmap(one)(jax.random.split(task_key, self.tasks))

        def labels(each: int) -> Any:
            return jnp.tile(jnp.repeat(jnp.arange(self.way), each), (self.tasks, 1))

        return Batch(Episode(queries, labels(self.queries), upper_key), Episode(support, labels(self.shot), lower_key))


def _some(key: Any, n: int, count: int) -> Any:
    """Different numbers of 0..n-1, (count,)."""
    return jax.lax.top_k(jax.random.uniform(key, (n,)), count)[1]


class Evaluation(NamedTuple):
    """How well tasks are learned.

    Attributes:
        mean: share of the queries with a right answer.
        half_width: of its 95% confidence interval, over the tasks.
        accuracies: (episodes,) of each task.
    """

    mean: float
    half_width: float
    accuracies: np.ndarray


Adapt = Callable[[PyTree, Episode], PyTree]
Scores = Callable[[PyTree, PyTree, Episode], Any]


def evaluate(
    adapt: Adapt,
    scores: Scores,
    u: PyTree,
    images: Any,
    *,
    way: int,
    shot: int,
    key: PRNGKeyArray,
    queries: int = 15,
    episodes: int = 600,
    statistics: PyTree = None,
) -> Evaluation:
    """Learn tasks of classes that u has not seen, and count the right answers.

    Args:
        adapt: (u, samples) -> v, what is learned from the samples of a task.
        scores: (u, v, queries) -> (tasks, n, way), of the answers.
        u: what was learned before.
        images: (classes, pictures, ...) that the tasks are drawn from.
        way, shot, queries: as for `Episodes`.
        key: a jax.random key.
        episodes: how many tasks.
        statistics: by which the representation normalises; None for those of the samples that it sees in one pass.

    Raises:
        InputError: as by `Episodes.check`; episodes is not a positive integer.
    """
    episodes = require_count("evaluate", "episodes", episodes)
    at_once = max(n for n in range(1, 21) if episodes % n == 0)
    source = Episodes(class_images("images", images), way, shot, queries, at_once)
    source.check()
    found = _accuracies(adapt, scores, episodes // at_once, u, source, statistics, key)
    accuracies = np.asarray(found).reshape(-1)
    spread = float(accuracies.std(ddof=1)) if episodes > 1 else 0.0
    return Evaluation(float(accuracies.mean()), NORMAL * spread / episodes**0.5, accuracies)


@functools.partial(jax.jit, static_argnames=("adapt", "scores", "turns"))
def _accuracies(
    adapt: Adapt, scores: Scores, turns: int, u: PyTree, source: Episodes, statistics: PyTree, key: Any
) -> Any:
    def one(turn: Any) -> Any:
        query, support = (x._replace(key=None, statistics=statistics) for x in source.at(turn, key))
        answers = jnp.argmax(scores(u, adapt(u, support), query), -1)
        return jnp.mean(answers == query.y, 1)

    return jax.lax.map(one, jnp.arange(turns))


def class_means(features: Any, y: Any, way: int) -> Any:
    """The mean (tasks, way, d) of each class's features (tasks, n, d)."""
    members = jax.nn.one_hot(y, way, axis=1, dtype=features.dtype)  # (tasks, way, n)
    return members @ features / jnp.maximum(members.sum(-1, keepdims=True), 1)


def pixel_means(way: int) -> tuple[Adapt, Scores]:
    """Nearest class mean of the pixels, which needs no learning: (adapt, scores)."""
    means = _PixelMeans(way)
    return Method(means, "adapt"), Method(means, "scores")


@dataclass(frozen=True)
class _PixelMeans:
    """The functions of `pixel_means`, as a value."""

    way: int

    def adapt(self, u: Any, samples: Episode) -> Any:
        return class_means(_flat(samples), samples.y, self.way)

    def scores(self, u: Any, means: Any, queries: Episode) -> Any:
        x = _flat(queries)
        # Minus the squared distance, by its products, so that no array holds all the differences.
        across = 2 * x @ jnp.swapaxes(means, 1, 2)
        return across - jnp.sum(means**2, -1)[:, None] - jnp.sum(x**2, -1)[:, :, None]


def _flat(samples: Episode) -> Any:
    return samples.x.reshape(*samples.y.shape, -1) / 255


def class_images(name: str, images: Any) -> Any:
    """Images on the device, in the dtype they have; raises as `_inputs.numeric`."""
    if isinstance(images, jax.Array) and not jnp.issubdtype(images.dtype, jnp.complexfloating):
        return images
    return jnp.asarray(numeric(name, images))


def check_class_images(name: str, images: Any) -> None:
    """Refuse what is not images of classes.

    Raises:
        InputError: not (classes, pictures, ...), empty, or not finite.
    """
    shape = np.shape(images)
    if len(shape) < 3 or 0 in shape:
        raise InputError(
            f"{name} has shape {shape}, and must be (classes, pictures, ...): of each class as many samples."
        )
    leading_size(name, images)
    if jnp.issubdtype(jnp.result_type(images), jnp.inexact) and (bad := int(jnp.sum(~jnp.isfinite(images)))):
        raise InputError(f"{name} holds {bad} NaN or infinite values of {jnp.size(images)}. Leave those pictures out.")
