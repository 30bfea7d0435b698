"""Episodes of few-shot learning: N classes, a support set of K samples of each class, and a query set.

Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016. Episodes are drawn on the device, inside the
compiled loop; images of uint8 stay bytes until a representation reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax._checks import InputError, require_count
from bilevax._programs import compiled
from bilevax.applications._inputs import numeric
from bilevax.loop.sources import leading_size
from bilevax.nn.model import Method
from bilevax.problem import Batch

NORMAL = 1.96  # half the width of a two-sided 95% confidence interval, in standard errors
AT_ONCE = 20  # at most so many tasks are evaluated together


class Episode(NamedTuple):
    """The samples of several tasks.

    Attributes:
        x: samples.
        y: labels 0..way-1.
        key: a jax.random key, for dropout; None outside of training.
        statistics: statistics by which the representation normalises; None for those of x.
    """

    x: Shaped[Array, "tasks n ..."]
    y: Int[Array, "tasks n"]
    key: PRNGKeyArray | None = None
    statistics: PyTree = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Episodes:
    """A source of meta-batches: `Batch.lower` has the support sets, `Batch.upper` the query sets.

    Args:
        images: images (classes, pictures, ...) of any dtype.
        way: N, the number of classes of a task. Classes, and pictures of a class, are drawn without replacement.
        shot: K, the number of support samples of each class.
        queries: the number of query samples of each class.
        tasks: the number of tasks in a batch.

    Raises:
        InputError: from `check`: images are not (classes, pictures, ...); there are fewer classes than `way`, or fewer
            pictures than `shot` + `queries`; a count is not a positive integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.applications.fewshot import Episodes
        >>> source = Episodes(jnp.zeros((30, 20, 8, 8), jnp.uint8), way=5, shot=1, queries=4, tasks=2)
        >>> batch = source.at(step=0, key=jax.random.key(0))
        >>> batch.lower.x.shape, batch.upper.x.shape, batch.lower.y[0].tolist()
        ((2, 5, 8, 8), (2, 20, 8, 8), [0, 1, 2, 3, 4])
    """

    images: Shaped[Array, "classes pictures ..."]
    way: int = field(metadata={"static": True})
    shot: int = field(metadata={"static": True})
    queries: int = field(metadata={"static": True})
    tasks: int = field(metadata={"static": True})

    def check(self) -> None:
        """Raise InputError if sizes do not fit."""
        for name in ("way", "shot", "queries", "tasks"):
            require_count("Episodes", name, getattr(self, name))
        if self.way < 2:
            raise InputError("Episodes: way is 1, and a task must have at least 2 classes. Raise way.")
        check_class_images("images", self.images)
        classes, pictures = np.shape(self.images)[:2]
        if classes < self.way:
            raise InputError(f"There are {classes} classes, fewer than the {self.way} of a task. Lower way.")
        if pictures < self.shot + self.queries:
            raise InputError(
                f"A class has {pictures} pictures, fewer than the {self.shot} support and {self.queries} query samples "
                "of a task. Lower shot or queries."
            )

    def at(self, step: Int[ArrayLike, ""], key: PRNGKeyArray) -> Batch:
        """Return the meta-batch of a step."""
        task_key, upper_key, lower_key = jax.random.split(jax.random.fold_in(key, step), 3)
        classes, pictures = self.images.shape[:2]

        def one(key: PRNGKeyArray) -> tuple[Shaped[Array, "support ..."], Shaped[Array, "query ..."]]:
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

        def labels(each: int) -> Int[Array, "tasks n"]:
            return jnp.tile(jnp.repeat(jnp.arange(self.way), each), (self.tasks, 1))

        return Batch(Episode(queries, labels(self.queries), upper_key), Episode(support, labels(self.shot), lower_key))


def _some(key: PRNGKeyArray, n: int, count: int) -> Int[Array, " count"]:
    """Return random numbers of 0..n-1, without repetitions."""
    return jax.lax.top_k(jax.random.uniform(key, (n,)), count)[1]


class Evaluation(NamedTuple):
    """The accuracy on tasks.

    Attributes:
        mean: mean accuracy on the query sets.
        half_width: half the width of its 95% confidence interval, over the tasks.
        accuracies: accuracy of each task.
    """

    mean: float
    half_width: float
    accuracies: Float[np.ndarray, " episodes"]


Adapt = Callable[[PyTree, Episode], PyTree]  # (u, support samples) -> v
Scores = Callable[[PyTree, PyTree, Episode], Float[Array, "tasks n way"]]  # (u, v, queries) -> scores


def evaluate(
    adapt: Adapt,
    scores: Scores,
    u: PyTree,
    images: Shaped[ArrayLike, "classes pictures ..."],
    *,
    way: int,
    shot: int,
    key: PRNGKeyArray,
    queries: int = 15,
    episodes: int = 600,
    statistics: PyTree = None,
) -> Evaluation:
    """Return the accuracy on random tasks of new classes.

    Args:
        adapt: (u, samples) -> v, adaptation to the support sets of tasks.
        scores: (u, v, queries) -> (tasks, n, way), class scores of the query sets.
        u: upper variables of a trained method.
        images: images (classes, pictures, ...) from which the tasks are drawn.
        way, shot, queries: as for `Episodes`.
        key: a jax.random key.
        episodes: number of tasks.
        statistics: statistics by which the representation normalises; None for those of the samples in each pass.

    Raises:
        InputError: as for `Episodes.check`; `episodes` is not a positive integer.
    """
    episodes = require_count("evaluate", "episodes", episodes)
    at_once = max(n for n in range(1, AT_ONCE + 1) if episodes % n == 0)
    source = Episodes(class_images("images", images), way, shot, queries, at_once)
    source.check()
    found = _accuracies(adapt, scores, episodes // at_once, u, source, statistics, key)
    accuracies = np.asarray(found).reshape(-1)
    spread = float(accuracies.std(ddof=1)) if episodes > 1 else 0.0
    return Evaluation(float(accuracies.mean()), NORMAL * spread / episodes**0.5, accuracies)


@compiled("adapt", "scores", "turns")
def _accuracies(
    adapt: Adapt, scores: Scores, turns: int, u: PyTree, source: Episodes, statistics: PyTree, key: PRNGKeyArray
) -> Float[Array, "turns tasks"]:
    def one(turn: Int[Array, ""]) -> Float[Array, " tasks"]:
        query, support = (x._replace(key=None, statistics=statistics) for x in source.at(turn, key))
        answers = jnp.argmax(scores(u, adapt(u, support), query), -1)
        return jnp.mean(answers == query.y, 1)

    return jax.lax.map(one, jnp.arange(turns))


def class_means(features: Float[Array, "tasks n d"], y: Int[Array, "tasks n"], way: int) -> Float[Array, "tasks way d"]:
    """Return the mean features of each class."""
    members = jax.nn.one_hot(y, way, axis=1, dtype=features.dtype)  # (tasks, way, n)
    return members @ features / jnp.maximum(members.sum(-1, keepdims=True), 1)


def pixel_means(way: int) -> tuple[Adapt, Scores]:
    """Return `adapt` and `scores` of the nearest class mean of pixels, a baseline without training."""
    means = _PixelMeans(way)
    return Method(means, "adapt"), Method(means, "scores")


@dataclass(frozen=True)
class _PixelMeans:
    """The functions of `pixel_means`."""

    way: int

    def adapt(self, u: None, samples: Episode) -> Float[Array, "tasks way d"]:
        return class_means(_flat(samples), samples.y, self.way)

    def scores(self, u: None, means: Float[Array, "tasks way d"], queries: Episode) -> Float[Array, "tasks n way"]:
        x = _flat(queries)
        # Minus the squared distance, expanded, so that no array of all differences (tasks, n, way, d) is needed.
        across = 2 * x @ jnp.swapaxes(means, 1, 2)
        return across - jnp.sum(means**2, -1)[:, None] - jnp.sum(x**2, -1)[:, :, None]


def _flat(samples: Episode) -> Float[Array, "tasks n d"]:
    return samples.x.reshape(*samples.y.shape, -1) / 255


def class_images(name: str, images: Shaped[ArrayLike, "classes pictures ..."]) -> Shaped[Array, "classes pictures ..."]:
    """Return images on the device, in their own dtype; raises as `_inputs.numeric`."""
    if isinstance(images, jax.Array) and not jnp.issubdtype(images.dtype, jnp.complexfloating):
        return images
    return jnp.asarray(numeric(name, images))


def check_class_images(name: str, images: Shaped[ArrayLike, "classes pictures ..."]) -> None:
    """Refuse images that cannot be drawn from.

    Raises:
        InputError: images are not (classes, pictures, ...), are empty, or are not finite.
    """
    shape = np.shape(images)
    if len(shape) < 3 or 0 in shape:
        raise InputError(
            f"{name} has shape {shape}, and must be (classes, pictures, ...): the same number of pictures for each "
            "class, and at least one."
        )
    leading_size(name, images)
    if jnp.issubdtype(jnp.result_type(images), jnp.inexact) and (bad := int(jnp.sum(~jnp.isfinite(images)))):
        raise InputError(f"{name} holds {bad} NaN or infinite values of {jnp.size(images)}. Leave those pictures out.")
