"""One strength on public tables: TunedGLM beside RidgeCV, LassoCV, LogisticRegressionCV and glum's CV.

All find the strength of the least cross-validated loss on the same folds: ours to any precision, theirs on a grid.
Where the loss has one minimum, the two differ by at most the grid's spacing. Seconds are of the processor. glum
(Quantco) goes into an environment of its own, for example `pip install --target DIR glum` and PYTHONPATH=DIR; without
it the rows of counts are left out.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LassoCV, LogisticRegressionCV, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from bilevax.applications.tuning import TunedGLM
from experiments.catalog import EXPERIMENTS
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings, pick_data_sets
from experiments.tuning.public_tables import Table, load

TITLE = EXPERIMENTS["tune-scalar"].title
STEPS = 33
SPACING = np.log(10) / 4  # of the grids of log strengths
# By table: the penalty of the comparison.
TABLES = {"diabetes": "l2", "boston": "l1", "ames": "l2", "breast-cancer": "l2", "german": "l2", "medicaid": "l2"}
QUICK = ("diabetes", "breast-cancer")
NOTES = [
    "The grid of the others lies such that our strength is 0.3 spacings from a point of it: at -0.3 they choose that "
    "one.",
    "Seconds are of the processor.",
]


class Found(NamedTuple):
    """What one method found.

    Attributes:
        alpha: the strength, in one unit for all methods.
        seconds: of the processor.
    """

    alpha: float
    seconds: float


def run(settings: Settings) -> None:
    """Run the study."""
    began = time.perf_counter()
    names = pick_data_sets(QUICK if settings.quick else tuple(TABLES), settings.dataset)
    tables: dict[str, list[Row]] = {"log strength, ours less theirs, in spacings": [], "seconds": []}
    for name in names:
        table = load(name, 0)
        if table.kind == "poisson" and importlib.util.find_spec("glum") is None:
            print(f"{name} is left out: glum is not installed.")
            continue
        ours, theirs, method = compared(table, TABLES[name])
        gap = (np.log(ours.alpha) - np.log(theirs.alpha)) / SPACING
        print(
            f"{name}: ours {ours.alpha:.4g} in {ours.seconds:.2f} s, {method} {theirs.alpha:.4g} in "
            f"{theirs.seconds:.2f} s"
        )
        tables["log strength, ours less theirs, in spacings"].append(Row((name, method), None, np.array([gap]), None))
        for label, found in (("TunedGLM", ours), (method, theirs)):
            tables["seconds"].append(Row((name, label), None, np.array([found.seconds]), None))
    for title, rows in tables.items():
        show(f"{TITLE}: {title}", ("data", "method"), rows, ())
    write_results("tune-scalar", settings, [0], time.perf_counter() - began, {}, {}, tables, NOTES)


def compared(table: Table, penalty: str) -> tuple[Found, Found, str]:
    """Our strength, theirs, and the name of their class."""
    X, y = StandardScaler().fit_transform(table.X), table.y
    splitter = StratifiedKFold if table.kind == "logistic" else KFold
    cv = splitter(5, shuffle=True, random_state=0)
    model = TunedGLM(table.kind, penalty, "scalar", cv=cv, standardize=False)
    ours = _timed(lambda: model.fit(X, y).alpha_)
    grid = np.exp(np.log(ours.alpha) + SPACING * (np.arange(STEPS) - STEPS // 2 + 0.3))
    method, fit = _theirs(table.kind, penalty, grid, cv)
    return ours, _timed(lambda: fit(X, y)), method


def _timed(fit: Callable[[], Any]) -> Found:
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alpha = float(fit())
    return Found(alpha, time.process_time() - began)


def _theirs(kind: str, penalty: str, grid: Float[np.ndarray, " k"], cv: Any) -> tuple[str, Callable[..., Any]]:
    """The CV class of another library and its strength on a grid, in our unit."""
    match kind, penalty:
        case "squared", "l2":
            ridge = RidgeCV(grid, cv=cv, scoring="neg_mean_squared_error")
            return "RidgeCV", lambda X, y: ridge.fit(X, y).alpha_
        case "squared", _:
            lasso: Any = LassoCV
            return "LassoCV", lambda X, y: lasso(alphas=grid, cv=cv, max_iter=100_000).fit(X, y).alpha_
        case "logistic", _:
            settings = {"Cs": (1 / grid).tolist(), "cv": cv, "scoring": "neg_log_loss", "max_iter": 2000}
            return "LogisticRegressionCV", lambda X, y: 1 / LogisticRegressionCV(**settings).fit(X, y).C_[0]
    glum: Any = importlib.import_module("glum")
    model = glum.GeneralizedLinearRegressorCV(family="poisson", l1_ratio=0, alphas=grid[::-1], cv=cv)
    return "glum's CV", lambda X, y: model.fit(X, y).alpha_
