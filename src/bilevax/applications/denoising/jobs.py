"""What `bilevax denoise` works on: a user's files, or scikit-learn's digits with wrong labels."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from bilevax._checks import InputError, listed, short_reason
from bilevax.data.corruption import noisy_digits
from bilevax.data.encoding import encode
from bilevax.data.tables import as_images, check_known_labels, read


class Job(NamedTuple):
    """A denoising job: samples with labels in doubt, a few clean ones, and what is known besides.

    Attributes:
        title: what the data are, in a line.
        X, X_clean, X_test: float matrices, (n, d), (m, d) and (t, d); `X_test` None without a test set.
        y, y_clean, y_test: labels of any type, one per row.
        y_true: (n,), the right labels of X where they are known.
        images: (n, height, width[, colours]), X as pictures where it is made of them.
        notes: what was done to the data, in sentences.
    """

    title: str
    X: np.ndarray
    y: np.ndarray
    X_clean: np.ndarray
    y_clean: np.ndarray
    X_test: np.ndarray | None
    y_test: np.ndarray | None
    y_true: np.ndarray | None
    images: np.ndarray | None
    notes: tuple[str, ...]


def noisy_digits_job(seed: int) -> Job:
    """scikit-learn's digits, 40% of 1,000 labels made wrong (`data.noisy_digits`)."""
    d = noisy_digits(seed)
    title = "scikit-learn's handwritten digits"
    return Job(title, d.X, d.y, d.X_clean, d.y_clean, d.X_test, d.y_test, d.y_true, d.images, ())


def job_from_files(train: Path, clean: Path, test: Path | None, target: str | None, hold_out: float, seed: int) -> Job:
    """A user's job. Errors name the command's options.

    Args:
        train, clean, test: files for `data.tables.read`.
        target: the column, or the NPZ array, that holds the labels.
        hold_out: without `test`, the part of the clean samples that is set aside as the test set; 0 for none.
        seed: which of them.

    Raises:
        InputError: what `encode`, or `read` or `check_known_labels` of `data.tables` refuse; too few clean samples to
            set some aside.
    """
    files = {"TRAIN": train, "--clean": clean} | ({} if test is None else {"--test": test})
    doubted, *others = read(files, target)
    for table in others:
        check_known_labels(table, doubted)
    encoded = encode(doubted, *others)
    notes = list(encoded.notes)
    unseen = set(doubted.labels.tolist()) - set(others[0].labels.tolist())
    if unseen:
        notes.append(
            f"The clean set has no sample of {listed(sorted(unseen, key=repr))}: such labels cannot be vouched for, "
            "and are likely to be suspected."
        )
    X, X_clean, *rest = encoded.matrices
    y_clean = others[0].labels
    X_test, y_test = (rest[0], others[1].labels) if rest else (None, None)
    if X_test is None and hold_out > 0:
        try:
            kept, aside = train_test_split(
                np.arange(len(y_clean)), test_size=hold_out, stratify=y_clean, random_state=seed
            )
        except ValueError as error:
            raise InputError(
                f"--hold-out {hold_out} cannot be taken from {len(y_clean)} clean samples: {short_reason(error)}. "
                "Add clean samples, or measure on a file of its own, by --test."
            ) from error
        X_test, y_test, X_clean, y_clean = X_clean[aside], y_clean[aside], X_clean[kept], y_clean[kept]
    return Job(str(train), X, doubted.labels, X_clean, y_clean, X_test, y_test, None, as_images(doubted), tuple(notes))
