"""Comparison of a representation learned by Penalty with an untrained one and with pixels, on tasks of new classes."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from bilevax.applications.fewshot.episodes import Adapt, Scores, evaluate, pixel_means
from bilevax.applications.fewshot.estimator import FewShotLearner
from bilevax.applications.fewshot.jobs import Parts, Pictures
from bilevax.applications.fewshot.tasks import statistics_of
from bilevax.loop.callbacks import Progress
from bilevax.loop.layout import Layout
from bilevax.loop.stages import Stages
from bilevax.nn.representations import omniglot_network


class Sizes(NamedTuple):
    """The size of a task: its classes, and the support and query pictures of each class."""

    way: int
    shot: int
    queries: int


class Row(NamedTuple):
    """A method's accuracy, half the width of its 95% interval over the tasks, and its seconds."""

    method: str
    accuracy: float
    half_width_95: float
    seconds: float


class Learned(NamedTuple):
    """A learner, its training images (classes, pictures, ...), and how long it took."""

    learner: FewShotLearner
    train: np.ndarray
    seconds: float


class Answered(NamedTuple):
    """One task of new classes, answered.

    Attributes:
        support, query: (way, shot, ...) and (way, queries, ...) uint8 pictures of each class.
        names: of the classes.
        answers: (way, queries), places in `names`.
    """

    support: np.ndarray
    query: np.ndarray
    names: list[str]
    answers: np.ndarray

    def right(self) -> np.ndarray:
        """Which answers are right, (way, queries)."""
        return self.answers == np.arange(len(self.answers))[:, None]


def learn(
    train: np.ndarray,
    sizes: Sizes,
    *,
    filters: int,
    tasks: int,
    steps: int,
    seed: int,
    stages: Stages,
    mesh: Layout | None = None,
) -> Learned:
    """Learn a representation by Penalty, or go on with it: its last checkpoint holds all that was found.

    Args:
        train: images (classes, pictures, ...) of the classes to learn from.
        sizes: of a task.
        filters: channels of each of the network's blocks.
        tasks: of each step.
        steps: of Penalty.
        seed: of everything drawn.
        stages: keeps the checkpoint.
        mesh: passed to `bilevax.solve`.
    """
    learner = FewShotLearner(omniglot_network(filters), tasks=tasks, steps=steps, seed=seed, **sizes._asdict())
    began = time.perf_counter()
    keep = stages.checkpoint("penalty")
    learner.meta_fit(train, callbacks=[Progress("Penalty"), keep], resume=keep, mesh=mesh)
    return Learned(learner, train, time.perf_counter() - began)


def measure(learned: Learned, test: np.ndarray, sizes: Sizes, *, episodes: int, seed: int, stages: Stages) -> list[Row]:
    """The accuracy of pixels, of the untrained and of the trained representation on the same tasks; a stage each.

    Args:
        learned: by `learn`.
        test: images (classes, pictures, ...) of new classes.
        sizes: of a task.
        episodes: how many tasks.
        seed: of the tasks.
        stages: keeps what is finished.
    """
    learner, key = learned.learner, jax.random.key(seed)

    def row(method: str, use: tuple[Adapt, Scores], u: Any, statistics: Any, before: float = 0.0) -> dict[str, Any]:
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
    """A task of new classes, drawn by a seed, with the learner's answers."""
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
