"""Few-shot learning as an estimator."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Shaped
from sklearn.base import BaseEstimator

from bilevax._checks import InputError, require_count
from bilevax._programs import compiled
from bilevax.applications._inputs import classes_of, labels, numeric, places, require_label_each, require_unit
from bilevax.applications._pickling import Picklable
from bilevax.applications._settings import require_solver, seed_key
from bilevax.applications.fewshot.episodes import (
    Adapt,
    Episode,
    Evaluation,
    Scores,
    class_images,
    evaluate,
)
from bilevax.applications.fewshot.recipes import penalty_solver
from bilevax.applications.fewshot.tasks import cosine_problem, fewshot_task, statistics_of
from bilevax.loop.solve import solve
from bilevax.nn.adapters import as_representation
from bilevax.nn.representations import omniglot_network
from bilevax.solvers import base


@compiled("adapt")
def _adapted(adapt: Adapt, u: PyTree, support: Episode) -> PyTree:
    return adapt(u, support)


@compiled("scores")
def _class_probabilities(
    scores: Scores, u: PyTree, v: PyTree, statistics: PyTree, x: Shaped[Array, "n ..."]
) -> Float[Array, "n way"]:
    return jax.nn.softmax(scores(u, v, Episode(x[None], jnp.zeros((1, len(x)), int), None, statistics))[0])


class FewShotClassifier(Picklable):
    """A classifier for the classes of one task; made by `FewShotLearner.adapt`.

    Attributes:
        classes_: the distinct labels (classes,) that `adapt` got, sorted.
    """

    def __init__(
        self,
        scores: Scores,
        u: PyTree,
        v: PyTree,
        statistics: PyTree,
        classes: Shaped[np.ndarray, " classes"],
        shape: tuple[int, ...],
        bytes_: bool,
    ):
        self.classes_, self._shape, self._bytes = classes, shape, bytes_
        self._scores, self._u, self._v, self._statistics = scores, u, v, statistics

    def predict_proba(self, X: Shaped[ArrayLike, "n ..."]) -> Float[np.ndarray, "n classes"]:
        """Return the probability of each class, in the order of `classes_`.

        Raises:
            InputError: the samples do not have the shape of those in training; they have entries that are not finite;
                they are floats outside 0..1, and those in training were bytes.
        """
        x = jnp.asarray(_checked(X, self._shape, self._bytes))
        return np.asarray(_class_probabilities(self._scores, self._u, self._v, self._statistics, x))

    def predict(self, X: Shaped[ArrayLike, "n ..."]) -> Shaped[np.ndarray, " n"]:
        """Return the most probable class of each sample; raises as `predict_proba`."""
        return self.classes_[self.predict_proba(X).argmax(1)]


class FewShotLearner(Picklable, BaseEstimator):
    """Learns a representation from many classes, and adapts it to new classes with few samples.

    A fitted learner can be pickled and copied, without `method_`, which holds the training images.

    Args:
        representation: maps samples to features (n, d): a `Representation`, or a module of torch.nn, flax or equinox or
            a Keras model, see `bilevax.nn.as_representation`; None for `omniglot_network()`. Images of uint8 are scaled
            to 0..1.
        solver: any solver of bilevax; None for `penalty_solver(steps)`.
        way, shot, queries, tasks: the sizes of the training episodes, see `Episodes`.
        steps: upper steps.
        seed: of the initialisation and of all random draws.

    Attributes, after `meta_fit`:
        u_: parameters of the representation.
        shape_: shape of one sample.
        statistics_: statistics by which the trained representation normalises, from 2,000 training images.
        history_: history of the solve.
        method_: the `FewShot` that was trained.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.fewshot import FewShotLearner
        >>> from bilevax.nn import omniglot_network
        >>> rng = np.random.default_rng(0)
        >>> centres = rng.integers(0, 255, (12, 1, 16, 16))
        >>> images = np.clip(centres + rng.normal(0, 5, (12, 8, 16, 16)), 0, 255).astype(np.uint8)
        >>> learner = FewShotLearner(omniglot_network(4), way=3, shot=1, queries=3, tasks=2, steps=5)
        >>> classifier = learner.meta_fit(images[:8]).adapt(images[8:11, 0], ["a", "b", "c"])
        >>> classifier.predict(images[8:11, 1]).tolist()
        ['a', 'b', 'c']
    """

    def __init__(
        self,
        representation: Any = None,
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

    def meta_fit(self, images: Shaped[ArrayLike, "classes pictures ..."], **more: Any) -> "FewShotLearner":
        """Learn the representation from the images of many classes; `more` is passed to `solve`.

        Raises:
            InputError: as for `fewshot_task`; steps is not a positive integer.
        """
        steps = require_count("FewShotLearner", "steps", self.steps)
        given = omniglot_network() if self.representation is None else self.representation
        representation = as_representation(given)
        solver = penalty_solver(steps) if self.solver is None else self.solver
        require_solver(solver)
        keys = jax.random.split(seed_key("seed", self.seed), 3)
        images = class_images("images", images)
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
        return cosine_problem(self._representation, way)[1:]

    def adapt(self, X: Shaped[ArrayLike, "n ..."], y: Shaped[ArrayLike, " n"]) -> FewShotClassifier:
        """Return a classifier for new classes, from a few samples of each class, and their labels of one type.

        Raises:
            InputError: `meta_fit` was not called; the samples do not have the shape of those in training, or are not
                finite; there is not one label for each sample; there is only one class.
        """
        self._check_fitted()
        x, found = _checked(X, self.shape_, self._bytes), labels("y", y)
        require_label_each("X", x, "y", found)
        classes = classes_of("y", found)
        adapt, scores = self._use(len(classes))
        codes = jnp.asarray(places("y", found, classes))
        v = _adapted(adapt, self.u_, Episode(jnp.asarray(x)[None], codes[None], None, self.statistics_))
        return FewShotClassifier(scores, self.u_, v, self.statistics_, classes, self.shape_, self._bytes)

    def evaluate(
        self,
        images: Shaped[ArrayLike, "classes pictures ..."],
        *,
        way: int | None = None,
        shot: int | None = None,
        queries: int | None = None,
        episodes: int = 600,
        seed: int = 1,
    ) -> Evaluation:
        """Return the accuracy on random tasks of new classes, with its 95% confidence interval.

        Args:
            images: images (classes, pictures, ...) of classes that are not in the training images.
            way, shot, queries: sizes of a task; by default those of training.
            episodes: number of tasks.
            seed: of the tasks.

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
            raise InputError("This FewShotLearner is not fitted yet. Call meta_fit first.")


def _checked(X: Shaped[ArrayLike, "n ..."], shape: tuple[int, ...], bytes_: bool) -> Shaped[np.ndarray, "n ..."]:
    """Return samples of finite numbers; anything else is refused."""
    x = numeric("X", X)
    if x.shape[1:] != shape or x.ndim != len(shape) + 1:
        wanted = ", ".join(["n", *map(str, shape)])
        raise InputError(
            f"X has shape {x.shape}. The representation is trained for samples of shape {shape}: ({wanted}) is needed."
        )
    if bytes_ and x.size:
        require_unit("X", x, "the images of meta_fit")
    return x
