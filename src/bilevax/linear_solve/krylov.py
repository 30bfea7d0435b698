"""Krylov methods: conjugate gradients and GMRES."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bilevax.derivatives import SecondProducts
from bilevax.linear_solve.base import (
    FLAT,
    IN_DOUBT,
    LinearSolution,
    check,
    in_one_type,
    product_of,
    solution_of,
)


class _Turn(NamedTuple):
    """The state of conjugate gradients: q, its residual r, the direction p, and the quantities of the stopping rule.

    `squared` is |r|^2 and `squared_p` is |p|^2; `top` is the largest curvature |p'Hp| / |p|^2 so far, `reach` an upper
    bound on |q|. If `checking`, the next iteration computes the residual by a product instead of taking a step.
    """

    q: PyTree
    r: PyTree
    squared: Any
    p: PyTree
    squared_p: Any
    top: Any
    reach: Any
    step: Any
    checking: Any


@dataclass(frozen=True)
class CG:
    """Conjugate gradients (Hestenes and Stiefel 1952), warm-started.

    The iteration starts from `start` if its residual is below that of zero, and returns `start` if no later residual is
    smaller, which can happen under negative curvature. It also stops at a direction of zero curvature, which a singular
    H has, and when the residual reaches the rounding error of H q.

    It is used in place of `jax.scipy.sparse.linalg.cg` or lineax for three reasons. A hypergradient needs the true
    residual: if the residual of the recurrence may differ from |H q - b| by rounding, it is computed again by a
    product. The iteration has to stop at the rank of H, which may be singular. It has to survive zero and negative
    curvature.

    Args:
        steps: the largest number of iterations, each with one product with H; the residual of `start` takes one more.
        tolerance: stop at this residual, relative to |b|.
        damping: solve (H + damping I) q = b.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.linear_solve import CG
        >>> solution = CG(steps=5)(lambda q: (None, 2 * q), jnp.array([1.0, 4.0]), jnp.zeros(2))
        >>> print(solution.q)
        [0.5 2. ]
    """

    steps: int = 20
    tolerance: float = 1e-6
    damping: float = 0.0

    def __post_init__(self) -> None:
        check("CG", {"steps": self.steps}, self.damping, self.tolerance)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution."""
        second_products, b, start, back = in_one_type(second_products, b, start)
        product = product_of(second_products, self.damping)
        squared_b = optax.tree.norm(b, squared=True)
        eps = jnp.finfo(squared_b.dtype).eps
        r = optax.tree.sub(b, product(start))
        squared = optax.tree.norm(r, squared=True)
        helps = squared < squared_b  # otherwise r would have only the accuracy of H start
        first = jax.tree.map(
            lambda x, y: jnp.where(helps, x, y), (start, r, squared), (optax.tree.zeros_like(b), b, squared_b)
        )

        def ended(turn: _Turn) -> Any:
            floor = jnp.maximum(self.tolerance**2 * squared_b, (eps * turn.top * turn.reach) ** 2)
            return ~(turn.squared > floor) | (turn.step >= self.steps)

        def one(turn: _Turn) -> _Turn:
            checking = turn.checking
            image = product(optax.tree.where(checking, turn.q, turn.p))
            bend: Any = optax.tree.vdot(turn.p, image)
            curvature = jnp.abs(bend) / turn.squared_p
            top = jnp.where(checking, turn.top, jnp.maximum(turn.top, curvature))
            bent = (curvature > FLAT * eps * top) & ~checking
            rate = jnp.where(bent, turn.squared / jnp.where(bent, bend, 1), 0)
            q = optax.tree.add_scale(turn.q, rate, turn.p)
            r = optax.tree.add_scale(optax.tree.where(checking, b, turn.r), jnp.where(checking, -1, -rate), image)
            new = optax.tree.norm(r, squared=True)
            more = new / turn.squared
            p = optax.tree.add_scale(r, more, turn.p)
            reach = turn.reach + jnp.abs(rate) * jnp.sqrt(turn.squared_p)
            step = jnp.where(bent, turn.step + 1, self.steps)
            after = _Turn(q, r, new, p, new + more**2 * turn.squared_p, top, reach, step, checking)
            parted = eps * step * top * reach > IN_DOUBT * jnp.sqrt(squared_b)
            return after._replace(checking=ended(after) & parted & ~checking)

        q, r, squared = first
        reach = jnp.where(helps, optax.tree.norm(start), 0).astype(squared.dtype)
        zero = jnp.zeros_like(squared)
        turn = _Turn(q, r, squared, r, squared, zero, reach, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
        turn = jax.lax.while_loop(lambda turn: ~ended(turn) | turn.checking, one, turn)
        last = (turn.q, turn.r, turn.squared)
        keep = helps & ~(last[-1] < squared)
        q, r, _ = optax.tree.where(keep, first, last)
        return back(solution_of(second_products, self.damping, b, q, optax.tree.sub(b, r)))


@dataclass(frozen=True)
class GMRES:
    """GMRES (Saad and Schultz 1986), by lineax, warm-started; for indefinite H.

    If H is singular, the solution may have any component in the null space. A solution so long that H q is only
    rounding error is replaced by zero; this test takes one more product.

    Args:
        steps: the largest number of outer iterations.
        tolerance: stop at this residual, relative to the entries of b.
        damping: solve (H + damping I) q = b.
        restart: number of products with H between restarts; as many vectors are kept in memory.
    """

    steps: int = 20
    tolerance: float = 1e-6
    damping: float = 0.0
    restart: int = 20

    def __post_init__(self) -> None:
        check("GMRES", {"steps": self.steps, "restart": self.restart}, self.damping, self.tolerance)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution."""
        import lineax  # imported on first use: the import takes a third of the time of importing jax

        second_products, b, start, back = in_one_type(second_products, b, start)

        solver = lineax.GMRES(self.tolerance, self.tolerance * 1e-6, max_steps=self.steps, restart=self.restart)
        operator = lineax.FunctionLinearOperator(product_of(second_products, self.damping), jax.eval_shape(lambda: b))
        # With a zero right-hand side or start, the relative tests of lineax may fail; _solution returns a finite value.
        q = lineax.linear_solve(operator, b, solver, options={"y0": start}, throw=False).value
        size: Any = optax.tree.norm(b)
        longest = IN_DOUBT * size**2 / (jnp.finfo(size.dtype).eps * optax.tree.norm(operator.mv(b)))
        q = optax.tree.where(optax.tree.norm(q) > longest, optax.tree.zeros_like(q), q)
        return back(solution_of(second_products, self.damping, b, q))
