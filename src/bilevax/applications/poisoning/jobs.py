"""Data of `bilevax audit`: a user's files, or scikit-learn's digits."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from bilevax._checks import InputError, listed
from bilevax.data import images, tables

DIGITS_VALIDATION = 600


class Job(NamedTuple):
    """The data of an audit.

    Attributes:
        title: what they are, in a few words.
        X, y: features (n, ...) and labels (n,), to train on.
        X_val, y_val: the same, to attack by and to measure on.
        pictures: whether the features are pictures with values in 0..1.
    """

    title: str
    X: np.ndarray
    y: np.ndarray
    X_val: np.ndarray
    y_val: np.ndarray
    pictures: bool


def digits_job() -> Job:
    """scikit-learn's digits, the first 600 of them to attack by and to measure on."""
    d = images.digits()
    x, y = np.concatenate([d.x_train, d.x_test]) / 255, np.concatenate([d.y_train, d.y_test]).astype(int)
    title = "scikit-learn's handwritten digits"
    return Job(title, x[DIGITS_VALIDATION:], y[DIGITS_VALIDATION:], x[:DIGITS_VALIDATION], y[:DIGITS_VALIDATION], True)


def job_from_files(data: Path, validation: Path | None, target: str | None, seed: int) -> Job:
    """A user's job. Errors name the command's options.

    Args:
        data, validation: files for `data.tables.read`; without the latter, a third of the former is set aside.
        target: the column, or the NPZ array, that holds the labels.
        seed: of what is set aside.

    Raises:
        InputError: as for `data.tables.read`; columns that hold no numbers, or differ between the files;
            classes that are too small to be split.
    """
    files = {"DATA": data} | ({} if validation is None else {"--validation": validation})
    table, *others = tables.read(files, target)
    x, y = _features(table), table.labels
    if not others:
        values, counts = np.unique(y, return_counts=True)
        if counts.min() < 6:
            raise InputError(
                f"{table.name} has fewer than 6 samples of {listed(values[counts < 6])}, too few to set a third "
                "aside. Pass --validation FILE, or leave those classes out."
            )
        places: Any = np.arange(len(y))
        train, aside = train_test_split(places, test_size=1 / 3, stratify=y, random_state=seed)
        x, x_val, y, y_val = x[train], x[aside], y[train], y[aside]
    else:
        other = others[0]
        if set(other.features.columns) != set(table.features.columns):
            raise InputError(f"{other.name} has other columns than {table.name}. Give both files the same features.")
        # As one table: columns in one order, and pictures on one scale.
        both = table._replace(features=pd.concat([table.features, other.features]), labels=[*y, *other.labels])
        x, x_val = np.split(_features(both), [len(y)])
        y_val = other.labels
    return Job(str(data), x, y, x_val, y_val, tables.as_images(table) is not None)


def _features(table: tables.Table) -> np.ndarray:
    """Pictures, or numbers (n, d)."""
    pictures = tables.as_images(table)
    if pictures is not None:
        return pictures
    others = table.features.columns.difference(table.features.select_dtypes(["number", "bool"]).columns, sort=False)
    if len(others):
        raise InputError(
            f"{table.name} has columns that hold no numbers: {listed(others)}. An added sample is moved by "
            "gradients: encode them as numbers, or leave them out."
        )
    return table.features.to_numpy(np.float64)
