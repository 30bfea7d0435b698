"""Samples to review, from a user's file or folder."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from bilevax._checks import InputError
from bilevax.data.archives import check_regular
from bilevax.data.samples.arrays import array_content
from bilevax.data.samples.arrow import datasets_content, is_datasets_folder, parquet_content
from bilevax.data.samples.assemble import features_of, joined
from bilevax.data.samples.content import Content, chosen, column_of, from_records
from bilevax.data.samples.folder import folder_content, with_pictures
from bilevax.data.samples.labels import settle_labels
from bilevax.data.samples.quantities import note_on_classes, settle_quantities
from bilevax.data.samples.targets import TargetKind, settle_target
from bilevax.data.samples.text import read_records
from bilevax.data.samples.trusted import truth_of
from bilevax.data.samples.types import Kind, Options, Samples

TEXT = (".csv", ".tsv", ".tab", ".txt", ".psv", ".dat", ".data")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
FORMS = ".csv, .tsv, .txt (also .gz, .bz2, .xz, .zst or .zip), .parquet, .npz, .npy, or a folder"


def read_samples(train: Path, trusted: Path | None = None, options: Options = Options()) -> Samples:
    r"""Samples whose labels are to be reviewed, and those of a file of trusted labels.

    Files are text of named columns in any usual separator, encoding and compression, Parquet, NPZ with arrays `X` and
    `y`, NPY, a folder with a subfolder of pictures for each class, text or Parquet with a column of paths of pictures,
    or a folder that `save_to_disk` of Hugging Face's `datasets` wrote. Records without a label, and pictures that
    cannot be read, are left out with a note.

    Numeric columns are centred by the median and divided by the standard deviation; missing values are at the median
    and marked in a column of their own. Columns of words are one-hot encoded; values that occur fewer than three times,
    and those beyond the 49 most frequent, share a column. Left out with a note: identifiers, dates, constants, and
    copies of the label.

    Raises:
        InputError: a file cannot be read, lacks the target or has no features; see `settle_labels` for labels and
            `settle_quantities` for numbers; with `options.strict`, something would be left out or treated as missing.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.data.samples.read import read_samples
        >>> from bilevax.data.samples.types import Options
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "pets.csv"
        ...     _ = path.write_text("size;kind\n1,5;cat\n;dog\n2,5;dog\n")
        ...     samples = read_samples(path, options=Options(target="kind"))
        >>> samples.kind, samples.labels.tolist(), samples.lines.tolist()
        ('table', ['cat', 'dog', 'dog'], [2, 3, 4])
        >>> samples.features  # the size, and whether it is missing
        array([[-1.2247449,  0.       ],
               [ 0.       ,  1.       ],
               [ 1.2247449,  0.       ]], dtype=float32)
    """
    contents = [_content(train, "TRAIN", options)]
    if trusted is not None:
        if options.trusted_column is not None:
            raise InputError("--trusted and --trusted-column are both given. Pass one of them.")
        same = options._replace(target=contents[0].target, labels=None)
        contents.append(_content(trusted, "--trusted", same))
        if _kind(contents[1]) != _kind(contents[0]):
            raise InputError(f"{contents[1].name} holds other samples than {contents[0].name}. Pass the same kind.")
    quantities = settle_quantities(contents, options.quantity, options.strict)
    if quantities is None:
        labels = settle_labels(contents)
        if options.quantity is None and (note := note_on_classes(contents[0])):
            labels[0] = labels[0]._replace(notes=(*labels[0].notes, note))
    else:
        labels = quantities.labels
    truth = None
    if options.trusted_column is not None:
        contents[0], truth = _with_truth(contents[0], options.trusted_column)
        truth = truth[labels[0].present]
    contents = [chosen(content, found.present) for content, found in zip(contents, labels, strict=True)]
    known = [found.labels for found in labels]
    kind, columns, parts = features_of(contents, known, _kind(contents[0]), options)
    if quantities is not None and kind in ("images", "text") and not options.elsewhere:
        held = "pictures" if kind == "images" else "texts alone"
        raise InputError(
            f"{contents[0].name} holds {held}, and quantities are predicted by tables and arrays of numbers. Pass "
            "vectors of a network by --embeddings."
        )
    return joined(kind, columns, contents, labels, parts, truth, None if quantities is None else quantities.style)


def read_targets(path: Path, kind: TargetKind | None, options: Options = Options()) -> tuple[Samples, TargetKind, str]:
    r"""The rows of a table, whose target is to be predicted; what the target is, and why, in a few words.

    Args:
        path: of the file, as `read_samples` takes it.
        kind: of the target; None finds it out.
        options: how it is read.

    Raises:
        InputError: as for `read_samples`; the samples are pictures or texts; the target is not of that kind.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.data.samples.read import read_targets
        >>> from bilevax.data.samples.types import Options
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "houses.csv"
        ...     _ = path.write_text("size,price\n1,100.5\n2,190\n3,310\n")
        ...     samples, kind, why = read_targets(path, None, Options("price"))
        >>> samples.labels.tolist(), kind, why
        ([100.5, 190.0, 310.0], 'quantity', 'it has fractions')
    """
    content = _content(path, "FILE", options)
    if _kind(content) == "images":
        raise InputError(f"{content.name} holds pictures, and a table of numbers and categories is needed.")
    target = settle_target(content, kind, options.strict)
    content = chosen(content, target.labels.present)
    found, columns, parts = features_of([content], [target.labels.labels], _kind(content), options)
    if found == "text":
        raise InputError(f"{content.name} holds texts alone, and a table of numbers and categories is needed.")
    return joined(found, columns, [content], [target.labels], parts, None), target.kind, target.why


def _with_truth(content: Content, wanted: str) -> tuple[Content, Bool[np.ndarray, " n"]]:
    """The content without the column of truth values, and these."""
    column = column_of([str(name) for name in content.rows], wanted, content.name, "--trusted-column")
    records = content.records._replace(frame=content.records.frame.drop(columns=column))
    values: Any = content.rows[column]
    return content._replace(records=records), truth_of(values, content.name)


def _content(path: Path, role: str, options: Options) -> Content:
    """The content of a file or folder, whatever its form."""
    name = f"{role} ({path})"
    if path.is_dir():
        return datasets_content(path, name, options.target) if is_datasets_folder(path) else folder_content(path, name)
    check_regular(path, name, f"Pass {FORMS}.")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return array_content(path, name, options.target, options.labels, options.trusted_column)
    if suffix in (".parquet", ".pq"):
        return with_pictures(parquet_content(path, name, options.target))
    if suffix not in TEXT and not (suffix in PACKED and Path(path.stem).suffix.lower() in (*TEXT, "")):
        raise InputError(f"{name} ends in {path.suffix!r}, an unknown format. Pass {FORMS}.")
    records = read_records(
        path,
        name,
        options.target,
        encoding=options.encoding,
        separator=options.separator,
        strict=options.strict,
    )
    if len(records.lines) == 0:
        raise InputError(f"{name} has no rows below the line of names. Check the file.")
    return with_pictures(from_records(records, path, name, "csv", options.target))


def _kind(content: Content) -> Kind:
    if content.pictures is not None or (content.array is not None and content.array.ndim == 4):
        return "images"
    return "table" if content.array is None else "features"
