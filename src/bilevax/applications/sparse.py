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

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path
from sklearn.model_selection import KFold
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from bilevax.applications._inputs import numeric
from bilevax.applications._pickling import Picklable
from bilevax.applications._units import require_sizes, standard
from bilevax.applications.task import Task
from bilevax.linear_solve import CG
from bilevax.problem import Batch, InputError, Problem, require_count
from bilevax.solve import Result, solve
from bilevax.solvers import SparseHO

GRID = 100  # strengths tried for the start: the grid of scikit-learn's LassoCV
DECADES = 3.0
LOWEST, HIGHEST = -2 * DECADES * np.log(10), np.log(10)  # bounds of log strengths, relative to the largest that matters
STEPS = 150
TOLERANCE = 1e-6
GRID_TOLERANCE = 1e-4
MOST_ITERATIONS = 20_000
LEAST_CORRELATION = 1e-10  # below it a correlation is rounding


class Folds(NamedTuple):
    """All samples, and for each fold its means and which samples it trains on. Rows of zero weight are padding.

    Attributes:
        x: (n, d).
        y: (n,).
        x_mean, y_mean: (folds, d) and (folds,), of the fold's training samples.
        train: (folds, n), one over their number for the fold's training samples, else 0.
        held: (folds, n), the same of the samples held out, times the units of the held-out error.
        near: (folds, d), coefficients near those sought, from which their search starts.
    """

    x: Any
    y: Any
    x_mean: Any
    y_mean: Any
    train: Any
    held: Any
    near: Any


class Units(NamedTuple):
    """What one unit of the computation is, in the user's units.

    Attributes:
        strength: (1,) or (groups,).
        coefficient: (d,).
        error: of the mean squared error.
    """

    strength: np.ndarray
    coefficient: np.ndarray
    error: float


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
class _Penalty:
    """The sum over groups of exp(u_g) sqrt(p_g) |v_g|; equal for equal groups, so that programs are shared.

    Args:
        members: the group of each feature, 0, 1, ...; None where each feature is a group.
    """

    members: tuple[int, ...] | None

    def weights(self, u: Any, features: int) -> Any:
        sizes = np.ones(features) if self.members is None else np.bincount(self.members)
        return jnp.broadcast_to(jnp.exp(u), sizes.shape) * np.sqrt(sizes).astype(u.dtype)

    def squares(self, v: Any) -> Any:
        """Squared norms (folds, groups) of v (folds, d)."""
        if self.members is None:
            return v**2
        return jax.ops.segment_sum(v.T**2, np.array(self.members), max(self.members) + 1).T

    def __call__(self, u: Any, v: Any, mu: Any) -> Any:
        return jnp.sum(self.weights(u, v.shape[1]) * jnp.sqrt(self.squares(v) + mu**2))


@dataclass(frozen=True)
class _Proximal:
    """The proximal map of a penalty: each group shortened by its weight, or zero."""

    penalty: _Penalty

    def __call__(self, u: Any, v: Any, step: Any) -> Any:
        size = jnp.sqrt(self.penalty.squares(v))
        kept = jnp.maximum(1 - step * self.penalty.weights(u, v.shape[1]) / jnp.where(size > 0, size, 1.0), 0.0)
        return v * (kept if self.penalty.members is None else kept[:, np.array(self.penalty.members)])


@dataclass(frozen=True)
class _Exact:
    """v*(u): the coefficients of all folds (folds, d)."""

    penalty: _Penalty

    def __call__(self, u: Any, batch: Batch, key: Any) -> Any:
        if self.penalty.members is not None:
            return _group_lasso(self.penalty, u, batch.lower)[0]
        shape = jax.ShapeDtypeStruct(batch.lower.x_mean.shape, batch.lower.x_mean.dtype)
        return jax.pure_callback(_on_host, shape, u, batch.lower)


def _residuals(v: Any, data: Folds) -> Any:
    return v @ data.x.T - (v * data.x_mean).sum(1)[:, None] - (data.y - data.y_mean[:, None])


def _held_out(u: Any, v: Any, data: Folds) -> Any:
    return (data.held * _residuals(v, data) ** 2).sum(1).mean()


def _training(u: Any, v: Any, data: Folds) -> Any:
    return jnp.sum(data.train * _residuals(v, data) ** 2) / 2


def _within(u: Any) -> Any:
    return jnp.clip(u, LOWEST, HIGHEST)


def _problem(penalty: _Penalty) -> Problem:
    return Problem(_held_out, _training, regularizer=penalty, project_upper=_within, lower_start=_Exact(penalty))


@cache
def _solver(penalty: _Penalty, steps: int) -> SparseHO:
    # The error is relative, so Adam's eps is, too: it keeps exact zeros where they are, and is below any other slope.
    adam = optax.adam(optax.cosine_decay_schedule(0.1, steps), eps=1e-15)
    return SparseHO(adam, _Proximal(penalty), 1.0, 1, CG(200))


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
        >>> from bilevax.applications.sparse import lasso_task
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
    index, sizes = _groups(groups, x.shape[1])
    found = _in_units(x, y, masks, index, sizes, bool(per_group))
    if found is None:
        raise InputError(
            "No feature varies together with y in the samples that any fold trains on, so the coefficients are zero "
            "whatever the strengths, and there is nothing to choose. Check y, which must not be constant, and X."
        )
    folds, units = found
    penalty = _penalty(groups, index)
    best, first, near = _grid(penalty, folds)
    data = _on_device(folds._replace(near=near))
    dtype, shape = data.x.dtype, len(sizes) if per_group else 1

    def metrics(u: Any, v: Any) -> dict[str, float]:
        return {"held_out_error": float(_held_out(u, v, data)) * units.error, "chosen": float(jnp.mean(v != 0))}

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
    x, y = _values(X, y)
    index, sizes = _groups(groups, x.shape[1])
    strength = numeric("strength", strength).astype(np.float64)
    if strength.shape not in {(1,), (len(sizes),)} or not (strength > 0).all():
        raise InputError(
            f"strength has shape {strength.shape}, and must be positive, one number or one for each of {len(sizes)}."
        )
    found = _in_units(x, y, np.zeros((1, len(y)), bool), index, sizes, strength.size > 1)
    if found is None:
        return np.zeros(x.shape[1]), float(y.mean())
    folds, units = found
    # A strength below the least normal number would be zero in these units, and one so far above it infinite.
    u = np.clip(np.log(strength) - np.log(units.strength), -300, 300)
    if groups is None:
        v, settled = _lassos(u, folds)
    else:
        data = _on_device(folds)
        v, settled = _group_lasso(_penalty(groups, index), jnp.asarray(u, data.x.dtype), data)
    if not settled:
        warnings.warn(
            f"fit_lasso: the coefficients were still moving after {MOST_ITERATIONS:,} iterations, and may be "
            "inexact. The strengths are very small for these data, or features are nearly the same: raise the "
            "strengths, or leave out features that repeat others.",
            stacklevel=2,
        )
    coefficients = np.asarray(v[0], np.float64) * units.coefficient
    return coefficients, float(y.mean() - x.mean(0) @ coefficients)


def _penalty(groups: Any, index: np.ndarray) -> _Penalty:
    return _Penalty(None if groups is None else tuple(index.tolist()))


def _lassos(u: Any, folds: Folds) -> tuple[np.ndarray, bool]:
    """The lasso of each fold, (folds, d), and whether all are solved; with columns divided by their strengths."""
    x, y, x_mean, y_mean, train, _, near = (np.asarray(a, np.float64) for a in folds)
    strength = np.broadcast_to(np.exp(np.asarray(u, np.float64)), x_mean.shape[1:])
    middle = float(np.median(strength))
    scale, solver, solved = middle / strength, _lasso_of_celer(), []
    for k in range(len(train)):
        rows = train[k] > 0
        x_k, y_k = np.asfortranarray((x[rows] - x_mean[k]) * scale), y[rows] - y_mean[k]
        tolerance = TOLERANCE * _explained(x_k, y_k)
        if solver is None:
            v, iterations = _path(x_k, y_k, np.array([middle]), tolerance, near[k] / scale)
            solved.append((v[:, 0] * scale, max(iterations) < MOST_ITERATIONS))
        else:
            solved.append((solver(middle, fit_intercept=False, tol=tolerance).fit(x_k, y_k).coef_ * scale, True))
    return np.stack([v for v, _ in solved]), all(settled for _, settled in solved)


def _on_host(u: Any, folds: Folds) -> np.ndarray:
    return _lassos(u, folds)[0].astype(folds.x.dtype)


def _lasso_of_celer() -> Any:
    if importlib.util.find_spec("celer") is None:
        return None
    return getattr(importlib.import_module("celer"), "Lasso", None)  # any folder of that name can be imported


def _path(x: np.ndarray, y: np.ndarray, alphas: np.ndarray, tolerance: float, start: Any = None) -> tuple[Any, Any]:
    """scikit-learn's lasso for falling strengths: coefficients (d, alphas), and the iterations of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fit_lasso warns, and names the strengths
        path: Any = enet_path  # its annotations are of scikit-learn's docstring
        _, v, _, iterations = path(
            x,
            y,
            l1_ratio=1.0,
            alphas=alphas,
            precompute=False,
            coef_init=start,
            return_n_iter=True,
            tol=tolerance,
            max_iter=MOST_ITERATIONS,
        )
    return v, iterations


def _explained(x: np.ndarray, y: np.ndarray) -> float:
    """The largest squared correlation of a feature with y: scikit-learn's tolerances are relative to |y|^2."""
    sizes = np.einsum("nd,nd->d", x, x) * (y @ y)
    return float(np.max((x.T @ y) ** 2 / np.where(sizes > 0, sizes, 1.0), initial=0.0)) or 1.0


def _grid(penalty: _Penalty, folds: Folds) -> tuple[float, float, np.ndarray]:
    """The best of a grid of single log strengths; the best with a support, and the coefficients (folds, d) there."""
    grid = -np.linspace(0, DECADES * np.log(10), GRID)
    if penalty.members is None:
        v = np.stack([_fold_path(folds, k, np.exp(grid)) for k in range(len(folds.train))]).transpose(2, 0, 1)
        errors = np.array([_held_out(None, a, folds) for a in v])
    else:
        data = _on_device(folds)
        v, errors = (np.asarray(a) for a in _group_grid(penalty, jnp.asarray(grid, data.x.dtype), data))
    first = int(np.argmin(np.where((v != 0).any((1, 2)), errors, np.inf)))
    return float(grid[np.argmin(errors)]), float(grid[first]), v[first]


def _fold_path(folds: Folds, k: int, strengths: np.ndarray) -> np.ndarray:
    """A fold's coefficients (d, strengths), roughly."""
    rows = folds.train[k] > 0
    x, y = np.asfortranarray(folds.x[rows] - folds.x_mean[k]), folds.y[rows] - folds.y_mean[k]
    return _path(x, y, strengths, GRID_TOLERANCE * _explained(x, y))[0]


@partial(jax.jit, static_argnames=("penalty",))
def _group_grid(penalty: _Penalty, grid: Any, data: Folds) -> Any:
    """The group lasso (strengths, folds, d), each from the coefficients of the last, and its held-out errors."""

    def one(v: Any, u: Any) -> tuple[Any, Any]:
        v, _ = _descended(_Proximal(penalty), u[None], data, v)
        return v, (v, _held_out(u, v, data))

    return jax.lax.scan(one, data.near, grid)[1]


@partial(jax.jit, static_argnames=("penalty",))
def _group_lasso(penalty: _Penalty, u: Any, data: Folds) -> tuple[Any, Any]:
    """The group lasso of each fold, (folds, d), and whether it is solved."""
    v, count = _descended(_Proximal(penalty), u, data, data.near)
    return v, count < MOST_ITERATIONS


def _descended(proximal: Any, u: Any, data: Folds, start: Any) -> tuple[Any, Any]:
    """Accelerated proximal descent with restarts (Beck and Teboulle 2009; O'Donoghue and Candes 2015); its steps."""
    tolerance = TOLERANCE if start.dtype == jnp.float64 else 1e-5

    def slope(v: Any) -> Any:
        weighted = data.train * _residuals(v, data)
        return weighted @ data.x - jnp.sum(weighted, 1, keepdims=True) * data.x_mean

    def unsettled(carry: Any) -> Any:
        v, _, _, moved, count = carry
        return (moved > tolerance * jnp.linalg.norm(v)) & (count < MOST_ITERATIONS)

    def one(carry: Any) -> Any:
        v, ahead, t, _, count = carry
        new = proximal(u, ahead - slope(ahead), 1.0)
        uphill = jnp.sum((ahead - new) * (new - v)) > 0
        t_new = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * t**2)) / 2)
        push = jnp.where(uphill, 0.0, (t - 1) / t_new)
        return new, new + push * (new - v), t_new, jnp.linalg.norm(new - v), count + 1

    one_ = jnp.ones((), start.dtype)
    v, *_, count = jax.lax.while_loop(unsettled, one, (start, start, one_, jnp.inf * one_, 0))
    return v, count


def _values(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d) and y (n,) in double precision."""
    x, y = numeric("X", X).astype(np.float64), numeric("y", y).astype(np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.size == 0:
        raise InputError(f"X has shape {x.shape} and y {y.shape}. (n, d) and (n,) are needed, neither of them empty.")
    require_sizes("X", x)
    require_sizes("y", y)
    return x, y


def _checked(X: Any, y: Any, held: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = _values(X, y)
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


def _groups(groups: Any, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of each feature's group (d,), and the sizes of the groups."""
    if groups is None:
        return np.arange(features), np.ones(features)
    try:
        labels = np.asarray(groups)
        missing = int((labels != labels).sum()) + sum(label is None for label in labels.flat)
        _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"groups is not a list of labels that can be sorted ({error}). Pass a label for each feature, all of them "
            "text or all of them numbers."
        ) from error
    if labels.shape != (features,):
        raise InputError(f"groups has shape {labels.shape}, and X {features} features. One label for each is needed.")
    if missing:
        raise InputError(f"groups lacks the labels of {missing} features. Give each a label, of its own if need be.")
    return index, sizes


def _in_units(
    x: np.ndarray, y: np.ndarray, masks: np.ndarray, index: np.ndarray, sizes: np.ndarray, per_group: bool
) -> tuple[Folds, Units] | None:
    """The folds in the units that the module's text describes; None where y varies with no feature."""
    x, x_unit = standard(x, index if per_group else np.zeros(x.shape[1], int))
    y, y_unit = (a[..., 0] for a in standard(y[:, None], np.zeros(1, int)))
    train = np.where(masks, 0, 1 / (~masks).sum(1, keepdims=True))
    held = masks / np.maximum(masks.sum(1, keepdims=True), 1)
    x_mean, y_mean = train @ x, train @ y
    slopes = (train * (y - y_mean[:, None])) @ x
    norms = np.sqrt([np.bincount(index, s**2, len(sizes)) for s in slopes])
    highest = float((norms / np.sqrt(sizes)).max())
    if not highest > LEAST_CORRELATION:
        return None
    # The Gram matrix of a fold's samples about their mean is at most that of all samples, but for their numbers.
    gram = (x @ x.T if len(x) < x.shape[1] else x.T @ x) / (~masks).sum(1).min()
    root = float(np.sqrt(eigh(gram, eigvals_only=True, subset_by_index=[len(gram) - 1, len(gram) - 1])[0]))
    unit = x_unit[np.unique(index, return_index=True)[1]] if per_group else x_unit[:1]
    units = Units(highest * y_unit * unit, highest / root**2 * (y_unit / x_unit), float(y_unit**2))
    to_y = root / highest
    nothing = np.zeros(x_mean.shape)
    return Folds(x / root, y * to_y, x_mean / root, y_mean * to_y, train, held / to_y**2, nothing), units


def _on_device(folds: Folds) -> Folds:
    """With rows of no weight up to a round number, so that data of about one size share their programs."""
    n, dtype = len(folds.y), jnp.result_type(float)
    step = 1 << max(n.bit_length() - 4, 0)
    rows = (0, -n % step)
    x, y = np.pad(folds.x, (rows, (0, 0))), np.pad(folds.y, rows)
    train, held = (np.pad(a, ((0, 0), rows)) for a in (folds.train, folds.held))
    return Folds(*(jnp.asarray(a, dtype) for a in (x, y, folds.x_mean, folds.y_mean, train, held, folds.near)))


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
