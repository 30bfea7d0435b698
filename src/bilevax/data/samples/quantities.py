"""Whether the target of a review is a quantity, and its numbers in all files."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from bilevax._checks import InputError
from bilevax.data.samples.columns import Column, number_column, numbers_of
from bilevax.data.samples.content import Content
from bilevax.data.samples.labels import SMALL, Labels
from bilevax.data.samples.numbers import Style
from bilevax.data.samples.targets import numbers_as_labels

FEW_OF_EACH = 5  # samples of each whole number, below which the numbers are no classes


class Quantities(NamedTuple):
    """The target of a review as numbers.

    Attributes:
        labels: of each file.
        style: how the first file writes them.
    """

    labels: list[Labels]
    style: Style


def settle_quantities(contents: Sequence[Content], wanted: bool | None, strict: bool) -> Quantities | None:
    """The numbers of the target; None where it holds classes.

    Fractions are a quantity. Whole numbers are one where more than 20 are different, with fewer than five samples of
    each, unless they count the samples.

    Args:
        contents: of TRAIN, and of the trusted file where there is one.
        wanted: whether the target is a quantity; None finds it out.
        strict: whether cells that hold no number are refused, and not left out with a note.

    Raises:
        InputError: a quantity is wanted, and the target holds words; another file holds words; all numbers are equal.
    """
    first = contents[0]
    if wanted is False:
        return None
    column = _column(first)
    if column is None:
        if wanted:
            raise InputError(
                f"{first.name}: the target {first.target or 'of the folders'!r} does not hold numbers, and --kind "
                "quantity needs them. Check --target, or pass --kind classes."
            )
        return None
    found = [numbers_of(column, content.labels) for content in contents]
    values = found[0].values[~np.isnan(found[0].values)]
    why = _reason(values)
    if wanted is None and not why:
        return None
    labels = [numbers_as_labels(content, one, strict) for content, one in zip(contents, found, strict=True)]
    said = f"The target of {first.name} is reviewed as a quantity: {why}. Pass --kind classes to review classes."
    labels[0] = labels[0]._replace(notes=(*labels[0].notes, *([said] if wanted is None else [])))
    return Quantities(labels, column.style)


def note_on_classes(content: Content) -> str | None:
    """A note where many whole numbers are read as classes."""
    column = _column(content)
    if column is None:
        return None
    values = numbers_of(column, content.labels).values
    different = len(np.unique(values[~np.isnan(values)]))
    if different <= SMALL:
        return None
    return (
        f"The target of {content.name} holds {different:,} different whole numbers, which are read as classes. Pass "
        "--kind quantity to review a quantity."
    )


def _column(content: Content) -> Column | None:
    """How the target writes its numbers; None where it holds words or truth values."""
    values = content.labels
    if pd.api.types.is_bool_dtype(values.dtype):
        return None
    if pd.api.types.is_numeric_dtype(values.dtype):
        return Column(str(values.name), "number")
    return number_column(str(values.name), values, content.records.separator)


def _reason(values: Float64[np.ndarray, " n"]) -> str:
    """Why numbers are a quantity; empty where they are classes."""
    if np.any(values != np.round(values)):
        return "it has fractions"
    unique = np.unique(values)
    counts_samples = len(unique) == len(values) and unique[-1] - unique[0] == len(unique) - 1
    if len(unique) > SMALL and len(unique) * FEW_OF_EACH > len(values) and not counts_samples:
        return f"it has {len(unique):,} different whole numbers in {len(values):,} samples"
    return ""
