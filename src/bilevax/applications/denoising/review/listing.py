"""Suspects as a table and as entries of the review page, from samples and the probabilities of a ranking."""

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from bilevax._checks import InputError
from bilevax.applications.denoising.review.page import Suspect
from bilevax.applications.denoising.review.thumbnails import thumbnail
from bilevax.data.samples.types import Samples

if TYPE_CHECKING:
    import pandas as pd

MOST = 2000  # suspects on a page
SHOWN_FEATURES = 30  # of an array


def suspects_frame(
    samples: Samples, probability_wrong: Float[np.ndarray, " n"], suggested: Shaped[np.ndarray, " n"]
) -> "pd.DataFrame":
    r"""All samples of TRAIN, the most probably wrong first, for suspects.csv and `automatic_decisions`.

    Args:
        samples: as they were read.
        probability_wrong: that the given label is wrong.
        suggested: the label that the ranking finds most probable.

    Returns:
        The columns row, line (of a text file), id (where samples have one), given_label, suggested_label and
        probability_wrong, then those of the data. A column of the data whose name is taken gets "data: " before it.

    Raises:
        InputError: there is not one probability and one label for each sample.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from bilevax.applications.denoising.review import suspects_frame
        >>> from bilevax.data.samples.read import read_samples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "pets.csv")
        ...     _ = path.write_text("size,label\n1,cat\n2,dog\n1,dog\n")
        ...     samples = read_samples(path)
        >>> suspects_frame(samples, np.array([0.1, 0.2, 0.9]), np.array(["cat", "dog", "cat"])).iloc[0].to_dict()
        {'row': 2, 'line': 4, 'given_label': 'dog', 'suggested_label': 'cat', 'probability_wrong': 0.9, 'size': '1'}
    """
    import pandas as pd

    order = _order(samples, probability_wrong, suggested)
    columns: dict[str, Any] = {"row": samples.record[order]}
    if samples.source.encoding:
        columns["line"] = samples.lines[order]
    if samples.identifiers is not None:
        columns["id"] = [samples.identifiers[i] for i in order]
    columns["given_label"] = [str(label) for label in samples.labels[order].tolist()]
    columns["suggested_label"] = [str(label) for label in np.asarray(suggested)[order].tolist()]
    columns["probability_wrong"] = probability_wrong[order]
    for name in samples.rows.columns:
        if name != samples.source.target and not (name in ("file", "label") and samples.source.form == "folder"):
            columns[f"data: {name}" if name in columns else str(name)] = samples.rows[name].to_numpy()[order]
    return pd.DataFrame(columns)


def page_suspects(
    samples: Samples,
    probability_wrong: Float[np.ndarray, " n"],
    suggested: Shaped[np.ndarray, " n"],
    most: int = MOST,
) -> list[Suspect]:
    """The samples of TRAIN whose labels are most probably wrong, with what a person looks at.

    That is the text of samples of text, a thumbnail of those that are pictures, and the row of a table. Trusted samples
    are left out.

    Args:
        samples: as they were read.
        probability_wrong: that the given label is wrong.
        suggested: the label that the ranking finds most probable.
        most: how many suspects.

    Raises:
        InputError: there is not one probability and one label for each sample.
    """
    order = [i for i in _order(samples, probability_wrong, suggested).tolist() if not samples.trusted[i]][:most]
    lines = bool(samples.source.encoding)
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata of pictures
        contents = list(pool.map(lambda i: _content(samples, i), order))
    return [
        Suspect(
            int(samples.record[i]),
            str(samples.labels[i]),
            str(suggested[i]),
            float(probability_wrong[i]),
            content,
            int(samples.lines[i]) if lines else None,
            None if samples.identifiers is None else samples.identifiers[i],
        )
        for i, content in zip(order, contents, strict=True)
    ]


def _order(
    samples: Samples, probability_wrong: Float[np.ndarray, " n"], suggested: Shaped[np.ndarray, " n"]
) -> Int[np.ndarray, " own"]:
    for name, values in (("probabilities", probability_wrong), ("suggested labels", suggested)):
        if np.shape(values) != (len(samples.labels),):
            raise InputError(f"There are {len(samples.labels):,} samples, and {name} of shape {np.shape(values)}.")
    return np.argsort(-probability_wrong[: samples.own], kind="stable")


def _content(samples: Samples, i: int) -> str | Mapping[str, Any] | bytes:
    if samples.kind == "text":
        return str(samples.features[i])
    if samples.kind == "images":
        return _picture(samples, i)
    if samples.kind == "features":
        return _features(samples, i)
    return {str(name): value for name, value in samples.rows.iloc[i].items() if name != samples.source.target}


def _picture(samples: Samples, i: int) -> bytes:
    """From its file where there is one, which has more pixels than the features."""
    if samples.identifiers is not None:
        source = samples.source.path
        file = (source if source.is_dir() else source.parent) / Path(samples.identifiers[i].replace("\\", "/"))
        if file.is_file():
            try:
                return thumbnail(file)
            except InputError:
                pass
    return thumbnail(np.asarray(samples.features[i]))


def _features(samples: Samples, i: int) -> dict[str, str]:
    """The first features of an array, in their own units; a missing one is empty."""
    values, shown, at = np.asarray(samples.features[i]).tolist(), {}, 0
    for column in samples.columns[:SHOWN_FEATURES]:
        missing = column.missing and values[at + 1] > 0
        shown[column.name] = "" if missing else f"{values[at] * column.scale + column.centre:.5g}"
        at += column.width()
    return shown
