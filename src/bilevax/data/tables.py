"""Reading a user's labelled data (CSV, Parquet, NPZ) and turning them into numbers, or a sentence why not."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.preprocessing import StandardScaler

from bilevax._checks import InputError, listed
from bilevax.data.kinds import MOST_CATEGORIES, settle_classes, settle_features, settle_quantities
from bilevax.data.readers import TURN_DATES, read_raw

EXTREME = 1e100  # squares of such numbers overflow
EXACT = 2.0**53  # the integers up to which float64 has each
LARGEST_QUANTITY = 1e30


class Table(NamedTuple):
    """Labelled samples as read from one file.

    Attributes:
        name: how messages call it, such as `TRAIN (data.csv)`.
        features: one row per sample, one column per feature; an image's pixels flat, in C order.
        labels: (n,), of any type.
        image_shape: the shape of one sample where the samples are images, else None.
        notes: what was done in reading, in sentences.
    """

    name: str
    features: pd.DataFrame
    labels: np.ndarray
    image_shape: tuple[int, ...] | None
    notes: tuple[str, ...] = ()


class Encoded(NamedTuple):
    """Tables as matrices of float32, (n_i, d), in the order of the tables, and notes on what was done."""

    matrices: tuple[np.ndarray, ...]
    notes: tuple[str, ...]


def read(path: Path, target: str | None, role: str) -> Table:
    r"""Read labelled samples from one file. Files that belong together are read by `read_together`.

    Args:
        path: a CSV or Parquet file with named columns, or an NPZ file with an array `X` of shape (n, ...)
            (numbers; three or four axes are images) and an array of labels (n,).
        target: the column that holds the labels; for NPZ the array's name, `y` by default.
        role: what messages call the file, such as `TRAIN`.

    Raises:
        InputError: the file cannot be read, lacks the target or is empty; values are missing or infinite; a column
            holds numbers but for a few cells; there are fewer than two labels, or the target holds fractions.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.data.tables import read
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "pets.csv"
        ...     _ = path.write_text("weight,kind\n4.1,cat\n9.5,dog\n")
        ...     table = read(path, target="kind", role="TRAIN")
        >>> table.labels.tolist(), list(table.features.columns)
        (['cat', 'dog'], ['weight'])
    """
    return read_together({role: path}, target)[0]


def read_together(files: Mapping[str, Path], target: str | None) -> list[Table]:
    r"""Read labelled samples from several files whose columns and labels mean the same.

    Whether a column holds numbers or text is decided once, by its cells in all files: 01 is a code where another file
    has A1 in that column. Labels are whole numbers, truth values or text in all files alike.

    Args:
        files: the files by their role; messages call them by it. The first one is trained on.
        target: as for `read`.

    Raises:
        InputError: as for `read`.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.data.tables import read_together
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b = pathlib.Path(folder) / "a.csv", pathlib.Path(folder) / "b.csv"
        ...     _ = a.write_text("ward,kind\n01,cat\n02,dog\n"), b.write_text("ward,kind\n01,dog\nA1,cat\n")
        ...     train, clean = read_together({"TRAIN": a, "--clean": b}, target="kind")
        >>> train.features["ward"].tolist(), clean.features["ward"].tolist()
        (['01', '02'], ['01', 'A1'])
    """
    tables = _read(files, target, settle_classes)
    for table in tables:
        _check_labels(table)
    return tables


def read_quantities(path: Path, target: str | None, role: str) -> Table:
    """As `read`, where the target is a quantity: `labels` are then float64 (n,).

    Raises:
        InputError: as for `read`; the target holds no numbers, or one number alone.
    """
    return read_quantities_together({role: path}, target)[0]


def read_quantities_together(files: Mapping[str, Path], target: str | None) -> list[Table]:
    """As `read_together`, where the target is a quantity.

    Raises:
        InputError: as for `read_quantities`.
    """
    tables = _read(files, target, settle_quantities)
    for table in tables:
        low, high = table.labels.min(), table.labels.max()
        if low == high:
            raise InputError(f"{table.name}: the target is {low:g} in all rows: there is nothing to learn.")
        if max(abs(low), abs(high)) > LARGEST_QUANTITY:
            raise InputError(
                f"{table.name}: the target goes from {low:g} to {high:g}, too large for single precision. Divide it, "
                "or mend those rows."
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
    floats = _chosen(features, [c for c, kind in features.dtypes.items() if _plain(kind).kind == "f"])
    counts = np.sum(~np.isfinite(floats.to_numpy()), axis=0)
    return {floats.columns[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def _plain(kind: Any) -> np.dtype:
    """A column's dtype where it is one of NumPy's, else that of objects."""
    return kind if isinstance(kind, np.dtype) else np.dtype(object)


def _check_labels(table: Table) -> None:
    labels = pd.unique(pd.Series(table.labels))
    if len(labels) < 2:
        raise InputError(
            f"{table.name} has one class only ({listed(labels)}). At least two are needed to learn from: "
            "check --target, or add samples of the other classes."
        )


def check_known_labels(table: Table, train: Table) -> None:
    """Refuse a table with labels that the training table lacks.

    Raises:
        InputError: naming those labels.
    """
    unknown = set(table.labels.tolist()) - set(train.labels.tolist())
    if unknown:
        raise InputError(
            f"{table.name} has labels that {train.name} lacks: {listed(sorted(unknown, key=repr))}. The latter has "
            f"{listed(sorted(set(train.labels.tolist()), key=repr))}. Spell them alike, or remove those samples."
        )


def part_of(table: Table, rows: Any, part: str) -> Table:
    """Some rows of a table, by their places or a mask, named as its part."""
    features = table.features.iloc[rows].reset_index(drop=True)
    return table._replace(name=f"{table.name}, {part} part", features=features, labels=table.labels[rows])


def encode(train: Table, *others: Table) -> Encoded:
    """Features as numbers on a common scale, learned from `train` alone.

    Numeric columns are centred and divided by their standard deviation; images as a whole, with one mean
    and one deviation for all pixels. Columns of text or categories are one-hot encoded, rare categories
    past the 50 most frequent together. A column `Unnamed: 0` (a row index that was saved along) is left out.

    Raises:
        InputError: the columns, or the images' shapes, differ between the tables; a column holds dates or complex
            numbers; a value is too large for single precision on the scale of `train`.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from bilevax.data.tables import Table, encode
        >>> table = Table("TRAIN", pd.DataFrame({"size": [1.0, 3.0], "kind": ["a", "b"]}), np.array([0, 1]), None)
        >>> encode(table).matrices[0]
        array([[-1.,  1.,  0.],
               [ 1.,  0.,  1.]], dtype=float32)
    """
    tables = (train, *others)
    notes = list(dict.fromkeys(note for table in tables for note in table.notes))
    if "Unnamed: 0" in train.features.columns:
        notes.append("Column 'Unnamed: 0' is taken for a saved row index and left out.")
    numbers, text = _numbers_and_text(train)
    if not numbers and not text:
        raise InputError(f"{train.name} has no feature columns besides a row index. Check the file.")
    for table in tables:
        _check_alike(table, train, numbers, text)
    if train.image_shape is not None:
        scaled = _scaled_images(tables)
        return Encoded(tuple(_single(x, t, list(t.features.columns)) for x, t in zip(scaled, tables, strict=True)), ())
    parts = [[_single(x, t, numbers)] for x, t in zip(_standardised(tables, numbers), tables, strict=True)]
    if text:
        sizes = [f"{c} ({train.features[c].nunique()} values)" for c in text]
        notes.append(f"One-hot encoded, since they hold no numbers: {listed(sizes, quote=False)}.")
        categories = _categories(train, text)
        for part, table in zip(parts, tables, strict=True):
            part.append(_one_hot(table, text, categories))
    return Encoded(tuple(np.concatenate(part, axis=1) for part in parts), tuple(notes))


def encoded_names(train: Table) -> tuple[list[str], list[str]]:
    """A name for each column that `encode` makes of the training table, in its order, and the column it is made of.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from bilevax.data.tables import Table, encoded_names
        >>> table = Table("TRAIN", pd.DataFrame({"kind": ["a", "b"], "size": [1.0, 3.0]}), np.array([0, 1]), None)
        >>> encoded_names(table)
        (['size', 'kind = a', 'kind = b'], ['size', 'kind', 'kind'])
    """
    numbers, text = _numbers_and_text(train)
    names, columns = list(numbers), list(numbers)
    if text:
        for column, found in zip(text, _categories(train, text), strict=True):
            new = [f"{column} = {value}" for value in found.frequent]
            new += [f"{column} = any other"] * found.others
            names += new
            columns += [column] * len(new)
    return names, columns


def _numbers_and_text(train: Table) -> tuple[list[str], list[str]]:
    """The columns of numbers and the others, without a saved row index."""
    kinds = {c: _is_numeric(kind) for c, kind in train.features.dtypes.items() if c != "Unnamed: 0"}
    return [c for c, numeric in kinds.items() if numeric], [c for c, numeric in kinds.items() if not numeric]


def _check_alike(table: Table, train: Table, numbers: Sequence[str], text: Sequence[str]) -> None:
    """Refuse a table whose columns, or pictures, are not those of the training table."""
    if table.image_shape != train.image_shape:
        raise InputError(
            f"{table.name} has samples of shape {table.image_shape} and {train.name} of shape {train.image_shape}. "
            "They must be alike."
        )
    kinds = {c: kind for c, kind in table.features.dtypes.items() if c != "Unnamed: 0"}
    wanted = {*numbers, *text}
    lacking = [c for c in (*numbers, *text) if c not in kinds]
    extra = [c for c in kinds if c not in wanted]
    if lacking or extra:
        faults = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(extra)} besides"] * bool(extra)
        raise InputError(
            f"{table.name} {' and '.join(faults)}, compared with {train.name}. Give both the same feature columns."
        )
    for column, kind in kinds.items():
        if pd.api.types.is_datetime64_any_dtype(kind) or pd.api.types.is_timedelta64_dtype(kind):
            raise InputError(f"Column {column!r} of {table.name} holds dates or times. {TURN_DATES}")
        if pd.api.types.is_complex_dtype(kind):
            raise InputError(f"Column {column!r} of {table.name} holds complex numbers. Split them into real columns.")
    for column in numbers:
        if not _is_numeric(kinds[column]):
            raise InputError(
                f"Column {column!r} holds numbers in {train.name} and text in {table.name} "
                f"(such as {table.features[column].tolist()[0]!r}). Give both the same kind of values."
            )


def _is_numeric(kind: Any) -> bool:
    return pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind)


def _standardised(tables: Sequence[Table], columns: Sequence[str]) -> list[np.ndarray]:
    """Numeric columns by the first table's means and deviations, float64.

    The first row is subtracted before anything else, so that a small spread beside a large offset keeps its digits, and
    columns of very large or small numbers are brought near 1 by a power of two, so that no square overflows.
    """
    if not columns:
        return [np.empty((len(table.features), 0)) for table in tables]
    differences, start, powers = [], None, None
    for table in tables:
        values = _chosen(table.features, columns).to_numpy(np.float64)
        origin = start = values[0] if start is None else start
        if powers is None:
            largest = np.abs(values).max(axis=0)
            extreme = (largest > EXTREME) | ((largest < 1 / EXTREME) & (largest > 0))
            powers = np.where(extreme, -np.frexp(largest)[1], 0)
        if powers.any():
            with np.errstate(over="ignore"):
                values, origin = np.ldexp(values, powers), np.ldexp(origin, powers)
        difference = values - origin
        # Integers beyond 2^53 do not fit into float64; their differences do.
        for i in np.flatnonzero(np.abs(values).max(axis=0) > EXACT).tolist():
            column = table.features[columns[i]]
            if column.dtype.kind in "iu":
                first = int(tables[0].features[columns[i]].iloc[0])
                difference[:, i] = [float(value - first) for value in column.tolist()]
        differences.append(difference)
    scaler = StandardScaler().fit(differences[0])
    return [np.asarray(scaler.transform(difference)) for difference in differences]


def _scaled_images(tables: Sequence[Table]) -> list[np.ndarray]:
    """All pixels by one mean and one deviation, those of the first table."""
    pixels = [table.features.to_numpy(np.float64) for table in tables]
    largest = np.abs(pixels[0]).max()
    power = -int(np.frexp(largest)[1]) if largest > EXTREME or 0 < largest < 1 / EXTREME else 0
    if power:
        with np.errstate(over="ignore"):
            pixels = [np.ldexp(x, power) for x in pixels]
    middle, spread = pixels[0].mean(), pixels[0].std() or 1.0
    return [(x - middle) / spread for x in pixels]


def _single(scaled: np.ndarray, table: Table, columns: Sequence[str]) -> np.ndarray:
    """In single precision; refuses what does not fit."""
    with np.errstate(over="ignore"):
        values = scaled.astype(np.float32)
    beyond = np.argwhere(~np.isfinite(values)).tolist()
    if beyond:
        row, place = beyond[0]
        column = columns[place]
        raise InputError(
            f"Column {column!r} of {table.name} holds {table.features[column].iloc[row]:g} in row {row}, which is too "
            "far from the training samples' values. Mend or drop that row; rows are counted from 0."
        )
    return values


class _Categories(NamedTuple):
    """The values of a column of text that have a column of their own, and whether one more stands for all others."""

    frequent: tuple[str, ...]
    others: bool


def _categories(train: Table, text: Sequence[str]) -> list[_Categories]:
    """In the order of the text; of more than `MOST_CATEGORIES` values the most frequent, and one for the others."""
    chosen = []
    for words in _words(train, text):
        counts = Counter(words)
        found = sorted(counts)
        if others := len(found) > MOST_CATEGORIES:
            found = sorted(sorted(found, key=counts.__getitem__)[1 - MOST_CATEGORIES :])
        chosen.append(_Categories(tuple(found), others))
    return chosen


def _one_hot(table: Table, text: Sequence[str], categories: Sequence[_Categories]) -> np.ndarray:
    """A 1 for each cell in the column of its value, all others 0: (n, the sum of their numbers), float32.

    A value that the training table lacks counts among the others, where there is a column for them.
    """
    starts = np.cumsum([0, *(len(found.frequent) + found.others for found in categories)])
    matrix = np.zeros((len(table.features), int(starts[-1])), np.float32)
    for words, found, start in zip(_words(table, text), categories, starts.tolist(), strict=False):
        places = {value: start + i for i, value in enumerate(found.frequent)}
        other = start + len(found.frequent) if found.others else -1
        chosen = np.array([places.get(word, other) for word in words])
        rows = np.flatnonzero(chosen >= 0)
        matrix[rows, chosen[rows]] = 1
    return matrix


def _words(table: Table, text: Sequence[str]) -> Iterator[list[str]]:
    """The cells of each column of text."""
    for column in _chosen(table.features, text).to_numpy(object).T:
        yield [str(value) for value in column.tolist()]


def _chosen(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """These columns in this order, without a copy where they are all."""
    return frame if list(frame.columns) == list(columns) else frame.loc[:, list(columns)]


def as_images(table: Table) -> np.ndarray | None:
    """The samples as images (n, height, width) or (n, height, width, 3 or 4) with values in 0..1, if they are.

    Bytes are divided by 255, as the models do it; other numbers are brought to 0..1 by their smallest and largest.
    """
    if table.image_shape is None:
        return None
    bytes_alone = all(kind == np.uint8 for kind in set(table.features.dtypes))
    pixels = table.features.to_numpy(np.float64).reshape(len(table.labels), *table.image_shape)
    if pixels.ndim == 4 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[1] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 1, -1)  # channels first, as PyTorch keeps them
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 4 and pixels.shape[-1] not in (3, 4):
        return None
    low, high = (0.0, 255.0) if bytes_alone else (float(pixels.min()), float(pixels.max()))
    spread = high / 2 - low / 2  # halves, since the difference of two large numbers may overflow
    return ((pixels / 2 - low / 2) / (spread or 1.0)).astype(np.float32)
