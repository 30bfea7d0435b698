"""A report on (u, v): stationarity, curvature, hypergradient, KKT residual, a solver's direction."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from bilevax import fixed_points
from bilevax._checks import InputError
from bilevax.diagnostics import system
from bilevax.diagnostics.direction import direction_of
from bilevax.linear_solve import CG
from bilevax.problem import Batch, Inequality, Problem, identity
from bilevax.solvers import base
from bilevax.solvers.base import Solver

MOST_CG_STEPS = 20_000


@dataclass(frozen=True)
class Report:
    """The numbers that `report` computes at (u, v). `str(report)` is a table; every number is an attribute.

    Attributes:
        upper_loss, lower_loss: f and g.
        lower_grad_norm: |grad_v g|, zero where v is stationary for g.
        smallest_curvature, largest_curvature: the extreme eigenvalues of grad2_vv g; NaN if they were not found. If the
            smallest is negative, g curves down and v is a saddle or a maximum. If it is zero, v*(u) is not unique.
        rounding: eigenvalues below this size are zero up to rounding.
        hypergradient: eq. (9), grad_u f - grad2_uv g (grad2_vv g)^-1 grad_v f, shaped like u. If v lives in a set,
            the hypergradient of the fixed point of a projected descent (`fixed_points.fixed_point`).
        hypergradient_norm: its norm.
        linear_residual: |grad2_vv g q - b|, the largest of the linear solves. If it is not small (for example because
            the Hessian is singular), neither the hypergradient nor the multipliers can be trusted.
        direction: the direction along which the solver would move u next, shaped like u; None without a solver.
        direction_error: |direction - hypergradient| / |hypergradient|.
        direction_cosine: the cosine of the angle between the two; NaN if either is zero. Both are None without a
            solver, and for problems with constraints, since the direction then also contains the constraints.
        constraint_violation: the largest violation of any entry of a constraint.
        multipliers: one array per constraint, shaped like its values.
        stationarity: |grad_u L|, where L = f + m . h + nu . grad_v g with the best multipliers.
        complementarity: |m h| over the entries of inequalities that are not violated.
        kkt_residual: the residual of (8), the largest of stationarity, lower_grad_norm, constraint_violation and
            complementarity. If the problem projects, the two gradients are replaced by the distances to the
            projected point, |x - project(x - gradient)|.
        degenerate: whether v*(u) has a kink at u: an active bound of `project_lower` has, to rounding, a multiplier of
            zero. The hypergradient is then one of several.
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
    degenerate: bool

    @property
    def curves_down(self) -> bool:
        """Whether g curves down at v in some direction by more than rounding, so that v is not a minimiser of g."""
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
        if self.degenerate:
            rows.append(("set of v", "an active bound has a multiplier of zero: v*(u) has a kink here"))
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
    key: PRNGKeyArray | None = None,
    dense_limit: int = 1000,
    tolerance: float = 1e-10,
    mu: float = 1e-3,
) -> Report:
    """Compute stationarity, curvature, hypergradient, KKT residual and a solver's direction at (u, v).

    The hypergradient is eq. (9) of Mehra and Hamm (2021) at the given (u, v). It is the derivative of f(u, v*(u)) as
    accurately as v is v*(u). The KKT residual belongs to their eq. (8): min over (u, v) of f subject to h <= 0 (or = 0)
    and grad_v g = 0. Solves with grad2_vv g eliminate the multipliers of grad_v g = 0. The multipliers of h are found
    by least squares (nonnegative for inequalities) on stationarity and complementarity together. `project_upper` is
    ignored in this least-squares fit, so with it the residual is an upper bound.

    Args:
        problem: the problem.
        u, v: the point.
        batch: the data of one step; of a `PerMove` lower batch the first entry is used.
        solver: also compare the direction in which this solver would move u. The solver first takes its lower steps
            from v, as in any step.
        state: the state of the solver to take that step from (`result.state`), for multipliers and the stage. Its u
            and v are replaced by the arguments. By default a fresh state, whose multipliers are zero; the direction of
            Penalty is then not meaningful where v has converged.
        key: for random losses; a fixed one by default.
        dense_limit: up to this number of entries of v the Hessian is formed and decomposed, which needs memory for
            its square. Beyond it, conjugate gradients and Lanczos iterations (ARPACK) are used.
        tolerance: of conjugate gradients, relative to the right-hand side; at least the precision of v.
        mu: the smoothing of the problem's regularizer with which v was found. Solvers without a schedule for mu use
            1e-3. For another mu, v is not stationary.

    Cost: n Hessian products and an n x n eigendecomposition, where n is the number of entries of v. Beyond
    `dense_limit`, the products of the two iterations, for each entry of the constraints.

    Raises:
        InputError: an argument cannot be used, or the solver does not support the problem.

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
    _check(batch, solver, state, dense_limit, tolerance, mu)
    batch = Batch() if batch is None else batch
    problem.check(u, v, batch)
    if problem.lower_constraints:
        raise InputError("report: the problem has lower_constraints, which are not supported.")
    fixed_points.require_projection("report", "project_lower", problem, u, v)
    u, v = jax.tree.map(jnp.asarray, (u, v))
    key = jax.random.key(0) if key is None else key
    direction = None if solver is None else direction_of(solver, problem, state, u, v, batch, key)

    data = base.lower_data(batch, 0)
    found = system.values(problem, u, v, batch.upper, data, key, mu)
    system.require_finite("report: a loss, a constraint or a gradient", found)
    f, g_loss, grad_g, entries, jacobian_u, jacobian_v = found
    # Row 0 belongs to f, the other rows to the entries of the constraints.
    b = jnp.concatenate([ravel_pytree(f.grad_v)[0][None], jacobian_v])
    grad_u = np.concatenate([ravel_pytree(f.grad_u)[0][None], jacobian_u])
    direct, b = system.pulled_back(problem, u, v, data, key, b, mu)
    q, smallest, largest = _solved(problem, u, v, data, key, b, mu, dense_limit, tolerance)
    along_u, along_v = system.products(problem, u, v, data, key, q, mu)
    system.require_finite("report: a second derivative of lower_loss", (along_u, along_v))
    reduced = grad_u + np.asarray(direct) - np.asarray(along_u)

    kkt = _kkt(problem, u, np.asarray(entries, float), f.constraints, reduced)
    lower_residual = _distance(v, grad_g, problem.lower_set(u))
    error, cosine = None, None
    if direction is not None and not problem.constraints:
        error, cosine = _compare(np.asarray(ravel_pytree(direction)[0], float), reduced[0].astype(float))
    return Report(
        upper_loss=float(f.loss),
        lower_loss=float(g_loss),
        lower_grad_norm=float(optax.tree.norm(grad_g)),
        smallest_curvature=smallest,
        largest_curvature=largest,
        rounding=max(abs(smallest), abs(largest)) * b.shape[1] * float(jnp.finfo(b.dtype).eps),
        hypergradient=ravel_pytree(u)[1](jnp.asarray(reduced[0])),
        hypergradient_norm=float(np.linalg.norm(reduced[0])),
        linear_residual=float(np.max(np.linalg.norm(along_v - b, axis=1))),
        direction=direction,
        direction_error=error,
        direction_cosine=cosine,
        constraint_violation=kkt.violation,
        multipliers=kkt.multipliers,
        stationarity=kkt.stationarity,
        complementarity=kkt.complementarity,
        kkt_residual=max(kkt.stationarity, lower_residual, kkt.violation, kkt.complementarity),
        degenerate=bool(system.degenerate(problem, u, v, data, key, mu)),
    )


def _check(batch: Any, solver: Any, state: Any, dense_limit: Any, tolerance: float, mu: float) -> None:
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
        raise InputError("report: state was passed without its solver. Pass solver= as well.")


def _solved(
    problem: Problem,
    u: PyTree,
    v: PyTree,
    data: PyTree,
    key: PRNGKeyArray,
    b: Float[Array, "k n_v"],
    mu: float,
    dense_limit: int,
    tolerance: float,
) -> tuple[Float[Array, "k n_v"], float, float]:
    """The solutions of the linear system for each row of b, and the extreme eigenvalues of grad2_vv g."""
    free = dataclasses.replace(problem, project_lower=identity)
    size, dtype = b.shape[1], b.dtype
    if size > max(dense_limit, 3):  # ARPACK finds two of at least three eigenvalues
        tolerance = max(tolerance, 10 * float(jnp.finfo(dtype).eps))
        q = system.iterate(problem, CG(min(10 * size, MOST_CG_STEPS), tolerance), u, v, data, key, b, mu)
        return q, *system.extreme_eigenvalues(free, u, v, data, key, size, dtype, mu)
    hessian = np.asarray(system.hessian(free, u, v, data, key, mu))
    system.require_finite("report: the Hessian of lower_loss in v", hessian)
    smallest, largest = system.extremes(hessian)
    projected = problem.project_lower is not identity
    matrix = np.asarray(system.hessian(problem, u, v, data, key, mu)) if projected else hessian
    return jnp.asarray(system.dense(matrix, np.asarray(b)), dtype), smallest, largest


class _KKT(NamedTuple):
    """The best multipliers, and the residuals that depend on them; `violation` is the largest of any entry."""

    multipliers: tuple[np.ndarray, ...]
    stationarity: float
    complementarity: float
    violation: float


def _kkt(
    problem: Problem,
    u: PyTree,
    entries: Float[np.ndarray, " m"],
    constraints: tuple[Array, ...],
    reduced: Float[np.ndarray, "m_and_1 n_u"],
) -> _KKT:
    """Residuals of (8), with the reduced gradients of f (row 0) and of each entry of the constraints."""
    kinds = [
        np.full(np.size(h), isinstance(c, Inequality)) for c, h in zip(problem.constraints, constraints, strict=True)
    ]
    bounded = np.concatenate([np.zeros(0, bool), *kinds])
    slack = np.where(bounded, np.minimum(entries, 0), 0)
    amounts = np.where(bounded, np.maximum(entries, 0), np.abs(entries))
    multipliers = _multipliers(reduced[0].astype(float), reduced[1:].astype(float), slack, bounded)
    lagrangian = ravel_pytree(u)[1](jnp.asarray(reduced[0] + multipliers @ reduced[1:], reduced.dtype))
    return _KKT(
        multipliers=_shaped(multipliers, constraints),
        stationarity=_distance(u, lagrangian, problem.project_upper),
        complementarity=float(np.linalg.norm(multipliers * slack)),
        violation=float(np.max(amounts, initial=0)),
    )


def _multipliers(
    gradient: Float[np.ndarray, " n_u"],
    jacobian: Float[np.ndarray, "m n_u"],
    slack: Float[np.ndarray, " m"],
    bounded: Bool[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    """The m that minimises |gradient + m . jacobian|^2 + |m slack|^2, m >= 0 where bounded."""
    if not len(jacobian):
        return np.zeros(0)
    matrix = np.concatenate([jacobian.T, np.diag(slack)])
    right = np.concatenate([-gradient, np.zeros(len(slack))])
    low = np.where(bounded, 0.0, -np.inf)
    return scipy.optimize.lsq_linear(matrix, right, (low, np.inf), method="bvls", tol=1e-14).x


def _shaped(flat: Float[np.ndarray, " m"], values: tuple[Array, ...]) -> tuple[np.ndarray, ...]:
    pieces = np.split(flat, np.cumsum([h.size for h in values])[:-1]) if values else []
    return tuple(piece.reshape(h.shape) for piece, h in zip(pieces, values, strict=True))


def _distance(x: PyTree, gradient: PyTree, project: Callable[[PyTree], PyTree]) -> float:
    """|x - project(x - gradient)|, which is |gradient| without a projection."""
    if project is identity:  # the difference would be rounded
        return float(optax.tree.norm(gradient))
    return float(jnp.sqrt(base.stationarity(x, gradient, project)))


def _compare(found: Float[np.ndarray, " n"], wanted: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The relative error, and the cosine of the angle."""
    size, product = np.linalg.norm(wanted), np.linalg.norm(wanted) * np.linalg.norm(found)
    difference = np.linalg.norm(found - wanted)
    error = difference / size if size > 0 else (0.0 if difference == 0 else np.inf)
    return float(error), float(found @ wanted / product if product > 0 else np.nan)
