"""Strengths of the lasso and of the group lasso, one or one per feature, chosen by gradient on held-out error.

    min over u of  mean squared error on samples held out,   v*(u) = argmin over v of
    |y - X v|^2 / (2 n) + sum over groups of exp(u_g) sqrt(p_g) |v_g|,    p_g the features of a group

(Bertrand et al., ICML 2020; JMLR 2022; the group lasso of Yuan and Lin 2006.) Samples are held out fold by fold, each
with coefficients of its own, or once. The lower level is solved to the end in each step: the lasso by coordinate
descent on the host (celer where it is installed, else scikit-learn), the group lasso by accelerated proximal descent.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Lasso
from sklearn.model_selection import KFold
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from bilevax.applications.task import Task
from bilevax.linear_solve import CG
from bilevax.problem import Batch, InputError, Problem, require_count
from bilevax.solve import Result, solve
from bilevax.solvers import SparseHO

GRID = 30  # strengths tried for the start, as many decades down as scikit-learn's LassoCV goes
DECADES = 3.0
STEPS = 150
TOLERANCE = 1e-6
MOST_ITERATIONS = 20_000


class Folds(NamedTuple):
    """Samples, once for each fold, features and targets less the means of its training samples.

    Attributes:
        x: (folds, n, d).
        y: (folds, n).
        train: (folds, n), one over their number for the fold's training samples, else 0.
        held: the same of the samples held out.
    """

    x: Any
    y: Any
    train: Any
    held: Any


class Sparse(NamedTuple):
    """A tuning job.

    Attributes:
        task: for `solve`; u holds log strengths, (1,) or (groups,), v coefficients (folds, d).
        solver: of the kind that suits it, for so many steps.
    """

    task: Task
    solver: SparseHO


def lasso_task(
    X: Any,
    y: Any,
    held: Sequence[Any],
    *,
    groups: Any = None,
    per_group: bool = False,
    steps: int = STEPS,
) -> Sparse:
    """The choice of a (group) lasso's strengths by the squared error on samples held out.

    u starts at the best of 30 single strengths, over three decades. An entry of u whose group is zero in all folds has
    no slope: its group stays out.

    Args:
        X, y: features (n, d) and targets (n,).
        held: boolean masks (n,), one for each fold: which samples are held out.
        groups: (d,) a label for each feature, those alike being one group; None for the lasso.
        per_group: a strength for each group (each feature, in the lasso) instead of one.
        steps: of the solver, whose rate falls to nothing by their end.

    Metrics: held_out_error, the mean squared error, and chosen, the share of non-zero coefficients.

    Raises:
        InputError: shapes that do not fit; values that are not finite; a fold without samples to train on or to hold
            out.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax import solve
        >>> from bilevax.applications.sparse import lasso_task
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(80, 20))
        >>> y = X[:, 0] - 2 * X[:, 1] + rng.normal(size=80)
        >>> job = lasso_task(X, y, [np.arange(80) % 4 == fold for fold in range(4)], steps=50)
        >>> task = job.task
        >>> result = solve(job.solver, task.problem, *task.start, task.batches, steps=50, key=jax.random.key(0))
        >>> bool(task.metrics(result.u, result.v)["held_out_error"] < 0.4 * y.var())
        True
    """
    require_count("lasso_task", "steps", steps)
    x, y, masks = _checked(X, y, held)
    index, sizes = _groups(groups, x.shape[1])
    folds = _folds(x, y, masks)
    highest = _highest(folds, index, sizes)
    low, high = np.log(highest) - 2 * DECADES * np.log(10), np.log(highest) + np.log(10)
    rate = 1 / max(float(np.linalg.norm(a.T @ (a * w[:, None]), 2)) for a, w in zip(folds.x, folds.train, strict=True))
    dtype = jnp.result_type(float)
    on_device = jax.tree.map(lambda a: jnp.asarray(a, dtype), folds)
    root, members = jnp.asarray(np.sqrt(sizes), dtype), None if groups is None else index

    def weights(u: Any) -> Any:
        return jnp.exp(jnp.broadcast_to(u, (len(sizes),))) * root

    def proximal(u: Any, v: Any, step: Any) -> Any:
        return _shrunk(v, step * weights(u), members)

    def residuals(v: Any, data: Folds) -> Any:
        return jnp.einsum("knd,kd->kn", data.x, v) - data.y

    def held_out(u: Any, v: Any, data: Folds) -> Any:
        return jnp.mean(jnp.sum(data.held * residuals(v, data) ** 2, 1))

    def training(u: Any, v: Any, data: Folds) -> Any:
        return jnp.sum(data.train * residuals(v, data) ** 2) / 2

    def exact(u: Any, batch: Batch, key: Any) -> Any:
        if groups is None:
            shape = jax.ShapeDtypeStruct(v.shape, v.dtype)
            return jax.pure_callback(lambda u: _lassos(u, folds).astype(shape.dtype), shape, u)
        return _descended(proximal, u, batch.lower, rate)

    problem = Problem(
        held_out,
        training,
        regularizer=lambda u, v, mu: jnp.sum(weights(u) * jnp.sqrt(_squares(v, members, len(sizes)) + mu**2)),
        project_upper=lambda u: jnp.clip(u, low, high),
        lower_start=exact,
    )
    v = jnp.zeros((len(masks), x.shape[1]), dtype)
    batch = Batch(on_device, on_device)
    grid = np.log(highest) - np.linspace(0, DECADES * np.log(10), GRID)
    look = jax.jit(lambda u: held_out(u, exact(u, batch, None), on_device))
    best = min(grid, key=lambda a: float(look(jnp.full(1, a, dtype))))
    u = jnp.full(len(sizes) if per_group else 1, best, dtype)

    def metrics(u: Any, v: Any) -> dict[str, float]:
        return {"held_out_error": float(held_out(u, v, on_device)), "chosen": float(jnp.mean(v != 0))}

    # Log strengths move alike in their first steps, whatever the units of the error.
    solver = SparseHO(optax.adam(optax.cosine_decay_schedule(0.1, steps)), proximal, rate, 1, CG(200))
    return Sparse(Task(problem, (u, v), batch, metrics), solver)


class Chosen(NamedTuple):
    """What `choose_strengths` found.

    Attributes:
        strengths: (1,) or (groups,).
        coefficients, intercept: of all samples with them, (d,) and a number.
        held_out_error: the mean squared error on the held-out samples at the end.
        result: of the solve.
    """

    strengths: np.ndarray
    coefficients: np.ndarray
    intercept: float
    held_out_error: float
    result: Result


def choose_strengths(
    X: Any,
    y: Any,
    held: Sequence[Any],
    *,
    groups: Any = None,
    per_group: bool = False,
    steps: int = STEPS,
    callbacks: Sequence[Any] = (),
    resume: Any = None,
    mesh: Any = None,
) -> Chosen:
    """Solve a `lasso_task`, then fit all samples.

    Arguments and errors as there; `callbacks`, `resume` and `mesh` as for `bilevax.solve`.
    """
    task, solver = lasso_task(X, y, held, groups=groups, per_group=per_group, steps=steps)
    result = solve(
        solver,
        task.problem,
        *task.start,
        task.batches,
        steps=steps,
        key=jax.random.key(0),
        callbacks=callbacks,
        resume=resume,
        mesh=mesh,
    )
    strengths = np.exp(np.asarray(result.u, np.float64))
    error = task.metrics(result.u, result.v)["held_out_error"]
    return Chosen(strengths, *fit_lasso(strengths, X, y, groups), error, result)


def fold_masks(n: int, folds: int, random_state: Any) -> list[np.ndarray]:
    """For each of so many shuffled folds which of n samples it holds out, boolean (n,)."""
    splits = KFold(folds, shuffle=True, random_state=random_state).split(np.zeros(n))
    return [np.isin(np.arange(n), aside) for _, aside in splits]


def fit_lasso(strength: Any, X: Any, y: Any, groups: Any = None) -> tuple[np.ndarray, float]:
    """Coefficients (d,) and intercept of the (group) lasso with given strengths, solved to the end.

    Args:
        strength: (1,) or one for each group, as `lasso_task` has it.
        X, y: features (n, d) and targets (n,).
        groups: (d,) a label for each feature; None for the lasso.

    Raises:
        InputError: shapes that do not fit; a strength that is not positive.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.sparse import fit_lasso
        >>> coefficients, intercept = fit_lasso(np.array([0.5]), np.array([[-1.0], [1.0]]), np.array([1.0, 5.0]))
        >>> print(coefficients.round(6), round(intercept, 6))
        [1.5] 3.0
    """
    x, y = np.asarray(X, np.float64), np.asarray(y, np.float64)
    index, sizes = _groups(groups, x.shape[1])
    strength = np.asarray(strength, np.float64)
    if strength.shape not in {(1,), (len(sizes),)} or not (strength > 0).all():
        raise InputError(
            f"strength has shape {strength.shape}, and must be positive, one number or one for each of {len(sizes)}."
        )
    everything = Folds(
        (x - x.mean(0))[None], (y - y.mean())[None], np.full((1, len(y)), 1 / len(y)), np.zeros((1, len(y)))
    )
    if groups is None:
        found = _lassos(np.log(strength), everything)[0]
    else:
        weights = jnp.asarray(strength * np.sqrt(sizes))
        rate = 1 / float(np.linalg.norm(everything.x[0].T @ everything.x[0] / len(y), 2))
        data = jax.tree.map(jnp.asarray, everything)
        v = _descended(lambda u, v, step: _shrunk(v, step * weights, index), None, data, rate)
        found = np.asarray(v[0], np.float64)
    return found, float(y.mean() - x.mean(0) @ found)


def _squares(v: Any, members: np.ndarray | None, groups: int) -> Any:
    """Squared norms (folds, groups) of v (folds, d); without members each entry is a group."""
    return v**2 if members is None else jax.ops.segment_sum(v.T**2, members, groups).T


def _shrunk(v: Any, by: Any, members: np.ndarray | None) -> Any:
    """Each group of v (folds, d) shortened by its entry of `by` (groups,), or zero."""
    size = jnp.sqrt(_squares(v, members, len(by)))
    kept = jnp.maximum(1 - by / jnp.where(size > 0, size, 1.0), 0.0)
    return v * (kept if members is None else kept[:, members])


def _lassos(u: Any, folds: Folds) -> np.ndarray:
    """The lasso of each fold, (folds, d): with columns divided by their strengths, these are all one."""
    strength = np.broadcast_to(np.exp(np.asarray(u, np.float64)), folds.x.shape[2:])
    found = np.empty((len(folds.x), folds.x.shape[2]))
    for k, (x, y, train) in enumerate(zip(folds.x, folds.y, folds.train, strict=True)):
        rows = train > 0
        # In units of the targets' spread, so that the solver's tolerance means the same for all of them.
        spread = float(y[rows].std()) or 1.0
        middle = float(np.median(strength))
        scaled = np.asfortranarray(x[rows] * (middle / strength))
        found[k] = _lasso(scaled, y[rows] / spread, middle / spread) * spread * (middle / strength)
    return found


def _lasso(x: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    celer: Any = importlib.import_module("celer") if importlib.util.find_spec("celer") is not None else None
    if hasattr(celer, "Lasso"):  # any folder of that name can be imported
        return celer.Lasso(alpha, fit_intercept=False, tol=TOLERANCE).fit(x, y).coef_
    return Lasso(alpha, fit_intercept=False, tol=TOLERANCE, max_iter=MOST_ITERATIONS).fit(x, y).coef_


def _descended(proximal: Any, u: Any, data: Folds, rate: float) -> Any:
    """Accelerated proximal descent with restarts (Beck and Teboulle 2009; O'Donoghue and Candes 2015)."""
    start = jnp.zeros((data.x.shape[0], data.x.shape[2]), data.x.dtype)
    tolerance = TOLERANCE if data.x.dtype == jnp.float64 else 1e-5

    def slope(v: Any) -> Any:
        return jnp.einsum("knd,kn->kd", data.x, data.train * (jnp.einsum("knd,kd->kn", data.x, v) - data.y))

    def unsettled(carry: Any) -> Any:
        v, _, _, moved, count = carry
        return (moved > tolerance * (jnp.linalg.norm(v) + tolerance)) & (count < MOST_ITERATIONS)

    def one(carry: Any) -> Any:
        v, ahead, t, _, count = carry
        new = proximal(u, ahead - rate * slope(ahead), rate)
        uphill = jnp.sum((ahead - new) * (new - v)) > 0
        t_new = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * t**2)) / 2)
        push = jnp.where(uphill, 0.0, (t - 1) / t_new)
        return new, new + push * (new - v), t_new, jnp.linalg.norm(new - v), count + 1

    one_ = jnp.ones((), data.x.dtype)
    return jax.lax.while_loop(unsettled, one, (start, start, one_, jnp.inf * one_, 0))[0]


def _checked(X: Any, y: Any, held: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y, masks = np.asarray(X, np.float64), np.asarray(y, np.float64), np.asarray(held, bool)
    if x.ndim != 2 or y.shape != x.shape[:1] or masks.ndim != 2 or masks.shape[1:] != y.shape:
        raise InputError(
            f"X has shape {x.shape}, y {y.shape} and held {masks.shape}. (n, d), (n,) and, for each fold, (n,) are "
            "needed."
        )
    bad = int(x.size + y.size - np.isfinite(x).sum() - np.isfinite(y).sum())
    if bad:
        raise InputError(f"X and y hold {bad} NaN or infinite values. Fill them, or leave those rows out.")
    for k, mask in enumerate(masks):
        if not 0 < mask.sum() < len(mask) - 1:
            raise InputError(
                f"Fold {k} holds out {mask.sum()} of {len(mask)} samples. At least one, and two to train on, are "
                "needed."
            )
    return x, y, masks


def _groups(groups: Any, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of each feature's group (d,), and the sizes of the groups."""
    if groups is None:
        return np.arange(features), np.ones(features)
    labels = np.asarray(groups)
    if labels.shape != (features,):
        raise InputError(f"groups has shape {labels.shape}, and X {features} features. One label for each is needed.")
    _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return index, sizes


def _folds(x: np.ndarray, y: np.ndarray, masks: np.ndarray) -> Folds:
    centred = [(x - x[~mask].mean(0), y - y[~mask].mean()) for mask in masks]
    shares = [((~mask) / (~mask).sum(), mask / mask.sum()) for mask in masks]
    return Folds(*(np.stack(part) for part in zip(*centred, strict=True)), *map(np.stack, zip(*shares, strict=True)))


def _highest(folds: Folds, index: np.ndarray, sizes: np.ndarray) -> float:
    """The least single strength with which every fold's coefficients are zero; 1 where they are zero anyway."""
    slopes = np.einsum("knd,kn->kd", folds.x, folds.train * folds.y)
    norms = np.sqrt([np.bincount(index, s**2, len(sizes)) for s in slopes])
    return float((norms / np.sqrt(sizes)).max()) or 1.0


class TunedLasso(RegressorMixin, BaseEstimator):
    """A lasso, or group lasso, whose strengths are chosen by gradient.

    What `LassoCV` finds on a grid for one strength is found here to any digit; and one strength for each feature or
    group, for which no grid would do. Features of one scale are assumed, as for any lasso. With the strengths found,
    the coefficients are fitted to all samples.

    Args:
        per_group: a strength for each feature (or group) instead of one.
        groups: (d,) a label for each feature: the group lasso; None for the lasso.
        folds: for cross-validation, where `fit` is given no validation samples.
        steps: of the solver.
        random_state: an integer, a NumPy RandomState or None; shuffles the samples into folds.
        callbacks, resume: passed to `bilevax.solve`.

    Attributes:
        coef_: (d,).
        intercept_: a number.
        alpha_: the strengths, (1,) or (groups,), in units of scikit-learn's alpha.
        support_: (d,) which coefficients are not zero.
        held_out_error_: the mean squared error on the held-out samples at the end.
        history_: the solve's, an entry per step.
        n_iter_: steps taken.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.sparse import TunedLasso
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(80, 20))
        >>> y = X[:, 0] - 2 * X[:, 1] + rng.normal(size=80)
        >>> model = TunedLasso(per_group=True).fit(X, y)
        >>> model.alpha_.shape, bool(model.support_[:2].all()), int(model.support_.sum()) < 12
        ((20,), True, True)
    """

    def __init__(
        self,
        per_group: bool = False,
        groups: Any = None,
        folds: int = 5,
        steps: int = STEPS,
        random_state: Any = 0,
        callbacks: Sequence[Any] = (),
        resume: Any = None,
    ):
        self.per_group = per_group
        self.groups = groups
        self.folds = folds
        self.steps = steps
        self.random_state = random_state
        self.callbacks = callbacks
        self.resume = resume

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> Self:
        """Tune and train on X (n, d) with targets y (n,); by X_val and y_val where given, else by folds of X.

        Raises:
            InputError: as for `lasso_task`; fewer samples than folds.
            ValueError: as scikit-learn's validation has it, for features that are not finite numbers, say.
        """
        require_count(type(self).__name__, "steps", self.steps)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=3)
        if (X_val is None) != (y_val is None):
            raise InputError("X_val and y_val go together: pass both, or neither.")
        if X_val is None:
            held = self._held_out(len(y))
        else:
            x_val, y_val = validate_data(self, X_val, y_val, dtype=np.float64, y_numeric=True, reset=False)
            held = [np.arange(len(y) + len(y_val)) >= len(y)]
            X, y = np.concatenate([X, x_val]), np.concatenate([y, y_val])
        found = choose_strengths(
            X,
            y,
            held,
            groups=self.groups,
            per_group=self.per_group,
            steps=self.steps,
            callbacks=self.callbacks,
            resume=self.resume,
        )
        self.alpha_, self.coef_, self.intercept_ = found.strengths, found.coefficients, found.intercept
        self.held_out_error_ = found.held_out_error
        self.history_, self.n_iter_ = found.result.history, found.result.steps
        self.support_ = self.coef_ != 0
        return self

    def _held_out(self, n: int) -> list[np.ndarray]:
        require_count(type(self).__name__, "folds", self.folds)
        if not 2 <= self.folds <= n // 2:
            raise InputError(
                f"folds is {self.folds}, and there are {n} samples: between 2 and {n // 2} are possible. "
                "Or pass X_val and y_val."
            )
        return fold_masks(n, self.folds, check_random_state(self.random_state))

    def predict(self, X: Any) -> np.ndarray:
        """Targets (n,)."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_ + self.intercept_
