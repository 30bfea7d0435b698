"""Logistic regression on soft labels, for tables of hundreds of columns, such as those of embeddings."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import linalg, optimize
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from bilevax.applications.denoising.noise import floored

FOLDS = 5
PENALTIES = (3e4, 1e4, 3e3, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0)
SMALL = 10_000_000  # entries
STEPS = 60
DECREASE = 1e-6  # of the loss in a step, relative; after a smaller one no steps are taken


class FittedSoftmax(NamedTuple):
    """A fitted `Softmax`.

    Attributes:
        out_of_sample: the prediction of each sample by the fold that has not seen it.
        mean, deviation: of the columns.
        weights, bias: of each fold.
        penalty: the chosen one.
    """

    out_of_sample: Float[np.ndarray, "n classes"]
    mean: Float32[np.ndarray, " d"]
    deviation: Float32[np.ndarray, " d"]
    weights: Float32[np.ndarray, "folds d classes"]
    bias: Float32[np.ndarray, "folds classes"]
    penalty: float

    def predict(self, X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m classes"]:
        """The probability of each class of other samples, the mean over the folds."""
        X = (np.asarray(X, np.float32) - self.mean) / self.deviation
        folds = zip(self.weights, self.bias, strict=True)
        return np.stack([_probabilities(X @ weights + bias) for weights, bias in folds]).mean(0)


@dataclass(frozen=True)
class Softmax:
    """Softmax regression on standardised columns, fitted once for each fold of the samples without it.

    The loss is the cross-entropy of the soft labels plus half of a penalty times the squared norm of the weights. With
    many columns the penalty decides how much of the noise is learned, so it is chosen from the samples.

    Args:
        penalties: the strongest first. The first fold takes them in this order as long as the cross-entropy of the
            samples that it has not seen becomes smaller; the other folds take the best one.
        folds: number of folds.
    """

    penalties: tuple[float, ...] = PENALTIES
    folds: int = FOLDS

    def fit(self, X: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "n classes"], seed: int) -> FittedSoftmax:
        """Fit the coefficients of each fold."""
        X = np.asarray(X, np.float32)
        mean, deviation = X.mean(0, dtype=np.float64), X.std(0, dtype=np.float64)
        deviation[deviation == 0] = 1
        mean, deviation = mean.astype(np.float32), deviation.astype(np.float32)
        X = (X - mean) / deviation
        soft = np.asarray(targets, np.float32)
        found, weights, bias = np.zeros(targets.shape), [], []
        penalties = self.penalties
        # The threads of BLAS wait for each other longer than they compute where arrays are small.
        with threadpool_limits(1 if X.size < SMALL else None):
            parts = [part for _, part in splits(targets, self.folds, seed)]
            products = [X[part].T @ X[part] for part in parts]
            whole = np.sum(products, 0)
            for part, product in zip(parts, products, strict=True):
                kept = np.delete(np.arange(len(X)), part)
                data = (X[kept], soft[kept], whole - product)
                fitted = _best(data, X[part], soft[part], penalties)
                penalties = (fitted.penalty,)
                found[part] = _probabilities(X[part] @ fitted.weights + fitted.bias)
                weights.append(fitted.weights)
                bias.append(fitted.bias)
        return FittedSoftmax(found, mean, deviation, np.stack(weights), np.stack(bias), penalties[0])


def splits(
    targets: Float[np.ndarray, "n classes"], folds: int, seed: int
) -> list[tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " rest"]]]:
    """The samples of each fold and those without it, with the same share of each class where each has enough."""
    hardest = targets.argmax(1)
    rare = np.unique(hardest, return_counts=True)[1].min() < folds
    splitter = (KFold if rare else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(targets)), hardest))


class _Coefficients(NamedTuple):
    weights: Float32[np.ndarray, "d classes"]
    bias: Float32[np.ndarray, " classes"]
    penalty: float


def _best(
    data: tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n classes"], Float32[np.ndarray, "d d"]],
    X: Float32[np.ndarray, "m d"],
    targets: Float32[np.ndarray, "m classes"],
    penalties: tuple[float, ...],
) -> _Coefficients:
    """The coefficients by `data` with the first penalty after which the loss of other samples rises."""
    best = _fitted(*data, penalties[0])
    least = _loss(best, X, targets)
    for penalty in penalties[1:]:
        fitted = _fitted(*data, penalty)
        loss = _loss(fitted, X, targets)
        if loss >= least:
            break
        best, least = fitted, loss
    return best


def _loss(fitted: _Coefficients, X: Float32[np.ndarray, "m d"], targets: Float32[np.ndarray, "m classes"]) -> float:
    return -float(np.vdot(targets, np.log(floored(_probabilities(X @ fitted.weights + fitted.bias)))))


def _probabilities(scores: Float32[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    odds = np.exp(np.asarray(scores - scores.max(1, keepdims=True), np.float64))
    return odds / odds.sum(1, keepdims=True)


def _fitted(
    X: Float32[np.ndarray, "n d"],
    targets: Float32[np.ndarray, "n classes"],
    product: Float32[np.ndarray, "d d"],
    penalty: float,
) -> _Coefficients:
    """The coefficients of the least loss.

    With equal probabilities the second derivative of the loss is a matrix of the columns alone. L-BFGS, scaled by its
    Cholesky factor, takes some ten steps where it would take hundreds.

    Args:
        X: standardised.
        targets: soft labels.
        product: X.T @ X.
        penalty: of the weights.
    """
    (n, d), classes = X.shape, targets.shape[1]
    curvature = product.astype(np.float64) * ((1 - 1 / classes) / classes) + penalty * np.eye(d)
    # The weights are back @ scaled, for which the second derivative is near the unit matrix.
    back = linalg.solve_triangular(np.linalg.cholesky(curvature), np.eye(d), lower=True).T.astype(np.float32)
    back_bias = float((n / classes) ** -0.5)

    def loss(flat: Float[np.ndarray, " entries"]) -> tuple[float, Float[np.ndarray, " entries"]]:
        scaled = flat.astype(np.float32).reshape(d + 1, classes)
        weights, bias = back @ scaled[:-1], back_bias * scaled[-1]
        scores = X @ weights + bias
        scores -= scores.max(1, keepdims=True)
        p = np.exp(scores)
        total = p.sum(1, keepdims=True)
        value = np.sum(np.log(total), dtype=np.float64) - np.vdot(targets, scores)
        value += penalty / 2 * np.vdot(weights, weights)
        p /= total
        p -= targets
        slope = back.T @ (X.T @ p + np.float32(penalty) * weights)
        slope_bias = back_bias * p.sum(0, dtype=np.float64)
        return float(value), np.concatenate([slope, slope_bias[None]]).astype(np.float64).ravel()

    found: Any = optimize.minimize(
        loss,
        np.zeros((d + 1) * classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": STEPS, "ftol": DECREASE, "gtol": 0.0},
    )
    scaled = found.x.astype(np.float32).reshape(d + 1, classes)
    return _Coefficients(back @ scaled[:-1], back_bias * scaled[-1], penalty)
