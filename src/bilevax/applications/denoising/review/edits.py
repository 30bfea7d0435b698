"""What is changed in a data set, checked against what it holds."""

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from bilevax._checks import InputError, listed, suggestion
from bilevax.data.kinds import NUMBER
from bilevax.data.samples.numbers import LARGEST, Style, number_of


class Edits(NamedTuple):
    """Changes of a data set by row.

    Attributes:
        name: how messages call the decisions.
        given: the label that each row is said to have.
        labels: new labels.
        dropped: rows to leave out.
        identifiers: of rows that have one.
        numbers: how the numbers are written where the labels are quantities; None for classes.
    """

    name: str
    given: dict[int, str]
    labels: dict[int, str]
    dropped: set[int]
    identifiers: dict[int, str]
    numbers: Style | None = None


def text_of(value: Any) -> str:
    """A label as text, as reviews name it: without blanks around it, a whole number without a point.

    Example:
        >>> [text_of(value) for value in (" cat", 3.0, np.int8(3), True, None)]
        ['cat', '3', '3', 'True', '']
    """
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ""
    if isinstance(value, float | np.floating) and value == int(value):
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(value).strip()


def is_same(label: str, text: str) -> bool:
    """Whether a text of a file means a label: 3 may be written 3.0 there, and True as true."""
    if label == text:
        return True
    if NUMBER.fullmatch(label) and NUMBER.fullmatch(text):
        return float(label) == float(text)
    return label.lower() in ("true", "false") and label.lower() == text.lower()


def settled(edits: Edits, counts: Counter[Any], values: Iterable[tuple[int, Any]], where: str) -> dict[int, Any]:
    """The new values of the rows whose label changes, as the file writes that class.

    Args:
        edits: the changes.
        counts: the values of the labels in the file, and how often each occurs.
        values: rows with their values in the file, all of `edits.given` at least.
        where: how messages call the file.

    Raises:
        InputError: a row has another label than its decision says, or gets a label that no row of the file has; a
            quantity becomes what is no number, or none of the type of the file.
    """
    for row, value in values:
        given = edits.given.get(row)
        if given is not None and not is_same(given, text_of(value)):
            raise InputError(
                f"{edits.name}: row {row} is said to have the label {given!r}, and has {text_of(value)!r} in {where}. "
                "Review the data again, or check the row."
            )
    if edits.numbers is not None:
        types = {type(value) for value in counts if value is not None}
        return {row: _quantity(edits, row, label, types, where) for row, label in edits.labels.items()}
    common = sorted(counts, key=lambda value: -counts[value])
    found: dict[str, Any] = {}
    for row, label in edits.labels.items():
        if label not in found:
            exact = [value for value in common if text_of(value) == label]
            alike = exact or [value for value in common if is_same(label, text_of(value))]
            if not alike or not label:
                names = sorted({text_of(value) for value in counts} - {""})
                raise InputError(
                    f"{edits.name}: row {row} gets the label {label!r}, which is no class of {where}. Its classes are "
                    f"{listed(names)}.{suggestion(label, names)}"
                )
            found[label] = alike[0]
    return {row: found[label] for row, label in edits.labels.items()}


def _quantity(edits: Edits, row: int, label: str, types: set[type], where: str) -> Any:
    """A number as the file holds it: a text, or a number of its type."""
    assert edits.numbers is not None
    label += "%" * (edits.numbers.sign == "%" and not label.endswith("%"))
    value = number_of(label, edits.numbers)
    if not abs(value) <= LARGEST:
        raise InputError(
            f"{edits.name}: row {row} gets {label!r}, which is no number as the target of {where} is written. Write a "
            f"number with the decimal mark {edits.numbers.decimal!r}."
        )
    if str in types:
        return label
    if Decimal in types:
        return Decimal(repr(value))
    if types <= {int} and value != round(value):
        raise InputError(
            f"{edits.name}: row {row} gets {label!r}, and the target of {where} holds whole numbers. Round it."
        )
    return int(value) if types <= {int} else value
