"""The estimator of generalised linear models with tuned strengths."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.utils.multiclass import check_classification_targets
from threadpoolctl import threadpool_limits

from bilevax._checks import InputError, listed, require_count, short_reason
from bilevax.applications._inputs import classes_of, places, validated
from bilevax.applications._units import require_sizes
from bilevax.applications.tuning.glm.choice import Chosen, choose
from bilevax.applications.tuning.glm.folds import Folds, ToSplit, folds_of
from bilevax.applications.tuning.glm.inputs import (
    Design,
    group_codes,
    named_columns,
    offsets,
    remarks,
    require_numbers,
    require_scoring,
    sample_labels,
    sample_weights,
    standardised,
)
from bilevax.applications.tuning.glm.losses import (
    Logistic,
    LogLink,
    Loss,
    Multinomial,
    Poisson,
    SquaredHinge,
)
from bilevax.applications.tuning.glm.penalties import L2, GroupLasso, Penalty, term_of
from bilevax.applications.tuning.glm.predictions import LinearPredictions
from bilevax.applications.tuning.glm.tuner import Tuner, strength_codes

KINDS = ("auto", "scalar", "group", "feature", "class")
MOST_FEATURES = 2000  # for which "auto" considers a strength for each
SEVERAL_THREADS = 20_000_000  # entries of X from which products are shared by threads
TOLERANCE, LOOSE_TOLERANCE = 1e-8, 1e-6  # of the lower problems, the second for large ones
LARGE = 5e6  # entries of X times outputs times folds
AT_BOUND = 0.5  # log strengths this near a bound are at it


class History(NamedTuple):
    """The cross-validated loss of each evaluation.

    Attributes:
        strengths: the kind of strengths, an entry for each evaluation.
        held_out_loss: the mean loss on held-out samples.
    """

    strengths: list[str]
    held_out_loss: Float[np.ndarray, " evaluations"]


class TunedLinearModel(LinearPredictions):
    """What the tuned linear models share. Subclasses say which loss and penalty."""

    strengths: Any
    groups: Any
    cv: Any
    scoring: Any
    fit_intercept: bool
    standardize: bool
    max_iter: int
    warm_start: bool

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        column_names: Sequence[str] | None = None,
    ) -> Self:
        """Tune the strengths by cross-validation, then fit all samples.

        Args:
            X: features (n, d), dense or sparse.
            y: targets (n,).
            sample_weight: (n,), at least zero; counts in training, on held-out samples and in the units of `alpha_`.
            exposure: (n,), positive; the mean is proportional to it (losses with a log link).
            offset: (n,), added to the linear predictor.
            groups: (n,) of the samples, for splitters such as GroupKFold.
            column_names: of the d columns, for `groups` of the model and for messages, where X is an array; by default
                those of a DataFrame, or the places.

        Raises:
            InputError: targets that are texts, or outside the domain of the loss; weights, exposures, groups, folds,
                names or a score that cannot be used.
            ValueError: as scikit-learn's `validate_data`, for example for features that are not finite numbers.
        """
        self._check_settings()
        loss, penalty = self._problem()
        if not loss.classifies:
            require_numbers(y)
        x, given = validated(self, X, y, accept_sparse="csr", y_numeric=not loss.classifies)
        n = x.shape[0]
        weight = sample_weights(sample_weight, n)
        rows = np.flatnonzero(weight > 0)
        x, labels, weight = x[rows], given[rows], weight[rows]
        target, loss = self._target(loss, labels, weight)
        shift = offsets(loss, exposure, offset, n)[rows]
        require_sizes("X", x.data if sparse.issparse(x) else x)
        own = getattr(self, "feature_names_in_", None) if column_names is None else column_names
        names = named_columns(own, x.shape[1])
        codes = group_codes(self.groups, x, names)
        sample_groups = None if groups is None else sample_labels(groups, n)[rows]
        folds = folds_of(self.cv, ToSplit(x, labels, sample_groups, loss.classifies, rows, n))
        design = standardised(x, weight, self.standardize, self.fit_intercept)
        for sentence in remarks(design, names):
            warnings.warn(sentence, UserWarning, stacklevel=2)
        centre = float(weight @ target[:, 0] / weight.sum()) if self._centres(loss) else 0.0
        target = target - centre
        if np.ptp(target) <= 1e-13 * abs(centre):
            target = np.zeros_like(target)
        loss = loss.settled(target[:, 0], weight)
        tuner = self._tuner(loss, penalty, design, target, shift, weight, folds, codes)
        # Threads of small products wait for each other longer than they compute; sparse products have none.
        few = sparse.issparse(x) or x.size < SEVERAL_THREADS
        with threadpool_limits(1 if few else None, "blas"):
            chosen = self._choose(tuner, codes, penalty)
            w, converged = tuner.fit(chosen.codes, chosen.u)
        self._record(tuner, chosen, design, w, centre)
        self._warn(tuner, chosen, converged)
        self._report(tuner, chosen, design, x, labels, centre)
        return self

    def _check_settings(self) -> None:
        name = type(self).__name__
        if self.strengths not in KINDS:
            raise InputError(f"{name}: strengths is {self.strengths!r}. Pass one of {listed(KINDS)}.")
        require_count(name, "max_iter", self.max_iter)
        for setting in ("fit_intercept", "standardize", "warm_start"):
            if not isinstance(getattr(self, setting), bool | np.bool_):
                raise InputError(f"{name}: {setting} is {getattr(self, setting)!r}, and must be True or False.")
        require_scoring(name, self.scoring)
        self._problem()

    def _centres(self, loss: Loss) -> bool:
        return self.fit_intercept and not loss.classifies and not isinstance(loss, LogLink)

    def _target(
        self, loss: Loss, y: Shaped[np.ndarray, " n"], weight: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n outputs"], Loss]:
        """The targets of the loss, and the loss for their number of classes."""
        if not loss.classifies:
            found = np.asarray(y, np.float64)
            require_sizes("y", found)
            if isinstance(loss, Poisson):
                counts = found * weight  # rates, weighted by their exposures, are as good as counts
                found_check = found if (np.abs(counts - np.round(counts)) > 1e-6 * (1 + counts)).any() else counts
                loss.check(np.where(found < 0, found, np.round(found_check) if found_check is counts else found_check))
            else:
                loss.check(found)
            return found[:, None], loss
        check_classification_targets(y)
        self.classes_ = classes_of("y", y)
        codes = places("y", y, self.classes_)
        count = len(self.classes_)
        if isinstance(loss, SquaredHinge):
            found = np.eye(count)[codes] if count > 2 else codes[:, None].astype(float)
            return 2 * found - 1, loss
        if count == 2:
            return codes[:, None].astype(float), Logistic()
        return np.eye(count)[codes], Multinomial()

    def _tuner(
        self,
        loss: Loss,
        penalty: Penalty,
        design: Design,
        target: Float[np.ndarray, "n outputs"],
        shift: Float[np.ndarray, " n"],
        weight: Float[np.ndarray, " n"],
        folds: Folds,
        codes: Int[np.ndarray, " d"],
    ) -> Tuner:
        outputs = target.shape[1]
        blocks = []
        if isinstance(penalty, GroupLasso):
            flat = np.repeat(codes, outputs)
            order = np.argsort(flat, kind="stable")
            blocks = np.split(order, np.cumsum(np.bincount(flat))[:-1])
        start = None
        shape = (design.x.shape[1], outputs, folds.train.shape[1])
        if self.warm_start and getattr(self, "_fold_coefficients", np.empty(0)).shape == shape:
            start = self._fold_coefficients
        entries = design.x.nnz if sparse.issparse(design.x) else design.x.size
        return Tuner(
            loss,
            term_of(penalty, blocks),
            design.x,
            target,
            shift,
            weight,
            folds.train,
            folds.held,
            _is_total(loss, penalty),
            self.fit_intercept,
            TOLERANCE if entries * np.prod(shape[1:]) < LARGE else LOOSE_TOLERANCE,
            start,
        )

    def _choose(self, tuner: Tuner, codes: Int[np.ndarray, " d"], penalty: Penalty) -> Chosen:
        d, outputs = len(codes), tuner.y.shape[1]
        grouped = int(codes.max()) + 1
        possible = {"group": grouped > 1, "feature": d > 1, "class": outputs > 1}
        if isinstance(penalty, GroupLasso):
            possible["feature"] = possible["class"] = False
        if self.strengths in possible and not possible[self.strengths]:
            raise InputError(
                f"strengths is {self.strengths!r}, and there are {grouped} groups of {d} columns, and {outputs} "
                f"{'output' if outputs == 1 else 'outputs'} under {type(penalty).__name__}. Choose another kind of "
                "strengths."
            )
        if self.strengths == "auto":
            kinds = [kind for kind, can in possible.items() if can and _worth_trying(kind, d, grouped)]
        else:
            kinds = [] if self.strengths == "scalar" else [self.strengths]
        scalar, *finer = [strength_codes(kind, d, outputs, codes) for kind in ["scalar", *kinds]]
        near = getattr(self, "_log_strength", None) if self.warm_start else None
        return choose(tuner, scalar, finer, nested=self.strengths == "auto", near=near, most=self.max_iter)

    def _record(
        self, tuner: Tuner, chosen: Chosen, design: Design, w: Float[np.ndarray, "p outputs"], centre: float
    ) -> None:
        unit = tuner.weight.sum() if tuner.total else 1.0
        self._loss, self._fold_coefficients = tuner.loss, chosen.start
        self._log_strength = float(chosen.path.best.u[0])
        self._coefficients(design, w, centre)
        self.strengths_chosen_ = chosen.codes.kind
        self.strengths_ = np.exp(chosen.u) * unit
        each = self.strengths_[chosen.codes.codes].T  # (outputs, d)
        scalar = chosen.codes.kind == "scalar"
        self.alpha_ = float(self.strengths_[0]) if scalar else each[0] if len(each) == 1 else each
        self.candidates_ = chosen.candidates
        self.prior_deviation_ = chosen.deviation
        found = list(chosen.path.points)
        self.alphas_ = np.array([np.exp(point.u[0]) * unit for point in found])
        shares = tuner.data.held.sum(0)
        scores = np.array([-point.values / shares for point in found])
        mean = np.array([-point.value for point in found])
        self.cv_results_ = {
            "params": [{"alpha": float(alpha)} for alpha in self.alphas_],
            "param_alpha": self.alphas_,
            **{f"split{k}_test_score": scores[:, k] for k in range(scores.shape[1])},
            "mean_test_score": mean,
            "std_test_score": scores.std(1),
            "rank_test_score": (-mean).argsort().argsort() + 1,
        }
        more = [] if chosen.search is None else chosen.search.points
        self.history_ = History(
            ["scalar"] * len(found) + [chosen.codes.kind] * len(more),
            np.array([point.value for point in [*found, *more]]),
        )
        self.n_iter_ = len(found) + len(more)
        self.held_out_loss_ = (chosen.path if chosen.search is None else chosen.search).best.value

    def _coefficients(self, design: Design, w: Float[np.ndarray, "p outputs"], centre: float) -> None:
        d = len(design.scale)
        coef = (w[:d] / design.scale[:, None]).T
        intercept = (w[d] if self.fit_intercept else np.zeros(w.shape[1])) - coef @ design.mean + centre
        if self._loss.classifies:
            self.coef_, self.intercept_ = coef, intercept
        else:
            self.coef_, self.intercept_ = coef[0], float(intercept[0])

    def _warn(self, tuner: Tuner, chosen: Chosen, converged: bool) -> None:
        if not converged:
            warnings.warn(
                "The coefficients have not converged to full precision; the strengths are at a bound, or columns "
                "depend on each other.",
                ConvergenceWarning,
                stacklevel=3,
            )
        low = tuner.bounds[0]
        if chosen.codes.kind == "scalar" and chosen.u[0] <= low + AT_BOUND and np.ptp(tuner.y) > 0:
            reason = "The classes may be separable. " if tuner.loss.classifies else ""
            warnings.warn(
                f"{reason}The strength {self.alpha_:.3g} is at its lower bound: the held-out loss still falls there, "
                "so hardly any penalty is needed.",
                UserWarning,
                stacklevel=3,
            )

    def _report(
        self,
        tuner: Tuner,
        chosen: Chosen,
        design: Design,
        X: Any,
        labels: np.ndarray,
        centre: float,
    ) -> None:
        """The user's score on the held-out samples of each fold, `cv_scores_`."""
        if self.scoring is None:
            return
        scorer: Any = check_scoring(self, self.scoring)
        whole = self.coef_, self.intercept_
        found = []
        try:
            for k in range(tuner.held.shape[1]):
                self._coefficients(design, chosen.start[:, :, k], centre)
                held = tuner.held[:, k]
                found.append(scorer(self, self._named(X[held]), labels[held]))
        except (AttributeError, TypeError, ValueError) as error:
            if callable(self.scoring):
                raise
            raise InputError(
                f"{type(self).__name__}: scoring is {self.scoring!r}, which cannot score this model "
                f"({short_reason(error)}). Choose a score for {'classes' if tuner.loss.classifies else 'quantities'}."
            ) from error
        finally:
            self.coef_, self.intercept_ = whole
        self.cv_scores_ = np.array(found)

    def _named(self, X: Any) -> Any:
        names: Any = vars(self).get("feature_names_in_")
        if names is None or sparse.issparse(X):
            return X
        import pandas as pd

        return pd.DataFrame(X, columns=names)


def _is_total(loss: Loss, penalty: Penalty) -> bool:
    """Whether scikit-learn's counterpart adds the penalty to the sum of the losses: Ridge, logistic regression, SVC."""
    if loss.classifies:
        return True
    return loss.quadratic and isinstance(penalty, L2)


def _worth_trying(kind: str, d: int, groups: int) -> bool:
    match kind:
        case "feature":
            return d <= MOST_FEATURES
        case "group":
            return groups < d and groups <= MOST_FEATURES
    return True
