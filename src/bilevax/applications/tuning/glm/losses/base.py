"""What every loss of a generalised linear model has, and how refusals name what was passed."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float

from bilevax._checks import InputError

Eta = Float[np.ndarray, "n outputs folds"]
Target = Float[np.ndarray, "n outputs #folds"]
LARGEST_EXPONENT = 500.0  # of exponentials: the line search refuses a step before they overflow


class Words(NamedTuple):
    """How refusals name what was passed.

    Attributes:
        target: the targets.
        exposure: how an exposure is passed.
        gamma, tweedie: how these losses are chosen.
    """

    target: str = "y"
    exposure: str = "exposure="
    gamma: str = 'loss="gamma"'
    tweedie: str = "Tweedie(1.5)"


@dataclass(frozen=True)
class Loss:
    """A convex loss of a linear predictor.

    Subclasses define `value`, `slope` and `curvature`; losses that couple their outputs also `product`.
    """

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        raise NotImplementedError

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        raise NotImplementedError

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta; the diagonal of the Hessian where outputs are coupled."""
        raise NotImplementedError

    def product(self, curvature: Eta, eta: Eta, direction: Eta) -> Eta:
        """The Hessian by eta of each sample times a direction."""
        return curvature * direction

    @property
    def coupled(self) -> bool:
        """Whether the Hessian by eta has entries between outputs."""
        return False

    @property
    def quadratic(self) -> bool:
        """Whether the curvature is constant."""
        return False

    @property
    def classifies(self) -> bool:
        """Whether targets are classes."""
        return False

    def mean(self, eta: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, "n outputs"]:
        """The inverse link: predictions in the units of y."""
        return eta

    def start(self, mean: Float[np.ndarray, " outputs"], exposed: float) -> Float[np.ndarray, " outputs"]:
        """An intercept to start from, for the mean target, and the mean prediction of the offsets alone."""
        return mean - exposed

    def check(self, y: Float[np.ndarray, " n"], words: Words = Words()) -> None:
        """Refuse targets outside the domain of the loss.

        Args:
            y: the targets.
            words: for the message.

        Raises:
            InputError: what was found, and what is needed.
        """

    def settled(self, y: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> Self:
        """The loss with parameters that depend on the spread of the targets."""
        return self


def exponential(eta: np.ndarray) -> np.ndarray:
    """exp(eta), bounded so that it does not overflow."""
    return np.exp(np.minimum(eta, LARGEST_EXPONENT))


def require_positive(owner: str, name: str, value: Any) -> None:
    """Refuse what is not a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise InputError(f"{owner}: {name} is {value!r}, and must be a positive number.")
