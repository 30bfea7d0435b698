"""Which labels are trusted, and whether they contradict the given ones."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Shaped

from bilevax._checks import InputError, listed

YES = frozenset({"1", "yes", "true", "y", "t", "1.0", "trusted", "clean", "x"})
NO = frozenset({"0", "no", "false", "n", "f", "0.0", "", "nan", "none", "<na>"})
MOST_TWINS = 0.1  # of the rows of TRAIN that may be equal to another one where equal features are to mean the same row
AGREEING = 0.9  # of the rows with the same identifier that must be the same for identifiers to mean the same row


def truth_of(values: pd.Series, name: str) -> Bool[np.ndarray, " n"]:
    """A column of truth values: 1 and 0, yes and no, true and false; a missing one is false.

    Raises:
        InputError: it holds other values, or none or all of them are true.
    """
    words = values.astype("str").fillna("").str.strip().str.lower()
    if unknown := sorted(set(words.unique()) - YES - NO):
        raise InputError(
            f"{name}: the column of --trusted-column holds {listed(unknown)}, and must hold truth values: yes and no, "
            "true and false, or 1 and 0."
        )
    trusted = words.isin(YES).to_numpy()
    if trusted.all() or not trusted.any():
        found = "all" if trusted.all() else "none"
        raise InputError(
            f"{name}: by --trusted-column {found} of the labels are trusted. Some must be, and others in doubt; leave "
            "the option out if none is."
        )
    return trusted


def twins_of(
    train: tuple[Sequence[bytes], list[str] | None, Shaped[np.ndarray, " n"]],
    other: tuple[Sequence[bytes], list[str] | None, Shaped[np.ndarray, " m"]],
) -> Int[np.ndarray, " m"]:
    """For each trusted sample the sample of TRAIN that is the same, or -1.

    Samples with the same identifier are the same if the features of nearly all of them are equal, and the identifiers
    of TRAIN are unique. Otherwise samples with the same features are, if few samples of TRAIN share theirs; of several
    the one with the same label.

    Args:
        train, other: the features of each sample as bytes, the identifiers and the labels.
    """
    (rows, identifiers, labels), (their_rows, their_identifiers, their_labels) = train, other
    if identifiers is not None and their_identifiers is not None and len(set(identifiers)) == len(identifiers):
        places = {identifier: i for i, identifier in enumerate(identifiers)}
        found = np.array([places.get(identifier, -1) for identifier in their_identifiers])
        pairs = [(i, j) for i, j in enumerate(found.tolist()) if j >= 0]
        if pairs and np.mean([their_rows[i] == rows[j] for i, j in pairs]) >= AGREEING:
            return found
    alike: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault(row, []).append(i)
    if len(rows) - len(alike) > MOST_TWINS * len(rows):
        return np.full(len(their_rows), -1)
    chosen = []
    for row, label in zip(their_rows, their_labels.tolist(), strict=True):
        same = alike.get(row, [-1])
        chosen.append(next((i for i in same if i >= 0 and labels[i] == label), same[0]))
    return np.array(chosen, int)


def notes_on_trusted(
    labels: Shaped[np.ndarray, " n"], trusted: Bool[np.ndarray, " n"], twin: Int[np.ndarray, " n"], quantity: bool
) -> list[str]:
    """Notes on classes without a trusted sample, and on trusted labels that contradict the given ones."""
    notes = []
    classes = set() if quantity else set(labels.tolist())
    if lacking := sorted(classes - set(labels[trusted].tolist()), key=repr):
        notes.append(
            f"No trusted sample is of {listed(lacking)}: nothing confirms these labels, so they may become suspects."
        )
    same = np.flatnonzero(twin >= 0)
    if len(same):
        contradicted = int(np.sum(labels[same] != labels[twin[same]]))
        notes.append(
            f"{len(same):,} of the trusted samples are samples of TRAIN, too; {contradicted:,} of them have another "
            f"{'target' if quantity else 'label'} there."
        )
    return notes
