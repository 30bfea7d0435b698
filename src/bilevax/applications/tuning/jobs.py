"""Data of `bilevax tune`: a user's files, or scikit-learn's data, split in three."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from bilevax._checks import InputError, listed
from bilevax.data import tables
from bilevax.data.encoding import encode, encoded_names
from bilevax.data.splits import stratified_part


class Job(NamedTuple):
    """Three sets of samples: features scaled by the training set, labels as 0..classes-1.

    Attributes:
        title: of the data, in a few words.
        prefix: of the names of the output files.
        features: the name of each column.
        classes: their number.
        X, y: to train on.
        X_validation, y_validation: to tune by.
        X_test, y_test: to measure on; no method sees them.
        notes: on what was done to the data, in sentences.
    """

    title: str
    prefix: str
    features: list[str]
    classes: int
    X: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    X_validation: Float[np.ndarray, "m d"]
    y_validation: Int[np.ndarray, " m"]
    X_test: Float[np.ndarray, "t d"]
    y_test: Int[np.ndarray, " t"]
    notes: tuple[str, ...]


def ready_made_jobs(hold_out: float, seed: int) -> list[Job]:
    """scikit-learn's breast cancer data and its digits.

    Args:
        hold_out: the part that is set aside to tune by, and again to test on.
        seed: of the split.
    """
    from sklearn.datasets import load_breast_cancer, load_digits

    jobs = []
    for title, load in (("breast cancer", load_breast_cancer), ("digits", load_digits)):
        bunch: Any = load()
        features = pd.DataFrame(bunch.data, columns=[str(name) for name in bunch.feature_names])
        table = tables.Table(f"scikit-learn's {title}", features, bunch.target, None)
        jobs.append(_split(table, {}, hold_out, seed)._replace(prefix=title.replace(" ", "_") + "_"))
    return jobs


def job_from_files(files: Mapping[str, Path | None], target: str | None, hold_out: float, seed: int) -> Job:
    """A user's job. Errors name the command's options.

    Args:
        files: "train", and "validation" and "test", each a path or None.
        target: the column, or the NPZ array, that holds the labels.
        hold_out: the part of the training file that replaces each of the two that is None.
        seed: of that split.

    Raises:
        InputError: as for `data.tables.read`; labels that the training file lacks; classes that are too small
            to be split.
    """
    read = read_files(tables.read, files, target)
    train = read.pop("train")
    return _split(train, read, hold_out, seed)._replace(title=str(files["train"]))


def read_files(read: Any, files: Mapping[str, Path | None], target: str | None) -> dict[str, tables.Table]:
    """The tables of the files, by name; `read` is a reader of `data.tables`."""
    paths = {name: path for name, path in files.items() if path is not None}
    roles = {"TRAIN" if name == "train" else f"--{name}": path for name, path in paths.items()}
    return dict(zip(paths, read(roles, target), strict=True))


def _split(train: tables.Table, others: dict[str, tables.Table], hold_out: float, seed: int) -> Job:
    """Split off the sets without a table of their own, then scale all sets by the training set."""
    title = train.name
    for table in others.values():
        tables.check_known_labels(table, train)
    wanted = [name for name in ("validation", "test") if name not in others]
    train, parts = _parts(train, wanted, hold_out, seed)
    parts |= others
    validation, test = parts["validation"], parts["test"]
    for table in (validation, test):
        tables.check_known_labels(table, train)
    encoded = encode(train, validation, test)
    X, X_validation, X_test = encoded.matrices
    labels = [table.labels for table in (train, validation, test)]
    classes, codes = np.unique(np.concatenate(labels), return_inverse=True)
    y, y_validation, y_test = np.split(codes, np.cumsum([len(part) for part in labels])[:-1])
    features = encoded_names(train)[0]
    return Job(title, "", features, len(classes), X, y, X_validation, y_validation, X_test, y_test, encoded.notes)


def _parts(
    table: tables.Table, wanted: list[str], hold_out: float, seed: int
) -> tuple[tables.Table, dict[str, tables.Table]]:
    """The table without the wanted parts, and the parts by name; each is stratified by class."""
    if not wanted:
        return table, {}
    labels, codes, counts = np.unique(table.labels, return_inverse=True, return_counts=True)
    if counts.min() <= len(wanted):
        few = [f"{label!r}: {n}" for label, n in zip(labels.tolist(), counts, strict=True) if n <= len(wanted)]
        raise InputError(
            f"{table.name} has classes with too few samples ({listed(few, quote=False)}): to train on some and set "
            f"some aside for {' and '.join(wanted)}, at least {len(wanted) + 1} of each are needed. Add samples, leave "
            "rare classes out, or pass --validation and --test."
        )
    random_state, kept, parts = np.random.RandomState(seed), np.arange(len(codes)), {}
    for i, name in enumerate(wanted):
        # Each part has the same share of the whole table, whatever was set aside before.
        aside = stratified_part(codes[kept], hold_out / (1 - i * hold_out), random_state)
        parts[name], kept = tables.part_of(table, kept[aside], name), kept[~aside]
    return tables.part_of(table, kept, "training"), parts
