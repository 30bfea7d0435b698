"""The target of a table to predict: classes, a quantity or counts, found out from its cells."""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from bilevax._checks import InputError
from bilevax.data.samples.columns import number_column, numbers_of
from bilevax.data.samples.content import Content
from bilevax.data.samples.labels import Labels, settle_labels
from bilevax.data.samples.numbers import Numbers, typed_numbers
from bilevax.data.samples.text import counted, in_lines

TargetKind = Literal["classes", "quantity", "counts"]
FEW, SHARE = 10, 0.1  # whole numbers are classes where so few, and so small a part of the samples, are different
LEAST_COUNTS = 5  # different values of counts


class Target(NamedTuple):
    """What the target of a table is.

    Attributes:
        labels: of the records that have one: classes as `settle_labels` returns them, else numbers.
        kind: what they are.
        why: the reason, in a few words.
    """

    labels: Labels
    kind: TargetKind
    why: str


def settle_target(content: Content, kind: TargetKind | None, strict: bool) -> Target:
    """The target of a file.

    Words and two different values are classes. Fractions are a quantity. Whole numbers are counts where they begin at 0
    and are skewed, as counts are; classes where at most 10 are different; else a quantity.

    Args:
        content: of the file.
        kind: what the target is; None finds it out.
        strict: whether cells that hold no number are refused, and not left out with a note.

    Raises:
        InputError: the target cannot be of that kind, or is the same in all records.
    """
    found = numbers_of_target(content.labels, content.records.separator)
    if found is None:
        if kind in ("quantity", "counts"):
            raise InputError(
                f"{content.name}: the target {content.target!r} holds words, such as {_example(content.labels)!r}, and "
                "this loss needs numbers. Check --target, or choose --loss logistic for classes."
            )
        return Target(settle_labels([content])[0], "classes", "its values are words or truth values")
    values = found.values[~np.isnan(found.values)]
    guessed, why = kind_of(values)
    kind = guessed if kind is None else kind
    if kind == "classes":
        return Target(settle_labels([content])[0], kind, why)
    return Target(numbers_as_labels(content, found, strict), kind, why)


def numbers_of_target(values: pd.Series, separator: str) -> Numbers | None:
    """The numbers of a column; None where it holds words or truth values."""
    if pd.api.types.is_bool_dtype(values.dtype):
        return None
    if pd.api.types.is_numeric_dtype(values.dtype):
        return typed_numbers(values.to_numpy(np.float64, na_value=np.nan))
    column = number_column(str(values.name), values, separator)
    return None if column is None else numbers_of(column, values)


def kind_of(values: Float64[np.ndarray, " n"]) -> tuple[TargetKind, str]:
    """What finite numbers are, and why.

    Example:
        >>> import numpy as np
        >>> from bilevax.data.samples.targets import kind_of
        >>> kind_of(np.array([0.5, 2.25, 1.0]))
        ('quantity', 'it has fractions')
        >>> kind_of(np.array([0.0, 1.0, 1.0, 0.0]))
        ('classes', 'it has 2 different values')
    """
    unique, counts = np.unique(values, return_counts=True)
    whole = bool(np.all(values == np.round(values)))
    if len(unique) <= 2:
        return "classes", f"it has {counted(len(unique), 'different value')}"
    if not whole:
        return "quantity", "it has fractions"
    spread = f"whole numbers from {unique[0]:g} to {unique[-1]:g}"
    if unique[0] == 0 and len(unique) >= LEAST_COUNTS and _falls(counts):
        return "counts", f"{spread}, most of them small"
    if len(unique) <= FEW and len(unique) <= SHARE * len(values):
        return "classes", f"{spread}, {len(unique)} of them different"
    return "quantity", f"{spread}, {len(unique):,} of them different"


def _falls(counts: np.ndarray) -> bool:
    """Whether small values are far more frequent than large ones: half of the samples are in the lowest third."""
    return int(counts.argmax()) <= len(counts) // 3 and counts[: -(-len(counts) // 3)].sum() > 0.6 * counts.sum()


def numbers_as_labels(content: Content, found: Numbers, strict: bool) -> Labels:
    """The numbers of the records that have one.

    Raises:
        InputError: there are none, or all are equal; with `strict`, a cell holds something else.
    """
    present = ~np.isnan(found.values)
    notes = []
    if not present.any():
        raise InputError(f"{content.name} has no number in the target in any of its {len(present)} records.")
    if not present.all():
        lines = content.records.lines[~present].tolist()
        where = in_lines(lines) if content.records.encoding else f"the first is record {lines[0]}, from 0"
        bad = int(found.malformed.sum())
        if strict and bad:
            raise InputError(
                f"{content.name}: the target of {counted(bad, 'record')} is not a finite number. Correct those, or "
                "leave --strict out."
            )
        notes.append(
            f"{content.name} has {counted(len(lines), 'record')} without a number in the target ({where}): left out."
        )
    values = found.values[present]
    if values.min() == values.max():
        raise InputError(
            f"{content.name}: the target is {values[0]:g} in all records, so there is nothing to explain. Check "
            "--target."
        )
    return Labels(values, present, tuple(notes))


def _example(values: pd.Series) -> str:
    return next((str(value) for value in values.tolist() if isinstance(value, str)), str(values.iloc[0]))
