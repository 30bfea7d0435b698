"""Hypergradients through the fixed point of a proximal descent: lasso-like lower levels, and sets that depend on u."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, fixed_points
from bilevax._checks import InputError, settle_counts
from bilevax._programs import compiled
from bilevax.linear_solve import CG, LinearSolve
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class SparseHO:
    """Implicit differentiation on the support (Bertrand et al., ICML 2020; JMLR 2022), for lasso-like lower levels.

    v moves by proximal descent, v = prox(u, v - rate grad_v g), and u along the derivative of f(u, v*(u)), where v*(u)
    is the fixed point. The published method iterates the derivative of the proximal descent; its limit is the solution
    of a linear system (`fixed_points.fixed_point`), which is solved here directly. For the lasso it is that of the
    support S = {i: v_i != 0},

        u moves along grad_u f - grad2_uv G q,    (grad2_vv G)_SS q_S = (grad_v f)_S,    q = 0 off S,

    with G = g + regulariser: entries at zero do not change with u. Nothing is smoothed. The derivative includes that of
    `proximal` in u: in a box [0, C(u)] the entries at C(u) change with it.

    Args:
        upper_optimizer: any optax optimizer without a line search; the value of f is passed to it.
        proximal: (u, v, step) -> v, the proximal map of the regulariser, such as
            `lambda u, v, step: L1().proximal(v, step * jnp.exp(u[0]))`, or a projection onto a set that may depend on
            u. It is differentiated in u and v.
        rate: learning rate of the descent; at most 1 over the Lipschitz constant of grad_v g without the regulariser.
        lower_steps: T, moves of v per move of u.
        linear_solve: one of `bilevax.linear_solve`.

    The `regularizer` of the problem is replaced by the proximal map, and serves to record g only.
    If the support is empty, u moves along grad_u f; a start from which u would never move is refused.
    `extra["support"]` is the share of entries in the support, `extra["linear_residual"]` the residual of the system.
    `lower_grad_norm` is |v - prox(u, v - rate grad_v g)| / rate.

    Cost of a step: T gradients of g, one of f, and a product with the Hessian of g for each step of the linear solve.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import Problem, SparseHO, solve
        >>> from bilevax.penalties import L1
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum((v - jnp.array([1.0, 0.0])) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - jnp.array([2.0, 0.5])) ** 2) / 2,
        ...     regularizer=lambda u, v, mu: jnp.exp(u[0]) * L1()(v, mu),
        ... )
        >>> solver = SparseHO(optax.adam(3e-2), lambda u, v, step: L1().proximal(v, step * jnp.exp(u[0])), rate=1.0)
        >>> result = solve(solver, problem, jnp.full(1, -2.0), jnp.ones(2), steps=400, key=jax.random.key(0))
        >>> print(jnp.round(jnp.exp(result.u), 2), jnp.round(result.v, 2))
        [1.] [1. 0.]
    """

    upper_optimizer: optax.GradientTransformation
    proximal: Callable[[PyTree, PyTree, Any], PyTree]
    rate: float = 1e-2
    lower_steps: int = 100
    linear_solve: LinearSolve = CG(100)

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")
        if not self.rate > 0:
            raise InputError(f"SparseHO: rate is {self.rate}, and must be positive.")
        if not callable(self.proximal):
            raise InputError(f"SparseHO: proximal is {self.proximal!r}. Pass a function (u, v, step) -> v.")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a map that is not a proximal map, and a support that is and remains empty."""
        base.refuse_constraints(self, problem)
        base.refuse_lower_constraints(self, problem)
        base.check_problem(self, problem, u, v, batch)
        fixed_points.require_symmetric("SparseHO", "proximal", _Move(self, problem), u, v)
        base.check_optimizers(self, problem, u, v, batch, upper=base.Known.VALUE)
        key = jax.random.key(0)
        moved = _moved(self, problem, u, v, batch, key)
        if not _any(moved):
            plain = replace(problem, regularizer=None)
            penalised_away = _any(derivatives.lower_gradient(plain, u, moved, base.lower_data(batch, 0), key)[1])
            if penalised_away and not _any(derivatives.upper(problem, u, moved, batch.upper, key).grad_u):
                raise InputError(
                    f"SparseHO: the support is empty: after {self.lower_steps} proximal moves from the start all "
                    "entries of v are zero, and grad_u of upper_loss is zero, so u would never move. Start from a u "
                    "with a weaker penalty."
                )

    def _moved(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch, start_key: Any, key: PRNGKeyArray) -> PyTree:
        """Return v after T proximal moves at u."""
        smooth = replace(problem, regularizer=None, project_lower=lambda v: self._proximal(problem, u, v))
        v = base.start_of_step(problem, base.State(u, v, (), ()), batch, start_key)
        descent = base.Descent(smooth, u, optax.sgd(self.rate))
        return descent.moves(v, descent.optimizer.init(v), batch, self.lower_steps, key)[0]

    def _proximal(self, problem: Problem, u: PyTree, v: PyTree) -> PyTree:
        """Return v after the proximal map and the projection of the problem, in its own types."""
        moved = problem.lower_set(u)(self.proximal(u, v, self.rate))
        return jax.tree.map(lambda new, old: new.astype(old.dtype), moved, v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with q zero."""
        return base.State(u, v, self.upper_optimizer.init(u), (), optax.tree.zeros_like(v))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v by T proximal steps, solve the system of the support, and move u once."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        u = state.u
        v = self._moved(problem, u, state.v, batch, start_key, lower_key)
        f = derivatives.upper(problem, u, v, batch.upper, upper_key)
        data = base.lower_data(batch, self.lower_steps - 1)
        g = derivatives.lower(replace(problem, regularizer=None), u, v, data, upper_key)
        fixed = fixed_points.fixed_point(lambda u, v: self._proximal(problem, u, v), u, v, g, f.grad_v, self.rate)
        q, cross, residual = self.linear_solve(fixed.second_products, fixed.b, state.memory)
        direction = optax.tree.sub(optax.tree.add(f.grad_u, fixed.direct), cross)
        moved, upper_opt = base.move_upper(self, problem, state, direction, base.Objective(f.loss))
        leaves = jax.tree.leaves(v)
        share = sum(jnp.sum(x != 0) for x in leaves) / sum(x.size for x in leaves)
        extra = {"support": share, "linear_residual": residual}
        size: Any = optax.tree.norm(optax.tree.sub(v, fixed.moved))
        loss = problem.lower(u, v, data, upper_key, jnp.finfo(size.dtype).tiny ** 0.5)
        info = base.Info(f.loss, loss, optax.tree.norm(direction), size / self.rate, extra)
        return base.State(moved, v, upper_opt, (), q), info


@dataclass(frozen=True)
class _Move:
    """The proximal map of a solver; equal for equal solvers and problems, so that its check is compiled once."""

    solver: SparseHO
    problem: Problem

    def __call__(self, u: PyTree, v: PyTree) -> PyTree:
        return self.solver._proximal(self.problem, u, v)


@compiled("solver", "problem")
def _moved(solver: SparseHO, problem: Problem, u: PyTree, v: PyTree, batch: Batch, key: PRNGKeyArray) -> PyTree:
    return solver._moved(problem, u, v, batch, key, key)


def _any(tree: PyTree) -> bool:
    return any(bool(x.any()) for x in jax.tree.leaves(tree))
