"""Approximate solutions q of H q = b, where H = grad2_vv g is known by its products alone.

Each is a frozen dataclass called as `solve(along, b, start) -> Answer(q, cross, residual)`, where
along(q) = (cross, H q) is that of `oracles.lower`: cross = grad2_uv g . q, which the caller needs of the answer, comes
with the product that its residual |(H + damping) q - b| takes. H is symmetric but need not be positive definite: the
answer is always finite and its residual at most |b|, whatever the curvature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from bilevax._optimizers import check_optimizer, require_optimizer, update
from bilevax.oracles import Along
from bilevax.problem import InputError, PyTree, require_count

Product = Callable[[PyTree], PyTree]


class Answer(NamedTuple):
    """q, what `along` gives for it beside H q, and |(H + damping) q - b|."""

    q: PyTree
    cross: PyTree
    residual: Any


class LinearSolve(Protocol):
    """What `Implicit` asks of a linear solve."""

    def __call__(self, along: Along, b: PyTree, start: PyTree) -> Answer:
        """Q with H q near b."""
        ...


def _product(along: Along, damping: float) -> Product:
    """The product with H + damping alone."""
    return lambda q: _damped(along(q)[1], damping, q)


def _damped(image: PyTree, damping: float, q: PyTree) -> PyTree:
    return image if damping == 0 else jax.tree.map(lambda a, x: a + damping * x, image, q)


def _answer(along: Along, damping: float, b: PyTree, q: PyTree, image: PyTree = None) -> Answer:
    """What q comes to if its residual is below that of 0; if not, its multiple of least residual, or 0.

    `image` is (H + damping) q where that is known. So a breakdown (NaN) or a divergence never leaves here, and a
    truncated answer under negative curvature keeps its direction, and is not longer than it can answer for.
    """
    cross, product = along(q)
    image = _damped(product, damping, q) if image is None else image
    size_b, size = optax.tree.norm(b), optax.tree.norm(optax.tree.sub(image, b))
    inner = optax.tree.vdot(image, b)
    multiple = inner / optax.tree.norm(image, squared=True)
    short = jnp.sqrt(jnp.maximum(size_b**2 - inner * multiple, 0))
    helps = size < size_b
    factor, size = jnp.where(helps, 1, multiple), jnp.where(helps, size, short)
    take = size < size_b  # nothing that is not finite is
    q, cross = jax.tree.map(lambda x: jnp.where(take, factor * x, 0).astype(x.dtype), (q, cross))
    return Answer(q, cross, jnp.where(take, size, size_b))


def _check(owner: str, counts: dict[str, int], damping: float, tolerance: float = 1.0) -> None:
    for name, count in counts.items():
        require_count(owner, name, count)
    if not tolerance > 0:
        raise InputError(f"{owner}: tolerance is {tolerance}, and must be positive.")
    if not damping >= 0:
        raise InputError(f"{owner}: damping is {damping}, and must be zero or positive.")


@dataclass(frozen=True)
class CG:
    """Conjugate gradients (Hestenes and Stiefel 1952), warm-started.

    Those of jax.scipy do not tell their residual, and to take it is a product with H more. They begin at `start` where
    that is better than 0, and return it where it is better than what they came to, as it can be under negative
    curvature.

    Args:
        steps: at most this many products with H; one more is for the residual of `start`.
        tolerance: stop at this residual, relative to |b|.
        damping: solve (H + damping I) q = b.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.linear_solve import CG
        >>> answer = CG(steps=5)(lambda q: (None, 2 * q), jnp.array([1.0, 4.0]), jnp.zeros(2))
        >>> print(answer.q)
        [0.5 2. ]
    """

    steps: int = 20
    tolerance: float = 1e-6
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check("CG", {"steps": self.steps}, self.damping, self.tolerance)

    def __call__(self, along: Along, b: PyTree, start: PyTree) -> Answer:
        """The answer."""
        product = _product(along, self.damping)
        squared_b = optax.tree.norm(b, squared=True)
        r = optax.tree.sub(b, product(start))
        squared = optax.tree.norm(r, squared=True)
        helps = squared < squared_b  # else r would be known to the rounding of H start alone
        first = jax.tree.map(
            lambda x, y: jnp.where(helps, x, y), (start, r, squared), (optax.tree.zeros_like(b), b, squared_b)
        )

        def going(carry: Any) -> Any:
            _, _, squared, _, step = carry
            return (squared > self.tolerance**2 * squared_b) & (step < self.steps)

        def one(carry: Any) -> Any:
            q, r, squared, p, step = carry
            image = product(p)
            rate = squared / optax.tree.vdot(p, image)
            q, r = optax.tree.add_scale(q, rate, p), optax.tree.add_scale(r, -rate, image)
            new = optax.tree.norm(r, squared=True)
            return q, r, new, optax.tree.add_scale(r, new / squared, p), step + 1

        q, r, squared = first
        *last, _, _ = jax.lax.while_loop(going, one, (q, r, squared, r, 0))
        keep = helps & ~(last[-1] < squared)
        q, r, _ = jax.tree.map(lambda x, y: jnp.where(keep, x, y), first, tuple(last))
        return _answer(along, self.damping, b, q, optax.tree.sub(b, r))


@dataclass(frozen=True)
class GMRES:
    """GMRES (Saad and Schultz 1986), by lineax, warm-started; for indefinite H.

    Args:
        steps: at most this many outer iterations.
        tolerance: stop at this residual, relative to b's entries.
        damping: solve (H + damping I) q = b.
        restart: products with H between restarts; their vectors are kept in memory.
    """

    steps: int = 20
    tolerance: float = 1e-6
    damping: float = 0.0
    restart: int = 20

    def __post_init__(self) -> None:
        _check("GMRES", {"steps": self.steps, "restart": self.restart}, self.damping, self.tolerance)

    def __call__(self, along: Along, b: PyTree, start: PyTree) -> Answer:
        """The answer."""
        import lineax

        solver = lineax.GMRES(self.tolerance, self.tolerance * 1e-6, max_steps=self.steps, restart=self.restart)
        q = _by_lineax(solver, _product(along, self.damping), b, start)
        return _answer(along, self.damping, b, q)


@dataclass(frozen=True)
class Direct:
    """H formed from its products, and factorised by lineax (LU): n products for n entries, and n^2 numbers of memory.

    Args:
        damping: solve (H + damping I) q = b.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevax.linear_solve import Direct
        >>> h = jnp.array([[2.0, 1.0], [1.0, -1.0]])
        >>> answer = Direct()(lambda q: (None, h @ q), jnp.array([3.0, 0.0]), jnp.zeros(2))
        >>> print(answer.q)
        [1. 1.]
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        _check("Direct", {}, self.damping)

    def __call__(self, along: Along, b: PyTree, start: PyTree) -> Answer:
        """The answer; 0 where H is singular."""
        import lineax

        q = _by_lineax(lineax.LU(), _product(along, self.damping), b, start)
        return _answer(along, self.damping, b, q)


def _by_lineax(solver: Any, product: Product, b: PyTree, start: PyTree) -> PyTree:
    import lineax  # imported when first used: it takes a third of the time that jax itself takes

    shapes = jax.eval_shape(lambda: b)
    operator = lineax.FunctionLinearOperator(product, shapes)
    # A zero right-hand side (or start) makes relative tests meaningless; _answer picks up the pieces.
    options = {} if isinstance(solver, lineax.LU) else {"y0": start}
    return lineax.linear_solve(operator, b, solver, options=options, throw=False).value


@dataclass(frozen=True)
class Neumann:
    """The truncated Neumann series scale * sum_j (I - scale H)^j b (Lorraine et al. 2020, Algorithm 3).

    Args:
        terms: how many powers are added.
        scale: must be below 2 over the largest eigenvalue of H for the series to converge.
        damping: solve (H + damping I) q = b.
    """

    terms: int = 20
    scale: float = 0.1
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check("Neumann", {"terms": self.terms}, self.damping)
        if not self.scale > 0:
            raise InputError(f"Neumann: scale is {self.scale}, and must be positive.")

    def __call__(self, along: Along, b: PyTree, start: PyTree) -> Answer:
        """The answer. The series starts from zero: `start` is not used."""
        product = _product(along, self.damping)

        def one(carry: Any, _: None) -> tuple[Any, None]:
            power, total = carry
            power = jax.tree.map(lambda x, hx: x - self.scale * hx, power, product(power))
            return (power, optax.tree.add(total, power)), None

        (_, total), _ = jax.lax.scan(one, (b, b), None, length=self.terms)
        return _answer(along, self.damping, b, optax.tree.scale(self.scale, total))


def least_squares(product: Product, b: PyTree, q: PyTree) -> PyTree:
    """The gradient of |H q - b|^2 / 2 in q: two products; right for any symmetric H."""
    return product(optax.tree.sub(product(q), b))


def quadratic(product: Product, b: PyTree, q: PyTree) -> PyTree:
    """The gradient of q'Hq/2 - b'q in q: one product; bounded below only where H is positive."""
    return optax.tree.sub(product(q), b)


@dataclass(frozen=True)
class ByOptimizer:
    """Descent on the least-squares or quadratic form by any optax optimizer, warm-started.

    With Adam it is the linear solve of ApproxGrad in Mehra and Hamm (2021), appendix B, after Domke (2012).
    The optimizer's own state starts afresh with each solve.

    Args:
        optimizer: any optax optimizer.
        steps: how many moves of q.
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

    def __call__(self, along: Along, b: PyTree, start: PyTree) -> Answer:
        """The answer."""
        check_optimizer("ByOptimizer", "optimizer", self.optimizer, "q", start)
        product = _product(along, self.damping)

        def one(carry: Any, _: None) -> tuple[Any, None]:
            q, opt_state = carry
            updates, opt_state = update(self.optimizer, self.form(product, b, q), opt_state, q)
            return (optax.apply_updates(q, updates), opt_state), None

        (q, _), _ = jax.lax.scan(one, (start, self.optimizer.init(start)), None, length=self.steps)
        # Near the end of a solve a move of fixed length, such as Adam's, leads away from the last answer.
        new, last = (_answer(along, self.damping, b, x) for x in (q, start))
        return jax.tree.map(lambda x, y: jnp.where(new.residual < last.residual, x, y), new, last)
