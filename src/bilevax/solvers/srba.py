"""SRBA: SOBA with variance reduction by recursive differences, without tables."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from bilevax._checks import InputError, settle_counts
from bilevax.problem import Batch, PartAndWhole, Problem
from bilevax.solvers import _single_loop as single_loop
from bilevax.solvers import base
from bilevax.solvers._single_loop import OfF, OfG, Point


class SRBAMemory(NamedTuple):
    """The point of the last step, the estimates there, and the number of steps taken."""

    before: Point
    of_f: OfF
    of_g: OfG
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True)
class SRBA:
    """SRBA: as `SOBA`, but the directions are recursive estimates.

    Every `period` steps the directions are those of the whole data. In between, an estimate is that of the last step
    plus the difference of the directions of one minibatch at this point and at the last. No tables are kept.

    Args:
        upper_optimizer, lower_optimizer, linear_optimizer, radius: as for `SOBA`. Published: gradient descent with
            constant steps.
        period: steps between two passes over the whole data. Published: a tenth to the whole of the number of batches
            in the data.

    The batches must come from `bilevax.WithWhole(source)`. A problem with a `lower_start` is refused: its v does not
    continue from the last step. Cost of a step: twice that of `SOBA`, and a pass over the data every `period` steps.
    Memory: that of u, v, p, the optimizers, and three times (|u| + |v|).

    Source: Dagréou, Moreau, Vaiter and Ablin, "A lower bound and a near-optimal algorithm for bilevel empirical risk
    minimization", AISTATS 2024, Algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import SRBA, Minibatches, Problem, WithWhole, solve
        >>> problem = Problem(
        ...     lambda u, v, one: jnp.mean((v - one.data) ** 2), lambda u, v, one: jnp.mean((v - 2 * u - one.data) ** 2)
        ... )
        >>> source = WithWhole(Minibatches(jnp.arange(8.0), jnp.arange(8.0) - 3.5, upper_size=2, lower_size=2))
        >>> solver = SRBA(optax.sgd(0.02), optax.sgd(0.1), optax.sgd(0.1), period=8)
        >>> result = solve(solver, problem, jnp.zeros(()), jnp.zeros(()), source, steps=1000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        1.75 3.5
    """

    upper_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    linear_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    period: int = 50
    radius: float = math.inf
    uses_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle_counts(self, "period")
        single_loop.require_radius(self)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, lower sets, a `lower_start`, and batches without the whole data."""
        for name, data in (("upper", batch.upper), ("lower", batch.lower)):
            if not isinstance(data, PartAndWhole):
                raise InputError(
                    f"SRBA: batch.{name} is a {type(data).__name__}, without the whole data. Pass "
                    "bilevax.WithWhole(source) as batches."
                )
        if problem.lower_start is not None:
            raise InputError(
                "SRBA: the problem has a lower_start, and SRBA's differences need a v that continues from the last "
                "step. Leave lower_start out, or use SOBA."
            )
        single_loop.check(self, problem, u, v, batch)

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with p zero."""
        zero_u, zero_v = optax.tree.zeros_like((u, v))
        of_f, of_g = OfF(zero_v, zero_u), OfG(zero_v, zero_v, zero_u)
        memory = SRBAMemory(Point(u, v, zero_v), of_f, of_g, jnp.zeros((), jnp.int32))
        return single_loop.start(self, u, v, memory)

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v, p and u once along the recursive estimates."""
        memory: SRBAMemory = state.memory[2]
        point = Point(state.u, state.v, state.memory[0])

        def at(point: Point, chosen: str) -> Any:
            upper, lower = getattr(batch.upper, chosen), getattr(batch.lower, chosen)
            return single_loop.parts(problem, point, upper, lower, key)

        def recursive() -> Any:
            of_f, of_g, losses = at(point, "part")
            was_f, was_g, _ = at(memory.before, "part")
            change = optax.tree.sub((of_f, of_g), (was_f, was_g))
            return *optax.tree.add((memory.of_f, memory.of_g), change), losses

        whole = memory.count % self.period == 0
        of_f, of_g, losses = jax.lax.cond(whole, lambda: at(point, "whole"), recursive)
        after = SRBAMemory(point, of_f, of_g, memory.count + 1)
        return single_loop.moved(self, problem, state, point, of_f, of_g, losses, after)
