"""SABA: SOBA with variance reduction by tables of past gradients."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from bilevax._checks import InputError, described, require_count, require_number
from bilevax.problem import Batch, Problem
from bilevax.solvers import _single_loop as single_loop
from bilevax.solvers import base


class Table(NamedTuple):
    """The last parts of the directions that each block of samples gave, and their mean over the blocks."""

    rows: PyTree
    mean: PyTree

    def row(self, block: Int[Array, ""]) -> PyTree:
        """Return the parts of a block, by a `cond`: otherwise XLA copies the tables in each step."""
        empty = optax.tree.zeros_like(self.mean)
        return jax.lax.cond(block >= 0, lambda: jax.tree.map(lambda x: x[block], self.rows), lambda: empty)

    def updated(self, block: Int[Array, ""], old: PyTree, new: PyTree, alive: Bool[Array, ""]) -> "Table":
        """Return the table with new parts of a block if `alive`, else as it is."""
        blocks = len(jax.tree.leaves(self.rows)[0])
        row = optax.tree.where(alive, new, old)
        mean = jax.tree.map(lambda m, x, y: m + (x - y) / blocks, self.mean, row, old)
        return Table(jax.tree.map(lambda rows, x: rows.at[block].set(x), self.rows, row), mean)


@dataclass(frozen=True)
class SABA:
    """SABA: as `SOBA`, but the five parts of the directions are SAGA estimates.

    For each block of samples the tables keep its last grad_v g, grad2_vv g . p and grad2_uv g . p, or its last
    grad_v f and grad_u f. An estimate is the difference of the block's new and last value, plus the mean of the table.
    The variance vanishes as the iterates converge, so that constant steps converge linearly for a strongly convex
    problem.

    Args:
        blocks: numbers of blocks of the upper and of the lower data, `blocks` of the source `bilevax.Blocks`.
        upper_optimizer, lower_optimizer, linear_optimizer, radius: as for `SOBA`. Published: gradient descent with
            constant steps.
        memory_limit: bytes that the tables may take.

    The batches must come from `bilevax.Blocks`. Memory: (2 |v| + |u|) for each block of the lower data and (|v| + |u|)
    for each of the upper data. The tables start at zero. Cost of a step: as `SOBA`.

    Source: Dagréou, Ablin, Vaiter and Moreau, NeurIPS 2022, eqs. 7-9.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevax import SABA, Blocks, Problem, solve
        >>> problem = Problem(
        ...     lambda u, v, one: jnp.mean((v - one.data) ** 2), lambda u, v, one: jnp.mean((v - 2 * u - one.data) ** 2)
        ... )
        >>> source = Blocks(upper=jnp.arange(8.0), lower=jnp.arange(8.0) - 3.5, upper_size=2, lower_size=2)
        >>> solver = SABA(source.blocks, optax.sgd(0.02), optax.sgd(0.1), optax.sgd(0.1))
        >>> result = solve(solver, problem, jnp.zeros(()), jnp.zeros(()), source, steps=3000, key=jax.random.key(0))
        >>> print(jnp.round(result.u, 3), jnp.round(result.v, 3))
        1.75 3.5
    """

    blocks: tuple[int, int]
    upper_optimizer: optax.GradientTransformation = optax.sgd(1e-2)
    lower_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    linear_optimizer: optax.GradientTransformation = optax.sgd(5e-2)
    radius: float = math.inf
    memory_limit: float = 2.0**32

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, tuple | list) or len(self.blocks) != 2:
            raise InputError(f"SABA: blocks is {self.blocks!r}. Pass two numbers, `blocks` of a bilevax.Blocks source.")
        counts = tuple(require_count("SABA", f"blocks[{i}]", n) for i, n in enumerate(self.blocks))
        object.__setattr__(self, "blocks", counts)
        require_number("SABA", "memory_limit", self.memory_limit)
        single_loop.require_radius(self)

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Refuse constraints, lower sets, batches that are no blocks, and tables beyond the limit of memory."""
        size = sum(n * sum(x.nbytes for x in jax.tree.leaves(t)) for t, n in self._tables(u, v))
        if size > self.memory_limit:
            raise InputError(
                f"SABA: the tables of {self.blocks[0]} and {self.blocks[1]} blocks take {size / 2**30:.3g} GiB, above "
                f"memory_limit, {self.memory_limit / 2**30:.3g} GiB. Take larger blocks, or SRBA, which has no tables."
            )
        for name, data, blocks in (("upper", batch.upper, self.blocks[0]), ("lower", batch.lower, self.blocks[1])):
            _require_block(name, data, blocks)
        single_loop.check(self, problem, u, v, batch)

    def _tables(self, u: PyTree, v: PyTree) -> tuple[tuple[Any, int], tuple[Any, int]]:
        return (single_loop.OfF(v, u), self.blocks[0]), (single_loop.OfG(v, v, u), self.blocks[1])

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> base.State:
        """Return the state at (u, v), with p and the tables zero."""

        def empty(parts: PyTree, blocks: int) -> Table:
            rows = jax.tree.map(lambda x: jnp.zeros((blocks, *x.shape), x.dtype), parts)
            return Table(rows, optax.tree.zeros_like(parts))

        return single_loop.start(self, u, v, tuple(empty(*t) for t in self._tables(u, v)))

    def step(
        self, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[base.State, base.Info]:
        """Move v, p and u once along the SAGA estimates."""
        start_key, key = jax.random.split(key)
        point = single_loop.point_of(problem, state, batch, start_key)
        of_f, of_g, losses = single_loop.parts(problem, point, batch.upper, batch.lower, key)
        places = batch.upper.place, batch.lower.place
        news, tables = (of_f, of_g), state.memory[2]
        olds = tuple(table.row(place) for table, place in zip(tables, places, strict=True))
        for_f, for_g = (
            jax.tree.map(lambda x, y, m: x - y + m, new, old, table.mean)
            for new, old, table in zip(news, olds, tables, strict=True)
        )
        after, info = single_loop.moved(self, problem, state, point, for_f, for_g, losses)
        alive = base.is_finite(after, info)
        tables = tuple(table.updated(*x, alive) for table, *x in zip(tables, places, olds, news, strict=True))
        return after._replace(memory=(*after.memory[:2], tables)), info

    def keep_finite(self, before: base.State, after: base.State, info: base.Info) -> tuple[base.State, Bool[Array, ""]]:
        """Return the state to continue from; the tables are as before after a failed step."""
        alive = base.is_finite(after, info)
        chosen = optax.tree.where(alive, _without(after), _without(before))
        return chosen._replace(memory=(*chosen.memory, after.memory[2])), alive


def _without(state: base.State) -> base.State:
    return state._replace(memory=state.memory[:2])


def _require_block(name: str, data: Any, blocks: int) -> None:
    """Refuse a batch that is not a block of a source with this number of blocks."""
    place = getattr(data, "place", None)
    if place is None:
        raise InputError(f"SABA: batch.{name} is {described(data)}. Pass batches from the source bilevax.Blocks.")
    if not isinstance(place, Tracer) and int(place) >= blocks:
        raise InputError(
            f"SABA: batch.{name} is block {int(place)} of its data, and SABA has {blocks} blocks for them. Pass "
            "blocks=source.blocks of the bilevax.Blocks source."
        )
