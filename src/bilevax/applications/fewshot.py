"""Few-shot learning: one representation for all tasks, a small classifier on top of it for each.

u are the parameters of the representation, v the heads of a meta-batch of tasks, each trained on a few samples of its
own; u is to serve the samples that are asked about (Franceschi et al., ICML 2018; Mehra and Hamm 2021, eq. 4).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator

from bilevax._programs import compiled
from bilevax.applications._inputs import (
    classes_of,
    labels,
    numeric,
    places,
    require_solver,
    require_unit,
    seed_key,
)
from bilevax.applications._pickling import Picklable
from bilevax.applications.episodes import (
    Adapt,
    Episode,
    Episodes,
    Evaluation,
    Scores,
    class_means,
    evaluate,
    pictures,
)
from bilevax.applications.task import Task
from bilevax.linear_solve import ByOptimizer, quadratic
from bilevax.models import Method, Representation, omniglot_network, pixels
from bilevax.problem import Batch, InputError, Problem, PyTree, require_count
from bilevax.solve import solve
from bilevax.solvers import Alternating, Implicit, Penalty, ReverseMode, base

SCALE = 10.0  # of a cosine, so that a softmax of cosines can be sure of something
LOWER_STEPS = 20
ADAPT_STEPS = 100
HEAD_RATE = 0.1
UPPER_RATE = 1e-2
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


def penalty_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Penalty:
    """Penalty as used here, for so many steps; without multipliers, since every step has other heads."""
    return Penalty(_upper(steps), optax.sgd(HEAD_RATE), lower_steps, gamma=1.0, lam=1.0, nu=0.0, step_scale=1.0)


def approxgrad_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Implicit:
    """ApproxGrad: as many moves of its linear solve, on the quadratic form, as of v."""
    linear_solve = ByOptimizer(optax.sgd(HEAD_RATE), steps=lower_steps, form=quadratic)
    return Implicit(_upper(steps), optax.sgd(HEAD_RATE), lower_steps, linear_solve)


def reverse_solver(steps: int, lower_steps: int = LOWER_STEPS) -> ReverseMode:
    """RMD: the T moves of the heads are differentiated (Franceschi et al. 2018)."""
    return ReverseMode(_upper(steps), optax.sgd(HEAD_RATE), lower_steps)


def alternating_solver(steps: int, lower_steps: int = LOWER_STEPS) -> Alternating:
    """Alternating descent: the representation learns as if the heads did not depend on it."""
    return Alternating(_upper(steps), optax.sgd(HEAD_RATE), lower_steps)


def _upper(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(UPPER_RATE, steps))


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
        # The start counts as given: methods that differentiate the moves do not go back through it.
        found = class_means(features_of(self.representation, u, batch.lower), batch.lower.y, self.way)
        return jax.lax.stop_gradient(unit(found))

    def scores(self, u: PyTree, v: Any, queries: Episode) -> Any:
        return cosine_scores(v, features_of(self.representation, u, queries))

    def adapt(self, u: PyTree, samples: Episode) -> Any:
        batch, optimizer = Batch(None, samples), optax.sgd(HEAD_RATE)
        problem = self.problem()
        v = self.start(u, batch, None)
        descend, key = base.descend(problem, u, batch), jax.random.key(0)
        return base.lower_moves(descend, optimizer, optimizer.init(v), v, problem, batch, ADAPT_STEPS, key)[0]

    def problem(self) -> Problem:
        upper, lower, start = (Method(self, name) for name in ("upper_loss", "lower_loss", "start"))
        return Problem(upper, lower, lower_start=start)


@functools.cache
def _cosine_problem(representation: Representation, way: int) -> tuple[Problem, Adapt, Scores]:
    heads = _CosineHeads(representation, way)
    return heads.problem(), Method(heads, "adapt"), Method(heads, "scores")


@compiled("adapt")
def _adapted(adapt: Adapt, u: PyTree, given: Episode) -> PyTree:
    return adapt(u, given)


@compiled("scores")
def _class_probabilities(scores: Scores, u: PyTree, v: PyTree, statistics: PyTree, x: Any) -> Any:
    return jax.nn.softmax(scores(u, v, Episode(x[None], jnp.zeros((1, len(x)), int), None, statistics))[0])


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
    classes' features and descend. g is the sum over the tasks of the mean cross-entropies of the samples to learn from,
    f the mean over the tasks of those of the samples that are asked about. The representation is applied to all tasks'
    samples in one pass; neither loss applies it anew when v moves, since it depends on u and the batch alone: the
    compiled step has it outside of the loop over the moves.

    Args:
        representation: maps samples to features, such as `omniglot_network`.
        images: (classes, pictures, ...) to learn from.
        way, shot, queries, tasks: as for `Episodes`.
        key: a jax.random key, for the representation's initialisation.

    Raises:
        InputError: images are not (classes, pictures, ...); fewer classes than way, or pictures than shot + queries.

    Metrics: accuracy on 100 tasks of the given classes, after 100 moves of the heads.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax.applications.fewshot import fewshot_task
        >>> from bilevax.models import omniglot_network
        >>> images = jax.random.randint(jax.random.key(0), (8, 6, 16, 16), 0, 255).astype(jnp.uint8)
        >>> method = fewshot_task(omniglot_network(4), images, way=3, shot=1, queries=2, tasks=2, key=jax.random.key(1))
        >>> u, v = method.task.start
        >>> v.shape
        (2, 3, 4)
    """
    source = sources(images, way, shot, queries, tasks)
    problem, adapt, scores = _cosine_problem(representation, way)
    task = Task(problem, start_of(representation, source, key), source, metrics_of(adapt, scores, source))
    return FewShot(task, lambda way: _cosine_problem(representation, way)[1:], representation.statistics)


def sources(images: Any, way: int, shot: int, queries: int, tasks: int) -> Episodes:
    """Episodes of checked images."""
    source = Episodes(
        pictures("images", images),
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


class FewShotClassifier(Picklable):
    """A classifier of the classes of one task; it takes samples (n, ...).

    Attributes:
        classes_: (classes,) as they were given.
    """

    def __init__(
        self,
        scores: Scores,
        u: PyTree,
        v: PyTree,
        statistics: PyTree,
        classes: np.ndarray,
        shape: tuple[int, ...],
        bytes_: bool,
    ):
        self.classes_, self._shape, self._bytes = classes, shape, bytes_
        self._scores, self._u, self._v, self._statistics = scores, u, v, statistics

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, classes), in the order of `classes_`.

        Raises:
            InputError: X is not (n, ...) of the shape that was learned from, or has entries that are not finite; floats
                outside 0..1 where bytes were learned from.
        """
        x = jnp.asarray(_checked(X, self._shape, self._bytes))
        return np.asarray(_class_probabilities(self._scores, self._u, self._v, self._statistics, x))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sample, (n,); raises as `predict_proba`."""
        return self.classes_[self.predict_proba(X).argmax(1)]


class FewShotLearner(Picklable, BaseEstimator):
    """Learns a representation from many classes, then new classes from few samples.

    It can be pickled and copied when fitted; `method_`, which holds the training images, is left out.

    Args:
        representation: maps samples to features; None for `omniglot_network()`. Images of uint8 reach it as 0..1.
        solver: any solver that takes a problem without constraints; None for `penalty_solver(steps)`.
        way, shot, queries, tasks: of the episodes it learns from; see `Episodes`.
        steps: upper iterations.
        seed: of the initialisation and of all draws.

    Attributes, after `meta_fit`:
        u_: the representation's parameters.
        shape_: of one sample.
        statistics_: by which it normalises from then on: those of 2,000 of the images that it learned from.
        history_: the solve's.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.fewshot import FewShotLearner
        >>> from bilevax.models import omniglot_network
        >>> rng = np.random.default_rng(0)
        >>> centres = rng.integers(0, 255, (12, 1, 16, 16))
        >>> images = np.clip(centres + rng.normal(0, 5, (12, 8, 16, 16)), 0, 255).astype(np.uint8)
        >>> learner = FewShotLearner(omniglot_network(8), way=3, shot=1, queries=3, tasks=2, steps=20)
        >>> classifier = learner.meta_fit(images[:8]).adapt(images[8:11, 0], ["a", "b", "c"])
        >>> classifier.predict(images[8:11, 1]).tolist()
        ['a', 'b', 'c']
    """

    def __init__(
        self,
        representation: Representation | None = None,
        solver: base.Solver | None = None,
        *,
        way: int = 5,
        shot: int = 5,
        queries: int = 15,
        tasks: int = 8,
        steps: int = 1000,
        seed: int = 0,
    ):
        self.representation, self.solver = representation, solver
        self.way, self.shot, self.queries, self.tasks = way, shot, queries, tasks
        self.steps, self.seed = steps, seed

    def meta_fit(self, images: Any, **more: Any) -> "FewShotLearner":
        """Learn the representation from images (classes, pictures, ...); `more` goes to `solve`.

        Raises:
            InputError: as for `fewshot_task`; steps is not a positive integer.
        """
        steps = require_count("FewShotLearner", "steps", self.steps)
        representation = omniglot_network() if self.representation is None else self.representation
        if not isinstance(representation, Representation):
            raise InputError(
                f"representation is {representation!r}, and must be a bilevax.models.Representation, such as "
                "omniglot_network()."
            )
        solver = penalty_solver(steps) if self.solver is None else self.solver
        require_solver(solver)
        keys = jax.random.split(seed_key("seed", self.seed), 3)
        images = pictures("images", images)
        sizes = {"way": self.way, "shot": self.shot, "queries": self.queries, "tasks": self.tasks}
        method = fewshot_task(representation, images, key=keys[0], **sizes)
        task = method.task
        result = solve(solver, task.problem, *task.start, task.batches, steps=steps, key=keys[1], **more)
        self.method_, self.u_, self.history_ = method, result.u, result.history
        self.shape_ = np.shape(images)[2:]
        self.statistics_ = statistics_of(method, self.u_, images, key=keys[2])
        self._representation, self._bytes = representation, images.dtype == jnp.uint8
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("method_", None)
        return state

    def _use(self, way: int) -> tuple[Adapt, Scores]:
        return _cosine_problem(self._representation, way)[1:]

    def adapt(self, X: Any, y: Any) -> FewShotClassifier:
        """A classifier of new classes, from a few samples X (n, ...) of each and their labels y (n,) of any kind.

        Raises:
            InputError: `meta_fit` was not called; samples are not of the shape learned from, are not finite, or
                do not fit their labels; one class only.
        """
        self._check_fitted()
        X, found = _checked(X, self.shape_, self._bytes), labels("y", y)
        if len(X) != len(found):
            raise InputError(f"X has {len(X)} samples and y {len(found)} labels. One label each is needed.")
        classes = classes_of("y", found)
        adapt, scores = self._use(len(classes))
        places_ = jnp.asarray(places("y", found, classes))
        v = _adapted(adapt, self.u_, Episode(jnp.asarray(X)[None], places_[None], None, self.statistics_))
        return FewShotClassifier(scores, self.u_, v, self.statistics_, classes, self.shape_, self._bytes)

    def evaluate(
        self,
        images: Any,
        *,
        way: int | None = None,
        shot: int | None = None,
        queries: int | None = None,
        episodes: int = 600,
        seed: int = 1,
    ) -> Evaluation:
        """Accuracy on tasks of new classes, images (classes, pictures, ...), with its 95% confidence interval.

        Args:
            images: of classes that were not learned from.
            way, shot, queries: of a task; as learned from by default.
            episodes: how many tasks.
            seed: of their draw.

        Raises:
            InputError: `meta_fit` was not called; otherwise as for `fewshot_task`.
        """
        self._check_fitted()
        way = require_count("evaluate", "way", self.way if way is None else way)
        return evaluate(
            *self._use(way),
            self.u_,
            images,
            way=way,
            shot=self.shot if shot is None else shot,
            queries=self.queries if queries is None else queries,
            episodes=episodes,
            key=seed_key("seed", seed),
            statistics=self.statistics_,
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "u_"):
            raise InputError("This learner has no representation yet. Call meta_fit first.")


def _checked(X: Any, shape: tuple[int, ...], bytes_: bool) -> np.ndarray:
    """Samples (n, *shape) of finite numbers, or a sentence."""
    X = numeric("X", X)
    if X.shape[1:] != shape or X.ndim != len(shape) + 1:
        wanted = ", ".join(["n", *map(str, shape)])
        raise InputError(
            f"X has shape {X.shape}. The representation learned from samples of shape {shape}: ({wanted}) is needed."
        )
    if bytes_ and X.size:
        require_unit("X", X, "meta_fit")
    return X
