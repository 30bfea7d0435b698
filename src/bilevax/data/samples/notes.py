"""What was decided about the columns of a table, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from bilevax._checks import InputError, listed
from bilevax.data.kinds import Cells, cells
from bilevax.data.samples.columns import Column, numbers_of
from bilevax.data.samples.numbers import NO_CELL
from bilevax.data.samples.text import Records, counted, in_lines

SEVERAL = 5  # columns of one kind share a note beyond so many
LEFT_OUT = {
    "identifier": "identifiers",
    "date": "dates or times",
    "constant": "the same value in all rows",
    "copy": "a copy of the label, one value for each class",
    "nested": "neither numbers nor text",
}
KEPT = ("identifier", "copy")  # they may be features after all


def notes_on_columns(columns: Sequence[Column], name: str) -> list[str]:
    """Which columns were left out and why, and how others are read."""
    notes = []
    for role, content in LEFT_OUT.items():
        found = [column for column in columns if column.role == role]
        advice = " Pass --keep COLUMN to use it." if role in KEPT else ""
        if len(found) > SEVERAL:
            notes.append(f"{len(found):,} columns of {name} are left out: {content} ({listed(_names(found))}).")
            continue
        for column in found:
            example = f" (such as {column.example!r})" if column.example else ""
            notes.append(f"Column {column.name!r} of {name} is left out: {content}{example}.{advice}")
    if dropped := [column for column in columns if column.role == "dropped"]:
        notes.append(f"Left out as asked: {listed(_names(dropped))}.")
    if odd := [column for column in columns if column.role == "number" and column.style.decimal == ","]:
        notes.append(f"Read with decimal commas: {listed(_names(odd))}.")
    for column in columns:
        if mark := column.style.unit or column.style.sign:
            notes.append(f"Column {column.name!r} of {name} is read as numbers without {mark!r}.")
    if text := [column for column in columns if column.role == "category"]:
        sizes = [f"{c.name} ({len(c.categories)}{' and others' if c.others else ''} values)" for c in text]
        notes.append(f"One-hot encoded columns of text: {listed(sizes, quote=False)}.")
    if free := [column for column in columns if column.role == "text"]:
        notes.append(f"Read as free text: {listed(_names(free))}.")
    if missing := [column for column in columns if column.missing]:
        notes.append(f"Columns with missing values, each marked by a column of its own: {listed(_names(missing))}.")
    return notes


def notes_on_cells(
    malformed: dict[str, Bool[np.ndarray, " n"]],
    texts: dict[str, list[str]],
    records: Records,
    name: str,
    strict: bool,
) -> list[str]:
    """How many cells of each column are malformed, and are treated as missing.

    Args:
        malformed: by column.
        texts: the malformed cells of each column.
        records: of the file.
        name: of the file.
        strict: whether such a cell is an error.

    Raises:
        InputError: with `strict`, there is one.
    """
    counts = {column: int(mask.sum()) for column, mask in malformed.items()}
    if not counts:
        return []
    sentences = []
    for column, count in counts.items():
        shown = ", ".join(map(repr, dict.fromkeys(texts[column][:3])))
        lines = records.lines[malformed[column]].tolist()
        where = in_lines(lines) if records.encoding else f"the first in row {lines[0]}, from 0"
        plural = "cell is" if count == 1 else "cells are"
        sentences.append(f"Column {column!r} of {name}: {count:,} {plural} not a finite number ({shown}; {where})")
    if strict:
        raise InputError(f"{sentences[0]}. Correct them, or leave out --strict to treat them as missing.")
    if len(sentences) > SEVERAL:
        total, columns = sum(counts.values()), [f"{column}: {n:,}" for column, n in counts.items()]
        return [
            f"{name} has {total:,} cells that are not finite numbers ({listed(columns, quote=False)}): they are "
            "treated as missing."
        ]
    return [f"{sentence}: treated as missing." for sentence in sentences]


def _names(columns: Sequence[Column]) -> list[str]:
    return [column.name for column in columns]


def notes_on_new_cells(
    columns: Sequence[Column], frame: Any, malformed: Mapping[str, Bool[np.ndarray, " n"]], name: str
) -> list[str]:
    """How many cells of each column hold values that the columns do not know, or none where they always have one.

    Args:
        columns: as they were settled by other samples.
        frame: a data frame that has those of them that are used.
        malformed: cells that another note counts, by column.
        name: of the file.
    """
    notes = []
    for column in columns:
        if column.role == "number" and not column.missing:
            absent = np.isnan(numbers_of(column, frame[column.name]).values)
            count = int(np.sum(absent & ~malformed.get(column.name, np.zeros(len(frame), bool))))
            if count:
                notes.append(
                    f"Column {column.name!r} of {name} has {counted(count, 'missing value')}, and had none before: the "
                    "median is taken."
                )
        elif column.role == "category":
            notes += _unknown(column, cells(frame[column.name]), name)
    return notes


def _unknown(column: Column, found: Cells, name: str) -> list[str]:
    known = {*column.categories, *(NO_CELL if column.missing else ())}
    unknown = {text: n for text, n in zip(found.texts, found.counts.tolist(), strict=True) if n and text not in known}
    if not unknown:
        return []
    total, place = sum(unknown.values()), "one of its rare values" if column.others else "none of its values"
    shown = listed(list(unknown)[:3])
    plural = "value that is" if total == 1 else "values that are"
    return [f"Column {column.name!r} of {name} has {total:,} {plural} new ({shown}): taken as {place}."]
