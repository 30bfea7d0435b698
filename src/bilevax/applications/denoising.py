"""Wrong labels found by importance learning (Mehra and Hamm 2021, eq. 3 and appendix E.2).

Each sample i of a training set whose labels are in doubt has a weight w_i = (tanh u_i + 1) / 2. A model
trained by these weights should do well on a small set whose labels are known to be right:

    min over u of  f(v*(u)) = mean cross-entropy on the clean set
    v*(u) = argmin over v of  sum_i w_i CE_i(v) / sum_i w_i + l2/2 |weights of v|^2

Wrongly labelled samples end with small weights.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bilevax.applications.task import Task
from bilevax.batches import Epochs, Samples
from bilevax.linear_solve import ByOptimizer
from bilevax.models import Model, as_model, logits, mlp
from bilevax.problem import Batch, InputError, Problem, PyTree, listed, require_count
from bilevax.solve import Result, solve
from bilevax.solvers import Implicit, Penalty, base

STEPS = 100  # of a solve, by default: tuned on splits and noise of the digits other than those reported
L2 = 3e-3
TRAIN_STEPS, TRAIN_RATE = 200, 1e-2
AGREES, DISAGREES = 0.6, 0.4
WARM_ROUNDS = 2
LARGE_FEATURE = 10.0


@functools.cache
def penalty_solver() -> Penalty:
    """The Penalty solver with settings that suit denoising; the same object at each call."""
    return Penalty(
        upper_optimizer=optax.adam(0.3),
        lower_optimizer=optax.adam(1e-3),
        lower_steps=10,
        gamma=100.0,
        lam=1.0,
        nu=0.0,
        eps=1e-2,
        step_scale=1.0,
    )


@functools.cache
def approxgrad_solver() -> Implicit:
    """ApproxGrad (implicit, the linear system by Adam) with settings that suit denoising."""
    return Implicit(
        upper_optimizer=optax.adam(0.03),
        lower_optimizer=optax.adam(1e-3),
        lower_steps=10,
        linear_solve=ByOptimizer(optax.adam(1e-2), steps=10),
    )


def weights(u: Any) -> Any:
    """Importance weights (n,) in 0..1 from u: (tanh u + 1) / 2."""
    return (jnp.tanh(u) + 1) / 2


def _cross_entropy(model: Model, v: PyTree, x: Any, y: Any, key: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits(model, v, x, key), y)


def _weighted_loss(model: Model, l2: float, v: PyTree, x: Any, y: Any, weight: Any, key: Any) -> Any:
    size = sum(jnp.sum(p**2) for p in jax.tree.leaves(v) if jnp.ndim(p) > 1)  # biases and scales are left alone
    # A minibatch may hold weightless samples alone: 0 / 0.
    total = jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny ** 0.5)
    return jnp.sum(weight * _cross_entropy(model, v, x, y, key)) / total + l2 / 2 * size


@functools.cache
def _importance_problem(model: Model, l2: float) -> Problem:
    """The one problem object of a model: an equal one is not compiled again."""

    def upper_loss(u: Any, v: PyTree, clean: Samples) -> Any:
        x, y = clean.data
        return jnp.mean(_cross_entropy(model, v, x, y, None))

    def lower_loss(u: Any, v: PyTree, noisy: Samples, key: Any = None) -> Any:
        x, y = noisy.data
        return _weighted_loss(model, l2, v, x, y, weights(u[noisy.index]), key)

    return Problem(upper_loss, lower_loss)


@functools.cache
def _training_problem(model: Model, l2: float) -> Problem:
    """Plain weighted training as a lower problem; there is nothing at the upper level."""

    def lower_loss(u: Any, v: PyTree, data: Any, key: Any = None) -> Any:
        x, y, weight = data
        return _weighted_loss(model, l2, v, x, y, weight, key)

    return Problem(lambda u, v: jnp.sum(u), lower_loss)


@functools.partial(jax.jit, static_argnames=("model", "l2"))
def _train(model: Model, l2: float, x: Any, y: Any, weight: Any, key: Any) -> PyTree:
    """A model trained from its start on all samples at once: Adam, its rate falling to zero by a cosine."""
    init_key, train_key = jax.random.split(key)
    v, u = model.init(init_key, x[:1]), jnp.zeros(1)
    optimizer = optax.adam(optax.cosine_decay_schedule(TRAIN_RATE, TRAIN_STEPS))
    problem, batch = _training_problem(model, l2), Batch(lower=(x, y, weight))
    direction = base.descend(problem, u, batch)
    return base.lower_moves(direction, optimizer, optimizer.init(v), v, problem, batch, TRAIN_STEPS, train_key)[0]


@functools.partial(jax.jit, static_argnames=("model",))
def _probabilities(model: Model, v: PyTree, x: Any) -> Any:
    return jax.nn.softmax(logits(model, v, x))


def denoising_task(
    model: Model,
    X: Any,
    y: Any,
    X_clean: Any,
    y_clean: Any,
    *,
    key: Any,
    l2: float = L2,
    batch_size: int | None = None,
    clean_batch_size: int | None = None,
) -> Task:
    """Importance learning as a Task. u is (n,), one entry per sample of X; v the model's parameters.

    The start: a model is trained on the clean set, then twice more on the clean set together with the
    samples whose given label the model of before predicts. v starts there, and u at weight 0.6 where that
    model predicts the given label, else at 0.4. The paper's text starts u from the predicted probability
    of the given label instead. A small network's probabilities are near 0 or 1, where tanh is flat, so a hard
    sample that starts at 0.02 hardly comes back: on digits with 40% wrong labels, without the two
    retrainings, the suspects' precision ended at 0.48 from probabilities and at 0.93 from agreement.

    The clean samples are in the upper loss alone, as in the paper. A lower level that trained on them,
    too, would fit them whatever the weights, and leave the upper level less of a signal: in the same
    trial, precision was 0.92 and not 0.93. The l2 term is not in the paper's (3).

    Args:
        model: maps X to logits (n, classes).
        X, y: features (n, ...) and integer labels 0..classes-1 (n,), in doubt.
        X_clean, y_clean: the same, right.
        key: a jax.random key, for the model's initialisation and its dropout.
        l2: weight of half the squared norm of the model's matrices in the lower loss.
        batch_size, clean_batch_size: samples per lower and upper minibatch; None for all. With
            minibatches Adam goes on moving entries of u that are not in the batch, by momentum.

    Metrics: clean_loss and clean_accuracy of v; suspects, the number of weights below 1/2; mean_weight.

    Example:
        >>> import jax
        >>> from bilevax import solve
        >>> from bilevax.applications.denoising import denoising_task, penalty_solver
        >>> from bilevax.datasets import noisy_digits
        >>> from bilevax.models import softmax_regression
        >>> d = noisy_digits(seed=100, train=200, clean=100)
        >>> task = denoising_task(softmax_regression(10), d.X, d.y, d.X_clean, d.y_clean, key=jax.random.key(0))
        >>> result = solve(
        ...     penalty_solver(), task.problem, *task.start, task.batches, steps=5, key=jax.random.key(0)
        ... )
        >>> sorted(task.metrics(result.u, result.v))
        ['clean_accuracy', 'clean_loss', 'mean_weight', 'suspects']
    """
    dtype = jnp.result_type(float)
    x, x_clean = jnp.asarray(X, dtype), jnp.asarray(X_clean, dtype)
    labels, clean_labels = jnp.asarray(y), jnp.asarray(y_clean)
    every_x, every_label = jnp.concatenate([x, x_clean]), jnp.concatenate([labels, clean_labels])
    known = jnp.ones(len(clean_labels), dtype)

    def trained(trusted: Any) -> tuple[PyTree, Any]:
        v = _train(model, l2, every_x, every_label, jnp.concatenate([trusted.astype(dtype), known]), key)
        return v, jnp.argmax(_probabilities(model, v, x), axis=1) == labels

    v, agrees = trained(jnp.zeros(len(labels), bool))
    for _ in range(WARM_ROUNDS):
        v, agrees = trained(agrees)
    u = jnp.arctanh(2 * jnp.where(agrees, AGREES, DISAGREES).astype(dtype) - 1)

    def metrics(u: Any, v: PyTree) -> dict[str, float]:
        p = np.asarray(_probabilities(model, v, x_clean))
        truth, w = np.asarray(clean_labels), np.asarray(weights(u))
        of_truth = p[np.arange(len(truth)), truth]
        return {
            "clean_loss": float(-np.log(np.maximum(of_truth, np.finfo(p.dtype).tiny)).mean()),
            "clean_accuracy": float((p.argmax(1) == truth).mean()),
            "suspects": float((w < 0.5).sum()),
            "mean_weight": float(w.mean()),
        }

    batches = Epochs((x_clean, clean_labels), (x, labels), upper_size=clean_batch_size, lower_size=batch_size)
    return Task(_importance_problem(model, l2), (u, v), batches, metrics)


class _Classifier(ClassifierMixin, BaseEstimator):
    """What both classifiers share: how a model is made to fit the data, and prediction."""

    model: Any
    l2: float
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
        return np.asarray(_probabilities(self._model, self._params, x))

    def predict(self, X: Any) -> np.ndarray:
        """The most likely label of each sample, (n,)."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _start_fit(self, given: Any, x: np.ndarray, labels: np.ndarray) -> None:
        """Set what the training set tells: classes, features, model."""
        if not self.l2 >= 0:
            raise InputError(f"l2 is {self.l2}, and must be zero or positive.")
        classes = _classes("y", labels)
        if len(classes) < 2:
            raise InputError(
                f"y has one class only ({listed(classes)}). At least two are needed to learn from: "
                "check the labels, or add samples of the other classes."
            )
        if max(float(x.std(axis=0).max()), float(np.abs(x.mean(axis=0)).max())) > LARGE_FEATURE:
            warnings.warn(
                f"X has features up to {np.abs(x).max():g} in size. Training expects them to be of the order of 1: "
                "scale X, X_clean and what is predicted alike, say by one StandardScaler.",
                stacklevel=3,
            )
        model = as_model(self.model, len(classes))
        shape = jax.eval_shape(lambda x: logits(model, model.init(jax.random.key(0), x[:1]), x), x).shape
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
        l2: as for `DenoisingClassifier`.
        random_state: an integer; fixes the model's initialisation and its dropout.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: number of features.
    """

    def __init__(self, model: Any = mlp, l2: float = L2, random_state: int = 0):
        self.model = model
        self.l2 = l2
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X (n, ...) and labels y (n,).

        Raises:
            InputError: as for `DenoisingClassifier.fit`.
        """
        x, labels = _samples("X", X, "y", y)
        self._start_fit(X, x, labels)
        codes = np.searchsorted(self.classes_, labels)
        self._params = _train(self._model, self.l2, x, codes, np.ones(len(x), x.dtype), _key(self.random_state))
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
        l2: weight of half the squared norm of the model's matrices, in the lower loss and in training.
        random_state: an integer; the same one gives the same result on the same machine.
        callbacks: handed to `bilevax.solve`.
        resume: handed to `bilevax.solve`.

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
        l2: float = L2,
        random_state: int = 0,
        callbacks: Sequence[Any] = (),
        resume: Any = None,
    ):
        self.model = model
        self.solver = solver
        self.steps = steps
        self.batch_size = batch_size
        self.clean_batch_size = clean_batch_size
        self.l2 = l2
        self.random_state = random_state
        self.callbacks = callbacks
        self.resume = resume

    def fit(self, X: Any, y: Any, X_clean: Any, y_clean: Any) -> Self:
        """Learn the weights of X (n, ...) with labels y (n,), by X_clean (m, ...) with right labels y_clean (m,).

        NumPy arrays or pandas objects; labels of any one type.

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
            l2=self.l2,
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
        )
        u = np.asarray(self.result_.u)
        self.sample_weight_ = np.asarray(weights(u))
        self.suspicion_ = -2 * u
        self.suspects_ = self.suspicion_ > 0
        self._params = _train(
            self._model,
            self.l2,
            np.concatenate([x, x_clean]),
            np.concatenate([codes, clean_codes]),
            np.concatenate([self.sample_weight_, np.ones(len(x_clean), x.dtype)]),
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
    """X as floats of JAX's default precision, (n, ...)."""
    if hasattr(X, "columns") and hasattr(X, "select_dtypes"):
        others = X.columns.difference(X.select_dtypes(["number", "bool"]).columns, sort=False)
        if len(others):
            raise InputError(
                f"{name} has columns that hold no numbers: {listed(others)}. Encode them as numbers, say by "
                "scikit-learn's OneHotEncoder, or leave them out."
            )
    try:
        x = np.asarray(X, dtype=jnp.result_type(float))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} holds values that are no numbers ({str(error).rstrip('.')}). Encode them as numbers first."
        ) from error
    if x.ndim < 2 or 0 in x.shape:
        raise InputError(f"{name} has shape {x.shape}, and must have one row per sample and at least one of each.")
    bad = int(x.size - np.isfinite(x).sum())
    if bad:
        raise InputError(f"{name} holds {bad} NaN or infinite values of {x.size}. Fill them, or leave those rows out.")
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
