"""Samples set aside: at random, by class, or as the papers do."""

from typing import Any, NamedTuple

import jax
import numpy as np

from bilevax._checks import InputError, listed, require_count


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
    array = coded_labels("split", labels)
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
    order = generator("split", key).permutation(len(array))
    aside = np.zeros(len(array), bool)
    if balanced:
        for label in classes:
            aside[np.flatnonzero(array[order] == label)[:share]] = True
    else:
        aside[:clean] = True
    return Split(order[~aside][:train], order[aside])


def stratified_part(codes: np.ndarray, part: float, random_state: np.random.RandomState) -> np.ndarray:
    """A part of each class to set aside, at least one sample and not all, whatever the class's size: a mask (n,).

    scikit-learn's stratified split keeps the shares too, but may put a small class on one side alone.

    Args:
        codes: labels (n,), 0..classes-1, two or more samples of each.
        part: between 0 and 1.
        random_state: draws the samples.

    Example:
        >>> import numpy as np
        >>> from bilevax.data.splits import stratified_part
        >>> codes = np.array([0] * 8 + [1] * 2)
        >>> codes[stratified_part(codes, 0.25, np.random.RandomState(0))]
        array([0, 0, 1])
    """
    aside = np.zeros(len(codes), bool)
    for code, size in enumerate(np.bincount(codes)):
        n = int(np.clip(round(part * size), 1, size - 1))
        aside[random_state.permutation(np.flatnonzero(codes == code))[:n]] = True
    return aside


def random_part(n: int, part: float, seed: int) -> np.ndarray:
    """A part of n samples to set aside, at least one and not all: a mask (n,).

    Example:
        >>> from bilevax.data.splits import random_part
        >>> int(random_part(8, 0.25, seed=0).sum())
        2
    """
    count = int(np.clip(round(part * n), 1, n - 1))
    return np.isin(np.arange(n), np.random.default_rng(seed).permutation(n)[:count])


def coded_labels(owner: str, labels: Any) -> np.ndarray:
    """Labels as an array (n,); refuse what is not integers from 0."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0 or array.min() < 0:
        low = f" down to {array.min()}" if array.size and array.dtype.kind == "i" else ""
        raise InputError(
            f"{owner}: labels are {array.dtype} {array.shape}{low}, and must be integers from 0 of shape (n,), n > 0. "
            "np.unique(labels, return_inverse=True)[1] numbers any labels so."
        )
    return array


def generator(owner: str, key: Any) -> np.random.Generator:
    """NumPy's generator seeded by a jax key: no compiling, and the same bits with and without float64."""
    try:
        words = np.asarray(jax.random.key_data(key))
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: key is {key!r}, and must be a jax.random key, as jax.random.key(0).") from error
    if words.ndim != 1:
        raise InputError(f"{owner}: key is an array of {words.shape[:-1]} keys, and must be a single one.")
    return np.random.default_rng(words)
