"""Losses of classes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit

from bilevax.applications.tuning.glm.losses.base import Eta, Loss, Target


def _softmax(eta: np.ndarray) -> np.ndarray:
    found = np.exp(eta - eta.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)


@dataclass(frozen=True)
class Logistic(Loss):
    """The negative log-likelihood of two classes, y in {0, 1}, with the logit link."""

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        return (np.logaddexp(0, eta) - y * eta).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return expit(eta) - y

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        p = expit(eta)
        return p * (1 - p)

    @property
    def classifies(self) -> bool:
        """True."""
        return True

    def mean(self, eta: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, "n outputs"]:
        """The probability of the second class."""
        return expit(eta)

    def start(self, mean: Float[np.ndarray, " outputs"], exposed: float) -> Float[np.ndarray, " outputs"]:
        """The log-odds of the mean."""
        return logit(np.clip(mean, 1e-6, 1 - 1e-6))


@dataclass(frozen=True)
class Multinomial(Loss):
    """The negative log-likelihood of several classes under softmax; y holds indicators."""

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        shifted = eta - eta.max(1, keepdims=True)
        return np.log(np.exp(shifted).sum(1)) - (y * shifted).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return _softmax(eta) - y

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The diagonal of the Hessian by eta."""
        p = _softmax(eta)
        return p * (1 - p)

    def product(self, curvature: Eta, eta: Eta, direction: Eta) -> Eta:
        """The Hessian by eta of each sample times a direction."""
        p = _softmax(eta)
        return p * (direction - (p * direction).sum(1, keepdims=True))

    @property
    def coupled(self) -> bool:
        """True."""
        return True

    @property
    def classifies(self) -> bool:
        """True."""
        return True

    def mean(self, eta: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, "n outputs"]:
        """The probability of each class."""
        return _softmax(eta)

    def start(self, mean: Float[np.ndarray, " outputs"], exposed: float) -> Float[np.ndarray, " outputs"]:
        """The centred logarithms of the means."""
        logs = np.log(np.maximum(mean, 1e-6))
        return logs - logs.mean()


@dataclass(frozen=True)
class SquaredHinge(Loss):
    """max(0, 1 - y eta)^2 for classes y in {-1, 1}, one against the rest where there are several outputs."""

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        return (np.maximum(0, 1 - y * eta) ** 2).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return -2 * y * np.maximum(0, 1 - y * eta)

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        return 2.0 * (y * eta < 1)

    def start(self, mean: Float[np.ndarray, " outputs"], exposed: float) -> Float[np.ndarray, " outputs"]:
        """The mean of the classes -1 and 1."""
        return mean

    @property
    def classifies(self) -> bool:
        """True."""
        return True
