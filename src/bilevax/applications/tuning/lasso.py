"""Strengths of the lasso and the group lasso, one or one per feature, chosen by gradient on the held-out error.

    min over u of  mean squared error on samples held out,   v*(u) = argmin over v of
    |y - X v|^2 / (2 n) + sum over groups of strength_g sqrt(p_g) |v_g|,    p_g the features of a group

(Bertrand et al., ICML 2020; JMLR 2022; the group lasso of Yuan and Lin 2006.) Samples are held out once, or fold by
fold, where each fold has its own coefficients. Each step solves the lower level to convergence: the lasso by coordinate
descent on the host (celer if it is installed, else scikit-learn), the group lasso by accelerated proximal descent.

Everything is computed in units in which the least strength with all coefficients zero is 1, the largest eigenvalue of
the folds' Gram matrices is at most 1, and the held-out error is relative to the variance of the targets. Results
therefore do not depend on the units of X and y, and all data of one shape share one compiled program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_random_state

from bilevax._checks import InputError, require_count
from bilevax.applications._inputs import numeric, require_both, validated
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
    """A `lasso_task` with its solver.

    Attributes:
        task: for `solve`; u holds log strengths, (1,) or (groups,), and v coefficients (folds, d), both in `units`.
        solver: the solver for the task, with its number of steps.
        units: of u and v.
        grid: the best single strength of the grid from which u starts, as an array like u, and its held-out error.
    """

    task: Task
    solver: SparseHO
    units: Units
    grid: tuple[Float[Array, " strengths"], float]

    def strengths(self, u: Float[Array, " strengths"]) -> Float[np.ndarray, " strengths"]:
        """The strengths of u, in units of scikit-learn's alpha."""
        return self.units.strength * np.exp(np.asarray(u, np.float64))


@dataclass(frozen=True)
class _Exact:
    """v*(u): the coefficients of all folds."""

    penalty: Strengths

    def __call__(
        self, u: Float[Array, " strengths"], batch: Batch, key: PRNGKeyArray | None
    ) -> Float[Array, "folds d"]:
        if self.penalty.members is not None:
            return group_lasso(self.penalty, u, batch.lower)[0]
        shape = jax.ShapeDtypeStruct(batch.lower.x_mean.shape, batch.lower.x_mean.dtype)
        return jax.pure_callback(on_host, shape, u, batch.lower)


def _training(u: Float[Array, " strengths"], v: Float[Array, "folds d"], data: Folds) -> Float[Array, ""]:
    return jnp.sum(data.train * residuals(v, data) ** 2) / 2


def _within(u: Float[Array, " strengths"]) -> Float[Array, " strengths"]:
    return jnp.clip(u, LOWEST, HIGHEST)


def _problem(penalty: Strengths) -> Problem:
    return Problem(held_out_error, _training, regularizer=penalty, project_upper=_within, lower_start=_Exact(penalty))


@cache
def _solver(penalty: Strengths, steps: int) -> SparseHO:
    # The held-out error is relative, so this eps keeps exact zeros fixed and is below all other gradients.
    adam = optax.adam(optax.cosine_decay_schedule(0.1, steps), eps=1e-15)
    return SparseHO(adam, ProximalMap(penalty), 1.0, 1, CG(200))


def lasso_task(
    X: ArrayLike,
    y: ArrayLike,
    held: Sequence[ArrayLike],
    *,
    groups: ArrayLike | None = None,
    per_group: bool = False,
    steps: int = STEPS,
) -> Sparse:
    """The choice of a (group) lasso's strengths by the squared error on samples held out.

    u starts at the best of 100 single strengths over three decades, found on features that are divided by the spread
    of their group where each group has a strength. An entry of u whose group is zero in all folds has a zero gradient,
    so its group stays zero.

    Args:
        X, y: features (n, d) and targets (n,).
        held: boolean masks (n,), one for each fold: which samples are held out.
        groups: (d,) a label for each feature; features of equal label are one group. None for the lasso.
        per_group: a strength for each group (for each feature in the lasso) instead of one.
        steps: of the solver; its rate falls to zero over these steps.

    Metrics: held_out_error, the mean squared error, and chosen, the share of non-zero coefficients.

    Raises:
        InputError: arrays that are not numbers, not finite, or of shapes that do not fit; a fold without samples to
            train on or to hold out; no feature that varies with y in any fold, so that the strengths have no effect.

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
            "for all strengths. Check y, which must not be constant, and X."
        )
    folds, units = found
    penalty = penalty_of(groups, index)
    best, first, near = strength_grid(penalty, folds)
    data = on_device(folds._replace(near=near))
    dtype, shape = data.x.dtype, len(sizes) if per_group else 1

    def metrics(u: Float[Array, " strengths"], v: Float[Array, "folds d"]) -> dict[str, float]:
        return {"held_out_error": float(held_out_error(u, v, data)) * units.error, "chosen": float(jnp.mean(v != 0))}

    start = jnp.full(shape, first, dtype), jnp.zeros((len(masks), x.shape[1]), dtype)
    task = Task(_problem(penalty), start, Batch(data, data), metrics)
    u = jnp.full(shape, best, dtype)
    error = metrics(u, _Exact(penalty)(u, Batch(data, data), None))["held_out_error"]
    return Sparse(task, _solver(penalty, steps), units, (u, error))


class Chosen(NamedTuple):
    """The result of `choose_strengths`.

    Attributes:
        strengths: (1,) or (groups,).
        coefficients, intercept: fitted to all samples with these strengths.
        held_out_error: the mean squared error on the held-out samples at the end.
        result: of the solve; its upper loss is the held-out error over the variance of all targets.
    """

    strengths: Float[np.ndarray, " strengths"]
    coefficients: Float[np.ndarray, " d"]
    intercept: float
    held_out_error: float
    result: Result


def choose_strengths(
    X: ArrayLike,
    y: ArrayLike,
    held: Sequence[ArrayLike],
    *,
    groups: ArrayLike | None = None,
    per_group: bool = False,
    steps: int = STEPS,
    callbacks: Sequence[Any] = (),
    resume: Any = None,
    mesh: Any = None,
) -> Chosen:
    """Solve a `lasso_task`, then fit all samples. The best strength of the grid is kept if the solve found none better.

    Arguments and errors as for `lasso_task`; `callbacks`, `resume` and `mesh` as for `bilevax.solve`.
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


def _checked(
    X: ArrayLike, y: ArrayLike, held: Sequence[ArrayLike]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"], Bool[np.ndarray, "folds n"]]:
    x, targets = strength_values(X, y)
    masks = numeric("held", held)
    if masks.ndim != 2 or masks.shape[1:] != targets.shape:
        raise InputError(
            f"X has shape {x.shape}, y {targets.shape} and held {masks.shape}. "
            "held needs a boolean mask (n,) for each fold."
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
    return x, targets, masks


class TunedLasso(RegressorMixin, Picklable, BaseEstimator):
    """A lasso, or group lasso, whose strengths are chosen by gradient.

    One strength is found to any precision, where `LassoCV` is limited to a grid; one strength for each feature or group
    is found as well, which no grid could search. The units of y, and of X as a whole, change only the units of the
    results; with one strength for all, features should be on one scale, as for any lasso. The coefficients are then
    fitted to all samples.

    Args:
        per_group: a strength for each feature (or group) instead of one.
        groups: (d,) a label for each feature: the group lasso; None for the lasso.
        folds: for cross-validation, if `fit` is called without validation samples.
        steps: of the solver.
        random_state: an integer, a NumPy RandomState or None; shuffles the samples into folds.
        callbacks, resume: passed to `bilevax.solve`.

    Attributes:
        coef_: (d,).
        intercept_: a number.
        alpha_: the strengths, (1,) or (groups,), in units of scikit-learn's alpha.
        support_: (d,) which coefficients are not zero.
        held_out_error_: the mean squared error on the held-out samples at the end.
        history_: of the solve, an entry per step; its upper loss is the held-out error over the variance of y.
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
        groups: ArrayLike | None = None,
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

    def fit(self, X: ArrayLike, y: ArrayLike, X_val: ArrayLike | None = None, y_val: ArrayLike | None = None) -> Self:
        """Tune and train on X (n, d) with targets y (n,); tune on X_val and y_val if passed, else on folds of X.

        Raises:
            InputError: as for `lasso_task`, for example for a constant y; fewer than two samples for each fold.
            ValueError: as scikit-learn's `validate_data`, for example for features that are not finite numbers.
        """
        require_count(type(self).__name__, "steps", self.steps)
        x, targets = validated(self, X, y, y_numeric=True, ensure_min_samples=3)
        require_both("X_val", X_val, "y_val", y_val)
        if X_val is None or y_val is None:
            held = self._held_out(len(targets))
        else:
            x_val, val_targets = validated(self, X_val, y_val, y_numeric=True, reset=False)
            held = [np.arange(len(targets) + len(val_targets)) >= len(targets)]
            x, targets = np.concatenate([x, x_val]), np.concatenate([targets, val_targets])
        found = choose_strengths(
            x,
            targets,
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

    def _held_out(self, n: int) -> list[Bool[np.ndarray, " n"]]:
        folds = require_count(type(self).__name__, "folds", self.folds)
        if not 2 <= folds <= n // 2:
            raise InputError(
                f"folds is {folds}, and there are {n} samples: "
                + (f"between 2 and {n // 2} are possible. " if n >= 4 else "at least 4 are needed. ")
                + "Or pass X_val and y_val."
            )
        return fold_masks(n, folds, check_random_state(self.random_state))

    def predict(self, X: ArrayLike) -> Float[np.ndarray, " n"]:
        """The predicted targets of samples X (n, d)."""
        check_is_fitted(self)
        return validated(self, X, reset=False) @ self.coef_ + self.intercept_
