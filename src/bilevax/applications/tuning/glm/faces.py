"""The tuned models by name."""

from typing import Any

from bilevax.applications.tuning.glm.estimator import TunedLinearModel
from bilevax.applications.tuning.glm.losses import Logistic, Loss, Poisson, Squared, SquaredHinge, loss_of
from bilevax.applications.tuning.glm.penalties import L1, L2, GroupLasso, Penalty, penalty_of


class TunedGLM(TunedLinearModel):
    """A penalised generalised linear model whose strengths are tuned by cross-validated hypergradients.

    One strength is found along a path, as scikit-learn's CV classes do, and then to any precision. Many strengths (for
    each group of columns, each feature, each class) are found by L-BFGS-B from the exact gradient of the
    cross-validated loss. With `strengths="auto"` they are taken only where they lower the loss on folds that the tuning
    has not seen. The coefficients are then fitted to all samples. All of it is NumPy in double precision: nothing is
    compiled.

    Args:
        loss: "squared", "logistic", "multinomial", "poisson", "gamma", "tweedie", "huber", "quantile", "squared_hinge",
            or a loss such as `Tweedie(1.3)` or `Quantile(0.9)`. Logistic and multinomial are chosen by the number of
            classes.
        penalty: "l2", "l1", "elastic_net", "group_lasso", or `ElasticNet(0.9)`. The intercept is not penalised.
        strengths: "auto", "scalar", "group", "feature" or "class".
        groups: of columns: None for runs of adjacent indicator columns, as encoded categories are; or a label for each
            column, lists of columns, or a function from names of columns to labels.
        cv: a number of folds, a splitter, an iterable of pairs, or a part between 0 and 1 that is held out once. As in
            scikit-learn, a number of folds does not shuffle the samples.
        scoring: a scorer that is reported for each fold as `cv_scores_`; the smooth loss is what is tuned.
        fit_intercept: whether there is an intercept.
        standardize: whether strengths belong to features in units of their standard deviations. `coef_` always belongs
            to the features as passed.
        max_iter: iterations of L-BFGS-B.
        warm_start: whether `fit` starts near the strengths of the last call.

    Attributes:
        coef_: (d,); for classes (1, d) for two, else (classes, d).
        intercept_: a number; for classes (1,) or (classes,).
        strengths_: the tuned strengths (m,), in units of scikit-learn's alpha: relative to the sum of the losses for
            squared loss with L2 (Ridge) and for classes (1 / C), else to their weighted mean.
        alpha_: the strength of each feature, (d,) or (classes, d); a number where there is one strength.
        strengths_chosen_: "scalar", "group", "feature" or "class".
        candidates_: the nested comparison of the kinds of strengths.
        prior_deviation_: the standard deviation of log ratios of strengths under their prior; 0 for one strength.
        held_out_loss_: the cross-validated loss at the strengths.
        alphas_, cv_results_: the scalar strengths that were tried, and their held-out losses, as scores.
        history_: the cross-validated loss of each evaluation.
        n_iter_: number of evaluations.
        classes_: the labels, sorted.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.tuning import TunedGLM
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 30))
        >>> y = rng.poisson(np.exp(0.5 * X[:, 0] - 0.5 * X[:, 1]))
        >>> model = TunedGLM("poisson").fit(X, y)
        >>> model.strengths_chosen_, bool(model.alpha_[:2].max() < np.median(model.alpha_))
        ('feature', True)
    """

    def __init__(
        self,
        loss: Any = "squared",
        penalty: Any = "l2",
        strengths: Any = "auto",
        groups: Any = None,
        cv: Any = 5,
        scoring: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        max_iter: int = 100,
        warm_start: bool = False,
    ):
        self.loss = loss
        self.penalty = penalty
        self.strengths = strengths
        self.groups = groups
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _problem(self) -> tuple[Loss, Penalty]:
        return loss_of(self.loss), penalty_of(self.penalty)


class _Face(TunedLinearModel):
    """A model with a fixed loss and penalty; the parameters are those of `TunedGLM`."""

    def __init__(
        self,
        strengths: Any = "auto",
        groups: Any = None,
        cv: Any = 5,
        scoring: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        max_iter: int = 100,
        warm_start: bool = False,
    ):
        self.strengths = strengths
        self.groups = groups
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.max_iter = max_iter
        self.warm_start = warm_start


class TunedRidge(_Face):
    """Ridge regression with tuned strengths: `TunedGLM("squared", "l2")`. `alpha_` is in units of `Ridge`.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from bilevax.applications.tuning import TunedRidge
        >>> X, y = load_diabetes(return_X_y=True)
        >>> bool(TunedRidge().fit(X, y).score(X, y) > 0.5)
        True
    """

    def _problem(self) -> tuple[Loss, Penalty]:
        return Squared(), L2()


class TunedLogisticRegression(_Face):
    """Logistic regression, multinomial for several classes, with tuned strengths: `TunedGLM("logistic", "l2")`.

    `alpha_` is in units of scikit-learn's 1 / C.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from bilevax.applications.tuning import TunedLogisticRegression
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> bool(TunedLogisticRegression().fit(X, y).score(X, y) > 0.97)
        True
    """

    def _problem(self) -> tuple[Loss, Penalty]:
        return Logistic(), L2()


class TunedPoissonRegressor(_Face):
    """Poisson regression of counts with tuned strengths: `TunedGLM("poisson", "l2")`.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.tuning import TunedPoissonRegressor
        >>> rng = np.random.default_rng(0)
        >>> X, years = rng.normal(size=(200, 3)), rng.uniform(0.1, 3, size=200)
        >>> y = rng.poisson(years * np.exp(X[:, 0]))
        >>> model = TunedPoissonRegressor().fit(X, y, exposure=years)
        >>> print(model.coef_.round(1) + 0.0)
        [1. 0. 0.]
    """

    def _problem(self) -> tuple[Loss, Penalty]:
        return Poisson(), L2()


class TunedSVC(_Face):
    """A linear support vector machine with the squared hinge loss and tuned strengths, one class against the rest.

    `TunedGLM("squared_hinge", "l2")`; `alpha_` is in units of 1 / C of scikit-learn's `LinearSVC`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from bilevax.applications.tuning import TunedSVC
        >>> X, y = load_iris(return_X_y=True)
        >>> bool(TunedSVC().fit(X, y).score(X, y) > 0.93)
        True
    """

    def _problem(self) -> tuple[Loss, Penalty]:
        return SquaredHinge(), L2()


class TunedLasso(TunedLinearModel):
    """The lasso, or group lasso, with tuned strengths: `TunedGLM("squared", "l1")`. `alpha_` is in units of `Lasso`.

    Args:
        group_lasso: whether the columns of a group are zero together.
        strengths, groups, cv, scoring, fit_intercept, standardize, max_iter, warm_start: as for `TunedGLM`.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.tuning.glm import TunedLasso
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(80, 20))
        >>> y = X[:, 0] - 2 * X[:, 1] + rng.normal(size=80)
        >>> model = TunedLasso(strengths="scalar").fit(X, y)
        >>> bool((model.coef_[:2] != 0).all()), int((model.coef_ != 0).sum()) < 20
        (True, True)
    """

    def __init__(
        self,
        group_lasso: bool = False,
        strengths: Any = "auto",
        groups: Any = None,
        cv: Any = 5,
        scoring: Any = None,
        fit_intercept: bool = True,
        standardize: bool = True,
        max_iter: int = 100,
        warm_start: bool = False,
    ):
        self.group_lasso = group_lasso
        self.strengths = strengths
        self.groups = groups
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _problem(self) -> tuple[Loss, Penalty]:
        return Squared(), GroupLasso() if self.group_lasso else L1()
