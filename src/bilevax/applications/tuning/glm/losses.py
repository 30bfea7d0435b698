"""Losses of generalised linear models, with their derivatives in closed form.

The linear predictor `eta` has shape (n, outputs, folds) and the target `y` (n, outputs, 1). Values, slopes and
curvatures are for each sample; values sum over the outputs and have shape (n, folds). Values of likelihoods are half
the unit deviance, so that they are zero where the prediction is perfect (except for classes, where they are the
negative log-likelihood).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit, xlogy

from bilevax._checks import InputError, listed

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


def _softmax(eta: np.ndarray) -> np.ndarray:
    found = np.exp(eta - eta.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)


def _exp(eta: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(eta, LARGEST_EXPONENT))


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
class LogLink(Loss):
    """A likelihood whose mean is exp(eta)."""

    def mean(self, eta: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, "n outputs"]:
        """exp(eta)."""
        return _exp(eta)

    def start(self, mean: Float[np.ndarray, " outputs"], exposed: float) -> Float[np.ndarray, " outputs"]:
        """The logarithm of the mean over that of the offsets."""
        return np.log(np.maximum(mean, 1e-12) / exposed)


@dataclass(frozen=True)
class Poisson(LogLink):
    """Half the Poisson deviance with the log link."""

    def value(self, eta: Eta, y: Target) -> Float[np.ndarray, "n folds"]:
        """The loss of each sample."""
        return (_exp(eta) - y * eta + xlogy(y, y) - y).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return _exp(eta) - y

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        return _exp(eta)

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
        return (eta + y * _exp(-eta) - 1 - np.log(y)).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return 1 - y * _exp(-eta)

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        return y * _exp(-eta)

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
        return (-y * _exp(a * eta) / a + _exp(b * eta) / b + y**b / (a * b)).sum(1)

    def slope(self, eta: Eta, y: Target) -> Eta:
        """The first derivative by eta."""
        return _exp((2 - self.power) * eta) - y * _exp((1 - self.power) * eta)

    def curvature(self, eta: Eta, y: Target) -> Eta:
        """The second derivative by eta."""
        a, b = 1 - self.power, 2 - self.power
        return b * _exp(b * eta) - a * y * _exp(a * eta)

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


def spread(y: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> float:
    """The median absolute deviation in units of a normal standard deviation; the standard deviation where it is 0."""
    y = y[weight > 0]
    found = 1.4826 * float(np.median(np.abs(y - np.median(y))))
    return found or float(y.std()) or 1.0


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
        _require_positive("Huber", "epsilon", self.epsilon)
        if self.threshold is not None:
            _require_positive("Huber", "threshold", self.threshold)

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
        _require_positive("Quantile", "smoothing", self.smoothing)
        if self.width is not None:
            _require_positive("Quantile", "width", self.width)

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


def _require_positive(owner: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise InputError(f"{owner}: {name} is {value!r}, and must be a positive number.")


NAMES = ("squared", "logistic", "multinomial", "poisson", "gamma", "tweedie", "huber", "quantile", "squared_hinge")


def loss_of(loss: Any) -> Loss:
    """The loss of a name, or the loss itself.

    Raises:
        InputError: it is neither a `Loss` nor one of the names.
    """
    match loss:
        case Loss():
            return loss
        case "squared":
            return Squared()
        case "logistic":
            return Logistic()
        case "multinomial":
            return Multinomial()
        case "poisson":
            return Poisson()
        case "gamma":
            return Gamma()
        case "tweedie":
            return Tweedie()
        case "huber":
            return Huber()
        case "quantile":
            return Quantile()
        case "squared_hinge":
            return SquaredHinge()
    raise InputError(f"loss is {loss!r}. Pass one of {listed(NAMES)}, or a loss such as Tweedie(1.3) or Quantile(0.9).")
