"""Comparison of a representation learned by Penalty with an untrained one and with pixels, on tasks of new classes."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree, UInt8

from bilevax.applications.fewshot.episodes import Adapt, Scores, evaluate, pixel_means
from bilevax.applications.fewshot.estimator import FewShotLearner
from bilevax.applications.fewshot.jobs import Parts, Pictures
from bilevax.applications.fewshot.tasks import statistics_of
from bilevax.loop.callbacks import Progress
from bilevax.loop.layout import Layout
from bilevax.loop.stages import Stages
from bilevax.nn.representations import omniglot_network


class Sizes(NamedTuple):
    """The size of a task: the number of classes, and of support and query pictures of each class."""

    way: int
    shot: int
    queries: int


class Row(NamedTuple):
    """A method's accuracy, half the width of its 95% confidence interval over the tasks, and its time in seconds."""

    method: str
    accuracy: float
    half_width_95: float
    seconds: float


class Learned(NamedTuple):
    """A fitted learner, its training images, and the time of training in seconds."""

    learner: FewShotLearner
    train: UInt8[np.ndarray, "classes pictures ..."]
    seconds: float


class Answered(NamedTuple):
    """One task of new classes, with predictions.

    Attributes:
        support, query: pictures of each class.
        names: names of the classes.
        answers: predicted classes of the query pictures, as indices of `names`.
    """

    support: UInt8[np.ndarray, "way shot ..."]
    query: UInt8[np.ndarray, "way queries ..."]
    names: list[str]
    answers: Int[np.ndarray, "way queries"]

    def right(self) -> Bool[np.ndarray, "way queries"]:
        """Return which answers are right."""
        return self.answers == np.arange(len(self.answers))[:, None]


def learn(
    train: UInt8[np.ndarray, "classes pictures ..."],
    sizes: Sizes,
    *,
    filters: int,
    tasks: int,
    steps: int,
    seed: int,
    stages: Stages,
    mesh: Layout | None = None,
) -> Learned:
    """Learn a representation by Penalty; continues from the checkpoint of an interrupted run.

    Args:
        train: images (classes, pictures, ...) of the training classes.
        sizes: size of a task.
        filters: channels of each block of the network.
        tasks: number of tasks in each step.
        steps: upper steps of Penalty.
        seed: of the initialisation and of all random draws.
        stages: saves the checkpoint.
        mesh: passed to `bilevax.solve`.
    """
    learner = FewShotLearner(omniglot_network(filters), tasks=tasks, steps=steps, seed=seed, **sizes._asdict())
    began = time.perf_counter()
    keep = stages.checkpoint("penalty")
    learner.meta_fit(train, callbacks=[Progress("Penalty"), keep], resume=keep, mesh=mesh)
    return Learned(learner, train, time.perf_counter() - began)


def measure(
    learned: Learned,
    test: UInt8[np.ndarray, "classes pictures ..."],
    sizes: Sizes,
    *,
    episodes: int,
    seed: int,
    stages: Stages,
) -> list[Row]:
    """Return the accuracies of pixels, of the untrained and of the trained representation, on the same tasks.

    Each of the three is a stage, so that an interrupted comparison can be resumed.

    Args:
        learned: result of `learn`.
        test: images (classes, pictures, ...) of new classes.
        sizes: size of a task.
        episodes: number of tasks.
        seed: of the tasks.
        stages: saves finished stages.
    """
    learner, key = learned.learner, jax.random.key(seed)

    def row(
        method: str, use: tuple[Adapt, Scores], u: PyTree, statistics: PyTree, before: float = 0.0
    ) -> dict[str, Any]:
        began = time.perf_counter()
        adapt, scores = use
        found = evaluate(adapt, scores, u, test, **sizes._asdict(), episodes=episodes, key=key, statistics=statistics)
        return Row(method, found.mean, found.half_width, before + time.perf_counter() - began)._asdict()

    method = learner.method_
    first, _ = method.task.start
    use = method.use(sizes.way)
    known = statistics_of(method, first, learned.train, key=key)
    rows = {
        "pixels": lambda _: row("nearest class mean, pixels", pixel_means(sizes.way), None, None),
        "untrained": lambda _: row("representation, untrained", use, first, known),
        "trained": lambda _: row("representation, by Penalty", use, learner.u_, learner.statistics_, learned.seconds),
    }
    return [stages.rebuilt(Row, stages.of(name, compute)) for name, compute in rows.items()]


def one_task(learned: Learned, pictures: Pictures, parts: Parts, sizes: Sizes, seed: int) -> Answered:
    """Return a random task of new classes, with the learner's predictions."""
    way, shot, queries = sizes
    rng = np.random.default_rng(seed)
    chosen = rng.choice(parts.test, way, replace=False)
    drawn = np.stack([rng.permutation(pictures.images.shape[1])[: shot + queries] for _ in range(way)])
    images = pictures.images[chosen[:, None], drawn]
    support, query = images[:, :shot], images[:, shot:]
    shape = images.shape[2:]
    classifier = learned.learner.adapt(support.reshape(-1, *shape), np.repeat(np.arange(way), shot))
    answers = classifier.predict(query.reshape(-1, *shape)).reshape(way, queries)
    return Answered(support, query, [pictures.names[i] for i in chosen], answers)
