"""The works: data and starts as numpy arrays generated from a seed, sizes, and targets.

This module needs only numpy, so that every environment reads the same data. u and v are lists of arrays, in the order
and the layout of bilevax's models: dense weights (in, out), convolutions (height, width, in, out).
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

SIDE, CLASSES = 28, 10
POINTS = 60
L2 = {"poisoning": 1e-2, "mlp": 3e-3, "mnist": 3e-3, "transformer": 3e-3}
HIDDEN = 256
FILTERS, TASKS, WAY, SHOT, QUERIES = 32, 8, 5, 5, 5
SCALE = 10.0  # of the cosines in the few-shot heads
TOKENS, FEATURES, HEADS = 32, 64, 4  # of the transformer block
DENOISING = ("mlp", "mnist", "transformer")


@dataclass(frozen=True)
class Work:
    """A bilevel problem with its data.

    Attributes:
        name: as in --work.
        title: as in the table.
        make: rng -> the data, and where u and v start, u_0, u_1, ..., v_0, ...
        measure: what the judge computes from u, in words.
        target: the value to reach; `rising`: at least that, otherwise at most.
        every: upper iterations between two evaluations by the judge.
        most: upper iterations after which the run is stopped.
        warm: moves of v by Adam before anything starts: down g, in denoising down the loss on the clean samples.
    """

    name: str
    title: str
    make: Callable[[np.random.Generator], Arrays]
    measure: str
    target: float
    rising: bool
    every: int
    most: int
    warm: int = 0

    def arrays(self) -> Arrays:
        """The arrays, always the same."""
        return {name: as_stored(x) for name, x in self.make(np.random.default_rng(0)).items()}

    def done(self, value: float) -> bool:
        """Whether a value reaches the target."""
        return value >= self.target if self.rising else value <= self.target


def as_stored(x: np.ndarray) -> np.ndarray:
    """Floats of 32 bits and integers of 64."""
    return np.ascontiguousarray(x, np.float32 if np.issubdtype(x.dtype, np.floating) else np.int64)


def leaves(arrays: Arrays, name: str) -> list[np.ndarray]:
    """The arrays name_0, name_1, ..."""
    found = itertools.takewhile(lambda key: key in arrays, (f"{name}_{i}" for i in itertools.count()))
    return [arrays[key] for key in found]


def numbered(name: str, values: Any) -> Arrays:
    """The reverse of `leaves`."""
    return {f"{name}_{i}": as_stored(np.asarray(x)) for i, x in enumerate(values)}


def load(path: Path) -> Arrays:
    """The arrays of a file."""
    with np.load(path) as file:
        return dict(file)


def _he(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, (2 / math.prod(shape[:-1])) ** 0.5, shape)


def _pictures(rng: np.random.Generator, prototypes: np.ndarray, y: np.ndarray, contrast: float) -> np.ndarray:
    """Pictures (n, SIDE, SIDE): the coarse prototype (7, 7) of the class, faint, with noise."""
    coarse = np.kron(prototypes, np.ones((1, SIDE // 7, SIDE // 7)))
    return 0.5 + contrast * coarse[y] + 0.3 * rng.normal(size=(len(y), SIDE, SIDE))


def _synthetic(rng: np.random.Generator) -> Arrays:
    return numbered("u", [rng.uniform(-5, 5, 10)]) | numbered("v", [rng.uniform(-5, 5, 10)])


def _poisoning(rng: np.random.Generator) -> Arrays:
    count = 1000
    prototypes = rng.normal(size=(CLASSES, 7, 7))
    y, y_val = rng.integers(0, CLASSES, (2, count))
    x, x_val = (
        np.clip(_pictures(rng, prototypes, labels, 0.05), 0, 1).reshape(count, SIDE * SIDE) for labels in (y, y_val)
    )
    data = {"x": x, "y": y, "x_val": x_val, "y_val": y_val, "labels": (y[:POINTS] + 1) % CLASSES}
    return data | numbered("u", [x[:POINTS]]) | numbered("v", [np.zeros((CLASSES, SIDE * SIDE))])


def _denoising(rng: np.random.Generator, count: int, contrast: float) -> Arrays:
    """Pictures whose labels are wrong at a rate of 0.4, and as many whose labels are right."""
    prototypes = rng.normal(size=(CLASSES, 7, 7))
    truth, y_val = rng.integers(0, CLASSES, (2, count))
    wrong = rng.random(count) < 0.4
    y = np.where(wrong, (truth + rng.integers(1, CLASSES, count)) % CLASSES, truth)
    data = {"x": _pictures(rng, prototypes, truth, contrast)}
    data["x_val"] = _pictures(rng, prototypes, y_val, contrast)
    return data | {"y": y, "y_val": y_val, "right": (~wrong).astype(np.int64)} | numbered("u", [np.zeros(count)])


def _mlp(rng: np.random.Generator) -> Arrays:
    arrays = _denoising(rng, 500, 0.08)
    into = SIDE * SIDE
    for name in ("x", "x_val"):
        arrays[name] = arrays[name].reshape(-1, into)
    v = (np.zeros(HIDDEN), _he(rng, (into, HIDDEN)), np.zeros(CLASSES), 0.1 * _he(rng, (HIDDEN, CLASSES)))
    return arrays | numbered("v", v)


def _mnist(rng: np.random.Generator) -> Arrays:
    v: list[np.ndarray] = []
    for shape in ((5, 5, 1, 64), (5, 5, 64, 128), (2048, 512), (512, 256), (256, CLASSES)):
        v += [np.zeros(shape[-1]), _he(rng, shape)]
    return _denoising(rng, 32, 0.3) | numbered("v", v)


def _transformer(rng: np.random.Generator) -> Arrays:
    """Sequences: the pictures of `_denoising`, each as tokens of random projections."""
    arrays = _denoising(rng, 32, 0.3)
    projections = rng.normal(0, 1 / SIDE, (SIDE * SIDE, TOKENS * FEATURES))
    for name in ("x", "x_val"):
        arrays[name] = ((arrays[name].reshape(-1, SIDE * SIDE) - 0.5) @ projections).reshape(-1, TOKENS, FEATURES)
    shapes = ((FEATURES, 3 * FEATURES), (FEATURES, FEATURES), (FEATURES, 4 * FEATURES), (4 * FEATURES, FEATURES))
    return arrays | numbered("v", [0.5 * _he(rng, shape) for shape in (*shapes, (FEATURES, CLASSES))])


def _fewshot(rng: np.random.Generator) -> Arrays:
    each = SHOT + QUERIES
    prototypes = rng.normal(size=(TASKS * WAY, 7, 7))
    drawn = _pictures(rng, prototypes, np.repeat(np.arange(TASKS * WAY), each), 0.04)
    pictures = drawn.reshape(TASKS, WAY, each, SIDE, SIDE)
    data = {
        "support": pictures[:, :, :SHOT].reshape(TASKS, WAY * SHOT, SIDE, SIDE),
        "queries": pictures[:, :, SHOT:].reshape(TASKS, WAY * QUERIES, SIDE, SIDE),
    }
    u: list[np.ndarray] = []
    for into in (1, FILTERS, FILTERS, FILTERS):
        u += [np.zeros(FILTERS), _he(rng, (3, 3, into, FILTERS))]
    return data | numbered("u", u) | numbered("v", [np.zeros((TASKS, WAY, FILTERS))])


FOUND = "share of the labels that the weights classify correctly as right or wrong"
WORKS = {
    work.name: work
    for work in (
        Work(
            "synthetic",
            "the first synthetic example of Mehra and Hamm, |u| = |v| = 10",
            _synthetic,
            "distance of u from the solution",
            0.05,
            False,
            every=5,
            most=300,
        ),
        Work(
            "poisoning",
            "untargeted poisoning of softmax regression, 60 points, 1,000 + 1,000 samples of 784 features",
            _poisoning,
            "upper loss of the model trained to the end",
            -1.4,
            False,
            every=5,
            most=80,
            warm=300,
        ),
        Work(
            "mlp",
            "denoising with an MLP (784, 256, 10), 500 + 500 samples",
            _mlp,
            FOUND,
            0.97,
            True,
            every=1,
            most=60,
            warm=100,
        ),
        Work(
            "mnist",
            "denoising with the MNIST network (1.4 million parameters), 32 + 32 pictures, no dropout",
            _mnist,
            FOUND,
            0.9,
            True,
            every=1,
            most=30,
            warm=100,
        ),
        Work(
            "fewshot",
            "few-shot learning with the Omniglot network, 32 filters, 8 tasks 5-way 5-shot, 5 queries",
            _fewshot,
            "upper loss of the heads trained to the end",
            0.02,
            False,
            every=1,
            most=60,
        ),
        Work(
            "transformer",
            "denoising with a block of a transformer (49,792 parameters), 32 + 32 sequences of 32 tokens, unrolled",
            _transformer,
            FOUND,
            0.9,
            True,
            every=1,
            most=30,
            warm=30,
        ),
    )
}
