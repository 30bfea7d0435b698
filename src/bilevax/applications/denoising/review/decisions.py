"""Decisions about suspects: exported from the review page, or made automatically above a probability."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from bilevax._checks import InputError, listed, require_number, short_reason
from bilevax.data.archives import check_regular

if TYPE_CHECKING:
    import pandas as pd

Word = Literal["keep", "correct", "drop"]
WORDS: tuple[Word, ...] = get_args(Word)
REQUIRED = ("row", "given_label", "decision", "label", "data")
COLUMNS = ("row", "line", "id", *REQUIRED[1:])
LONGEST_CELL = 1 << 28  # characters
GUARD = re.compile(r"'(?='*[=+@\t\r-])")  # before text that a spreadsheet would run as a formula


class Decision(NamedTuple):
    """What is done with one sample.

    Attributes:
        row: of the sample in its file, counted from 0 without the line of names.
        given: the label in the file.
        word: `keep` the label, `correct` it, or `drop` the sample.
        label: the label that the sample gets; that in the file where it is kept, empty where it is dropped.
        line: of the sample in its file, counted from 1; None where a file has no lines.
        identifier: of the sample; None where there is none.
    """

    row: int
    given: str
    word: Word
    label: str
    line: int | None = None
    identifier: str | None = None


class Decisions(NamedTuple):
    """Decisions about the samples of one file or folder.

    Attributes:
        name: how messages call them.
        digest: of the data that they are about, as `short_digest` gives it.
        items: at most one for each row.
    """

    name: str
    digest: str
    items: tuple[Decision, ...]


def short_digest(digest: str) -> str:
    """A SHA-256 as pages and decisions name it: its beginning, with letters before it, so that it stays text.

    Example:
        >>> short_digest("12345e6789012345" + 48 * "0")
        'sha256:12345e6789012345'
    """
    return f"sha256:{digest.removeprefix('sha256:')[:16]}"


def read_decisions(path: Path, name: str = "--apply") -> Decisions:
    r"""The decisions in a CSV file that a review page exported; separators and quoting may be a spreadsheet's.

    Args:
        path: of the file, with the columns row, given_label, decision, label and data, and possibly line and id.
        name: how messages call it.

    Raises:
        InputError: it is not such a file, has a row twice or a decision that is none of keep, correct and drop, lacks
            the label of a correction, or is about several data sets.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "decisions.csv")
        ...     _ = path.write_text("row,given_label,decision,label,data\n7,cat,correct,dog,sha256:1f2e\n")
        ...     read_decisions(path).items
        (Decision(row=7, given='cat', word='correct', label='dog', line=None, identifier=None),)
    """
    name = f"{name} ({path})"
    check_regular(path, name, "Pass the CSV file that the review page exports.")
    header, records = _records(path, name)
    missing = [column for column in REQUIRED if column not in header]
    if missing:
        raise InputError(
            f"{name} lacks the columns {listed(missing)}. Pass the CSV file that the review page exports, with all "
            "of its columns."
        )
    digests, items, seen = dict[str, int](), [], dict[int, int]()
    for line, record in records:
        cells = {name: _unguarded(cell) for name, cell in zip(header, record, strict=False)}
        digests.setdefault(cells.get("data", "").strip(), line)
        decision = _decision(cells, f"{name}, line {line}")
        if decision.row in seen:
            raise InputError(
                f"{name} has two decisions about row {decision.row}, in lines {seen[decision.row]} and {line}. Remove "
                "one of them."
            )
        seen[decision.row] = line
        items.append(decision)
    if not items:
        raise InputError(f"{name} has no decisions below the line of names. Decide about some suspects first.")
    if len(digests) > 1 or "" in digests:
        lines = ", ".join(f"{digest or 'nothing'} (line {line})" for digest, line in digests.items())
        raise InputError(
            f"{name} must name one data set in its column data, and names {lines}. Export it again; do not change that "
            "column."
        )
    return Decisions(name, next(iter(digests)), tuple(items))


def _records(path: Path, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the records with the line where each ends."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text. Save it as CSV in UTF-8.") from error
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        for separator in ",;\t":
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            records = [(reader.line_num, record) for record in reader if any(map(str.strip, record))]
            if records and "decision" in (header := [column.strip() for column in records[0][1]]):
                if twice := {column for column in COLUMNS if header.count(column) > 1}:
                    raise InputError(f"{name} has more than one column {listed(sorted(twice))}. Remove one.")
                return header, records[1:]
    except csv.Error as error:
        raise InputError(f"{name} cannot be read as CSV: {short_reason(error)}. Export it again.") from error
    finally:
        csv.field_size_limit(limit)
    raise InputError(f"{name} has no column 'decision'. Pass the CSV file that the review page exports.")


def _unguarded(cell: str) -> str:
    return cell[1:] if GUARD.match(cell) else cell


def _decision(cells: dict[str, str], where: str) -> Decision:
    missing = [column for column in REQUIRED if column not in cells]
    if missing:
        raise InputError(f"{where} has no cell for {listed(missing)}. Export the decisions again.")
    said = cells["decision"].strip().lower()
    word: Word | None = next((known for known in WORDS if known == said), None)
    if word is None:
        raise InputError(f"{where}: the decision is {cells['decision']!r}, and must be one of {listed(WORDS)}.")
    given, label = cells["given_label"].strip(), cells["label"].strip()
    if word == "correct" and not label:
        raise InputError(f"{where}: the decision is to correct, and the label is empty. Fill it, or drop the sample.")
    if word == "keep" and label not in ("", given):
        raise InputError(
            f"{where}: the decision is to keep {given!r}, and the label is {label!r}. Write "
            "correct, or empty the label."
        )
    return Decision(
        _row(cells["row"], where),
        given,
        word,
        {"keep": given, "correct": label, "drop": ""}[word],
        _row(cells["line"], where, "line") if cells.get("line", "").strip() else None,
        cells.get("id") or None,
    )


def _row(cell: str, where: str, column: str = "row") -> int:
    if not re.fullmatch(r"\s*[0-9]{1,15}(\.0+)?\s*", cell):
        raise InputError(f"{where}: the {column} is {cell!r}, and must be a whole number, counted from 0.")
    return int(float(cell))


def automatic_decisions(suspects: "pd.DataFrame", above: float | None, digest: str) -> Decisions:
    """Corrections of all suspects, or of those whose label is wrong with a probability above a threshold.

    Args:
        suspects: with the columns row, given_label, suggested_label and probability_wrong, and possibly line and id.
        above: the threshold, in 0..1; None for none.
        digest: of the data, as `Source.digest`.

    A suspect whose suggested label is the given one is left as it is.

    Raises:
        InputError: a column is missing, a row occurs twice, or the threshold is not in 0..1.

    Example:
        >>> import pandas as pd
        >>> columns = ["row", "given_label", "suggested_label", "probability_wrong"]
        >>> suspects = pd.DataFrame([[7, "cat", "dog", 0.97], [2, "dog", "cat", 0.6]], columns=columns)
        >>> [(one.row, one.label) for one in automatic_decisions(suspects, 0.9, 64 * "0").items]
        [(7, 'dog')]
    """
    above = None if above is None else require_number("automatic_decisions", "above", above)
    if above is not None and not 0 <= above <= 1:
        raise InputError(f"--above is {above:g}, and must be a probability in 0..1, such as 0.9.")
    columns = ("row", "given_label", "suggested_label", "probability_wrong")
    if missing := [column for column in columns if column not in suspects.columns]:
        raise InputError(f"The suspects lack the columns {listed(missing)}. Pass those of a review.")
    if twice := [row for row, n in Counter(suspects["row"].tolist()).items() if n > 1]:
        raise InputError(f"Row {twice[0]} occurs twice among the suspects. Pass each row once.")
    chosen = suspects if above is None else suspects.loc[suspects["probability_wrong"] > above]
    rows, given, suggested = (chosen[column].tolist() for column in columns[:3])
    lines, identifiers = (_optional(chosen, column) for column in ("line", "id"))
    items = [
        Decision(int(row), str(old), "correct", str(new), None if line is None else int(line), identifier)
        for row, old, new, line, identifier in zip(rows, given, suggested, lines, identifiers, strict=True)
        if str(old) != str(new)
    ]
    name = "--apply auto" if above is None else f"--apply auto --above {above:g}"
    return Decisions(name, short_digest(digest), tuple(items))


def _optional(frame: "pd.DataFrame", column: str) -> Sequence:
    """A column whose missing cells are None; all are where there is no such column."""
    if column not in frame.columns:
        return [None] * len(frame)
    return frame[column].astype(object).where(frame[column].notna(), None).tolist()
