"""BiC-GAFFA: single-loop first-order descent for lower levels with constraints, by a regularised gap function."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import InputError, require_number
from bilevax.problem import Batch, Problem
from bilevax.schedules import Power, Schedule
from bilevax.solvers import base
from bilevax.solvers._multipliers import bounded, caution, lagrangian_of, plain_lagrangian_of, raised, violation
from bilevax.solvers._value_function import Counted


@dataclass(frozen=True)
class BiCGAFFA:
    """BiC-GAFFA: descent on f / c + G, where G is zero if v minimises g under the constraints, and positive otherwise.

    With a second point w, and multipliers z of the lower constraints c(u, v), the doubly regularised gap function is

        G(u, v, z) = max over m of [g(u, v) + m c(u, v) - |m - z|^2 / (2 penalty)]
                     - min over w of [g(u, w) + z c(u, w) + |w - v|^2 / (2 radius)],

    m >= 0 for an inequality. The maximum is at m = max(0, z + penalty c(u, v)). A step moves w once towards its
    minimum, by `value_rate`, and then u, v and z together, at the same point, along the slopes of d (f / weight + G):

        u along d [grad_u f / weight + grad_u (g + m c)(u, v) - grad_u (g + z c)(u, w)], d = min(1, weight),
        v along d [grad_v f / weight + grad_v (g + m c)(u, v) - (v - w) / radius], by `rate`,
        z along d [(m - z) / penalty - c(u, w)], by `multiplier_rate`.

    No second derivative and no inner loop. The weight must grow without bound, slower than the square root of the
    number of steps. (In the paper d is 1, and one rate moves u, v and z.)

    Args:
        upper_optimizer: any optax optimizer that needs only gradients.
        rate, value_rate, multiplier_rate: learning rates of v, w and z, positive.
        radius, penalty: the regularisation of w and of m, positive. Published: 10, and 0.01 to 1.
        weight: number, or schedule of the step k; positive.
        bound: on the size of each multiplier z, positive; it must be larger than those of the solution.

    g + m c must be convex in v, and the multipliers bounded (Slater's condition). Where this fails, `solve` warns:
    `extra["multiplier_norm"]` grows, or `extra["violation"]`, the largest of any entry of c at v, does not fall with
    1 / weight, as it does elsewhere. A `project_lower` may be given. Cost of a step: 3 gradients of g and c, one of f.
    Memory: that of u, v, w, c and the optimizer. `extra["gap"]` is g(u, v) - g(u, w).

    Source: Yao, Yin, Zeng and Zhang, "Overcoming lower-level constraints in bilevel optimization: a novel approach with
    regularized gap functions", ICLR 2025 (arXiv:2406.01992), Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import BiCGAFFA, Inequality, Problem, solve
        >>> problem = Problem(  # v*(u) = min(u, 1 - u)
        ...     lambda u, v, data: jnp.sum((v - 1) ** 2 + 0.1 * u**2),
        ...     lambda u, v, data: jnp.sum((v - u) ** 2),
        ...     lower_constraints=(Inequality(lambda u, v, data: u + v - 1),),
        ... )
        >>> solver = BiCGAFFA(optax.sgd(0.05), rate=0.1, value_rate=0.1, multiplier_rate=0.1)
        >>> result = solve(solver, problem, jnp.zeros(1), jnp.zeros(1), steps=3000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 1), jnp.round(result.v, 1))
        [0.5] [0.5]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    rate: float = 1e-2
    value_rate: float = 1e-2
    multiplier_rate: float = 1e-2
    radius: float = 10.0
    penalty: float = 1.0
    weight: Schedule | float = Power(1.0, 0.4)
    bound: float = 1e3

    def __post_init__(self) -> None:
        for name in ("rate", "value_rate", "multiplier_rate", "radius", "penalty", "bound"):
            value = require_number("BiCGAFFA", name, getattr(self, name))
            if not value > 0:
                raise InputError(f"BiCGAFFA: {name} is {value:g}, and must be positive.")
            object.__setattr__(self, name, value)
        schedules.require_positive("BiCGAFFA", "weight", self.weight)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse upper constraints, and what no solver can treat."""
        base.check(self, problem, u, v, batch, lower_sets=True, lower_constraints=True)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), w = v, with multipliers zero."""
        values = problem.lower_constraint_values(u, v, base.lower_data(batch, 0))
        zero = tuple(jnp.zeros_like(x) for x in values)
        return base.State(u, v, self.upper_optimizer.init(u), (), Counted((v, zero), jnp.zeros((), jnp.int32)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """One move of w, then one of u, of v and of the multipliers."""
        start_key, key = jax.random.split(key)
        u, ((w, z), count) = state.u, state.memory
        v = base.start_of_step(problem, state, batch, start_key)
        w = base.start_of_step(problem, state._replace(v=w), batch, start_key)
        data = base.lower_data(batch, 0)
        weight = schedules.at(self.weight, count)
        scale = jnp.minimum(1.0, weight)

        def moved(x: PyTree, direction: PyTree, rate: float) -> PyTree:
            after = jax.tree.map(lambda x, d: (x - rate * d).astype(x.dtype), x, direction)
            return problem.project_lower(after)

        plain = plain_lagrangian_of(problem, z)
        slope = derivatives.lower_gradient(plain, u, w, data, key)[1]
        w = moved(w, jax.tree.map(lambda d, a, b: d + (a - b) / self.radius, slope, w, v), self.value_rate)
        f = derivatives.upper(problem, u, v, batch.upper, key)
        raising = lagrangian_of(problem, self.penalty, z)
        _, at_v, down = derivatives.lower_slopes(raising, u, v, data, key)
        at_w = derivatives.lower_slopes(plain, u, w, data, key)[1]
        direction = jax.tree.map(lambda d, a, b: (scale * (d / weight + a - b)).astype(d.dtype), f.grad_u, at_v, at_w)
        along = jax.tree.map(lambda d, g, a, b: scale * (d / weight + g - (a - b) / self.radius), f.grad_v, down, v, w)
        after, upper_opt = base.move_upper(self, problem, state, direction)
        m, inside = raised(problem, self.penalty, u, v, data, z), problem.lower_constraint_values(u, w, data)
        rate = self.multiplier_rate * scale
        free = jax.tree.map(lambda z, m, c: (z - rate * ((m - z) / self.penalty - c)).astype(z.dtype), z, m, inside)

        (loss, slope), least = derivatives.lower_gradient(problem, u, v, data, key), problem.lower(u, w, data, key)
        extra = {
            "gap": loss - least,
            "violation": violation(problem, u, v, data),
            "multiplier_norm": optax.tree.norm(z),
        }
        info = base.Info(f.loss, loss, optax.tree.norm(direction), optax.tree.norm(slope), extra)
        memory = Counted((w, bounded(problem, self.bound, free)), count + 1)
        return base.State(after, moved(v, along, self.rate), upper_opt, (), memory), info

    def caution(self, state: base.State, info: base.Info) -> str | None:
        """Return a sentence if a multiplier is at its bound, the violation does not fall, or the multipliers grow."""
        empty = "the lower set is empty at this u, or has no inner point (Slater's condition fails)"
        if any(bool(jnp.any(jnp.abs(z) >= self.bound)) for z in state.memory.points[1]):
            return (
                f"BiCGAFFA: a multiplier of the lower constraints is at its bound, {self.bound:g}. Raise the bound; if "
                f"it gets there again, {empty}."
            )
        outside, half = info.extra["violation"], len(info.upper_loss) // 2
        before, now = (float(schedules.at(self.weight, k)) for k in (half, 2 * half))
        if half > 0 and now > 1.2 * before and outside[-1] > 0.95 * outside[half]:
            return (
                f"BiCGAFFA: the largest violation of the lower constraints is {outside[-1]:.3g}, and does not fall as "
                f"the weight grows. If u has settled, {empty}, and (u, v) is not a solution."
            )
        return caution("BiCGAFFA", info)
