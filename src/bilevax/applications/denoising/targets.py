"""The probability that a given target is wrong, for samples of which few or none are trusted."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bilevax.applications.denoising.regressors import FittedRegressorStack, Regressor, stack_regressors
from bilevax.applications.denoising.residuals import Explained, expected_deviation, explained

Z_90 = 1.645
REFITS = 2  # with the weights that the mixture gives
FAR = 3.0  # quartile ranges beyond the quartiles, to which targets are moved for the first fit
LEAST = 0.01  # weight of a sample in a fit


class TargetRanking(NamedTuple):
    """The result of a review of n targets.

    Attributes:
        probability_wrong: that the given target is not the right one; 0 for trusted samples.
        expected_wrong: the number of wrong targets, and the ends of an interval for it of 90%.
        predicted: the target from the features alone, out of sample.
        deviation: of the right target from the predicted one.
        model: what predicts other samples.
    """

    probability_wrong: Float[np.ndarray, " n"]
    expected_wrong: tuple[float, float, float]
    predicted: Float[np.ndarray, " n"]
    deviation: Float[np.ndarray, " n"]
    model: FittedRegressorStack


def rank_targets(
    X: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    trusted: Bool[np.ndarray, " n"],
    regressors: Sequence[Regressor],
    seed: int = 0,
) -> TargetRanking:
    """Rank targets with regressors that are fitted to the samples.

    1. A stack of regressors learns the given targets, those far from the others moved nearer.
    2. A model of the absolute residuals gives the deviation that is expected of each.
    3. A mixture of right and wrong targets explains the residuals (see `residuals.explained`).
    4. The regressors are fitted again, each sample weighted by the probability that its target is right. This is
       repeated.

    Args:
        X: samples.
        y: targets, the right ones for trusted samples.
        trusted: which targets are known to be right.
        regressors: what predicts them.
        seed: of their folds and their randomness.
    """
    low, high = np.quantile(y, [0.25, 0.75])
    near = np.clip(y, low - FAR * (high - low), high + FAR * (high - low)) if high > low else y

    def fitted(
        aims: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
    ) -> tuple[FittedRegressorStack, Float[np.ndarray, " n"], Explained]:
        model = stack_regressors(regressors, X, aims, weights, seed)
        deviation = expected_deviation(X, y, model.out_of_sample, weights, seed)
        return model, deviation, explained(y, model.out_of_sample, deviation, trusted)

    model, deviation, found = fitted(np.where(trusted, y, near), np.ones(len(y)))
    for _ in range(REFITS):
        model, deviation, found = fitted(y, np.clip(1 - found.wrong, LEAST, 1))
    wrong = found.wrong
    likely, doubted = float(wrong.sum()), int(np.sum(~trusted))
    spread = Z_90 * float(np.sqrt(np.sum(wrong * (1 - wrong))))
    least = min(doubted * found.least, likely) - spread
    most = max(doubted * found.most, likely) + spread
    interval = (likely, max(0.0, least), min(float(doubted), most))
    return TargetRanking(wrong, interval, model.out_of_sample, deviation * found.scale, model)
