"""`bilevax tune --lasso`: strengths of a lasso or group lasso by gradient, beside scikit-learn's LassoCV."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bilevax._checks import InputError, listed
from bilevax.cli._printing import as_table, say, show
from bilevax.cli._runs import Run
from bilevax.cli._shared import figure, surroundings
from bilevax.loop.placement import Layout

if TYPE_CHECKING:  # these pull in pandas and scikit-learn, which `--help` need not wait for
    import pandas as pd

    from bilevax.loop.checkpoint import Checkpoint
    from bilevax.loop.stages import Stages

FOLDS = 5
ONE, EACH = "one strength", "a strength each"
MOST_SHOWN = 30


class Data(NamedTuple):
    """A job: features and targets, which samples are held out to tune by, and samples that no method sees.

    Attributes:
        title: what the data are, in a few words.
        names: of the features, as they are after encoding.
        columns: the column of the file that each feature comes from.
        X, y: to tune and train on, features on one scale.
        held: boolean masks (n,), one for each fold.
        X_test, y_test: to measure on.
        notes: what was done to the data, in sentences.
    """

    title: str
    names: list[str]
    columns: list[str]
    X: np.ndarray
    y: np.ndarray
    held: list[np.ndarray]
    X_test: np.ndarray
    y_test: np.ndarray
    notes: tuple[str, ...]


class Row(NamedTuple):
    """One line of the table."""

    method: str
    held_out_error: float | None
    test_error: float
    chosen: int
    seconds: float | None


class Fit(NamedTuple):
    """A method's coefficients (d,), intercept, strengths (one, or one each), held-out error and seconds."""

    coefficients: np.ndarray
    intercept: float
    strengths: np.ndarray
    held_out_error: float | None
    seconds: float | None


def tune_lasso(
    files: dict[str, Path | None],
    groups: Path | None,
    settings: dict[str, Any],
    run: Run,
    layout: Layout | None,
) -> None:
    """Run all methods, write lasso.csv, results.json and lasso.png, print the table and the chosen features.

    Raises:
        InputError: files that cannot be used.
    """
    began = time.perf_counter()
    hold_out, seed, per_feature = (settings[name] for name in ("hold_out", "seed", "per_feature"))
    with run.stages() as stages:
        if files["train"] is None:
            data = _ready_made(hold_out, seed)
        else:
            data = _from_files(files, settings["target"], hold_out, seed)
        for note in data.notes:
            say(note)
        if np.ptp(data.y) == 0:
            raise InputError(
                f"The target is {data.y[0]:g} in all {len(data.y)} samples to tune on: there is nothing to explain. "
                "Check --target."
            )
        labels = None if groups is None else _read_groups(groups, data)
        say(
            f"{data.title}: {len(data.y):,} samples of {len(data.names)} features, tuned by "
            f"{'samples of their own' if len(data.held) == 1 else f'{FOLDS}-fold cross-validation'} ..."
        )
        fits = _fits(data, labels, per_feature, settings["steps"], stages, layout)
        rows = [Row("the mean alone", None, _error(np.full(len(data.y_test), data.y.mean()), data), 0, None)]
        for method, fit in fits.items():
            error = _error(data.X_test @ fit.coefficients + fit.intercept, data)
            chosen = int((fit.coefficients != 0).sum())
            rows.append(Row(method, fit.held_out_error, error, chosen, fit.seconds))
        report = {
            "settings": settings,
            **surroundings("jax", "optax", "numpy", "scikit-learn"),
            "wall_seconds": time.perf_counter() - began,
            "title": data.title,
            "samples": len(data.y),
            "test": len(data.y_test),
            "features": len(data.names),
            "groups": None if labels is None else len(set(labels.tolist())),
            "methods": [row._asdict() for row in rows],
            "strengths": {method: fit.strengths.tolist() for method, fit in fits.items()},
        }
        run.csv("lasso.csv", _coefficients(data, fits, labels))
        run.json("results.json", report)
        run.picture("lasso.png", lambda path: _draw(data, fits, labels, path))
    _print(data, rows, fits, labels)
    run.end(report["wall_seconds"])


def _ready_made(hold_out: float, seed: int) -> Data:
    """The diabetes data with all products of two features, after Efron et al., "Least angle regression", 2004."""
    from sklearn.datasets import load_diabetes
    from sklearn.preprocessing import PolynomialFeatures

    bunch: Any = load_diabetes(scaled=False)
    products = PolynomialFeatures(2, include_bias=False)
    X = products.fit_transform((bunch.data - bunch.data.mean(0)) / bunch.data.std(0))
    names = [name.replace(" ", " x ") for name in products.get_feature_names_out(bunch.feature_names)]
    test = _aside(len(X), hold_out, seed)
    middle, spread = X[~test].mean(0), X[~test].std(0)
    X = (X - middle) / spread
    held = _folds(int((~test).sum()), seed)
    title = "scikit-learn's diabetes data, products included"
    return Data(title, names, names, X[~test], bunch.target[~test], held, X[test], bunch.target[test], ())


def _from_files(files: dict[str, Path | None], target: str | None, hold_out: float, seed: int) -> Data:
    from bilevax.data import tables

    paths = {name: path for name, path in files.items() if path is not None}
    roles = {"TRAIN" if name == "train" else f"--{name}": path for name, path in paths.items()}
    read = dict(zip(paths, tables.read_quantities_together(roles, target), strict=True))
    train = read.pop("train")
    if "test" not in read:
        test = _aside(len(train.labels), hold_out, seed)
        read["test"], train = tables.part_of(train, test, "test"), tables.part_of(train, ~test, "training")
    parts = [train, *([read["validation"]] if "validation" in read else []), read["test"]]
    encoded = tables.encode(*parts)
    X, *_ = encoded.matrices
    X_test, y_test = encoded.matrices[-1], read["test"].labels
    y, held = train.labels, []
    if "validation" in read:
        X, y = np.concatenate(encoded.matrices[:2]), np.concatenate([y, read["validation"].labels])
        held = [np.arange(len(y)) >= len(train.labels)]
    else:
        held = _folds(len(y), seed)
    names, columns = tables.encoded_names(train)
    return Data(str(files["train"]), names, columns, X, y, held, X_test, y_test, encoded.notes)


def _aside(n: int, part: float, seed: int) -> np.ndarray:
    count = int(np.clip(round(part * n), 1, n - 1))
    return np.isin(np.arange(n), np.random.default_rng(seed).permutation(n)[:count])


def _folds(n: int, seed: int) -> list[np.ndarray]:
    from bilevax.applications.tuning.path import fold_masks

    if n < 2 * FOLDS:
        raise InputError(
            f"There are {n} samples to tune by {FOLDS} folds, and at least {2 * FOLDS} are needed. Add samples, or "
            "pass samples to tune by as --validation."
        )
    return fold_masks(n, FOLDS, seed)


def _read_groups(path: Path, data: Data) -> np.ndarray:
    """The group of each feature: that of its column, or of its own where the file does not name it."""
    from bilevax.data.readers import read_words

    frame = read_words(path, f"--groups ({path})")
    if list(frame.columns) != ["feature", "group"]:
        raise InputError(f"--groups ({path}) has the columns {listed(frame.columns)}. Two are needed: feature, group.")
    unknown = sorted(set(frame["feature"]) - set(data.columns))
    if unknown:
        raise InputError(
            f"--groups ({path}) names columns that the data lack: {listed(unknown)}. Spell them as the header does."
        )
    twice = sorted(set(frame.loc[frame["feature"].duplicated(), "feature"]))
    if twice:
        raise InputError(f"--groups ({path}) names {listed(twice)} more than once. A column belongs to one group.")
    group_of = dict(zip(frame["feature"], frame["group"].astype(str), strict=True))
    return np.array([f"group {group_of[c]}" if c in group_of else f"alone {c}" for c in data.columns])


def _fits(
    data: Data,
    labels: np.ndarray | None,
    per_feature: bool,
    steps: int | None,
    stages: "Stages",
    layout: Layout | None,
) -> dict[str, Fit]:
    """What each method finds, a stage each."""
    from bilevax.applications.tuning.lasso import STEPS

    steps = STEPS if steps is None else steps
    jobs: dict[str, tuple[str, np.ndarray | None, bool]] = {f"lasso, {ONE}": ("lasso-one", None, False)}
    if per_feature:
        jobs[f"lasso, {EACH}"] = ("lasso-each", None, True)
    if labels is not None:
        jobs[f"group lasso, {ONE}"] = ("group-one", labels, False)
        if per_feature:
            jobs[f"group lasso, {EACH}"] = ("group-each", labels, True)
    found = {"LassoCV": stages.of("grid", lambda keep: _grid(data)._asdict())}
    for method, (stage, groups, each) in jobs.items():
        found[method] = stages.of(
            stage,
            lambda keep, groups=groups, each=each: _tuned(data, groups, each, steps, keep, layout)._asdict(),
        )
    return {method: Fit(**fit) for method, fit in found.items()}


def _grid(data: Data) -> Fit:
    from sklearn.linear_model import LassoCV

    indices = np.arange(len(data.y))
    splits = [(indices[~mask], indices[mask]) for mask in data.held]
    began = time.perf_counter()
    grid = LassoCV(cv=splits, max_iter=20_000).fit(data.X, data.y)
    seconds = time.perf_counter() - began
    error = float(grid.mse_path_.reshape(len(grid.alphas_), -1).mean(1).min())  # one split is squeezed out
    return Fit(grid.coef_, float(grid.intercept_), np.array([grid.alpha_]), error, seconds)


def _tuned(
    data: Data, labels: np.ndarray | None, each: bool, steps: int, keep: "Checkpoint", layout: Layout | None
) -> Fit:
    from bilevax.applications.tuning.lasso import choose_strengths

    began = time.perf_counter()
    found = choose_strengths(
        data.X,
        data.y,
        data.held,
        groups=labels,
        per_group=each,
        steps=steps,
        callbacks=[keep],
        resume=keep,
        mesh=layout,
    )
    seconds = time.perf_counter() - began
    return Fit(found.coefficients, found.intercept, found.strengths, found.held_out_error, seconds)


def _error(predicted: np.ndarray, data: Data) -> float:
    return float(np.mean((predicted - data.y_test) ** 2))


def _print(data: Data, rows: list[Row], fits: dict[str, Fit], labels: np.ndarray | None) -> None:
    show(
        as_table(
            f"{data.title}: {len(data.y):,} samples, {len(data.y_test):,} to test, {len(data.names)} features",
            ("method", "held-out\nerror", "test\nerror", "features\nchosen", "seconds"),
            [
                (
                    row.method,
                    figure(row.held_out_error, ".5g"),
                    figure(row.test_error, ".5g"),
                    str(row.chosen),
                    figure(row.seconds, ".1f"),
                )
                for row in rows
            ],
            "Mean squared errors: of the samples held out to tune by, and of those that no method saw. Seconds with "
            "compilation.",
        )
    )
    chosen = _chosen(data, fits, labels)
    show(
        as_table(
            "Features chosen, with their coefficients (of features on one scale)",
            ("feature", *(method.replace(", ", "\n") for method in fits)),
            [
                (str(line["feature"]), *(figure(float(line[method]) or None, ".4g") for method in fits))
                for line in chosen.head(MOST_SHOWN).to_dict("records")
            ],
            whole=False,
        )
    )
    if len(chosen) > MOST_SHOWN:
        say(f"... and {len(chosen) - MOST_SHOWN} more, in lasso.csv.")
    if any(EACH in method for method in fits):
        say(
            "Strengths of their own fit the held-out samples in part: the test error tells what they are worth, and a "
            "feature that is out in all folds stays out."
        )


def _chosen(data: Data, fits: dict[str, Fit], labels: np.ndarray | None) -> "pd.DataFrame":
    """A line for each feature that any method chose, the largest coefficients first."""
    frame = _coefficients(data, fits, labels)
    sizes = frame[list(fits)].abs().max(axis=1)
    return frame[sizes > 0].assign(size=sizes).sort_values("size", ascending=False, kind="stable")


def _coefficients(data: Data, fits: dict[str, Fit], labels: np.ndarray | None) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame({"feature": data.names})
    if labels is not None:
        frame["group"] = [label.split(" ", 1)[1] for label in labels]
    for method, fit in fits.items():
        frame[method] = fit.coefficients
    for method, fit in fits.items():
        if EACH in method:
            whose = data.names if labels is None or "group" not in method else labels
            index = np.unique(whose, return_inverse=True)[1] if "group" in method else np.arange(len(whose))
            frame[f"{method}: strength"] = fit.strengths[index]
    return frame


def _draw(data: Data, fits: dict[str, Fit], labels: np.ndarray | None, path: Path) -> None:
    from bilevax import plots

    shown = _chosen(data, fits, labels).head(MOST_SHOWN)
    plots.bars(
        shown["feature"].astype(str).tolist(),
        {method: shown[method].to_numpy() for method in fits},
        path,
        f"Features chosen: {Path(data.title).name}",
        "coefficient, features on one scale",
    )
