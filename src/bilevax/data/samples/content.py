"""What a file or folder holds, before its labels and features are interpreted."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from bilevax._checks import InputError, listed, suggestion
from bilevax.data.samples.text import Records

TARGETS = ("label", "labels", "target", "class", "y", "given_label")


class Content(NamedTuple):
    """The records of one file or folder.

    Attributes:
        name: how messages call it.
        path: of it.
        form: as of `Source`.
        target: the column of the labels; None for a folder of class folders, and without labels.
        labels: of all records, as stored; empty without labels.
        records: their columns without that of the labels.
        rows: all their columns.
        digest: the SHA-256 of the content.
        array: the features, where they are an array.
        pictures: the features, where they are pictures: a file, or its bytes; None where a record has none.
        identifiers: of all records, where the form of the file gives them.
    """

    name: str
    path: Path
    form: str
    target: str | None
    labels: pd.Series
    records: Records
    rows: pd.DataFrame
    digest: str
    array: Shaped[np.ndarray, "n ..."] | None = None
    pictures: list[Path | bytes | None] | None = None
    identifiers: list[str] | None = None


def target_of(names: list[str], target: str | None, name: str) -> str:
    """The column of the labels: the given one, or the only one with a usual name.

    Raises:
        InputError: there is none.
    """
    if target is not None:
        return column_of(names, target, name, "--target")
    usual = [column for column in names if column.lower() in TARGETS]
    if len(usual) == 1:
        return usual[0]
    raise InputError(
        f"{name} needs --target, the name of the column that holds the labels. Its columns are {listed(names)}."
    )


def column_of(names: list[str], wanted: str, name: str, option: str) -> str:
    """A column that an option names, or an InputError with the nearest name."""
    if wanted.strip() not in names:
        near = suggestion(wanted.strip(), names)
        raise InputError(f"{name} has no column {wanted!r} ({option}). Its columns are {listed(names)}.{near}")
    return wanted.strip()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_labels(records: Records, path: Path, name: str, form: str) -> Content:
    """The content of named columns none of which is that of the labels."""
    return Content(name, path, form, None, pd.Series(dtype=object), records, records.frame, "")


def from_records(records: Records, path: Path, name: str, form: str, target: str | None) -> Content:
    """The content of a file of named columns."""
    rows: Any = records.frame
    names = [str(column) for column in rows.columns]
    chosen = target_of(names, target, name)
    features = records._replace(frame=rows.drop(columns=chosen))
    return Content(name, path, form, chosen, rows[chosen], features, rows, digest_of(path))


def chosen(content: Content, mask: Bool[np.ndarray, " n"]) -> Content:
    """Some records of a content."""
    if mask.all():
        return content
    records, places = content.records, np.flatnonzero(mask)
    return content._replace(
        records=records._replace(
            frame=records.frame.iloc[places].reset_index(drop=True),
            record=records.record[places],
            lines=records.lines[places],
        ),
        labels=content.labels.iloc[places].reset_index(drop=True),
        rows=content.rows.iloc[places].reset_index(drop=True),
        array=None if content.array is None else content.array[places],
        pictures=None if content.pictures is None else [content.pictures[i] for i in places.tolist()],
        identifiers=None if content.identifiers is None else [content.identifiers[i] for i in places.tolist()],
    )
