"""What the denoising experiments share: their data, how weights are learned and judged, and what that costs."""

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from bilevax import Implicit, InputError, LearningToReweight, LookAhead, Penalty, solve
from bilevax.applications import Task
from bilevax.applications.denoising import from_losses, weights
from bilevax.data import Images, Noisy, cifar10, fashion_mnist, mnist, svhn
from bilevax.nn import Model, Training, probabilities, train

DATA_SETS: dict[str, Callable[[], Images]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "svhn": svhn,
}
CLASSES = 10


@functools.cache
def images_of(name: str) -> Images:
    """A data set, read once."""
    return DATA_SETS[name]()


def pick_data_sets(names: Sequence[str], wanted: str | None) -> list[str]:
    """All names, or the one that --dataset asks for.

    Raises:
        InputError: the experiment has no such data set.
    """
    if wanted is None:
        return list(names)
    if wanted not in names:
        raise InputError(
            f"--dataset is {wanted!r}, which this experiment does not have. Pass one of {', '.join(names)}."
        )
    return [wanted]


def pick_noise(levels: Sequence[int], wanted: int | None) -> list[int]:
    """All percentages of wrong labels, or the one that --noise asks for.

    Raises:
        InputError: the experiment has no such percentage.
    """
    if wanted is None:
        return list(levels)
    if wanted not in levels:
        told = ", ".join(map(str, levels))
        raise InputError(f"--noise is {wanted}, which this experiment does not have. Pass one of {told}.")
    return [wanted]


Cell = TypeVar("Cell")


def kept_cell(
    path: Path, labels: Sequence[str], run: Callable[[list[str]], dict[str, dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """A cell's figures by row, from its file; `run` gives the rows that the file lacks, and they are added to it."""
    kept = read_cell(path)
    missing = [label for label in labels if label not in kept]
    if missing:
        kept |= run(missing)
        write_cell(path, kept)
    return kept


def keep_together(
    paths: Mapping[Cell, Path], label: str, run: Callable[[list[Cell]], Sequence[dict[str, Any]]]
) -> None:
    """As `kept_cell`, for a row that is found in one go for all cells that lack it."""
    missing = [cell for cell, path in paths.items() if label not in read_cell(path)]
    if missing:
        for cell, row in zip(missing, run(missing), strict=True):
            write_cell(paths[cell], read_cell(paths[cell]) | {label: row})


def read_cell(path: Path) -> dict[str, dict[str, Any]]:
    """What a cell's file has, by row; nothing where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write_cell(path: Path, kept: dict[str, dict[str, Any]]) -> None:
    """Replace a cell's file at once: a run that is stopped while it writes loses no finished row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1) + "\n")
    part.replace(path)


class Judged(NamedTuple):
    """How well a method did in one trial.

    Attributes:
        accuracy: percent of the test samples.
        f1: of the right labels among the samples kept, the hyper-cleaning measure; None where nothing was selected.
        area: under the ROC curve of wrong against right labels, ranked by suspicion; None where nothing was ranked.
        seconds: wall time of what the method adds to the data, compilation included.
    """

    accuracy: float
    f1: float | None
    area: float | None
    seconds: float


class Trial:
    """One draw of a data set, its noise and its clean set, on the device; what all methods are run on."""

    def __init__(self, data: Noisy, model: Model, training: Training, seed: int):
        self.data, self.model, self.training = data, model, training
        self.x, self.x_clean = jnp.asarray(data.x), jnp.asarray(data.x_clean)
        self.y, self.y_clean = (jnp.asarray(y, jnp.int32) for y in (data.y, data.y_clean))
        self.right = data.y == data.y_true
        self.key = jax.random.key(seed)
        self._both = jnp.concatenate([self.x, self.x_clean]), jnp.concatenate([self.y, self.y_clean])

    def fit(self, weight: Any) -> Any:
        """Parameters of a new model, trained on the training samples by weights (n,) and on the clean ones."""
        weight = jnp.concatenate([jnp.asarray(weight, jnp.float32), jnp.ones(len(self.y_clean))])
        return jax.block_until_ready(train(self.model, self.training, *self._both, weight, self.key))

    def fit_clean(self) -> Any:
        """Parameters of a new model, trained on the clean samples alone, in as many moves."""
        ones = jnp.ones(len(self.y_clean))
        return jax.block_until_ready(train(self.model, self.training, self.x_clean, self.y_clean, ones, self.key))

    def accuracy(self, v: Any) -> float:
        """Percent of the test samples that parameters v get right."""
        p = probabilities(self.model, v, jnp.asarray(self.data.x_test))
        return 100 * float((p.argmax(1) == self.data.y_test).mean())

    def suspicion(self, v: Any) -> np.ndarray:
        """The cross-entropy (n,) of the labels as given, under parameters v."""
        return self._cross_entropies(v, self.x, self.y)

    def _cross_entropies(self, v: Any, x: Any, y: Any) -> np.ndarray:
        return cross_entropies(probabilities(self.model, v, x), np.asarray(y))

    def agreement(self, v: Any) -> np.ndarray:
        """Whether parameters v predict the label as given, (n,)."""
        return probabilities(self.model, v, self.x).argmax(1) == np.asarray(self.data.y)

    def posterior(self, v: Any) -> Any:
        """U (n,) of weights by how probably a given label is right, from cross-entropies under parameters v."""
        return from_losses(self.suspicion(v), self._cross_entropies(v, self.x_clean, self.y_clean))

    def task(self, make: Callable[..., Task], batch: int | None, clean_batch: int | None, **more: Any) -> Task:
        """One of the tasks of `bilevax.applications.denoising.tasks` on this trial's samples."""
        arrays = self.x, self.y, self.x_clean, self.y_clean
        return make(self.model, *arrays, key=self.key, batch_size=batch, clean_batch_size=clean_batch, **more)


def cross_entropies(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of labels y (n,) under probabilities p (n, classes)."""
    return -np.log(np.maximum(p[np.arange(len(p)), y], np.finfo(p.dtype).tiny))


def average_precision(right: np.ndarray, suspicion: np.ndarray) -> float:
    """Of wrong labels found by a ranking."""
    return float(average_precision_score(~right, suspicion))


def area(right: np.ndarray, suspicion: np.ndarray) -> float:
    """Under the ROC curve of wrong labels found by a ranking."""
    return float(roc_auc_score(~right, suspicion))


def f1(right: np.ndarray, kept: np.ndarray) -> float:
    """Of right labels among the samples kept: the hyper-cleaning measure (Shen and Chen 2023, section 6)."""
    return float(f1_score(right, kept))


def unrolled_from_zero(task: Task) -> Task:
    """The task with v restarted at zero in every step, as RMD trains it (Franceschi et al. 2017, section 5.1)."""
    start = jax.tree.map(jnp.zeros_like, task.start[1])
    problem = dataclasses.replace(task.problem, lower_start=lambda u, batch, key: start)
    return task._replace(problem=problem)


class Solved(NamedTuple):
    """A solve's end: u, v, the state, and its wall seconds, compilation included."""

    u: Any
    v: Any
    state: Any
    seconds: float


def run_solver(solver: Any, task: Task, steps: int, seed: int) -> Solved:
    """Solve a task and tell the time."""
    began = time.perf_counter()
    result = solve(solver, task.problem, *task.start, task.batches, steps=steps, key=jax.random.key(seed))
    jax.block_until_ready(result.v)
    return Solved(result.u, result.v, result.state, time.perf_counter() - began)


class Look(NamedTuple):
    """What was seen of a solve on its way: after so many steps and seconds, compilation and looking apart."""

    step: int
    seconds: float
    seen: dict[str, float]


def watched_solve(
    solver: Any, task: Task, steps: int, every: int, seed: int, look: Callable[[Any, Any], dict[str, float]]
) -> list[Look]:
    """Solve a task and look at (u, v) after every so many steps; the clock stands still meanwhile."""
    key = jax.random.key(seed)
    solve(solver, task.problem, *task.start, task.batches, steps=1, every=every, key=key)  # compiles the stretch
    looks: list[Look] = []
    standing = 0.0

    def visit(visit: Any) -> None:
        nonlocal standing
        began = time.perf_counter()
        looks.append(Look(visit.step, visit.seconds - standing, look(visit.state.u, visit.state.v)))
        standing += time.perf_counter() - began

    solve(solver, task.problem, *task.start, task.batches, steps=steps, every=every, key=key, callbacks=[visit])
    return looks


def learned_weights(u: Any) -> np.ndarray:
    """Importance weights (n,) in 0..1."""
    return np.asarray(weights(u))


def readable(solver: Any) -> dict[str, Any]:
    """A solver's fields in a form that JSON takes; optimizers are closures and are told in the experiment's file."""
    fields = {name: value for name, value in vars(solver).items() if not hasattr(value, "update")}
    told = {
        n: x if isinstance(x, int | float | None) else getattr(x, "__name__", re.sub(r" at 0x\w+", "", repr(x)))
        for n, x in fields.items()
    }
    return {"method": type(solver).__name__, **told}


def evaluations(solver: Any, steps: int) -> dict[str, int]:
    """Gradients of f and of g, and products with the second derivatives of g, that `steps` steps take on a batch."""
    moves = getattr(solver, "lower_steps", 1)
    if isinstance(solver, LearningToReweight):
        counts = {"f": 1, "g": 2, "products": 1}
    elif isinstance(solver, LookAhead):
        counts = {"f": 1, "g": moves + 1, "products": 1}
    elif isinstance(solver, Penalty):
        counts = {"f": moves + 1, "g": moves + 1, "products": moves + 1}
    elif isinstance(solver, Implicit):
        counts = {"f": 1, "g": moves + 1, "products": 1 + getattr(solver.linear_solve, "steps", 0)}
    else:  # reverse mode: forward through the moves and back
        counts = {"f": 1, "g": moves, "products": 2 * moves}
    return {kind: count * steps for kind, count in counts.items()}
