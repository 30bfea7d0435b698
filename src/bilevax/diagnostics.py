"""How good is this (u, v), and how good the direction that a solver takes from it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from bilevax import derivatives
from bilevax._checks import InputError, PyTree
from bilevax._programs import compiled
from bilevax.linear_solve import CG, LinearSolve
from bilevax.problem import Batch, Inequality, Problem, identity
from bilevax.solvers import base
from bilevax.solvers.base import Solver

MOST_CG_STEPS = 20_000
PRODUCTS_AT_ONCE = 16


@dataclass(frozen=True)
class Report:
    """What `report` found at (u, v). `str(report)` is a table; every number is an attribute.

    Attributes:
        upper_loss, lower_loss: f and g.
        lower_grad_norm: |grad_v g|, zero where v is stationary for g.
        smallest_curvature, largest_curvature: the extreme eigenvalues of grad2_vv g: where the smallest is negative g
            curves down and v is a saddle or a maximum; where it is zero v*(u) is not unique. NaN if not found.
        rounding: the size below which an eigenvalue is zero to rounding, the rounding of the largest in size.
        hypergradient: eq. (9), grad_u f - grad2_uv g (grad2_vv g)^-1 grad_v f, shaped like u. Where v lives in a set,
            that of the fixed point of a projected descent (`derivatives.fixed_point`).
        hypergradient_norm: its norm.
        linear_residual: |grad2_vv g q - b|, the largest of the linear solves taken. Where it is not small
            (a singular Hessian, say), neither the hypergradient nor the multipliers are to be trusted.
        direction: along which the solver would move u next, shaped like u; None without a solver.
        direction_error: |direction - hypergradient| / |hypergradient|.
        direction_cosine: of the angle between the two; NaN if either is zero. Both are None without a
            solver, and for a problem with constraints, whose part the direction carries as well.
        constraint_violation: the largest amount by which an entry of a constraint is violated.
        multipliers: one array per constraint, shaped like its values.
        stationarity: |grad_u L|, where L = f + m . h + nu . grad_v g with the best multipliers.
        complementarity: |m h| over the entries of inequalities that are not violated.
        kkt_residual: of (8), the largest of stationarity, lower_grad_norm, constraint_violation and
            complementarity. Where the problem projects, the two gradients stand for distances to the
            projected point, |x - project(x - gradient)|.
    """

    upper_loss: float
    lower_loss: float
    lower_grad_norm: float
    smallest_curvature: float
    largest_curvature: float
    rounding: float
    hypergradient: PyTree
    hypergradient_norm: float
    linear_residual: float
    direction: PyTree | None
    direction_error: float | None
    direction_cosine: float | None
    constraint_violation: float
    multipliers: tuple[np.ndarray, ...]
    stationarity: float
    complementarity: float
    kkt_residual: float

    @property
    def curves_down(self) -> bool:
        """Whether g curves down at v in some direction, by more than rounding, so that v is no minimiser of it."""
        return self.smallest_curvature < -self.rounding

    def __str__(self) -> str:
        curvature = f"{self.smallest_curvature:.3e}"
        if np.isnan(self.smallest_curvature):
            curvature = "not found"
        elif self.curves_down:
            curvature += "  curves down: v is not a minimum of g"
        elif self.smallest_curvature <= self.rounding:
            curvature += "  zero to rounding: v*(u) is not unique"
        rows = [
            ("upper loss f", f"{self.upper_loss:.6g}"),
            ("lower loss g", f"{self.lower_loss:.6g}"),
            ("|grad_v g|", f"{self.lower_grad_norm:.3e}"),
            ("smallest eigenvalue of grad2_vv g", curvature),
            ("|hypergradient|", f"{self.hypergradient_norm:.3e}"),
            ("residual of its linear solve", f"{self.linear_residual:.3e}"),
        ]
        if self.direction_error is not None and self.direction_cosine is not None:
            rows += [
                ("solver direction, relative error", f"{self.direction_error:.3e}"),
                ("solver direction, cosine", f"{self.direction_cosine:.6f}"),
            ]
        rows += [
            ("constraint violation", f"{self.constraint_violation:.3e}"),
            ("KKT residual", f"{self.kkt_residual:.3e}"),
            ("  stationarity", f"{self.stationarity:.3e}"),
            ("  complementarity", f"{self.complementarity:.3e}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def report(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch | None = None,
    solver: Solver | None = None,
    state: Any = None,
    *,
    key: Any = None,
    dense_limit: int = 1000,
    tolerance: float = 1e-10,
    mu: float = 1e-3,
) -> Report:
    """How good (u, v) is: stationarity, curvature, hypergradient, KKT residual, a solver's direction.

    The hypergradient is that of Mehra and Hamm (2021), eq. (9), taken at (u, v) as they are: it is the
    derivative of f(u, v*(u)) to the accuracy with which v is v*(u). The KKT residual is that of their (8),
    min over (u, v) of f subject to h <= 0 (or = 0) and grad_v g = 0: the multipliers of grad_v g = 0 are
    eliminated by solves with grad2_vv g, those of h found by least squares (nonnegative for inequalities)
    on stationarity and complementarity together; where `project_upper` is in use they are found without it,
    so that the residual is an upper bound.

    Args:
        problem: the problem.
        u, v: the point.
        batch: the data, as a step takes them; of a `PerMove` lower batch the first move's.
        solver: also compare the direction in which this solver would move u. It takes its lower moves
            from v first, as in any step.
        state: the solver's state to take that step from (`result.state`), for multipliers and the stage;
            a fresh one otherwise, whose multipliers are zero: Penalty's direction means little then where v has
            settled. Its u and v are replaced by those given here.
        key: a jax.random key for losses that draw; any fixed one by default.
        dense_limit: up to so many entries of v the Hessian is formed and decomposed, which takes that
            many squared numbers; beyond, conjugate gradients and Lanczos iterations (ARPACK).
        tolerance: of conjugate gradients, relative to the right-hand side; not below the precision of v.
        mu: how far the problem's regularizer is smoothed, as it was when v was found; solvers without a schedule for
            mu have 1e-3. At another mu v is not stationary.

    Cost: n Hessian products and an n x n eigendecomposition, n the entries of v; beyond `dense_limit`
    as many products as the two iterations need, per entry of the constraints.

    Raises:
        InputError: the arguments cannot be used, or the solver cannot treat the problem.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax import Problem
        >>> from bilevax.diagnostics import report
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum(u**2) + jnp.sum(v**2),
        ...     lower_loss=lambda u, v, data: jnp.sum((1 - u - v) ** 2),
        ... )
        >>> found = report(problem, u=jnp.array([0.75]), v=jnp.array([0.25]))
        >>> print(found.hypergradient, found.smallest_curvature)
        [1.] 2.0
    """
    if batch is not None and not isinstance(batch, Batch):
        raise InputError(
            f"report: batch is a {type(batch).__name__}, and must be a Batch(upper=..., lower=...), "
            "as one step takes it. Draw one from a source by source.at(0, key)."
        )
    if not tolerance > 0:
        raise InputError(f"report: tolerance is {tolerance}, and must be positive.")
    if not mu > 0:
        raise InputError(f"report: mu is {mu}, and must be positive.")
    if isinstance(dense_limit, bool) or not isinstance(dense_limit, int) or dense_limit < 0:
        raise InputError(f"report: dense_limit is {dense_limit!r}, and must be zero or a positive integer.")
    if state is not None and solver is None:
        raise InputError("report: state was given without the solver that it belongs to. Pass solver= as well.")
    batch = Batch() if batch is None else batch
    problem.check(u, v, batch)
    derivatives.require_projection("report", "project_lower", problem.project_lower, v)
    u, v = jax.tree.map(jnp.asarray, (u, v))
    key = jax.random.key(0) if key is None else key
    direction = None if solver is None else _direction(solver, problem, state, u, v, batch, key)

    data = base.lower_data(batch, 0)
    f, g_loss, grad_g, values, jacobian_u, jacobian_v = _values(problem, u, v, batch.upper, data, key, mu)
    _require_finite("report: a loss, a constraint or a gradient", (f, g_loss, grad_g, values, jacobian_u, jacobian_v))
    # Row 0 is f, the others are the entries of the constraints.
    b = jnp.concatenate([ravel_pytree(f.grad_v)[0][None], jacobian_v])
    grad_u = np.concatenate([ravel_pytree(f.grad_u)[0][None], jacobian_u])
    free = dataclasses.replace(problem, project_lower=identity)
    b = _pulled_back(problem, u, v, data, key, b, mu)
    if b.shape[1] <= max(dense_limit, 3):  # ARPACK finds two of at least three eigenvalues
        hessian = np.asarray(_hessian(free, u, v, data, key, mu))
        _require_finite("report: the Hessian of lower_loss in v", hessian)
        smallest, largest = _extremes(hessian)
        system = hessian if problem.project_lower is identity else np.asarray(_hessian(problem, u, v, data, key, mu))
        q = jnp.asarray(_dense(system, np.asarray(b)), b.dtype)
    else:
        tolerance = max(tolerance, 10 * float(jnp.finfo(b.dtype).eps))
        q = _iterate(problem, CG(min(10 * b.shape[1], MOST_CG_STEPS), tolerance), u, v, data, key, b, mu)
        smallest, largest = _extreme_eigenvalues(free, u, v, data, key, b.shape[1], b.dtype, mu)
    rounding = max(abs(smallest), abs(largest)) * b.shape[1] * float(jnp.finfo(b.dtype).eps)
    along_u, along_v = _products(problem, u, v, data, key, q, mu)
    _require_finite("report: a second derivative of lower_loss", (along_u, along_v))
    reduced = grad_u - np.asarray(along_u)
    hypergradient = ravel_pytree(u)[1](jnp.asarray(reduced[0]))

    bounded = np.concatenate(
        [np.zeros(0, bool)]
        + [
            np.full(np.size(h), isinstance(c, Inequality))
            for c, h in zip(problem.constraints, f.constraints, strict=True)
        ]
    )
    slack = np.where(bounded, np.minimum(np.asarray(values, float), 0), 0)
    amounts = np.where(bounded, np.maximum(values, 0), np.abs(values))
    multipliers = _multipliers(reduced[0].astype(float), reduced[1:].astype(float), slack, bounded)
    lagrangian = reduced[0] + multipliers @ reduced[1:]
    stationarity = _distance(u, ravel_pytree(u)[1](jnp.asarray(lagrangian, reduced.dtype)), problem.project_upper)
    complementarity = float(np.linalg.norm(multipliers * slack))
    violation = float(np.max(amounts, initial=0))
    error, cosine = None, None
    if direction is not None and not problem.constraints:
        error, cosine = _compare(np.asarray(ravel_pytree(direction)[0], float), reduced[0].astype(float))
    return Report(
        upper_loss=float(f.loss),
        lower_loss=float(g_loss),
        lower_grad_norm=float(optax.tree.norm(grad_g)),
        smallest_curvature=smallest,
        largest_curvature=largest,
        rounding=rounding,
        hypergradient=hypergradient,
        hypergradient_norm=float(np.linalg.norm(reduced[0])),
        linear_residual=float(np.max(np.linalg.norm(along_v - b, axis=1))),
        direction=direction,
        direction_error=error,
        direction_cosine=cosine,
        constraint_violation=violation,
        multipliers=_shaped(multipliers, f.constraints),
        stationarity=stationarity,
        complementarity=complementarity,
        kkt_residual=max(stationarity, _distance(v, grad_g, problem.project_lower), violation, complementarity),
    )


class NonSmooth(NamedTuple):
    """What `nonsmooth_stationarity` found.

    Attributes:
        lower: how far v is from stationary for the non-smooth lower level.
        upper: the norm of the hypergradient at the nearby point `v`.
        v: v after one proximal step, which is exactly where the regulariser is not smooth if v is close to there.
    """

    lower: float
    upper: float
    v: PyTree


def nonsmooth_stationarity(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch | None = None,
    *,
    proximal: Callable[[PyTree, PyTree, Any], PyTree],
    rate: float,
    key: Any = None,
    limit: int = 5000,
) -> NonSmooth:
    """How far (u, v) is from stationary for a problem whose lower level is not smooth.

    The two residuals are of the conditions (6) to (8) of the SPNBO text (ICLR 2022 submission), G = g + regulariser:

        lower = |v - v+| / rate,    v+ = prox(v - rate grad_v g),                                     (8)
        upper = |grad_u f - grad2_uv G q|  at v+,  (grad2_vv G) q = grad_v f                          (6), (7)

    Where the regulariser is convex the first vanishes at minimisers alone. Where it is not (l_p), a small rate is
    needed to see the local ones, at which the text's condition holds. v+ is exactly on the manifold (zeros, groups
    or ties) where the regulariser is not smooth. There the regulariser, smoothed by a tiny mu, has a curvature of about
    1 / mu across the manifold, which takes q to zero in these directions, and none along it: up to O(mu) this is the
    system restricted to the manifold.

    Args:
        problem: with a `regularizer`, and without constraints.
        u, v: the point.
        batch: the data, as a step takes them.
        proximal: (u, v, step) -> v, the proximal map of the true regulariser, as for `SparseHO`.
        rate: of the proximal move; at most 1 over the Lipschitz constant of grad_v g.
        key: for losses that draw; any fixed one by default.
        limit: entries that v may have, since the Hessian is formed.

    Raises:
        InputError: no regulariser; constraints; rate is not positive; v is too large.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax import Problem
        >>> from bilevax.diagnostics import nonsmooth_stationarity
        >>> from bilevax.penalties import L1
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum((v - jnp.array([1.0, 0.0])) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - jnp.array([2.0, 0.5])) ** 2) / 2,
        ...     regularizer=lambda u, v, mu: u[0] * L1()(v, mu),
        ... )
        >>> prox = lambda u, v, step: L1().proximal(v, step * u[0])
        >>> found = nonsmooth_stationarity(problem, jnp.ones(1), jnp.array([1.0, 0.0]), proximal=prox, rate=0.5)
        >>> found.lower, found.upper
        (0.0, 0.0)
    """
    if problem.regularizer is None:
        raise InputError("nonsmooth_stationarity: the problem has no regularizer. For smooth problems use report.")
    if problem.constraints:
        raise InputError("nonsmooth_stationarity: the problem has constraints, which it cannot treat.")
    if not rate > 0:
        raise InputError(f"nonsmooth_stationarity: rate is {rate}, and must be positive.")
    batch = Batch() if batch is None else batch
    problem.check(u, v, batch)
    u, v = jax.tree.map(jnp.asarray, (u, v))
    size = ravel_pytree(v)[0].size
    if size > limit:
        raise InputError(
            f"nonsmooth_stationarity: v has {size} entries, and their Hessian is formed, for at most {limit}. "
            "Raise limit if the memory is there, or look at a smaller problem of the same kind."
        )
    key = jax.random.key(0) if key is None else key
    data = base.lower_data(batch, 0)
    smooth = dataclasses.replace(problem, regularizer=None)
    slope = derivatives.lower_gradient(smooth, u, v, data, key)[1]
    moved = jax.tree.map(jnp.asarray, proximal(u, jax.tree.map(lambda x, d: x - rate * d, v, slope), rate))
    lower = float(optax.tree.norm(optax.tree.sub(v, moved)) / rate)
    f = derivatives.upper(problem, u, moved, batch.upper, key)
    b = ravel_pytree(f.grad_v)[0]
    mu = float(jnp.finfo(b.dtype).eps) ** 0.4
    hessian = np.asarray(_hessian(problem, u, moved, data, key, mu))
    _require_finite("nonsmooth_stationarity: the Hessian of the lower level in v", hessian)
    q = _dense(hessian, np.asarray(b)[None])
    along_u = _products(problem, u, moved, data, key, jnp.asarray(q, b.dtype), mu)[0][0]
    upper = float(jnp.linalg.norm(ravel_pytree(f.grad_u)[0] - along_u))
    return NonSmooth(lower, upper, moved)


def _require_finite(name: str, tree: PyTree) -> None:
    if not base.all_finite(jax.tree.map(jnp.asarray, tree)):
        raise InputError(
            f"{name} is not finite at this (u, v). Look for a log, a square root or a norm at zero, "
            "or pass an earlier iterate."
        )


def _nothing(params: Any) -> Any:
    return optax.tree.zeros_like(params)


def _kept(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    return optax.tree.zeros_like(updates), updates


# An optimizer that moves nothing and keeps the gradient as its state: one step of any solver that holds it
# leaves the solver's direction there.
_CAPTURE = optax.GradientTransformation(_nothing, _kept)


def _direction(solver: Any, problem: Problem, state: Any, u: PyTree, v: PyTree, batch: Batch, key: Any) -> PyTree:
    """The direction of u in one step of the solver from (u, v)."""
    fields = [f.name for f in dataclasses.fields(solver)] if dataclasses.is_dataclass(solver) else []
    if "upper_optimizer" not in fields:
        raise InputError(
            f"report: solver is a {type(solver).__name__}, which has no upper_optimizer of its own to watch. "
            "Pass the solver of one member, with that member's u, v and batch."
        )
    watched: Any = dataclasses.replace(
        solver,  # type: ignore[type-var]
        upper_optimizer=_CAPTURE,
    )
    watched.check(problem, u, v, batch)
    if state is None:
        state = watched.init(problem, u, v, batch)
    try:
        state = state._replace(u=u, v=v, upper_opt=_CAPTURE.init(u))
    except (AttributeError, ValueError):
        raise InputError(
            f"report: state is a {type(state).__name__}, and must be a state of {type(solver).__name__}, "
            "as in `result.state`; leave it out to start from a fresh one."
        ) from None
    wanted, found = (jax.tree.map(jnp.shape, x) for x in (watched.init(problem, u, v, batch), state))
    if wanted != found:
        raise InputError(
            f"report: state is not a state of this {type(solver).__name__} on this problem. Pass `result.state` of a "
            "solve with the same solver, problem and shapes, or leave it out."
        )
    return _step(watched, problem, state, batch, key).upper_opt


@compiled("solver", "problem")
def _step(solver: Solver, problem: Problem, state: Any, batch: Batch, key: Any) -> Any:
    return solver.step(problem, state, batch, key)[0]


@compiled("problem")
def _values(problem: Problem, u: PyTree, v: PyTree, upper_data: PyTree, data: PyTree, key: Any, mu: Any) -> Any:
    """All that is needed of f, g and the constraints: entries (m,), Jacobians (m, |u|) and (m, |v|)."""
    f = derivatives.upper(problem, u, v, upper_data, key, lambda h: 0.0)
    g_loss, grad_g = derivatives.lower_gradient(problem, u, v, data, key, mu=mu)
    if not problem.constraints:
        flat_u, flat_v = ravel_pytree(u)[0], ravel_pytree(v)[0]
        empty = jnp.zeros((0,), flat_v.dtype)
        return f, g_loss, grad_g, empty, empty.reshape(0, flat_u.size), empty.reshape(0, flat_v.size)
    values, *jacobians = derivatives.constraint_gradients(problem, u, v, upper_data)
    return f, g_loss, grad_g, values, *(jax.vmap(lambda x: ravel_pytree(x)[0])(j) for j in jacobians)


@compiled("problem")
def _products(problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: Any, rows: Any, mu: Any) -> tuple[Any, Any]:
    """`second_products` of each row (k, |v|), on the set of v: flat, (k, |u|) and (k, |v|)."""
    g, unravel = derivatives.lower(problem, u, v, data, key, mu=mu), ravel_pytree(v)[1]
    products_on_set, _ = derivatives.on_set(problem, u, v, g, v)

    def second_products(row: Any) -> tuple[Any, Any]:
        along_u, along_v = products_on_set(unravel(row))
        return ravel_pytree(along_u)[0], ravel_pytree(along_v)[0]

    return jax.lax.map(second_products, rows, batch_size=PRODUCTS_AT_ONCE)


@compiled("problem")
def _pulled_back(problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: Any, rows: Any, mu: Any) -> Any:
    """The right-hand sides of the system on the set of v, of gradients in v (k, |v|)."""
    g, unravel = derivatives.lower(problem, u, v, data, key, mu=mu), ravel_pytree(v)[1]
    return jax.lax.map(lambda b: ravel_pytree(derivatives.on_set(problem, u, v, g, unravel(b))[1])[0], rows)


@compiled("problem")
def _hessian(problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: Any, mu: Any) -> Any:
    flat, _ = ravel_pytree(v)
    return _products(problem, u, v, data, key, jnp.eye(flat.size, dtype=flat.dtype), mu)[1]


@compiled("problem", "solve")
def _iterate(
    problem: Problem, solve: LinearSolve, u: PyTree, v: PyTree, data: PyTree, key: Any, rows: Any, mu: Any
) -> Any:
    """The solution of the system for each row, by products alone."""
    g, unravel = derivatives.lower(problem, u, v, data, key, mu=mu), ravel_pytree(v)[1]
    second_products, _ = derivatives.on_set(problem, u, v, g, v)
    zero = optax.tree.zeros_like(v)
    return jax.lax.map(lambda b: ravel_pytree(solve(second_products, unravel(b), zero).q)[0], rows)


def _extremes(hessian: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest eigenvalue."""
    values = np.linalg.eigvalsh(hessian.astype(float))
    return float(values[0]), float(values[-1])


def _dense(hessian: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The inverse of the matrix times each row; of a singular one the pseudo-inverse."""
    values, vectors = np.linalg.eigh(hessian.astype(float))
    size = np.abs(values).max()
    kept = np.abs(values) > size * len(values) * np.finfo(hessian.dtype).eps
    inverse = np.divide(1, values, out=np.zeros_like(values), where=kept)
    return (rows @ vectors * inverse) @ vectors.T


def _extreme_eigenvalues(
    problem: Problem, u: PyTree, v: PyTree, data: PyTree, key: Any, n: int, dtype: Any, mu: Any
) -> tuple[float, float]:
    """The smallest and the largest eigenvalue of grad2_vv g, NaN where they are not found."""

    def product(x: np.ndarray) -> np.ndarray:
        row = jnp.asarray(x.reshape(1, n), dtype)
        return np.asarray(_products(problem, u, v, data, key, row, mu)[1][0], float)

    linear: Any = scipy.sparse.linalg.LinearOperator
    operator = linear((n, n), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=n)
    try:
        found = scipy.sparse.linalg.eigsh(
            operator, k=2, which="BE", v0=start, tol=float(jnp.finfo(dtype).eps) ** 0.5, return_eigenvectors=False
        )
    except scipy.sparse.linalg.ArpackError:  # no convergence (or a zero Hessian)
        return float("nan"), float("nan")
    return float(min(found)), float(max(found))


def _multipliers(gradient: np.ndarray, jacobian: np.ndarray, slack: np.ndarray, bounded: np.ndarray) -> np.ndarray:
    """The m that minimises |gradient + m . jacobian|^2 + |m slack|^2, m >= 0 where bounded."""
    if not len(jacobian):
        return np.zeros(0)
    matrix = np.concatenate([jacobian.T, np.diag(slack)])
    right = np.concatenate([-gradient, np.zeros(len(slack))])
    low = np.where(bounded, 0.0, -np.inf)
    return scipy.optimize.lsq_linear(matrix, right, (low, np.inf), method="bvls", tol=1e-14).x


def _shaped(flat: np.ndarray, values: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
    pieces = np.split(flat, np.cumsum([h.size for h in values])[:-1]) if values else []
    return tuple(piece.reshape(h.shape) for piece, h in zip(pieces, values, strict=True))


def _distance(x: PyTree, gradient: PyTree, project: Any) -> float:
    """|x - project(x - gradient)|, which is |gradient| where nothing is projected."""
    if project is identity:  # a difference would round
        return float(optax.tree.norm(gradient))
    return float(jnp.sqrt(base.stationarity(x, gradient, project)))


def _compare(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Relative error, and cosine of the angle."""
    size, product = np.linalg.norm(wanted), np.linalg.norm(wanted) * np.linalg.norm(found)
    difference = np.linalg.norm(found - wanted)
    error = difference / size if size > 0 else (0.0 if difference == 0 else np.inf)
    return float(error), float(found @ wanted / product if product > 0 else np.nan)
