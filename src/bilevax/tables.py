"""Reading a user's labelled data (CSV, Parquet, NPZ) and turning them into numbers, or a sentence why not."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bilevax.problem import InputError, listed

SUFFIXES = ".csv, .csv.gz, .parquet and .npz"
MOST_CATEGORIES = 50


class Table(NamedTuple):
    """Labelled samples as read from one file.

    Attributes:
        name: how messages call it, such as `TRAIN (data.csv)`.
        features: one row per sample, one column per feature; an image's pixels flat, in C order.
        labels: (n,), of any type.
        image_shape: the shape of one sample where the samples are images, else None.
    """

    name: str
    features: pd.DataFrame
    labels: np.ndarray
    image_shape: tuple[int, ...] | None


class Labelled(NamedTuple):
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


class Encoded(NamedTuple):
    """Tables as matrices of float32, (n_i, d), in the order they were handed over, and what was done in words."""

    matrices: tuple[np.ndarray, ...]
    notes: tuple[str, ...]


def read(path: Path, target: str | None, role: str) -> Table:
    r"""Read labelled samples.

    Args:
        path: a CSV or Parquet file with named columns, or an NPZ file with an array `X` of shape (n, ...)
            (numbers; three or four axes are images) and an array of labels (n,).
        target: the column that holds the labels; for NPZ the array's name, `y` unless told.
        role: what messages call the file, such as `TRAIN`.

    Raises:
        InputError: the file cannot be read, lacks the target or is empty; values are missing or infinite;
            there are fewer than two labels, or the target holds fractions.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.tables import read
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "pets.csv"
        ...     _ = path.write_text("weight,kind\n4.1,cat\n9.5,dog\n")
        ...     table = read(path, target="kind", role="TRAIN")
        >>> table.labels.tolist(), list(table.features.columns)
        (['cat', 'dog'], ['weight'])
    """
    table = _read(path, target, role)
    _check_labels(table)
    return table


def read_quantities(path: Path, target: str | None, role: str) -> Table:
    """As `read`, where the target is a quantity: `labels` are then numbers (n,).

    Raises:
        InputError: as for `read`; the target holds no numbers, or one number alone.
    """
    table = _read(path, target, role)
    if not (np.issubdtype(table.labels.dtype, np.number) or table.labels.dtype == bool):
        raise InputError(
            f"{table.name}: the target holds {table.labels.dtype} (such as {table.labels.tolist()[0]!r}), and a "
            "quantity is needed. Pass a column of numbers as --target, or leave out --lasso to tune a classifier."
        )
    labels = table.labels.astype(np.float64)
    if np.ptp(labels) == 0:
        raise InputError(f"{table.name}: the target is {labels[0]:g} in all rows: there is nothing to learn.")
    return table._replace(labels=labels)


def _read(path: Path, target: str | None, role: str) -> Table:
    name = f"{role} ({path})"
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"{name} {found}. Pass a file that ends in one of {SUFFIXES}.")
    if path.suffix == ".npz":
        table = _read_npz(path, "y" if target is None else target, name)
    else:
        table = _read_frame(path, target, name)
    if not len(table.labels) or not table.features.shape[1]:
        raise InputError(f"{name} holds {len(table.labels)} samples of {table.features.shape[1]} features. Check it.")
    _check_complete(table, "the labels" if path.suffix == ".npz" else repr(target))
    return table


def _read_frame(path: Path, target: str | None, name: str) -> Table:
    if target is None:
        raise InputError(f"{name} needs --target, the name of the column that holds the labels.")
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    try:
        if suffix in (".csv", ".csv.gz"):
            frame = pd.read_csv(path, low_memory=False)
        elif suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            raise InputError(
                f"{name} ends in {path.suffix!r}, which is not known. Convert it to one of {SUFFIXES}."
                if path.suffix
                else f"{name} has no suffix, so its format is not known. Rename it to end in one of {SUFFIXES}."
            )
    except (OSError, ValueError, EOFError) as error:  # parser and Arrow errors are ValueErrors or OSErrors
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be read as {suffix}: {_first_line(error)} Check the file.") from error
    frame.columns = frame.columns.astype(str)
    if target not in frame.columns:
        raise InputError(f"{name} has no column {target!r} (--target). Its columns are {listed(frame.columns)}.")
    return Table(name, frame.drop(columns=target), np.asarray(frame[target]), None)


def _read_npz(path: Path, target: str, name: str) -> Table:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files if key in ("X", target)}
            names = arrays.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(
            f"{name} cannot be read as .npz: {_first_line(error)} Save it by numpy.savez(path, X=..., y=...), "
            "with arrays of numbers or strings, not of objects."
        ) from error
    for key in ("X", target):
        if key not in found:
            raise InputError(f"{name} has no array {key!r}. Its arrays are {listed(names)}; X and {target} are needed.")
    X, y = found["X"], found[target]
    if X.ndim < 2 or y.shape != X.shape[:1]:
        raise InputError(
            f"{name}: X has shape {X.shape} and {target} has shape {y.shape}. "
            "X must be (samples, ...) and the labels (samples,), of the same length."
        )
    if not (np.issubdtype(X.dtype, np.number) or X.dtype == bool):
        raise InputError(f"{name}: X has dtype {X.dtype}, and must hold numbers.")
    flat = X.reshape(len(X), -1) if X.size else X.reshape(len(X), 0)
    features = pd.DataFrame(flat, columns=[f"X[{i}]" for i in range(flat.shape[1])])
    side = int(np.sqrt(flat.shape[1]))
    if X.ndim in (3, 4):
        image_shape = X.shape[1:]
    elif X.ndim == 2 and X.dtype == np.uint8 and side >= 8 and side * side == flat.shape[1]:
        image_shape = (side, side)  # bytes in square rows: flat grey images, as MNIST is often kept
    else:
        image_shape = None
    return Table(name, features, y, image_shape)


def _check_complete(table: Table, target: str) -> None:
    missing = {repr(c): int(n) for c, n in table.features.isna().sum().items() if n}
    numbers = table.features.select_dtypes("number")
    missing |= {repr(c): int(n) for c, n in (~np.isfinite(numbers)).sum().items() if n}
    infinite = np.isinf(table.labels) if np.issubdtype(table.labels.dtype, np.floating) else False
    if without_label := int((pd.isna(table.labels) | infinite).sum()):
        missing[target] = without_label
    if missing:
        counts = [f"{column}: {n}" for column, n in missing.items()]
        raise InputError(
            f"{table.name} has missing or infinite values ({listed(counts, quote=False)}). "
            "Fill them or drop those rows or columns first."
        )


def _check_labels(table: Table) -> None:
    labels = pd.unique(pd.Series(table.labels))
    if np.issubdtype(table.labels.dtype, np.floating) and np.any(table.labels != np.round(table.labels)):
        raise InputError(
            f"{table.name}: the target holds fractions (such as {labels[labels != np.round(labels)][0]}), "
            "so it is a quantity and not a label. Pass a column of classes as --target."
        )
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
        InputError: the columns, or the images' shapes, differ between the tables.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from bilevax.tables import Table, encode
        >>> table = Table("TRAIN", pd.DataFrame({"size": [1.0, 3.0], "kind": ["a", "b"]}), np.array([0, 1]), None)
        >>> encode(table).matrices[0]
        array([[-1.,  1.,  0.],
               [ 1.,  0.,  1.]], dtype=float32)
    """
    notes = []
    columns = [c for c in train.features.columns if c != "Unnamed: 0"]
    if len(columns) < train.features.shape[1]:
        notes.append("Column 'Unnamed: 0' is taken for a saved row index and left out.")
    if not columns:
        raise InputError(f"{train.name} has no feature columns besides a row index. Check the file.")
    text = [c for c in columns if not _is_numeric(train.features[c])]
    frames = [_aligned(table, train, columns, text) for table in (train, *others)]
    if train.image_shape is not None:
        pixels = [frame.to_numpy(np.float64) for frame in frames]
        middle, spread = pixels[0].mean(), pixels[0].std() or 1.0
        return Encoded(tuple(((x - middle) / spread).astype(np.float32) for x in pixels), ())
    if text:
        sizes = [f"{c} ({frames[0][c].nunique()} values)" for c in text]
        notes.append(f"One-hot encoded, since they hold no numbers: {listed(sizes, quote=False)}.")
    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MOST_CATEGORIES, sparse_output=False)
    transformer = ColumnTransformer(
        [("numbers", StandardScaler(), [c for c in columns if c not in text]), ("categories", one_hot, text)]
    ).fit(frames[0])
    return Encoded(tuple(np.asarray(transformer.transform(f), np.float32) for f in frames), tuple(notes))


def encoded_names(train: Table) -> tuple[list[str], list[str]]:
    """A name for each column that `encode` makes of the training table, in its order, and the column it is made of.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from bilevax.tables import Table, encoded_names
        >>> table = Table("TRAIN", pd.DataFrame({"kind": ["a", "b"], "size": [1.0, 3.0]}), np.array([0, 1]), None)
        >>> encoded_names(table)
        (['size', 'kind = a', 'kind = b'], ['size', 'kind', 'kind'])
    """
    frame = train.features.drop(columns="Unnamed: 0", errors="ignore")
    numbers = [c for c in frame.columns if _is_numeric(frame[c])]
    text = frame.drop(columns=numbers).astype(str)
    names, columns = list(numbers), list(numbers)
    settings: Any = {"feature_name_combiner": lambda column, value: f"{column} = {value}"}
    for column in text.columns:
        encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MOST_CATEGORIES, **settings)
        found = encoder.fit(text[[column]]).get_feature_names_out().tolist()
        names += found
        columns += [column] * len(found)
    return names, columns


def _aligned(table: Table, train: Table, columns: Sequence[str], text: Sequence[str]) -> pd.DataFrame:
    """The table's features in the order of the training table's columns."""
    if table.image_shape != train.image_shape:
        raise InputError(
            f"{table.name} has samples of shape {table.image_shape} and {train.name} of shape {train.image_shape}. "
            "They must be alike."
        )
    found = [c for c in table.features.columns if c != "Unnamed: 0"]
    lacking, extra = [c for c in columns if c not in found], [c for c in found if c not in columns]
    if lacking or extra:
        told = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(extra)} besides"] * bool(extra)
        raise InputError(
            f"{table.name} {' and '.join(told)}, compared with {train.name}. Give both the same feature columns."
        )
    frame = table.features.reindex(columns=list(columns))
    for column in columns:
        values = table.features[column]
        if pd.api.types.is_datetime64_any_dtype(values):
            raise InputError(f"Column {column!r} of {table.name} holds dates. Turn it into numbers, or drop it.")
        if column in text:
            frame[column] = values.astype(str)
        elif not _is_numeric(values):
            raise InputError(
                f"Column {column!r} holds numbers in {train.name} and text in {table.name} "
                f"(such as {values.tolist()[0]!r}). Give both the same kind of values."
            )
    return frame


def _is_numeric(column: Any) -> bool:
    return pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)


def from_files(train: Path, clean: Path, test: Path | None, target: str | None, hold_out: float, seed: int) -> Labelled:
    """A user's denoising job.

    Args:
        train, clean, test: files for `read`.
        target: the column, or the NPZ array, that holds the labels.
        hold_out: without `test`, the part of the clean samples that is set aside as the test set; 0 for none.
        seed: which of them.

    Raises:
        InputError: what `read`, `encode` or `check_known_labels` refuse; too few clean samples to set some aside.
    """
    doubted = read(train, target, "TRAIN")
    others = [read(path, target, role) for path, role in ((clean, "--clean"), (test, "--test")) if path is not None]
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
                f"--hold-out {hold_out} cannot be taken from {len(y_clean)} clean samples: {_first_line(error)} "
                "Add clean samples, or measure on a file of its own, by --test."
            ) from error
        X_test, y_test, X_clean, y_clean = X_clean[aside], y_clean[aside], X_clean[kept], y_clean[kept]
    return Labelled(
        str(train), X, doubted.labels, X_clean, y_clean, X_test, y_test, None, as_images(doubted), tuple(notes)
    )


def as_images(table: Table) -> np.ndarray | None:
    """The samples as images (n, height, width) or (n, height, width, 3 or 4) with values in 0..1, if they are."""
    if table.image_shape is None:
        return None
    pixels = table.features.to_numpy(np.float32).reshape(len(table.labels), *table.image_shape)
    if pixels.ndim == 4 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[1] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 1, -1)  # channels first, as PyTorch keeps them
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 4 and pixels.shape[-1] not in (3, 4):
        return None
    low, high = pixels.min(), pixels.max()
    return (pixels - low) / (high - low if high > low else 1.0)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
