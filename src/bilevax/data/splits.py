"""Samples set aside: at random, stratified, or as in the papers."""

from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Integer, PRNGKeyArray

from bilevax._checks import InputError, listed, require_count


class Split(NamedTuple):
    """Indices into the training samples: `train` and `clean` have none in common."""

    train: Int[np.ndarray, " n"]
    clean: Int[np.ndarray, " clean"]


def split(
    labels: Integer[ArrayLike, " n"], clean: int, key: PRNGKeyArray, *, train: int | None = None, balanced: bool = False
) -> Split:
    """Set some training samples aside at random as a clean set, the data of the upper level.

    The protocols of Mehra and Hamm 2021: clean=1000 of MNIST and of SVHN, 10000 of CIFAR-10 (section 3.2, Table 2);
    clean=5000, train=5000 of MNIST (D.1.1); clean=1000, train=44000 of CIFAR-10 (D.1.2).

    Args:
        labels: integers from 0.
        clean: the number of samples to set aside.
        key: the same key gives the same split.
        train: the number of other samples to keep; None for all.
        balanced: whether the clean set has equally many samples of each class; a small one may otherwise miss a class.

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
            "samples are set aside, and some must remain for training."
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
            "training at least one. Leave these classes out, or take a smaller clean set."
        )
    order = generator("split", key).permutation(len(array))
    aside = np.zeros(len(array), bool)
    if balanced:
        for label in classes:
            aside[np.flatnonzero(array[order] == label)[:share]] = True
    else:
        aside[:clean] = True
    return Split(order[~aside][:train], order[aside])


def stratified_part(
    codes: Int[np.ndarray, " n"], part: float, random_state: np.random.RandomState
) -> Bool[np.ndarray, " n"]:
    """A mask that sets aside a part of each class: at least one sample of it, and not all.

    scikit-learn's stratified split keeps the shares, too, but may put a small class on one side only.

    Args:
        codes: labels 0..classes-1, two or more samples of each.
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


def random_part(n: int, part: float, seed: int) -> Bool[np.ndarray, " n"]:
    """A mask that sets aside a part of n samples: at least one, and not all.

    Example:
        >>> from bilevax.data.splits import random_part
        >>> int(random_part(8, 0.25, seed=0).sum())
        2
    """
    count = int(np.clip(round(part * n), 1, n - 1))
    return np.isin(np.arange(n), np.random.default_rng(seed).permutation(n)[:count])


def coded_labels(owner: str, labels: Integer[ArrayLike, " n"]) -> Integer[np.ndarray, " n"]:
    """Labels as an array; raises where they are not integers from 0."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0 or array.min() < 0:
        low = f" down to {array.min()}" if array.size and array.dtype.kind == "i" else ""
        raise InputError(
            f"{owner}: labels are {array.dtype} {array.shape}{low}, and must be integers from 0 of shape (n,), n > 0. "
            "np.unique(labels, return_inverse=True)[1] makes them from any labels."
        )
    return array


def generator(owner: str, key: PRNGKeyArray) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key: nothing is compiled, and float64 does not change the bits."""
    try:
        words = np.asarray(jax.random.key_data(key))
    except (TypeError, ValueError) as error:
        raise InputError(f"{owner}: key is {key!r}, and must be a jax.random key, as jax.random.key(0).") from error
    if words.ndim != 1:
        raise InputError(f"{owner}: key is an array of {words.shape[:-1]} keys, and must be a single one.")
    return np.random.default_rng(words)
