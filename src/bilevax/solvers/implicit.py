"""Hypergradients by implicit differentiation: ApproxGrad, CG, Neumann, as the linear solve chosen."""

from dataclasses import dataclass

import jax
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import settle_counts
from bilevax.linear_solve import CG, LinearSolve
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


@dataclass(frozen=True)
class Implicit:
    """u moves along grad_u f - grad2_uv g q, with q near (grad2_vv g)^-1 grad_v f; v down g.

    The implicit function theorem gives the hypergradient (Mehra and Hamm 2021, eq. 9) where
    v = v*(u). The linear solve makes the method: `CG` is that of Pedregosa (2016) and
    Rajeswaran et al. (2019), `Neumann` of Lorraine et al. (2020), `ByOptimizer` with Adam the papers'
    ApproxGrad (Domke 2012). It is warm-started from the last step's answer.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers; the upper one without a line search.
        lower_steps: T, moves of v per move of u.
        linear_solve: one of `bilevax.linear_solve`, with its steps and damping.
        curvature: `derivatives.exact` or `derivatives.finite_difference`.

    Cost of a step: T gradients of g, one of f, and a product with the Hessian of g for each step of
    the linear solve. Memory: that of u, v, q and the optimizers; it does not grow with T.
    `extra["linear_residual"]` is |H q - grad_v f|.

    Where v lives in a set (`project_lower`), the system is that of the fixed point of a projected descent
    (`derivatives.fixed_point`), so that the direction is right where the bound is active, too. A projection is two
    products with its derivative for each product with the Hessian, and one product more. For sets other than boxes take
    plain descent below: the ends of projected Adam depend on its scales. With a `lower_start` that depends on u nothing
    goes back through the start; in the limit of many moves v*(u) does not depend on it.
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_steps: int = 10
    linear_solve: LinearSolve = CG()
    curvature: derivatives.Curvature = derivatives.exact

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a project_lower that is not a projection, and what no solver can treat."""
        base.refuse_constraints(self, problem)
        problem.check(u, v, batch)
        base.check_optimizers(self, problem, u, v, batch, upper=base.Known.VALUE, lower=base.Known.FUNCTION)
        derivatives.require_projection("Implicit", "project_lower", problem.project_lower, v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """The state at (u, v), q zero."""
        return base.start(self, u, v, memory=optax.tree.zeros_like(v))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of v along grad_v g, a linear solve for q, one move of u."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        v = base.start_of_step(problem, state, batch, start_key)
        descent = base.Descent(problem, state.u, self.lower_optimizer)
        v, lower_opt, _ = descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)
        f = derivatives.upper(problem, state.u, v, batch.upper, upper_key)
        data = base.lower_data(batch, self.lower_steps - 1)
        g = derivatives.lower(problem, state.u, v, data, upper_key, curvature=self.curvature)
        second_products, b = derivatives.on_set(problem, state.u, v, g, f.grad_v)
        q, cross, residual = self.linear_solve(second_products, b, state.memory)
        direction = optax.tree.sub(f.grad_u, cross)
        u, upper_opt = base.move_upper(self, problem, state, direction, base.Objective(f.loss))
        extra = {"linear_residual": residual}
        info = base.Info(f.loss, g.loss, optax.tree.norm(direction), optax.tree.norm(g.grad_v), extra)
        return base.State(u, v, upper_opt, lower_opt, q), info
