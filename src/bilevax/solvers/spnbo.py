"""Smoothing and penalty method for non-smooth lower levels, with doubly stochastic gradients."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import InputError, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.schedules import Geometric, Schedule
from bilevax.solvers import base


@runtime_checkable
class Rows(Protocol):
    """A rule for sampling rows of the constraint grad_v g = 0."""

    def check(self, v: PyTree) -> None:
        """Raise InputError for a v with too few rows."""
        ...

    def second_products(self, rows: "Constraint", key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Return an unbiased estimate of (grad2_uv g . p, grad2_vv g . p) for p = beta grad_v g + alpha."""
        ...


class Constraint(NamedTuple):
    """The constraint grad_v g = 0 at a point, with its penalty parameter beta and multipliers alpha."""

    problem: Problem
    u: PyTree
    v: PyTree
    data: PyTree
    key: PRNGKeyArray
    mu: Any
    beta: Any
    alpha: PyTree

    def full(self) -> derivatives.Lower:
        """Return the derivatives of g, for all rows."""
        return derivatives.lower(self.problem, self.u, self.v, self.data, self.key, mu=self.mu)

    def weights(self, gradient: PyTree, alpha: PyTree) -> PyTree:
        """Return p = beta grad_v g + alpha."""
        return jax.tree.map(lambda c, a: (self.beta * c + a).astype(c.dtype), gradient, alpha)


@dataclass(frozen=True)
class AllRows:
    """All rows, without sampling."""

    def check(self, v: PyTree) -> None:
        """Accept every v."""

    def second_products(self, rows: Constraint, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Return the exact products."""
        g = rows.full()
        return g.second_products(rows.weights(g.grad_v, rows.alpha))


@dataclass(frozen=True)
class Layers:
    """The rows of random layers of v, drawn at each move, weighted by the number of all layers over `count`.

    A layer consists of the leaves of v under one name (a leaf at the top level is a layer), in the order of the tree.
    The reverse pass ends at the first drawn layer, and the forward pass along p starts there. So the saving is large if
    few layers are drawn, and if the last layers are the most expensive. The compiled step has a branch for each
    possible first layer.

    Args:
        count: the number of layers drawn; at most as many as v has. Published: 4 of 10, and 2 of 4 for few-shot
            learning.
    """

    count: int = 1

    def __post_init__(self) -> None:
        settle_counts(self, "count")

    def check(self, v: PyTree) -> None:
        """Refuse a v with fewer layers than are to be drawn."""
        found = len(layers_of(v))
        if self.count > found:
            raise InputError(f"SPNBO: Layers has count={self.count}, and v has {found} layers. Lower count.")

    def second_products(self, rows: Constraint, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Return the products for the rows of the drawn layers."""
        layers, alphas = layers_of(rows.alpha), jax.tree.leaves(rows.alpha)
        order = jax.random.permutation(key, len(layers))
        drawn = jnp.zeros(len(layers)).at[order[: self.count]].set(len(layers) / self.count)

        def from_layer(first: int) -> tuple[PyTree, PyTree]:
            above = range(first, len(layers)) if self.count > 1 else [first]
            places = [place for layer in above for place in layers[layer]]
            shares = [drawn[layer] for layer in above for _ in layers[layer]]
            g = derivatives.lower_rows(rows.problem, rows.u, rows.v, rows.data, rows.key, places, mu=rows.mu)
            p = rows.weights(g.grad_v, [alphas[place] for place in places])
            return g.second_products([(share * x).astype(x.dtype) for share, x in zip(shares, p, strict=True)])

        branches = [functools.partial(from_layer, first) for first in range(len(layers) - self.count + 1)]
        return jax.lax.switch(jnp.min(order[: self.count]), branches)


def layers_of(v: PyTree) -> list[list[int]]:
    """Return the indices of each layer's leaves among the leaves of a tree; leaves under one name are one layer."""
    found: dict[Any, list[int]] = {}
    for place, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(v)[0]):
        found.setdefault(path[:-1] or path, []).append(place)
    return list(found.values())


class SPNBOMemory(NamedTuple):
    """The stage, the multipliers and the last test.

    Attributes:
        stage: the number of the stage.
        stage_steps: the number of steps taken in it.
        alpha: the multipliers, shaped like v.
        found: stationarity, Psi, |c|^2 and g from the last test of the end of a stage.
    """

    stage: Int[Array, ""]
    stage_steps: Int[Array, ""]
    alpha: PyTree
    found: Float[Array, "4"]


@dataclass(frozen=True)
class SPNBO:
    """SPNBO (ICLR 2022 submission), Algorithm 1: a penalty method for a non-smooth lower level, smoothed by stage.

    The regulariser of the problem is smoothed with mu_k (see `bilevax.penalties`), and the lower level is replaced by
    its first-order condition c = grad_v g = 0. v moves T times and u once down the augmented Lagrangian

        f + alpha . c + beta_k / 2 |c|^2,

    whose gradient is that of f plus second_products(p), p = beta_k c + alpha. Both f and c are estimated, by the
    minibatches of the source, and c also by some of its rows (`rows`); the direction is unbiased. The stage ends when,
    with all rows,

        |grad_u|^2 + |grad_v|^2 <= eps_1^2,   |alpha . c + beta / 2 |c|^2| <= eps_2,   |c|^2 <= eps_3      (3) to (5)

    and then alpha += beta c, mu and the tolerances are halved and beta is doubled. The limit is a stationary point of
    the non-smooth problem (Theorem 1).

    The implementation differs from the text where that is ambiguous or wrong:
    - The Psi of the text is 1/d times the sum over the d rows; here it is the sum, as in `Penalty`, so that the
      multipliers converge to -(grad2_vv g)^-1 grad_v f for any d. For a random row the gradient in the text is an
      unbiased estimate of the mean; here it is weighted for the sum.
    - Line 11 gives lambda_{k+1} an index that also counts stages, and lines 13 to 16 leave mu_{k+1} undefined if the
      conditions fail. Here mu, beta and the tolerances belong to a stage, which ends when the conditions hold.
    - The gradient in the upper variable is printed with grad_w Psi, which must be grad_lambda Psi.
    - Multipliers have the shape of v and start at zero; in the text "alpha_1" is an input without a value.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers that need only gradients; published: gradient descent.
        lower_steps: T, moves of v per move of u.
        rows: `AllRows()` or `Layers(count)`.
        mu, beta, eps_1, eps_2, eps_3: by stage; the defaults are as published.
        step_scale: factor on both optimizers' updates, by stage: the problem becomes stiffer with beta and 1 / mu.
        test_every: the conditions are tested on the current batch after every `test_every` steps; a test costs one
            gradient of f, one of g and one reverse pass through the latter.
        stage_steps: end a stage after this many steps even if the conditions fail. Off (None) by default.

    With mu = 1e-3 from the start, the smoothed problem has curvatures of 1e3 in addition to those of g, and the penalty
    has their squares. Far fewer steps are needed if mu starts at the size of the entries of v and decreases slowly:

        SPNBO(
            optax.adam(0.1, b2=0.99),
            mu=Geometric(0.3, 0.75),
            beta=Geometric(1.0, 1.1),
            step_scale=Geometric(1.0, 0.75),
            stage_steps=250,
        )

    In 11,000 steps this finds the same strengths of lassos with 30 features as a grid of a thousand values, and points
    of group-lasso, l_0.6 and OSCAR problems whose residual (`diagnostics.nonsmooth_stationarity`) is below 1e-3.

    Cost of a step: T + 1 times (gradient of f, the sampled rows of c and their derivatives). Memory: that of u, v,
    alpha and the optimizers. `lower_loss` and `lower_grad_norm` = |c| are those of the last test.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from bilevax import SPNBO, Problem, solve
        >>> from bilevax.schedules import Geometric
        >>> from bilevax.penalties import L1
        >>> problem = Problem(
        ...     upper_loss=lambda u, v, data: jnp.sum((v - jnp.array([1.0, 0.0])) ** 2),
        ...     lower_loss=lambda u, v, data: jnp.sum((v - jnp.array([2.0, 0.5])) ** 2) / 2,
        ...     regularizer=lambda u, v, mu: jnp.sum(u) * L1()(v, mu),
        ... )
        >>> solver = SPNBO(
        ...     mu=Geometric(0.3, 0.75),
        ...     beta=Geometric(1.0, 1.2),
        ...     step_scale=Geometric(1.0, 0.75),
        ...     stage_steps=300,
        ... )
        >>> result = solve(solver, problem, jnp.full(1, 0.2), jnp.ones(2), steps=6000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 1), jnp.round(result.v, 1))
        [1.] [1. 0.]
    """

    upper_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.adam(1e-2)
    lower_steps: int = 20
    rows: Rows = AllRows()
    mu: Schedule | float = Geometric(1e-3, 0.5)
    beta: Schedule | float = Geometric(1.0, 2.0)
    eps_1: Schedule | float = Geometric(1e-2, 0.5)
    eps_2: Schedule | float = Geometric(1e-2, 0.5)
    eps_3: Schedule | float = Geometric(1e-2, 0.5)
    step_scale: Schedule | float = Geometric(1.0, 0.5**0.5)
    test_every: int = 10
    stage_steps: int | None = None

    def __post_init__(self) -> None:
        settle_counts(self, "lower_steps")
        settle_counts(self, "test_every")
        if self.stage_steps is not None:
            settle_counts(self, "stage_steps")
        for name in ("mu", "beta", "eps_1", "eps_2", "eps_3", "step_scale"):
            schedules.require_positive("SPNBO", name, getattr(self, name))
        schedules.require_rising("SPNBO", "beta", self.beta)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, a `project_lower`, more rows than v has, and problems that no solver handles."""
        base.check(self, problem, u, v, batch)
        self.rows.check(v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v): stage 0, multipliers zero."""
        counts = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return base.start(self, u, v, SPNBOMemory(*counts, optax.tree.zeros_like(v), jnp.full(4, jnp.inf)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v T times and u once by doubly stochastic gradients; test every `test_every` steps if the stage ends."""
        start_key, lower_key, upper_key, row_key = jax.random.split(key, 4)
        u, memory = state.u, state.memory
        mu, beta, scale = (schedules.at(x, memory.stage) for x in (self.mu, self.beta, self.step_scale))

        def constraint(v: PyTree, data: PyTree, key: PRNGKeyArray) -> Constraint:
            return Constraint(problem, u, v, data, key, mu, beta, memory.alpha)

        def direction(v: PyTree, data: PyTree, key: PRNGKeyArray) -> PyTree:
            f = derivatives.upper(problem, u, v, batch.upper, key)
            along_v = self.rows.second_products(constraint(v, data, key), jax.random.fold_in(key, 1))[1]
            return optax.tree.add(f.grad_v, along_v)

        v = base.start_of_step(problem, state, batch, start_key)
        descent = base.Descent(problem, u, self.lower_optimizer, direction, scale)
        v, lower_opt, _ = descent.moves(v, state.lower_opt, batch, self.lower_steps, lower_key)
        data = base.lower_data(batch, self.lower_steps - 1)
        here = constraint(v, data, upper_key)
        f = derivatives.upper(problem, u, v, batch.upper, upper_key)
        grad_u = optax.tree.add(f.grad_u, self.rows.second_products(here, row_key)[0])
        moved_u, upper_opt = base.move_upper(self, problem, state, grad_u, scale=scale)

        def test() -> tuple[Any, PyTree]:
            """Return (stationarity, Psi, |c|^2, g) with all rows, and beta c."""
            g = here.full()
            along_u, along_v = g.second_products(here.weights(g.grad_v, memory.alpha))
            squares = [
                optax.tree.norm(optax.tree.add(a, b), squared=True)
                for a, b in ((f.grad_u, along_u), (f.grad_v, along_v))
            ]
            size = optax.tree.norm(g.grad_v, squared=True)
            psi = optax.tree.vdot(memory.alpha, g.grad_v) + beta / 2 * size
            found = jnp.stack([jnp.sqrt(sum(squares)), psi, size, g.loss]).astype(memory.found.dtype)
            return found, here.weights(g.grad_v, optax.tree.zeros_like(g.grad_v))

        last = memory.stage_steps + 1
        due = last % self.test_every == 0
        forced = jnp.zeros((), bool) if self.stage_steps is None else last >= self.stage_steps
        found, taken = jax.lax.cond(
            due | forced | jnp.isinf(memory.found[0]), test, lambda: (memory.found, optax.tree.zeros_like(v))
        )
        limits = (schedules.at(x, memory.stage) for x in (self.eps_1, self.eps_2, self.eps_3))
        met = due
        for value, limit in zip(jnp.abs(found[:3]), limits, strict=True):
            met &= value <= limit
        done = met | forced
        alpha = jax.tree.map(lambda a, c: jnp.where(done, a + c, a), memory.alpha, taken)
        extra = {"stage": memory.stage, "mu": jnp.asarray(mu), "beta": jnp.asarray(beta), "stationarity": found[0]}
        info = base.Info(f.loss, found[3], optax.tree.norm(grad_u), jnp.sqrt(found[2]), extra)
        memory = SPNBOMemory(memory.stage + done, jnp.where(done, 0, last), alpha, found)
        return base.State(moved_u, v, upper_opt, lower_opt, memory), info
