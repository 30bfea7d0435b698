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
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path
from sklearn.model_selection import KFold

from bilevax._checks import InputError
from bilevax.applications._inputs import numeric, table
from bilevax.applications._units import require_sizes, standard
from bilevax.penalties.base import block_factors

Real = Array | np.ndarray  # the host's functions take NumPy, compiled ones JAX
GRID = 100  # strengths tried for the start: the grid of scikit-learn's LassoCV
DECADES = 3.0
TOLERANCE = 1e-6
GRID_TOLERANCE = 1e-4
MOST_ITERATIONS = 20_000
LEAST_CORRELATION = 1e-10  # a smaller correlation is rounding error


class Folds(NamedTuple):
    """All samples, and the training and held-out samples of each fold. Rows of zero weight are padding.

    Attributes:
        x, y: features and targets.
        x_mean, y_mean: means of the training samples of each fold.
        train: one over the number of training samples of the fold for each of them, else 0.
        held: the same for the samples held out, times the unit of the held-out error.
        near: coefficients from which the search for the solution starts.
    """

    x: Float[Real, "n d"]
    y: Float[Real, " n"]
    x_mean: Float[Real, "folds d"]
    y_mean: Float[Real, " folds"]
    train: Float[Real, "folds n"]
    held: Float[Real, "folds n"]
    near: Float[Real, "folds d"]


class Units(NamedTuple):
    """The units of the computation in the user's units.

    Attributes:
        strength: (1,) or (groups,).
        coefficient: of each feature.
        error: of the mean squared error.
    """

    strength: Float[np.ndarray, " strengths"]
    coefficient: Float[np.ndarray, " d"]
    error: float


@dataclass(frozen=True)
class Strengths:
    """The sum over groups of exp(u_g) sqrt(p_g) |v_g|; equal for equal groups, so that programs are shared.

    Args:
        members: the group of each feature, 0, 1, ...; None where each feature is a group.
    """

    members: tuple[int, ...] | None

    def weights(self, u: Float[Array, " strengths"], features: int) -> Float[Array, " groups"]:
        """The strength of each feature or group, times the root of its size."""
        sizes = np.ones(features) if self.members is None else np.bincount(self.members)
        return jnp.broadcast_to(jnp.exp(u), sizes.shape) * np.sqrt(sizes).astype(u.dtype)

    def squares(self, v: Float[Array, "folds d"]) -> Float[Array, "folds groups"]:
        """The squared norm of each group."""
        if self.members is None:
            return v**2
        return jax.ops.segment_sum(v.T**2, np.array(self.members), max(self.members) + 1).T

    def __call__(
        self, u: Float[Array, " strengths"], v: Float[Array, "folds d"], mu: float | Float[Array, ""]
    ) -> Float[Array, ""]:
        """The penalty at (u, v), smoothed by mu."""
        return jnp.sum(self.weights(u, v.shape[1]) * jnp.sqrt(self.squares(v) + mu**2))


@dataclass(frozen=True)
class ProximalMap:
    """The proximal map of a penalty, which shortens each group by its weight, at most to zero."""

    penalty: Strengths

    def __call__(
        self, u: Float[Array, " strengths"], v: Float[Array, "folds d"], step: float | Float[Array, ""]
    ) -> Float[Array, "folds d"]:
        """The proximal map at v for a step size."""
        kept = block_factors(self.penalty.squares(v), step * self.penalty.weights(u, v.shape[1]))
        return v * (kept if self.penalty.members is None else kept[:, np.array(self.penalty.members)])


def residuals(v: Float[Real, "folds d"], data: Folds) -> Any:
    """Residuals (folds, n) of coefficients v on centred data."""
    return v @ data.x.T - (v * data.x_mean).sum(1)[:, None] - (data.y - data.y_mean[:, None])


def held_out_error(u: Float[Real, " strengths"] | None, v: Float[Real, "folds d"], data: Folds) -> Any:
    """The mean over folds of the squared error on the samples held out; u has no direct effect."""
    return (data.held * residuals(v, data) ** 2).sum(1).mean()


def fold_masks(n: int, folds: int, random_state: int | np.random.RandomState) -> list[Bool[np.ndarray, " n"]]:
    """The samples that each of the shuffled folds holds out."""
    splits = KFold(folds, shuffle=True, random_state=random_state).split(np.zeros(n))
    return [np.isin(np.arange(n), aside) for _, aside in splits]


def fit_lasso(
    strength: ArrayLike, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None
) -> tuple[Float[np.ndarray, " d"], float]:
    """Coefficients and intercept of the (group) lasso with given strengths, solved to convergence.

    Args:
        strength: (1,) or one for each group, as for `lasso_task`.
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
    x, targets = strength_values(X, y)
    index, sizes = group_codes(groups, x.shape[1])
    strengths = numeric("strength", strength).astype(np.float64)
    if strengths.shape not in {(1,), (len(sizes),)} or not (strengths > 0).all():
        raise InputError(
            f"strength has shape {strengths.shape}, and must be positive, one number or one for each of {len(sizes)}."
        )
    found = in_units(x, targets, np.zeros((1, len(targets)), bool), index, sizes, strengths.size > 1)
    if found is None:
        return np.zeros(x.shape[1]), float(targets.mean())
    folds, units = found
    # Without bounds, very small and very large strengths would underflow to zero and overflow in these units.
    u = np.clip(np.log(strengths) - np.log(units.strength), -300, 300)
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
    return coefficients, float(targets.mean() - x.mean(0) @ coefficients)


def penalty_of(groups: ArrayLike | None, index: Int[np.ndarray, " d"]) -> Strengths:
    """The penalty with one strength per feature, or per group."""
    return Strengths(None if groups is None else tuple(index.tolist()))


def _lassos(u: Float[Real, " strengths"], folds: Folds) -> tuple[Float[np.ndarray, "folds d"], bool]:
    """The lasso of each fold, and whether all are solved. Columns are divided by their strengths."""
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


def on_host(u: Float[Real, " strengths"], folds: Folds) -> Float[np.ndarray, "folds d"]:
    """The lasso of each fold, in the dtype of the data."""
    return _lassos(u, folds)[0].astype(folds.x.dtype)


def _lasso_of_celer() -> Any:
    if importlib.util.find_spec("celer") is None:
        return None
    return getattr(importlib.import_module("celer"), "Lasso", None)  # a folder named celer imports without one


def _path(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    alphas: Float[np.ndarray, " alphas"],
    tolerance: float,
    start: Float[np.ndarray, " d"] | None = None,
) -> tuple[Float[np.ndarray, "d alphas"], list[int]]:
    """scikit-learn's lasso for falling strengths: coefficients, and the iterations of each strength."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fit_lasso warns, and names the strengths
        path: Any = enet_path  # its annotations are inferred from default values
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


def _explained(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"]) -> float:
    """The largest squared correlation of a feature with y, since scikit-learn's tolerances are relative to |y|^2."""
    sizes = np.einsum("nd,nd->d", x, x) * (y @ y)
    return float(np.max((x.T @ y) ** 2 / np.where(sizes > 0, sizes, 1.0), initial=0.0)) or 1.0


def strength_grid(penalty: Strengths, folds: Folds) -> tuple[float, float, Float[np.ndarray, "folds d"]]:
    """The best single log strength of a grid; the best one with non-zero coefficients, and these coefficients."""
    grid = -np.linspace(0, DECADES * np.log(10), GRID)
    if penalty.members is None:
        v = np.stack([_fold_path(folds, k, np.exp(grid)) for k in range(len(folds.train))]).transpose(2, 0, 1)
        errors = np.array([held_out_error(None, a, folds) for a in v])
    else:
        data = on_device(folds)
        v, errors = (np.asarray(a) for a in _group_grid(penalty, jnp.asarray(grid, data.x.dtype), data))
    first = int(np.argmin(np.where((v != 0).any((1, 2)), errors, np.inf)))
    return float(grid[np.argmin(errors)]), float(grid[first]), v[first]


def _fold_path(folds: Folds, k: int, strengths: Float[np.ndarray, " alphas"]) -> Float[np.ndarray, "d alphas"]:
    """The coefficients of fold k to a low tolerance."""
    rows = folds.train[k] > 0
    x, y = np.asfortranarray(folds.x[rows] - folds.x_mean[k]), np.asarray(folds.y[rows] - folds.y_mean[k])
    return _path(x, y, strengths, GRID_TOLERANCE * _explained(x, y))[0]


@partial(jax.jit, static_argnames=("penalty",))
def _group_grid(
    penalty: Strengths, grid: Float[Array, " alphas"], data: Folds
) -> tuple[Float[Array, "alphas folds d"], Float[Array, " alphas"]]:
    """The group lasso for each strength, started from the previous one, and its held-out errors."""

    def one(v: Float[Array, "folds d"], u: Float[Array, ""]) -> tuple[Any, Any]:
        v, _ = _descended(ProximalMap(penalty), u[None], data, v)
        return v, (v, held_out_error(u, v, data))

    return jax.lax.scan(one, data.near, grid)[1]


@partial(jax.jit, static_argnames=("penalty",))
def group_lasso(
    penalty: Strengths, u: Float[Array, " strengths"], data: Folds
) -> tuple[Float[Array, "folds d"], Bool[Array, ""]]:
    """The group lasso of each fold, and whether it is solved."""
    v, count = _descended(ProximalMap(penalty), u, data, data.near)
    return v, count < MOST_ITERATIONS


def _descended(
    proximal: ProximalMap, u: Float[Array, " strengths"], data: Folds, start: Any
) -> tuple[Float[Array, "folds d"], Int[Array, ""]]:
    """The solution and the steps of accelerated proximal descent with restarts.

    Beck and Teboulle 2009; O'Donoghue and Candes 2015.
    """
    tolerance = TOLERANCE if start.dtype == jnp.float64 else 1e-5

    def gradient(v: Float[Array, "folds d"]) -> Float[Array, "folds d"]:
        weighted = data.train * residuals(v, data)
        return weighted @ data.x - jnp.sum(weighted, 1, keepdims=True) * data.x_mean

    def unsettled(carry: Any) -> Any:
        v, _, _, change, count = carry
        return (change > tolerance * jnp.linalg.norm(v)) & (count < MOST_ITERATIONS)

    def one(carry: Any) -> Any:
        v, ahead, t, _, count = carry
        new = proximal(u, ahead - gradient(ahead), 1.0)
        uphill = jnp.sum((ahead - new) * (new - v)) > 0
        t_new = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * t**2)) / 2)
        momentum = jnp.where(uphill, 0.0, (t - 1) / t_new)
        return new, new + momentum * (new - v), t_new, jnp.linalg.norm(new - v), count + 1

    one_ = jnp.ones((), start.dtype)
    v, *_, count = jax.lax.while_loop(unsettled, one, (start, start, one_, jnp.inf * one_, 0))
    return v, count


def strength_values(X: ArrayLike, y: ArrayLike) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """X and y in double precision."""
    x, targets = table("X", X), numeric("y", y).astype(np.float64)
    if targets.shape != x.shape[:1]:
        raise InputError(f"X has shape {x.shape} and y {targets.shape}. (n, d) and (n,) are needed.")
    require_sizes("y", targets)
    return x, targets


def group_codes(groups: ArrayLike | None, features: int) -> tuple[Int[np.ndarray, " d"], np.ndarray]:
    """The index of each feature's group, and the sizes (groups,) of the groups."""
    if groups is None:
        return np.arange(features), np.ones(features)
    try:
        labels = np.asarray(groups)
        missing = int(np.sum(labels != labels)) + sum(label is None for label in labels.flat)
        _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"groups is not a list of labels that can be sorted ({error}). Pass a label for each feature, all of them "
            "text or all of them numbers."
        ) from error
    if labels.shape != (features,):
        raise InputError(f"groups has shape {labels.shape}, and X {features} features. One label for each is needed.")
    if missing:
        raise InputError(f"groups lacks the labels of {missing} features. Give each of them a label.")
    return index, sizes


def in_units(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    masks: Bool[np.ndarray, "folds n"],
    index: Int[np.ndarray, " d"],
    sizes: np.ndarray,
    per_group: bool,
) -> tuple[Folds, Units] | None:
    """The folds in the units that `tuning.lasso` describes; None if no feature varies with y."""
    x, x_unit = standard(x, index if per_group else np.zeros(x.shape[1], int))
    y, y_unit = (a[..., 0] for a in standard(y[:, None], np.zeros(1, int)))
    train = np.where(masks, 0, 1 / (~masks).sum(1, keepdims=True))
    held = masks / np.maximum(masks.sum(1, keepdims=True), 1)
    x_mean, y_mean = train @ x, train @ y
    gradients = (train * (y - y_mean[:, None])) @ x
    norms = np.sqrt([np.bincount(index, gradient**2, len(sizes)) for gradient in gradients])
    highest = float((norms / np.sqrt(sizes)).max())
    if not highest > LEAST_CORRELATION:
        return None
    # The Gram matrix of all centred samples over the smallest number of training samples bounds that of each fold.
    gram = (x @ x.T if len(x) < x.shape[1] else x.T @ x) / (~masks).sum(1).min()
    root = float(np.sqrt(eigh(gram, eigvals_only=True, subset_by_index=[len(gram) - 1, len(gram) - 1])[0]))
    unit = x_unit[np.unique(index, return_index=True)[1]] if per_group else x_unit[:1]
    units = Units(highest * y_unit * unit, highest / root**2 * (y_unit / x_unit), float(y_unit**2))
    to_y = root / highest
    nothing = np.zeros(x_mean.shape)
    return Folds(x / root, y * to_y, x_mean / root, y_mean * to_y, train, held / to_y**2, nothing), units


def on_device(folds: Folds) -> Folds:
    """The folds on the device, padded by rows of zero weight so that data of similar sizes share their programs."""
    n, dtype = len(folds.y), jnp.result_type(float)
    step = 1 << max(n.bit_length() - 4, 0)
    rows = (0, -n % step)
    x, y = np.pad(folds.x, (rows, (0, 0))), np.pad(folds.y, rows)
    train, held = (np.pad(a, ((0, 0), rows)) for a in (folds.train, folds.held))
    return Folds(*(jnp.asarray(a, dtype) for a in (x, y, folds.x_mean, folds.y_mean, train, held, folds.near)))
