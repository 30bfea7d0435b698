"""Wrong labels found by importance learning, as a scikit-learn estimator.

Importance weights are learned by the bilevel problem of `denoising_task` (Mehra and Hamm 2021, eq. 3 and
appendix E.2); wrongly labelled samples end with small weights. A classifier trained with these weights then gives the
probability of each label, by which the samples are ranked.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, PRNGKeyArray, PyTree, Shaped
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bilevax._checks import InputError, listed, require_count
from bilevax.applications._inputs import (
    classes_of,
    columns_of,
    features,
    on_one_scale,
    places,
    require_alike,
    require_unit,
    sample_shape,
    samples,
)
from bilevax.applications._pickling import Picklable
from bilevax.applications._settings import require_batch, require_solver, require_training, seed_key
from bilevax.applications.denoising.importance import weights
from bilevax.applications.denoising.network import require_logits
from bilevax.applications.denoising.recipes import penalty_solver
from bilevax.applications.denoising.tasks import denoising_task
from bilevax.data.corruption import overlap
from bilevax.loop.result import Result
from bilevax.loop.solve import solve
from bilevax.nn.adapters import as_model
from bilevax.nn.model import Model
from bilevax.nn.networks import mlp
from bilevax.nn.training import Training, improbable, probabilities, train
from bilevax.solvers import base

STEPS = 100  # of a solve, by default: tuned on splits and noise of the digits other than those reported
LARGE_FEATURE = 10.0
FEW_VISITS = 5  # a weight that was updated less often is still near its start
FEW_CLEAN = 20  # trusted samples; fewer are too few to compare accuracies on
CONFIDENCE = 0.95


class _Classifier(ClassifierMixin, Picklable, BaseEstimator):
    """Base of both classifiers: builds a model for the data, and predicts."""

    model: Any
    training: Training
    classes_: Shaped[np.ndarray, " classes"]
    n_features_in_: int
    feature_names_in_: Shaped[np.ndarray, " d"]
    _model: Model
    _params: PyTree
    _shape: tuple[int, ...]
    _bytes: bool  # fit had images of bytes
    _unit: bool  # fit had values in 0..1

    def predict_proba(self, X: ArrayLike) -> Float[np.ndarray, "n classes"]:
        """The probability of each class, in the order of `classes_`, for samples X (n, ...).

        Raises:
            InputError: X has other features than fit had, or values that are not finite numbers; images of bytes
                where fit had floats outside 0..1, or the other way around.
        """
        check_is_fitted(self, "_params")
        x = features("X", X)
        if x.shape[1:] != self._shape:
            raise InputError(
                f"X has {sample_shape(x.shape[1:])} features, and the classifier was fitted on "
                f"{sample_shape(self._shape)}. Pass the same features as to fit."
            )
        if self._bytes:
            require_unit("X", x, "fit")
        elif x.dtype == np.uint8 and not self._unit:
            raise InputError(
                "X holds bytes, which are read as 0..1, and fit had floats outside of it. Pass floats on fit's scale."
            )
        names, columns = getattr(self, "feature_names_in_", None), columns_of(X)
        if names is not None and columns is not None and columns != list(names):
            raise InputError(f"X has columns {listed(columns)}, and fit had {listed(names)}. Pass them in that order.")
        return probabilities(self._model, self._params, x)

    def predict(self, X: ArrayLike) -> Shaped[np.ndarray, " n"]:
        """The most likely label of each sample of X (n, ...); raises as `predict_proba`."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _start_fit(self, X: Any, x: Shaped[np.ndarray, "n ..."], labels: Shaped[np.ndarray, " n"]) -> None:
        """Set the classes, features and model from the training set."""
        require_training(self.training)
        classes = classes_of("y", labels)
        if x.dtype != np.uint8 and max(float(x.std(axis=0).max()), float(np.abs(x.mean(axis=0)).max())) > LARGE_FEATURE:
            warnings.warn(
                f"X has features up to {np.abs(x).max():g} in size. Training expects them to be of the order of 1: "
                "scale X, X_clean and the samples to predict alike, for example by one StandardScaler.",
                stacklevel=3,
            )
        model = as_model(self.model, len(classes))
        require_logits(model, x, len(classes))
        self.classes_, self.n_features_in_, self._model, self._shape = classes, x.shape[1], model, x.shape[1:]
        self._bytes, self._unit = x.dtype == np.uint8, bool(x.min() >= 0 and x.max() <= 1)
        columns = columns_of(X)
        if columns is not None:
            self.feature_names_in_ = np.asarray(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_


class PlainClassifier(_Classifier):
    """The classifier that `ImportanceClassifier` trains last, but on the labels as given: a baseline.

    Args:
        model: as for `ImportanceClassifier`.
        training: as for `ImportanceClassifier`.
        random_state: an integer; fixes the model's initialisation and its dropout.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: number of features.
    """

    def __init__(self, model: Any = mlp, training: Training = Training(), random_state: int = 0):
        self.model = model
        self.training = training
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on X (n, ...) and labels y (n,).

        Raises:
            InputError: as for `ImportanceClassifier.fit`.
        """
        key = seed_key("random_state", self.random_state)
        x, labels = samples("X", X, "y", y)
        self._start_fit(X, x, labels)
        codes = places("y", labels, self.classes_)
        weight = np.ones(len(x), jnp.result_type(float))
        self._params = train(self._model, self.training, x, codes, weight, key)
        return self


class ImportanceClassifier(_Classifier):
    """Learns an importance weight for each sample by a few right labels, and trains a classifier with the weights.

    To find wrong labels, take `DenoisingClassifier`, which ranks them better, is faster, and needs no right ones. This
    is the method of Mehra and Hamm.

    The weights are learned by `denoising_task`; the classifier is then trained from the start on the
    clean set and on all samples by their weights. (Mehra and Hamm 2021, appendix D.1.1, train it on the clean set
    and the samples of weight above 0.9; on digits with 40% wrong labels that was about 0.3 points less accurate.)

    Features should be of the order of 1: scale X, X_clean and the samples to predict alike beforehand.

    Args:
        model: an (init, apply) pair, a flax.linen module, an equinox module, or a function from the number of
            classes to a `bilevax.nn.Model`; a network with one hidden layer of 64 by default.
        solver: any solver of bilevax; None for `penalty_solver(steps)`.
        steps: steps of the solver.
        batch_size: samples of X per step, None for all.
        clean_batch_size: samples of X_clean per step, None for all.
        training: how the models of the start and the final one are trained. For large data, set its batch_size, and
            its steps to a few passes through the data.
        random_state: an integer; the same one gives the same result on the same machine.
        callbacks, resume, mesh: passed to `bilevax.solve`.

    Attributes:
        sample_weight_: (n,) importance of each sample of X, 0..1.
        suspicion_: (n,) in 0..1, the probability that the given label is wrong: 1 minus the final classifier's
            probability of that label. Rank by it: it ranks wrong labels better than the weights from which the
            classifier was learned, because it combines the evidence of many samples.
        suspects_: (n,) bool, whether the final classifier predicts another label than the given one.
        label_belief_: (n,) the label that the final classifier predicts for each sample of X.
        result_: the Result of the solve.
        classes_: the labels, sorted.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> from bilevax.applications.denoising import ImportanceClassifier
        >>> from bilevax.data import noisy_digits
        >>> d = noisy_digits(seed=100, train=300, clean=100)
        >>> classifier = ImportanceClassifier(steps=20).fit(d.X, d.y, d.X_clean, d.y_clean)
        >>> wrong = d.y != d.y_true
        >>> bool(wrong[classifier.suspects_].mean() > 0.8)
        True
    """

    def __init__(
        self,
        model: Any = mlp,
        solver: base.Solver | None = None,
        steps: int = STEPS,
        batch_size: int | None = None,
        clean_batch_size: int | None = None,
        training: Training = Training(),
        random_state: int = 0,
        callbacks: Sequence[Any] = (),
        resume: Any = None,
        mesh: Any = None,
    ):
        self.model = model
        self.solver = solver
        self.steps = steps
        self.batch_size = batch_size
        self.clean_batch_size = clean_batch_size
        self.training = training
        self.random_state = random_state
        self.callbacks = callbacks
        self.resume = resume
        self.mesh = mesh

    def fit(self, X: ArrayLike, y: ArrayLike, X_clean: ArrayLike, y_clean: ArrayLike) -> Self:
        """Learn the weights of X (n, ...) with labels y (n,), by X_clean (m, ...) with right labels y_clean (m,).

        NumPy arrays or pandas objects; all labels of one type. Images of uint8, (n, h, w) or (n, h, w, 3), stay bytes
        in memory, and reach every model as floats in 0..1. An array of uint8 of rank 2 is a table, and its numbers
        are not scaled.

        Warns (UserWarning) of features that need scaling, trusted samples that are also in X, too few visits for the
        weights to move, more suspects than half of X, and a final classifier that is clearly less accurate than one
        trained on the trusted samples alone (by a sign test on two folds of X_clean).

        Raises:
            InputError: features that are not numbers or not finite; lengths or features that do not fit;
                one class only; a clean label that y lacks; fewer samples than a batch; a model with another
                number of logits.
            SolveError: a value was not finite during the solve; `.result` holds the last finite state.
        """
        owner = type(self).__name__
        steps = require_count(owner, "steps", self.steps)
        solver = penalty_solver(steps) if self.solver is None else self.solver
        require_solver(solver)
        key, solve_key = jax.random.split(seed_key("random_state", self.random_state))
        x, labels = samples("X", X, "y", y)
        x_clean, clean_labels = samples("X_clean", X_clean, "y_clean", y_clean)
        require_alike("X", X, x, "X_clean", X_clean, x_clean)
        x, x_clean = on_one_scale("X", x, "X_clean", x_clean)
        batch_size = require_batch(owner, "batch_size", self.batch_size, "X", len(x))
        clean_batch_size = require_batch(owner, "clean_batch_size", self.clean_batch_size, "X_clean", len(x_clean))
        self._start_fit(X, x, labels)
        codes = places("y", labels, self.classes_)
        clean_codes = places("y_clean", clean_labels, self.classes_)
        _warn_of_data(x, x_clean, steps, batch_size)
        task = denoising_task(
            self._model,
            x,
            codes,
            x_clean,
            clean_codes,
            key=key,
            training=self.training,
            batch_size=batch_size,
            clean_batch_size=clean_batch_size,
        )
        self.result_: Result = solve(
            solver,
            task.problem,
            *task.start,
            task.batches,
            steps=steps,
            key=solve_key,
            callbacks=self.callbacks,
            resume=self.resume,
            mesh=self.mesh,
        )
        self.sample_weight_ = np.asarray(weights(np.asarray(self.result_.u)))
        both = _Both(np.concatenate([x, x_clean]), np.concatenate([codes, clean_codes]), self.sample_weight_)
        self._params = both.trained(self._model, self.training, key)
        self.suspicion_, believed = improbable(self._model, self._params, x, codes)
        self.suspects_ = believed != codes
        self.label_belief_ = self.classes_[believed]
        self._warn_of_result(both, key)
        return self

    def _warn_of_result(self, both: "_Both", key: PRNGKeyArray) -> None:
        n = len(self.suspects_)
        if 2 * self.suspects_.sum() > n:
            warnings.warn(
                f"{self.suspects_.sum()} of {n} samples are suspects, more than half: the final classifier disagrees "
                "with most labels. Either it learned too little (see its accuracy on trusted samples, scale the "
                "features, raise the steps of `training`), or y_clean spells the labels in another way than y.",
                stacklevel=3,
            )
        accuracies = both.cross_checked(self._model, self.training, key)
        if accuracies is not None:
            warnings.warn(
                f"On trusted samples that it was not trained on, the final classifier is right on {accuracies[0]:.1%}, "
                f"and one trained on the trusted samples alone on {accuracies[1]:.1%}. The weights do not help here: "
                "either more steps are needed, or the wrong labels have a structure that weights cannot correct.",
                stacklevel=3,
            )


def _warn_of_data(
    x: Shaped[np.ndarray, "n ..."], x_clean: Shaped[np.ndarray, "m ..."], steps: int, batch_size: int | None
) -> None:
    shared = overlap(x, x_clean)
    if shared:
        warnings.warn(
            f"{shared} of the {len(x_clean)} samples of X_clean are also in X, where they confirm their own labels: "
            "leave them out of one of the two.",
            stacklevel=3,
        )
    visits = steps * (len(x) if batch_size is None else batch_size) / len(x)
    if visits < FEW_VISITS:
        warnings.warn(
            f"Each sample of X is visited {visits:.2g} times in {steps} steps, too few for its weight to move far "
            f"from its start. Take at least {math.ceil(FEW_VISITS * steps / visits)} steps, or larger batches.",
            stacklevel=3,
        )


class _Both(NamedTuple):
    """n samples in doubt followed by m trusted ones: samples, labels as indices, and the weights of the former."""

    x: Shaped[np.ndarray, "t ..."]
    y: Int[np.ndarray, " t"]
    weight: Float[np.ndarray, " n"]

    def trained(
        self,
        model: Model,
        training: Training,
        key: PRNGKeyArray,
        doubted: bool = True,
        trusted: Bool[np.ndarray, " m"] | None = None,
    ) -> PyTree:
        """Parameters trained with or without the samples in doubt, and on some or all of the trusted ones."""
        ones = np.ones(len(self.x) - len(self.weight)) if trusted is None else trusted
        weight = np.concatenate([self.weight if doubted else np.zeros_like(self.weight), ones])
        return train(model, training, self.x, self.y, weight.astype(self.weight.dtype), key)

    def cross_checked(self, model: Model, training: Training, key: PRNGKeyArray) -> tuple[float, float] | None:
        """The accuracies with and without the samples in doubt, if it is clearly better without; else None.

        Each trusted sample is left out of one of two trainings; a sign test compares the classifiers on the samples
        that only one of them predicts right. (The weights have seen all of them, in favour of the former.) All
        trainings are the same compiled program.
        """
        n = len(self.weight)
        x, y = self.x[n:], self.y[n:]
        if len(y) < FEW_CLEAN:
            return None
        half = np.random.default_rng(0).permutation(len(y)) % 2 == 0
        right = np.zeros((2, len(y)), bool)
        for left_out in (half, ~half):
            for row, doubted in enumerate((True, False)):
                v = self.trained(model, training, key, doubted, ~left_out)
                right[row, left_out] = (probabilities(model, v, x).argmax(1) == y)[left_out]
        with_them, without = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        if without <= with_them:
            return None
        p = stats.binomtest(without, with_them + without, alternative="greater").pvalue
        return (float(right[0].mean()), float(right[1].mean())) if p < 1 - CONFIDENCE else None
