"""A bilevel problem as one of a single level, by the conditions of Karush, Kuhn and Tucker for v."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevax import Equality, Problem
from experiments.bolib.example import Example

SMOOTH = 1e-12  # under the root of Fischer and Burmeister


def single_level(example: Example) -> tuple[Problem, tuple[Any, Any]]:
    """The problem for `Penalty`, and its start: u, v and the multipliers are its upper variable.

    Its constraints are grad_v (lower + m below) = 0, and complementarity, sqrt(m^2 + c^2) - m + c = 0 for c = below.
    Its lower level is trivial.
    """
    u, v = example.start
    start = {"u": u, "v": v, "m": jnp.zeros(example.values(u, v).shape)}
    conditions = _conditions(example)
    problem = Problem(
        lambda z, _, data: example.upper(z["u"], z["v"]),
        lambda z, rest, data: jnp.sum(rest**2),
        (Equality(lambda z, _, data: conditions(z)),),
        lambda z: z | {"u": example.onto(z["u"])},
    )
    return problem, (start, jnp.zeros(1))


def _conditions(example: Example) -> Callable[[Any], Array]:
    def conditions(z: Any) -> Array:
        def lagrangian(v: Array) -> Any:
            return example.lower(z["u"], v) + jnp.sum(z["m"] * example.values(z["u"], v))

        m, c = z["m"], example.values(z["u"], z["v"])
        return jnp.concatenate([jax.grad(lagrangian)(z["v"]), jnp.sqrt(m**2 + c**2 + SMOOTH) - m + c])

    return conditions
