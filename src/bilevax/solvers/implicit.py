"""Hypergradients by implicit differentiation: ApproxGrad, CG or Neumann, by the choice of the linear solve."""

from dataclasses import dataclass

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, fixed_points
from bilevax._checks import settle_counts
from bilevax.linear_solve import CG, LinearSolve
from bilevax.linear_solve.base import continued, memory_of
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation: u moves along grad_u f - grad2_uv g q, with q near (grad2_vv g)^-1 grad_v f.

    v moves along grad_v g. At v = v*(u) the direction is the hypergradient, by the implicit function theorem (Mehra and
    Hamm 2021, eq. 9). The linear solve determines the method: `CG` for Pedregosa (2016) and Rajeswaran et al. (2019),
    `Neumann` for Lorraine et al. (2020), `ByOptimizer` with Adam for ApproxGrad (Domke 2012). It is warm-started from
    the solution of the last step.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; the upper one without a line search.
        lower_steps: T, moves of v per move of u.
        linear_solve: one of `bilevax.linear_solve`, with its steps and damping.
        curvature: `derivatives.exact` or `derivatives.finite_difference`.

    Cost of a step: T gradients of g, one of f, and a product with the Hessian of g for each step of
    the linear solve. Memory: that of u, v, q and the optimizers; it does not grow with T.
    `extra["linear_residual"]` is |H q - grad_v f|.

    With a `project_lower`, the system is that of the fixed point of a projected descent (`fixed_points.fixed_point`),
    so that the direction is also right on the boundary of the set, which may depend on u. It takes two products with
    the derivative of the projection for each product with the Hessian, and one more. If the set is not a box, use
    gradient descent as the lower optimizer: the limit of projected Adam depends on its scaling of the gradient. With a
    `lower_start` that depends on u, the start is treated as a constant; in the limit of many moves v*(u) does not
    depend on it.
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_steps: int = 10
    linear_solve: LinearSolve = CG()
    curvature: derivatives.Curvature = derivatives.exact

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a `project_lower` that is not a projection, and problems that no solver handles."""
        base.refuse_constraints(self, problem)
        base.refuse_lower_constraints(self, problem)
        base.check_problem(self, problem, u, v, batch)
        base.check_optimizers(self, problem, u, v, batch, upper=base.Known.VALUE, lower=base.Known.FUNCTION)
        fixed_points.require_projection("Implicit", "project_lower", problem, u, v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with q zero."""
        return base.start(self, u, v, memory=memory_of(self.linear_solve, v))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times along grad_v g, solve for q, and move u once."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        v = base.start_of_step(problem, state, batch, start_key)
        descent = base.Descent(problem, state.u, self.lower_optimizer)
        v, lower_opt, _ = descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)
        f = derivatives.upper(problem, state.u, v, batch.upper, upper_key)
        data = base.lower_data(batch, self.lower_steps - 1)
        g = derivatives.lower(problem, state.u, v, data, upper_key, curvature=self.curvature)
        system = fixed_points.on_set(problem, state.u, v, g, f.grad_v)
        found, memory = continued(self.linear_solve, system.second_products, system.b, state.memory)
        direction = optax.tree.sub(optax.tree.add(f.grad_u, system.direct), found.cross)
        u, upper_opt = base.move_upper(self, problem, state, direction, base.Objective(f.loss))
        extra = {"linear_residual": found.residual}
        info = base.Info(f.loss, g.loss, optax.tree.norm(direction), optax.tree.norm(g.grad_v), extra)
        return base.State(u, v, upper_opt, lower_opt, memory), info
