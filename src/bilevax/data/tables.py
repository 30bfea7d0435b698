"""Labelled tables from a user's files (CSV, Parquet, NPZ), or an InputError that says why not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32, Shaped

from bilevax._checks import InputError, listed
from bilevax.data.kinds import settle_classes, settle_features, settle_quantities
from bilevax.data.readers import read_raw

LARGEST_QUANTITY = 1e30


class Table(NamedTuple):
    """Labelled samples as read from one file.

    Attributes:
        name: how messages call it, such as `TRAIN (data.csv)`.
        features: one row per sample, one column per feature; the pixels of an image are flat, in C order.
        labels: of any dtype.
        image_shape: the shape of one sample where the samples are images, else None.
        notes: what was done while reading, in sentences.
    """

    name: str
    features: pd.DataFrame
    labels: Shaped[np.ndarray, " n"]
    image_shape: tuple[int, ...] | None
    notes: tuple[str, ...] = ()


def read(files: Mapping[str, Path], target: str | None) -> list[Table]:
    r"""Read labelled samples from files whose columns and labels mean the same.

    Whether a column holds numbers or text is decided once, by its cells in all files: 01 is a code where another file
    has A1 in that column. Labels are whole numbers, truth values or text, the same in all files.

    Args:
        files: by their role, such as `TRAIN`, which messages name; the first one is for training. Each is a CSV or
            Parquet file with named columns, or an NPZ file with an array `X` of shape (n, ...) (numbers; three or four
            axes are images) and an array of labels (n,).
        target: the column that holds the labels; for NPZ the array's name, `y` by default.

    Raises:
        InputError: a file cannot be read, lacks the target or is empty; values are missing or infinite; a column holds
            numbers except for a few cells; there are fewer than two labels, or the target holds fractions.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.data.tables import read
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b = pathlib.Path(folder) / "a.csv", pathlib.Path(folder) / "b.csv"
        ...     _ = a.write_text("ward,kind\n01,cat\n02,dog\n"), b.write_text("ward,kind\n01,dog\nA1,cat\n")
        ...     train, trusted = read({"TRAIN": a, "--trusted": b}, target="kind")
        >>> train.labels.tolist(), train.features["ward"].tolist(), trusted.features["ward"].tolist()
        (['cat', 'dog'], ['01', '02'], ['01', 'A1'])
    """
    tables = _read(files, target, settle_classes)
    for table in tables:
        labels = pd.unique(pd.Series(table.labels))
        if len(labels) < 2:
            raise InputError(
                f"{table.name} has one class only ({listed(labels)}). At least two are needed for training: check "
                "--target, or add samples of the other classes."
            )
    return tables


def read_quantities(files: Mapping[str, Path], target: str | None) -> list[Table]:
    """As `read`, where the target is a quantity: `labels` are then float64 (n,).

    Raises:
        InputError: as for `read`; the target holds text, the same number in all rows, or numbers too large for single
            precision.
    """
    tables = _read(files, target, settle_quantities)
    for table in tables:
        low, high = table.labels.min(), table.labels.max()
        if low == high:
            raise InputError(f"{table.name}: the target is {low:g} in all rows: there is nothing to learn from it.")
        if max(abs(low), abs(high)) > LARGEST_QUANTITY:
            raise InputError(
                f"{table.name}: the target goes from {low:g} to {high:g}, too large for single precision. Divide it, "
                "or correct those rows."
            )
    return tables


def _read(files: Mapping[str, Path], target: str | None, settle_labels: Any) -> list[Table]:
    raws = [read_raw(path, target, role) for role, path in files.items()]
    for raw in raws:
        if 0 in raw.features.shape:
            raise InputError(
                f"{raw.name} holds {len(raw.features)} samples of {raw.features.shape[1]} features. Check it."
            )
    tables = []
    for raw, (features, lacking, notes), (labels, unlabelled, more) in zip(
        raws, settle_features(raws), settle_labels(raws), strict=True
    ):
        missing = lacking | _not_finite(features)
        missing = {repr(column): missing[column] for column in features.columns if column in missing}
        if unlabelled:
            missing[raw.target] = unlabelled
        if missing:
            counts = [f"{column}: {n}" for column, n in missing.items()]
            raise InputError(
                f"{raw.name} has missing or infinite values ({listed(counts, quote=False)}). "
                "Fill them or drop those rows or columns first."
            )
        tables.append(Table(raw.name, features, labels, raw.image_shape, (*raw.notes, *notes, *more)))
    return tables


def _not_finite(features: pd.DataFrame) -> dict[str, int]:
    """The number of missing or infinite values in each column of floats that has some."""
    kinds = features.dtypes.items()
    floats = columns_of(features, [c for c, kind in kinds if isinstance(kind, np.dtype) and kind.kind == "f"])
    counts = np.sum(~np.isfinite(floats.to_numpy()), axis=0)
    return {floats.columns[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def columns_of(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """These columns in this order, without a copy where they are all."""
    return frame if list(frame.columns) == list(columns) else frame.loc[:, list(columns)]


def check_known_labels(table: Table, train: Table) -> None:
    """Refuse labels that the training table lacks.

    Raises:
        InputError: with those labels.
    """
    unknown = set(table.labels.tolist()) - set(train.labels.tolist())
    if unknown:
        raise InputError(
            f"{table.name} has labels that {train.name} lacks: {listed(sorted(unknown, key=repr))}. The latter has "
            f"{listed(sorted(set(train.labels.tolist()), key=repr))}. Correct their spelling, or remove those samples."
        )


def part_of(table: Table, rows: Shaped[np.ndarray, " k"], part: str) -> Table:
    """Some rows of a table, by index or mask, with the name of the part."""
    features = table.features.iloc[rows].reset_index(drop=True)
    return table._replace(name=f"{table.name}, {part} part", features=features, labels=table.labels[rows])


def as_images(table: Table) -> Float32[np.ndarray, "n h w *c"] | None:
    """The samples as images with values in 0..1, grey or with 3 or 4 channels; None if they are not images.

    Bytes are divided by 255, as for models; other numbers are scaled to 0..1 by their smallest and largest.
    """
    if table.image_shape is None:
        return None
    bytes_alone = all(kind == np.uint8 for kind in set(table.features.dtypes))
    pixels = table.features.to_numpy(np.float64).reshape(len(table.labels), *table.image_shape)
    if pixels.ndim == 4 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[1] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 1, -1)  # channels first, as in PyTorch
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 4 and pixels.shape[-1] not in (3, 4):
        return None
    low, high = (0.0, 255.0) if bytes_alone else (float(pixels.min()), float(pixels.max()))
    spread = high / 2 - low / 2  # halves, since the difference of two large numbers may overflow
    return ((pixels / 2 - low / 2) / (spread or 1.0)).astype(np.float32)
