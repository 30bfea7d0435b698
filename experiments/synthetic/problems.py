"""The four synthetic problems of Mehra and Hamm (2021), section 3.1.

Each has u and v in [-5, 5]^10 and a known set of solutions (appendix E.1):

    1.  f = |u|^2 + |v|^2          g = |1 - u - v|^2        u = v = 1/2
    2.  f = |v|^2 - |u - v|^2      g = |u - v|^2            u = v = 0
    3.  f = |u|^2 + |v|^2          g = |A (1 - u - v)|^2    u = 1/2 + p, v = 1/2 + p, p in Null(A)
    4.  f = |v|^2 - |A (u - v)|^2  g = |A (u - v)|^2        u = p, v = 0, p in Null(A)

A (5, 10) is Gaussian and drawn for each trial, so it is data. So is the choice between the two examples of a
figure: one compiled solve runs both, all trials at once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bilevax import Penalty, Problem
from bilevax.solvers import Solver

SIZE, RANK, BOUND = 10, 5, 5.0
Vector = Float[Array, " 10"]


class Data(NamedTuple):
    """The data of a trial: `sums` is 1 in examples 1 and 3, 0 in 2 and 4; `A` (5, 10), None for the identity."""

    sums: Float[Array, "..."]
    A: Float[Array, "... 5 10"] | None


class Trials(NamedTuple):
    """Starts u, v (n, 10) and Data, stacked."""

    u: Float[Array, "n 10"]
    v: Float[Array, "n 10"]
    data: Data


def residual(u: Vector, v: Vector, data: Data) -> Float[Array, " m"]:
    """1 - u - v, or v - u, times A."""
    difference = data.sums - u + (1 - 2 * data.sums) * v
    return difference if data.A is None else data.A @ difference


def lower_loss(u: Vector, v: Vector, data: Data) -> Float[Array, ""]:
    """Lower loss g at (u, v)."""
    return jnp.sum(residual(u, v, data) ** 2)


def upper_loss(u: Vector, v: Vector, data: Data) -> Float[Array, ""]:
    """Upper loss f at (u, v): |v|^2 with +|u|^2 in examples 1 and 3, with -g in 2 and 4."""
    return jnp.sum(v**2) + data.sums * jnp.sum(u**2) - (1 - data.sums) * lower_loss(u, v, data)


box = partial(optax.projections.projection_box, lower=-BOUND, upper=BOUND)
PROBLEM = Problem(upper_loss, lower_loss, project_upper=box, project_lower=box)
# For Penalty, which needs an unconstrained v: the solutions lie inside the box, and its optimizer keeps v in it.
FREE = Problem(upper_loss, lower_loss, project_upper=box)


def problem_for(solver: Solver) -> Problem:
    """The problem that keeps v in the box, except for Penalty, whose optimizer does it."""
    return FREE if isinstance(solver, Penalty) else PROBLEM


def draw(example: int, seeds: Sequence[int]) -> Trials:
    """One trial of an example for each seed: (u, v) uniform in the box, A Gaussian."""

    def one(seed: Any) -> Trials:
        u_key, v_key, a_key = jax.random.split(jax.random.key(seed), 3)
        u, v = (jax.random.uniform(key, (SIZE,), minval=-BOUND, maxval=BOUND) for key in (u_key, v_key))
        A = jax.random.normal(a_key, (RANK, SIZE)) if example > 2 else None
        return Trials(u, v, Data(jnp.asarray(float(example % 2)), A))

    return jax.vmap(one)(jnp.asarray(seeds))


def distance(u: Vector, v: Vector, data: Data) -> Float[Array, ""]:
    """From (u, v) to the nearest solution; in examples 3 and 4 the residual distance of appendix E.1.

    With P = A^T (A A^T)^-1 A, the projection onto the row space of A: sqrt(|P(u - 1/2)|^2 + |P(v - 1/2)|^2)
    in example 3 and sqrt(|P u|^2 + |v|^2) in 4. In 1 and 2, P is the identity.

    Example:
        >>> import jax.numpy as jnp
        >>> from experiments.synthetic.problems import Data, distance
        >>> half = jnp.full(10, 0.5)
        >>> float(distance(half, half, Data(jnp.asarray(1.0), None)))
        0.0
    """

    def project(x: Any) -> Any:
        A = data.A
        return x if A is None else A.T @ jnp.linalg.solve(A @ A.T, A @ x)

    u, v = u - data.sums / 2, v - data.sums / 2
    v = jnp.where(data.sums == 1, project(v), v)
    return jnp.sqrt(jnp.sum(project(u) ** 2) + jnp.sum(v**2))


distances = jax.jit(jax.vmap(distance))
