"""Data of `bilevax denoise --compare`: a user's files, or scikit-learn's digits with wrong labels."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.model_selection import train_test_split

from bilevax._checks import InputError, listed, short_reason
from bilevax.data.corruption import noisy_digits
from bilevax.data.encoding import encode
from bilevax.data.tables import as_images, check_known_labels, read


class Job(NamedTuple):
    """Samples with labels in doubt, a few clean ones, and a test set where there is one.

    Attributes:
        title: of the data, in a line.
        X, y: features and labels in doubt.
        X_clean, y_clean: features and right labels.
        X_test, y_test: the same, to measure accuracies on; None without a test set.
        y_true: the right labels of X, where they are known.
        images: (n, height, width[, colours]), X as pictures, where the samples are pictures.
        notes: on what was done to the data, in sentences.
    """

    title: str
    X: Float[np.ndarray, "n d"]
    y: Shaped[np.ndarray, " n"]
    X_clean: Float[np.ndarray, "m d"]
    y_clean: Shaped[np.ndarray, " m"]
    X_test: Float[np.ndarray, "t d"] | None
    y_test: Shaped[np.ndarray, " t"] | None
    y_true: Shaped[np.ndarray, " n"] | None
    images: Shaped[np.ndarray, "n ..."] | None
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
        hold_out: without `test`, the part of the trusted samples that becomes the test set; 0 for none.
        seed: of that split.

    Raises:
        InputError: as `encode`, and `read` and `check_known_labels` of `data.tables`; too few trusted samples to split.
    """
    files = {"TRAIN": train, "--trusted": clean} | ({} if test is None else {"--test": test})
    doubted, *others = read(files, target)
    for table in others:
        check_known_labels(table, doubted)
    encoded = encode(doubted, *others)
    notes = list(encoded.notes)
    unseen = set(doubted.labels.tolist()) - set(others[0].labels.tolist())
    if unseen:
        notes.append(
            f"No trusted sample has the label {listed(sorted(unseen, key=repr))}: nothing confirms these labels, so "
            "they are likely to become suspects."
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
                f"--hold-out {hold_out} cannot be taken from {len(y_clean)} trusted samples: {short_reason(error)}. "
                "Add trusted samples, or pass a test file by --test."
            ) from error
        X_test, y_test, X_clean, y_clean = X_clean[aside], y_clean[aside], X_clean[kept], y_clean[kept]
    return Job(str(train), X, doubted.labels, X_clean, y_clean, X_test, y_test, None, as_images(doubted), tuple(notes))
