"""The penalty method, with multipliers and upper-level constraints; it does not invert the lower Hessian."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import InputError, settle_counts
from bilevax.problem import Batch, Inequality, Problem
from bilevax.schedules import Geometric, Schedule
from bilevax.solvers import base


class PenaltyMemory(NamedTuple):
    """The stage and the multipliers.

    Attributes:
        stage: the number of the stage.
        stage_steps: the number of steps taken in it.
        nu: the multipliers of grad_v g = 0, shaped like v; None without multipliers.
        constraint_nu: the multipliers of each constraint.
    """

    stage: Int[Array, ""]
    stage_steps: Int[Array, ""]
    nu: PyTree
    constraint_nu: tuple[Float[Array, "..."], ...]


@dataclass(frozen=True)
class Penalty:
    """The penalty method of Mehra and Hamm (ACML 2021): Algorithm 1, and with `lam` and `nu` Algorithm 2.

    With p = gamma grad_v g + nu, u moves along grad_u f + second_products(p)[0] and v along
    grad_v f + second_products(p)[1] + lam grad_v g: alternating descent on

        f + gamma/2 (|grad_v g|^2 + Psi(h)) + nu . grad_v g        (+ lam g, for v only).

    gamma, eps, lam and the step scale depend on the stage k. A stage ends when
    |grad_u|^2 + |grad_v|^2 <= eps_k^2, both at the point from which u moves (with a projection, the
    distances to the projected point); then nu += gamma_k grad_v g and k += 1.

    Constraints h = 0 add gamma/2 |h|^2 + m . h. For h <= 0 the paper uses slack variables, h + s^2 = 0; here they are
    eliminated: the minimum over s of gamma/2 (h + s^2)^2 + m (h + s^2) is at s^2 = max(0, -h - m/gamma), and
    equals gamma/2 (max(0, h + m/gamma)^2 - (m/gamma)^2) (Bertsekas 1982, section 3.1). At the end of a stage the
    multipliers m change as nu does, by m += gamma h and m = max(0, m + gamma h).

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers that need only gradients, here those of the penalty
            function.
        lower_steps: T, moves of v per move of u.
        gamma: weight of the penalty by stage; positive, never decreasing.
        eps: tolerance that ends a stage, by stage; positive.
        lam: weight of g in the moves of v, by stage. It keeps v from maxima and saddle points of a
            g that is not convex (appendix C.1); it should become small relative to gamma.
        nu: factor of gamma_k grad_v g in the update of the multipliers at the end of a stage. 1 is the method of
            multipliers, with which gamma can stay finite; 0 keeps them at zero (Algorithm 1).
        step_scale: factor on both optimizers' updates, by stage. The penalty function becomes stiffer as gamma grows;
            with steps that do not shrink, the iterates stop at a distance from the solution.
        stage_steps: end a stage after this many steps even if its tolerance is not met. Off (None) by
            default.
        curvature: `derivatives.exact` or `derivatives.finite_difference`.

    Cost of a step: T + 1 times (gradient of f, gradient of g, one reverse pass through the latter).
    Memory: that of u, v, nu and the optimizers; it does not grow with T. The condition number of the lower problem is
    the square of that of g: above about 1e2 use multipliers, per-layer learning rates, or `Implicit`.

    If g is random (minibatches, dropout, augmentation), |grad_v g|^2 includes the variance of the gradient, and u moves
    to make it small. Then use a gamma well below 1 and update the multipliers at every step (`stage_steps=1`): nu is
    the sum of gamma grad_v g over all batches so far, whose noise averages out. Or use `Implicit`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import Penalty, Problem, solve
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum(u**2) + jnp.sum(v**2),
        ...     lower_loss=lambda u, v, data: jnp.sum((1 - u - v) ** 2),
        ... )
        >>> result = solve(Penalty(), problem, jnp.zeros(3), jnp.zeros(3), steps=2000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5 0.5] [0.5 0.5 0.5]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_steps: int = 10
    gamma: Schedule | float = Geometric(1.0, 1.1)
    eps: Schedule | float = Geometric(1.0, 0.9)
    lam: Schedule | float = 0.0
    nu: float = 1.0
    step_scale: Schedule | float = Geometric(1.0, 1 / 1.1)
    stage_steps: int | None = None
    curvature: derivatives.Curvature = derivatives.exact

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")
        if self.stage_steps is not None:
            settle_counts(self, "stage_steps")
        schedules.require_positive("Penalty", "gamma", self.gamma)
        schedules.require_rising("Penalty", "gamma", self.gamma)
        schedules.require_positive("Penalty", "eps", self.eps)
        schedules.require_positive("Penalty", "lam", self.lam, zero=True)
        schedules.require_positive("Penalty", "step_scale", self.step_scale)
        if not self.nu >= 0:
            raise InputError(f"Penalty: nu is {self.nu}, and must be zero (no multipliers) or positive.")

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse a `project_lower`, and problems that no solver handles."""
        base.check(self, problem, u, v, batch, constraints=True)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v): stage 0, all multipliers zero."""
        values = jax.eval_shape(problem.constraint_values, u, v, batch.upper)
        memory = PenaltyMemory(
            stage=jnp.zeros((), jnp.int32),
            stage_steps=jnp.zeros((), jnp.int32),
            nu=None if self.nu == 0 else optax.tree.zeros_like(v),
            constraint_nu=tuple(jnp.zeros(h.shape, h.dtype) for h in values),
        )
        return base.start(self, u, v, memory)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times and u once on the penalty function, then test whether the stage ends."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        u, memory = state.u, state.memory
        gamma, lam, eps, scale = (
            schedules.at(x, memory.stage) for x in (self.gamma, self.lam, self.eps, self.step_scale)
        )

        def directions(
            v: PyTree, data: PyTree, key: PRNGKeyArray
        ) -> tuple[PyTree, PyTree, derivatives.Upper, derivatives.Lower]:
            """Return the gradients of the penalty function in u and in v, and the derivatives of f and of g."""
            f = derivatives.upper(
                problem, u, v, batch.upper, key, lambda h: _constraint_term(problem, h, memory.constraint_nu, gamma)
            )
            g = derivatives.lower(problem, u, v, data, key, curvature=self.curvature)
            p = _weighted(gamma, g.grad_v)
            if memory.nu is not None:
                p = optax.tree.add(p, memory.nu)
            along_u, along_v = g.second_products(p)
            grad_u = optax.tree.add(f.grad_u, along_u)
            grad_v = optax.tree.add(optax.tree.add(f.grad_v, along_v), _weighted(lam, g.grad_v))
            return grad_u, grad_v, f, g

        descent = base.Descent(problem, u, self.lower_optimizer, lambda *at: directions(*at)[1], scale)
        v = base.start_of_step(problem, state, batch, start_key)
        v, lower_opt, _ = descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)
        grad_u, grad_v, f, g = directions(v, base.lower_data(batch, self.lower_steps - 1), upper_key)
        moved_u, upper_opt = base.move_upper(self, problem, state, grad_u, scale=scale)

        stationarity = base.stationarity(u, grad_u, problem.project_upper) + base.stationarity(
            v, grad_v, problem.project_lower
        )
        done = stationarity <= eps**2
        if self.stage_steps is not None:
            done |= memory.stage_steps + 1 >= self.stage_steps
        nu, constraint_nu = memory.nu, memory.constraint_nu
        if self.nu > 0:
            rate = jnp.where(done, self.nu * gamma, 0.0)
            nu = optax.tree.add(nu, _weighted(rate, g.grad_v))
            constraint_nu = tuple(
                jnp.where(done, _multiplier(c, m, h, self.nu * gamma), m)
                for c, m, h in zip(problem.constraints, constraint_nu, f.constraints, strict=True)
            )
        extra = {"stage": memory.stage, "gamma": jnp.asarray(gamma), "stationarity": jnp.sqrt(stationarity)}
        if problem.constraints:
            extra["constraint_violation"] = violation(problem, f.constraints)
            extra["multiplier_norm"] = optax.tree.norm(constraint_nu)
        info = base.Info(f.loss, g.loss, optax.tree.norm(grad_u), optax.tree.norm(g.grad_v), extra)
        memory = PenaltyMemory(memory.stage + done, jnp.where(done, 0, memory.stage_steps + 1), nu, constraint_nu)
        return base.State(moved_u, v, upper_opt, lower_opt, memory), info


def violation(problem: Problem, values: tuple[Float[Array, "..."], ...]) -> Float[Array, ""]:
    """Return the largest amount by which an entry of a constraint is violated."""
    amounts = [
        jnp.max(jnp.maximum(h, 0) if isinstance(c, Inequality) else jnp.abs(h))
        for c, h in zip(problem.constraints, values, strict=True)
    ]
    return jnp.max(jnp.stack(amounts))


def _constraint_term(problem: Problem, values: tuple[Any, ...], nu: tuple[Any, ...], gamma: Any) -> Any:
    total = 0.0
    for constraint, h, m in zip(problem.constraints, values, nu, strict=True):
        if isinstance(constraint, Inequality):
            total += gamma / 2 * jnp.sum(jnp.maximum(0, h + m / gamma) ** 2 - (m / gamma) ** 2)
        else:
            total += jnp.sum(gamma / 2 * h**2 + m * h)
    return total


def _multiplier(constraint: Any, m: Any, h: Any, gamma: Any) -> Any:
    moved = m + gamma * h
    return jnp.maximum(0, moved) if isinstance(constraint, Inequality) else moved


def _weighted(weight: Any, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: (weight * x).astype(x.dtype), tree)
