"""A strength for each band of features: TunedGLM beside himalaya's random search and hypergradient.

Simulated bands of very different worth, and public tables whose bands are the columns before their classes became
indicators. Models are fitted on the training rows, and the loss is the mean squared error on the others over that of
the training mean. Features and targets are centred and scaled by the training rows. Seconds are of the processor.

himalaya (Dupre la Tour et al., "Feature-space selection with banded ridge regression", NeuroImage 2022) goes into an
environment of its own, for example `pip install --no-deps --target DIR himalaya` and PYTHONPATH=DIR. Its random search
draws 100 points of the simplex, its default, with 25 scales each. Its hypergradient takes up to 100 updates from the
scales of a ridge, where the default is 10 from 0.
"""

import importlib
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.preprocessing import StandardScaler

from bilevax import InputError
from bilevax.applications.tuning import TunedGLM
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import Rows, kept_cell
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings, pick, pick_data_sets
from experiments.tuning.public_tables import load

TITLE = EXPERIMENTS["tune-banded"].title
# Of TunedGLM by label: how many strengths. "auto" chooses the number by an outer criterion.
OURS = {"TunedGLM": "auto", "TunedGLM, each band": "group", "TunedGLM, one strength": "scalar"}
RANDOM, HYPER = "himalaya, random search", "himalaya, hypergradient"
LABELS = (*OURS, RANDOM, HYPER)
BANDS = 50  # features of a simulated band
# The part of the target's variance that each simulated band explains.
SIMULATED = {"3 bands": (0.6, 0.2, 0.0), "12 bands": (0.5, 0.2, 0.1, *(0.0,) * 9)}
REAL = ("boston", "diabetes")  # not ames: there the SVD of himalaya's random search does not converge
SEEDS = 5
SCALES = np.logspace(-3, 6, 25)
NOTES = [
    "The loss is the mean squared error on rows that were not trained on, over that of predicting the training mean.",
    "himalaya's hypergradient takes at most 100 updates from the scales of a ridge; its default is 10 from 0.",
]


class Split(NamedTuple):
    """Standardised rows to train on and to test on, and the band of each feature."""

    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    X_test: Float[np.ndarray, "m d"]
    y_test: Float[np.ndarray, " m"]
    bands: Int[np.ndarray, " d"]


def run(settings: Settings) -> None:
    """Run the study."""
    began = time.perf_counter()
    names = pick_data_sets(("3 bands", "diabetes") if settings.quick else (*SIMULATED, *REAL), settings.dataset)
    labels, seeds = pick(LABELS, settings.solver), settings.seeds or (1 if settings.quick else SEEDS)
    found = {
        name: [
            kept_cell(
                settings.out / "cells" / f"{name}-{seed}.json",
                labels,
                lambda missing, name=name, seed=seed: cell(split(name, seed), missing, seed),
            )
            for seed in range(seeds)
        ]
        for name in names
    }
    tables = {
        title: [
            Row((name, label), None, np.array([rows[label][field] for rows in found[name]]), None)
            for name in names
            for label in labels
        ]
        for title, field in (("loss", "loss"), ("seconds", "seconds"))
    }
    for title, rows in tables.items():
        show(f"{TITLE}: {title}", ("data", "method"), rows, ())
    write_results("tune-banded", settings, list(range(seeds)), time.perf_counter() - began, {}, {}, tables, NOTES)


def split(name: str, seed: int) -> Split:
    """Two thirds of the rows of a table, or 300 of 1,300 simulated rows, and the rest."""
    rng = np.random.default_rng(seed)
    if name in SIMULATED:
        parts = SIMULATED[name]
        X = rng.normal(size=(1300, BANDS * len(parts)))
        bands = np.repeat(np.arange(len(parts)), BANDS)
        w = rng.normal(size=X.shape[1]) * np.sqrt(np.array(parts) / BANDS)[bands]
        y, n = X @ w + rng.normal(size=len(X)) * np.sqrt(1 - sum(parts)), 300
    else:
        table = load(name, seed)
        X, y, bands, n = table.X, np.asarray(table.y, float), table.groups, 2 * len(table.X) // 3
    kept = np.ptp(X[:n], axis=0) > 0
    X = np.asarray(StandardScaler().fit(X[:n, kept]).transform(X[:, kept]))
    y = (y - y[:n].mean()) / y[:n].std()
    return Split(X[:n], y[:n], X[n:], y[n:], np.unique(bands[kept], return_inverse=True)[1])


def cell(data: Split, labels: list[str], seed: int) -> Rows:
    """The loss and the seconds of each method."""
    return {label: _measured(data, _method(label, data, seed)) for label in labels}


def _measured(data: Split, fit: Callable[[], Float[np.ndarray, " m"]]) -> dict[str, Any]:
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = fit()
    seconds = time.process_time() - began
    return {"loss": float(((predicted - data.y_test) ** 2).mean() / (data.y_test**2).mean()), "seconds": seconds}


def _method(label: str, data: Split, seed: int) -> Callable[[], Float[np.ndarray, " m"]]:
    """A function that fits a method and returns its predictions for the test rows."""
    if label in OURS:
        model = TunedGLM("squared", strengths=OURS[label], groups=data.bands, standardize=False)
        return lambda: model.fit(data.X, data.y).predict(data.X_test)
    try:
        kernel: Any = importlib.import_module("himalaya.kernel_ridge")
        linear: Any = importlib.import_module("himalaya.ridge")
    except ImportError as error:
        raise InputError(
            "tune-banded needs himalaya, which is not installed. Install it by pip install --no-deps himalaya, or "
            "compare without it: --solver TunedGLM."
        ) from error
    if label == RANDOM:
        search = {"n_iter": 100, "alphas": SCALES, "progress_bar": False, "warn": False}
        ridge = linear.GroupRidgeCV(groups=data.bands, solver_params=search, random_state=seed)
        return lambda: ridge.fit(data.X, data.y).predict(data.X_test)
    bands = [np.flatnonzero(data.bands == band) for band in np.unique(data.bands)]
    kernels = kernel.ColumnKernelizer(
        [(str(i), kernel.Kernelizer(kernel="linear"), band) for i, band in enumerate(bands)]
    )
    descent = {"max_iter": 100, "initial_deltas": "ridgecv", "progress_bar": False}
    kernel_ridge = kernel.MultipleKernelRidgeCV(
        "precomputed", solver="hyper_gradient", solver_params=descent, random_state=seed
    )

    def fit() -> Float[np.ndarray, " m"]:
        kernel_ridge.fit(kernels.fit_transform(data.X), data.y)
        return kernel_ridge.predict(kernels.transform(data.X_test))

    return fit
