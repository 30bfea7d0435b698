"""NPZ and NPY files: features, pictures or texts, and labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Shaped, UInt8

from bilevax._checks import InputError, listed, short_reason, suggestion
from bilevax.data.archives import UnreadableError, read_npz, read_single
from bilevax.data.readers import native
from bilevax.data.samples.content import Content, digest_of
from bilevax.data.samples.text import Records

LABELS = ("y", "labels", "label")
SMALLEST_SIDE = 8  # of flat pictures


def read_array(path: Path, name: str) -> Shaped[np.ndarray, "..."]:
    """The array of an NPY file, in native byte order.

    Raises:
        InputError: it is damaged, or holds objects, complex numbers or dates.
    """
    try:
        return native(read_single(path), "the array", name)
    except UnreadableError as error:
        raise InputError(f"{name} cannot be read as .npy: {short_reason(error)}. Save it by numpy.save.") from error


def array_content(
    path: Path, name: str, target: str | None, labels: Path | None, trusted_column: str | None
) -> Content:
    """The content of an NPZ file with arrays `X` and `y` (or as `target` names it), or of an NPY file and its labels.

    Args:
        path: of the file.
        name: of it, for messages.
        target: the array of the labels.
        labels: for an NPY file, the NPY file of its labels.
        trusted_column: another array of the NPZ file to keep.

    Raises:
        InputError: an array is missing or cannot be used; the lengths differ.
    """
    extra: dict[str, np.ndarray] = {}
    if path.suffix.lower() == ".npy":
        if labels is None:
            raise InputError(
                f"{name} is one array, without labels. Pass their NPY file by --labels, or save both by "
                "numpy.savez(path, X=..., y=...)."
            )
        X, y, target = read_array(path, name), read_array(labels, f"--labels ({labels})"), "labels"
    else:
        try:
            found, names = read_npz(path, ("X", *LABELS, *(n for n in (target, trusted_column) if n is not None)))
        except UnreadableError as error:
            raise InputError(
                f"{name} cannot be read as .npz: {short_reason(error)}. Save it by numpy.savez(path, X=..., y=...), "
                "with arrays of numbers or strings, not of objects."
            ) from error
        target = target or next((key for key in LABELS if key in names), "y")
        for key in filter(None, ("X", target, trusted_column)):
            if key not in found:
                raise InputError(
                    f"{name} has no array {key!r}. Its arrays are {listed(names)}; X and {target} are needed."
                    f"{suggestion(key, names)}"
                )
        X, y = native(found["X"], "X", name), native(found[target], target, name)
        if trusted_column is not None:
            extra = {trusted_column: native(found[trusted_column], trusted_column, name)}
    _check_shapes(X, y, extra, target, name)
    places = np.arange(len(y))
    rows: Any = pd.DataFrame({target: y, **extra})
    if X.ndim == 1:
        return Content(
            name,
            path,
            path.suffix[1:].lower(),
            target,
            rows[target],
            Records(pd.DataFrame({"X": X.astype(object), **extra}), places, places, len(y)),
            rows.assign(X=X.astype(object)),
            digest_of(path),
        )
    records = Records(rows.drop(columns=target), places, places, len(y))
    array = _as_pictures(X, name)
    return Content(name, path, path.suffix[1:].lower(), target, rows[target], records, rows, digest_of(path), array)


def array_alone(path: Path, name: str) -> Shaped[np.ndarray, "n ..."]:
    """The array X of an NPZ file, or its only one; or that of an NPY file: texts, features, or pictures as bytes.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    if path.suffix.lower() == ".npy":
        X = read_array(path, name)
    else:
        try:
            names = read_npz(path, ())[1]
            chosen = names[0] if len(names) == 1 else "X"
            found = read_npz(path, (chosen,))[0]
        except UnreadableError as error:
            raise InputError(
                f"{name} cannot be read as .npz: {short_reason(error)}. Save it by numpy.savez(path, X=...)."
            ) from error
        if chosen not in found:
            raise InputError(f"{name} has no array 'X'. Its arrays are {listed(names)}.{suggestion('X', names)}")
        X = native(found[chosen], chosen, name)
    if X.ndim == 0 or X.size == 0:
        raise InputError(f"{name}: X has shape {X.shape}, and is empty. Check it.")
    _check_kind(X, name)
    return X if X.ndim == 1 else _as_pictures(X, name)


def _check_shapes(X: np.ndarray, y: np.ndarray, extra: dict[str, np.ndarray], target: str, name: str) -> None:
    if y.ndim != 1 or X.ndim < 1 or len(X) != len(y):
        one_hot = y.ndim == 2 and len(y) == len(X)
        hint = f" If {target} is one-hot encoded, save {target}.argmax(axis=1)." if one_hot else ""
        raise InputError(
            f"{name}: X has shape {X.shape} and {target} has shape {y.shape}. X must be (samples, ...) and the labels "
            f"(samples,), of the same length.{hint}"
        )
    if X.size == 0:
        raise InputError(f"{name}: X has shape {X.shape}, and is empty. Check it.")
    for key, values in extra.items():
        if values.shape != y.shape:
            raise InputError(f"{name}: {key} has shape {values.shape}, and must have that of {target}, {y.shape}.")
    _check_kind(X, name)


def _check_kind(X: np.ndarray, name: str) -> None:
    if X.ndim == 1 and X.dtype.kind not in "U":
        raise InputError(f"{name}: X has shape {X.shape}. If there is one feature, save X.reshape(-1, 1).")
    if X.ndim > 1 and X.dtype.kind not in "biuf":
        raise InputError(f"{name}: X has dtype {X.dtype}, and must hold numbers, or be (samples,) of texts.")


def _as_pictures(X: Shaped[np.ndarray, "n ..."], name: str) -> Shaped[np.ndarray, "n ..."]:
    """Pictures as uint8 (n, h, w, 3), where the array holds some; otherwise features (n, d)."""
    side = int(np.sqrt(X.shape[1]))
    if X.ndim == 2 and X.dtype == np.uint8 and side >= SMALLEST_SIDE and side * side == X.shape[1]:
        X = X.reshape(-1, side, side)  # flat grey pictures, as MNIST is often stored
    if X.ndim == 2:
        return X
    if X.ndim == 4 and X.shape[-1] not in (1, 3, 4) and X.shape[1] in (1, 3, 4):
        X = np.moveaxis(X, 1, -1)  # channels first, as in PyTorch
    if X.ndim not in (3, 4) or (X.ndim == 4 and X.shape[-1] not in (1, 3, 4)):
        return X.reshape(len(X), -1)
    if X.ndim == 3:
        X = X[..., None]
    return np.ascontiguousarray(np.broadcast_to(_bytes(X[..., :3], name), (*X.shape[:3], 3)))


def _bytes(X: Shaped[np.ndarray, "n h w c"], name: str) -> UInt8[np.ndarray, "n h w c"]:
    """Pixels as bytes; floats in 0..1 are multiplied by 255."""
    if X.dtype == np.uint8:
        return X
    low, high = float(X.min()), float(X.max())
    if not (low >= 0 and high <= 255):  # NaN, too
        raise InputError(
            f"{name}: X holds pictures with values {low:g}..{high:g}. Save them as bytes 0..255, or as floats 0..1."
        )
    scale = 255.0 if X.dtype.kind == "b" or (X.dtype.kind == "f" and high <= 1) else 1.0
    return np.rint(X * scale).astype(np.uint8)
