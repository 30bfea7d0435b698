"""What each column of a table is, decided by the rows to review, and the matrix that is made of it.

Columns are numbers, categories, free text, or left out: identifiers, dates, constants, copies of the label, and columns
of values that nearly all differ. What is decided is kept, so that other rows become a matrix in the same way.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Float64

from bilevax.data.kinds import DATE, MOST_CATEGORIES, Cells, cells
from bilevax.data.samples.numbers import (
    NO_CELL,
    Numbers,
    Style,
    numbers_in,
    plain_numbers,
    style_of,
    typed_numbers,
)

Role = Literal["number", "category", "text", "identifier", "date", "constant", "copy", "nested", "dropped"]
ENOUGH = 10  # rows by which identifiers are recognised
RARE = 3  # a value that is less frequent shares a column with others
MOSTLY = 0.9
FARTHEST = 1e6  # deviations from the median; what lies farther is moved there
SENTENCE, PHRASE = 5.0, 2.0  # mean number of words
NAMED = re.compile(
    r"(?i:(?:.*[\W_])?(?:id|ids|uuid|guid|index|idx|rowid|row[\W_]?(?:id|nr|no|num|number)|unnamed: \d+))|"
    r".*[a-z0-9]I[Dd]"
)
MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
WRITTEN_DATE = re.compile(
    rf"{DATE.pattern}|\d{{4}}/\d{{1,2}}(?:/\d{{1,2}}(?: .*)?)?|\d{{1,2}}-\d{{1,2}}-\d{{4}}(?: .*)?|"
    rf"\d{{1,2}}:\d\d(?::\d\d.*)?|(?:\w{{3,9}},? )?\d{{1,2}}[ -]{MONTH}[ -,]+\d{{2,4}}(?: .*)?|"
    rf"{MONTH} \d{{1,2}},? \d{{4}}(?: .*)?",
    re.ASCII | re.IGNORECASE,
)


class Column(NamedTuple):
    """What one column of a table is, and how it becomes numbers.

    Attributes:
        name: of the column in the file.
        role: what it is; `number`, `category` and `text` are used, all others are left out.
        style: how the numbers of a column of text are written.
        centre, scale: numbers are moved and divided by these; missing ones are at the centre, the median.
        missing: whether missing values get a column of their own.
        categories: the values that get a column each.
        others: whether all other values share a column.
        example: a cell, for messages.
    """

    name: str
    role: Role
    style: Style = Style()
    centre: float = 0.0
    scale: float = 1.0
    missing: bool = False
    categories: tuple[str, ...] = ()
    others: bool = False
    example: str = ""

    def width(self) -> int:
        """How many columns of the matrix it becomes."""
        if self.role == "number":
            return 1 + self.missing
        return len(self.categories) + self.others + self.missing if self.role == "category" else 0


class Matrix(NamedTuple):
    """A table as numbers, and the cells that were malformed, by column: a mask over the rows."""

    features: Float32[np.ndarray, "n d"]
    malformed: dict[str, Bool[np.ndarray, " n"]]


def settle_columns(
    frame: pd.DataFrame, labels: Any, *, drop: Collection[str] = (), keep: Collection[str] = (), separator: str = ","
) -> list[Column]:
    """What each column of a table is.

    Args:
        frame: columns of text as written, or of types; without the labels.
        labels: (n,); a column with one value for each label is a copy of them, and left out.
        drop: columns to leave out.
        keep: columns to use, although they look like identifiers, constants or copies.
        separator: of the file, by which numbers with commas are read.
    """
    places = pd.factorize(pd.Series(labels))[0]
    found = []
    for name, values in frame.items():
        column = str(name)
        if column in drop:
            found.append(Column(column, "dropped"))
            continue
        found.append(_column(column, values, places, column in keep, separator))
    if not any(column.role in ("number", "category", "text") for column in found):
        found = [_phrases(column, frame[column.name]) for column in found]
    return found


def array_columns(array: Float[np.ndarray, "n d"]) -> list[Column]:
    """The columns of a matrix of finite numbers, constant ones too."""
    centres, scales = array.mean(axis=0, dtype=np.float64), array.std(axis=0, dtype=np.float64)
    pairs = zip(centres.tolist(), scales.tolist(), strict=True)
    return [Column(f"X[{i}]", "number", centre=c, scale=s or 1.0) for i, (c, s) in enumerate(pairs)]


def scaled_array(columns: Sequence[Column], array: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """A matrix of finite numbers on the scale of `array_columns`."""
    centre, scale = (np.array(figures) for figures in zip(*((c.centre, c.scale) for c in columns), strict=True))
    return np.clip((array - centre) / scale, -FARTHEST, FARTHEST).astype(np.float32)


def number_columns(frame: pd.DataFrame) -> list[Column]:
    """All columns of a frame of numbers as such, constant ones too."""
    nothing = np.zeros(0, int)
    return [_numeric(str(c), Style(), typed_numbers(v.to_numpy()), nothing, keep=True) for c, v in frame.items()]


def number_column(name: str, values: pd.Series, separator: str) -> Column | None:
    """What a column of text is, where it holds numbers; None elsewhere."""
    column = _column(name, values, np.zeros(0, int), True, separator)
    return column if column.role == "number" else None


def _column(name: str, values: pd.Series, labels: np.ndarray, keep: bool, separator: str) -> Column:
    kind = values.dtype
    if pd.api.types.is_datetime64_any_dtype(kind) or pd.api.types.is_timedelta64_dtype(kind):
        return Column(name, "date", example=str(values.iloc[0]))
    if pd.api.types.is_numeric_dtype(kind):
        return _numeric(name, Style(), _typed(values), labels, keep)
    if pd.api.types.is_object_dtype(kind) and any(not isinstance(value, str) for value in values.dropna().head(100)):
        return Column(name, "nested", example=type(values.dropna().iloc[0]).__name__)
    plain = plain_numbers(values)
    if plain is not None and not np.isnan(plain.values).all():
        return _numeric(name, Style(), plain, labels, keep)
    column = cells(values)
    counts = _counts(column, NO_CELL)
    example = next(iter(counts), "")
    if not counts or (len(counts) == 1 and column.total(NO_CELL) == 0):
        return Column(name, "category", categories=tuple(counts)) if keep else Column(name, "constant", example=example)
    dated = sum(n for text, n in counts.items() if WRITTEN_DATE.fullmatch(text))
    if dated >= 0.95 * sum(counts.values()):
        return Column(name, "date", example=example)
    style = style_of(column, separator)
    if style is not None:
        return _numeric(name, style, numbers_in(column, style), labels, keep)
    return _words(name, column, counts, labels, keep)


def _counts(column: Cells, missing: Collection[str]) -> dict[str, int]:
    """How often each value occurs, of those that are not missing."""
    pairs = zip(column.texts, column.counts.tolist(), strict=True)
    return {text: n for text, n in pairs if n and text not in missing}


def _numeric(name: str, style: Style, found: Numbers, labels: np.ndarray, keep: bool) -> Column:
    known = ~np.isnan(found.values)
    values = found.values[known]
    example = f"{values[0]:g}" if len(values) else ""
    same = not len(values) or values.min() == values.max()
    if not keep:
        if same and (known.all() or not len(values)):
            return Column(name, "constant", example=example)
        if known.all() and len(values) >= ENOUGH and np.all(values == np.round(values)):
            unique = len(np.unique(values))
            if np.all(np.diff(values) > 0) or (NAMED.fullmatch(name) and unique >= MOSTLY * len(values)):
                return Column(name, "identifier", example=example)
        if _copies(pd.factorize(found.values)[0], labels):
            return Column(name, "copy", example=example)
    centre = float(np.median(values)) if len(values) else 0.0
    scale = float(np.std(np.where(known, found.values, centre) - centre))
    return Column(name, "number", style, centre, scale or 1.0, missing=not known.all(), example=example)


def _copies(values: np.ndarray, labels: np.ndarray) -> bool:
    """Whether each value goes with one label, and each label with one value."""
    if len(labels) < ENOUGH or (count := labels.max() + 1) < 2 or values.max() + 1 != count or values.min() < 0:
        return False
    pairs = np.unique(values * np.int64(count) + labels)
    return len(pairs) == count and 2 * count <= len(labels)


def _words(name: str, column: Cells, counts: dict[str, int], labels: np.ndarray, keep: bool) -> Column:
    total, example = sum(counts.values()), next(iter(counts))
    words = sum(n * (text.count(" ") + 1) for text, n in counts.items()) / total
    if len(counts) > 0.5 * total and words >= SENTENCE:
        return Column(name, "text", example=example)
    frequent = sum(n for n in counts.values() if n >= RARE)
    if not keep and total >= ENOUGH:
        if len(counts) >= MOSTLY * total and (NAMED.fullmatch(name) or len(counts) == total):
            return Column(name, "identifier", example=example)
        if frequent < 0.1 * total:
            return Column(name, "identifier", example=example)
        if not column.total(NO_CELL) and _copies(pd.factorize(column.codes)[0], labels):
            return Column(name, "copy", example=example)
    by_count = sorted(counts, key=lambda text: (-counts[text], text))
    kept = [text for text in by_count if counts[text] >= RARE][: MOST_CATEGORIES - 1]
    if len(by_count) - len(kept) <= 1 and len(by_count) <= MOST_CATEGORIES:
        kept = by_count
    return Column(
        name,
        "category",
        missing=column.total(NO_CELL) > 0,
        categories=tuple(sorted(kept)),
        others=len(kept) < len(by_count),
        example=example,
    )


def _phrases(column: Column, values: pd.Series) -> Column:
    """A column of phrases that all differ, which is text where no other column is of use."""
    if column.role != "identifier" or pd.api.types.is_numeric_dtype(values.dtype):
        return column
    words = values.astype(str).str.count(r"\S+").mean()
    return column._replace(role="text") if words >= PHRASE else column


def matrix_of(columns: Sequence[Column], frame: pd.DataFrame) -> Matrix:
    """The rows of a table as numbers on the scale of the table that the columns were settled by.

    Args:
        columns: as `settle_columns` returns them.
        frame: it has those of them that are used.
    """
    matrix = np.zeros((len(frame), sum(column.width() for column in columns)), np.float32)
    malformed, start = {}, 0
    for column in columns:
        if not column.width():
            continue
        part = matrix[:, start : (start := start + column.width())]
        values: Any = frame[column.name]
        if column.role == "category":
            _place(column, cells(values), part)
            continue
        found = numbers_of(column, values)
        known = ~np.isnan(found.values)
        part[:, 0] = np.where(known, _scaled(column, found.values), 0.0)
        if column.missing:
            part[:, 1] = ~known
        if found.malformed.any():
            malformed[column.name] = found.malformed
    return Matrix(matrix, malformed)


def numbers_of(column: Column, values: pd.Series) -> Numbers:
    """The numbers of a column that was settled, on their own scale."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        return _typed(values)
    plain = plain_numbers(values) if column.style == Style() else None
    return numbers_in(cells(values), column.style) if plain is None else plain


def _typed(values: pd.Series) -> Numbers:
    return typed_numbers(values.to_numpy(np.float64, na_value=np.nan))


def _scaled(column: Column, values: Float64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    with np.errstate(over="ignore"):
        return np.clip((values - column.centre) / column.scale, -FARTHEST, FARTHEST)


def _place(column: Column, found: Cells, part: Float32[np.ndarray, "n d"]) -> None:
    """1 in the column of each cell's value; values without a column share one, or get none."""
    places = {text: i for i, text in enumerate(column.categories)}
    other = len(places) if column.others else -1
    absent = len(places) + column.others if column.missing else -1
    chosen = np.array([absent if text in NO_CELL else places.get(text, other) for text in found.texts])[found.codes]
    rows = np.flatnonzero(chosen >= 0)
    part[rows, chosen[rows]] = 1


def names_of(columns: Sequence[Column]) -> list[str]:
    """The names of the columns of the matrix."""
    return [name for column in columns for name in _names(column)]


def _names(column: Column) -> Iterator[str]:
    if not column.width():
        return
    if column.role == "number":
        yield column.name
    else:
        yield from (f"{column.name} = {value}" for value in column.categories)
        if column.others:
            yield f"{column.name} = any other"
    if column.missing:
        yield f"{column.name} is missing"
