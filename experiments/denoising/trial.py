"""One draw of noisy data, on which every method is run, and the scores of learned weights and rankings."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from bilevax.applications import Task
from bilevax.applications.denoising import from_losses, weights
from bilevax.data import Noisy
from bilevax.nn import Model, Training, probabilities, train


class Judged(NamedTuple):
    """How well a method did in one trial.

    Attributes:
        accuracy: percent of the test samples.
        f1: of the right labels among the samples kept, the hyper-cleaning measure; None if nothing was selected.
        area: under the ROC curve of wrong against right labels, ranked by suspicion; None if nothing was ranked.
        seconds: wall time of the method, without the preparation of the data, compilation included.
    """

    accuracy: float
    f1: float | None
    area: float | None
    seconds: float


class Trial:
    """One draw of a data set, its noise and its clean set, on the device; all methods run on the same one."""

    def __init__(self, data: Noisy, model: Model, training: Training, seed: int):
        self.data, self.model, self.training = data, model, training
        self.x, self.x_clean = jnp.asarray(data.x), jnp.asarray(data.x_clean)
        self.y, self.y_clean = (jnp.asarray(y, jnp.int32) for y in (data.y, data.y_clean))
        self.right = data.y == data.y_true
        self.key = jax.random.key(seed)
        self._both = jnp.concatenate([self.x, self.x_clean]), jnp.concatenate([self.y, self.y_clean])

    def fit(self, weight: Any) -> Any:
        """Parameters of a new model, trained on the training samples with weights (n,) and on the clean samples."""
        weight = jnp.concatenate([jnp.asarray(weight, jnp.float32), jnp.ones(len(self.y_clean))])
        return jax.block_until_ready(train(self.model, self.training, *self._both, weight, self.key))

    def fit_clean(self) -> Any:
        """Parameters of a new model, trained on the clean samples alone, with the same number of moves."""
        ones = jnp.ones(len(self.y_clean))
        return jax.block_until_ready(train(self.model, self.training, self.x_clean, self.y_clean, ones, self.key))

    def accuracy(self, v: PyTree) -> float:
        """Percent of the test samples that parameters v classify correctly."""
        p = probabilities(self.model, v, jnp.asarray(self.data.x_test))
        return 100 * float((p.argmax(1) == self.data.y_test).mean())

    def suspicion(self, v: PyTree) -> np.ndarray:
        """The cross-entropy (n,) of the labels as given, under parameters v."""
        return self._cross_entropies(v, self.x, self.y)

    def _cross_entropies(self, v: PyTree, x: Any, y: Any) -> np.ndarray:
        return cross_entropies(probabilities(self.model, v, x), np.asarray(y))

    def agreement(self, v: PyTree) -> np.ndarray:
        """Whether parameters v predict the label as given, (n,)."""
        return probabilities(self.model, v, self.x).argmax(1) == np.asarray(self.data.y)

    def posterior(self, v: PyTree) -> Any:
        """Variable u (n,) whose weights are the probabilities that labels are right, by cross-entropies under v."""
        return from_losses(self.suspicion(v), self._cross_entropies(v, self.x_clean, self.y_clean))

    def task(self, make: Callable[..., Task], batch: int | None, clean_batch: int | None, **more: Any) -> Task:
        """One of the tasks of `bilevax.applications.denoising.tasks` on this trial's samples."""
        arrays = self.x, self.y, self.x_clean, self.y_clean
        return make(self.model, *arrays, key=self.key, batch_size=batch, clean_batch_size=clean_batch, **more)


def cross_entropies(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cross-entropies (n,) of labels y (n,) under probabilities p (n, classes)."""
    return -np.log(np.maximum(p[np.arange(len(p)), y], np.finfo(p.dtype).tiny))


def average_precision(right: np.ndarray, suspicion: np.ndarray) -> float:
    """Average precision of wrong labels in a ranking by suspicion."""
    return float(average_precision_score(~right, suspicion))


def roc_area(right: np.ndarray, suspicion: np.ndarray) -> float:
    """Area under the ROC curve of wrong labels in a ranking by suspicion."""
    return float(roc_auc_score(~right, suspicion))


def f1(right: np.ndarray, kept: np.ndarray) -> float:
    """F1 of right labels among the samples kept: the hyper-cleaning measure (Shen and Chen 2023, section 6)."""
    return float(f1_score(right, kept))


def unrolled_from_zero(task: Task) -> Task:
    """The task with v restarted at zero in every step, as RMD trains it (Franceschi et al. 2017, section 5.1)."""
    start = jax.tree.map(jnp.zeros_like, task.start[1])
    problem = dataclasses.replace(task.problem, lower_start=lambda u, batch, key: start)
    return task._replace(problem=problem)


def learned_weights(u: PyTree) -> np.ndarray:
    """Importance weights (n,) in 0..1."""
    return np.asarray(weights(u))
