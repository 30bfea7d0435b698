"""Smoothing and penalty method for non-smooth lower levels, by doubly stochastic gradients."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from bilevax import derivatives, schedules
from bilevax._checks import InputError, settle_counts
from bilevax.problem import Batch, Problem
from bilevax.schedules import Geometric, Schedule
from bilevax.solvers import base


@runtime_checkable
class Rows(Protocol):
    """How the rows of the constraint grad_v g = 0 are sampled."""

    def check(self, v: PyTree) -> None:
        """Raise InputError for a v with fewer rows than are asked for."""
        ...

    def second_products(self, rows: "Constraint", key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """An unbiased estimate of (grad2_uv g . p, grad2_vv g . p), p = beta grad_v g + alpha."""
        ...


class Constraint(NamedTuple):
    """grad_v g = 0 at a point, and what weighs it."""

    problem: Problem
    u: PyTree
    v: PyTree
    data: PyTree
    key: PRNGKeyArray
    mu: Any
    beta: Any
    alpha: PyTree

    def full(self) -> derivatives.Lower:
        """All rows."""
        return derivatives.lower(self.problem, self.u, self.v, self.data, self.key, mu=self.mu)

    def weights(self, gradient: PyTree, alpha: PyTree) -> PyTree:
        """The p = beta grad_v g + alpha of the products."""
        return jax.tree.map(lambda c, a: (self.beta * c + a).astype(c.dtype), gradient, alpha)


@dataclass(frozen=True)
class AllRows:
    """All rows: nothing is sampled."""

    def check(self, v: PyTree) -> None:
        """Nothing to refuse."""

    def second_products(self, rows: Constraint, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """The products themselves."""
        g = rows.full()
        return g.second_products(rows.weights(g.grad_v, rows.alpha))


@dataclass(frozen=True)
class Layers:
    """The rows of so many layers of v, drawn anew at each move, weighted by their share of the layers.

    A layer is the leaves that v has under one name (a leaf at its top is one alone), in the order of the tree. The
    gradient goes back to the first of the drawn layers, and the derivative along p from there on: that is what is
    saved, so it pays most where few are drawn, and where the last of them cost much. Each first layer has a branch of
    its own in the compiled step.

    Args:
        count: layers; at most as many as v has. Published: 4 of 10, and 2 of 4 for few-shot learning.
    """

    count: int = 1

    def __post_init__(self) -> None:
        settle_counts(self, "count")

    def check(self, v: PyTree) -> None:
        """Refuse fewer layers than are to be drawn."""
        found = len(layers_of(v))
        if self.count > found:
            raise InputError(f"SPNBO: Layers asks for {self.count} layers, and v has {found}. Ask for fewer.")

    def second_products(self, rows: Constraint, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """The products of the drawn layers' rows."""
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
    """The places of each layer's leaves among those of a tree: leaves under one name are one layer."""
    found: dict[Any, list[int]] = {}
    for place, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(v)[0]):
        found.setdefault(path[:-1] or path, []).append(place)
    return list(found.values())


class SPNBOMemory(NamedTuple):
    """The stage, the steps taken in it, the multipliers, and the values of the last test of a stage's end (4,)."""

    stage: Int[Array, ""]
    stage_steps: Int[Array, ""]
    alpha: PyTree
    found: Any


@dataclass(frozen=True)
class SPNBO:
    """SPNBO (ICLR 2022 submission), Algorithm 1: `Penalty`'s idea on a non-smooth lower level, smoothed by stage.

    The regulariser of the problem is smoothed by mu_k (see `bilevax.penalties`), c = grad_v g = 0 is its first-order
    condition, and u and v descend, v T times and u once, on the augmented Lagrangian

        f + alpha . c + beta_k / 2 |c|^2,

    whose gradient is that of f plus second_products(p), p = beta_k c + alpha. Both f and c are estimated: by the
    minibatches of the source, and by some rows of c (`rows`), which leaves the direction unbiased. The stage ends when,
    with all rows,

        |grad_u|^2 + |grad_v|^2 <= eps_1^2,   |alpha . c + beta / 2 |c|^2| <= eps_2,   |c|^2 <= eps_3      (3) to (5)

    and then alpha += beta c, mu and the tolerances are halved and beta is doubled. Their limit is a stationary point of
    the non-smooth problem (Theorem 1).

    Where the text is ambiguous or wrong, this was decided:
    - its Psi is 1/d times the sum over the d rows; here it is the sum, as in `Penalty`, so that the multipliers tend to
      -(grad2_vv g)^-1 grad_v f whatever d is. With a row drawn among d the text's single-row gradient is unbiased for
      its mean; ours is weighted for the sum.
    - line 11 gives lambda_{k+1} an index that also counts stages, and lines 13 to 16 leave mu_{k+1} undefined where the
      conditions fail: here mu, beta and the tolerances belong to a stage, which ends when the conditions hold.
    - its gradient in the upper variable is printed with grad_w Psi, which must be grad_lambda Psi.
    - multipliers are vectors of v's shape and start at zero; "alpha_1" is an input there, without a value.

    Args:
        upper_optimizer, lower_optimizer: any optax optimizers that need gradients alone; published: descent.
        lower_steps: T, moves of v per move of u.
        rows: `AllRows()` or `Layers(count)`.
        mu, beta, eps_1, eps_2, eps_3: by stage; as published by default.
        step_scale: factor on both optimizers' updates, by stage: the problem grows stiffer with beta and 1 / mu.
        test_every: the conditions are tested on the batch at hand after every so many steps; a test costs one gradient
            of f, one of g and one pass back through the latter.
        stage_steps: end a stage after this many steps even if the conditions fail. Off (None) by default.

    With mu = 1e-3 from the start the smoothed problem has curvatures of 1e3 beside those of g, whose square the penalty
    has. Far fewer steps lead to the limit where mu starts at the size of v's entries and falls with the steps:

        SPNBO(
            optax.adam(0.1, b2=0.99),
            mu=Geometric(0.3, 0.75),
            beta=Geometric(1.0, 1.1),
            step_scale=Geometric(1.0, 0.75),
            stage_steps=250,
        )

    finds the strengths of lassos of 30 features as a grid of a thousand does, and points of group-lasso, l_0.6 and
    OSCAR problems whose residual (`diagnostics.nonsmooth_stationarity`) is below 1e-3, in 11,000 steps.

    Cost of a step: T + 1 times (gradient of f, the sampled rows of c and their derivatives). Memory: that of u, v,
    alpha and the optimizers. `lower_grad_norm` is |c| at the last test.

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
        """Refuse constraints, a v that lives in a set, more rows than v has, and what no solver can treat."""
        base.check(self, problem, u, v, batch)
        self.rows.check(v)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """The state at (u, v): stage 0, multipliers zero."""
        counts = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return base.start(self, u, v, SPNBOMemory(*counts, optax.tree.zeros_like(v), jnp.full(4, jnp.inf)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """T moves of v and one of u by doubly stochastic gradients, and every so often the test that ends a stage."""
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
            """(stationarity, Psi, |c|^2, g) with all rows, and beta c."""
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
