"""Regressors that learn with sample weights and predict every sample without having seen it, and their stack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from scipy import optimize, special
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from bilevax.applications.denoising.experts import grown_forest, weight_argument

FOLDS = 5
PENALTIES = tuple(np.logspace(-2, 5, 15))
WIDE = 50  # columns, beyond which they get no splines
ROUNDING = 0.01  # squared, in units of the least error


class FittedRegressor(Protocol):
    """A fitted regressor."""

    @property
    def out_of_sample(self) -> Float[np.ndarray, " n"]:
        """The prediction of each sample by models that have not seen it."""
        ...

    def predict(self, X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Of other samples."""
        ...


class Regressor(Protocol):
    """A regressor that learns with sample weights."""

    def fit(
        self, X: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], seed: int
    ) -> FittedRegressor:
        """Fit it, and predict each sample from models that have not seen it."""
        ...


class FittedForestRegressor(NamedTuple):
    """A fitted `ForestRegressor`."""

    out_of_sample: Float[np.ndarray, " n"]
    forest: Any

    def predict(self, X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Of other samples."""
        return self.forest.predict(X)


@dataclass(frozen=True)
class ForestRegressor:
    """A forest that predicts each sample from the trees that were grown without it.

    Args:
        extra: random thresholds (Geurts et al. 2006) instead of the best ones (Breiman 2001).
        trees: number of trees.
        leaf: samples in a leaf, at least.
    """

    extra: bool
    trees: int = 100
    leaf: int = 3

    def fit(
        self, X: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], seed: int
    ) -> FittedForestRegressor:
        """Fit the forest."""
        forest = grown_forest(self, X, y, seed, 0.5 if X.shape[1] > 2 else 1.0, weights)
        return FittedForestRegressor(np.asarray(forest.oob_prediction_, np.float64), forest)


class FittedFoldRegressors(NamedTuple):
    """A fitted `FoldRegressor`: a regressor for each fold."""

    out_of_sample: Float[np.ndarray, " n"]
    models: list[Any]

    def predict(self, X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Of other samples, the mean over the folds."""
        return np.mean([model.predict(X) for model in self.models], axis=0)


@dataclass(frozen=True, eq=False)
class FoldRegressor:
    """A scikit-learn regressor, fitted once for each fold of the samples without it.

    A regressor whose `fit` takes no `sample_weight` learns from the samples that weigh at least half.

    Args:
        regressor: it is cloned.
        folds: number of folds.
    """

    regressor: Any
    folds: int = FOLDS

    def fit(
        self, X: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], seed: int
    ) -> FittedFoldRegressors:
        """Fit the regressor of each fold."""
        found, models = np.zeros(len(y)), []
        with threadpool_limits(1):
            for kept, left_out in KFold(self.folds, shuffle=True, random_state=seed).split(X):
                model: Any = clone(self.regressor)
                name = weight_argument(model)
                if name is None:
                    kept = kept[weights[kept] >= 0.5] if np.any(weights[kept] >= 0.5) else kept
                    model.fit(X[kept], y[kept])
                else:
                    model.fit(X[kept], y[kept], **{name: weights[kept]})
                found[left_out] = np.ravel(model.predict(X[left_out]))
                models.append(model)
        return FittedFoldRegressors(found, models)


FORESTS = (ForestRegressor(extra=True), ForestRegressor(extra=False))


def defaults(columns: int) -> tuple[Regressor, ...]:
    """Ridge regression, of splines too where there are not too many columns, and two forests."""
    linear = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    splines = make_pipeline(
        StandardScaler(), SplineTransformer(5, knots="quantile", extrapolation="linear"), RidgeCV(PENALTIES)
    )
    chosen = [linear, splines] if columns <= WIDE else [linear]
    return (*(FoldRegressor(model) for model in chosen), *FORESTS)


class FittedRegressorStack(NamedTuple):
    """The weighted mean of fitted regressors."""

    out_of_sample: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " regressors"]
    regressors: list[FittedRegressor]

    def predict(self, X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        """Of other samples."""
        return self.weights @ np.stack([regressor.predict(X) for regressor in self.regressors])


def stack_regressors(
    regressors: Sequence[Regressor],
    X: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    seed: int,
) -> FittedRegressorStack:
    """Fit regressors, and weight them by the absolute error of their mean, out of sample."""
    fitted = [regressor.fit(X, y, weights, seed) for regressor in regressors]
    found = np.stack([one.out_of_sample for one in fitted])
    chosen = _least_absolute(found, y, weights)
    return FittedRegressorStack(chosen @ found, chosen, fitted)


def _least_absolute(
    found: Float[np.ndarray, "regressors n"], y: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " regressors"]:
    """The weights, not negative and summing to 1, with the least absolute error, whose corner is rounded."""
    if len(found) == 1:
        return np.ones(1)
    scale = float(np.average(np.abs(y - found).min(0), weights=weights + 1e-9)) or 1.0
    weights = weights / weights.sum()

    def loss(logits: Float[np.ndarray, " regressors"]) -> tuple[float, Float[np.ndarray, " regressors"]]:
        shares = special.softmax(logits)
        error = (y - shares @ found) / scale
        rounded = np.sqrt(error**2 + ROUNDING)
        slope = -found @ (weights * error / rounded) / scale
        return float(weights @ rounded), shares * (slope - shares @ slope)

    result: Any = optimize.minimize(loss, np.zeros(len(found)), jac=True, method="L-BFGS-B")
    return special.softmax(result.x)
