"""What methods on the value function min over v of g(u, v) share.

These methods need no second derivative: u moves along c grad_u f + grad_u g(u, v) - grad_u g(u, z), with v a point that
f attracts and z one near the minimiser of g. A method is how v, z and c move.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevax import derivatives
from bilevax._checks import InputError
from bilevax._programs import compiled
from bilevax.problem import Batch, Problem, data_of_loss

PRODUCTS = 30  # for each of two eigenvalues: the largest in size, then the lowest
ROUNDING = 1e-4  # a curvature below this part of the largest may be rounding
FLAT = 0.1  # g changes by less than this part of the change of the other term


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
    """Refuse a weight for which g - weight f has no minimum, as far as two tests at (u, v) find.

    The first: it curves down along a direction in which g curves up. The direction is that of the lowest eigenvalue of
    the Hessian of g - weight f, by power iteration. The second: it falls without end along this direction or along the
    part of grad_v f in which g is flat, at points up to 10,000 times the size of v away. So a weight that passes can
    still be too large. Under jit nothing is tested.

    Raises:
        InputError: there is such a direction.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((u, v, batch))):
        return
    f_curve, g_curve, size, falls = (float(x) for x in jax.device_get(_tested(problem, u, v, batch, weight)))
    head = f"{owner}: g - {float(weight):.3g} f has no minimum:"
    if g_curve > ROUNDING * size and g_curve - float(weight) * f_curve < 0:
        raise InputError(
            f"{head} at the start there is a direction in which g has the curvature {g_curve:.3g} and f "
            f"{f_curve:.3g}. Reduce nu by a factor of more than {float(weight) * f_curve / g_curve:.2g}, or use "
            "order=1, which needs no minimum of such a function."
        )
    if falls:
        raise InputError(
            f"{head} from the start it falls without end along a line, on which g is flat and f grows. Use order=1, "
            "which needs no minimum of such a function, or add a small multiple of |v|^2 to g."
        )


@compiled("problem")
def _tested(
    problem: Problem, u: PyTree, v: PyTree, batch: Batch, weight: Any
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Bool[Array, ""]]:
    """Return the curvatures of f and g where g - weight f curves down the most, its largest, and if it has no end."""
    key, data = jax.random.key(0), data_of_loss(batch.lower)

    def f(u: PyTree, v: PyTree) -> Any:
        return problem.upper(u, v, data_of_loss(batch.upper), key)

    def g(u: PyTree, v: PyTree) -> Any:
        return problem.lower(u, v, data, key)

    def along(d: PyTree) -> tuple[PyTree, PyTree]:
        return tuple(derivatives.finite_difference(loss, u, v).second_products(d)[1] for loss in (f, g))

    def penalised(d: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: b - (weight * a).astype(b.dtype), *along(d))

    d, size = _lowest(penalised, _unit(optax.tree.random_like(key, v)))
    of_f, of_g = along(d)
    flat = _flat_part(lambda d: along(d)[1], size, derivatives.finite_difference(f, u, v).grad_v)

    def both(t: Any, d: PyTree) -> Any:
        there = problem.lower_set(u)(jax.tree.map(lambda x, y: (x + t * y).astype(x.dtype), v, d))
        away = optax.tree.norm(optax.tree.sub(there, v))
        return jnp.stack([weight * f(u, there), g(u, there), away]).astype(jnp.result_type(float))

    here = both(0.0, d)
    far = jnp.maximum(optax.tree.norm(v), 1) * jnp.array([1.0, 100.0, 10_000.0])

    def falls(d: PyTree, sign: float) -> Any:
        rise, change, away = (jax.vmap(lambda t: both(sign * t, d))(far) - here).T
        steady = (rise[0] > 0) & jnp.all(rise[1:] > 30 * rise[:-1]) & jnp.all(jnp.isfinite(rise))
        free = jnp.all(away > far / 2)  # not held back by the lower set
        return steady & free & jnp.all(jnp.abs(change) <= FLAT * rise)

    ends = [falls(line, sign) for line in (d, flat) for sign in (1.0, -1.0)]
    return jnp.asarray(optax.tree.vdot(d, of_f)), jnp.asarray(optax.tree.vdot(d, of_g)), size, jnp.any(jnp.stack(ends))


def _lowest(product: Callable[[PyTree], PyTree], start: PyTree) -> tuple[PyTree, Float[Array, ""]]:
    """Return the direction of the lowest eigenvalue of a symmetric matrix, and 1.1 times its largest in size."""

    def one(carry: tuple[PyTree, Any], k: Any) -> tuple[tuple[PyTree, Any], None]:
        """Power iteration, first with the matrix H, then with shift I - H."""
        (d, shift), again = carry, k == PRODUCTS
        d = optax.tree.where(again, start, d)
        image = product(d)
        shift = jnp.where(k < PRODUCTS, 1.1 * optax.tree.norm(image), shift)
        moved = jax.tree.map(lambda x, y: jnp.where(k < PRODUCTS, y, shift * x - y).astype(x.dtype), d, image)
        return (_unit(moved), shift), None

    return jax.lax.scan(one, (start, jnp.zeros_like(optax.tree.norm(start))), jnp.arange(2 * PRODUCTS))[0]


def _flat_part(product: Callable[[PyTree], PyTree], size: Any, slope: PyTree) -> PyTree:
    """Return the unit vector of (I - H / size)^k slope: the part of the slope along which H hardly curves."""
    size = jnp.where(size > 0, size, 1)

    def one(d: PyTree, k: Any) -> tuple[PyTree, None]:
        return jax.tree.map(lambda x, y: (x - y / size).astype(x.dtype), d, product(d)), None

    return _unit(jax.lax.scan(one, slope, jnp.arange(PRODUCTS))[0])


def _unit(d: PyTree) -> PyTree:
    size = optax.tree.norm(d)
    return jax.tree.map(lambda x: (x / jnp.where(size > 0, size, 1)).astype(x.dtype), d)
