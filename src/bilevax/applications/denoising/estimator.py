"""Wrong labels found, as a scikit-learn estimator and as a function of given probabilities."""

import warnings
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bilevax._checks import InputError, listed
from bilevax.applications._inputs import (
    classes_of,
    features,
    flat_labels,
    numeric,
    on_one_scale,
    places,
    record_features,
    require_alike,
    require_both,
    require_features,
    require_label_each,
    require_unit,
    sample_shape,
    samples,
)
from bilevax.applications._inputs import labels as labels_of
from bilevax.applications._pickling import Picklable
from bilevax.applications._settings import require_training, seed_key
from bilevax.applications.denoising.experts import TABLES, Expert, FittedStack, Folds
from bilevax.applications.denoising.network import FittedNetwork, Network, require_logits
from bilevax.applications.denoising.noise import sharpened
from bilevax.applications.denoising.ranking import Ranking, rank_probabilities, require_doubt
from bilevax.applications.denoising.repeats import rank_settled, settle
from bilevax.applications.denoising.trusting import mask_of
from bilevax.data.samples.trusted import twins_of
from bilevax.nn.adapters import as_model
from bilevax.nn.training import Training

NORMALISED = 1e-3  # how far a row of probabilities may be from summing to one


class LabelReview(NamedTuple):
    """What a review finds about n labels of K classes.

    Attributes:
        probability_wrong: that the given label is wrong; 0 for trusted labels. Rank by it.
        suggested_label: the most probable label.
        corrected_label: the labels of which the most are right: the suggested ones where they are sure, else the given.
        expected_wrong: the number of wrong labels, and an interval of 90% for it. Without trusted labels the interval
            is wide: the labels themselves do not say how many of them are wrong.
        noise_matrix: (K, K), the probability of each given label (column) for each true class (row).
        classes: the labels, sorted.
    """

    probability_wrong: Float[np.ndarray, " n"]
    suggested_label: Shaped[np.ndarray, " n"]
    corrected_label: Shaped[np.ndarray, " n"]
    expected_wrong: tuple[float, float, float]
    noise_matrix: Float[np.ndarray, "classes classes"]
    classes: Shaped[np.ndarray, " classes"]


class DenoisingClassifier(ClassifierMixin, Picklable, BaseEstimator):
    """Finds wrong labels, with or without some trusted ones, and predicts in spite of the wrong ones.

    Classifiers learn the given labels and predict each sample without having seen it. A class-to-class noise matrix
    explains where predictions and labels differ; with trusted labels it is tuned on them, as the upper variable of a
    bilevel problem. The posterior of the true class ranks the labels, and the classifiers learn again from it.

    Args:
        model: None for a stack of logistic regression and two forests, which suits tables and embeddings; a
            scikit-learn classifier; or a network: an (init, apply) pair, a module that `bilevax.nn.as_model` takes,
            or a function from the number of classes to a `bilevax.nn.Model`.
        training: how a network is trained, None for `bilevax.nn.Training()`; unused otherwise.
        random_state: an integer; the same one gives the same result on the same machine.

    Attributes:
        probability_wrong_: (n,) the probability that each label is wrong; 0 for trusted labels. Rank by it.
        suggested_label_: (n,) the most probable label of each sample.
        suspects_: (n,) bool, whether the suggested label is another than the given one.
        corrected_label_: (n,) the labels of which the most are right: the suggested ones where they are sure, else the
            given ones. With trusted labels all suggestions are sure. Without them, those are not that would do harm if
            fewer labels are wrong than `expected_wrong_` says.
        expected_wrong_: the number of wrong labels, and the ends of an interval for it of 90%.
        noise_matrix_: (K, K), the probability of each given label (column) for each true class (row).
        sample_weight_: (n,) 1 - `probability_wrong_`, a weight for training on the labels as given.
        classes_: the labels, sorted.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from bilevax.applications.denoising import DenoisingClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> given = y.copy()
        >>> given[:10] = 2  # of 50 setosas
        >>> classifier = DenoisingClassifier().fit(X, given)
        >>> int((classifier.suggested_label_[:10] == 0).sum()) >= 9
        True
        >>> int((classifier.probability_wrong_.argsort()[-12:] < 10).sum()) >= 9
        True
    """

    _ranking_model: FittedStack
    _power: float
    _shape: tuple[int, ...]
    _bytes: bool

    def __init__(self, model: Any = None, training: Training | None = None, random_state: int = 0):
        self.model = model
        self.training = training
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        X_clean: ArrayLike | None = None,
        y_clean: ArrayLike | None = None,
        trusted: ArrayLike | None = None,
    ) -> Self:
        """Review the labels y (n,) of X (n, ...).

        Trusted labels are further samples X_clean (m, ...) with right labels y_clean (m,), or samples of X: those where
        `trusted` (n,) is true. The mask can be routed through a Pipeline (`set_fit_request(trusted=True)`). A sample of
        X that X_clean repeats is not in doubt: its `probability_wrong_` is 0 if the labels agree; else it is 1, the
        suggested label is that of y_clean, and a warning counts these samples.

        Raises:
            InputError: features that are not numbers or not finite; lengths or features that do not fit; one class
                only; a label of y_clean that y lacks; a mask that is not (n,) of truth values; fewer than ten labels in
                doubt; a model that is none.
        """
        seed_key("random_state", self.random_state)
        x, given = samples("X", X, "y", flat_labels("y", y))
        self.classes_ = classes_of("y", given)
        codes = places("y", given, self.classes_)
        mask = mask_of(trusted, len(x))
        require_both("X_clean", X_clean, "y_clean", y_clean)
        every, all_codes, right, twin = x, codes, mask, np.full(len(x), -1)
        if X_clean is not None:
            x_clean, clean_labels = samples("X_clean", X_clean, "y_clean", flat_labels("y_clean", y_clean))
            require_alike("X", X, x, "X_clean", X_clean, x_clean)
            x, x_clean = on_one_scale("X", x, "X_clean", x_clean)
            clean_codes = places("y_clean", clean_labels, self.classes_)
            every = np.concatenate([x, x_clean])
            all_codes = np.concatenate([codes, clean_codes])
            right = np.concatenate([mask, np.ones(len(x_clean), bool)])
            sides = [([row.tobytes() for row in rows], None, c) for rows, c in ((x, codes), (x_clean, clean_codes))]
            twin = np.concatenate([twin, twins_of(*sides)])
        known = settle(all_codes, right, twin)
        require_doubt("labels", known.trusted)
        if contradicted := int(known.contradicted.sum()):
            warnings.warn(
                f"{contradicted} samples of X have another label in y_clean, which is taken as the right one: "
                "probability_wrong_ is 1 for them.",
                UserWarning,
                stacklevel=2,
            )
        self._warn_of_untrusted_classes(all_codes[right])
        found = rank_settled(every, known, len(self.classes_), self._experts(every), int(self.random_state))
        self._record(X, x, found, codes)
        return self

    def _warn_of_untrusted_classes(self, trusted: Int[np.ndarray, " m"]) -> None:
        lacking = np.setdiff1d(np.arange(len(self.classes_)), trusted)
        if len(trusted) and len(lacking):
            warnings.warn(
                f"The trusted samples hold none of the labels {listed(self.classes_[lacking])}: what samples of these "
                "classes are labelled as is estimated from the given labels.",
                UserWarning,
                stacklevel=3,
            )

    def _experts(self, x: Shaped[np.ndarray, "n ..."]) -> tuple[Expert, ...] | Network:
        if self.model is None:
            if x.ndim > 2:
                raise InputError(
                    f"X holds samples of shape {sample_shape(x.shape[1:])}, and the default models take rows of "
                    "numbers. Pass a network as model, for example bilevax.nn.lenet5, or embeddings as X."
                )
            return TABLES
        if isinstance(self.model, BaseEstimator):
            if not hasattr(self.model, "predict_proba"):
                raise InputError(
                    f"model is {self.model!r}, which has no predict_proba. Pass a classifier with probabilities, or "
                    "wrap it in sklearn.calibration.CalibratedClassifierCV."
                )
            return (Folds(self.model),)
        training = Training() if self.training is None else self.training
        require_training(training)
        model = as_model(self.model, len(self.classes_))
        require_logits(model, x, len(self.classes_))
        return Network(model, training)

    def _record(self, X: Any, x: Shaped[np.ndarray, "n ..."], found: Ranking, codes: Int[np.ndarray, " n"]) -> None:
        n = len(x)
        self.probability_wrong_ = found.probability_wrong[:n]
        best = found.posterior[:n].argmax(1)
        self.suggested_label_ = self.classes_[best]
        self.suspects_ = best != codes
        self.corrected_label_ = self.classes_[np.where(found.sure[:n], best, codes)]
        self.expected_wrong_ = found.expected_wrong
        self.noise_matrix_ = found.noise_matrix
        self.sample_weight_ = 1 - self.probability_wrong_
        assert found.model is not None
        self._ranking_model, self._power = found.model, found.power
        self._shape, self._bytes = x.shape[1:], x.dtype == np.uint8
        record_features(self, X)

    def predict_proba(self, X: ArrayLike) -> Float[np.ndarray, "n classes"]:
        """The probability of each true class, in the order of `classes_`, for samples X (n, ...).

        Raises:
            InputError: X has other features than fit had, or values that are not finite numbers.
        """
        check_is_fitted(self, "_ranking_model")
        x = features("X", X)
        require_features(self, X, x, self._shape)
        if self._bytes:
            require_unit("X", x, "fit")
        return sharpened(self._ranking_model.predict(x), self._power)

    def predict(self, X: ArrayLike) -> Shaped[np.ndarray, " n"]:
        """The most likely true label of each sample of X (n, ...); raises as `predict_proba`."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def to_module(self) -> Any:
        """The network with the weights that it has learned, in its own framework.

        `predict_proba` is the mean of the networks of three folds; this is the first of them, which was then trained
        on all samples. A module of torch.nn, flax.nnx, Keras or equinox comes back as a copy with the learned weights,
        one of flax.linen as its variables, and a pair of functions as its parameters. The module returns logits: those
        of class i in column i, in the order of `classes_`.

        Raises:
            InputError: the model is not a network.
        """
        check_is_fitted(self, "_ranking_model")
        fitted = self._ranking_model.experts[0]
        if not isinstance(fitted, FittedNetwork):
            raise InputError(
                f"model is {self.model!r}, which is not a network, so there is no module with its weights. Pass a "
                "network as model, or predict by the classifier itself."
            )
        return fitted.to_module()


def review_probabilities(pred_probs: ArrayLike, labels: ArrayLike, trusted: ArrayLike | None = None) -> LabelReview:
    """Find wrong labels from probabilities that your own model predicts.

    Args:
        pred_probs: (n, K), out of sample: predicted by a model that was not trained on that sample, such as by
            `sklearn.model_selection.cross_val_predict(..., method="predict_proba")`. Columns in the order of the
            sorted labels.
        labels: (n,), as given.
        trusted: (n,) truth values: which labels are known to be right; None if none are known.

    Raises:
        InputError: pred_probs are no probabilities, or have another number of rows or columns than labels need; a mask
            that is not (n,) of truth values; fewer than ten labels in doubt.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.denoising import review_probabilities
        >>> p = np.repeat([[0.9, 0.1], [0.1, 0.9]], 50, axis=0)
        >>> labels = np.repeat(["cat", "dog"], 50)
        >>> labels[3] = "dog"
        >>> review = review_probabilities(p, labels)
        >>> int(review.probability_wrong.argmax()), str(review.suggested_label[3])
        (3, 'cat')
    """
    given = labels_of("labels", labels)
    classes = classes_of("labels", given)
    p = numeric("pred_probs", pred_probs).astype(np.float64)
    if p.ndim != 2 or p.shape[1] != len(classes):
        raise InputError(
            f"pred_probs has shape {p.shape}, and must be (n, {len(classes)}): one column for each of the labels "
            f"{listed(classes)}, in this order."
        )
    require_label_each("pred_probs", p, "labels", given)
    wrong = np.flatnonzero((p.min(1) < 0) | (np.abs(p.sum(1) - 1) > NORMALISED))
    if len(wrong):
        raise InputError(
            f"pred_probs has {len(wrong)} rows that are no probabilities (row {wrong[0]} sums to "
            f"{p[wrong[0]].sum():g}). Pass rows that are not negative and sum to 1."
        )
    mask = mask_of(trusted, len(p))
    require_doubt("labels", mask)
    codes = places("labels", given, classes)
    found = rank_probabilities(p, codes, mask)
    best = found.posterior.argmax(1)
    return LabelReview(
        found.probability_wrong,
        classes[best],
        classes[np.where(found.sure, best, codes)],
        found.expected_wrong,
        found.noise_matrix,
        classes,
    )
