"""The samples of a review, and where they came from."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int, Shaped, UInt8

from bilevax.data.samples.columns import Column
from bilevax.data.samples.numbers import Style
from bilevax.data.samples.pictures import SIDE

Kind = Literal["table", "features", "images", "text"]


class Options(NamedTuple):
    """How the files of a review are read.

    Attributes:
        target: the column of the labels, or the array of an NPZ file.
        labels: for an NPY file, the NPY file of its labels.
        trusted_column: a column of truth values: which labels are trusted.
        drop: columns that are left out.
        keep: columns that are used, although they look like identifiers, constants or copies of the label.
        encoding, separator: of text files; None finds them out.
        side: pixels; pictures become side x side.
        strict: whether malformed cells, records and pictures are refused, and not left out with a note.
        elsewhere: whether the features come from another file, so that this one may have none.
        quantity: whether the target is a quantity; None finds it out.
        aside: columns that are no features, such as weights, each with the option that names it.
    """

    target: str | None = None
    labels: Path | None = None
    trusted_column: str | None = None
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    encoding: str | None = None
    separator: str | None = None
    side: int = SIDE
    strict: bool = False
    elsewhere: bool = False
    quantity: bool | None = False
    aside: tuple[tuple[str, str], ...] = ()


class Source(NamedTuple):
    """The file or folder of the samples, and what is needed to write it again.

    Attributes:
        path: of the file or folder.
        form: `csv`, `parquet`, `npz`, `npy`, `folder` or `datasets`.
        target: the column or array of the labels; None for a folder of class folders.
        records: how many records it has, those that were left out included.
        digest: the SHA-256 of the content.
        encoding, separator, compression: of a text file; the compression is empty, `gz`, `bz2`, `xz`, `zst` or `zip`.
        numbers: how the target is written where it is a quantity; None for classes.
    """

    path: Path
    form: str
    target: str | None
    records: int
    digest: str
    encoding: str = ""
    separator: str = ""
    compression: str = ""
    numbers: Style | None = None


class Samples(NamedTuple):
    """Labelled samples; those of TRAIN first, then those of the trusted file, where there is one.

    Attributes:
        kind: `table` (a matrix made of columns), `features` (an array as given), `images` or `text`.
        name: how messages call the file.
        features: float32 (n, d) on a common scale, or pictures uint8 (n, h, w, 3), or n texts.
        labels: of whole numbers, truth values or text; of a quantity numbers.
        trusted: which labels are known to be right.
        own: how many samples are of TRAIN.
        record: the number of the record in its file, from 0.
        lines: the line in a text file where the record begins, from 1; elsewhere `record`.
        identifiers: as the file names its samples, such as the path of a picture; None where it does not.
        rows: the records as they are in the file.
        texts: the free text of each sample of a table that has some; None elsewhere.
        twin: for each sample of the trusted file the sample of TRAIN that is the same, or -1; -1 for those of TRAIN.
        columns: how a table became a matrix; empty for pictures and text.
        source: of TRAIN.
        notes: what was done while reading, in sentences.
    """

    kind: Kind
    name: str
    features: Float32[np.ndarray, "n d"] | UInt8[np.ndarray, "n h w 3"] | list[str]
    labels: Shaped[np.ndarray, " n"]
    trusted: Bool[np.ndarray, " n"]
    own: int
    record: Int[np.ndarray, " n"]
    lines: Int[np.ndarray, " n"]
    identifiers: list[str] | None
    rows: pd.DataFrame
    texts: list[str] | None
    twin: Int[np.ndarray, " n"]
    columns: tuple[Column, ...]
    source: Source
    notes: tuple[str, ...]
