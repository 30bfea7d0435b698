"""The form of a problem of the literature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevax import Inequality, Problem
from bilevax.problem import identity

Value = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Example:
    """min over u of upper(u, v) for v that minimises lower(u, v) subject to below(u, v) <= 0, the optimistic solution.

    Attributes:
        source: where the problem is from.
        upper, lower: (u, v) -> scalar.
        below: (u, v) -> the values of the lower constraints, each at most zero; None without.
        u, v: the given start.
        best: the upper value of the solution, to the digits of an independent search (tests/experiments/test_bolib.py).
        box: the bounds of u. Bounds that the source does not state are those outside which the lower set is empty.
        project: the projection of u onto a set that is not a box, which is within `box`.
        printed: the upper value that collections print, where it differs by more than 1e-3.
        note: in what the problem differs from what is printed elsewhere.
    """

    source: str
    upper: Value
    lower: Value
    below: Value | None
    u: Sequence[float]
    v: Sequence[float]
    best: float
    box: tuple[Any, Any] | None = None
    project: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None
    printed: float | None = None
    note: str = ""

    @property
    def start(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The given start; `solve` projects u with the first step."""
        return jnp.asarray(self.u, float), jnp.asarray(self.v, float)

    @property
    def onto(self) -> Callable[[Any], Any]:
        """The projection onto the set of u."""
        if self.project is not None:
            return self.project
        if self.box is None:
            return identity
        low, high = (np.asarray(x, float) for x in self.box)
        return lambda u: jnp.clip(u, low, high)

    def values(self, u: Any, v: Any) -> Any:
        """The values of the lower constraints as an array; without any, one that always holds."""
        return jnp.stack(self.below(u, v)) if self.below is not None else -jnp.ones(1)

    @property
    def problem(self) -> Problem:
        """The problem for `solve`."""
        return Problem(
            lambda u, v, _: self.upper(u, v),
            lambda u, v, _: self.lower(u, v),
            project_upper=self.onto,
            lower_constraints=() if self.below is None else (Inequality(lambda u, v, _: self.values(u, v)),),
        )


def onto_polygon(*corners: tuple[float, float]) -> Callable[[Float[Array, " 2"]], Float[Array, " 2"]]:
    """The projection onto the convex polygon with these corners, in counterclockwise order."""
    here = np.array(corners)
    along = np.roll(here, -1, 0) - here
    outward = np.stack([along[:, 1], -along[:, 0]], 1)

    def project(u: Float[Array, " 2"]) -> Float[Array, " 2"]:
        t = jnp.clip(jnp.sum((u - here) * along, 1) / np.sum(along**2, 1), 0, 1)
        near = here + t[:, None] * along
        inside = jnp.all(jnp.sum((u - here) * outward, 1) <= 0)
        return jnp.where(inside, u, near[jnp.argmin(jnp.sum((u - near) ** 2, 1))])

    return project
