"""The inverse Hessian from a few of its columns, which may be kept for several steps."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from bilevax._checks import InputError, require_count
from bilevax.derivatives import SecondProducts
from bilevax.linear_solve.base import FLAT, LinearSolution, check, in_one_type, product_of, solution_of


class Columns(NamedTuple):
    """Columns of H, their indices, and the number of solves since the first."""

    values: Float[Array, "k n"]
    places: Int[Array, " k"]
    solves: Int[Array, ""]


@dataclass(frozen=True)
class Nystrom:
    """The inverse of damping I + C' M^+ C, for k random columns C of H and their block M (Hataya and Yamada 2023).

    By the formula of Woodbury it needs k products with H, all at once, and no iteration. In `Implicit` the columns are
    kept for `reuse` steps, each of which then takes one product, for `linear_residual`. Elsewhere every solve
    computes its columns.

    Args:
        rank: k, at most the number of entries of v. Published: 5 to 20.
        damping: positive. Published: 0.01 to 1.
        reuse: the number of steps for which the columns are kept.
        seed: of the choice of the columns.

    The approximation is good if H is near a matrix of rank k, or if `damping` is near its other eigenvalues. Memory:
    k vectors of the size of v, and k times that of a gradient while the columns are computed.

    Source: Hataya and Yamada, "Nystrom method for accurate and scalable implicit differentiation", AISTATS 2023.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.linear_solve import Nystrom
        >>> solution = Nystrom(rank=2, damping=1e-3)(lambda q: (None, 2 * q), jnp.array([1.0, 4.0]), jnp.zeros(2))
        >>> print(jnp.round(solution.q, 2))
        [0.5 2. ]
    """

    rank: int = 10
    damping: float = 1e-2
    reuse: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check("Nystrom", {"rank": self.rank, "reuse": self.reuse}, self.damping)
        if not self.damping > 0:
            raise InputError("Nystrom: damping is 0, and must be positive: H is approximated by a singular matrix.")
        require_count("Nystrom", "seed + 1", self.seed + 1)

    def memory(self, v: PyTree) -> Columns:
        """Return the memory of no solve."""
        flat = ravel_pytree(v)[0]
        if self.rank > flat.size:
            raise InputError(f"Nystrom: rank is {self.rank}, and v has {flat.size} entries. Lower the rank.")
        wide = jnp.result_type(jnp.float32, flat.dtype)
        return Columns(jnp.zeros((self.rank, flat.size), wide), jnp.arange(self.rank), jnp.zeros((), jnp.int32))

    def continued(self, second_products: SecondProducts, b: PyTree, memory: Columns) -> tuple[LinearSolution, Columns]:
        """Return the solution, and the columns for the next solve."""
        second_products, b, _, back = in_one_type(second_products, b, b)
        product, (flat, unravel) = product_of(second_products, 0.0), ravel_pytree(b)

        def drawn() -> tuple[Any, Any]:
            key = jax.random.fold_in(jax.random.key(self.seed), memory.solves)
            index = jax.random.choice(key, flat.size, (self.rank,), replace=False).astype(memory.places.dtype)
            rows = jax.nn.one_hot(index, flat.size, dtype=flat.dtype)
            return jax.vmap(lambda row: ravel_pytree(product(unravel(row)))[0])(rows), index

        due = memory.solves % self.reuse == 0
        columns, index = jax.lax.cond(due, drawn, lambda: (memory.values.astype(flat.dtype), memory.places))
        block = columns[:, index]
        inner = (block + block.T) / 2 + columns @ columns.T / self.damping
        values, vectors = jnp.linalg.eigh(inner)
        kept = jnp.abs(values) > FLAT * self.rank * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(values))
        weights = vectors @ jnp.where(kept, (vectors.T @ (columns @ flat)) / jnp.where(kept, values, 1), 0)
        q = flat / self.damping - columns.T @ weights / self.damping**2
        found = back(solution_of(second_products, self.damping, b, unravel(q)))
        return found, Columns(columns.astype(memory.values.dtype), index, memory.solves + 1)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution, from new columns. `start` is not used."""
        return self.continued(second_products, b, self.memory(b))[0]
