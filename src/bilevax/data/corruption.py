"""Wrong labels and splits, drawn from a key."""

import numbers
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bilevax._checks import InputError, listed, require_count
from bilevax.data.fetch import images_fault
from bilevax.data.types import Images

if TYPE_CHECKING:
    pass

DIGITS = 1797


def uniform_flips(labels: Any, rate: float, key: Any, classes: int | None = None) -> np.ndarray:
    """Labels of which round(rate * n), chosen at random, are wrong: each of the other classes is as likely.

    As in Mehra and Hamm 2021, section 3.2. (Some works draw from all classes, the right one among them; their rate r
    is r * (1 - 1/classes) here.)

    Args:
        labels: (n,) integers 0..classes-1.
        rate: the part that becomes wrong, in [0, 1).
        key: a jax.random key. The same key gives the same labels.
        classes: how many there are; None for the largest label plus 1.

    Returns:
        (n,) a copy, of the same dtype.

    Raises:
        InputError: the rate is not in [0, 1), labels are no integers 0..classes-1, or there is one class only.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax.data import uniform_flips
        >>> labels = np.arange(1000) % 10
        >>> int((uniform_flips(labels, 0.25, jax.random.key(0)) != labels).sum())
        250
    """
    return _flip("uniform_flips", labels, rate, key, classes, lambda rng, n, classes: rng.integers(1, classes, n))


def pair_flips(labels: Any, rate: float, key: Any, classes: int | None = None) -> np.ndarray:
    """Labels of which round(rate * n), chosen at random, are wrong: c becomes (c + 1) mod classes.

    The pair flip of Han et al. 2018 (co-teaching): each class is mistaken for one other class only.

    Args:
        labels: (n,) integers 0..classes-1.
        rate: the part that becomes wrong, in [0, 1).
        key: a jax.random key. The same key gives the same labels.
        classes: how many there are; None for the largest label plus 1.

    Returns:
        (n,) a copy, of the same dtype.

    Raises:
        InputError: the rate is not in [0, 1), labels are no integers 0..classes-1, or there is one class only.

    Example:
        >>> import jax, numpy as np
        >>> from bilevax.data import pair_flips
        >>> labels = np.arange(6) % 3
        >>> sorted({(int(a), int(b)) for a, b in zip(labels, pair_flips(labels, 0.9, jax.random.key(0))) if a != b})
        [(0, 1), (1, 2), (2, 0)]
    """
    return _flip("pair_flips", labels, rate, key, classes, lambda rng, n, classes: np.ones(n, np.int64))


def _flip(
    owner: str,
    labels: Any,
    rate: float,
    key: Any,
    classes: int | None,
    shifts: Callable[[np.random.Generator, int, int], np.ndarray],
) -> np.ndarray:
    """Move round(rate * n) labels by `shifts`, modulo the number of classes."""
    right = _labels(owner, labels)
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise InputError(
            f"{owner}: rate is {rate!r}, and must be in [0, 1): it is the part of the labels that becomes wrong."
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
    rng = _generator(owner, key)
    wrong = rng.permutation(len(right))[: round(rate * len(right))]
    noisy = right.copy()
    noisy[wrong] = (right[wrong].astype(np.int64) + shifts(rng, len(wrong), classes)) % classes
    return noisy


def _labels(owner: str, labels: Any) -> np.ndarray:
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0 or array.min() < 0:
        low = f" down to {array.min()}" if array.size and array.dtype.kind == "i" else ""
        raise InputError(
            f"{owner}: labels are {array.dtype} {array.shape}{low}, and must be integers from 0 of shape (n,), n > 0. "
            "np.unique(labels, return_inverse=True)[1] numbers any labels so."
        )
    return array


def _generator(owner: str, key: Any) -> np.random.Generator:
    """NumPy's generator seeded by a jax key: no compiling, and the same bits with and without float64."""
    try:
        words = np.asarray(jax.random.key_data(key))
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: key is {key!r}, and must be a jax.random key, as jax.random.key(0).") from error
    if words.ndim != 1:
        raise InputError(f"{owner}: key is an array of {words.shape[:-1]} keys, and must be a single one.")
    return np.random.default_rng(words)


class Split(NamedTuple):
    """Indices into the training samples: `train` and `clean` have none in common."""

    train: np.ndarray
    clean: np.ndarray


def split(labels: Any, clean: int, key: Any, *, train: int | None = None, balanced: bool = False) -> Split:
    """Set some training samples aside, at random, whose labels stay right: the upper level's data.

    The protocols of Mehra and Hamm 2021: clean=1000 of MNIST and of SVHN, 10000 of CIFAR-10 (section 3.2, Table 2);
    clean=5000, train=5000 of MNIST (D.1.1); clean=1000, train=44000 of CIFAR-10 (D.1.2).

    Args:
        labels: (n,) integers from 0.
        clean: how many samples are set aside.
        key: a jax.random key. The same key gives the same split.
        train: how many of the others to keep; None for all.
        balanced: the clean set has equally many of each class. Worth it for a small one, which may else miss a class.

    Raises:
        InputError: the sizes do not fit, or a class has too few samples.

    Example:
        >>> import jax
        >>> from bilevax.data import digits, split
        >>> parts = split(digits().y_train, 100, jax.random.key(0), train=1000)
        >>> len(parts.train), len(parts.clean), len(set(parts.train) & set(parts.clean))
        (1000, 100, 0)
    """
    array = _labels("split", labels)
    require_count("split", "clean", clean)
    if train is not None:
        require_count("split", "train", train)
    needed = clean + (1 if train is None else train)
    if needed > len(array):
        raise InputError(
            f"split: clean is {clean} and train is {train}, and there are {len(array)} samples. Take fewer: the clean "
            "samples are set aside, and some must remain to train on."
        )
    classes, counts = np.unique(array, return_counts=True)
    share = clean // len(classes) if balanced else 1
    if balanced and clean % len(classes):
        raise InputError(
            f"split: clean is {clean}, which {len(classes)} classes cannot share equally. "
            f"Take {share * len(classes) or len(classes)}, or balanced=False."
        )
    few = classes[counts < share + 1]
    if len(few):
        raise InputError(
            f"split: fewer than {share + 1} samples have the label {listed(few)}: the clean set needs {share} and "
            "training at least one. Leave such classes out, or take a smaller clean set."
        )
    order = _generator("split", key).permutation(len(array))
    aside = np.zeros(len(array), bool)
    if balanced:
        for label in classes:
            aside[np.flatnonzero(array[order] == label)[:share]] = True
    else:
        aside[:clean] = True
    return Split(order[~aside][:train], order[aside])


class Noisy(NamedTuple):
    """Pictures, part of their labels wrong, and what is known to be right.

    Attributes:
        x, y: (n, h, w[, 3]) uint8 pictures and (n,) labels as given; `y_true` the right ones.
        x_clean, y_clean: samples set aside, with right labels.
        x_test, y_test: the data set's test part, with right labels.
    """

    x: np.ndarray
    y: np.ndarray
    y_true: np.ndarray
    x_clean: np.ndarray
    y_clean: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def corrupted(
    images: Images,
    *,
    clean: int,
    noise: float,
    key: Any,
    train: int | None = None,
    flips: Callable[..., np.ndarray] = uniform_flips,
    balanced: bool = False,
) -> Noisy:
    """A data set with a clean part set aside (`split`) and wrong labels in the rest.

    Args:
        images: as `mnist()` and its kin return them.
        clean, train, balanced: as for `split`, where the papers' sizes are.
        noise: the part of the training labels that becomes wrong, in [0, 1).
        key: a jax.random key. The same key gives the same bits; and the same split at every noise rate.
        flips: (labels, rate, key, classes) -> labels: `uniform_flips`, `pair_flips`, or your own.

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
    fault = images_fault(images)
    if fault:
        raise InputError(f"corrupted: {fault}")
    _generator("corrupted", key)  # refuses what is not a key, before jax does
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


def overlap(x: Any, x_clean: Any) -> int:
    """How many samples of the clean set also occur in the training set, byte for byte.

    Args:
        x, x_clean: (n, ...) and (m, ...), samples of one shape.

    Raises:
        InputError: the samples differ in shape, or are no numbers.

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


def _rows(x: np.ndarray, dtype: Any) -> Iterator[bytes]:
    for sample in np.ascontiguousarray(x, dtype):
        yield sample.tobytes()


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
        >>> from bilevax.data import noisy_digits
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
