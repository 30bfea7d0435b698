"""What a solver is, and the two moves that solvers share.

A solver is a frozen dataclass of hyperparameters with three methods: `check` refuses what it cannot
treat, `init` makes the state, `step` takes one step: `lower_steps` moves of v, then one of u. Its state
is a NamedTuple of arrays whose first four fields are `u, v, upper_opt, lower_opt`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from bilevax import oracles
from bilevax.problem import Batch, InputError, PerMove, Problem, PyTree


class Info(NamedTuple):
    """Scalars about one step: told, not carried.

    The losses and `lower_grad_norm` = |grad_v g| are taken at the newest (u, v) that the step has
    evaluated anyway; `upper_grad_norm` is the norm of the direction that moved u.
    """

    upper_loss: Any
    lower_loss: Any
    upper_grad_norm: Any
    lower_grad_norm: Any
    extra: dict[str, Any]


class Solver(Protocol):
    """What `solve` asks of a solver. Both methods are pure."""

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Raise InputError for what this solver cannot treat."""
        ...

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> Any:
        """The state at (u, v). Of `batch` only shapes are used."""
        ...

    def step(self, problem: Problem, state: Any, batch: Batch, key: Any) -> tuple[Any, Info]:
        """One step."""
        ...


def refuse_constraints(solver: Any, problem: Problem) -> None:
    """Refuse a constrained problem, by name, before anything runs."""
    if problem.constraints:
        name, n = type(solver).__name__, len(problem.constraints)
        raise InputError(
            f"{name} cannot treat upper-level constraints, and this problem has {n}. Use Penalty, which can, "
            "or state the constraint as a projection (project_upper) if it bounds u alone."
        )


def all_finite(tree: PyTree) -> Any:
    """Whether every entry of a tree of floating arrays is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def still_alive(state: Any, info: Info) -> Any:
    """Whether a step's iterates and losses are finite; of a stack of members, whether any still is."""
    if hasattr(state, "alive"):
        return jnp.any(state.alive)
    return all_finite((state.u, state.v, info.upper_loss, info.lower_loss))


def move(
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    x: PyTree,
    gradient: PyTree,
    project: Callable[[PyTree], PyTree],
    scale: Any = None,
) -> tuple[PyTree, Any]:
    """One move of a variable by an optax optimizer, its update times `scale`, then projected."""
    updates, opt_state = optimizer.update(gradient, opt_state, x)
    if scale is not None:
        updates = jax.tree.map(lambda d: (scale * d).astype(d.dtype), updates)
    moved: Any = optax.apply_updates(x, updates)
    return project(moved), opt_state


def stationarity(x: PyTree, gradient: PyTree, project: Any) -> Any:
    """|x - project(x - gradient)|^2, which is |gradient|^2 where nothing is projected."""
    moved = project(jax.tree.map(lambda a, d: a - d, x, gradient))
    return optax.tree.norm(optax.tree.sub(x, moved), squared=True)


def lower_data(batch: Batch, move: Any) -> PyTree:
    """The lower batch of one move: the step's own, or the move's slice of a PerMove."""
    if isinstance(batch.lower, PerMove):
        return jax.tree.map(lambda x: x[move], batch.lower.data)
    return batch.lower


def lower_moves(
    direction: Callable[[PyTree, PyTree, Any], tuple[PyTree, Any]],
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    v: PyTree,
    problem: Problem,
    batch: Batch,
    steps: int,
    key: Any,
    scale: Any = None,
) -> tuple[PyTree, Any, Any]:
    """`steps` moves of v along `direction(v, data, key) -> (gradient, told)`; the last `told` too."""

    def one(carry: Any, t: Any) -> tuple[Any, Any]:
        v, opt_state = carry
        gradient, told = direction(v, lower_data(batch, t), jax.random.fold_in(key, t))
        return move(optimizer, opt_state, v, gradient, problem.project_lower, scale), told

    (v, opt_state), told = jax.lax.scan(one, (v, opt_state), jnp.arange(steps))
    return v, opt_state, jax.tree.map(lambda x: x[-1], told)


def descend(
    problem: Problem, u: PyTree, batch: Batch
) -> Callable[[PyTree, PyTree, Any], tuple[PyTree, tuple[Any, Any]]]:
    """The direction of plain descent on g, for `lower_moves`; tells (g, |grad_v g|)."""

    def direction(v: PyTree, data: PyTree, key: Any) -> tuple[PyTree, tuple[Any, Any]]:
        loss, gradient = oracles.lower_gradient(problem, u, v, data, key)
        return gradient, (loss, optax.tree.norm(gradient))

    return direction


def start_of_step(problem: Problem, state: Any, batch: Batch, key: Any) -> PyTree:
    """Where v starts: at `lower_start` where the problem has one, else where it stopped."""
    if problem.lower_start is None:
        return state.v
    return problem.lower_start(state.u, batch, key)
