"""Linear systems by a series, and by descent on a quadratic function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from bilevax._checks import InputError
from bilevax._optimizers import check_optimizer, require_optimizer, update
from bilevax.derivatives import SecondProducts
from bilevax.linear_solve.base import (
    LinearSolution,
    Product,
    check,
    in_one_type,
    product_of,
    solution_of,
)


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
        check("Neumann", {"terms": self.terms}, self.damping)
        if not self.scale > 0:
            raise InputError(f"Neumann: scale is {self.scale}, and must be positive.")

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution. `start` is not used: the series starts from zero."""
        second_products, b, start, back = in_one_type(second_products, b, start)
        product = product_of(second_products, self.damping)

        def one(carry: Any, _: None) -> tuple[Any, None]:
            power, total = carry
            power = jax.tree.map(lambda x, hx: x - self.scale * hx, power, product(power))
            return (power, optax.tree.add(total, power)), None

        (_, total), _ = jax.lax.scan(one, (b, b), None, length=self.terms)
        return back(solution_of(second_products, self.damping, b, optax.tree.scale(self.scale, total)))


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
        check("ByOptimizer", {"steps": self.steps}, self.damping)
        require_optimizer("ByOptimizer", "optimizer", self.optimizer)

    def __call__(self, second_products: SecondProducts, b: PyTree, start: PyTree) -> LinearSolution:
        """Return the solution."""
        check_optimizer("ByOptimizer", "optimizer", self.optimizer, "q", start)
        second_products, b, start, back = in_one_type(second_products, b, start)
        product = product_of(second_products, self.damping)

        def one(carry: Any, _: None) -> tuple[Any, None]:
            q, opt_state = carry
            updates, opt_state = update(self.optimizer, self.form(product, b, q), opt_state, q)
            return (optax.apply_updates(q, updates), opt_state), None

        (q, _), _ = jax.lax.scan(one, (start, self.optimizer.init(start)), None, length=self.steps)
        # Near the solution, updates of a fixed length, such as Adam's, may be worse than `start`.
        new, last = (solution_of(second_products, self.damping, b, x) for x in (q, start))
        return back(optax.tree.where(new.residual < last.residual, new, last))
