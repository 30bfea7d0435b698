"""Likelihoods of counts and of positive amounts, with the log link."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy

from bilevax._checks import InputError
from bilevax.applications.tuning.glm.losses.base import Eta, Loss, Target, Words, exponential


@dataclass(frozen=True)
class LogLink(Loss):
    """A likelihood whose mean is exp(eta)."""

    def mean(self, eta: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, "n outputs"]:
        """exp(eta)."""
        return exponential(eta)

    def start(self, mean: Float[np.ndarray, " outputs"], exposed: float) -> Float[np.ndarray, " outputs"]:
        """The logarithm of the mean over that of the offsets."""
        return np.log(np.maximum(mean, 1e-12) / exposed)


@dataclass(frozen=True)
class Poisson(LogLink):
    """Half the Poisson deviance with the log link."""

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        return (exponential(eta) - y * eta + xlogy(y, y) - y).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return exponential(eta) - y

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        return exponential(eta)

    def check(self, y: Float[np.ndarray, " n"], words: Words = Words()) -> None:
        """Refuse targets that are negative or fractional, or all zero."""
        if (y < 0).any():
            raise InputError(
                f"{words.target} holds {int((y < 0).sum())} negative values, for example {y[y < 0][0]:g}. The Poisson "
                "loss needs counts 0, 1, 2, ...: check them, or choose another loss."
            )
        fractions = y[y != np.round(y)]
        if len(fractions):
            raise InputError(
                f"{words.target} holds {len(fractions)} fractions, for example {fractions[0]:g}. The Poisson loss "
                f"needs counts 0, 1, 2, ...: for rates pass the counts, and the exposure as {words.exposure}; for "
                f"amounts choose {words.gamma} or {words.tweedie}."
            )
        _require_some(y, "Poisson", words)


@dataclass(frozen=True)
class Gamma(LogLink):
    """Half the gamma deviance with the log link."""

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        return (eta + y * exponential(-eta) - 1 - np.log(y)).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return 1 - y * exponential(-eta)

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        return y * exponential(-eta)

    def check(self, y: Float[np.ndarray, " n"], words: Words = Words()) -> None:
        """Refuse targets that are not positive."""
        if not (y > 0).all():
            wrong = y[~(y > 0)]
            raise InputError(
                f"{words.target} holds {len(wrong)} values that are not positive, for example {wrong[0]:g}. The gamma "
                f"loss needs positive amounts: leave those samples out, or choose {words.tweedie}, which allows zeros."
            )


@dataclass(frozen=True)
class Tweedie(LogLink):
    """Half the Tweedie deviance with the log link.

    Args:
        power: of the variance, between 1 (Poisson) and 2 (gamma), both excluded.

    Raises:
        InputError: the power is outside that range, where the loss is another one or is not convex.
    """

    power: float = 1.5

    def __post_init__(self):
        if isinstance(self.power, bool) or not isinstance(self.power, int | float) or not 1 < self.power < 2:
            raise InputError(
                f"Tweedie: power is {self.power!r}, and must be a number between 1 and 2. For 1 use Poisson, for 2 "
                "Gamma, for 0 Squared; above 2 the loss is not convex under the log link."
            )

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        a, b = 1 - self.power, 2 - self.power
        return (-y * exponential(a * eta) / a + exponential(b * eta) / b + y**b / (a * b)).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return exponential((2 - self.power) * eta) - y * exponential((1 - self.power) * eta)

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        a, b = 1 - self.power, 2 - self.power
        return b * exponential(b * eta) - a * y * exponential(a * eta)

    def check(self, y: Float[np.ndarray, " n"], words: Words = Words()) -> None:
        """Refuse negative targets, and targets that are all zero."""
        if (y < 0).any():
            raise InputError(
                f"{words.target} holds {int((y < 0).sum())} negative values, for example {y[y < 0][0]:g}. The Tweedie "
                "loss needs amounts of at least zero: check them, or choose another loss."
            )
        _require_some(y, "Tweedie", words)


def _require_some(y: Float[np.ndarray, " n"], name: str, words: Words) -> None:
    if not y.any():
        raise InputError(
            f"{words.target} is zero for all samples. The {name} loss needs some that are positive: check them."
        )
