"""The folds of a cross-validation, from what users pass as cv."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped
from sklearn.model_selection import KFold, StratifiedKFold, check_cv, train_test_split

from bilevax._checks import InputError, described, listed

PARTS = 3  # of one hold-out set, so that a part of it is not seen when strengths are tuned for the choice of their kind


class Folds(NamedTuple):
    """The training and held-out samples of each fold, (n, folds)."""

    train: Bool[np.ndarray, "n folds"]
    held: Bool[np.ndarray, "n folds"]


class ToSplit(NamedTuple):
    """The m samples that have a positive weight.

    Attributes:
        x, y: their features and targets.
        groups: of the samples, for splitters that keep them together; or None.
        classifies: whether y holds classes.
        rows: their places among all samples, which an iterable of pairs refers to.
        n: number of all samples.
    """

    x: Any
    y: Shaped[np.ndarray, " m"]
    groups: Any
    classifies: bool
    rows: Int[np.ndarray, " m"]
    n: int


def folds_of(cv: Any, samples: ToSplit) -> Folds:
    """The folds of an integer, a splitter, an iterable of pairs, or a part that is held out once.

    Args:
        cv: as in scikit-learn; a number between 0 and 1 for one hold-out set of that part.
        samples: the samples that are split.

    Raises:
        InputError: fewer samples than folds; a fold without samples to train on or to hold out; a fold that trains
            without one of the classes.
    """
    found = checked_folds(cv, samples, "cv")
    if found.train.shape[1] > 1:
        return found
    places = np.flatnonzero(found.held[:, 0])
    if len(places) < 2 * PARTS:
        return found
    part = np.random.default_rng(0).permutation(len(places)) % PARTS
    held = np.zeros((len(samples.y), PARTS), bool)
    held[places, part] = True
    return Folds(np.repeat(found.train, PARTS, axis=1), held)


def checked_folds(cv: Any, samples: ToSplit, name: str) -> Folds:
    """`folds_of`, with one hold-out set as one fold; `name` is that of the argument in messages."""
    y = samples.y
    if isinstance(cv, float) and 0 < cv < 1:
        pairs = [_hold_out(cv, y, samples.classifies)]
    else:
        pairs = _pairs(cv, samples, name)
    train, held = np.zeros((len(y), len(pairs)), bool), np.zeros((len(y), len(pairs)), bool)
    for k, (inner, outer) in enumerate(pairs):
        train[inner, k], held[outer, k] = True, True
        if not len(inner) or not len(outer):
            raise InputError(
                f"Fold {k} of {name} trains on {len(inner)} samples and holds out {len(outer)} that have a positive "
                "weight. At least one of each is needed: choose other folds."
            )
        if samples.classifies:
            missing = np.setdiff1d(np.unique(y), np.unique(y[inner]))
            if len(missing):
                raise InputError(
                    f"Fold {k} of {name} trains without samples of the {'class' if len(missing) == 1 else 'classes'} "
                    f"{listed(missing)}. Choose fewer folds, StratifiedKFold, or leave rare classes out."
                )
    return Folds(train, held)


def _hold_out(cv: float, y: Shaped[np.ndarray, " n"], classifies: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        inner, outer = train_test_split(
            np.arange(len(y)), test_size=cv, random_state=0, stratify=y if classifies else None
        )
    except ValueError as error:
        raise InputError(f"cv is {cv}, and the {len(y)} samples cannot be split by it ({error}).") from error
    return np.asarray(inner), np.asarray(outer)


def _split(splitter: Any, samples: ToSplit, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        return list(splitter.split(samples.x, samples.y, samples.groups))
    except ValueError as error:
        raise InputError(f"{name} cannot split the {len(samples.y)} samples with a positive weight: {error}") from error


def _pairs(cv: Any, samples: ToSplit, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    y, n, m = samples.y, samples.n, len(samples.y)
    if cv is None or (isinstance(cv, int | np.integer) and not isinstance(cv, bool)):
        count = 5 if cv is None else int(cv)
        if count < 2:
            raise InputError(f"{name} is {cv}, and must be at least 2 folds, a splitter, or a part between 0 and 1.")
        if m < count:
            remedy = f"Choose at most {m} folds" if m > 1 else "Pass more samples"
            raise InputError(
                f"{name} is {count} folds, and there are n_samples={m} samples with a positive weight. {remedy}."
            )
        if samples.classifies:
            rarest = int(np.unique(y, return_counts=True)[1].min())
            if rarest < 2:
                raise InputError("A class of y has one sample, so a fold would lack it. Leave rare classes out.")
            if rarest < count:
                warnings.warn(
                    f"The rarest class of y has {rarest} samples, so there are {rarest} folds and not {count}.",
                    UserWarning,
                    stacklevel=2,
                )
                count = rarest
        splitter = StratifiedKFold(count) if samples.classifies else KFold(count)
        return list(splitter.split(samples.x, y))
    if not isinstance(cv, str | type) and (hasattr(cv, "split") or np.iterable(cv)):
        given: Any = cv
        splitter: Any = check_cv(given, y, classifier=samples.classifies)
        if hasattr(cv, "split"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of classes with few members, which is checked here
                return _split(splitter, samples, name)
        place = np.full(n, -1)
        place[samples.rows] = np.arange(m)
        try:
            pairs = [(place[np.arange(n)[a]], place[np.arange(n)[b]]) for a, b in splitter.split()]
        except (IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{name} is a {type(cv).__name__} that does not hold pairs of arrays of indices from 0 to {n - 1} "
                f"({error}). Pass pairs (training rows, held-out rows)."
            ) from error
        if not pairs:
            raise InputError(f"{name} holds no folds. Pass pairs (training rows, held-out rows).")
        return [(a[a >= 0], b[b >= 0]) for a, b in pairs]
    raise InputError(
        f"{name} is {described(cv)}, and must be a number of folds, a splitter, or a part between 0 and 1."
    )
