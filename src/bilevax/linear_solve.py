"""Approximate solutions q of H q = b, where only products with H = grad2_vv g are available.

Each is a frozen dataclass called as `solve(second_products, b, start) -> LinearSolution(q, cross, residual)`, where
second_products(q) = (cross, H q) comes from `derivatives.lower`. The caller needs cross = grad2_uv g . q of the
solution; the product that computes the residual |(H + damping) q - b| returns it too.

H is symmetric but need not be positive definite: the solution is always finite and its residual is at most |b|, for any
curvature. If H is singular and H q = b has solutions, `CG`, `Neumann` and `Direct` return the solution of least norm
when they start from zero. If there is no solution, the residual stays large.

Leaves of different types, and of float16 and bfloat16, are computed in a common type of at least float32; q has the
types of b.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from bilevax._checks import InputError, require_count
from bilevax._optimizers import check_optimizer, require_optimizer, update
from bilevax.derivatives import SecondProducts

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
    """The interface of a linear solve."""

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return a q with H q near b, of the structure of b."""
        ...


def _in_one_type(
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


def _product(second_products: SecondProducts, damping: float) -> Product:
    """Return the product with H + damping."""
    return lambda q: _damped(second_products(q)[1], damping, q)


def _damped(image: PyTree, damping: float, q: PyTree) -> PyTree:
    return image if damping == 0 else jax.tree.map(lambda a, x: a + damping * x, image, q)


def _solution(
    second_products: SecondProducts, damping: float, b: PyTree, q: PyTree, image: PyTree = None
) -> LinearSolution:
    """Return `q` if its residual is below that of zero; otherwise the multiple of q with the least residual, or zero.

    A breakdown (NaN) or a divergence is never returned, and a truncated solution under negative curvature keeps its
    direction, at a length that lowers the residual. `image` is (H + damping) q if it is known.
    """
    cross, product = second_products(q)
    image = _damped(product, damping, q) if image is None else image
    size_b, size = optax.tree.norm(b), optax.tree.norm(optax.tree.sub(image, b))
    inner = optax.tree.vdot(image, b)
    multiple = inner / optax.tree.norm(image, squared=True)
    short = jnp.sqrt(jnp.maximum(size_b**2 - inner * multiple, 0))
    helps = size < size_b
    factor, size = jnp.where(helps, 1, multiple), jnp.where(helps, size, short)
    take = size < size_b  # False for NaN
    q, cross = jax.tree.map(lambda x: jnp.where(take, factor * x, 0).astype(x.dtype), (q, cross))
    return LinearSolution(q, cross, jnp.where(take, size, size_b))


def _check(owner: str, counts: dict[str, int], damping: float, tolerance: float = 1.0) -> None:
    for name, count in counts.items():
        require_count(owner, name, count)
    if not tolerance > 0:
        raise InputError(f"{owner}: tolerance is {tolerance}, and must be positive.")
    if not damping >= 0:
        raise InputError(f"{owner}: damping is {damping}, and must be zero or positive.")


FLAT = 10  # times the rounding error of the largest curvature so far: a smaller curvature counts as zero
IN_DOUBT = 1e-2  # of |b|: if the residual of the recurrence may be wrong by more, it is computed by a product


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
        _check("CG", {"steps": self.steps}, self.damping, self.tolerance)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution."""
        second_products, b, start, back = _in_one_type(second_products, b, start)
        product = _product(second_products, self.damping)
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
        return back(_solution(second_products, self.damping, b, q, optax.tree.sub(b, r)))


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
        _check("GMRES", {"steps": self.steps, "restart": self.restart}, self.damping, self.tolerance)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution."""
        import lineax  # imported on first use: the import takes a third of the time of importing jax

        second_products, b, start, back = _in_one_type(second_products, b, start)

        solver = lineax.GMRES(self.tolerance, self.tolerance * 1e-6, max_steps=self.steps, restart=self.restart)
        operator = lineax.FunctionLinearOperator(_product(second_products, self.damping), jax.eval_shape(lambda: b))
        # With a zero right-hand side or start, the relative tests of lineax may fail; _solution returns a finite value.
        q = lineax.linear_solve(operator, b, solver, options={"y0": start}, throw=False).value
        size: Any = optax.tree.norm(b)
        longest = IN_DOUBT * size**2 / (jnp.finfo(size.dtype).eps * optax.tree.norm(operator.mv(b)))
        q = optax.tree.where(optax.tree.norm(q) > longest, optax.tree.zeros_like(q), q)
        return back(_solution(second_products, self.damping, b, q))


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
        _check("Direct", {}, self.damping)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution; for a singular H, the one of least norm among those of least residual."""
        second_products, b, start, back = _in_one_type(second_products, b, start)
        product, (flat, unravel) = _product(second_products, self.damping), ravel_pytree(b)
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
        return back(_solution(second_products, self.damping, b, unravel(q)))


@dataclass(frozen=True)
class Neumann:
    """The truncated Neumann series scale * sum_j (I - scale H)^j b (Lorraine et al. 2020, Algorithm 3).

    Args:
        terms: the number of terms after b itself.
        scale: positive; the series converges if it is below 2 over the largest eigenvalue of H.
        damping: solve (H + damping I) q = b.
    """

    terms: int = 20
    scale: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check("Neumann", {"terms": self.terms}, self.damping)
        if not self.scale > 0:
            raise InputError(f"Neumann: scale is {self.scale}, and must be positive.")

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution. `start` is not used: the series starts from zero."""
        second_products, b, start, back = _in_one_type(second_products, b, start)
        product = _product(second_products, self.damping)

        def one(carry: Any, _: None) -> tuple[Any, None]:
            power, total = carry
            power = jax.tree.map(lambda x, hx: x - self.scale * hx, power, product(power))
            return (power, optax.tree.add(total, power)), None

        (_, total), _ = jax.lax.scan(one, (b, b), None, length=self.terms)
        return back(_solution(second_products, self.damping, b, optax.tree.scale(self.scale, total)))


def least_squares(product: Product, b: PyTree, q: PyTree) -> PyTree:
    """Return the gradient of |H q - b|^2 / 2 in q, by two products; for any symmetric H."""
    return product(optax.tree.sub(product(q), b))


def quadratic(product: Product, b: PyTree, q: PyTree) -> PyTree:
    """Return the gradient of q'Hq/2 - b'q in q, by one product; for positive definite H."""
    return optax.tree.sub(product(q), b)


@dataclass(frozen=True)
class ByOptimizer:
    """Minimisation of the least-squares or the quadratic form by an optax optimizer, warm-started.

    With Adam it is the linear solve of ApproxGrad in Mehra and Hamm (2021), appendix B, after Domke (2012).
    Each solve starts with a new optimizer state.

    Args:
        optimizer: any optax optimizer that needs only gradients.
        steps: number of updates of q.
        damping: solve (H + damping I) q = b.
        form: `least_squares` or `quadratic`.
    """

    optimizer: optax.GradientTransformation = optax.adam(1e-2)
    steps: int = 20
    damping: float = 0.0
    form: Callable[[Product, PyTree, PyTree], PyTree] = least_squares

    def __post_init__(self) -> None:
        _check("ByOptimizer", {"steps": self.steps}, self.damping)
        require_optimizer("ByOptimizer", "optimizer", self.optimizer)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution."""
        check_optimizer("ByOptimizer", "optimizer", self.optimizer, "q", start)
        second_products, b, start, back = _in_one_type(second_products, b, start)
        product = _product(second_products, self.damping)

        def one(carry: Any, _: None) -> tuple[Any, None]:
            q, opt_state = carry
            updates, opt_state = update(self.optimizer, self.form(product, b, q), opt_state, q)
            return (optax.apply_updates(q, updates), opt_state), None

        (q, _), _ = jax.lax.scan(one, (start, self.optimizer.init(start)), None, length=self.steps)
        # Near the solution, updates of a fixed length, such as Adam's, may be worse than `start`.
        new, last = (_solution(second_products, self.damping, b, x) for x in (q, start))
        return back(optax.tree.where(new.residual < last.residual, new, last))
