"""Losses of real targets: squared, and robust ones."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from bilevax._checks import InputError
from bilevax.applications.tuning.glm.losses.base import Eta, Loss, Target, require_positive


def spread(y: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> float:
    """The median absolute deviation in units of a normal standard deviation; the standard deviation where it is 0."""
    y = y[weight > 0]
    found = 1.4826 * float(np.median(np.abs(y - np.median(y))))
    return found or float(y.std()) or 1.0


@dataclass(frozen=True)
class Squared(Loss):
    """(eta - y)^2 / 2."""

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        return ((eta - y) ** 2).sum(1) / 2

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return eta - y

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        return np.ones_like(eta)

    @property
    def quadratic(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class Huber(Loss):
    """Squared near the target, linear beyond a threshold.

    Args:
        epsilon: the threshold, in units of the spread of y (1.4826 times its median absolute deviation).
        threshold: in units of y; `settled` computes it where it is None.

    Raises:
        InputError: epsilon is not a positive number.
    """

    epsilon: float = 1.35
    threshold: float | None = None

    def __post_init__(self):
        require_positive("Huber", "epsilon", self.epsilon)
        if self.threshold is not None:
            require_positive("Huber", "threshold", self.threshold)

    def settled(self, y: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> Self:
        """With the threshold in units of y."""
        return self if self.threshold is not None else replace(self, threshold=self.epsilon * spread(y, weight))

    def _within(self, eta: Eta, y: Target) -> tuple[Eta, float]:
        assert self.threshold is not None
        return eta - y, self.threshold

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        r, t = self._within(eta, y)
        size = np.abs(r)
        return np.where(size <= t, r * r / 2, t * (size - t / 2)).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        r, t = self._within(eta, y)
        return np.clip(r, -t, t)

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        r, t = self._within(eta, y)
        return (np.abs(r) <= t).astype(float)


@dataclass(frozen=True)
class Quantile(Loss):
    """The smoothed pinball loss q r + h log(1 + exp(-r / h)) of the residual r = y - eta.

    Args:
        q: the quantile, between 0 and 1, both excluded.
        smoothing: h, in units of the spread of y (1.4826 times its median absolute deviation).
        width: h in units of y; `settled` computes it where it is None.

    Raises:
        InputError: q is outside (0, 1); the smoothing is not positive.
    """

    q: float = 0.5
    smoothing: float = 0.05
    width: float | None = None

    def __post_init__(self):
        if isinstance(self.q, bool) or not isinstance(self.q, int | float) or not 0 < self.q < 1:
            raise InputError(f"Quantile: q is {self.q!r}, and must be a number between 0 and 1, say 0.9.")
        require_positive("Quantile", "smoothing", self.smoothing)
        if self.width is not None:
            require_positive("Quantile", "width", self.width)

    def settled(self, y: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> Self:
        """With the width in units of y."""
        return self if self.width is not None else replace(self, width=self.smoothing * spread(y, weight))

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        r = y - eta
        return (self.q * r + self.width * np.logaddexp(0, -r / self.width)).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return expit((eta - y) / self.width) - self.q

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        p = expit((eta - y) / self.width)
        return p * (1 - p) / self.width
