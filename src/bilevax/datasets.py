"""Data sets with something wrong with them, and the truth to measure by."""

from typing import Any, NamedTuple

import numpy as np

from bilevax.problem import InputError

DIGITS = 1797


class NoisyDigits(NamedTuple):
    """Handwritten digits, part of their labels wrong.

    Attributes:
        X, y: (n, 64) features and (n,) labels as given; `y_true` the right ones.
        X_clean, y_clean: a few samples with right labels.
        X_test, y_test: the remaining samples, with right labels.
        images: (n, 8, 8), X as pictures with values in 0..1.

    Features are pixels, each centred by its mean, and all divided by one standard deviation, over X and X_clean.
    """

    X: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    X_clean: np.ndarray
    y_clean: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    images: np.ndarray


def noisy_digits(seed: int, noise: float = 0.4, train: int = 1000, clean: int = 200) -> NoisyDigits:
    """scikit-learn's 1,797 handwritten digits, split at random, with uniformly drawn WRONG labels.

    Args:
        seed: of the split and of the noise.
        noise: the part of the training labels that is made wrong (Mehra and Hamm 2021, section 3.2).
        train, clean: how many samples; the others are the test set.

    Raises:
        InputError: noise is outside 0..1, or the sizes leave no test set.

    Example:
        >>> from bilevax.datasets import noisy_digits
        >>> data = noisy_digits(seed=0)
        >>> data.X.shape, data.X_test.shape, int((data.y != data.y_true).sum())
        ((1000, 64), (597, 64), 400)
    """
    from sklearn.datasets import load_digits

    if not 0 <= noise <= 1:
        raise InputError(f"noise is {noise}, and must lie between 0 and 1: it is a part of the training labels.")
    if train < 1 or clean < 1 or train + clean >= DIGITS:
        raise InputError(
            f"train is {train} and clean is {clean}. Both must be positive, and leave some of {DIGITS} for the test."
        )
    digits: Any = load_digits()
    pixels, labels = digits.data, digits.target
    generator = np.random.default_rng(seed)
    order = generator.permutation(DIGITS)
    first, second, rest = order[:train], order[train : train + clean], order[train + clean :]
    y_true = labels[first]
    y = y_true.copy()
    wrong = generator.permutation(train)[: round(noise * train)]
    y[wrong] = (y[wrong] + generator.integers(1, 10, len(wrong))) % 10
    seen = pixels[order[: train + clean]]
    centred = pixels - seen.mean(axis=0)
    X = (centred / np.sqrt(seen.var(axis=0).mean())).astype(np.float32)
    images = pixels[first].reshape(train, 8, 8).astype(np.float32) / 16
    return NoisyDigits(X[first], y, y_true, X[second], labels[second], X[rest], labels[rest], images)
