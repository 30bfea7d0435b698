"""What single-loop methods share: one move each of v, of p and of u in a step, all from the same point.

p is near -(grad2_vv g)^-1 grad_v f, and is kept in the state. At a point (u, v, p) the directions are

    of v: grad_v g,    of p: grad2_vv g . p + grad_v f,    of u: grad2_uv g . p + grad_u f,

and the two parts of g come from one vector-Jacobian product. A method is how it estimates the directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from bilevax import derivatives
from bilevax._checks import InputError
from bilevax._optimizers import check_optimizer
from bilevax.problem import Batch, Problem
from bilevax.solvers import base


class Point(NamedTuple):
    """The variables that a step moves."""

    u: PyTree
    v: PyTree
    p: PyTree


class OfG(NamedTuple):
    """The parts of the directions that g gives: grad_v g, grad2_vv g . p and grad2_uv g . p."""

    v: PyTree
    p: PyTree
    u: PyTree


class OfF(NamedTuple):
    """The parts of the directions that f gives: grad_v f and grad_u f."""

    p: PyTree
    u: PyTree


class Losses(NamedTuple):
    """f and g at a point, on a batch."""

    upper: Float[Array, ""]
    lower: Float[Array, ""]


def parts(
    problem: Problem, point: Point, upper_data: PyTree, lower_data: PyTree, key: PRNGKeyArray
) -> tuple[OfF, OfG, Losses]:
    """The parts of the directions at a point, on a batch."""
    f = derivatives.upper(problem, point.u, point.v, upper_data, key)
    g = derivatives.lower(problem, point.u, point.v, lower_data, key)
    cross, image = g.second_products(point.p)
    return OfF(f.grad_v, f.grad_u), OfG(g.grad_v, image, cross), Losses(f.loss, g.loss)


def require_radius(solver: Any) -> None:
    """Refuse a `radius` that is not positive."""
    if not solver.radius > 0:
        raise InputError(f"{type(solver).__name__}: radius is {solver.radius}, and must be positive.")


def check(solver: Any, problem: Problem, u: PyTree, v: PyTree, batch: Batch) -> None:
    """Refuse constraints, lower sets, and optimizers that need more than gradients, `linear_optimizer` included."""
    base.check(solver, problem, u, v, batch)
    check_optimizer(type(solver).__name__, "linear_optimizer", solver.linear_optimizer, "p", v)


def start(solver: Any, u: PyTree, v: PyTree, memory: PyTree = ()) -> base.State:
    """Return the state at (u, v), with p zero."""
    p = optax.tree.zeros_like(v)
    return base.start(solver, u, v, (p, solver.linear_optimizer.init(p), memory))


def moved(
    solver: Any,
    problem: Problem,
    state: base.State,
    point: Point,
    of_f: OfF,
    of_g: OfG,
    losses: Losses,
    memory: PyTree = (),
) -> tuple[base.State, base.Info]:
    """Return the state after a move of v, p and u along the directions, and its Info."""
    _, p_opt, _ = state.memory
    direction = optax.tree.add(of_g.u, of_f.u)
    residual = optax.tree.add(of_g.p, of_f.p)
    u, upper_opt = base.move_upper(solver, problem, state, direction)
    v, lower_opt = base.move(solver.lower_optimizer, state.lower_opt, point.v, of_g.v, problem.project_lower)
    p, p_opt = base.move(solver.linear_optimizer, p_opt, point.p, residual, bounded(solver))
    extra = {"linear_residual": optax.tree.norm(residual)}
    info = base.Info(losses.upper, losses.lower, optax.tree.norm(direction), optax.tree.norm(of_g.v), extra)
    return base.State(u, v, upper_opt, lower_opt, (p, p_opt, memory)), info


def point_of(problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray) -> Point:
    """Return the point of a state; v is at the start that the problem prescribes, if it does."""
    return Point(state.u, base.start_of_step(problem, state, batch, key), state.memory[0])


class Inner(NamedTuple):
    """v after its moves in a step, the state of its optimizer, (g, |grad_v g|) before the last move, and f at v.

    `products(p, t)` are the second products of g, those of number t on the lower batch after the moves' and t more.
    """

    v: PyTree
    lower_opt: optax.OptState
    losses: tuple[Float[Array, ""], Float[Array, ""]]
    f: derivatives.Upper
    products: Callable[[PyTree, Int[ArrayLike, ""]], tuple[PyTree, PyTree]]


def inner_loop(solver: Any, problem: Problem, state: base.State, batch: Batch, key: PRNGKeyArray) -> Inner:
    """Return v after the `lower_steps` moves of a step, and what a linear system there needs."""
    start_key, lower_key, linear_key, upper_key = jax.random.split(key, 4)
    u = state.u
    v = base.start_of_step(problem, state, batch, start_key)
    descent = base.Descent(problem, u, solver.lower_optimizer)
    v, lower_opt, losses = descent.moves(v, state.lower_opt, batch, solver.lower_steps, lower_key)
    f = derivatives.upper(problem, u, v, batch.upper, upper_key)

    def products(p: PyTree, t: Int[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        key = jax.random.fold_in(linear_key, t)
        data = base.lower_data(batch, solver.lower_steps + t)
        return derivatives.lower(problem, u, v, data, key).second_products(p)

    return Inner(v, lower_opt, losses, f, products)


def bounded(solver: Any) -> Any:
    """Return the projection of p onto the ball of radius `solver.radius`."""

    def project(p: PyTree) -> PyTree:
        size = optax.tree.norm(p)
        scale = jnp.minimum(1.0, solver.radius / jnp.where(size > 0, size, 1))
        return jax.tree.map(lambda x: (scale * x).astype(x.dtype), p)

    return project
