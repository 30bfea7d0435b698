"""Data frames as matrices of numbers, and back: columns of text become groups of columns of 0 and 1."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from bilevax._checks import InputError, listed
from bilevax.data.encoding import encode, encoded_names
from bilevax.data.tables import Table


class Rows(NamedTuple):
    """How a data frame became a matrix.

    Attributes:
        columns: of the data frame.
        numbers: those that are numbers: the first columns of the matrix.
        groups: for each column of text its values, one for each column of its group in the matrix.
    """

    columns: tuple[Any, ...]
    numbers: tuple[Any, ...]
    groups: dict[Any, tuple[Any, ...]]

    def snapped(self, x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """The rows in which each column of text has one value, the one with the largest entry."""
        x, start = x.copy(), len(self.numbers)
        for values in self.groups.values():
            group = slice(start, start + len(values))
            x[:, group] = np.eye(len(values), dtype=x.dtype)[x[:, group].argmax(1)]
            start += len(values)
        return x

    def frame(self, x: Float[np.ndarray, "m d"]) -> pd.DataFrame:
        """Snapped rows as a data frame with the columns of the given one."""
        found: dict[Any, Any] = {name: x[:, i] for i, name in enumerate(self.numbers)}
        start = len(self.numbers)
        for name, values in self.groups.items():
            chosen = x[:, start : start + len(values)].argmax(1)
            found[name] = pd.Series([values[i] for i in chosen.tolist()], dtype=object)
            start += len(values)
        return pd.DataFrame({name: found[name] for name in self.columns})


def has_text(X: Any) -> bool:
    """Whether X is a data frame with columns that are not numbers."""
    return isinstance(X, pd.DataFrame) and bool(_texts(X))


def rows_of(X: Any) -> Rows | None:
    """The rows of a data frame of numbers; None for anything else."""
    if not isinstance(X, pd.DataFrame):
        return None
    return Rows(tuple(X.columns), tuple(X.columns), {})


def as_numbers(
    X: Any, y: Any, X_val: Any, y_val: Any
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n_val d"], Rows]:
    """Data frames with columns of text as matrices, by the values of X.

    Of more than 50 values of a column the least frequent share a column of the matrix.

    Raises:
        InputError: X_val is not a data frame with these columns; a cell is missing or infinite; a column holds dates.
    """
    if not isinstance(X_val, pd.DataFrame):
        raise InputError(
            f"X is a data frame with columns of text, and X_val is a {type(X_val).__name__}. Pass a frame."
        )
    for name, frame in (("X", X), ("X_val", X_val)):
        lacking = [
            c
            for c, missing in zip(frame.columns, np.any(frame.isna().to_numpy(), axis=0).tolist(), strict=True)
            if missing
        ]
        if len(set(frame.columns)) < len(frame.columns):
            raise InputError(f"{name} has several columns of one name. Rename them.")
        if lacking:
            raise InputError(f"{name} has missing values in {listed(lacking)}. Fill them, or drop those rows.")
    train = Table("X", X, y, None)
    found = encode(train, Table("X_val", X_val, y_val, None)).matrices
    texts = _texts(X)
    columns = tuple(c for c in X.columns if c != "Unnamed: 0")  # a saved row index, which `encode` leaves out
    numbers = tuple(c for c in columns if c not in texts)
    names, sources = encoded_names(train)
    groups = {}
    for column in texts:
        known = {str(value): value for value in X[column]}
        values = [name[len(f"{column} = ") :] for name, source in zip(names, sources, strict=True) if source == column]
        if len(known) > len(values):  # the last one stands for all others
            counts = Counter(map(str, X[column]))
            values[-1] = max((value for value in known if value not in values[:-1]), key=counts.__getitem__)
        groups[column] = tuple(known[value] for value in values)

    def joined(frame: pd.DataFrame, encoded: np.ndarray) -> np.ndarray:
        plain = frame[list(numbers)].to_numpy(np.float64)
        if not np.isfinite(plain).all():
            raise InputError("X or X_val has infinite values. Correct or drop those rows.")
        return np.concatenate([plain, encoded[:, len(numbers) :]], axis=1)

    return joined(X, found[0]), joined(X_val, found[1]), Rows(columns, numbers, groups)


def _texts(X: pd.DataFrame) -> list[Any]:
    """The columns that are not numbers."""
    numeric = X.select_dtypes(["number", "bool"]).columns
    return [c for c in X.columns if c not in numeric]
