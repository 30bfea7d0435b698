"""NPZ files with other labels."""

import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from bilevax._checks import InputError
from bilevax.applications.denoising.review.edits import Edits, settled
from bilevax.data.samples.types import Source


def write_arrays(source: Source, edits: Edits, out: Path) -> dict[int, str]:
    """Write a copy of an NPZ file; other arrays stay as they are, save for the entries of dropped samples.

    Raises:
        InputError: as `settled`; an array that has an entry for each sample cannot be loaded to drop some.
    """
    target = f"{source.target}.npy"
    kept = np.array([row not in edits.dropped for row in range(source.records)])
    with zipfile.ZipFile(source.path) as archive, zipfile.ZipFile(out, "w") as copy:
        for member in archive.infolist():
            info = zipfile.ZipInfo(member.filename, member.date_time)
            info.compress_type, info.external_attr = member.compress_type, member.external_attr
            is_target = member.filename in (target, source.target)
            with archive.open(member) as stream, copy.open(info, "w", force_zip64=True) as written:
                if is_target:
                    labels = np.lib.format.read_array(stream, allow_pickle=False)
                    np.lib.format.write_array(written, _edited(labels, edits, str(source.path))[kept])
                elif not kept.all() and _entries(archive, member) == source.records:
                    try:
                        array = np.lib.format.read_array(stream, allow_pickle=False)
                    except ValueError as error:
                        raise InputError(
                            f"{source.path}: the array {member.filename!r} has Python objects, so samples cannot be "
                            "dropped from it. Remove that array, or drop no sample."
                        ) from error
                    np.lib.format.write_array(written, array[kept])
                else:
                    shutil.copyfileobj(stream, written, 1 << 20)
    return {}


def _edited(labels: Shaped[np.ndarray, " n"], edits: Edits, where: str) -> Shaped[np.ndarray, " n"]:
    values = labels.tolist()
    new = settled(edits, Counter(values), ((row, values[row]) for row in edits.given), where)
    labels = labels.copy()
    for row, value in new.items():  # a value that the array has, so that it fits its type
        try:
            labels[row] = value
        except OverflowError as error:
            raise InputError(
                f"{edits.name}: row {row} gets {value:g}, which {labels.dtype}, the type of the target of {where}, "
                "cannot hold. Save it in a wider type."
            ) from error
    return labels


def _entries(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int | None:
    """The length of the first axis of an array; None where the member is no array, or a number."""
    try:
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read(stream)
    except ValueError:
        return None
    return shape[0] if shape else None
