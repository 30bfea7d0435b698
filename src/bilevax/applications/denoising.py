"""Wrong labels found by importance learning, scikit-learn's way.

Importance weights are learned by the bilevel problem of `importance.denoising_task` (Mehra and Hamm 2021, eq. 3 and
appendix E.2); wrongly labelled samples end with small weights.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bilevax.applications.importance import denoising_task, penalty_solver, weights
from bilevax.applications.training import Training, probabilities, require_finite, train
from bilevax.datasets import overlap
from bilevax.models import Model, as_model, initial, logits, mlp
from bilevax.problem import InputError, PyTree, listed, require_count
from bilevax.solve import Result, solve
from bilevax.solvers import base

STEPS = 100  # of a solve, by default: tuned on splits and noise of the digits other than those reported
LARGE_FEATURE = 10.0


class _Classifier(ClassifierMixin, BaseEstimator):
    """What both classifiers share: how a model is made to fit the data, and prediction."""

    model: Any
    training: Training
    classes_: np.ndarray
    n_features_in_: int
    feature_names_in_: np.ndarray
    _model: Model
    _params: PyTree
    _shape: tuple[int, ...]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, classes), in the order of `classes_`.

        Raises:
            InputError: X has other features than fit had, or values that are not finite numbers.
        """
        check_is_fitted(self, "_params")
        x = _features("X", X)
        if x.shape[1:] != self._shape:
            raise InputError(
                f"X has {_per_sample(x.shape[1:])} features, and the classifier was fitted on "
                f"{_per_sample(self._shape)}. Pass the same features as to fit."
            )
        names = getattr(self, "feature_names_in_", None)
        if names is not None and hasattr(X, "columns") and list(X.columns) != list(names):
            raise InputError(
                f"X has columns {listed(X.columns)}, and fit had {listed(names)}. Pass them in that order."
            )
        return probabilities(self._model, self._params, x)

    def predict(self, X: Any) -> np.ndarray:
        """The most likely label of each sample, (n,)."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _start_fit(self, given: Any, x: np.ndarray, labels: np.ndarray) -> None:
        """Set what the training set tells: classes, features, model."""
        if not isinstance(self.training, Training):
            raise InputError(f"training is {self.training!r}. Pass a bilevax.applications.training.Training.")
        classes = _classes("y", labels)
        if len(classes) < 2:
            raise InputError(
                f"y has one class only ({listed(classes)}). At least two are needed to learn from: "
                "check the labels, or add samples of the other classes."
            )
        if x.dtype != np.uint8 and max(float(x.std(axis=0).max()), float(np.abs(x.mean(axis=0)).max())) > LARGE_FEATURE:
            warnings.warn(
                f"X has features up to {np.abs(x).max():g} in size. Training expects them to be of the order of 1: "
                "scale X, X_clean and what is predicted alike, say by one StandardScaler.",
                stacklevel=3,
            )
        model = as_model(self.model, len(classes))
        shape = jax.eval_shape(lambda x: logits(model, initial(model, jax.random.key(0), x[:1]), x), x).shape
        if shape != (len(x), len(classes)):
            raise InputError(
                f"model gives logits of shape {shape} for {len(x)} samples of {len(classes)} classes, and must give "
                f"{(len(x), len(classes))}. Set its last layer's width to the number of classes."
            )
        self.classes_, self.n_features_in_, self._model, self._shape = classes, x.shape[1], model, x.shape[1:]
        if hasattr(given, "columns"):
            self.feature_names_in_ = np.asarray(given.columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_


class PlainClassifier(_Classifier):
    """The classifier that `DenoisingClassifier` ends with, trained on labels as given: the baseline.

    Args:
        model: as for `DenoisingClassifier`.
        training: as for `DenoisingClassifier`.
        random_state: an integer; fixes the model's initialisation and its dropout.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: number of features.
    """

    def __init__(self, model: Any = mlp, training: Training = Training(), random_state: int = 0):
        self.model = model
        self.training = training
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X (n, ...) and labels y (n,).

        Raises:
            InputError: as for `DenoisingClassifier.fit`.
        """
        x, labels = _samples("X", X, "y", y)
        self._start_fit(X, x, labels)
        codes = np.searchsorted(self.classes_, labels)
        weight = np.ones(len(x), jnp.result_type(float))
        self._params = train(self._model, self.training, x, codes, weight, _key(self.random_state))
        return self


class DenoisingClassifier(_Classifier):
    """Finds wrong labels with the help of a few right ones, and a classifier that is not led astray by them.

    The weights are learned by `denoising_task`; the classifier is then trained from the start on the
    clean set and on all samples by their weights. (Mehra and Hamm 2021, appendix D.1.1, train it on the clean set
    and the samples of weight above 0.9; on digits with 40% wrong labels that was about 0.3 points less accurate.)

    Features should be of the order of 1: scale X, X_clean and what is predicted alike beforehand.

    Args:
        model: an (init, apply) pair, a flax.linen module, an equinox module, or a function from the number of
            classes to a `bilevax.models.Model`; a network with one hidden layer of 64 by default.
        solver: any solver of bilevax; None for `penalty_solver()`.
        steps: how many steps it takes.
        batch_size: samples of X per step, None for all.
        clean_batch_size: samples of X_clean per step, None for all.
        training: how the models of the start and the final one are trained. Set its batch_size, and steps to some
            passes through the data, where all samples at once are too many.
        random_state: an integer; the same one gives the same result on the same machine.
        callbacks: handed to `bilevax.solve`.
        resume, mesh: handed to `bilevax.solve`.

    Attributes:
        sample_weight_: (n,) importance of each sample of X, 0..1.
        suspicion_: (n,) log-odds -log(w / (1 - w)) of the weights: higher is more suspect, 0 is weight 1/2.
        suspects_: (n,) bool, weights below 1/2. All start a little above or below, and go where the
            clean set's loss sends them, so 1/2 tells the two ends of the histogram apart.
        label_belief_: (n,) the label the final classifier predicts for each sample of X.
        result_: the solve's Result.
        classes_: the labels, sorted.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> from bilevax.applications.denoising import DenoisingClassifier
        >>> from bilevax.datasets import noisy_digits
        >>> d = noisy_digits(seed=100, train=300, clean=200)
        >>> classifier = DenoisingClassifier(steps=20).fit(d.X, d.y, d.X_clean, d.y_clean)
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

    def fit(self, X: Any, y: Any, X_clean: Any, y_clean: Any) -> Self:
        """Learn the weights of X (n, ...) with labels y (n,), by X_clean (m, ...) with right labels y_clean (m,).

        NumPy arrays or pandas objects; labels of any one type. Images of uint8, (n, h, w) or (n, h, w, 3), go to
        the model as they are; the networks of `bilevax.models` read them as 0..1.

        Raises:
            InputError: features that are not numbers or not finite; lengths or features that do not fit;
                one class only; a clean label that y lacks; fewer samples than a batch; a model with another
                number of logits.
            SolveError: a value was not finite in mid-run; `.result` holds the last finite state.
        """
        solver = penalty_solver() if self.solver is None else self.solver
        if not hasattr(solver, "step"):
            raise InputError(f"solver is {solver!r}, which is no solver. Pass one such as penalty_solver().")
        require_count(type(self).__name__, "steps", self.steps)
        x, labels = _samples("X", X, "y", y)
        x_clean, clean_labels = _samples("X_clean", X_clean, "y_clean", y_clean)
        _check_alike(X, x, X_clean, x_clean)
        shared = overlap(x, x_clean)
        if shared:
            warnings.warn(
                f"{shared} of the {len(x_clean)} samples of X_clean are in X, too. They speak for their own labels: "
                "leave them out of one of the two.",
                stacklevel=2,
            )
        for name, size, data, n in (
            ("batch_size", self.batch_size, "X", len(x)),
            ("clean_batch_size", self.clean_batch_size, "X_clean", len(x_clean)),
        ):
            if size is not None:
                require_count(type(self).__name__, name, size)
                if n < size:
                    raise InputError(
                        f"{data} has {n} samples, fewer than one batch of {size}. "
                        f"Lower {name}, or pass None to use all of them at each step."
                    )
        self._start_fit(X, x, labels)
        unknown = [c for c in _classes("y_clean", clean_labels) if c not in self.classes_]
        if unknown:
            raise InputError(
                f"y_clean has labels that y lacks: {listed(unknown)}. y has {listed(self.classes_)}. "
                "Spell them alike, or leave those samples out of the clean set."
            )
        codes, clean_codes = (np.searchsorted(self.classes_, a) for a in (labels, clean_labels))
        key, solve_key = jax.random.split(_key(self.random_state))
        task = denoising_task(
            self._model,
            x,
            codes,
            x_clean,
            clean_codes,
            key=key,
            training=self.training,
            batch_size=self.batch_size,
            clean_batch_size=self.clean_batch_size,
        )
        self.result_: Result = solve(
            solver,
            task.problem,
            *task.start,
            task.batches,
            steps=self.steps,
            key=solve_key,
            callbacks=self.callbacks,
            resume=self.resume,
            mesh=self.mesh,
        )
        u = np.asarray(self.result_.u)
        self.sample_weight_ = np.asarray(weights(u))
        self.suspicion_ = -2 * u
        self.suspects_ = self.suspicion_ > 0
        self._params = train(
            self._model,
            self.training,
            np.concatenate([x, x_clean]),
            np.concatenate([codes, clean_codes]),
            np.concatenate([self.sample_weight_, np.ones(len(x_clean), self.sample_weight_.dtype)]),
            key,
        )
        self.label_belief_ = self.predict(X)
        return self


def _key(random_state: Any) -> Any:
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer) or random_state < 0:
        raise InputError(f"random_state is {random_state!r}, and must be a non-negative integer.")
    return jax.random.key(int(random_state))


def _samples(x_name: str, X: Any, y_name: str, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x = _features(x_name, X)
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise InputError(f"{y_name} has shape {labels.shape}, and must have one label per sample: (n,).")
    if len(x) != len(labels):
        raise InputError(f"{x_name} has {len(x)} samples and {y_name} {len(labels)} labels. One label each is needed.")
    if labels.dtype == object:
        missing = sum(label is None or label != label for label in labels)
    else:
        missing = int((labels != labels).sum())
    if missing:
        raise InputError(f"{y_name} has {missing} missing labels. Leave those samples out, or label them first.")
    if np.issubdtype(labels.dtype, np.floating) and np.any(labels != np.round(labels)):
        found = labels[labels != np.round(labels)][0]
        raise InputError(f"{y_name} holds fractions (such as {found:g}): a quantity, not labels. Pass classes.")
    return x, labels


def _features(name: str, X: Any) -> np.ndarray:
    """X as floats of JAX's default precision, (n, ...); images (n, h, w, ...) of uint8 stay as they are."""
    if hasattr(X, "columns") and hasattr(X, "select_dtypes"):
        others = X.columns.difference(X.select_dtypes(["number", "bool"]).columns, sort=False)
        if len(others):
            raise InputError(
                f"{name} has columns that hold no numbers: {listed(others)}. Encode them as numbers, say by "
                "scikit-learn's OneHotEncoder, or leave them out."
            )
    images = getattr(X, "dtype", None) == np.uint8 and np.ndim(X) > 2
    try:
        x = np.asarray(X) if images else np.asarray(X, dtype=jnp.result_type(float))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} holds values that are no numbers ({str(error).rstrip('.')}). Encode them as numbers first."
        ) from error
    if x.ndim < 2 or 0 in x.shape:
        raise InputError(f"{name} has shape {x.shape}, and must have one row per sample and at least one of each.")
    require_finite(name, x)
    return x


def _check_alike(X: Any, x: np.ndarray, X_clean: Any, x_clean: np.ndarray) -> None:
    if x.shape[1:] != x_clean.shape[1:]:
        raise InputError(
            f"X_clean has {_per_sample(x_clean.shape[1:])} features and X has {_per_sample(x.shape[1:])}. "
            "Give both the same features."
        )
    if hasattr(X, "columns") and hasattr(X_clean, "columns") and list(X.columns) != list(X_clean.columns):
        raise InputError(
            f"X_clean has columns {listed(X_clean.columns)}, and X has {listed(X.columns)}. "
            "Give both the same columns in the same order."
        )


def _classes(name: str, labels: np.ndarray) -> np.ndarray:
    try:
        return np.unique(labels)
    except TypeError as error:
        raise InputError(
            f"{name} mixes labels of several types ({error}). Make them all strings, or all numbers."
        ) from error


def _per_sample(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
