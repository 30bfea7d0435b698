"""A table whose target is predicted by a tuned linear model, and what nested cross-validation says about it.

The strengths are tuned by folds, so the loss on these folds is not that on new samples. Here the whole of it, with the
choice of the number of strengths, is repeated without each of five outer folds, and the loss is taken on that fold.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.model_selection import KFold, StratifiedKFold

from bilevax._checks import InputError, listed
from bilevax.applications.tuning.glm.faces import TunedGLM
from bilevax.applications.tuning.glm.losses import (
    Gamma,
    Huber,
    Logistic,
    LogLink,
    Loss,
    Poisson,
    Quantile,
    Squared,
    Tweedie,
    Words,
)
from bilevax.applications.tuning.glm.penalties import GroupLasso, Penalty
from bilevax.data.samples.columns import Column, names_of
from bilevax.data.samples.content import column_of
from bilevax.data.samples.targets import TargetKind, numbers_of_target
from bilevax.data.samples.types import Samples

OUTER = 5  # outer folds
RAREST = 5  # samples of a class, so that no fold lacks it
LOSSES: dict[str, tuple[Loss, TargetKind]] = {
    "squared": (Squared(), "quantity"),
    "logistic": (Logistic(), "classes"),
    "poisson": (Poisson(), "counts"),
    "gamma": (Gamma(), "quantity"),
    "tweedie": (Tweedie(), "quantity"),
    "huber": (Huber(), "quantity"),
    "quantile": (Quantile(), "quantity"),
}
USUAL: dict[TargetKind, str] = {"classes": "logistic", "quantity": "squared", "counts": "poisson"}


class Job(NamedTuple):
    """A table, and how its target is predicted. The rows are in a random order.

    Attributes:
        columns: of the table.
        names, groups: of the columns of X; columns that one column of the table became are one group.
        X, y: features (n, d), and targets (n,): numbers, or places in `classes`.
        classes: the labels; None for numbers.
        weight, exposure: (n,), or None.
        loss, penalty: of the model.
        strengths: as of `TunedGLM`.
        folds: by which strengths are tuned.
        notes: on what was left out, in sentences.
    """

    columns: tuple[Column, ...]
    names: list[str]
    groups: Int[np.ndarray, " d"]
    X: Float[np.ndarray, "n d"]
    y: Shaped[np.ndarray, " n"]
    classes: Shaped[np.ndarray, " classes"] | None
    weight: Float[np.ndarray, " n"] | None
    exposure: Float[np.ndarray, " n"] | None
    loss: Loss
    penalty: Penalty
    strengths: str
    folds: int
    notes: tuple[str, ...]

    def model(self, **changes: Any) -> TunedGLM:
        """The model, not fitted."""
        settings = {"strengths": self.strengths, "groups": self.groups, "cv": self.folds} | changes
        return TunedGLM(self.loss, self.penalty, **settings)

    def part(self, rows: Int[np.ndarray, " k"]) -> dict[str, Any]:
        """The arguments of `fit` for some rows."""
        found: dict[str, Any] = {"X": self.X[rows], "y": self.y[rows]}
        if self.weight is not None:
            found["sample_weight"] = self.weight[rows]
        if self.exposure is not None:
            found["exposure"] = self.exposure[rows]
        return found


def job_of(
    samples: Samples,
    kind: TargetKind,
    loss: Loss,
    penalty: Penalty,
    *,
    strengths: str = "auto",
    folds: int = 5,
    weight: str | None = None,
    exposure: str | None = None,
    seed: int = 0,
) -> Job:
    """The job of a table.

    Args:
        samples: the table with its target.
        kind: of the target.
        loss, penalty, strengths, folds: of the model.
        weight, exposure: columns of the table, which are no features.
        seed: of the order of the rows.

    Raises:
        InputError: too few samples; weights or exposures that cannot be used; targets that the loss does not take.
    """
    columns = samples.columns
    groups = np.repeat(np.arange(len(columns)), [column.width() for column in columns])
    groups = np.unique(groups, return_inverse=True)[1]
    X: Any = samples.features
    weights = None if weight is None else _numbers(samples, weight, "--weight")
    exposures = None if exposure is None else _numbers(samples, exposure, "--exposure")
    kept = np.arange(len(X)) if weights is None else np.flatnonzero(weights > 0)
    classes, y, notes = None, samples.labels, []
    if len(kept) < len(X):
        notes.append(f"Rows of weight zero are left out: {len(X) - len(kept):,} of {len(X):,}.")
    if kind == "classes":
        labels, y = np.unique(samples.labels, return_inverse=True)
        rare = np.bincount(y[kept], minlength=len(labels)) < RAREST
        if rare.any():
            if (~rare).sum() < 2:
                raise InputError(
                    f"{samples.name} has fewer than two classes of at least {RAREST} samples ({listed(labels)}). Add "
                    "samples, or check --target."
                )
            out = int(rare[y[kept]].sum())
            kept = kept[~rare[y[kept]]]
            notes.append(
                f"Classes of fewer than {RAREST} samples are left out: {listed(labels[rare])} ({out:,} samples)."
            )
        classes, y = labels[~rare], (np.cumsum(~rare) - 1)[y]
    if len(kept) < 2 * max(folds, OUTER):
        weighted = "" if weights is None else f" and a positive weight (--weight {weight})"
        raise InputError(
            f"{samples.name} has {len(kept)} {'sample' if len(kept) == 1 else 'samples'} with a target{weighted}, and "
            f"at least {2 * max(folds, OUTER)} are needed for {folds} folds within {OUTER} outer ones. Add samples."
        )
    order = kept[np.random.default_rng(seed).permutation(len(kept))]
    if not loss.classifies:
        target = f"{samples.name}: the target {samples.source.target!r}"
        words = Words(target, "--exposure COLUMN", "--loss gamma", "--loss tweedie")
        loss.check(np.asarray(y, float)[order], words)
    if exposures is not None and not isinstance(loss, LogLink):
        raise InputError(
            f"--exposure is an option of the losses poisson, gamma and tweedie, and the loss is "
            f"{type(loss).__name__.lower()}. Choose one of them by --loss, or leave --exposure out."
        )
    _check_strengths(samples, strengths, groups, penalty, 0 if classes is None else len(classes))
    return Job(
        columns,
        names_of(columns),
        groups,
        np.asarray(X[order], float),
        y[order],
        classes,
        None if weights is None else weights[order],
        None if exposures is None else exposures[order],
        loss,
        penalty,
        strengths,
        folds,
        tuple(notes),
    )


def _check_strengths(
    samples: Samples, strengths: str, groups: Int[np.ndarray, " d"], penalty: Penalty, classes: int
) -> None:
    """Refuse kinds of strengths that the table or the penalty does not have."""
    d, grouped = len(groups), len(np.unique(groups))
    if isinstance(penalty, GroupLasso) and strengths in ("feature", "class"):
        raise InputError(
            f"--penalty group_lasso has a strength for each group of columns, and --strengths is {strengths}. Choose "
            "--strengths group, or another penalty."
        )
    if strengths == "class" and classes < 3:
        held = f"the target has {classes}" if classes else "the target holds no classes"
        raise InputError(f"--strengths class needs three classes or more, and {held}. Choose another kind.")
    if (strengths == "group" and grouped < 2) or (strengths == "feature" and d < 2):
        raise InputError(
            f"--strengths {strengths} needs two columns or more, and {samples.name} has one that can be used. Choose "
            "--strengths scalar."
        )


def _numbers(samples: Samples, name: str, option: str) -> Float[np.ndarray, " n"]:
    column = column_of([str(c) for c in samples.rows.columns], name, samples.name, option)
    values: Any = samples.rows[column]
    found = numbers_of_target(values, samples.source.separator)
    if found is None or np.isnan(found.values).any():
        count = len(values) if found is None else int(np.isnan(found.values).sum())
        raise InputError(
            f"{samples.name}: column {column!r} ({option}) holds no number in {count:,} of {len(values):,} rows. Fill "
            "them, or leave those rows out."
        )
    if (found.values < 0).any() or (option == "--exposure" and (found.values <= 0).any()):
        least = "positive" if option == "--exposure" else "at least zero"
        raise InputError(
            f"{samples.name}: column {column!r} ({option}) must be {least}, and holds {found.values.min():g}."
        )
    return found.values


class Nested(NamedTuple):
    """Scores on samples that neither the fit nor the tuning has seen.

    Attributes:
        losses: of each sample, (n,).
        scores: of each outer fold: the accuracy of classes, else the part of the deviance that is explained.
        kinds: the kind of strengths that was chosen without each fold.
        seconds: of all fits.
    """

    losses: Float[np.ndarray, " n"]
    scores: Float[np.ndarray, " folds"]
    kinds: list[str]
    seconds: float


def nested(job: Job, make: Callable[[], Any]) -> Nested:
    """Fit a model without each outer fold, and score it there.

    Args:
        job: the table.
        make: a model that is not fitted.
    """
    n, began = len(job.y), time.perf_counter()
    splitter = KFold(OUTER) if job.classes is None else StratifiedKFold(OUTER)
    loss = job.loss if job.classes is not None else job.loss.settled(job.y, np.ones(n))
    losses, scores, kinds, seconds = np.zeros(n), [], [], 0.0
    for train, test in splitter.split(job.X, job.y):
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = make().fit(**job.part(train))
            found = row_losses(job, loss, model, test)
        seconds += time.perf_counter() - began
        losses[test] = found
        weight = np.ones(len(test)) if job.weight is None else job.weight[test]
        scores.append(_score(job, loss, model, test, found, weight))
        kinds.append(str(getattr(model, "strengths_chosen_", "scalar")))
    return Nested(losses, np.array(scores), kinds, seconds)


def row_losses(job: Job, loss: Loss, model: Any, rows: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The loss of each of some rows by the predictions of a model."""
    X, y = job.X[rows], job.y[rows]
    if job.classes is not None:
        p = np.asarray(model.predict_proba(X))
        return -np.log(np.maximum(p[np.arange(len(y)), y], 1e-300))
    mean = np.asarray(model.predict(X)) * (1.0 if job.exposure is None else job.exposure[rows])
    eta = np.log(np.maximum(mean, 1e-300)) if isinstance(loss, LogLink) else mean
    return loss.value(eta[:, None, None], np.asarray(y, float)[:, None, None])[:, 0]


def _score(job: Job, loss: Loss, model: Any, rows: np.ndarray, losses: np.ndarray, weight: np.ndarray) -> float:
    share = weight / weight.sum() if weight.any() else np.full(len(weight), 1 / len(weight))
    if job.classes is not None:
        return float(share @ (np.asarray(model.predict(job.X[rows])) == job.y[rows]))
    return float(1 - share @ losses / max(share @ _null_losses(job, loss, rows), 1e-300))


def _null_losses(job: Job, loss: Loss, rows: np.ndarray) -> Float[np.ndarray, " k"]:
    """The losses of the constant prediction (rate, quantile) of the other rows."""
    others = np.setdiff1d(np.arange(len(job.y)), rows)
    exposure = np.ones(len(job.y)) if job.exposure is None else job.exposure
    weight = np.ones(len(job.y)) if job.weight is None else job.weight
    y = np.asarray(job.y, float)
    if isinstance(loss, LogLink):
        rate = (weight * y)[others].sum() / (weight * exposure)[others].sum()
        eta = np.log(np.maximum(rate * exposure[rows], 1e-300))
    else:
        level = loss.q if isinstance(loss, Quantile) else 0.5
        middle = np.quantile(y[others], level) if isinstance(loss, Quantile | Huber) else None
        eta = np.full(len(rows), np.average(y[others], weights=weight[others]) if middle is None else middle)
    return loss.value(eta[:, None, None], y[rows][:, None, None])[:, 0]


def mean_and_error(job: Job, losses: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The weighted mean of losses, or of their differences, and its standard error."""
    weight = np.ones(len(losses)) if job.weight is None else job.weight
    share = weight / weight.sum()
    mean = float(share @ losses)
    return mean, float(np.sqrt((share**2) @ (losses - mean) ** 2))
