"""The interface of a linear solve, and what linear solves share."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError, require_count
from bilevax.derivatives import SecondProducts

FLAT = 10  # times the rounding error of the largest curvature so far: a smaller curvature counts as zero
IN_DOUBT = 1e-2  # of |b|: if the residual of the recurrence may be wrong by more, it is computed by a product
Product = Callable[[PyTree], PyTree]


class LinearSolution(NamedTuple):
    """The solution of H q = b.

    Attributes:
        q: the solution, shaped like b.
        cross: grad2_uv g . q, the first result of `second_products`.
        residual: |(H + damping) q - b|.
    """

    q: PyTree
    cross: PyTree
    residual: Float[Array, ""]


@runtime_checkable
class LinearSolve(Protocol):
    """The interface of a linear solve.

    One that keeps something else than q between the steps of `Implicit` has `memory(v)` and
    `continued(second_products, b, memory) -> (solution, memory)` in addition, as `Nystrom` has.
    """

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return a q with H q near b, of the structure of b."""
        ...


def in_one_type(
    second_products: SecondProducts, b: PyTree, start: PyTree
) -> tuple[SecondProducts, PyTree, PyTree, Callable[[LinearSolution], LinearSolution]]:
    """Return the arguments in a common type of at least float32, and the function that casts a solution back."""
    types = [x.dtype for x in jax.tree.leaves(b)]
    wide = jnp.result_type(jnp.float32, *types)
    if all(t == wide for t in types):
        return second_products, b, start, lambda found: found

    def cast(x: PyTree) -> PyTree:
        return jax.tree.map(lambda a: a.astype(wide), x)

    def back(x: PyTree) -> PyTree:
        return jax.tree.map(lambda a, like: a.astype(like.dtype), x, b)

    def wide_products(q: PyTree) -> tuple[PyTree, PyTree]:
        cross, image = second_products(back(q))
        return cross, cast(image)

    return wide_products, cast(b), cast(start), lambda found: found._replace(q=back(found.q))


def product_of(second_products: SecondProducts, damping: float) -> Product:
    """Return the product with H + damping."""
    return lambda q: damped(second_products(q)[1], damping, q)


def damped(image: PyTree, damping: float, q: PyTree) -> PyTree:
    """Return (H + damping) q from `image`, H q."""
    return image if damping == 0 else jax.tree.map(lambda a, x: a + damping * x, image, q)


def solution_of(
    second_products: SecondProducts, damping: float, b: PyTree, q: PyTree, image: PyTree = None
) -> LinearSolution:
    """Return `q` if its residual is below that of zero; otherwise the multiple of q with the least residual, or zero.

    A breakdown (NaN) or a divergence is never returned, and a truncated solution under negative curvature keeps its
    direction, at a length that lowers the residual. `image` is (H + damping) q if it is known.
    """
    cross, product = second_products(q)
    image = damped(product, damping, q) if image is None else image
    size_b, size = optax.tree.norm(b), optax.tree.norm(optax.tree.sub(image, b))
    inner = optax.tree.vdot(image, b)
    multiple = inner / optax.tree.norm(image, squared=True)
    short = jnp.sqrt(jnp.maximum(size_b**2 - inner * multiple, 0))
    helps = size < size_b
    factor, size = jnp.where(helps, 1, multiple), jnp.where(helps, size, short)
    take = size < size_b  # False for NaN
    q, cross = jax.tree.map(lambda x: jnp.where(take, factor * x, 0).astype(x.dtype), (q, cross))
    return LinearSolution(q, cross, jnp.where(take, size, size_b))


def check(owner: str, counts: dict[str, int], damping: float, tolerance: float = 1.0) -> None:
    """Refuse counts that are not positive integers, a negative damping, and a tolerance that is not positive."""
    for name, count in counts.items():
        require_count(owner, name, count)
    if not tolerance > 0:
        raise InputError(f"{owner}: tolerance is {tolerance}, and must be positive.")
    if not damping >= 0:
        raise InputError(f"{owner}: damping is {damping}, and must be zero or positive.")


def memory_of(linear_solve: LinearSolve, v: PyTree) -> PyTree:
    """Return what `continued` needs in the first step: zeros like v, or the linear solve's own memory."""
    own = getattr(linear_solve, "memory", None)
    return optax.tree.zeros_like(v) if own is None else own(v)


def continued(
    linear_solve: LinearSolve, second_products: SecondProducts, b: PyTree, memory: PyTree
) -> tuple[LinearSolution, PyTree]:
    """Return the solution, and the memory for the next step: q, from which it is warm-started, or its own memory."""
    own = getattr(linear_solve, "continued", None)
    if own is not None:
        return own(second_products, b, memory)
    found = linear_solve(second_products, b, memory)
    return found, found.q
