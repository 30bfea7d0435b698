"""What a solver is, and what solvers share: the state, the checks, the moves of v and of u.

A solver is a frozen dataclass of hyperparameters with three methods: `check` refuses what it cannot treat, `init`
makes the state, `step` takes one step: `lower_steps` moves of v, then one of u.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from bilevax import derivatives
from bilevax._checks import InputError, described
from bilevax._optimizers import Objective, check_optimizer, update
from bilevax.problem import Batch, PerMove, Problem, identity


class State(NamedTuple):
    """The state of a solver: what one step leaves for the next.

    Attributes:
        u, v: the iterates.
        upper_opt, lower_opt: the states of their optimizers; empty where a solver has none.
        memory: what else the method keeps, such as multipliers and the stage: any pytree of arrays.
    """

    u: PyTree[Float[Array, "..."]]
    v: PyTree[Float[Array, "..."]]
    upper_opt: optax.OptState
    lower_opt: optax.OptState
    memory: PyTree = ()


class Info(NamedTuple):
    """Scalars about one step; in a history, arrays with an entry for each step. No step depends on them.

    The losses and `lower_grad_norm` = |grad_v g| are taken at the newest (u, v) that the step has
    evaluated anyway; `upper_grad_norm` is the norm of the direction that moved u.
    """

    upper_loss: Float[Array | np.ndarray, "*steps"]
    lower_loss: Float[Array | np.ndarray, "*steps"]
    upper_grad_norm: Float[Array | np.ndarray, "*steps"]
    lower_grad_norm: Float[Array | np.ndarray, "*steps"]
    extra: Mapping[str, Shaped[Array | np.ndarray, "*steps"]]


@runtime_checkable
class Solver(Protocol):
    """What `solve` asks of a solver. `init` and `step` are pure."""

    def check(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
        """Raise InputError for what this solver cannot treat."""
        ...

    def init(self, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> State:
        """The state at (u, v). Of `batch` only shapes are used."""
        ...

    def step(self, problem: Problem, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Info]:
        """One step."""
        ...


def require_solver(owner: str, solver: Any) -> None:
    """Refuse what is not a solver: a class in place of an instance, or an object without a solver's three methods."""
    if isinstance(solver, type):
        raise InputError(
            f"{owner}: solver is {described(solver)}. Pass an instance of it: {solver.__name__}(), with its settings."
        )
    missing = [name for name in ("check", "init", "step") if not callable(getattr(solver, name, None))]
    if missing:
        raise InputError(
            f"{owner}: solver is {described(solver)}, which has no {' and no '.join(missing)}. Pass one of "
            "bilevax.solvers, such as Penalty()."
        )


def check_moves(solver: Any, batch: Batch) -> None:
    """Refuse a PerMove that does not hold one lower batch for each of the solver's lower moves."""
    moves = getattr(solver, "lower_steps", None)
    if not isinstance(batch.lower, PerMove) or moves is None:
        return
    for path, x in jax.tree_util.tree_leaves_with_path(batch.lower.data):
        found = jnp.shape(x)[:1]
        if found != (moves,):
            raise InputError(
                f"batch.lower is a PerMove whose leaf{jax.tree_util.keystr(path)} leads with "
                f"{found[0] if found else 'no axis'}, and {type(solver).__name__} makes {moves} lower moves in a step. "
                f"Give one lower batch for each: per_move={moves}."
            )


def refuse_constraints(solver: Any, problem: Problem) -> None:
    """Refuse a constrained problem before anything runs; the message names the solver."""
    if problem.constraints:
        name, n = type(solver).__name__, len(problem.constraints)
        raise InputError(
            f"{name} cannot treat upper-level constraints, and this problem has {n}. Use Penalty, which can, "
            "or state the constraint as a projection (project_upper) if it bounds u alone."
        )


def refuse_lower_sets(solver: Any, problem: Problem) -> None:
    """Refuse a v that lives in a set, for a solver that would be wrong at the boundary of the set."""
    if problem.project_lower is not identity:
        name = type(solver).__name__
        raise InputError(
            f"{name} assumes grad_v g = 0 at the lower solution, and this problem has a project_lower, at "
            "whose active bounds that fails. Use Implicit or ReverseMode, which are right there, too; or leave "
            "project_lower out, if the lower solutions lie inside of the set."
        )


class Known(enum.Enum):
    """What a solver can pass to an optimizer beside the gradient."""

    NOTHING = "nothing: the direction is not a function's gradient, or its weights change"
    VALUE = "its value"
    FUNCTION = "its value, and itself as a function of the variable"


def check_optimizers(
    solver: Any,
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch,
    upper: Known = Known.NOTHING,
    lower: Known = Known.NOTHING,
) -> None:
    """Refuse an optimizer of the solver that cannot move u or v; see `check_optimizer`.

    `upper` and `lower`: what the solver passes to `upper_optimizer` of f and to `lower_optimizer` of g.
    """
    key = jax.random.key(0)

    def f(u: PyTree) -> Any:
        return problem.upper(u, v, batch.upper, key)

    def g(v: PyTree) -> Any:
        return problem.lower(u, v, lower_data(batch, 0), key)

    sides = (
        ("upper_optimizer", "u", u, f, upper, problem.project_upper),
        ("lower_optimizer", "v", v, g, lower, problem.project_lower),
    )
    for name, variable, x, loss, known, project in sides:
        if not hasattr(solver, name):
            continue
        objective = None if known is Known.NOTHING else Objective(jax.eval_shape(loss, x))
        if objective is not None and known is Known.FUNCTION:
            objective = objective._replace(function=loss, gradient=lambda x: x)
        owner, projected = type(solver).__name__, project is not identity
        check_optimizer(owner, name, getattr(solver, name), variable, x, objective, projected)


def check(
    solver: Any,
    problem: Problem,
    u: PyTree,
    v: PyTree,
    batch: Batch,
    upper: Known = Known.NOTHING,
    lower: Known = Known.NOTHING,
    *,
    constraints: bool = False,
    lower_sets: bool = False,
) -> None:
    """`Solver.check` as most solvers need it.

    Args:
        solver, problem, u, v, batch: as for `Solver.check`.
        upper, lower: as for `check_optimizers`.
        constraints: whether the solver treats upper-level constraints.
        lower_sets: whether the solver treats a v that lives in a set.

    Raises:
        InputError: no solver, or not this one, can treat the problem; an optimizer cannot move its variable.
    """
    if not constraints:
        refuse_constraints(solver, problem)
    if not lower_sets:
        refuse_lower_sets(solver, problem)
    problem.check(u, v, batch)
    check_optimizers(solver, problem, u, v, batch, upper, lower)


def start(solver: Any, u: PyTree, v: PyTree, memory: Any = ()) -> State:
    """The state at (u, v) of a solver with an `upper_optimizer` and a `lower_optimizer`."""
    return State(u, v, solver.upper_optimizer.init(u), solver.lower_optimizer.init(v), memory)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry of a tree of floating arrays is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def keep_finite(solver: Solver, before: State, after: State, info: Info) -> tuple[State, Bool[Array, ""]]:
    """The state to go on from after a step, and whether to go on.

    That is `after` and True where its iterates and losses are finite, else `before` and False. A solver of many
    problems at once decides for each of them, by a method `keep_finite(before, after, info)` of its own.
    """
    of_its_own = getattr(solver, "keep_finite", None)
    if of_its_own is not None:
        return of_its_own(before, after, info)
    alive = is_finite(after, info)
    return optax.tree.where(alive, after, before), alive


def over_members(solver: Solver, function: Callable[..., Any], state: State, *rest: Any) -> Any:
    """function(state, *rest); for each member where a solver of many problems has a method `over_members`."""
    return getattr(solver, "over_members", _once)(function, state, *rest)


def _once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def is_finite(state: State, info: Info) -> Bool[Array, ""]:
    """Whether a step's iterates and losses are finite."""
    return all_finite((state.u, state.v, info.upper_loss, info.lower_loss))


def move(
    optimizer: optax.GradientTransformation,
    opt_state: optax.OptState,
    x: PyTree,
    gradient: PyTree,
    project: Callable[[PyTree], PyTree],
    scale: Any = None,
    objective: Objective | None = None,
) -> tuple[PyTree, Any]:
    """One move of a variable by an optax optimizer, its update times `scale`, then projected."""
    updates, opt_state = update(optimizer, gradient, opt_state, x, objective)
    if scale is not None:
        updates = jax.tree.map(lambda d: (scale * d).astype(d.dtype), updates)
    moved: Any = optax.apply_updates(x, updates)
    return project(moved), opt_state


def stationarity(x: PyTree, gradient: PyTree, project: Callable[[PyTree], PyTree]) -> Float[Array, ""]:
    """|x - project(x - gradient)|^2, which is |gradient|^2 where nothing is projected."""
    moved = project(optax.tree.sub(x, gradient))
    return optax.tree.norm(optax.tree.sub(x, moved), squared=True)


def lower_data(batch: Batch, move: Int[ArrayLike, ""]) -> PyTree:
    """The lower batch of one move: the step's own, or the move's slice of a PerMove."""
    if isinstance(batch.lower, PerMove):
        return jax.tree.map(lambda x: x[move], batch.lower.data)
    return batch.lower


@dataclass(frozen=True)
class Descent:
    """Moves of v at a fixed u: down g, or along a direction of the solver's own.

    Args:
        problem: whose v moves; each move ends with its `project_lower`.
        u: fixed.
        optimizer: any optax optimizer.
        direction: (v, data, key) -> the gradient that the optimizer is given, shaped like v; None: grad_v g.
        scale: factor on the optimizer's updates; None: 1.
    """

    problem: Problem
    u: PyTree
    optimizer: optax.GradientTransformation
    direction: Callable[[PyTree, PyTree, Any], PyTree] | None = None
    scale: Any = None

    def moves(self, v: PyTree, opt_state: Any, batch: Batch, steps: int, key: PRNGKeyArray) -> tuple[PyTree, Any, Any]:
        """`steps` moves from v: the end, the optimizer's state, and (g, |grad_v g|) before the last move.

        Where a direction is given, the last is () instead.
        """

        def one(carry: Any, t: Any) -> tuple[Any, Any]:
            return self.move(carry, lower_data(batch, t), jax.random.fold_in(key, t))

        (v, opt_state), losses = jax.lax.scan(one, (v, opt_state), jnp.arange(steps))
        return v, opt_state, jax.tree.map(lambda x: x[-1], losses)

    def move(self, carry: tuple[PyTree, Any], data: PyTree, key: PRNGKeyArray) -> tuple[tuple[PyTree, Any], Any]:
        """One move of `carry`, v and its optimizer's state; with (g, |grad_v g|) before it, or () along a direction."""
        v, opt_state = carry
        if self.direction is not None:
            gradient = self.direction(v, data, key)
            return move(self.optimizer, opt_state, v, gradient, self.problem.project_lower, self.scale), ()
        loss, gradient = derivatives.lower_gradient(self.problem, self.u, v, data, key)
        size, objective = optax.tree.norm(gradient), self.objective(v, data, key, loss)
        moved = move(self.optimizer, opt_state, v, gradient, self.problem.project_lower, self.scale, objective)
        return moved, (loss, size)

    def objective(self, v: PyTree, data: PyTree, key: PRNGKeyArray, loss: Any) -> Objective:
        """The lower loss on this batch as a function of v; `loss` is its value at the present v."""
        return Objective(
            loss,
            lambda v: self.problem.lower(self.u, v, data, key),
            lambda v: derivatives.lower_gradient(self.problem, self.u, v, data, key)[1],
        )


def move_upper(
    solver: Any,
    problem: Problem,
    state: State,
    direction: PyTree,
    objective: Objective | None = None,
    scale: Any = None,
) -> tuple[PyTree, Any]:
    """One move of u by the solver's `upper_optimizer`, projected: u and the optimizer's state."""
    return move(solver.upper_optimizer, state.upper_opt, state.u, direction, problem.project_upper, scale, objective)


def start_of_step(problem: Problem, state: State, batch: Batch, key: PRNGKeyArray) -> PyTree:
    """Where v starts: at `lower_start` where the problem has one, else where it stopped."""
    if problem.lower_start is None:
        return state.v
    return problem.lower_start(state.u, batch, key)
