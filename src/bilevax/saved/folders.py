"""The folder of a saved model: a description in JSON, arrays in NPZ, and estimators as skops writes them."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Shaped

import bilevax
from bilevax._checks import InputError, listed, short_reason
from bilevax.data.archives import UnreadableError, read_npz

FORMAT = 1
DESCRIPTION, ARRAYS, OBJECTS = "model.json", "arrays.npz", "estimators.skops"
PACKAGES = ("numpy", "scikit-learn", "jax")
ADVICE = "Pass the folder that bilevax denoise writes as model, or one of bilevax.saved.save_model."

T = TypeVar("T")


class Content(NamedTuple):
    """What a folder holds.

    Attributes:
        model: a description of the model, of JSON values.
        arrays: those that it names, by number.
        estimators: what skops wrote; empty without such estimators.
        versions: of the packages that wrote it.
    """

    model: Any
    arrays: dict[str, Shaped[np.ndarray, "..."]]
    estimators: bytes
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Of the packages whose objects are saved."""
    return {"bilevax": bilevax.__version__} | {name: version_of(name) for name in PACKAGES}


def changes(content: Content) -> str:
    """Which versions of scikit-learn or JAX differ from the installed ones, for a warning."""
    now = versions()
    return listed(
        [
            f"{name} {content.versions[name]} (installed: {now[name]})"
            for name in ("scikit-learn", "jax")
            if name in content.versions and content.versions[name] != now[name]
        ],
        quote=False,
    )


def packed(content: Content) -> dict[str, bytes]:
    """The files of a folder; the description, which has the digests of the others, is the last."""
    buffer = io.BytesIO()
    # As numpy.savez_compressed, which takes three times as long for a file that is little smaller.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in content.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    files = {ARRAYS: buffer.getvalue()}
    if content.estimators:
        files[OBJECTS] = content.estimators
    description = {
        "program": "bilevax",
        "format": FORMAT,
        "versions": content.versions,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "model": content.model,
    }
    return files | {DESCRIPTION: (json.dumps(description, indent=1) + "\n").encode()}


def unpacked(folder: Path) -> Content:
    """The content of a folder.

    Raises:
        InputError: it is none of a model, is damaged, or was written by a newer version.
    """
    if not folder.exists():
        raise InputError(f"The model {folder} does not exist. {ADVICE}")
    if not folder.is_dir():
        raise InputError(f"The model {folder} is a file, and a folder is needed. {ADVICE}")
    file = folder / DESCRIPTION
    if not file.is_file():
        inside = folder / "model"
        hint = f" Did you mean {inside}?" if (inside / DESCRIPTION).is_file() else f" {ADVICE}"
        raise InputError(f"The folder {folder} is no saved model: it has no {DESCRIPTION}.{hint}")
    try:
        description = json.loads(file.read_bytes())
        ours, number = description["program"] == "bilevax", int(description["format"])
        written = {str(name): str(version) for name, version in description["versions"].items()}
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Check the folder.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{DESCRIPTION} cannot be read") from error
    if not ours:
        raise InputError(f"The folder {folder} is no saved model of bilevax. {ADVICE}")
    if number > FORMAT:
        raise InputError(
            f"The model {folder} was saved by bilevax {written.get('bilevax', '')} in format {number}, and this is "
            f"bilevax {bilevax.__version__}, which reads format {FORMAT}. Update bilevax."
        )
    return intact(folder, lambda: _content(folder, description, written))


def _content(folder: Path, description: dict[str, Any], written: dict[str, str]) -> Content:
    found = {}
    for name, digest in description["files"].items():
        if name not in (ARRAYS, OBJECTS):
            raise ValueError(f"it names the file {name!r}")
        found[name] = (folder / name).read_bytes()
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise ValueError(f"{name} is not as it was written")
    names = read_npz(folder / ARRAYS, ())[1]
    return Content(description["model"], read_npz(folder / ARRAYS, names)[0], found.get(OBJECTS, b""), written)


def intact(folder: Path, read: Callable[[], T]) -> T:
    """What `read` returns; where the folder does not hold what it should, an InputError."""
    try:
        return read()
    except InputError:
        raise
    except FileNotFoundError as error:
        raise damaged(folder, f"{Path(error.filename or '').name} is missing") from error
    except (OSError, UnreadableError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise damaged(folder, short_reason(error)) from error


def damaged(folder: Path, reason: str) -> InputError:
    """The error of a folder that was changed, or not copied as a whole."""
    return InputError(f"The model {folder} is damaged: {reason}. Copy the folder again, or save the model again.")
