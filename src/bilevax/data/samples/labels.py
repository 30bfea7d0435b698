"""The labels of samples to review: the same classes in all files, and which records have none."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from bilevax._checks import InputError, listed, suggestion
from bilevax.data.kinds import NUMBER, settle_classes
from bilevax.data.readers import Raw
from bilevax.data.samples.content import Content
from bilevax.data.samples.numbers import NO_CELL, NO_NUMBERS
from bilevax.data.samples.text import counted, in_lines

MOST_CLASSES = 0.5  # of the number of samples
SMALL = 20  # classes that are never too many


class Labels(NamedTuple):
    """The labels of the records that have one, which these are, and notes."""

    labels: Shaped[np.ndarray, " k"]
    present: Bool[np.ndarray, " n"]
    notes: tuple[str, ...]


def settle_labels(contents: Sequence[Content]) -> list[Labels]:
    """The labels of each file; the first is that of the samples to review.

    Raises:
        InputError: there are fewer than two classes, or about as many as samples; the target holds fractions; another
            file has classes that the first one lacks.
    """
    present = _present([content.labels for content in contents])
    for content, found in zip(contents, present, strict=True):
        if not found.any():
            raise InputError(f"{content.name} has no label in any of its {len(found)} records. Check --target.")
    raws = [
        Raw(content.name, pd.DataFrame(), content.labels[found], "", None, _no_text, typed=True)
        for content, found in zip(contents, present, strict=True)
    ]
    _require_no_quantity(contents[0].name, raws[0].labels)
    settled = []
    for content, found, (labels, _, notes) in zip(contents, present, settle_classes(raws), strict=True):
        more = list(notes)
        if not found.all():
            lines = content.records.lines[~found].tolist()
            where = in_lines(lines) if content.records.encoding else f"the first is record {lines[0]}, from 0"
            more.append(f"{content.name} has {counted(len(lines), 'record')} without a label ({where}): left out.")
        settled.append(Labels(labels, found, tuple(more)))
    _check_classes(contents[0], settled[0].labels)
    settled[0] = settled[0]._replace(notes=(*settled[0].notes, *_oddities(contents[0], settled[0].labels)))
    known = set(settled[0].labels.tolist())
    for content, found in zip(contents[1:], settled[1:], strict=True):
        if unknown := sorted(set(found.labels.tolist()) - known, key=repr):
            near = suggestion(str(unknown[0]), list(map(str, known)))
            raise InputError(
                f"{content.name} has labels that {contents[0].name} lacks: {listed(unknown)}. The latter has "
                f"{listed(sorted(known, key=repr))}. Correct their spelling, or remove those samples.{near}"
            )
    return settled


def _require_no_quantity(name: str, labels: pd.Series | np.ndarray) -> None:
    """Refuse numbers with fractions."""
    texts = pd.Series(labels).astype("str").str.strip()
    numbers: np.ndarray = np.asarray(pd.to_numeric(texts, errors="coerce"), np.float64)
    finite = np.isfinite(numbers)
    if finite.mean() > MOST_CLASSES and (fractions := numbers[finite & (numbers != np.round(numbers))]).size:
        raise InputError(
            f"{name}: the target holds fractions (such as {fractions[0]:g}), so it is a quantity and not a label. Pass "
            "a column of classes as --target, or review it as a quantity: bilevax denoise --kind quantity."
        )


def _no_text(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns))


def _present(labels: Sequence[pd.Series]) -> list[Bool[np.ndarray, " n"]]:
    """Which records have a label. Words such as NA are labels only where other labels are words, too."""
    masks, words = [], set[str]()
    for values in labels:
        if pd.api.types.is_numeric_dtype(values.dtype):
            masks.append(np.isfinite(values.to_numpy(np.float64, na_value=np.nan)))
            continue
        text = values.astype("str").str.strip()
        masks.append((values.notna() & ~text.isin(NO_CELL)).to_numpy())
        words |= set(text[masks[-1]].unique())
    finite = {word for word in words if NUMBER.fullmatch(word) and "inf" not in word.lower()}
    absent = {word for word in words - finite if word in NO_NUMBERS or "inf" in word.lower()}
    if finite and words == finite | absent:
        for i, values in enumerate(labels):
            if not pd.api.types.is_numeric_dtype(values.dtype):
                masks[i] = masks[i] & ~values.astype("str").str.strip().isin(absent).to_numpy()
    return masks


def _check_classes(content: Content, labels: Shaped[np.ndarray, " n"]) -> None:
    classes = pd.unique(pd.Series(labels))
    if len(classes) < 2:
        raise InputError(
            f"{content.name} has one class only ({listed(classes)}). At least two are needed: check --target, or add "
            "samples of the other classes."
        )
    if len(classes) > max(SMALL, MOST_CLASSES * len(labels)):
        raise InputError(
            f"{content.name} has {len(classes):,} different labels in {len(labels):,} samples (such as "
            f"{listed(classes[:3])}), so {content.target or 'the folder'!r} does not hold classes. Check --target."
        )


def _oddities(content: Content, labels: Shaped[np.ndarray, " n"]) -> list[str]:
    """Classes of one sample, and those whose names differ in case alone."""
    notes, counts = [], Counter(labels.tolist())
    if single := sorted((label for label, n in counts.items() if n == 1), key=repr):
        notes.append(
            f"{content.name} has one sample only of {listed(single)}: nothing else shows what these classes look like."
        )
    if labels.dtype == object:
        alike: dict[str, list[str]] = {}
        for label in counts:
            alike.setdefault(str(label).casefold(), []).append(str(label))
        for same in alike.values():
            if len(same) > 1:
                shown = [f"{label!r} ({counts[label]:,})" for label in sorted(same)]
                notes.append(
                    f"{content.name} has labels that differ in case alone: {listed(shown, quote=False)}. They are read "
                    "as different classes."
                )
    return notes
