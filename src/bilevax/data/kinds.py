"""What the columns of a user's files hold, decided once for all files of a command: numbers, text or classes.

A column that has text in one of the files is judged by its text in all of them. If every cell is a number, it holds
numbers; if nearly every cell is, the others are refused by name; otherwise it holds categories.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from bilevax._checks import InputError, listed
from bilevax.data.readers import TURN_DATES, Raw, number_text

MOST_CATEGORIES = 50
NEARLY_ALL = 0.8
NO_VALUE = frozenset({"", "nan", "NaN", "-nan", "-NaN", "<NA>", "#N/A", "#NA", "#N/A N/A", "1.#IND", "1.#QNAN"})
NO_NUMBER = frozenset(
    {"NA", "N/A", "n/a", "NULL", "null", "None"}
)  # missing in a column of numbers, a value in a column of text
NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.ASCII | re.IGNORECASE)
DIGITS = re.compile(r"\d+", re.ASCII)
PADDED = re.compile(r"0\d+", re.ASCII)
INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)
PUNCTUATED = re.compile(  # 1,234.5; 1 234; 12,34,567; 1.234,5; 0,5; $3.10; 45%
    r"[+-]?[$€£¥]?\s?[+-]?(?:\d{1,3}(?:[,' \u00a0\u202f]\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})*,\d{3}|"
    r"\d{1,3}(?:\.\d{3})+(?:,\d+)?|\d+,\d+|\d+(?:\.\d+)?)\s?[%$€£¥]?",
    re.ASCII,
)
WITH_UNIT = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?\s?[^\W\d_]{1,5}", re.IGNORECASE)
DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}(?:[T ].*)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}(?: .*)?", re.ASCII)
ROWS = "rows are counted from 0, below the line of names"


class Cells(NamedTuple):
    """The distinct cells of a column of one file.

    Attributes:
        codes: the index into `texts` of each cell.
        texts: the distinct cells, stripped of blanks; "" for a cell without a value.
        counts: how often each occurs.
    """

    codes: Int[np.ndarray, " n"]
    texts: list[str]
    counts: Int[np.ndarray, " distinct"]

    def where(self, text: str) -> int:
        """The first row with this text."""
        return int(np.argmax(self.codes == self.texts.index(text)))

    def total(self, wanted: frozenset[str] | set[str]) -> int:
        """The number of cells with one of these texts."""
        return int(sum(n for text, n in zip(self.texts, self.counts.tolist(), strict=True) if text in wanted))


def cells(values: Any) -> Cells:
    """The distinct cells of a column, which is of text or of text and missing values."""
    codes, found = pd.factorize(values if isinstance(values, pd.Series) else pd.Series(values))
    texts = [text.strip() if isinstance(text, str) else str(text) for text in [*found.tolist(), ""]]
    unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([unique[text] for text in texts])[codes]  # the sentinel -1 is the last, ""
    return Cells(codes, list(unique), np.bincount(codes, minlength=len(unique)))


def settle_features(raws: Sequence[Raw]) -> list[tuple[pd.DataFrame, dict[str, int], list[str]]]:
    """For each file: its columns as numbers or text, the missing cells of its text columns, and notes.

    Missing numbers are NaN.

    Raises:
        InputError: a column holds numbers except for a few cells, numbers with punctuation or units, or dates.
    """
    text = [{c for c, kind in raw.features.dtypes.items() if not _holds_numbers(kind)} for raw in raws]
    everywhere = list(
        dict.fromkeys(c for raw, found in zip(raws, text, strict=True) for c in raw.features if c in found)
    )
    settled: list[dict[str, np.ndarray]] = [{} for _ in raws]
    missing: list[dict[str, int]] = [{} for _ in raws]
    notes: list[list[str]] = [[] for _ in raws]
    written = []
    for raw, found in zip(raws, text, strict=True):
        columns = [c for c in everywhere if c in raw.features.columns and c not in found]
        written.append(raw.as_text(columns) if columns else raw.features[[]])
    for column in everywhere:
        places = [i for i, raw in enumerate(raws) if column in raw.features.columns]
        parts = [cells((raws[i].features if column in text[i] else written[i])[column]) for i in places]
        numeric = _are_numbers(column, [raws[i].name for i in places], parts)
        for i, part in zip(places, parts, strict=True):
            if numeric:
                values = [np.nan if text in NO_VALUE | NO_NUMBER else float(text) for text in part.texts]
                settled[i][column] = np.array(values)[part.codes]
                if raws[i].typed and column in text[i] and not part.total(NO_VALUE | NO_NUMBER):
                    notes[i].append(
                        f"Column {column!r} of {raws[i].name} is stored as text, and all its cells are numbers: "
                        "it is read as numbers."
                    )
                continue
            if count := part.total(NO_VALUE):
                missing[i][column] = count
            settled[i][column] = np.array(part.texts, dtype=object)[part.codes]
            if words := [text for text in part.texts if text in NO_NUMBER and part.total({text})]:
                notes[i].append(
                    f"Column {column!r} of {raws[i].name} has cells that read {listed(words)}: they are "
                    "read as values, not as missing."
                )
    frames = [_replaced(raw.features, columns) for raw, columns in zip(raws, settled, strict=True)]
    return list(zip(frames, missing, notes, strict=True))


def _replaced(frame: pd.DataFrame, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """The frame with these columns replaced, in its order; one block of memory per dtype."""
    if not columns:
        return frame
    parts = [frame.drop(columns=list(columns))]
    for dtype in (np.dtype(float), np.dtype(object)):
        chosen = [c for c, values in columns.items() if values.dtype == dtype]
        if chosen:
            parts.append(pd.DataFrame(np.stack([columns[c] for c in chosen], axis=1), columns=chosen, dtype=dtype))
    new = pd.concat(parts, axis=1)
    return new if list(new.columns) == list(frame.columns) else new.reindex(columns=list(frame.columns))


def _holds_numbers(kind: object) -> bool:
    return isinstance(kind, np.dtype) and kind.kind in "biuf"


def _are_numbers(column: str, names: list[str], parts: list[Cells]) -> bool:
    """Whether a column that has text in some file holds numbers; raises where that is ambiguous."""
    counts: dict[str, int] = {}
    for part in parts:
        for text, n in zip(part.texts, part.counts.tolist(), strict=True):
            counts[text] = counts.get(text, 0) + n
    nul = [text for text in counts if "\0" in text]
    if nul:
        raise InputError(
            f"Column {column!r} of {_first_with(names, parts, nul)} holds NUL bytes (such as {nul[0]!r}). The file is "
            "damaged, or not UTF-8 text: save it again."
        )
    numbers = {text for text in counts if NUMBER.fullmatch(text)}
    others = [text for text in counts if text not in numbers and text not in NO_VALUE and text not in NO_NUMBER]
    if all(DIGITS.fullmatch(text) for text in numbers) and any(PADDED.fullmatch(text) for text in numbers):
        return False  # codes, such as 01, 02, A1
    if not others:
        return True
    if all(DATE.fullmatch(text) for text in others) and not numbers:
        raise InputError(
            f"Column {column!r} of {_first_with(names, parts, others)} holds dates or times (such as {others[0]!r}). "
            f"{TURN_DATES}"
        )
    punctuated = [text for text in others if PUNCTUATED.fullmatch(text)]
    if len(punctuated) == len(others):
        raise InputError(
            f"Column {column!r} of {_first_with(names, parts, others)} holds numbers with other characters (such as "
            f"{others[0]!r}). Write them with a decimal point, without thousands separators, currency or percent "
            "signs. If they are codes, put a letter before each."
        )
    if all(WITH_UNIT.fullmatch(text) for text in others) and len(counts) > MOST_CATEGORIES:
        raise InputError(
            f"Column {column!r} of {_first_with(names, parts, others)} holds numbers with a unit (such as "
            f"{others[0]!r}). Write the unit in the column's name instead."
        )
    if not numbers:
        return False
    every = {*others}
    # All files together, and the first one, the training file, by itself: the others may repeat its cells.
    shares = [(sum(counts[text] for text in numbers), sum(counts[text] for text in others))]
    shares.append((parts[0].total(numbers), parts[0].total(every)))
    if any((good and good >= NEARLY_ALL * (good + bad)) or (bad == 1 and good >= 3) for good, bad in shares):
        bad = shares[0][1]
        places = [
            f"{text!r} (row {part.where(text)} of {name})"
            for name, part in zip(names, parts, strict=True)
            for text in part.texts
            if text in every
        ]
        raise InputError(
            f"Column {column!r} holds numbers except for {bad} {'cell' if bad == 1 else 'cells'}: "
            f"{listed(places, quote=False)}; {ROWS}. Write numbers there or drop those rows. If the column holds "
            "codes, put a letter before each."
        )
    return False


def _first_with(names: list[str], parts: list[Cells], texts: Sequence[str]) -> str:
    return next(name for name, part in zip(names, parts, strict=True) if set(texts) & set(part.texts))


def settle_classes(raws: Sequence[Raw]) -> list[tuple[Shaped[np.ndarray, " n"], int, list[str]]]:
    """For each file: its labels, their number of missing values, and notes.

    Labels are whole numbers (int64), truth values or text, the same in all files.

    Raises:
        InputError: they are fractions, which are quantities and not classes.
    """
    if all(_holds_numbers(getattr(raw.labels, "dtype", None)) for raw in raws):
        return [(*_whole(raw, np.asarray(raw.labels)), []) for raw in raws]
    parts = [cells(number_text(raw.labels) if _holds_numbers(raw.labels.dtype) else raw.labels) for raw in raws]
    found = {text for part in parts for text in part.texts} - NO_VALUE
    words = found - NO_NUMBER
    if words and all(NUMBER.fullmatch(text) for text in words):
        integers = all(INTEGER.fullmatch(text) for text in words)
        if integers and all(abs(int(text)) < 2**63 for text in words):
            return [(_filled(part, int, NO_VALUE | NO_NUMBER), part.total(NO_VALUE | NO_NUMBER), []) for part in parts]
        if not integers and not any(PADDED.fullmatch(text) for text in words):
            values = [_filled(part, float, NO_VALUE | NO_NUMBER) for part in parts]
            lacking = [part.total(NO_VALUE | NO_NUMBER) for part in parts]
            whole = [_whole(raw, labels) for raw, labels in zip(raws, values, strict=True)]
            return [(labels, max(n, m), []) for (labels, n), m in zip(whole, lacking, strict=True)]
    if words and {text.lower() for text in found} <= {"true", "false"}:
        return [
            (_filled(part, lambda text: text.lower() == "true", NO_VALUE).astype(bool), part.total(NO_VALUE), [])
            for part in parts
        ]
    settled = []
    for raw, part in zip(raws, parts, strict=True):
        absent = NO_VALUE if words else NO_VALUE | NO_NUMBER
        kept = [text for text in part.texts if text in NO_NUMBER and part.total({text})] if words else []
        notes = [f"{raw.name} has labels that read {listed(kept)}: they are read as classes."] if kept else []
        settled.append((np.array(part.texts, dtype=object)[part.codes], part.total(absent), notes))
    return settled


def _filled(part: Cells, convert: Callable[[str], float], absent: frozenset[str]) -> Shaped[np.ndarray, " n"]:
    """The converted cells; missing ones become 0, and are counted and refused elsewhere."""
    return np.array([0 if text in absent else convert(text) for text in part.texts])[part.codes]


def _whole(raw: Raw, labels: Shaped[np.ndarray, " n"]) -> tuple[Shaped[np.ndarray, " n"], int]:
    """Labels as whole numbers, and how many are missing or infinite."""
    if labels.dtype.kind != "f":
        return labels, 0
    finite = np.isfinite(labels)
    fractions = labels[finite & (labels != np.round(labels))]
    if len(fractions):
        raise InputError(
            f"{raw.name}: the target holds fractions (such as {fractions[0]:g}), so it is a quantity and not a label. "
            "Pass a column of classes as --target."
        )
    if np.any(np.abs(labels[finite]) >= 2**53):
        raise InputError(
            f"{raw.name}: the target holds numbers as large as {np.abs(labels[finite]).max():g}, so it is a quantity "
            "and not a label. Pass a column of classes as --target."
        )
    return np.where(finite, labels, 0).astype(np.int64), int(np.sum(~finite))


def settle_quantities(raws: Sequence[Raw]) -> list[tuple[Float[np.ndarray, " n"], int, list[str]]]:
    """For each file: its labels as float64, how many are missing or infinite, and notes (none).

    Raises:
        InputError: some of them are text.
    """
    settled = []
    for raw in raws:
        labels = raw.labels
        if not _holds_numbers(getattr(labels, "dtype", None)):
            part = cells(labels)
            truth = {"true": "1", "false": "0"}
            absent = NO_VALUE | NO_NUMBER
            if {text.lower() for text in part.texts} - {""} <= truth.keys():
                part = part._replace(texts=[truth.get(text.lower(), "") for text in part.texts])
            bad = [text for text in part.texts if text not in absent and not NUMBER.fullmatch(text)]
            if bad:
                places = [f"{text!r} (row {part.where(text)})" for text in bad]
                raise InputError(
                    f"{raw.name}: the target holds text (such as {listed(places[:3], quote=False)}; {ROWS}), and a "
                    "quantity is needed. Correct those rows, pass a column of numbers as --target, or leave out "
                    "--lasso to tune a classifier."
                )
            labels = np.array([np.nan if text in absent else float(text) for text in part.texts])[part.codes]
        labels = np.asarray(labels, np.float64)
        settled.append((labels, int(np.sum(~np.isfinite(labels))), []))
    return settled
