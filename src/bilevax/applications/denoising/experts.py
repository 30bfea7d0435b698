"""Classifiers that learn from soft labels and predict every sample without having seen it."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int, Shaped
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bilevax.applications.denoising.noise import floored
from bilevax.applications.denoising.softmax import FOLDS, SMALL, Softmax, splits

NEGLIGIBLE = 0.01  # a smaller probability of a class is no row of its own
MOST_OF_A_TREE = 10_000  # rows
WIDE, WIDEST = 300, 2500  # columns
STACK_ROUNDS = 100


class Fitted(Protocol):
    """A fitted expert."""

    @property
    def out_of_sample(self) -> Float[np.ndarray, "n classes"]:
        """The prediction of each sample by models that have not seen it."""
        ...

    def predict(self, X: Shaped[np.ndarray, "m ..."]) -> Float[np.ndarray, "m classes"]:
        """The probability of each class of other samples."""
        ...


class Expert(Protocol):
    """A classifier that learns from soft labels."""

    def fit(self, X: Shaped[np.ndarray, "n ..."], targets: Float[np.ndarray, "n classes"], seed: int) -> Fitted:
        """Fit it, and predict each sample from models that have not seen it."""
        ...


class FittedForest(NamedTuple):
    """A fitted `Forest`."""

    out_of_sample: Float[np.ndarray, "n classes"]
    forest: Any

    def predict(self, X: Shaped[np.ndarray, "m d"]) -> Float[np.ndarray, "m classes"]:
        """The probability of each class of other samples."""
        return _normalised(self.forest.predict(X))


@dataclass(frozen=True)
class Forest:
    """A forest that regresses soft labels, and predicts each sample from the trees that were grown without it.

    The variance summed over one-hot targets is Gini's impurity, so this is a forest for classification that takes soft
    labels. Its leaves hold several samples: with wrong labels, the probabilities of fully grown trees are too rough.

    Args:
        extra: random thresholds (Geurts et al. 2006) instead of the best ones (Breiman 2001).
        trees: number of trees.
        leaf: samples in a leaf, at least.
    """

    extra: bool
    trees: int = 100
    leaf: int = 5

    def fit(self, X: Shaped[np.ndarray, "n d"], targets: Float[np.ndarray, "n classes"], seed: int) -> FittedForest:
        """Fit the forest."""
        forest = grown_forest(self, X, targets, seed, "sqrt")
        return FittedForest(_normalised(forest.oob_prediction_), forest)


def grown_forest(
    settings: Any,
    X: Shaped[np.ndarray, "n d"],
    y: Float[np.ndarray, "n ..."],
    seed: int,
    max_features: float | str,
    weights: Float[np.ndarray, " n"] | None = None,
) -> Any:
    """A fitted forest of scikit-learn with predictions out of the bag.

    Args:
        settings: has `extra`, `trees` and `leaf`, as `Forest` has.
        X, y, seed: samples, targets, and the seed of the trees.
        max_features: as for scikit-learn's forests.
        weights: of the samples.
    """
    kind: Any = ExtraTreesRegressor if settings.extra else RandomForestRegressor
    forest = kind(
        settings.trees,
        bootstrap=True,
        oob_score=no_score,
        min_samples_leaf=settings.leaf,
        max_features=max_features,
        max_samples=None if len(X) <= MOST_OF_A_TREE else MOST_OF_A_TREE,
        random_state=seed,
        n_jobs=-1,
    ).fit(X, y, sample_weight=weights)
    forest.n_jobs = 1  # predictions are summed in the order in which threads end: their last bits would differ
    return forest


def no_score(*_: Any) -> float:
    """A score that costs nothing; scikit-learn predicts out of the bag only where a score is wanted."""
    return 0.0


def _normalised(p: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Predictions as probabilities; a sample without any gets the uniform distribution."""
    p = np.clip(p, 0, 1) + np.finfo(np.float64).tiny
    return p / p.sum(1, keepdims=True)


class FittedFolds(NamedTuple):
    """A fitted `Folds`: a classifier and its classes for each fold."""

    out_of_sample: Float[np.ndarray, "n classes"]
    models: list[tuple[Any, Int[np.ndarray, " k"]]]

    def predict(self, X: Shaped[np.ndarray, "m ..."]) -> Float[np.ndarray, "m classes"]:
        """The probability of each class of other samples, the mean over the folds."""
        found = np.zeros((len(X), self.out_of_sample.shape[1]))
        for model, classes in self.models:
            found[:, classes] += model.predict_proba(X) / len(self.models)
        return found


@dataclass(frozen=True, eq=False)
class Folds:
    """A scikit-learn classifier, fitted once for each fold of the samples without it.

    A sample with a soft label is a row for each class, weighted by its probability. A classifier whose `fit` takes no
    `sample_weight` learns from the most probable class instead.

    Args:
        classifier: with `predict_proba`; it is cloned.
        folds: number of folds.
    """

    classifier: Any
    folds: int = FOLDS

    def fit(self, X: Shaped[np.ndarray, "n ..."], targets: Float[np.ndarray, "n classes"], seed: int) -> FittedFolds:
        """Fit the classifier of each fold."""
        found, models = np.zeros(targets.shape), []
        # The threads of BLAS wait for each other longer than they compute where arrays are small.
        with threadpool_limits(1 if X.size < SMALL else None):
            for kept, left_out in splits(targets, self.folds, seed):
                model = _on_soft_labels(clone(self.classifier), X[kept], targets[kept])
                models.append(model)
                found[np.ix_(left_out, model[1])] = model[0].predict_proba(X[left_out])
        return FittedFolds(found, models)


def _on_soft_labels(
    model: Any, X: Shaped[np.ndarray, "n ..."], targets: Float[np.ndarray, "n classes"]
) -> tuple[Any, Int[np.ndarray, " k"]]:
    """A model fitted on soft labels, and the classes that it knows."""
    name, hardest = weight_argument(model), targets.argmax(1)
    rows, labels = np.nonzero(targets > NEGLIGIBLE)
    if len(np.unique(hardest if name is None else labels)) == 1:  # most classifiers need two classes
        return DummyClassifier().fit(X, hardest), hardest[:1]
    if name is None:
        return model.fit(X, hardest), np.unique(hardest)
    return model.fit(X[rows], labels, **{name: targets[rows, labels]}), np.unique(labels)


def weight_argument(model: Any) -> str | None:
    """The argument of `fit` for sample weights; None if there is none."""
    prefix = ""
    while hasattr(model, "steps"):  # a Pipeline
        name, model = model.steps[-1]
        prefix += f"{name}__"
    takes = "sample_weight" in inspect.signature(model.fit).parameters
    return f"{prefix}sample_weight" if takes else None


@dataclass(frozen=True)
class Linear:
    """Logistic regression on standardised columns.

    With up to `WIDE` columns the penalty is fixed. With more, such as those of embeddings, it would be far too weak: on
    CIFAR-10N's worst labels in 1,280 features, the average precision of wrong labels is .68 with 3 and .86 with the
    penalty that `Softmax` chooses.

    Args:
        penalty: half of it times the squared norm of the weights is added to the loss.
    """

    penalty: float = 3.0

    def fit(self, X: Shaped[np.ndarray, "n d"], targets: Float[np.ndarray, "n classes"], seed: int) -> Fitted:
        """Fit the classifier of each fold."""
        if WIDE < X.shape[1] <= WIDEST:
            return Softmax().fit(X, targets, seed)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / self.penalty, max_iter=100))
        return Folds(model).fit(X, targets, seed)


# Chosen on tables other than those reported: gradient boosting and more forests added nothing to these three.
TABLES: tuple[Expert, ...] = (Linear(), Forest(extra=True), Forest(extra=False))


class FittedStack(NamedTuple):
    """A fitted `stack`: the weighted mean of experts."""

    out_of_sample: Float[np.ndarray, "n classes"]
    weights: Float[np.ndarray, " experts"]
    experts: list[Fitted]

    def predict(self, X: Shaped[np.ndarray, "m ..."]) -> Float[np.ndarray, "m classes"]:
        """The probability of each class of other samples."""
        return np.tensordot(self.weights, np.stack([expert.predict(X) for expert in self.experts]), 1)


def stack(
    experts: Sequence[Expert],
    X: Shaped[np.ndarray, "n ..."],
    targets: Float[np.ndarray, "n classes"],
    seed: int,
    weights: Float[np.ndarray, " experts"] | None = None,
) -> FittedStack:
    """Fit experts, and weight them (linear stacking: Wolpert 1992, Breiman 1996).

    Args:
        experts: what to fit.
        X, targets: samples and their soft labels.
        seed: of the experts.
        weights: of the experts, summing to one; None for those of the largest likelihood of the targets, out of sample.
    """
    fitted = [expert.fit(X, targets, seed) for expert in experts]
    found = np.stack([expert.out_of_sample for expert in fitted])
    chosen = _likeliest_weights(found, targets) if weights is None else weights
    return FittedStack(np.tensordot(chosen, found, 1), chosen, fitted)


def _likeliest_weights(
    found: Float[np.ndarray, "experts n classes"], targets: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, " experts"]:
    likelihood = np.stack([np.sum(floored(p) * targets, axis=1) for p in found])
    weights = np.full(len(found), 1 / len(found))
    for _ in range(STACK_ROUNDS):
        share = weights[:, None] * likelihood
        weights = np.mean(share / share.sum(0), axis=1)
    return weights
