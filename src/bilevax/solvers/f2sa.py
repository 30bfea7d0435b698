"""F2SA: the hypergradient as a finite difference in the weight of f, from gradients alone."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import InputError, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.schedules import Schedule
from bilevax.solvers import base
from bilevax.solvers._value_function import Counted, require_bounded

# For each order: the nodes j, the weights of the derivative at zero, and those of the value at zero.
RULES = {
    1: ((0, 1), (-1, 1), (1, 0)),
    2: ((-1, 1), (-1 / 2, 1 / 2), (1 / 2, 1 / 2)),
    3: ((-1, 0, 1, 2), (-1 / 3, -1 / 2, 1, -1 / 6), (0, 1, 0, 0)),
    4: ((-2, -1, 1, 2), (1 / 12, -2 / 3, 2 / 3, -1 / 12), (-1 / 6, 2 / 3, 2 / 3, -1 / 6)),
}


@dataclass(frozen=True)
class F2SA:
    """F2SA and F2SA-p: first-order bilevel descent by finite differences in the weight of f.

    Let y_s minimise g(u, y) + s f(u, y) in y. The derivative of that minimum in s at s = 0 is F(u) = f(u, v*(u)), so

        grad F(u) = d/ds [grad_u g(u, y_s) + s grad_u f(u, y_s)] at s = 0,

    and a difference rule with the nodes s = j nu estimates it to O(nu^order). The copies y_s move by gradient descent
    on g + s f, all on the same batches. No second derivative is needed.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers that need only gradients; the lower one moves each copy.
        lower_steps: T, moves of each copy per move of u.
        nu: number, or schedule of the step k; positive. The penalty parameter of Kwon et al. is 1 / nu.
        order: 1 (two copies, forward difference), 2 (two copies, central difference), 3 or 4 (four copies).

    From order 2 on, copies with s < 0 minimise g - |s| f, which has a minimum only if nu is small enough; `check`
    refuses a nu for which it finds g to curve up and g - |s| f to curve down, at the start. Take order 1 if f grows
    faster than g. Each copy continues from its own last value. (The authors' code starts all from their mean; T moves
    then find only a part of their differences.) v is the value of the copies at s = 0, to the same order: the copy
    without f for orders 1 and 3, and otherwise a weighted mean. A `project_lower` may be given.

    Cost of a step: T + 1 gradients of g and of f for each copy, and one of each at v. Memory: that of u and, for each
    copy, of v and its optimizer. `extra["decrease"]` is f at the lowest s minus f at the highest, which is not negative
    for minimisers: f(u, y_s) does not increase with s.

    Source: Kwon, Kwon, Wright and Nowak, "A fully first-order method for stochastic bilevel optimization", ICML 2023
    (order 1); Chen et al., "Faster gradient methods for highly-smooth stochastic bilevel optimization",
    arXiv:2509.02937 (higher orders).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import F2SA, Problem, solve
        >>> problem = Problem(lambda u, v, data: jnp.sum((v - 1) ** 2), lambda u, v, data: jnp.sum((v - 2 * u) ** 2))
        >>> solver = F2SA(optax.sgd(0.05), optax.sgd(0.2))
        >>> result = solve(solver, problem, jnp.zeros(2), jnp.zeros(2), steps=300, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        [0.5 0.5] [1. 1.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    lower_steps: int = 10
    nu: Schedule | float = 0.1
    order: int = 2

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps", "order")
        if self.order not in RULES:
            raise InputError(f"F2SA: order is {self.order}, and must be one of 1, 2, 3 and 4.")
        schedules.require_positive("F2SA", "nu", self.nu)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a nu for which g - |s| f has no minimum, and what no solver can treat."""
        base.check(self, problem, u, v, batch, lower_sets=True)
        lowest = min(RULES[self.order][0])
        if lowest < 0:
            require_bounded("F2SA", problem, u, v, batch, -lowest * schedules.at(self.nu, jnp.zeros((), jnp.int32)))

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with all copies at v."""
        nodes = len(RULES[self.order][0])
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (nodes, *x.shape)), v)
        opt = jax.vmap(self.lower_optimizer.init)(copies)
        return base.State(u, v, self.upper_optimizer.init(u), opt, Counted(copies, jnp.zeros((), jnp.int32)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move each copy T times, and u once along the difference."""
        start_key, lower_key, upper_key = jax.random.split(key, 3)
        u, (copies, count) = state.u, state.memory
        nodes, slopes, values = (np.asarray(x, float) for x in RULES[self.order])
        nu = schedules.at(self.nu, count)
        if problem.lower_start is not None:
            v = base.start_of_step(problem, state, batch, start_key)
            copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(nodes), *x.shape)), v)

        def moved(v: PyTree, opt: optax.OptState, s: Any) -> tuple[PyTree, Any]:
            def slope(v: PyTree, data: PyTree, key: PRNGKeyArray) -> PyTree:
                f = derivatives.upper(problem, u, v, batch.upper, key)
                g = derivatives.lower_gradient(problem, u, v, data, key)[1]
                return jax.tree.map(lambda a, b: (a + s * b).astype(a.dtype), g, f.grad_v)

            descent = base.Descent(problem, u, self.lower_optimizer, slope)
            return descent.moves(v, opt, batch, self.lower_steps, lower_key)[:2]

        copies, opt = jax.vmap(moved)(copies, state.lower_opt, nu * nodes)
        v = problem.project_lower(_combined(values, copies))
        data = base.lower_data(batch, self.lower_steps - 1)
        points = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), copies, v)  # the losses are recorded at v
        f = jax.vmap(lambda v: derivatives.upper(problem, u, v, batch.upper, upper_key))(points)
        loss, at_u, at_v = jax.vmap(lambda v: derivatives.lower_slopes(problem, u, v, data, upper_key))(points)
        of_copies = jax.tree.map(lambda x: x[:-1], (f.grad_u, at_u))
        direction = jax.tree.map(
            lambda a, b: (a + b / nu).astype(a.dtype),
            _combined(slopes * nodes, of_copies[0]),
            _combined(slopes, of_copies[1]),
        )
        moved_u, upper_opt = base.move_upper(self, problem, state, direction)
        slope = optax.tree.norm(jax.tree.map(lambda x: x[-1], at_v))
        extra = {"decrease": f.loss[0] - f.loss[-2]}
        info = base.Info(f.loss[-1], loss[-1], optax.tree.norm(direction), slope, extra)
        return base.State(moved_u, v, upper_opt, opt, Counted(copies, count + 1)), info


def _combined(weights: np.ndarray, tree: PyTree) -> PyTree:
    """Return the sum of the entries of the leading axis with these weights."""
    return jax.tree.map(lambda x: jnp.tensordot(jnp.asarray(weights, x.dtype), x, 1), tree)
