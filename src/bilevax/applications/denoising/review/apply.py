"""Decisions applied to the data that they are about, in a copy of the form that it came in."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bilevax import _files
from bilevax._checks import InputError
from bilevax._files.whole import temporary_name
from bilevax.applications.denoising.review.decisions import COLUMNS, Decisions, short_digest
from bilevax.applications.denoising.review.edits import Edits
from bilevax.applications.denoising.review.write_arrays import write_arrays
from bilevax.applications.denoising.review.write_arrow import write_datasets, write_parquet
from bilevax.applications.denoising.review.write_folder import write_folder
from bilevax.applications.denoising.review.write_text import write_text
from bilevax.data.samples.types import Source

if TYPE_CHECKING:
    import pandas as pd

# Each writes to a path that does not exist, and returns the new identifiers of samples whose identifier changed.
WRITERS: dict[str, Callable[[Source, Edits, Path], dict[int, str]]] = {
    "csv": write_text,
    "parquet": write_parquet,
    "npz": write_arrays,
    "folder": write_folder,
    "datasets": write_datasets,
}
FOLDERS = ("folder", "datasets")


def apply_decisions(source: Source, decisions: Decisions, out: Path) -> "pd.DataFrame":
    r"""Write the data with the decisions applied, and return what changed.

    The copy has the form of the data: a text file its separator, encoding, compression, quotation marks and line ends;
    a Parquet file its schema, metadata and row groups; an NPZ file its other arrays; a folder of class folders its
    other files. A sample that is dropped is left out, of an NPZ file from all arrays that have an entry for each
    sample. A corrected picture is copied to the folder of its class. The data itself is not touched.

    Args:
        source: where the samples came from, as `data.samples` read them.
        decisions: by `read_decisions` or `automatic_decisions`.
        out: the file or folder to write, completely or not at all. It must not exist.

    Returns:
        The change log: row, line, id, given_label, decision and label of each sample that was corrected or dropped,
        and `new_id` where an identifier changed, as the path of a picture does.

    Raises:
        InputError: the decisions are about other data, or about data that changed since; a row does not exist, or has
            another label than the decision says; a label is no class, or no number; every sample would be dropped;
            `out` exists.
        OSError: `out` cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from bilevax.applications.denoising.review import Decision, Decisions, apply_decisions, short_digest
        >>> from bilevax.data.samples.read import Options, read_samples
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pets, corrected = pathlib.Path(folder, "pets.csv"), pathlib.Path(folder, "corrected.csv")
        ...     _ = pets.write_text('size;kind\r\n"1,0";"cat"\r\n1,5;dog\r\n2,5;dog\r\n')
        ...     source = read_samples(pets, options=Options(target="kind")).source
        ...     decisions = Decisions("mine", short_digest(source.digest), (Decision(0, "cat", "correct", "dog"),))
        ...     changes = apply_decisions(source, decisions, corrected)
        ...     corrected.read_bytes().decode()
        'size;kind\r\n"1,0";"dog"\r\n1,5;dog\r\n2,5;dog\r\n'
    """
    import pandas as pd

    if decisions.digest != short_digest(source.digest):
        raise InputError(
            f"{decisions.name} is about data of digest {decisions.digest}, and {source.path} has "
            f"{short_digest(source.digest)}: it changed since the review, or is another file. Pass the file as it was, "
            "or review it again."
        )
    writer = WRITERS.get(source.form)
    if writer is None:
        raise InputError(
            f"{source.path}: decisions cannot be applied to data of the form {source.form!r}. Save features and labels "
            "together, by numpy.savez(path, X=..., y=...), and review that."
        )
    edits = _edits(source, decisions)
    _check_out(source, out)
    if source.form in FOLDERS:
        renamed = _write_folder(source, edits, out, writer)
    else:
        results = []
        _files.replace(out, lambda temporary: results.append(writer(source, edits, temporary)))
        renamed = results[0]
    changed = [one for one in decisions.items if one.word == "drop" or one.row in edits.labels]
    log = pd.DataFrame(
        [[one.row, one.line, one.identifier, one.given, one.word, one.label] for one in changed],
        columns=[*COLUMNS[:-1]],
    ).astype({"line": "Int64"})
    if renamed:
        log["new_id"] = [renamed.get(row) for row in log["row"]]
    return log


def _edits(source: Source, decisions: Decisions) -> Edits:
    if twice := [row for row, n in Counter(one.row for one in decisions.items).items() if n > 1]:
        raise InputError(f"{decisions.name} has more than one decision about row {twice[0]}. Keep one.")
    for one in decisions.items:
        if not 0 <= one.row < source.records:
            raise InputError(
                f"{decisions.name} has a decision about row {one.row}, and {source.path} has {source.records:,} rows, "
                f"0 to {source.records - 1}."
            )
    dropped = {one.row for one in decisions.items if one.word == "drop"}
    if len(dropped) == source.records:
        raise InputError(f"{decisions.name} drops all {source.records:,} samples of {source.path}. Keep some.")
    return Edits(
        decisions.name,
        given={one.row: one.given for one in decisions.items},
        labels={one.row: one.label for one in decisions.items if one.word == "correct" and one.label != one.given},
        dropped=dropped,
        identifiers={one.row: one.identifier for one in decisions.items if one.identifier is not None},
        numbers=source.numbers,
    )


def _check_out(source: Source, out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists, and is not overwritten. Name a new file.")
    if source.path.is_dir() and source.path.resolve() in out.resolve().parents:
        raise InputError(f"{out} is in the folder of the data, {source.path}. Name one outside of it.")


def _write_folder(
    source: Source, edits: Edits, out: Path, writer: Callable[[Source, Edits, Path], dict[int, str]]
) -> dict[int, str]:
    """Write a folder under a temporary name beside `out`, then rename it."""
    import shutil

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(out)
    try:
        renamed = writer(source, edits, temporary)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return renamed
