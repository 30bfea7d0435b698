"""Label noise, drawn from a key."""

import numbers
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float32, Int, Integer, PRNGKeyArray, Shaped, UInt8

from bilevax._checks import InputError, require_count
from bilevax.data.splits import coded_labels, generator, split
from bilevax.data.types import CLASSES, Images

DIGITS = 1797


def uniform_flips(
    labels: Integer[ArrayLike, " n"], rate: float, key: PRNGKeyArray, classes: int | None = None
) -> Integer[np.ndarray, " n"]:
    """Make round(rate * n) labels wrong, chosen at random: all other classes are equally likely.

    As in Mehra and Hamm 2021, section 3.2. (Some works draw from all classes, including the right one; their rate r
    is r * (1 - 1/classes) here.)

    Args:
        labels: integers 0..classes-1.
        rate: the fraction that becomes wrong, in [0, 1).
        key: the same key gives the same labels.
        classes: the number of classes; None for the largest label plus 1.

    Returns:
        A copy of the same dtype.

    Raises:
        InputError: the rate is not in [0, 1), labels are not integers 0..classes-1, or there is only one class.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax.data import uniform_flips
        >>> labels = np.arange(1000) % 10
        >>> int((uniform_flips(labels, 0.25, jax.random.key(0)) != labels).sum())
        250
    """
    return _flip("uniform_flips", labels, rate, key, classes, other_labels)


def pair_flips(
    labels: Integer[ArrayLike, " n"], rate: float, key: PRNGKeyArray, classes: int | None = None
) -> Integer[np.ndarray, " n"]:
    """Make round(rate * n) labels wrong, chosen at random: c becomes (c + 1) mod classes.

    The pair flip of Han et al. 2018 (co-teaching): each class is mistaken for one other class only. Arguments, result
    and errors as for `uniform_flips`.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax.data import pair_flips
        >>> labels = np.arange(6) % 3
        >>> sorted({(int(a), int(b)) for a, b in zip(labels, pair_flips(labels, 0.9, jax.random.key(0))) if a != b})
        [(0, 1), (1, 2), (2, 0)]
    """
    return _flip("pair_flips", labels, rate, key, classes, lambda right, classes, rng: (right + 1) % classes)


def other_labels(labels: Int[np.ndarray, " n"], classes: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """For each label 0..classes-1 one of the others, all equally likely.

    Example:
        >>> import numpy as np
        >>> from bilevax.data.corruption import other_labels
        >>> labels = np.array([0, 1, 2, 3])
        >>> bool((other_labels(labels, 4, np.random.default_rng(0)) != labels).all())
        True
    """
    return (labels + rng.integers(1, classes, len(labels))) % classes


def _flip(
    owner: str,
    labels: Integer[ArrayLike, " n"],
    rate: float,
    key: PRNGKeyArray,
    classes: int | None,
    change: Callable[[np.ndarray, int, np.random.Generator], np.ndarray],
) -> Integer[np.ndarray, " n"]:
    """Replace round(rate * n) labels by `change(labels, classes, rng)`."""
    right = coded_labels(owner, labels)
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise InputError(
            f"{owner}: rate is {rate!r}, and must be in [0, 1): it is the fraction of the labels that becomes wrong."
        )
    largest = int(right.max())
    if classes is None:
        classes = largest + 1
    require_count(owner, "classes", classes)
    if largest >= classes or classes < 2:
        raise InputError(
            f"{owner}: classes is {classes} and labels go up to {largest}. At least two classes are needed, and labels "
            "0..classes-1: pass classes, or number the labels from 0."
        )
    if classes - 1 > np.iinfo(right.dtype).max:
        raise InputError(f"{owner}: {classes} classes do not fit into labels of {right.dtype}. Pass a wider dtype.")
    rng = generator(owner, key)
    wrong = rng.permutation(len(right))[: round(rate * len(right))]
    noisy = right.copy()
    noisy[wrong] = change(right[wrong].astype(np.int64), classes, rng)
    return noisy


class Noisy(NamedTuple):
    """Images with partly wrong labels, a clean set and a test set.

    Attributes:
        x, y: training images and their given labels; `y_true` the right ones.
        x_clean, y_clean: samples set aside, with right labels.
        x_test, y_test: the test part of the data set, with right labels.
    """

    x: UInt8[np.ndarray, "n h w *c"]
    y: UInt8[np.ndarray, " n"]
    y_true: UInt8[np.ndarray, " n"]
    x_clean: UInt8[np.ndarray, "clean h w *c"]
    y_clean: UInt8[np.ndarray, " clean"]
    x_test: UInt8[np.ndarray, "test h w *c"]
    y_test: UInt8[np.ndarray, " test"]


def corrupted(
    images: Images,
    *,
    clean: int,
    noise: float,
    key: PRNGKeyArray,
    train: int | None = None,
    flips: Callable[..., np.ndarray] = uniform_flips,
    balanced: bool = False,
) -> Noisy:
    """A data set with a clean part set aside (`split`) and wrong labels in the rest.

    Args:
        images: as returned by `mnist` and the other data sets.
        clean, train, balanced: as for `split`, which lists the sizes of the papers.
        noise: the fraction of the training labels that becomes wrong, in [0, 1).
        key: the same key gives the same bits, and the same split at every noise rate.
        flips: (labels, rate, key, classes) -> labels: `uniform_flips`, `pair_flips`, or a function of your own.

    Raises:
        InputError: as for `split` and `flips`; or images are not uint8 of shape (n, h, w) or (n, h, w, 3).

    Example:
        >>> import jax
        >>> from bilevax.data import corrupted, digits
        >>> data = corrupted(digits(), clean=200, noise=0.5, key=jax.random.key(0), train=1000)
        >>> data.x.shape, data.x_clean.shape, int((data.y != data.y_true).sum())
        ((1000, 8, 8), (200, 8, 8), 500)
    """
    images = Images(*map(np.asarray, images))
    if fault := images.fault():
        raise InputError(f"corrupted: {fault}")
    generator("corrupted", key)  # refuses what is not a key, before jax does
    split_key, flip_key = jax.random.split(key)
    parts = split(images.y_train, clean, split_key, train=train, balanced=balanced)
    right = images.y_train[parts.train]
    classes = 1 + int(max(images.y_train.max(), images.y_test.max()))
    return Noisy(
        images.x_train[parts.train],
        flips(right, noise, flip_key, classes),
        right,
        images.x_train[parts.clean],
        images.y_train[parts.clean],
        images.x_test,
        images.y_test,
    )


def overlap(x: Shaped[ArrayLike, " n *sample"], x_clean: Shaped[ArrayLike, " m *sample"]) -> int:
    """The number of samples of the clean set that also occur in the training set, byte for byte.

    Raises:
        InputError: the samples differ in shape, or are not numbers.

    Example:
        >>> from bilevax.data import digits, overlap
        >>> x = digits().x_train
        >>> overlap(x[:1000], x[990:1100]), overlap(x[:1000], x[1000:])
        (10, 0)
    """
    many, few = np.asarray(x), np.asarray(x_clean)
    if many.ndim == 0 or many.shape[1:] != few.shape[1:] or (many.dtype.kind + few.dtype.kind).strip("biuf"):
        raise InputError(
            f"overlap: x is {many.dtype} {many.shape} and x_clean {few.dtype} {few.shape}. Both must be numbers, "
            "of shape (n, ...) and (m, ...)."
        )
    dtype = np.result_type(many, few)
    sought = Counter(_rows(few, dtype))
    found = {row for row in _rows(many, dtype) if row in sought}
    return sum(sought[row] for row in found)


def _rows(x: Shaped[np.ndarray, "n ..."], dtype: DTypeLike) -> Iterator[bytes]:
    for sample in np.ascontiguousarray(x, dtype):
        yield sample.tobytes()


class NoisyDigits(NamedTuple):
    """Handwritten digits with partly wrong labels.

    Attributes:
        X, y: features and given labels; `y_true` the right ones.
        X_clean, y_clean: a few samples with right labels.
        X_test, y_test: the remaining samples, with right labels.
        images: X as images with values in 0..1.

    Features are pixels, each centred by its mean, and all divided by one standard deviation, over X and X_clean.
    """

    X: Float32[np.ndarray, "n 64"]
    y: Int[np.ndarray, " n"]
    y_true: Int[np.ndarray, " n"]
    X_clean: Float32[np.ndarray, "clean 64"]
    y_clean: Int[np.ndarray, " clean"]
    X_test: Float32[np.ndarray, "test 64"]
    y_test: Int[np.ndarray, " test"]
    images: Float32[np.ndarray, "n 8 8"]


def noisy_digits(seed: int, noise: float = 0.4, train: int = 1000, clean: int = 200) -> NoisyDigits:
    """scikit-learn's 1,797 handwritten digits, split at random, with labels made wrong uniformly.

    Args:
        seed: of the split and of the noise.
        noise: the fraction of the training labels that is made wrong (Mehra and Hamm 2021, section 3.2).
        train, clean: numbers of samples; the others are the test set.

    Raises:
        InputError: noise is outside 0..1, or the sizes leave no test set.

    Example:
        >>> from bilevax.data import noisy_digits
        >>> data = noisy_digits(seed=0)
        >>> data.X.shape, data.X_test.shape, int((data.y != data.y_true).sum())
        ((1000, 64), (597, 64), 400)
    """
    from sklearn.datasets import load_digits

    if not 0 <= noise <= 1:
        raise InputError(f"noise is {noise}, and must lie between 0 and 1: it is a fraction of the training labels.")
    if train < 1 or clean < 1 or train + clean >= DIGITS:
        raise InputError(
            f"train is {train} and clean is {clean}. Both must be positive, and leave some of {DIGITS} for the test."
        )
    digits: Any = load_digits()
    pixels, labels = digits.data, digits.target
    rng = np.random.default_rng(seed)
    order = rng.permutation(DIGITS)
    first, second, rest = order[:train], order[train : train + clean], order[train + clean :]
    y_true = labels[first]
    y = y_true.copy()
    wrong = rng.permutation(train)[: round(noise * train)]
    y[wrong] = other_labels(y[wrong], CLASSES, rng)
    seen = pixels[order[: train + clean]]
    centred = pixels - seen.mean(axis=0)
    X = (centred / np.sqrt(seen.var(axis=0).mean())).astype(np.float32)
    images = pixels[first].reshape(train, 8, 8).astype(np.float32) / 16
    return NoisyDigits(X[first], y, y_true, X[second], labels[second], X[rest], labels[rest], images)
