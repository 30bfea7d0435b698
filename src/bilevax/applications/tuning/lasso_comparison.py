"""Comparison of a lasso's or group lasso's strengths by gradient with scikit-learn's LassoCV, on the same folds."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV
from sklearn.preprocessing import PolynomialFeatures

from bilevax._checks import InputError, listed
from bilevax.applications.tuning.jobs import read_files
from bilevax.applications.tuning.lasso import STEPS, choose_strengths
from bilevax.applications.tuning.path import fold_masks
from bilevax.data import tables
from bilevax.data.csv_text import read_words
from bilevax.data.encoding import encode, encoded_names
from bilevax.data.splits import random_part
from bilevax.loop.checkpoint import Checkpoint
from bilevax.loop.layout import Layout
from bilevax.loop.stages import Stages

FOLDS = 5
ONE, EACH = "one strength", "a strength each"


class LassoJob(NamedTuple):
    """Features and targets, the samples held out to tune by, and a test set.

    Attributes:
        title: of the data, in a few words.
        names: of the features after encoding.
        columns: the column of the file that each feature comes from.
        X, y: to tune and train on, features on one scale.
        held: the samples that each fold holds out.
        X_test, y_test: to measure on; no method sees them.
        notes: on what was done to the data, in sentences.
    """

    title: str
    names: list[str]
    columns: list[str]
    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    held: list[Bool[np.ndarray, " n"]]
    X_test: Float[np.ndarray, "t d"]
    y_test: Float[np.ndarray, " t"]
    notes: tuple[str, ...]


class Row(NamedTuple):
    """A row of the table; None for a figure that does not apply."""

    method: str
    held_out_error: float | None
    test_error: float
    chosen: int
    seconds: float | None


class Fit(NamedTuple):
    """The fit of a method; one strength, or one for each feature or group."""

    coefficients: Float[np.ndarray, " d"]
    intercept: float
    strengths: Float[np.ndarray, " strengths"]
    held_out_error: float | None
    seconds: float | None


class LassoComparison(NamedTuple):
    """The result of `compare_lasso`.

    Attributes:
        job: the data.
        labels: the group of each feature; None without groups.
        rows: of the table, the mean alone first.
        fits: of the other methods, by their names.
        report: everything, for a JSON file.
    """

    job: LassoJob
    labels: Shaped[np.ndarray, " d"] | None
    rows: list[Row]
    fits: dict[str, Fit]
    report: dict[str, Any]

    def coefficients(self) -> pd.DataFrame:
        """A row for each feature: its group, its coefficient by each method, and its strength where it has one."""
        job, labels, fits = self.job, self.labels, self.fits
        frame = pd.DataFrame({"feature": job.names})
        if labels is not None:
            frame["group"] = [label.split(" ", 1)[1] for label in labels]
        for method, fit in fits.items():
            frame[method] = fit.coefficients
        for method, fit in fits.items():
            if EACH in method:
                whose = job.names if labels is None or "group" not in method else labels
                index = np.unique(whose, return_inverse=True)[1] if "group" in method else np.arange(len(whose))
                frame[f"{method}: strength"] = fit.strengths[index]
        return frame

    def chosen(self) -> pd.DataFrame:
        """The rows of `coefficients` for the features that any method chose, the largest coefficients first."""
        frame = self.coefficients()
        sizes = frame[list(self.fits)].abs().max(axis=1)
        return frame[sizes > 0].assign(size=sizes).sort_values("size", ascending=False, kind="stable")


def compare_lasso(
    job: LassoJob,
    labels: Shaped[np.ndarray, " d"] | None,
    *,
    per_feature: bool,
    steps: int | None,
    stages: Stages,
    mesh: Layout | None = None,
) -> LassoComparison:
    """Choose strengths by LassoCV, by one strength, and by a strength for each feature or group; a stage each.

    Args:
        job: the data.
        labels: the group of each feature, to fit group lassos as well; None without groups.
        per_feature: whether to fit lassos with a strength for each feature or group as well.
        steps: of the solver; None for the estimator's own.
        stages: keeps what is finished.
        mesh: passed to `bilevax.solve`.
    """
    fits = _fits(job, labels, per_feature, steps, stages, mesh)
    rows = [Row("the mean alone", None, _error(np.full(len(job.y_test), job.y.mean()), job), 0, None)]
    for method, fit in fits.items():
        error = _error(job.X_test @ fit.coefficients + fit.intercept, job)
        rows.append(Row(method, fit.held_out_error, error, int((fit.coefficients != 0).sum()), fit.seconds))
    report = {
        "title": job.title,
        "samples": len(job.y),
        "test": len(job.y_test),
        "features": len(job.names),
        "groups": None if labels is None else len(set(labels.tolist())),
        "methods": [row._asdict() for row in rows],
        "strengths": {method: fit.strengths.tolist() for method, fit in fits.items()},
    }
    return LassoComparison(job, labels, rows, fits, report)


def ready_made_lasso(hold_out: float, seed: int) -> LassoJob:
    """The diabetes data with all products of two features, after Efron et al., "Least angle regression", 2004."""
    bunch: Any = load_diabetes(scaled=False)
    products = PolynomialFeatures(2, include_bias=False)
    X = products.fit_transform((bunch.data - bunch.data.mean(0)) / bunch.data.std(0))
    names = [name.replace(" ", " x ") for name in products.get_feature_names_out(bunch.feature_names)]
    test = random_part(len(X), hold_out, seed)
    middle, spread = X[~test].mean(0), X[~test].std(0)
    X = (X - middle) / spread
    held = _folds(int((~test).sum()), seed)
    title = "scikit-learn's diabetes data, products included"
    return LassoJob(title, names, names, X[~test], bunch.target[~test], held, X[test], bunch.target[test], ())


def lasso_from_files(files: Mapping[str, Path | None], target: str | None, hold_out: float, seed: int) -> LassoJob:
    """A user's job. Errors name the command's options.

    Args:
        files: "train", and "validation" and "test", each a path or None.
        target: the column, or the NPZ array, that holds the quantities.
        hold_out: without a test file, the part of the training file that becomes the test set.
        seed: of that split, and of the folds where there is no validation file.

    Raises:
        InputError: as for `data.tables.read_quantities`; too few samples for the folds.
    """
    read = read_files(tables.read_quantities, files, target)
    train = read.pop("train")
    if "test" not in read:
        test = random_part(len(train.labels), hold_out, seed)
        read["test"], train = tables.part_of(train, test, "test"), tables.part_of(train, ~test, "training")
    parts = [train, *([read["validation"]] if "validation" in read else []), read["test"]]
    encoded = encode(*parts)
    X, *_ = encoded.matrices
    X_test, y_test = encoded.matrices[-1], read["test"].labels
    y, held = train.labels, []
    if "validation" in read:
        X, y = np.concatenate(encoded.matrices[:2]), np.concatenate([y, read["validation"].labels])
        held = [np.arange(len(y)) >= len(train.labels)]
    else:
        held = _folds(len(y), seed)
    names, columns = encoded_names(train)
    return LassoJob(str(files["train"]), names, columns, X, y, held, X_test, y_test, encoded.notes)


def _folds(n: int, seed: int) -> list[Bool[np.ndarray, " n"]]:
    if n < 2 * FOLDS:
        raise InputError(
            f"There are {n} samples to tune by {FOLDS} folds, and at least {2 * FOLDS} are needed. Add samples, or "
            "pass a file to tune by as --validation."
        )
    return fold_masks(n, FOLDS, seed)


def read_groups(path: Path, job: LassoJob) -> Shaped[np.ndarray, " d"]:
    """The group of each feature: the group of its column, or its own where the file does not name the column.

    Raises:
        InputError: the file is not a CSV file with columns feature and group, names a column twice, or names a column
            that the data lack.
    """
    frame = read_words(path, f"--groups ({path})")
    if list(frame.columns) != ["feature", "group"]:
        raise InputError(f"--groups ({path}) has the columns {listed(frame.columns)}. Two are needed: feature, group.")
    unknown = sorted(set(frame["feature"]) - set(job.columns))
    if unknown:
        raise InputError(
            f"--groups ({path}) names columns that the data lack: {listed(unknown)}. Spell them as the header does."
        )
    twice = sorted(set(frame.loc[frame["feature"].duplicated(), "feature"]))
    if twice:
        raise InputError(f"--groups ({path}) names {listed(twice)} more than once. A column belongs to one group.")
    group_of = dict(zip(frame["feature"], frame["group"].astype(str), strict=True))
    return np.array([f"group {group_of[c]}" if c in group_of else f"alone {c}" for c in job.columns])


def _fits(
    job: LassoJob,
    labels: np.ndarray | None,
    per_feature: bool,
    steps: int | None,
    stages: Stages,
    mesh: Layout | None,
) -> dict[str, Fit]:
    """The fit of each method; each is a stage."""
    steps = STEPS if steps is None else steps
    jobs: dict[str, tuple[str, np.ndarray | None, bool]] = {f"lasso, {ONE}": ("lasso-one", None, False)}
    if per_feature:
        jobs[f"lasso, {EACH}"] = ("lasso-each", None, True)
    if labels is not None:
        jobs[f"group lasso, {ONE}"] = ("group-one", labels, False)
        if per_feature:
            jobs[f"group lasso, {EACH}"] = ("group-each", labels, True)
    found = {"LassoCV": stages.of("grid", lambda keep: _grid(job)._asdict())}
    for method, (stage, groups, each) in jobs.items():
        found[method] = stages.of(
            stage,
            lambda keep, groups=groups, each=each: _tuned(job, groups, each, steps, keep, mesh)._asdict(),
        )
    return {method: stages.rebuilt(Fit, fit) for method, fit in found.items()}


def _grid(job: LassoJob) -> Fit:
    indices = np.arange(len(job.y))
    splits = [(indices[~mask], indices[mask]) for mask in job.held]
    began = time.perf_counter()
    grid = LassoCV(cv=splits, max_iter=20_000).fit(job.X, job.y)
    seconds = time.perf_counter() - began
    error = float(grid.mse_path_.reshape(len(grid.alphas_), -1).mean(1).min())  # one split is squeezed out
    return Fit(grid.coef_, float(grid.intercept_), np.array([grid.alpha_]), error, seconds)


def _tuned(
    job: LassoJob, labels: np.ndarray | None, each: bool, steps: int, keep: Checkpoint, mesh: Layout | None
) -> Fit:
    began = time.perf_counter()
    found = choose_strengths(
        job.X,
        job.y,
        job.held,
        groups=labels,
        per_group=each,
        steps=steps,
        callbacks=[keep],
        resume=keep,
        mesh=mesh,
    )
    seconds = time.perf_counter() - began
    return Fit(found.coefficients, found.intercept, found.strengths, found.held_out_error, seconds)


def _error(predicted: Float[np.ndarray, " t"], job: LassoJob) -> float:
    return float(np.mean((predicted - job.y_test) ** 2))
