"""Pictures of one size, and the reasons why others are left out."""

import io
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from bilevax._checks import InputError, listed, short_reason
from bilevax.data.archives import memory
from bilevax.data.folders import on_a_ground

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm"}
)
SIDE = 64  # pixels
MOST_PIXELS = 89_478_485  # Pillow's own bound on a picture that is no decompression bomb
NAMED = 5  # pictures that a note names for each reason


class Pictures(NamedTuple):
    """Pictures of one size.

    Attributes:
        images: of those that could be read.
        readable: which ones these are.
        notes: how many were left out and why, in sentences.
    """

    images: UInt8[np.ndarray, "k h w 3"]
    readable: Bool[np.ndarray, " n"]
    notes: tuple[str, ...]


class _UnfitError(Exception):
    """Why a picture is left out, in a word or two, and more about it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_pictures(
    files: Sequence[Path | bytes | None],
    names: Sequence[str],
    where: str,
    *,
    side: int = SIDE,
    size: tuple[int, ...] | None = None,
    strict: bool = False,
) -> Pictures:
    """Pictures as uint8 in RGB, all of one size.

    Pictures that are all of the same size, and not larger than `side`, keep it; otherwise each becomes side x side.
    They are turned by their EXIF orientation. Palettes are resolved; transparent pictures are laid on white, or on
    black where the visible part is nearly white. Left out, and named in the notes: pictures that cannot be read, are
    animated, have 16 bits or floats, are in CMYK, have one pixel, or are larger than Pillow's bound on what is no
    decompression bomb.

    Args:
        files: paths, or the bytes of a file; None where there is none.
        names: of each, for messages.
        where: they come from, for messages.
        side: pixels.
        size: height and width that are wanted instead of side x side.
        strict: whether such a picture is an error.

    Raises:
        InputError: no picture can be read; they do not fit into memory; with `strict`, one cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if size is None:
            sizes = {found for found in pool.map(_size, files) if found is not None}
            same = len(sizes) == 1 and max(next(iter(sizes))) <= side
            size = next(iter(sizes)) if same else (side, side)
        if 3 * size[0] * size[1] * len(files) > memory() // 2:
            raise InputError(f"{len(files):,} pictures of {size[0]} x {size[1]} do not fit into memory ({where}).")
        images = np.zeros((len(files), *size, 3), np.uint8)
        found = list(pool.map(lambda i: _read_into(images, i, files[i]), range(len(files))))
    readable = np.array([not isinstance(fault, _UnfitError) for fault in found], bool)
    notes = _notes([(name, fault) for name, fault in zip(names, found, strict=True)], where, strict)
    if not readable.any():
        raise InputError(" ".join([f"{where} has no picture that can be used.", *notes]))
    return Pictures(images if readable.all() else images[readable], readable, tuple(notes))


def resized(
    images: UInt8[np.ndarray, "n h w 3"], side: int, size: tuple[int, ...] | None = None
) -> UInt8[np.ndarray, "n height width 3"]:
    """Pictures that are larger than `side`, or not of `size` where that is given, at that size."""
    from PIL import Image

    if size is None:
        size = images.shape[1:3] if max(images.shape[1:3]) <= side else (side, side)
    if images.shape[1:3] == size:
        return images
    high, wide = size
    new = [Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in new])


def _size(file: Path | bytes | None) -> tuple[int, int] | None:
    """The height and width of a picture that can be opened, as shown."""
    try:
        with _opened(file) as picture:
            at_hand = picture.format != "PNG" or "exif" in picture.info  # otherwise Pillow would read the pixels
            turned = at_hand and picture.getexif().get(0x0112, 1) >= 5
            wide, high = picture.size
            return (wide, high) if turned else (high, wide)
    except Exception:  # it is read, and refused with its reason, later
        return None


def _opened(file: Path | bytes | None) -> "Image.Image":
    """A picture whose header is fit for use; its pixels are not read."""
    from PIL import Image

    if file is None:
        raise _UnfitError("missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except FileNotFoundError as error:
        raise _UnfitError("missing") from error
    except Image.DecompressionBombError as error:
        raise _UnfitError("huge") from error
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else short_reason(error)
        raise _UnfitError("unreadable", reason) from error
    fault = _fault(picture)
    if fault is not None:
        picture.close()
        raise fault
    return picture


def _fault(picture: Any) -> _UnfitError | None:
    wide, high = picture.size
    if wide * high > MOST_PIXELS:
        return _UnfitError("huge", f"{wide} x {high}")
    if wide * high <= 1:
        return _UnfitError("of one pixel")
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a photograph with a preview
        return _UnfitError("animated or of several pages", f"{picture.n_frames} frames")
    if picture.mode.startswith("I") or picture.mode == "F":
        return _UnfitError("of more than 8 bits", picture.mode)
    return _UnfitError("in CMYK") if picture.mode == "CMYK" else None


def _read_into(images: UInt8[np.ndarray, "n h w 3"], i: int, file: Path | bytes | None) -> "_UnfitError | str":
    """Read one picture into its place; what was resolved, or why it cannot be used."""
    from PIL import Image, ImageOps

    high, wide = images.shape[1:3]
    try:
        with _opened(file) as picture:
            mode, same = picture.mode, picture.size in ((wide, high), (high, wide))
            if not same:
                picture.draft("RGB", (2 * wide, 2 * high))  # a JPEG is decoded near the size that is needed
            shown = ImageOps.exif_transpose(picture)
            transparent = mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in shown.info
            if transparent:
                shown = on_a_ground(shown.convert("RGBA"))
            shown = shown.convert("RGB")
            if shown.size != (wide, high):
                shown = shown.resize((wide, high), Image.Resampling.BICUBIC, reducing_gap=3.0)
            images[i] = np.asarray(shown)
            return "transparent" if transparent else "of a palette" if mode == "P" else ""
    except _UnfitError as fault:
        return fault
    except Exception as error:  # a damaged file raises whatever its decoder runs into
        return _UnfitError("unreadable", short_reason(error))


def _notes(found: Sequence[tuple[str, "_UnfitError | str"]], where: str, strict: bool) -> list[str]:
    faults: dict[str, list[str]] = {}
    for name, fault in found:
        if isinstance(fault, _UnfitError):
            faults.setdefault(fault.reason, []).append(f"{name} ({fault.detail})" if fault.detail else name)
    notes = []
    for reason, names in faults.items():
        plural = "picture that is" if len(names) == 1 else "pictures that are"
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        sentence = f"{where} has {len(names):,} {plural} {reason}: {listed(names[:NAMED], quote=False)}{more}"
        if strict:
            raise InputError(f"{sentence}. Convert or remove what is listed.")
        notes.append(f"{sentence}; left out.")
    resolved = Counter(fault for _, fault in found if isinstance(fault, str) and fault)
    if n := resolved["transparent"]:
        notes.append(
            f"{where} has {n:,} transparent pictures: they are laid on white, or on black where they are white."
        )
    return notes
