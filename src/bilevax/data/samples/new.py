"""Samples that come later, without labels, in the form of those that a model was fitted to."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int, UInt8

from bilevax._checks import InputError, listed, suggestion
from bilevax.data.archives import check_regular
from bilevax.data.samples.arrays import array_alone
from bilevax.data.samples.arrow import datasets_content, is_datasets_folder, parquet_content
from bilevax.data.samples.assemble import identifiers_of, texts_of
from bilevax.data.samples.columns import Column, matrix_of, scaled_array
from bilevax.data.samples.content import Content, chosen, without_labels
from bilevax.data.samples.folder import of_pictures, pictures_in, with_pictures
from bilevax.data.samples.notes import notes_on_cells, notes_on_new_cells
from bilevax.data.samples.numbers import LARGEST
from bilevax.data.samples.pictures import SIDE, SUFFIXES, read_pictures, resized
from bilevax.data.samples.probabilities import VECTORS, read_matrix, singles
from bilevax.data.samples.read import FORMS, PACKED, TEXT
from bilevax.data.samples.text import Records, read_records
from bilevax.data.samples.types import Samples

USED = ("number", "category", "text")
HOLDS = {
    "table": "tables with the columns {columns}",
    "text": "texts in the columns {columns}",
    "features": "arrays of {width} numbers for each sample (NPZ or NPY)",
    "images": "pictures",
}


class Form(NamedTuple):
    """The form of samples, so that a new file becomes features in the same way.

    Attributes:
        kind: as of `Samples`, or `vectors` where another model computed the features.
        columns: of a table, of texts or of an array.
        size: height and width of pictures.
        width: number of columns of vectors; 0 elsewhere.
        target: the column of the labels, which new samples need not have.
    """

    kind: Literal["table", "features", "images", "text", "vectors"]
    columns: tuple[Column, ...] = ()
    size: tuple[int, int] | None = None
    width: int = 0
    target: str | None = None


class NewSamples(NamedTuple):
    """Samples without labels.

    Attributes:
        kind, features: as of `Samples`.
        name: how messages call the file.
        record: the number of the record in its file, from 0.
        lines: the line in a text file where the record begins, from 1; None elsewhere.
        identifiers: as the file names its samples; None where it does not.
        notes: what was done while reading, in sentences.
    """

    kind: str
    name: str
    features: Float32[np.ndarray, "n d"] | UInt8[np.ndarray, "n h w 3"] | list[str]
    record: Int[np.ndarray, " n"]
    lines: Int[np.ndarray, " n"] | None
    identifiers: list[str] | None
    notes: tuple[str, ...]


def form_of(samples: Samples, vectors: Float32[np.ndarray, "n d"] | None = None) -> Form:
    """The form of samples that a model is fitted to; `vectors` replace their features."""
    target = samples.source.target
    if vectors is not None:
        return Form("vectors", width=vectors.shape[1], target=target)
    if samples.kind == "images":
        high, wide = np.shape(samples.features)[1:3]
        return Form("images", size=(int(high), int(wide)), target=target)
    return Form(samples.kind, samples.columns, target=target)


def read_new(
    source: Path | pd.DataFrame,
    form: Form,
    *,
    encoding: str | None = None,
    separator: str | None = None,
    strict: bool = False,
) -> NewSamples:
    r"""Samples of a file or a data frame as features, on the scale of the samples that a model was fitted to.

    A table must have the columns that are used; others, among them the labels, are left out. Missing numbers are at the
    median. Values of a column of words that the model does not know take the place of its rare values, where it has
    one, or are none of its values; a note counts them.

    Args:
        source: a file, as `read_samples` takes it; a picture, or a folder of pictures; or a table as a data frame.
        form: of the samples of the model.
        encoding, separator: of a text file; None finds them out.
        strict: whether malformed cells and pictures are refused, and not left out or treated as missing with a note.

    Raises:
        InputError: the file cannot be read, has no samples, or samples of another form; it lacks columns.

    Example:
        >>> import tempfile, pathlib
        >>> from bilevax.data.samples.new import form_of, read_new
        >>> from bilevax.data.samples.read import read_samples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train, new = (pathlib.Path(folder, name) for name in ("train.csv", "new.csv"))
        ...     _ = train.write_text("size,label\n1,dog\n3,cat\n"), new.write_text("size\n2\n3\n")
        ...     read_new(new, form_of(read_samples(train))).features.ravel().tolist()
        [0.0, 1.0]
    """
    if form.kind == "vectors":
        return _vectors(source, form)
    framed = isinstance(source, pd.DataFrame)
    content = _of_frame(source) if framed else _content(source, encoding, separator, strict)
    if _kind(content) != ("table" if form.kind == "text" else form.kind):
        raise InputError(f"{content.name} holds {_held(content)}, and the model takes {_wanted(form)}.")
    if form.kind == "images":
        return _pictures(content, form, strict)
    return _table(content, form, strict) if content.array is None else _array(content, form, strict)


def _of_frame(frame: pd.DataFrame) -> Content:
    name = "The data frame"
    if len(frame) == 0:
        raise InputError(f"{name} has no rows. Pass at least one sample.")
    places = np.arange(len(frame))
    named = frame.rename(columns=lambda column: str(column).strip()).reset_index(drop=True)
    return without_labels(Records(named, places, places, len(frame)), Path(), name, "frame")


def _content(path: Path, encoding: str | None, separator: str | None, strict: bool) -> Content:
    """The content of a file or folder, whatever its form, without labels."""
    name = f"FILE ({path})"
    if path.is_dir():
        return datasets_content(path, name, None, False) if is_datasets_folder(path) else pictures_in(path, name)
    check_regular(path, name, f"Pass {FORMS}.")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return of_pictures([path], [path.name], path, name)
    if suffix in (".npz", ".npy"):
        return _of_array(path, name)
    if suffix in (".parquet", ".pq"):
        return with_pictures(parquet_content(path, name, None, labelled=False))
    if suffix not in TEXT and not (suffix in PACKED and Path(path.stem).suffix.lower() in (*TEXT, "")):
        raise InputError(f"{name} ends in {path.suffix!r}, an unknown format. Pass {FORMS}.")
    records = read_records(path, name, None, encoding=encoding, separator=separator, strict=strict)
    if len(records.lines) == 0:
        raise InputError(f"{name} has no rows below the line of names. Pass at least one sample.")
    return with_pictures(without_labels(records, path, name, "csv"))


def _of_array(path: Path, name: str) -> Content:
    array = array_alone(path, name)
    places = np.arange(len(array))
    if array.ndim == 1:  # of texts, which a model of such a file knows as the column X
        texts = pd.DataFrame({"X": array.astype(object)})
        return without_labels(Records(texts, places, places, len(array)), path, name, "npz")
    records = Records(pd.DataFrame(index=places), places, places, len(array))
    return without_labels(records, path, name, "npz")._replace(array=array)


def _kind(content: Content) -> str:
    if content.pictures is not None or (content.array is not None and content.array.ndim == 4):
        return "images"
    return "table" if content.array is None else "features"


def _held(content: Content) -> str:
    if _kind(content) == "images":
        return "pictures"
    if content.array is not None:
        return f"an array of {content.array.shape[1]} numbers for each sample"
    return f"a table with the columns {listed(content.records.frame.columns)}"


def _wanted(form: Form) -> str:
    used = [column.name for column in form.columns if column.role in USED]
    return HOLDS[form.kind].format(columns=listed(used), width=len(form.columns))


def _made(content: Content, form: Form, features: Any, notes: list[str]) -> NewSamples:
    records = content.records
    return NewSamples(
        form.kind,
        content.name,
        features,
        records.record,
        records.lines if records.encoding else None,
        identifiers_of(content, form.columns),
        tuple(dict.fromkeys([*records.notes, *notes])),
    )


def _pictures(content: Content, form: Form, strict: bool) -> NewSamples:
    if content.pictures is None:
        assert content.array is not None
        return _made(content, form, resized(content.array, SIDE, form.size), [])
    names = content.identifiers or [f"picture {i}" for i in content.records.record.tolist()]
    found = read_pictures(content.pictures, names, content.name, size=form.size, strict=strict)
    kept = content._replace(labels=pd.Series(range(len(names))))
    return _made(chosen(kept, found.readable), form, found.images, list(found.notes))


def _array(content: Content, form: Form, strict: bool) -> NewSamples:
    array = content.array
    assert array is not None
    if array.shape[1] != len(form.columns):
        raise InputError(
            f"{content.name} has {array.shape[1]} numbers for each sample, and the model takes {len(form.columns)}. "
            "Pass the features that it was fitted to."
        )
    whole = np.abs(array).max() <= LARGEST  # False with NaN
    if whole and not any(column.missing for column in form.columns):
        return _made(content, form, scaled_array(form.columns, array), [])
    frame = pd.DataFrame(array, columns=[column.name for column in form.columns])
    records = content.records._replace(frame=frame)
    return _table(content._replace(records=records, array=None), form, strict)


def _vectors(source: Path | pd.DataFrame, form: Form) -> NewSamples:
    """The numbers of a data frame, or the matrix in a file, as --embeddings takes it."""
    if isinstance(source, pd.DataFrame):
        content = _of_frame(source)
        values = content.records.frame.select_dtypes("number").to_numpy(np.float64)
    else:
        name = f"FILE ({source})"
        values = read_matrix(source, name, VECTORS, None).values
        places = np.arange(len(values))
        content = without_labels(Records(pd.DataFrame(index=places), places, places, len(values)), source, name, "npy")
    if values.shape[1] != form.width:
        raise InputError(
            f"{content.name} has {values.shape[1]} columns of numbers, and the model takes vectors of {form.width} "
            "(--embeddings). Compute them by the same model."
        )
    single, bad = singles(values)
    if bad.size:
        raise InputError(
            f"{content.name}: {bad.size:,} rows have missing, infinite or immense values (the first is record "
            f"{bad[0]}, from 0). Compute them again, or remove those samples."
        )
    return _made(content, form, single, [])


def _table(content: Content, form: Form, strict: bool) -> NewSamples:
    frame: Any = content.records.frame
    name = content.name
    used = [column for column in form.columns if column.role in USED]
    names = [str(column) for column in frame.columns]
    if lacking := [column.name for column in used if column.name not in names]:
        free = [column for column in names if column not in {c.name for c in form.columns}]
        near = "".join(dict.fromkeys(suggestion(column, free) for column in lacking[:3]))
        raise InputError(
            f"{name} lacks columns that the model was fitted to: {listed(lacking)}. Its columns are {listed(names)}."
            f"{near}"
        )
    plain = {c.name: frame[c.name].astype("str") for c in used if not _is_plain(frame[c.name])}
    frame = frame.assign(**plain) if plain else frame
    texts = [column.name for column in used if column.role == "text"]
    if form.kind == "text":
        return _made(content, form, texts_of(frame, texts), [])
    matrix = matrix_of(form.columns, frame)
    shown = {
        column: [str(cell) for cell in frame[column].to_numpy(object)[np.flatnonzero(mask)[:20]]]
        for column, mask in matrix.malformed.items()
    }
    notes = notes_on_cells(matrix.malformed, shown, content.records, name, strict)
    notes += notes_on_new_cells(used, frame, matrix.malformed, name)
    return _made(content, form, matrix.features, notes)


def _is_plain(values: pd.Series) -> bool:
    """Whether a column holds numbers, truth values or text alone."""
    kind = values.dtype
    return bool(pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_string_dtype(values))
