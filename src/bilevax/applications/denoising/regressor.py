"""Wrong targets found, as a scikit-learn estimator."""

import warnings
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from bilevax._checks import InputError
from bilevax.applications._inputs import (
    flat_labels,
    numeric,
    record_features,
    require_alike,
    require_both,
    require_features,
    require_label_each,
    table,
)
from bilevax.applications._pickling import Picklable
from bilevax.applications._settings import seed_key
from bilevax.applications.denoising.ranking import require_doubt
from bilevax.applications.denoising.regressors import FittedRegressorStack, FoldRegressor, Regressor, defaults
from bilevax.applications.denoising.targets import TargetRanking, rank_targets
from bilevax.applications.denoising.trusting import mask_of
from bilevax.data.samples.trusted import twins_of


class DenoisingRegressor(RegressorMixin, Picklable, BaseEstimator):
    """Finds wrong targets, with or without some trusted ones, and predicts in spite of the wrong ones.

    Regressors learn the given targets and predict each sample without having seen it. A model of the absolute residuals
    says how large a residual is to be expected for each sample, and a mixture explains them: a right target lies near
    the prediction, a wrong one may be that of any other sample, lie far from all of them, or anywhere around the
    prediction. The regressors learn again, each sample weighted by the probability that its target is right.

    Args:
        model: None for a stack of ridge regression, of splines too, and two forests; or a scikit-learn regressor.
        random_state: an integer; the same one gives the same result on the same machine.

    Attributes:
        probability_wrong_: (n,) the probability that each target is wrong; 0 for trusted ones. Rank by it.
        suggested_target_: (n,) the predicted target of suspects, the given one of all others.
        suspects_: (n,) bool, whether the target is more probably wrong than right.
        expected_wrong_: the number of wrong targets, and the ends of an interval for it of 90%. Without trusted targets
            the interval is wide: the targets themselves do not say whether a large residual is a wrong target or a
            rare right one.
        predicted_target_: (n,) the prediction of each target by models that have not seen it.
        deviation_: (n,) the deviation of the right target that is expected from the prediction.
        sample_weight_: (n,) 1 - `probability_wrong_`, a weight for training on the targets as given.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> import numpy as np
        >>> from sklearn.datasets import load_diabetes
        >>> from bilevax.applications.denoising import DenoisingRegressor
        >>> X, y = load_diabetes(return_X_y=True)
        >>> given = y.copy()
        >>> given[:10] *= 10  # in other units
        >>> regressor = DenoisingRegressor().fit(X, given)
        >>> int((regressor.probability_wrong_.argsort()[-10:] < 10).sum()) >= 9
        True
        >>> error = np.abs(regressor.suggested_target_ - y)[:10].mean()
        >>> bool(error < 0.1 * np.abs(given - y)[:10].mean())
        True
    """

    n_features_in_: int
    _stack: FittedRegressorStack

    def __init__(self, model: Any = None, random_state: int = 0):
        self.model = model
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        X_clean: ArrayLike | None = None,
        y_clean: ArrayLike | None = None,
        trusted: ArrayLike | None = None,
    ) -> Self:
        """Review the targets y (n,) of X (n, d).

        Trusted targets are further samples X_clean (m, d) with right targets y_clean (m,), or samples of X: those where
        `trusted` (n,) is true. The mask can be routed through a Pipeline (`set_fit_request(trusted=True)`). A sample of
        X that X_clean repeats is not in doubt: its `probability_wrong_` is 0 if the targets agree; else it is 1, and
        the suggested target is that of y_clean.

        Raises:
            InputError: features or targets that are not numbers or not finite; lengths or features that do not fit;
                targets that are all the same; a mask that is not (n,) of truth values; fewer than ten targets in doubt;
                a model that is no regressor.
        """
        seed_key("random_state", self.random_state)
        x, targets = _samples("X", X, "y", y)
        right = mask_of(trusted, len(x))
        require_both("X_clean", X_clean, "y_clean", y_clean)
        known = np.where(right, targets, np.nan)
        every, all_targets, certain = x, targets, right
        if X_clean is not None:
            x_clean, clean = _samples("X_clean", X_clean, "y_clean", y_clean)
            require_alike("X", X, x, "X_clean", X_clean, x_clean)
            sides = [([row.tobytes() for row in rows], None, found) for rows, found in ((x, targets), (x_clean, clean))]
            twin = twins_of(sides[0], sides[1])
            known[twin[twin >= 0]] = clean[twin >= 0]
            rest = twin < 0
            every = np.concatenate([x, x_clean[rest]])
            all_targets = np.concatenate([np.where(np.isnan(known), targets, known), clean[rest]])
            certain = np.concatenate([~np.isnan(known), np.ones(int(rest.sum()), bool)])
        require_doubt("targets", certain)
        if np.all(all_targets == all_targets[0]):
            raise InputError(f"y holds {all_targets[0]:g} alone. Pass targets that differ.")
        contradicted = ~np.isnan(known) & (known != targets)
        if count := int(contradicted.sum()):
            warnings.warn(
                f"{count} samples of X have another target in y_clean, which is taken as the right one: "
                "probability_wrong_ is 1 for them.",
                UserWarning,
                stacklevel=2,
            )
        found = rank_targets(every, all_targets, certain, self._regressors(x.shape[1]), int(self.random_state))
        self._record(found, targets, np.where(contradicted, known, np.nan))
        record_features(self, X)
        return self

    def _regressors(self, columns: int) -> tuple[Regressor, ...]:
        if self.model is None:
            return defaults(columns)
        if not (hasattr(self.model, "fit") and hasattr(self.model, "predict")) or isinstance(self.model, type):
            raise InputError(f"model is {self.model!r}, and must be a scikit-learn regressor, or None.")
        return (FoldRegressor(self.model),)

    def _record(
        self, found: TargetRanking, targets: Float[np.ndarray, " n"], corrected: Float[np.ndarray, " n"]
    ) -> None:
        """Set the fitted attributes; `corrected` has the trusted targets that contradict the given ones."""
        n, replaced = len(targets), ~np.isnan(corrected)
        count = float(replaced.sum())
        self.probability_wrong_ = np.where(replaced, 1.0, found.probability_wrong[:n])
        self.suspects_: Bool[np.ndarray, " n"] = self.probability_wrong_ > 0.5
        self.predicted_target_ = found.predicted[:n]
        self.deviation_ = found.deviation[:n]
        suggested = np.where(self.suspects_, self.predicted_target_, targets)
        self.suggested_target_ = np.where(replaced, corrected, suggested)
        likely, low, high = found.expected_wrong
        self.expected_wrong_ = (likely + count, low + count, high + count)
        self.sample_weight_ = 1 - self.probability_wrong_
        self._stack = found.model

    def predict(self, X: ArrayLike) -> Float[np.ndarray, " n"]:
        """The right target that is expected of each sample of X (n, d).

        Raises:
            InputError: X has other features than fit had, or values that are not finite numbers.
        """
        check_is_fitted(self, "_stack")
        x = _rows("X", X)
        require_features(self, X, x, (self.n_features_in_,))
        return self._stack.predict(x)


def _rows(name: str, X: Any) -> Float[np.ndarray, "n d"]:
    x = numeric(name, X)
    if x.ndim == 2 and x.shape[1] == 0:
        raise InputError(
            f"{name} has shape {x.shape}: 0 feature(s) (shape={x.shape}) while a minimum of 1 is required. Pass at "
            "least one column."
        )
    if x.ndim != 2 or not len(x):
        hint = f" Reshape your data: {name}.reshape(1, -1) is one sample." if x.ndim == 1 else ""
        raise InputError(
            f"{name} has shape {x.shape}, and must have one row per sample and at least one of each.{hint}"
        )
    return table(name, x)


def _samples(x_name: str, X: Any, y_name: str, y: Any) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """Samples and their targets in double precision."""
    x = _rows(x_name, X)
    if y is None:
        raise InputError(f"{y_name} is None: requires y to be passed, but the target y is None. Pass the targets.")
    targets = numeric(y_name, flat_labels(y_name, y)).astype(np.float64)
    if targets.ndim != 1:
        raise InputError(f"{y_name} has shape {targets.shape}, and must be (n,): one target for each sample.")
    require_label_each(x_name, x, y_name, targets)
    return x, targets
