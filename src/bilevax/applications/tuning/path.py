"""Lasso solutions at given strengths, and along a grid of them."""

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path
from sklearn.model_selection import KFold

from bilevax._checks import InputError
from bilevax.applications._inputs import numeric, table
from bilevax.applications._units import require_sizes, standard
from bilevax.penalties.base import block_factors

GRID = 100  # strengths tried for the start: the grid of scikit-learn's LassoCV
DECADES = 3.0
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


@dataclass(frozen=True)
class Strengths:
    """The sum over groups of exp(u_g) sqrt(p_g) |v_g|; equal for equal groups, so that programs are shared.

    Args:
        members: the group of each feature, 0, 1, ...; None where each feature is a group.
    """

    members: tuple[int, ...] | None

    def weights(self, u: Any, features: int) -> Any:
        """The strength of each feature or group, times the root of its size."""
        sizes = np.ones(features) if self.members is None else np.bincount(self.members)
        return jnp.broadcast_to(jnp.exp(u), sizes.shape) * np.sqrt(sizes).astype(u.dtype)

    def squares(self, v: Any) -> Any:
        """Squared norms (folds, groups) of v (folds, d)."""
        if self.members is None:
            return v**2
        return jax.ops.segment_sum(v.T**2, np.array(self.members), max(self.members) + 1).T

    def __call__(self, u: Any, v: Any, mu: Any) -> Any:
        """The smoothed penalty at u and v (folds, d)."""
        return jnp.sum(self.weights(u, v.shape[1]) * jnp.sqrt(self.squares(v) + mu**2))


@dataclass(frozen=True)
class ProximalMap:
    """The proximal map of a penalty: each group shortened by its weight, or zero."""

    penalty: Strengths

    def __call__(self, u: Any, v: Any, step: Any) -> Any:
        """The proximal map at v (folds, d) for a step."""
        kept = block_factors(self.penalty.squares(v), step * self.penalty.weights(u, v.shape[1]))
        return v * (kept if self.penalty.members is None else kept[:, np.array(self.penalty.members)])


def residuals(v: Any, data: Folds) -> Any:
    """Residuals (folds, n) of coefficients v (folds, d), on centred data."""
    return v @ data.x.T - (v * data.x_mean).sum(1)[:, None] - (data.y - data.y_mean[:, None])


def held_out_error(u: Any, v: Any, data: Folds) -> Any:
    """The mean over folds of the squared error on the samples held out."""
    return (data.held * residuals(v, data) ** 2).sum(1).mean()


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
        >>> from bilevax.applications.tuning import fit_lasso
        >>> coefficients, intercept = fit_lasso(np.array([0.5]), np.array([[-1.0], [1.0]]), np.array([1.0, 5.0]))
        >>> print(coefficients.round(6), round(intercept, 6))
        [1.5] 3.0
    """
    x, y = strength_values(X, y)
    index, sizes = group_codes(groups, x.shape[1])
    strength = numeric("strength", strength).astype(np.float64)
    if strength.shape not in {(1,), (len(sizes),)} or not (strength > 0).all():
        raise InputError(
            f"strength has shape {strength.shape}, and must be positive, one number or one for each of {len(sizes)}."
        )
    found = in_units(x, y, np.zeros((1, len(y)), bool), index, sizes, strength.size > 1)
    if found is None:
        return np.zeros(x.shape[1]), float(y.mean())
    folds, units = found
    # A strength below the least normal number would be zero in these units, and one so far above it infinite.
    u = np.clip(np.log(strength) - np.log(units.strength), -300, 300)
    if groups is None:
        v, settled = _lassos(u, folds)
    else:
        data = on_device(folds)
        v, settled = group_lasso(penalty_of(groups, index), jnp.asarray(u, data.x.dtype), data)
    if not settled:
        warnings.warn(
            f"fit_lasso: the coefficients were still moving after {MOST_ITERATIONS:,} iterations, and may be "
            "inexact. The strengths are very small for these data, or features are nearly the same: raise the "
            "strengths, or leave out features that repeat others.",
            stacklevel=2,
        )
    coefficients = np.asarray(v[0], np.float64) * units.coefficient
    return coefficients, float(y.mean() - x.mean(0) @ coefficients)


def penalty_of(groups: Any, index: np.ndarray) -> Strengths:
    """The penalty with one strength per feature, or per group."""
    return Strengths(None if groups is None else tuple(index.tolist()))


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


def on_host(u: Any, folds: Folds) -> np.ndarray:
    """The lasso of each fold, (folds, d), in the dtype of the data."""
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


def strength_grid(penalty: Strengths, folds: Folds) -> tuple[float, float, np.ndarray]:
    """The best of a grid of single log strengths; the best with a support, and the coefficients (folds, d) there."""
    grid = -np.linspace(0, DECADES * np.log(10), GRID)
    if penalty.members is None:
        v = np.stack([_fold_path(folds, k, np.exp(grid)) for k in range(len(folds.train))]).transpose(2, 0, 1)
        errors = np.array([held_out_error(None, a, folds) for a in v])
    else:
        data = on_device(folds)
        v, errors = (np.asarray(a) for a in _group_grid(penalty, jnp.asarray(grid, data.x.dtype), data))
    first = int(np.argmin(np.where((v != 0).any((1, 2)), errors, np.inf)))
    return float(grid[np.argmin(errors)]), float(grid[first]), v[first]


def _fold_path(folds: Folds, k: int, strengths: np.ndarray) -> np.ndarray:
    """A fold's coefficients (d, strengths), roughly."""
    rows = folds.train[k] > 0
    x, y = np.asfortranarray(folds.x[rows] - folds.x_mean[k]), folds.y[rows] - folds.y_mean[k]
    return _path(x, y, strengths, GRID_TOLERANCE * _explained(x, y))[0]


@partial(jax.jit, static_argnames=("penalty",))
def _group_grid(penalty: Strengths, grid: Any, data: Folds) -> Any:
    """The group lasso (strengths, folds, d), each from the coefficients of the last, and its held-out errors."""

    def one(v: Any, u: Any) -> tuple[Any, Any]:
        v, _ = _descended(ProximalMap(penalty), u[None], data, v)
        return v, (v, held_out_error(u, v, data))

    return jax.lax.scan(one, data.near, grid)[1]


@partial(jax.jit, static_argnames=("penalty",))
def group_lasso(penalty: Strengths, u: Any, data: Folds) -> tuple[Any, Any]:
    """The group lasso of each fold, (folds, d), and whether it is solved."""
    v, count = _descended(ProximalMap(penalty), u, data, data.near)
    return v, count < MOST_ITERATIONS


def _descended(proximal: Any, u: Any, data: Folds, start: Any) -> tuple[Any, Any]:
    """Accelerated proximal descent with restarts (Beck and Teboulle 2009; O'Donoghue and Candes 2015); its steps."""
    tolerance = TOLERANCE if start.dtype == jnp.float64 else 1e-5

    def slope(v: Any) -> Any:
        weighted = data.train * residuals(v, data)
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


def strength_values(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d) and y (n,) in double precision."""
    x, y = table("X", X), numeric("y", y).astype(np.float64)
    if y.shape != x.shape[:1]:
        raise InputError(f"X has shape {x.shape} and y {y.shape}. (n, d) and (n,) are needed.")
    require_sizes("y", y)
    return x, y


def group_codes(groups: Any, features: int) -> tuple[np.ndarray, np.ndarray]:
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


def in_units(
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


def on_device(folds: Folds) -> Folds:
    """With rows of no weight up to a round number, so that data of about one size share their programs."""
    n, dtype = len(folds.y), jnp.result_type(float)
    step = 1 << max(n.bit_length() - 4, 0)
    rows = (0, -n % step)
    x, y = np.pad(folds.x, (rows, (0, 0))), np.pad(folds.y, rows)
    train, held = (np.pad(a, ((0, 0), rows)) for a in (folds.train, folds.held))
    return Folds(*(jnp.asarray(a, dtype) for a in (x, y, folds.x_mean, folds.y_mean, train, held, folds.near)))
