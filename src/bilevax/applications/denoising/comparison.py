"""Comparison of Penalty and ApproxGrad with plain training, for the `denoise` command."""

import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bilevax.applications.denoising.importance_classifier import STEPS, ImportanceClassifier, PlainClassifier
from bilevax.applications.denoising.jobs import Job
from bilevax.applications.denoising.recipes import approxgrad_solver, penalty_solver
from bilevax.loop.callbacks import Progress
from bilevax.loop.checkpoint import Checkpoint
from bilevax.loop.layout import Layout
from bilevax.loop.stages import Stages
from bilevax.solvers.base import Info


class Row(NamedTuple):
    """A row of the table; None for a figure that is unknown or does not apply."""

    method: str
    seconds: float
    test_accuracy: float | None = None
    suspects: int | None = None
    precision: float | None = None
    recall: float | None = None


class Found(NamedTuple):
    """What a solver found about the samples in doubt.

    Attributes:
        weight, suspicion, suspects: `sample_weight_`, `suspicion_` and `suspects_` of the estimator.
        believed: the labels that the final classifier predicts.
        history: of the solve.
    """

    weight: Float[np.ndarray, " n"]
    suspicion: Float[np.ndarray, " n"]
    suspects: Bool[np.ndarray, " n"]
    believed: Shaped[np.ndarray, " n"]
    history: Info

    def order(self) -> Int[np.ndarray, " n"]:
        """The indices of the samples, the most suspicious first."""
        return np.argsort(-self.suspicion, kind="stable")


class Comparison(NamedTuple):
    """The result of `compare`: the rows of the table, each solver's result by its name, and the steps of each."""

    rows: list[Row]
    results: dict[str, Found]
    steps: int


def compare(
    job: Job,
    *,
    steps: int | None,
    batch_size: int | None,
    seed: int,
    stages: Stages,
    mesh: Layout | None = None,
) -> Comparison:
    """Find wrong labels by each solver, and train plainly on the same samples; each is a stage.

    Args:
        job: the data.
        steps: of each solver; None for the estimator's own.
        batch_size: samples in doubt per step; None for all.
        seed: of the models.
        stages: keeps what is finished.
        mesh: passed to `bilevax.solve`.
    """
    steps = STEPS if steps is None else steps
    plain = stages.of("references", lambda _: {"rows": [row._asdict() for row in _plain_training(job, seed)]})
    rows, found = [stages.rebuilt(Row, row) for row in plain["rows"]], {}
    labels = np.unique(job.y)
    for name, solver in (("Penalty", penalty_solver(steps)), ("ApproxGrad", approxgrad_solver(steps))):

        def fit(keep: Checkpoint, name: str = name, solver: Any = solver) -> dict[str, Any]:
            classifier = ImportanceClassifier(
                solver=solver,
                steps=steps,
                batch_size=batch_size,
                random_state=seed,
                callbacks=(Progress(name), keep),
                resume=keep,
                mesh=mesh,
            )
            return _fitted(name, classifier, job)

        stage = stages.of(name.lower(), fit)
        rows.append(stages.rebuilt(Row, stage["row"]))
        history = stages.rebuilt(Info, stage["history"], extra={})
        found[name] = Found(stage["weight"], stage["suspicion"], stage["suspects"], labels[stage["believed"]], history)
    return Comparison(rows, found, steps)


def _plain_training(job: Job, seed: int) -> list[Row]:
    """Plain training on all labels as given, on the trusted samples, and on all right labels where they are known."""
    both = np.concatenate([job.X, job.X_clean])
    sets = {
        "all labels as given": (both, np.concatenate([job.y, job.y_clean])),
        "trusted samples only": (job.X_clean, job.y_clean),
    }
    if job.y_true is not None:
        right = np.concatenate([job.y == job.y_true, np.ones(len(job.y_clean), bool)])
        sets["oracle: right labels"] = (both[right], np.concatenate([job.y, job.y_clean])[right])
    rows = []
    for name, (X, y) in sets.items():
        began = time.perf_counter()
        model = PlainClassifier(random_state=seed).fit(X, y)
        seconds = time.perf_counter() - began
        rows.append(Row(method=name, seconds=seconds, test_accuracy=_accuracy(model, job)))
    return rows


def _fitted(name: str, classifier: ImportanceClassifier, job: Job) -> dict[str, Any]:
    """The result of a fit as a stage stores it; predicted labels are indices into the sorted labels of `job.y`."""
    began = time.perf_counter()
    classifier.fit(job.X, job.y, job.X_clean, job.y_clean)
    history = classifier.result_.history._asdict()
    return {
        "row": _row(name, classifier, job, time.perf_counter() - began)._asdict(),
        "weight": np.asarray(classifier.sample_weight_),
        "suspicion": np.asarray(classifier.suspicion_),
        "suspects": np.asarray(classifier.suspects_, bool),
        "believed": np.searchsorted(classifier.classes_, classifier.label_belief_),
        "history": {name: value for name, value in history.items() if isinstance(value, np.ndarray)},
    }


def _accuracy(model: ImportanceClassifier | PlainClassifier, job: Job) -> float | None:
    if job.X_test is None or job.y_test is None:
        return None
    return float(np.mean(model.predict(job.X_test) == job.y_test))


def _row(name: str, model: ImportanceClassifier, job: Job, seconds: float) -> Row:
    suspects = np.asarray(model.suspects_, bool)
    precision = recall = None
    if job.y_true is not None:
        wrong = job.y != job.y_true
        found = np.sum(suspects & wrong)
        precision, recall = float(found / max(1, suspects.sum())), float(found / max(1, wrong.sum()))
    return Row(
        method=name,
        seconds=seconds,
        test_accuracy=_accuracy(model, job),
        suspects=int(suspects.sum()),
        precision=precision,
        recall=recall,
    )
