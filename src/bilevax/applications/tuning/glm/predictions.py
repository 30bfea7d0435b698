"""Predictions and scores of a fitted generalised linear model."""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import ClassifierTags, RegressorTags, Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, column_or_1d

from bilevax.applications._inputs import validated
from bilevax.applications._pickling import Picklable
from bilevax.applications.tuning.glm.inputs import offsets, sample_weights
from bilevax.applications.tuning.glm.losses import LogLink, Loss, SquaredHinge
from bilevax.applications.tuning.glm.penalties import Penalty


def _classifies(estimator: Any) -> bool:
    if estimator._problem()[0].classifies:
        return True
    raise AttributeError(f"{type(estimator).__name__} with this loss predicts numbers, not classes.")


def _has_probabilities(estimator: Any) -> bool:
    loss = estimator._problem()[0]
    if loss.classifies and not isinstance(loss, SquaredHinge):
        return True
    raise AttributeError(f"{type(estimator).__name__} with this loss predicts no probabilities.")


class LinearPredictions(Picklable, BaseEstimator):
    """Predictions and scores by `coef_` and `intercept_`. Subclasses have `_problem`, and set `_loss` as they fit."""

    coef_: Float[np.ndarray, "..."]
    intercept_: Any
    classes_: Shaped[np.ndarray, " classes"]
    _loss: Loss

    def _problem(self) -> tuple[Loss, Penalty]:
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        loss = self._problem()[0]
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        if loss.classifies:
            tags.estimator_type, tags.classifier_tags, tags.regressor_tags = "classifier", ClassifierTags(), None
        else:
            tags.estimator_type, tags.regressor_tags, tags.classifier_tags = "regressor", RegressorTags(), None
            tags.target_tags.positive_only = isinstance(loss, LogLink)
        return tags

    def _linear(self, X: ArrayLike, exposure: Any = None, offset: Any = None) -> Float[np.ndarray, "n outputs"]:
        check_is_fitted(self)
        x = validated(self, X, accept_sparse="csr", reset=False)
        eta = np.asarray(x @ np.atleast_2d(self.coef_).T) + self.intercept_
        return eta + offsets(self._loss, exposure, offset, x.shape[0])[:, None]

    def predict(
        self, X: ArrayLike, exposure: ArrayLike | None = None, offset: ArrayLike | None = None
    ) -> Shaped[np.ndarray, " n"]:
        """The predicted mean (or quantile) of each sample of X (n, d); for classes the most likely one."""
        eta = self._linear(X, exposure, offset)
        if not self._loss.classifies:
            return self._loss.mean(eta)[:, 0]
        return self.classes_[(eta[:, 0] > 0).astype(int) if eta.shape[1] == 1 else eta.argmax(axis=1)]

    @available_if(_classifies)
    def decision_function(self, X: ArrayLike) -> Float[np.ndarray, "n classes"] | Float[np.ndarray, " n"]:
        """Scores of samples X (n, d); for two classes one score, positive for `classes_[1]`, (n,)."""
        eta = self._linear(X)
        return eta[:, 0] if eta.shape[1] == 1 else eta

    @available_if(_has_probabilities)
    def predict_proba(self, X: ArrayLike) -> Float[np.ndarray, "n classes"]:
        """The probability of each class, in the order of `classes_`, for samples X (n, d)."""
        eta = self._linear(X)
        mean = self._loss.mean(eta)
        return np.concatenate([1 - mean, mean], axis=1) if mean.shape[1] == 1 else mean

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: ArrayLike) -> Float[np.ndarray, "n classes"]:
        """The logarithm of `predict_proba`."""
        return np.log(self.predict_proba(X))

    def score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        offset: ArrayLike | None = None,
    ) -> float:
        """The accuracy of classes; else D^2, the part of the deviance that is explained (R^2 for the squared loss)."""
        found = column_or_1d(y)
        weight = sample_weights(sample_weight, len(found))
        weight = weight / weight.sum()
        if self._problem()[0].classifies:
            return float(weight @ (self.predict(X) == found))
        eta = self._linear(X, exposure, offset)
        target = np.asarray(found, np.float64)[:, None]
        loss = self._loss
        shift = offsets(loss, exposure, offset, len(found))
        constant = _constant_fit(loss, target, shift, weight)
        model = weight @ loss.value(eta[:, :, None], target[:, :, None])[:, 0]
        null = weight @ loss.value((constant + shift)[:, None, None], target[:, :, None])[:, 0]
        return float(1 - model / null) if null > 0 else float(model == 0)


def _constant_fit(loss: Loss, y: np.ndarray, shift: np.ndarray, weight: np.ndarray) -> float:
    """The constant linear predictor of the least loss, by halving its derivative."""
    low, high = -60.0, 60.0
    if not isinstance(loss, LogLink):
        low, high = float((y[:, 0] - shift).min()), float((y[:, 0] - shift).max())
    for _ in range(100):
        middle = (low + high) / 2
        slope = weight @ loss.slope((middle + shift)[:, None, None], y[:, :, None])[:, 0, 0]
        low, high = (middle, high) if slope < 0 else (low, middle)
    return (low + high) / 2
