"""The linear system as a matrix."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from bilevax.derivatives import SecondProducts
from bilevax.linear_solve.base import (
    FLAT,
    LinearSolution,
    check,
    in_one_type,
    product_of,
    solution_of,
)


@dataclass(frozen=True)
class Direct:
    """H as a matrix, from n products for n entries of b, and its LU factorisation. Memory: n^2 numbers.

    If H is singular to rounding error, its pseudo-inverse is applied, by an eigenvalue decomposition.

    Args:
        damping: solve (H + damping I) q = b.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.linear_solve import Direct
        >>> h = jnp.array([[2.0, 1.0], [1.0, -1.0]])
        >>> solution = Direct()(lambda q: (None, h @ q), jnp.array([3.0, 0.0]), jnp.zeros(2))
        >>> print(solution.q)
        [1. 1.]
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        check("Direct", {}, self.damping)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution; for a singular H, the one of least norm among those of least residual."""
        second_products, b, start, back = in_one_type(second_products, b, start)
        product, (flat, unravel) = product_of(second_products, self.damping), ravel_pytree(b)
        rows = jax.vmap(lambda row: ravel_pytree(product(unravel(row)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
        matrix = (rows + rows.T) / 2
        factors, pivots = jax.scipy.linalg.lu_factor(matrix)
        within = FLAT * flat.size * jnp.finfo(flat.dtype).eps
        diagonal = jnp.abs(jnp.diagonal(factors))

        def pseudo_inverse() -> Any:
            values, vectors = jnp.linalg.eigh(matrix)
            sizes = jnp.abs(values)
            kept = sizes > within * jnp.max(sizes)
            return vectors @ jnp.where(kept, (vectors.T @ flat) / jnp.where(kept, values, 1), 0)

        regular = jnp.min(diagonal) > within * jnp.max(diagonal)
        q = jax.lax.cond(regular, lambda: jax.scipy.linalg.lu_solve((factors, pivots), flat), pseudo_inverse)
        return back(solution_of(second_products, self.damping, b, unravel(q)))
