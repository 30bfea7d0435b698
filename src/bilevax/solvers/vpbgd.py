"""V-PBGD: penalty descent on the gap of the lower level's value function."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import settle_counts
from bilevax._optimizers import check_optimizer
from bilevax.problem import Batch, Problem
from bilevax.schedules import Geometric, Schedule
from bilevax.solvers import base
from bilevax.solvers._value_function import Values


@dataclass(frozen=True)
class VPBGD:
    """V-PBGD: descent of u and v on f(u, v) + gamma (g(u, v) - min over z of g(u, z)).

    z moves T times along grad_v g(u, z) and stands for the minimiser. Then

        v moves along c (grad_v f(u, v) + gamma grad_v g(u, v)), c = min(1, 1 / gamma),
        u moves along c (grad_u f(u, v) + gamma (grad_u g(u, v) - grad_u g(u, z))).

    Due to c, learning rates for g stay right as gamma grows. Without c in the direction of u, u moves faster than v
    can follow, and the difference of the two gradients of g is that of a lag. If g has several minimisers, v goes
    to the best of them for f. g need not be convex; its gradient must vanish at minimisers alone.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers that need only gradients; the lower one moves v.
        value_optimizer: the same for z; None for that of v.
        lower_steps: T, moves of z and then of v per move of u. Published: 1.
        gamma: number, or schedule of the step k; positive, not falling. v converges to a distance of the order of
            1 / gamma from a minimiser of g, and u likewise from a solution.

    A `project_lower` may be given. Cost of a step: 2 T + 2 gradients of g and T + 1 of f. Memory: that of u, v, z
    and the optimizers. `lower_grad_norm` is |grad_v g| at z. `extra["gap"]` is g(u, v) - g(u, z).

    Source: Shen and Chen, "On penalty-based bilevel gradient descent method", ICML 2023, Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import VPBGD, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = VPBGD(optax.sgd(0.05), optax.sgd(0.1))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=2000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 2), jnp.round(result.v, 2))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    value_optimizer: optax.GradientTransformation | None = None
    lower_steps: int = 1
    gamma: Schedule | float = Geometric(1.0, 1.005, high=100.0)

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")
        schedules.require_positive("VPBGD", "gamma", self.gamma)
        schedules.require_rising("VPBGD", "gamma", self.gamma)

    @property
    def _of_z(self) -> optax.GradientTransformation:
        return self.lower_optimizer if self.value_optimizer is None else self.value_optimizer

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, and what no solver can treat."""
        base.check(self, problem, u, v, batch, lower_sets=True)
        check_optimizer("VPBGD", "value_optimizer", self._of_z, "v", v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), z = v."""
        return base.start(self, u, v, Values(v, self._of_z.init(v), jnp.zeros((), jnp.int32)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of z down g, T of v down the penalty function, one of u."""
        start_key, z_key, v_key, upper_key = jax.random.split(key, 4)
        u, memory = state.u, state.memory
        gamma = schedules.at(self.gamma, memory.count)
        scale = jnp.minimum(1.0, 1 / gamma)

        def penalised(v: PyTree, data: PyTree, key: PRNGKeyArray) -> PyTree:
            f = derivatives.upper(problem, u, v, batch.upper, key)
            g = derivatives.lower_gradient(problem, u, v, data, key)[1]
            return jax.tree.map(lambda a, b: (scale * (a + gamma * b)).astype(a.dtype), f.grad_v, g)

        z = base.start_of_step(problem, state._replace(v=memory.z), batch, start_key)
        down = base.Descent(problem, u, self._of_z)
        z, z_opt, _ = down.moves(z, memory.z_opt, batch, self.lower_steps, z_key)
        v = base.start_of_step(problem, state, batch, start_key)
        descent = base.Descent(problem, u, self.lower_optimizer, penalised)
        v, lower_opt, _ = descent.moves(v, state.lower_opt, batch, self.lower_steps, v_key)

        data = base.lower_data(batch, self.lower_steps - 1)
        f = derivatives.upper(problem, u, v, batch.upper, upper_key)
        loss, at_v, _ = derivatives.lower_slopes(problem, u, v, data, upper_key)
        least, at_z, slope = derivatives.lower_slopes(problem, u, z, data, upper_key)
        direction = jax.tree.map(lambda d, a, b: (scale * (d + gamma * (a - b))).astype(d.dtype), f.grad_u, at_v, at_z)
        moved, upper_opt = base.move_upper(self, problem, state, direction)
        info = base.Info(f.loss, loss, optax.tree.norm(direction), optax.tree.norm(slope), {"gap": loss - least})
        return base.State(moved, v, upper_opt, lower_opt, Values(z, z_opt, memory.count + 1)), info
