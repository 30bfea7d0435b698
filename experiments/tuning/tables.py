"""Many strengths on public tables: TunedGLM with the nested choice, one strength, scikit-learn's CV classes and Optuna.

Outer folds: the models are fitted on four fifths and their loss is taken on the rest, for each fold. The loss is half
the squared error, the negative log-likelihood of classes, or half the Poisson deviance. Differences are between the
losses of the same rows; their standard error is that of the mean over the rows. All features are standardised. Seconds
are of the processor, so that other work on the machine does not change them.
"""

import time
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy
from sklearn.linear_model import LassoCV, LogisticRegression, LogisticRegressionCV, PoissonRegressor, Ridge, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevax.applications.tuning import TunedGLM
from experiments.catalog import EXPERIMENTS
from experiments.common.cells import Rows, kept_cell
from experiments.common.compare import Row, show, write_results
from experiments.common.settings import Settings, pick, pick_data_sets
from experiments.tuning.public_tables import MOST_ROWS, SCIKIT_LEARN, TABLES, Table, load

TITLE = EXPERIMENTS["tune-tables"].title
# The nested choice and its prior were settled on these, which are not in the study.
DEVELOPMENT = ("car_prices", "Sacramento", "cells", "attrition", "DoctorVisits", "SaratogaHouses", "stackoverflow")
DEVELOPMENT += ("CPS1985", "nhefs", "bdf", "wine")
AUTO, SCALAR, SKLEARN, LASSO, OPTUNA = "TunedGLM", "one strength", "scikit-learn CV", "LassoCV", "Optuna, 100 trials"
LABELS = (AUTO, SCALAR, SKLEARN, LASSO, OPTUNA)
TRIALS, QUICK_ROWS = 100, 500
NOTES = [
    "Seconds are of the processor, of all outer folds. Optuna searches one strength, each trial by cross-validation.",
    "A negative difference means that TunedGLM is better. Differences below a standard error change with the order of "
    "the rows and the outer folds: diabetes is also run for five of them. LassoCV has another penalty than the rest.",
]
GRID = np.logspace(-3, 5, 25)  # of the penalty beside the sum of the losses


def run(settings: Settings) -> None:
    """Run the study."""
    began = time.perf_counter()
    names = pick_data_sets(tuple(SCIKIT_LEARN) if settings.quick else TABLES, settings.dataset)
    labels, seeds = pick(LABELS, settings.solver), settings.seeds or 1
    most = QUICK_ROWS if settings.quick else MOST_ROWS
    found = {
        name: [
            kept_cell(
                settings.out / "cells" / f"{name}-{most}-{seed}.json",
                [label for label in labels if label != LASSO or load(name, seed, most).kind == "squared"],
                lambda missing, name=name, seed=seed: cell(load(name, seed, most), missing, seed),
            )
            for seed in range(seeds)
        ]
        for name in names
    }
    tables = summary(found)
    for title, rows in tables.items():
        show(f"{TITLE}: {title}", ("data", "method"), rows, ())
    write_results("tune-tables", settings, list(range(seeds)), time.perf_counter() - began, {}, {}, tables, NOTES)


def cell(table: Table, labels: list[str], seed: int) -> Rows:
    """The loss of every row by each method, its seconds, and the kinds of strengths that were chosen."""
    return {label: _outer(table, label, seed) for label in labels}


def _outer(table: Table, label: str, seed: int) -> dict[str, Any]:
    splitter = (StratifiedKFold if table.kind == "logistic" else KFold)(5, shuffle=True, random_state=seed)
    losses, seconds, kinds = np.zeros(len(table.y)), 0.0, []
    for train, test in splitter.split(table.X, table.y):
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = make_pipeline(StandardScaler(), _model(table, label, train, seed)).fit(
                table.X[train], table.y[train]
            )
        seconds += time.process_time() - began
        losses[test] = row_losses(table, model, test)
        kinds.append(getattr(model[-1], "strengths_chosen_", "scalar"))
    return {"losses": losses.tolist(), "seconds": seconds, "kinds": kinds}


def row_losses(table: Table, model: Any, rows: np.ndarray) -> Float[np.ndarray, " rows"]:
    """The loss of each of some rows."""
    X, y = table.X[rows], table.y[rows]
    if table.kind == "logistic":
        p = np.clip(model.predict_proba(X)[:, 1], 1e-12, 1 - 1e-12)
        return -np.where(y == 1, np.log(p), np.log1p(-p))
    mean = model.predict(X)
    if table.kind == "poisson":
        return xlogy(y, y / mean) - y + mean
    return (mean - y) ** 2 / 2


def _model(table: Table, label: str, train: np.ndarray, seed: int) -> Any:
    n = len(train)
    match label, table.kind:
        case "TunedGLM", kind:
            return TunedGLM(kind, groups=table.groups)
        case "one strength", kind:
            return TunedGLM(kind, strengths="scalar")
        case "LassoCV", _:
            return LassoCV(cv=5)
        case "scikit-learn CV", "squared":
            return RidgeCV(GRID, cv=5, scoring="neg_mean_squared_error")
        case "scikit-learn CV", "logistic":
            return LogisticRegressionCV(Cs=(1 / GRID).tolist(), cv=5, scoring="neg_log_loss", max_iter=1000)
        case "scikit-learn CV", _:
            return _searched(table, train, [_penalised("poisson", alpha / n) for alpha in GRID])
    return _by_optuna(table, train, seed)


def _penalised(kind: str, alpha: float) -> Any:
    match kind:
        case "squared":
            return Ridge(alpha)
        case "logistic":
            return LogisticRegression(C=1 / alpha, max_iter=1000)
    return PoissonRegressor(alpha=alpha, max_iter=1000)


def _score(table: Table, train: np.ndarray, model: Any) -> float:
    scoring = {
        "squared": "neg_mean_squared_error",
        "logistic": "neg_log_loss",
        "poisson": "neg_mean_poisson_deviance",
    }[table.kind]
    whole = make_pipeline(StandardScaler(), model)
    return float(cross_val_score(whole, table.X[train], table.y[train], scoring=scoring, cv=5).mean())


def _searched(table: Table, train: np.ndarray, models: list[Any]) -> Any:
    return max(models, key=lambda model: _score(table, train, model))


def _by_optuna(table: Table, train: np.ndarray, seed: int) -> Any:
    """The strength by Optuna's default search (TPE)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    divisor = len(train) if table.kind == "poisson" else 1

    def objective(trial: Any) -> float:
        alpha = trial.suggest_float("alpha", GRID[0], GRID[-1], log=True)
        return _score(table, train, _penalised(table.kind, alpha / divisor))

    study.optimize(objective, n_trials=TRIALS)
    return _penalised(table.kind, study.best_params["alpha"] / divisor)


def summary(found: dict[str, list[Rows]]) -> dict[str, list[Row]]:
    """Losses, the differences of `TunedGLM` from the others in standard errors, and seconds."""
    tables: dict[str, list[Row]] = {"loss": [], "TunedGLM less the other, in standard errors": [], "seconds": []}
    for name, seeds in found.items():
        for label in seeds[0]:
            losses = [np.array(rows[label]["losses"]) for rows in seeds]
            where = (name, label)
            tables["loss"].append(Row(where, None, np.array([one.mean() for one in losses]), None))
            tables["seconds"].append(Row(where, None, np.array([rows[label]["seconds"] for rows in seeds]), None))
            if AUTO in seeds[0] and label != AUTO:
                gaps = [np.array(rows[AUTO]["losses"]) - one for one, rows in zip(losses, seeds, strict=True)]
                errors = np.array([gap.mean() / max(gap.std() / np.sqrt(len(gap)), 1e-300) for gap in gaps])
                tables["TunedGLM less the other, in standard errors"].append(Row(where, None, errors, None))
    return tables
