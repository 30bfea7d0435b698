"""The value-function interior-point method."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import settle_counts
from bilevax.problem import Batch, Problem
from bilevax.schedules import Geometric, Schedule
from bilevax.solvers import base
from bilevax.solvers._value_function import Values


@dataclass(frozen=True)
class BVFIM:
    """BVFIM: a value-function-based interior-point method for non-convex lower levels (Liu et al., ICML 2021).

    The lower level is the constraint g(u, v) <= min over z of g(u, z), with a barrier. With z near the minimiser,

        value = g(u, z) + damping / 2 |z|^2 + slack,
        v minimises f(u, v) + damping / 2 |v|^2 - barrier ln(value - g(u, v)),
        u moves along grad_u f(u, v) + barrier (grad_u g(u, v) - grad_u g(u, z)) / (value - g(u, v)),

    and slack, damping and barrier fall to zero. The method needs no second derivative. g need not be convex in v, and
    its minimiser need not be unique: among several minimisers, the method finds the one with the least f.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers that need only gradients; the lower one moves z and v.
        lower_steps: T, moves of z and then of v per move of u.
        slack, damping, barrier: numbers, or schedules of the step k; positive. v converges to a distance of about
            sqrt(slack) from a minimiser of g. With a barrier of about the same size, the inner problem is no stiffer
            than g.

    v starts from its last value if that is still feasible, and otherwise from z, which is always feasible. If a move
    makes v infeasible, the slope of the barrier at a hundredth of the slack moves it back.

    Cost of a step: 2 T + 2 gradients of g and T + 1 of f. Memory: that of u, v, z and the optimizers.
    `lower_grad_norm` is |grad_v g| at z, `extra["gap"]` is value - g(u, v).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import BVFIM, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = BVFIM(optax.adam(optax.cosine_decay_schedule(1e-2, 2000)))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=2000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 1), jnp.round(result.v, 1))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    lower_steps: int = 20
    slack: Schedule | float = Geometric(1e-2, 0.998, low=1e-4)
    damping: Schedule | float = Geometric(0.1, 0.995, low=1e-6)
    barrier: Schedule | float = Geometric(0.1, 0.999, low=1e-2)

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")
        for name in ("slack", "damping", "barrier"):
            schedules.require_positive("BVFIM", name, getattr(self, name))

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and what no solver can treat."""
        base.check(self, problem, u, v, batch, lower_sets=True)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """The state at (u, v), z = v."""
        return base.start(self, u, v, Values(v, self.lower_optimizer.init(v), jnp.zeros((), jnp.int32)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of z down g, T of v inside the barrier, one of u."""
        start_key, z_key, v_key, upper_key = jax.random.split(key, 4)
        u, memory = state.u, state.memory
        slack, damping, barrier = (schedules.at(x, memory.count) for x in (self.slack, self.damping, self.barrier))

        def damped(gradient: PyTree, x: PyTree) -> PyTree:
            return jax.tree.map(lambda d, a: (d + damping * a).astype(d.dtype), gradient, x)

        def to_value(z: PyTree, data: PyTree, key: PRNGKeyArray) -> PyTree:
            return damped(derivatives.lower_gradient(problem, u, z, data, key)[1], z)

        z = base.start_of_step(problem, state._replace(v=memory.z), batch, start_key)
        descent = base.Descent(problem, u, self.lower_optimizer, to_value)
        z, z_opt, _ = descent.moves(z, memory.z_opt, batch, self.lower_steps, z_key)
        data = base.lower_data(batch, self.lower_steps - 1)
        least, least_u, least_v = derivatives.lower_slopes(problem, u, z, data, upper_key)
        value = least + damping / 2 * optax.tree.norm(z, squared=True) + slack

        def weight(loss: Any) -> Any:
            return barrier / jnp.maximum(value - loss, 1e-2 * slack)

        def inside(v: PyTree, data: PyTree, key: PRNGKeyArray) -> PyTree:
            f = derivatives.upper(problem, u, v, batch.upper, key)
            loss, slope = derivatives.lower_gradient(problem, u, v, data, key)
            w = weight(loss)
            # Dividing by 1 + w does not change the minimiser, and a learning rate for g is also right for the sum.
            pushed = jax.tree.map(lambda a, b, x: (a + w * b + damping * x) / (1 + w), f.grad_v, slope, v)
            return optax.tree.cast_like(pushed, v)

        before = base.start_of_step(problem, state, batch, start_key)
        within = derivatives.lower_gradient(problem, u, before, data, upper_key)[0] < value
        v = optax.tree.where(within, before, z)
        descent = base.Descent(problem, u, self.lower_optimizer, inside)
        v, lower_opt, _ = descent.moves(v, state.lower_opt, batch, self.lower_steps, v_key)
        f = derivatives.upper(problem, u, v, batch.upper, upper_key)
        loss, at_v, _ = derivatives.lower_slopes(problem, u, v, data, upper_key)
        direction = jax.tree.map(lambda d, a, b: (d + weight(loss) * (a - b)).astype(d.dtype), f.grad_u, at_v, least_u)
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        extra = {"gap": value - loss}
        info = base.Info(f.loss, loss, optax.tree.norm(direction), optax.tree.norm(least_v), extra)
        memory = Values(z, z_opt, memory.count + 1)
        return base.State(moved, v, upper_opt, lower_opt, memory), info
