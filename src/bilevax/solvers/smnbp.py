"""Smoothing and sequential quadratic programming for non-smooth lower levels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import settle_counts
from bilevax.linear_solve import CG, LinearSolve
from bilevax.problem import Batch, Problem
from bilevax.schedules import Geometric, Schedule
from bilevax.solvers import base

SUFFICIENT = 1e-4  # of the predicted decrease (Armijo)
LEAST_WEIGHT = 1e-3  # smallest rho


class SMNBPMemory(NamedTuple):
    """The state of SMNBP besides u, v and the optimizer.

    Attributes:
        q: the negative multipliers, for a warm start.
        moved_v: the last move of v, for a warm start.
        stage: the number of the stage.
        stuck: whether the last line search ended at the shortest step.
    """

    q: PyTree
    moved_v: PyTree
    stage: Int[Array, ""]
    stuck: Bool[Array, ""]


@dataclass(frozen=True)
class SMNBP:
    """Smoothing method of Okuno and Takeda (2020; Okuno, Takeda, Kawana and Watanabe, JMLR 2021) for l_p-like terms.

    The regulariser is smoothed with mu_k, the lower level is replaced by c = grad_v g = 0, and

        min over (u, v) of f(u, v)   subject to   c(u, v) = 0

    is solved by sequential quadratic programming until |reduced gradient| and |c| are at most eps_k. Then the stage
    ends, and mu and eps decrease. A step, with H = grad2_vv g:

        q = H^-1 grad_v f,   r = grad_u f - grad2_uv g q      multipliers and reduced gradient (the hypergradient)
        d_u = the optimizer's update for r                    a quasi-Newton step where that is `optax.scale_by_lbfgs`
        d_v = -H^-1 c(u + d_u, v)                             a Newton step to the constraint, with its curvature in u

    The new point is (u, v) + t (d_u, d_v) with the first t of 1, 1/2, 1/4, ... that decreases the exact penalty
    function f + rho |c|, rho = 2 |q|, sufficiently (Nocedal and Wright 2006, section 18.3). The published method passes
    each stage to a general solver with dense derivatives. Here the linear solves use only products with H;
    `linear_solve.Direct` forms H, for small problems.

    On convex lower levels whose smoothing is twice differentiable (l1, group lasso, elastic net), about 100 steps reach
    mu = 1e-6. With l_p, p < 1, branches of lower minimisers end at points where H is singular, at which the step is not
    defined; the H of the smoothed OSCAR is not continuous. On such problems the method may stall at a mu of 1e-2 to
    1e-3; try `SPNBO`, which needs no linear solve with H.

    Args:
        upper_optimizer: any optax optimizer that needs only gradients.
        linear_solve: one of `bilevax.linear_solve`; the smoothed H has curvatures of 1 / mu.
        mu, eps: smoothing parameter and tolerance, by stage.
        halvings: the largest number of halvings of t; after that the last t is used.

    Cost of a step: a gradient of f, two of g, a Hessian product for each step of the two linear solves, and a value of
    f and a gradient of g for each t. `extra["step"]` is t, `extra["linear_residual"]` the larger of the two residuals.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import Problem, SMNBP, solve
        >>> from bilevax.penalties import L1
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum((v - jnp.array([1.0, 0.0])) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - jnp.array([2.0, 0.5])) ** 2) / 2,
        ...     regularizer=lambda u, v, mu: jnp.sum(u) * L1()(v, mu),
        ... )
        >>> result = solve(SMNBP(), problem, jnp.full(1, 0.2), jnp.ones(2), steps=200, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 2), jnp.round(result.v, 2))
        [1.] [1. 0.]
    """

    upper_optimizer: optax.GradientTransformation = optax.chain(optax.scale_by_lbfgs(10), optax.scale(-1.0))
    linear_solve: LinearSolve = CG(100)
    mu: Schedule | float = Geometric(0.3, 0.5, low=1e-6)
    eps: Schedule | float = Geometric(0.1, 0.5, low=1e-8)
    halvings: int = 10

    def __post_init__(self) -> None:
        settle_counts(self, "halvings")
        for name in ("mu", "eps"):
            schedules.require_positive("SMNBP", name, getattr(self, name))

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a `project_lower`, and problems that no solver handles."""
        base.check(self, problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v): stage 0, multipliers zero."""
        q, moved = optax.tree.zeros_like(v), optax.tree.zeros_like(v)
        memory = SMNBPMemory(q, moved, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        return base.State(u, v, self.upper_optimizer.init(u), (), memory)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Solve two linear systems, search along the step, and test whether the stage ends."""
        start_key, key = jax.random.split(key)
        memory = state.memory
        mu, eps = (schedules.at(x, memory.stage) for x in (self.mu, self.eps))
        u, v = state.u, base.start_of_step(problem, state, batch, start_key)
        data = base.lower_data(batch, 0)

        def lower(u: PyTree, v: PyTree) -> derivatives.Lower:
            return derivatives.lower(problem, u, v, data, key, mu=mu)

        f, g = derivatives.upper(problem, u, v, batch.upper, key), lower(u, v)
        q, cross, residual = self.linear_solve(g.second_products, f.grad_v, memory.q)
        reduced = optax.tree.sub(f.grad_u, cross)
        # If the curvature of f in u is negative, the direction of L-BFGS may be one of ascent: it is then reset.
        kept, afresh = (
            base.move(self.upper_optimizer, opt, u, reduced, problem.project_upper)
            for opt in (state.upper_opt, self.upper_optimizer.init(u))
        )
        descent: Any = optax.tree.vdot(reduced, optax.tree.sub(kept[0], u))
        downhill = ~memory.stuck & (descent < 0)
        towards_u, upper_opt = optax.tree.where(downhill, kept, afresh)
        d_u = optax.tree.sub(towards_u, u)
        off = jax.tree.map(jnp.negative, derivatives.lower_gradient(problem, towards_u, v, data, key, mu=mu)[1])
        d_v, _, newton_residual = self.linear_solve(g.second_products, off, memory.moved_v)

        size = optax.tree.norm(g.grad_v)
        weight = 2 * optax.tree.norm(q) + LEAST_WEIGHT
        slope = jnp.asarray(optax.tree.vdot(reduced, d_u)) - optax.tree.vdot(q, g.grad_v) - weight * size
        now = f.loss + weight * size

        def at(t: Any) -> tuple[PyTree, PyTree]:
            def ahead(x: PyTree, d: PyTree) -> PyTree:
                return jax.tree.map(lambda a, b: (a + t * b).astype(a.dtype), x, d)

            return problem.project_upper(ahead(u, d_u)), problem.project_lower(ahead(v, d_v))

        def too_far(carry: tuple[Any, Any]) -> Any:
            t, tried = carry
            merit = problem.upper(*at(t), batch.upper, key)
            merit += weight * optax.tree.norm(derivatives.lower_gradient(problem, *at(t), data, key, mu=mu)[1])
            enough = merit <= now + SUFFICIENT * t * jnp.minimum(slope, 0)
            return ~enough & (tried < self.halvings)

        t, tried = jax.lax.while_loop(too_far, lambda carry: (carry[0] / 2, carry[1] + 1), (jnp.ones_like(now), 0))
        moved_u, moved_v = at(t)
        distance = jnp.sqrt(base.stationarity(u, reduced, problem.project_upper))
        done = jnp.maximum(distance, size) <= eps
        extra = {
            "stage": memory.stage,
            "mu": jnp.asarray(mu),
            "step": t,
            "linear_residual": jnp.maximum(residual, newton_residual),
        }
        info = base.Info(f.loss, g.loss, optax.tree.norm(reduced), size, extra)
        stuck = jnp.asarray(tried >= self.halvings)
        memory = SMNBPMemory(q, d_v, memory.stage + done, stuck)
        return base.State(moved_u, moved_v, upper_opt, (), memory), info
