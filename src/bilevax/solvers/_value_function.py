"""What methods on the value function min over v of g(u, v) share.

These methods need no second derivative: u moves along c grad_u f + grad_u g(u, v) - grad_u g(u, z), with v a point that
f attracts and z one near the minimiser of g. A method is how v, z and c move.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from bilevax import derivatives
from bilevax._checks import InputError
from bilevax._programs import compiled
from bilevax.problem import Batch, Problem, data_of_loss

PRODUCTS = 30  # for each of two eigenvalues: the largest in size, then the lowest


class Counted(NamedTuple):
    """Further points of the lower level, and the number of steps taken."""

    points: PyTree
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


class Values(NamedTuple):
    """The point z near the minimiser of g, its optimizer's state, and the number of steps taken."""

    z: PyTree
    z_opt: optax.OptState
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


def require_bounded(owner: str, problem: Problem, u: PyTree, v: PyTree, batch: Batch, weight: Any) -> None:
    """Refuse a weight for which g - weight f curves down at (u, v) along a direction in which g curves up.

    The direction is that of the lowest eigenvalue of the Hessian of g - weight f, by power iteration. So a refusal is
    always right, and a weight that passes can still be too large. Under jit nothing is tested.

    Raises:
        InputError: there is such a direction.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((u, v, batch))):
        return
    f_curve, g_curve = (float(x) for x in _curvatures(problem, u, v, batch, weight))
    if g_curve > 0 and g_curve - float(weight) * f_curve < 0:
        raise InputError(
            f"{owner}: g - {float(weight):.3g} f has no minimum: at the start there is a direction in which g has the "
            f"curvature {g_curve:.3g} and f {f_curve:.3g}. Reduce nu by a factor of more than "
            f"{float(weight) * f_curve / g_curve:.2g}, or use order=1, which needs no minimum of such a function."
        )


@compiled("problem")
def _curvatures(
    problem: Problem, u: PyTree, v: PyTree, batch: Batch, weight: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the curvatures of f and g along the direction in which g - weight f curves down the most."""
    key, data = jax.random.key(0), data_of_loss(batch.lower)

    def along(d: PyTree) -> tuple[PyTree, PyTree]:
        f = derivatives.finite_difference(lambda u, v: problem.upper(u, v, data_of_loss(batch.upper), key), u, v)
        g = derivatives.finite_difference(lambda u, v: problem.lower(u, v, data, key), u, v)
        return f.second_products(d)[1], g.second_products(d)[1]

    def one(carry: tuple[PyTree, Any], k: Any) -> tuple[tuple[PyTree, Any], None]:
        """Power iteration, first with H = grad2_vv (g - weight f), then with shift I - H."""
        (d, shift), again = carry, k == PRODUCTS
        d = optax.tree.where(again, start, d)
        image = jax.tree.map(lambda a, b: b - (weight * a).astype(b.dtype), *along(d))
        shift = jnp.where(k < PRODUCTS, 1.1 * optax.tree.norm(image), shift)
        moved = jax.tree.map(lambda x, y: jnp.where(k < PRODUCTS, y, shift * x - y).astype(x.dtype), d, image)
        return (_unit(moved), shift), None

    start = _unit(optax.tree.random_like(key, v))
    (d, _), _ = jax.lax.scan(one, (start, jnp.zeros_like(optax.tree.norm(v))), jnp.arange(2 * PRODUCTS))
    of_f, of_g = along(d)
    return jnp.asarray(optax.tree.vdot(d, of_f)), jnp.asarray(optax.tree.vdot(d, of_g))


def _unit(d: PyTree) -> PyTree:
    size = optax.tree.norm(d)
    return jax.tree.map(lambda x: (x / jnp.where(size > 0, size, 1)).astype(x.dtype), d)
