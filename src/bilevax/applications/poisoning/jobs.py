"""Data of `bilevax audit`: the user's files, or scikit-learn's digits."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from sklearn.model_selection import train_test_split

from bilevax._checks import InputError, listed
from bilevax.data import images, tables

DIGITS_VALIDATION = 600


class Job(NamedTuple):
    """The data of an audit.

    Attributes:
        title: name of the data, in a few words.
        X, y: training features (n, ...) and labels; the features of a table with columns of text are a data frame.
        X_val, y_val: validation features and labels, for the attack and for the accuracies.
        pictures: whether the features are images with values in 0..1.
    """

    title: str
    X: Any
    y: Shaped[np.ndarray, " n"]
    X_val: Any
    y_val: Shaped[np.ndarray, " n_val"]
    pictures: bool


def digits_job() -> Job:
    """Return scikit-learn's digits, with the first 600 as validation samples."""
    d = images.digits()
    x, y = np.concatenate([d.x_train, d.x_test]) / 255, np.concatenate([d.y_train, d.y_test]).astype(int)
    title = "scikit-learn's handwritten digits"
    return Job(title, x[DIGITS_VALIDATION:], y[DIGITS_VALIDATION:], x[:DIGITS_VALIDATION], y[:DIGITS_VALIDATION], True)


def job_from_files(data: Path, validation: Path | None, target: str | None, seed: int) -> Job:
    """Return the data of the user's files. Errors name the command's options.

    Args:
        data, validation: files for `data.tables.read`. Without `validation`, a third of the samples is held out.
        target: the column, or the array of an NPZ file, with the labels.
        seed: of the split.

    Raises:
        InputError: as for `data.tables.read`; columns that differ between the files; classes that are too small for
            the split.
    """
    files = {"DATA": data} | ({} if validation is None else {"--validation": validation})
    table, *others = tables.read(files, target)
    x, y = _features(table), table.labels
    if not others:
        values, counts = np.unique(y, return_counts=True)
        if counts.min() < 6:
            raise InputError(
                f"{table.name} has fewer than 6 samples of {listed(values[counts < 6])}, too few to hold out a third "
                "of them. Pass --validation FILE, or leave those classes out."
            )
        places: Any = np.arange(len(y))
        train, aside = train_test_split(places, test_size=1 / 3, stratify=y, random_state=seed)
        x, x_val = _part(x, train), _part(x, aside)
        y, y_val = y[train], y[aside]
    else:
        other = others[0]
        if set(other.features.columns) != set(table.features.columns):
            raise InputError(f"{other.name} has other columns than {table.name}. Give both files the same features.")
        # As one table, so that columns are in one order, and images on one scale.
        both = table._replace(features=pd.concat([table.features, other.features]), labels=[*y, *other.labels])
        every, places = _features(both), np.arange(len(both.labels))
        x, x_val = _part(every, places[: len(y)]), _part(every, places[len(y) :])
        y_val = other.labels
    return Job(str(data), x, y, x_val, y_val, tables.as_images(table) is not None)


def _part(x: Any, places: Any) -> Any:
    return x.iloc[places].reset_index(drop=True) if isinstance(x, pd.DataFrame) else x[places]


def _features(table: tables.Table) -> Float[np.ndarray, "n ..."] | pd.DataFrame:
    """Return images, a table of numbers, or a data frame with columns of text."""
    pictures = tables.as_images(table)
    if pictures is not None:
        return pictures
    frame = table.features
    numbers = frame.select_dtypes(["number", "bool"])
    return frame.to_numpy(np.float64) if len(numbers.columns) == len(frame.columns) else frame
