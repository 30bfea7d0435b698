"""Strengths of the lasso and of the group lasso, one or one per feature, chosen by gradient on held-out error.

    min over u of  mean squared error on samples held out,   v*(u) = argmin over v of
    |y - X v|^2 / (2 n) + sum over groups of strength_g sqrt(p_g) |v_g|,    p_g the features of a group

(Bertrand et al., ICML 2020; JMLR 2022; the group lasso of Yuan and Lin 2006.) Samples are held out fold by fold, each
with coefficients of its own, or once. The lower level is solved to the end in each step: the lasso by coordinate
descent on the host (celer where it is installed, else scikit-learn), the group lasso by accelerated proximal descent.

Everything is computed in units in which the least strength with all coefficients zero is 1, the largest eigenvalue of
the folds' Gram matrices is at most 1, and the held-out error is relative to the variance of the targets. So the units
of X and y change nothing, and the same compiled program serves all data of one shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from bilevax._checks import InputError, require_count
from bilevax.applications._inputs import numeric
from bilevax.applications._pickling import Picklable
from bilevax.applications.task import Task
from bilevax.applications.tuning.path import (
    DECADES,
    Folds,
    ProximalMap,
    Strengths,
    Units,
    fit_lasso,
    fold_masks,
    group_codes,
    group_lasso,
    held_out_error,
    in_units,
    on_device,
    on_host,
    penalty_of,
    residuals,
    strength_grid,
    strength_values,
)
from bilevax.linear_solve import CG
from bilevax.loop.result import Result
from bilevax.loop.solve import solve
from bilevax.problem import Batch, Problem
from bilevax.solvers import SparseHO

LOWEST, HIGHEST = -2 * DECADES * np.log(10), np.log(10)  # bounds of log strengths, relative to the largest that matters
STEPS = 150


class Sparse(NamedTuple):
    """A tuning job.

    Attributes:
        task: for `solve`; u holds log strengths, (1,) or (groups,), and v coefficients (folds, d), both in `units`.
        solver: of the kind that suits it, for so many steps.
        units: of u and v.
        grid: the best single strength of the grid from which u starts, as an array like u, and its held-out error.
    """

    task: Task
    solver: SparseHO
    units: Units
    grid: tuple[Any, float]

    def strengths(self, u: Any) -> np.ndarray:
        """The strengths that u stands for, in units of scikit-learn's alpha."""
        return self.units.strength * np.exp(np.asarray(u, np.float64))


@dataclass(frozen=True)
class _Exact:
    """v*(u): the coefficients of all folds (folds, d)."""

    penalty: Strengths

    def __call__(self, u: Any, batch: Batch, key: Any) -> Any:
        if self.penalty.members is not None:
            return group_lasso(self.penalty, u, batch.lower)[0]
        shape = jax.ShapeDtypeStruct(batch.lower.x_mean.shape, batch.lower.x_mean.dtype)
        return jax.pure_callback(on_host, shape, u, batch.lower)


def _training(u: Any, v: Any, data: Folds) -> Any:
    return jnp.sum(data.train * residuals(v, data) ** 2) / 2


def _within(u: Any) -> Any:
    return jnp.clip(u, LOWEST, HIGHEST)


def _problem(penalty: Strengths) -> Problem:
    return Problem(held_out_error, _training, regularizer=penalty, project_upper=_within, lower_start=_Exact(penalty))


@cache
def _solver(penalty: Strengths, steps: int) -> SparseHO:
    # The error is relative, so Adam's eps is, too: it keeps exact zeros where they are, and is below any other slope.
    adam = optax.adam(optax.cosine_decay_schedule(0.1, steps), eps=1e-15)
    return SparseHO(adam, ProximalMap(penalty), 1.0, 1, CG(200))


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

    u starts at the best of 100 single strengths, over three decades; with a strength for each group these are of
    features divided by their group's spread. An entry of u whose group is zero in all folds has no slope: its group
    stays out.

    Args:
        X, y: features (n, d) and targets (n,).
        held: boolean masks (n,), one for each fold: which samples are held out.
        groups: (d,) a label for each feature, those alike being one group; None for the lasso.
        per_group: a strength for each group (each feature, in the lasso) instead of one.
        steps: of the solver, whose rate falls to nothing by their end.

    Metrics: held_out_error, the mean squared error, and chosen, the share of non-zero coefficients.

    Raises:
        InputError: arrays that are not numbers, not finite, or of shapes that do not fit; a fold without samples to
            train on or to hold out; no feature that varies with y in any fold, so that all strengths are alike.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax import solve
        >>> from bilevax.applications.tuning import lasso_task
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(80, 20))
        >>> y = X[:, 0] - 2 * X[:, 1] + rng.normal(size=80)
        >>> job = lasso_task(X, y, [np.arange(80) % 4 == fold for fold in range(4)], steps=50)
        >>> task = job.task
        >>> result = solve(job.solver, task.problem, *task.start, task.batches, steps=50, key=jax.random.key(0))
        >>> bool(task.metrics(result.u, result.v)["held_out_error"] < 0.4 * y.var()), job.strengths(result.u).shape
        (True, (1,))
    """
    steps = require_count("lasso_task", "steps", steps)
    if not isinstance(per_group, bool | np.bool_):
        raise InputError(f"per_group is {per_group!r}, and must be True or False.")
    x, y, masks = _checked(X, y, held)
    index, sizes = group_codes(groups, x.shape[1])
    found = in_units(x, y, masks, index, sizes, bool(per_group))
    if found is None:
        raise InputError(
            "No feature varies together with y in the samples that any fold trains on, so the coefficients are zero "
            "whatever the strengths, and there is nothing to choose. Check y, which must not be constant, and X."
        )
    folds, units = found
    penalty = penalty_of(groups, index)
    best, first, near = strength_grid(penalty, folds)
    data = on_device(folds._replace(near=near))
    dtype, shape = data.x.dtype, len(sizes) if per_group else 1

    def metrics(u: Any, v: Any) -> dict[str, float]:
        return {"held_out_error": float(held_out_error(u, v, data)) * units.error, "chosen": float(jnp.mean(v != 0))}

    start = jnp.full(shape, first, dtype), jnp.zeros((len(masks), x.shape[1]), dtype)
    task = Task(_problem(penalty), start, Batch(data, data), metrics)
    u = jnp.full(shape, best, dtype)
    error = metrics(u, _Exact(penalty)(u, Batch(data, data), None))["held_out_error"]
    return Sparse(task, _solver(penalty, steps), units, (u, error))


class Chosen(NamedTuple):
    """What `choose_strengths` found.

    Attributes:
        strengths: (1,) or (groups,).
        coefficients, intercept: of all samples with them, (d,) and a number.
        held_out_error: the mean squared error on the held-out samples at the end.
        result: of the solve; its upper loss is the held-out error over the variance of all targets.
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
    """Solve a `lasso_task`, then fit all samples. The grid's best strength is kept where the solve found none better.

    Arguments and errors as there; `callbacks`, `resume` and `mesh` as for `bilevax.solve`.
    """
    job = lasso_task(X, y, held, groups=groups, per_group=per_group, steps=steps)
    task = job.task
    result = solve(
        job.solver,
        task.problem,
        *task.start,
        task.batches,
        steps=steps,
        key=jax.random.key(0),
        callbacks=callbacks,
        resume=resume,
        mesh=mesh,
    )
    u, error = result.u, task.metrics(result.u, result.v)["held_out_error"]
    if not error <= job.grid[1]:
        u, error = job.grid
    strengths = job.strengths(u)
    return Chosen(strengths, *fit_lasso(strengths, X, y, groups), error, result)


def _checked(X: Any, y: Any, held: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = strength_values(X, y)
    masks = numeric("held", held)
    if masks.ndim != 2 or masks.shape[1:] != y.shape:
        raise InputError(
            f"X has shape {x.shape}, y {y.shape} and held {masks.shape}. held needs a boolean mask (n,) for each fold."
        )
    if not np.isin(masks, (0, 1)).all():
        raise InputError("held holds values other than True and False. For each fold a boolean mask is needed.")
    masks = masks.astype(bool)
    for k, mask in enumerate(masks):
        if not 0 < mask.sum() < len(mask) - 1:
            raise InputError(
                f"Fold {k} holds out {mask.sum()} of {len(mask)} samples. At least one, and two to train on, are "
                "needed."
            )
    return x, y, masks


class TunedLasso(RegressorMixin, Picklable, BaseEstimator):
    """A lasso, or group lasso, whose strengths are chosen by gradient.

    What `LassoCV` finds on a grid for one strength is found here to any digit; and one strength for each feature or
    group, for which no grid would do. The units of y, and of X as a whole, change nothing but the units of the results;
    with one strength for all, features of one scale are assumed, as for any lasso. With the strengths found, the
    coefficients are fitted to all samples.

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
        history_: the solve's, an entry per step; its upper loss is the held-out error over the variance of y.
        n_iter_: steps taken.
        n_features_in_: number of features; with a DataFrame also `feature_names_in_`.

    Example:
        >>> import numpy as np
        >>> from bilevax.applications.tuning import TunedLasso
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
            InputError: as for `lasso_task`, so where y is constant; fewer than two samples for each fold.
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
        folds = require_count(type(self).__name__, "folds", self.folds)
        if not 2 <= folds <= n // 2:
            raise InputError(
                f"folds is {folds}, and there are {n} samples: "
                + (f"between 2 and {n // 2} are possible. " if n >= 4 else "at least 4 are needed. ")
                + "Or pass X_val and y_val."
            )
        return fold_masks(n, folds, check_random_state(self.random_state))

    def predict(self, X: Any) -> np.ndarray:
        """Targets (n,)."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_ + self.intercept_
